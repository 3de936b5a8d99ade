"""Clients of scanners against servers that behave, lie, hang and vanish; the breaker."""

from __future__ import annotations

import asyncio
import sys

import pytest

from iems.net.breaker import CLOSED_S, FAILURES, Breaker, NoAnswer
from iems.scan.checker import Rspamd, Score, Spamd
from iems.scan.clamd import Clamd
from iems.scan.command import Command


async def octets(*pieces):
    for piece in pieces:
        yield piece


async def serve(answer, seen=None, read=b"\0\0\0\0"):
    """A server that reads until `read` ends what came, then answers; answer None: it hangs."""

    async def handle(reader, writer):
        got = b""
        while not got.endswith(read):
            more = await reader.read(65536)
            if not more:
                break
            got += more
        if seen is not None:
            seen.append(got)
        if answer is None:
            await asyncio.sleep(30)
        writer.write(answer or b"")
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


def clamd(port, timeout_s=5.0, breaker=None):
    return Clamd(f"127.0.0.1:{port}", timeout_s=timeout_s, at_once=4, breaker=breaker or Breaker())


def test_clamd_protocol():
    async def main():
        seen = []
        server, port = await serve(b"1: stream: OK\0", seen)
        assert await clamd(port).scan(octets(b"abc", b"d" * (1 << 20))) == ""
        assert seen[0].startswith(b"zIDSESSION\0zINSTREAM\0\0\0\0\3abc\0\x10\0\0ddd") and seen[0].endswith(b"d\0\0\0\0")
        server.close()
        server, port = await serve(b"1: stream: Eicar-Test FOUND\0")
        assert await clamd(port).scan(octets(b"x")) == "Eicar-Test"
        server.close()

    asyncio.run(main())


@pytest.mark.parametrize("answer", [
    b"", b"nonsense\0", b"1: stream: \0", b"stream: OK\0", b"2: stream: OK\0", b"1: stream: O", b"INSTREAM size limit exceeded. ERROR\0",
    b"1: INSTREAM size limit exceeded. ERROR\0", b"1: stream: x ERROR\0", b"x" * 70_000, None])  # fmt: skip
def test_clamd_that_can_not_be_believed(answer):
    async def main():
        server, port = await serve(answer)
        with pytest.raises(NoAnswer):
            await clamd(port, timeout_s=0.5).scan(octets(b"x"))
        server.close()

    asyncio.run(main())


class Sessions:
    """A clamd that answers each command of a session, and ends it after `most`."""

    def __init__(self, most):
        self.most, self.connections, self.seen = most, 0, []

    async def handle(self, reader, writer):
        self.connections += 1
        try:
            assert await reader.readuntil(b"\0") == b"zIDSESSION\0"
            for number in range(1, self.most + 1):
                assert await reader.readuntil(b"\0") == b"zINSTREAM\0"
                content = b""
                while length := int.from_bytes(await reader.readexactly(4), "big"):
                    content += await reader.readexactly(length)
                self.seen.append(content)
                writer.write(b"%d: stream: %b\0" % (number, b"Evil FOUND" if b"EVIL" in content else b"OK"))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.mark.parametrize("most", [1, 3, 100])
def test_clamd_sessions(most):
    async def main():
        server = Sessions(most)
        listening = await asyncio.start_server(server.handle, "127.0.0.1", 0)
        one = clamd(listening.sockets[0].getsockname()[1])
        for number in range(10):
            assert await one.scan(octets(b"", b"EVIL" if number % 2 else b"fine", b"")) == ("Evil" if number % 2 else "")
        assert server.connections == -(-10 // most)
        # a session that has ended, which nobody has told us yet
        if most < 100:
            for session in one._idle:
                session.reader.at_eof = lambda: False
            assert await one.scan(octets(b"EVIL")) == "Evil"
        assert len(server.seen) == 10 + (most < 100)
        long = b"x" * 300_000
        assert await one.scan(octets(long, long, b"EVIL")) == "Evil" and server.seen[-1] == long + long + b"EVIL"
        found = await asyncio.gather(*(one.scan(octets(b"EVIL%d" % n if n % 3 else b"%d" % n)) for n in range(30)))
        assert [bool(virus) for virus in found] == [bool(n % 3) for n in range(30)] and len(one._idle) <= 4
        listening.close()

    asyncio.run(main())


def test_breaker_stops_asking_and_tries_again():
    now = 100.0
    told = []
    breaker = Breaker(lambda is_open, reason: told.append((is_open, reason)), lambda: now)

    async def main():
        nonlocal now
        gone = clamd(1, breaker=breaker)
        for _ in range(FAILURES):
            with pytest.raises(NoAnswer, match="127"):
                await gone.scan(octets(b"x"))
        for _ in range(50):
            with pytest.raises(NoAnswer, match="not answered of late"):
                await gone.scan(octets(b"x"))
        assert len(told) == 1 and told[0][0]
        now += CLOSED_S + 1
        server, port = await serve(b"1: stream: OK\0")
        gone.place = f"127.0.0.1:{port}"
        assert await gone.scan(octets(b"x")) == "" and told[1:] == [(False, "")]
        server.close()

    asyncio.run(main())


def command(line, timeout_s=10.0):
    return Command(line, timeout_s=timeout_s, at_once=2, breaker=Breaker(), infected=[1, 13], clean=[0])


def test_command_and_its_exit_codes(tmp_path):
    script = tmp_path / "scan.py"
    script.write_text(
        "import sys, pathlib\n"
        "where = pathlib.Path(sys.argv[1])\n"
        "files = [where] if where.is_file() else sorted(where.iterdir())\n"
        "text = b'|'.join(f.read_bytes() for f in files)\n"
        "print('found' if b'EVIL' in text else 'fine')\n"
        "sys.exit(13 if b'EVIL' in text else 7 if b'ODD' in text else 0)\n"
    )
    message = b"Content-Type: application/x\r\nContent-Transfer-Encoding: base64\r\n\r\nRVZJTA==\r\n"

    async def main():
        by_file, by_folder = (command(f"{sys.executable} {script} {what}") for what in ("%F", "%D"))
        assert await by_file.scan(octets(b"a", b"b")) == ""
        assert await by_file.scan(octets(b"EV", b"IL")) == "found"
        assert await by_file.scan(octets(message)) == "", "its attachments are for %D"
        assert await by_folder.scan(octets(message)) == "found"
        with pytest.raises(NoAnswer, match="exit code 7: fine"):
            await by_file.scan(octets(b"ODD"))
        with pytest.raises(NoAnswer):
            await command("/no/such/scanner %F").scan(octets(b"x"))
        with pytest.raises(NoAnswer, match="Timeout"):
            await command(f"{sys.executable} -c 'import time; time.sleep(60)' %F", 0.3).scan(octets(b"x"))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        (b"SPAMD/1.1 0 EX_OK\r\nContent-length: 9\r\nSpam: True ; 15.2 / 5.0\r\n\r\nGTUBE,ABC", Score(True, 15.2, 5.0, ("GTUBE", "ABC"))),
        (b"SPAMD/1.1 0 EX_OK\r\nSpam: False ; -1.0 / 5.0\r\n\r\n", Score(False, -1.0, 5.0)),
        (b"SPAMD/1.0 76 Bad header line\r\n", None),
        (b"SPAMD/1.1 0 EX_OK\r\n\r\n", None),
        (b"HTTP/1.1 200 OK\r\n\r\n", None),
        (b"", None),
        (None, None),
    ],
)
def test_spamd(answer, score):
    async def main():
        seen = []
        server, port = await serve(answer, seen, read=b"body")
        spamd = Spamd(f"127.0.0.1:{port}", timeout_s=0.5, at_once=2, breaker=Breaker())
        if score is None:
            with pytest.raises(NoAnswer):
                await spamd.check(b"Subject: x\r\n\r\nbody")
        else:
            assert await spamd.check(b"Subject: x\r\n\r\nbody") == score
            assert seen[0].startswith(b"SYMBOLS SPAMC/1.5\r\nContent-length: 18\r\n\r\nSubject")
        server.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("body", "score"),
    [
        (b'{"action":"add header","score":7.5,"required_score":6,"symbols":{"B":{},"A":{}}}', Score(True, 7.5, 6.0, ("A", "B"))),
        (b'{"action":"no action","score":0,"required_score":6}', Score(False, 0.0, 6.0)),
        (b"{}", None),
        (b"[1]", None),
        (b"no json", None),
        (b'{"action":"reject","score":1' + b"0" * 400 + b',"required_score":6}', None),
        (b'{"action":"reject","score":1,"required_score":6,"symbols":' + b'{"a":' * 100_000, None),
        (b'{"action":"reject","score":1,"required_score":6,"symbols":[]}', None),
    ],
)
def test_rspamd(body, score):
    async def main():
        seen = []
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
        server, port = await serve(answer, seen, read=b"body")
        rspamd = Rspamd(f"127.0.0.1:{port}", timeout_s=2, at_once=2, breaker=Breaker())
        asked = rspamd.check(b"Subject: x\r\n\r\nbody", ip="192.0.2.1", helo="a\r\nX: y", sender="s@t", recipients=("r@t",))
        if score is None:
            with pytest.raises(NoAnswer):
                await asked
        else:
            assert await asked == score
            assert b"\r\nIP: 192.0.2.1\r\n" in seen[0] and b"\r\nX: y" not in seen[0]
        server.close()

    asyncio.run(main())


def test_cut_off_is_a_failure_and_not_stuck():
    async def main():
        breaker = Breaker()
        server, port = await serve(None)
        one = clamd(port, breaker=breaker, timeout_s=30)
        for _ in range(FAILURES):
            task = asyncio.ensure_future(one.scan(octets(b"x")))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        with pytest.raises(NoAnswer, match="of late"):
            await one.scan(octets(b"x"))
        server.close()

    asyncio.run(main())
