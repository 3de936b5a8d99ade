"""The ICAP client against servers that behave, lie, hang and vanish."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from iems.config import Antivirus, Config, ConfigError, parse
from iems.net.breaker import Breaker, NoAnswer
from iems.preprocessor.scanning import antivirus
from iems.scan import icapwire as wire
from iems.scan.icap import Icap

OPTIONS = b"ICAP/1.0 200 OK\r\nMethods: RESPMOD\r\nPreview: 8\r\nAllow: 204\r\nOptions-TTL: 60\r\nEncapsulated: null-body=0\r\n\r\n"
NO_PREVIEW = OPTIONS.replace(b"Preview: 8\r\n", b"")
CONTINUE = b"ICAP/1.0 100 Continue\r\n\r\n"
CLEAN = b"ICAP/1.0 204 No Content\r\n\r\n"
INNER = b"HTTP/1.1 200 OK\r\n\r\n"
MAIL = b"Subject: x\r\n\r\n" + b"0123456789" * 30


async def octets(*pieces):
    for piece in pieces:
        yield piece


def back(body, inner=INNER, more=b""):
    """An answer that gives content back, in two chunks."""
    head = b"ICAP/1.0 200 OK\r\n%bEncapsulated: res-hdr=0, res-body=%d\r\n\r\n" % (more, len(inner))
    return head + inner + wire.chunk(body[:7]) + wire.chunk(body[7:]) + wire.END


class Server:
    """answers: what is said to OPTIONS, to a preview (or to all, if there is none), to the rest; None: nothing. seen: all it got."""

    def __init__(self, *answers, closes=False):
        self.answers, self.closes, self.seen, self.connections = answers, closes, [], 0

    async def _body(self, reader):
        got = b""
        while True:
            line = await reader.readuntil(b"\r\n")
            got += line
            length = int(line.split(b";")[0], 16)
            got += await reader.readexactly(length + 2)
            if not length:
                return got

    async def handle(self, reader, writer):
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"OPTIONS"):
                    answers = self.answers[:1]
                else:
                    for _ in range(1 + head.count(b"-hdr=")):
                        head += await reader.readuntil(b"\r\n\r\n") if head.count(b"\r\n\r\n") <= head.count(b"-hdr=") else b""
                    answers = self.answers[1:]
                for answer in answers:
                    if not head.startswith(b"OPTIONS"):
                        head += await self._body(reader)
                    if answer is None:
                        await asyncio.sleep(30)
                    writer.write(answer)
                    await writer.drain()
                self.seen.append(head)
                if self.closes:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.handle, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        return Icap(f"//127.0.0.1:{port}/av?x=1", timeout_s=0.7, at_once=4, breaker=Breaker())

    async def __aexit__(self, *_):
        self.server.close()


def scan(server, *pieces, times=1):
    async def main():
        async with server as icap:
            found = [await icap.scan(octets(*(pieces or (MAIL,)))) for _ in range(times)]
            assert len(set(found)) == 1
            return found[0]

    return asyncio.run(main())


def test_preview_then_the_rest():
    server = Server(OPTIONS, CONTINUE, CLEAN)
    assert scan(server, MAIL[:3], MAIL[3:100], MAIL[100:], times=3) == ""
    asked, first, *others = server.seen
    assert asked.startswith(b"OPTIONS icap://127.0.0.1:") and b"/av?x=1 ICAP/1.0\r\n" in asked
    assert first.startswith(b"RESPMOD ") and b"\r\nAllow: 204\r\n" in first and b"\r\nPreview: 8\r\n" in first
    assert first.endswith(b"8\r\nSubject:\r\n0\r\n\r\n5c\r\n" + MAIL[8:100] + b"\r\n%x\r\n" % (len(MAIL) - 100) + MAIL[100:] + b"\r\n0\r\n\r\n")
    assert len(others) == 2 and server.connections == 1, "OPTIONS once, one connection"


@pytest.mark.parametrize("pieces", [(b"",), (), (b"12345678",), (b"1234", b"5678", b"")])
def test_all_of_it_is_the_preview(pieces):
    server = Server(OPTIONS, CLEAN)

    async def main():
        async with server as icap:
            assert await icap.scan(octets(*pieces)) == ""

    asyncio.run(main())
    assert server.seen[1].endswith(wire.chunk(b"".join(pieces)) + b"0; ieof\r\n\r\n")


def test_request_as_the_standard_has_it():
    """The offsets in Encapsulated are those of what follows (RFC 3507 4.4.1)."""
    for method, kinds in (("RESPMOD", ("req-hdr", "res-hdr", "res-body")), ("REQMOD", ("req-hdr", "req-body"))):
        head, _, inner = wire.request(method, "h:1", "s", preview=0).partition(b"\r\n\r\n")
        places = wire.encapsulated(wire.Head(200, {"encapsulated": head.split(b"Encapsulated: ")[1].split(b"\r\n")[0].decode()}))
        assert (*(kind for kind, _ in places.heads), places.body) == kinds
        assert sum(length for _, length in places.heads) == len(inner) and inner.endswith(b"\r\n\r\n") and inner.count(b"\r\n\r\n") == len(places.heads)
    assert b"Preview" not in wire.request("RESPMOD", "h:1", "s")


def test_without_preview_or_204():
    server = Server(NO_PREVIEW, CLEAN)
    assert scan(server, times=2) == "" and server.connections == 3, "a connection that may just have been closed is not trusted with what can't be said twice"
    assert scan(Server(NO_PREVIEW, back(MAIL))) == ""
    assert scan(Server(OPTIONS, CONTINUE, back(MAIL)), times=2) == ""
    assert scan(Server(OPTIONS.replace(b"RESPMOD", b"REQMOD, X"), CONTINUE, back(MAIL, b"").replace(b"res-hdr=0, res", b"req"))) == ""
    big = b"x" * 3_000_000
    assert scan(Server(NO_PREVIEW, back(big)), big) == ""


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ((CONTINUE, back(MAIL[:-1])), "changed by the scanner"),
        ((CONTINUE, back(MAIL + b" ")), "changed by the scanner"),
        ((CONTINUE, back(MAIL.replace(b"5", b"6"))), "changed by the scanner"),
        ((CONTINUE, back(b"no", b"HTTP/1.1 403 Forbidden\r\n\r\n")), "changed by the scanner: HTTP 403"),
        ((back(b"no"),), "changed by the scanner"),
        ((CONTINUE, back(b"no", more=b"X-Infection-Found: Type=0; Resolution=2; Threat=Eicar\xe9;\r\n")), "Eicar?"),
        ((CONTINUE, back(MAIL, b"HTTP/1.1 200 OK\r\nX-Virus-ID: Evil\r\n\r\n")), "Evil"),
        ((CONTINUE, CLEAN.replace(b"\r\n\r\n", b"\r\nX-Virus-ID:\r\n\r\n")), "unnamed"),
        ((CONTINUE, b"ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, null-body=19\r\n\r\n" + INNER), "changed by the scanner"),
        ((CONTINUE, b"ICAP/1.0 200 OK\r\n\r\n"), "changed by the scanner"),
        ((CONTINUE, back(MAIL) [: -len(wire.END)] + wire.chunk(b"y" * 2_000_000)), "changed by the scanner"),
    ],
)  # fmt: skip
def test_findings(answers, found):
    assert scan(Server(OPTIONS, *answers)) == found


@pytest.mark.parametrize(
    "answers",
    [
        (b"",),
        (None,),
        (b"HTTP/1.1 200 OK\r\n\r\n",),
        (b"ICAP/1.0 404 Not found\r\n\r\n",),
        (OPTIONS.replace(b"RESPMOD", b"OPTIONS"),),
        (OPTIONS.replace(b"Preview: 8", b"Preview: -8"),),
        (OPTIONS.replace(b"Preview: 8", b"Preview: 99999999999999"),),
        (OPTIONS.replace(b"null-body=0", b"opt-body=0") + b"zz\r\n",),
        (b"ICAP/1.0 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",),
        (b"ICAP/1.0 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",),
        (OPTIONS, b""),
        (OPTIONS, None),
        (OPTIONS, b"nonsense\r\n\r\n"),
        (OPTIONS, b"ICAP/1.0 503 Overloaded\r\n\r\n"),
        (OPTIONS, b"ICAP/1.0 206 Partial\r\n\r\n"),
        (OPTIONS, CONTINUE, CONTINUE),
        (OPTIONS, CONTINUE, b"ICAP/1.0 204 No\r\nEncapsulated: res-body=0\r\n\r\n"),
        (OPTIONS, CONTINUE, b"ICAP/1.0 2xx\r\n\r\n"),
        (OPTIONS, CONTINUE, b"ICAP/1.0 204 No\r\nno field\r\n\r\n"),
        (OPTIONS, CONTINUE, b"ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=99\r\n\r\nHTTP"),
        (OPTIONS, CONTINUE, b"ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=999999999\r\n\r\n"),
        (OPTIONS, CONTINUE, b"ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=9, res-body=3\r\n\r\n"),
        (OPTIONS, CONTINUE, b"ICAP/1.0 200 OK\r\nEncapsulated: res-body=0, res-body=3\r\n\r\n"),
        (OPTIONS, CONTINUE, b"ICAP/1.0 200 OK\r\nEncapsulated: a=b\r\n\r\n"),
        (OPTIONS, CONTINUE, back(MAIL, b"x" * 19)),
        (OPTIONS, CONTINUE, back(MAIL)[:-9]),
        (OPTIONS, CONTINUE, back(MAIL).replace(b"\r\n0\r\n", b"xx0\r\n")),
        (OPTIONS, CONTINUE, back(MAIL).replace(b"\r\n7\r\n", b"\r\n7777777777777\r\n")),
        (OPTIONS, CONTINUE, back(MAIL).replace(b"\r\n7\r\n", b"\r\n7;" + b"x" * 2000 + b"\r\n")),
        (OPTIONS, CONTINUE, back(MAIL)[:-2] + b"T: x\r\n" * 1000),
    ],
)
def test_what_can_not_be_believed(answers):
    server = Server(*answers, closes=None not in answers and CONTINUE not in answers[2:])
    with pytest.raises(NoAnswer, match="icap://127"):
        scan(server)


def test_connection_that_ends_with_each_answer():
    """With a word or without."""
    for options in (OPTIONS, OPTIONS.replace(b"Allow", b"Connection: close\r\nAllow"), NO_PREVIEW):
        assert scan(Server(options, CLEAN, closes=True), b"abc", times=3) == ""


def test_options_are_asked_again_when_too_old():
    server = Server(OPTIONS.replace(b"TTL: 60", b"TTL: 0"), CLEAN)
    assert scan(server, b"abc", times=3) == "" and sum(head.startswith(b"OPTIONS") for head in server.seen) == 3 and server.connections == 1


def test_kept_connection_that_was_closed_meanwhile():
    """The server closes after each answer without a word: the beginning is told again on a new connection."""
    server = Server(OPTIONS, CLEAN, closes=False)

    async def main():
        async with server as icap:
            assert await icap.scan(octets(b"abc")) == ""
            server.closes = True
            assert await icap.scan(octets(b"abc")) == ""
            [kept] = icap._idle

            class Blind:
                """Has not heard of the end yet."""

                def at_eof(self):
                    return False

                def __getattr__(self, name):
                    return getattr(reader, name)

            reader = kept.reader
            kept.reader = Blind()
            await asyncio.sleep(0.05)
            assert await icap.scan(octets(b"abc")) == "" and server.connections == 2

    asyncio.run(main())


def test_server_that_answers_before_it_has_seen_everything():
    async def main():
        async def handle(reader, writer):
            if (await reader.readuntil(b"\r\n\r\n")).startswith(b"OPTIONS"):
                writer.write(NO_PREVIEW)
                return
            await reader.readuntil(b"\r\n5\r\naaaaa\r\n")
            # all that it has seen, and an end
            writer.write(back(b"a" * 5))
            await asyncio.sleep(5)

        server = await asyncio.start_server(handle, "127.0.0.1", 0)

        async def endless():
            yield b"a" * 5
            while True:
                await asyncio.sleep(0.01)
                yield b""

        icap = Icap(f"//127.0.0.1:{server.sockets[0].getsockname()[1]}/x", timeout_s=3.0, at_once=1, breaker=Breaker())
        with pytest.raises(NoAnswer, match="before it had seen everything"):
            await icap.scan(endless())
        server.close()

    asyncio.run(main())


def test_mutated_answers():
    """Whatever a server says: an answer, or NoAnswer, and never "clean" for content that came back changed."""
    rng = random.Random(3507)
    whole = [back(MAIL[:-1] + b"!", more=b"ISTag: x\r\nConnection: keep-alive\r\n"), back(MAIL), CLEAN, OPTIONS]

    class Dead:
        def write(self, octets):
            pass

        async def drain(self):
            pass

        def close(self):
            pass

    async def one(said):
        reader = asyncio.StreamReader()
        reader.feed_data(said)
        reader.feed_eof()
        icap = Icap("//h:1/s", timeout_s=5.0, at_once=1, breaker=Breaker())

        async def connect():
            from iems.scan.icap import _Connection

            return _Connection(reader, Dead())

        icap._connect = connect
        return await icap.scan(octets(MAIL))

    async def main():
        clean = 0
        for _ in range(3000):
            answers = [OPTIONS, CONTINUE, rng.choice(whole)]
            said = bytearray(b"".join(answers))
            for _ in range(rng.randrange(3)):
                at = rng.randrange(len(said))
                how = rng.randrange(3)
                if how == 0:
                    said[at] = rng.choice(b"\r\n :;=,0129afz\0\xff")
                elif how == 1:
                    del said[at : at + rng.randrange(1, 9)]
                else:
                    said[at:at] = said[at : at + rng.randrange(20)]
            try:
                found = await one(bytes(said))
            except NoAnswer:
                continue
            if not found:
                clean += 1
                assert answers[2] is not whole[0] or b"!" not in said, bytes(said)
        assert clean > 100

    asyncio.run(main())


def test_as_a_setting():
    assert parse(b'[antivirus]\nscanners = ["icap://127.0.0.1:1344/av", "icap://scan.test/x", "icaps://scan.test/x"]\n', "c").antivirus.scanners
    made = antivirus(Config(hostname="mx", antivirus=Antivirus(scanners=["icap://scan.test/x", "icaps://[::1]:5/x", "clamd:scan.test"])), Path("/"), print)
    assert [scanner._address for scanner in made._scanners[:2]] == [("scan.test", 1344), ("::1", 5)] and made._scanners[2].name == "clamd:scan.test"
    assert [scanner.name for scanner in made._scanners[:2]] == ["icap://scan.test/x", "icaps://[::1]:5/x"]
    for place in ("icaps:scan.test/x", "icap:127.0.0.1:1344/av", "icap://", "icap://h:x/y", "icap://h/a b"):
        with pytest.raises(ConfigError):
            parse(b'[antivirus]\nscanners = ["%b"]\n' % place.encode(), "c")
