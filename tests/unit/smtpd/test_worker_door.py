"""Delays on real sockets: the greeting that waits, clients that do not, the tarpit, sessions counted to their end."""

import asyncio
import contextlib
import socket

import pytest

from tests.unit.smtpd.test_worker import client, read_reply, say, serving

LIMITED = {"limit_loopback": True, "greeting_delay_s": 0.0, "tarpit_s": 0.0}


def played(monkeypatch, body, now=None, tls=None, **smtpd):
    async def go():
        async with serving(monkeypatch, tls, **(LIMITED | smtpd)) as (worker, spool):
            await body(worker, spool)

    asyncio.run(go())


def test_the_greeting_waits(monkeypatch):
    async def body(worker, _):
        loop = asyncio.get_running_loop()
        begun = loop.time()
        reader, writer = await client(worker)
        assert (await read_reply(reader)).startswith(b"220")
        assert loop.time() - begun >= 0.29
        assert (await say(reader, writer, b"EHLO c")).startswith(b"250")
        writer.close()
        for name in ("submission", "lmtp"):
            begun = loop.time()
            reader, writer = await client(worker, name)
            assert (await read_reply(reader)).startswith(b"220")
            assert loop.time() - begun < 0.29
            writer.close()

    played(monkeypatch, body, greeting_delay_s=0.3)


def test_who_speaks_before_the_greeting_is_turned_away(monkeypatch):
    async def body(worker, _):
        reader, writer = await client(worker)
        writer.write(b"EHLO c\r\n")
        assert (await read_reply(reader)).startswith(b"554 5.5.1 You spoke before the greeting was sent [")
        assert await reader.read() == b""
        writer.close()
        assert worker.ctx.counts["early_talkers_total"] == 1

    played(monkeypatch, body, greeting_delay_s=30.0)


def test_who_has_spoken_before_he_was_accepted(monkeypatch):
    async def body(worker, _):
        with socket.create_connection(("127.0.0.1", worker.port())) as sock:
            sock.sendall(b"EHLO c\r\nQUIT\r\n")  # before the loop comes round to accept
            sock.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=sock)
            assert (await read_reply(reader)).startswith(b"554 5.5.1 You spoke before the greeting was sent [")
            assert await reader.read() == b""
            writer.close()

    played(monkeypatch, body)


def test_an_early_talker_is_tagged(monkeypatch):
    async def body(worker, spool):
        reader, writer = await client(worker)
        writer.write(b"EHLO c\r\n")
        assert (await read_reply(reader)).startswith(b"220")
        assert (await read_reply(reader)).startswith(b"250")
        for line in (b"MAIL FROM:<a@b>", b"RCPT TO:<john@mx.test>", b"DATA", b"x\r\n."):
            last = await say(reader, writer, line)
        assert last.startswith(b"250")
        assert [verdict.check for verdict in spool.messages[0][0].verdicts] == ["early-talker"]
        writer.close()

    played(monkeypatch, body, greeting_delay_s=30.0, early_talker="tag")


def test_who_leaves_before_the_greeting(monkeypatch):
    async def body(worker, _):
        _, writer = await client(worker)
        while not worker.sessions:
            await asyncio.sleep(0)
        writer.close()
        await asyncio.wait_for(worker._idle.wait(), 60) if worker.sessions else None
        assert not worker.sessions and worker.ctx.counts["sessions_now"] == 0

    played(monkeypatch, body, greeting_delay_s=30.0)


def test_draining_before_the_greeting(monkeypatch):
    async def body(worker, _):
        reader, writer = await client(worker)
        while not worker.sessions:
            await asyncio.sleep(0)
        for session in list(worker.sessions):
            session.drain()
        assert (await read_reply(reader)).startswith(b"421")
        writer.close()

    played(monkeypatch, body, greeting_delay_s=30.0)


@pytest.mark.parametrize("together", [False, True])
def test_tarpit(monkeypatch, together):
    async def body(worker, _):
        loop = asyncio.get_running_loop()
        reader, writer = await client(worker)
        await read_reply(reader)
        await say(reader, writer, b"EHLO c")
        await say(reader, writer, b"MAIL FROM:<a@b>")
        for _ in range(2):
            assert (await say(reader, writer, b"RCPT TO:<no@mx.test>")).startswith(b"550")
        begun = loop.time()
        count = 3
        if together:
            writer.write(b"RCPT TO:<no@mx.test>\r\n" * count)
            got = [await read_reply(reader) for _ in range(count)]
        else:
            got = [await say(reader, writer, b"RCPT TO:<no@mx.test>") for _ in range(count)]
        assert [reply[:3] for reply in got] == [b"550"] * count
        assert loop.time() - begun >= 0.29
        # What is right is answered at once, and the session goes on.
        begun = loop.time()
        assert (await say(reader, writer, b"RCPT TO:<john@mx.test>")).startswith(b"250")
        assert loop.time() - begun < 0.1
        assert worker.ctx.counts["tarpits_total"] == (1 if together else count)
        assert (await say(reader, writer, b"DATA")).startswith(b"354")
        assert (await say(reader, writer, b"x\r\n.")).startswith(b"250")
        assert (await say(reader, writer, b"RCPT TO:<no@mx.test>")).startswith(b"503")
        writer.close()

    played(monkeypatch, body, tarpit_s=0.1, tarpit_errors=2)


def test_commands_in_the_tarpit_wait(monkeypatch):
    async def body(worker, spool):
        reader, writer = await client(worker)
        await read_reply(reader)
        await say(reader, writer, b"EHLO c")
        writer.write(b"BAD\r\n")
        await asyncio.sleep(0.02)
        writer.write(b"MAIL FROM:<a@b>\r\nRCPT TO:<john@mx.test>\r\nDATA\r\n")
        got = [await read_reply(reader) for _ in range(4)]
        assert [reply[:3] for reply in got] == [b"500", b"250", b"250", b"354"]
        assert (await say(reader, writer, b"x\r\n.")).startswith(b"250")
        writer.write(b"BAD\r\nQUIT\r\n")
        assert (await asyncio.wait_for(reader.read(), 60)).startswith(b"500")
        writer.close()

    played(monkeypatch, body, tarpit_s=0.1, tarpit_errors=0)


def test_leaving_the_tarpit(monkeypatch):
    async def body(worker, _):
        for how in ("close", "eof", "drain"):
            reader, writer = await client(worker)
            await read_reply(reader)
            writer.write(b"BAD\r\n")
            while not any(session.late for session in worker.sessions):
                await asyncio.sleep(0.001)
            if how == "close":
                writer.close()
            elif how == "eof":
                writer.write_eof()
            else:
                for session in list(worker.sessions):
                    session.drain()
                assert (await read_reply(reader)).startswith(b"500")
                assert (await read_reply(reader)).startswith(b"421")
            if how == "eof":
                assert (await read_reply(reader)).startswith(b"500")
                assert await read_reply(reader) == b""
            writer.close()
            while worker.sessions:
                await asyncio.sleep(0.001)

    played(monkeypatch, body, tarpit_s=30.0, tarpit_errors=0)


def test_sessions_are_counted_to_their_end(monkeypatch):
    async def body(worker, _):
        streams = [await client(worker) for _ in range(2)]
        for reader, _ in streams:
            assert (await read_reply(reader)).startswith(b"220")
        reader, writer = await client(worker)
        assert (await read_reply(reader)).startswith(b"421 4.7.0 Too many sessions from your address")
        writer.close()
        reader, writer = await client(worker, "lmtp")
        assert (await read_reply(reader)).startswith(b"421 4.7.0")
        writer.close()
        streams[0][1].close()
        while len(worker.sessions) == 2:
            await asyncio.sleep(0.001)
        reader, writer = await client(worker)
        assert (await read_reply(reader)).startswith(b"220")
        for _, one in [*streams, (reader, writer)]:
            one.close()

    played(monkeypatch, body, max_sessions_per_ip=2)


def test_flow_closes_and_opens_without_clients(monkeypatch):
    async def body(worker, spool):
        monkeypatch.setattr("iems.smtpd.flow.LOOK_S", 0.01)
        spool.queued = 11
        reader, writer = await client(worker)
        await read_reply(reader)
        await say(reader, writer, b"EHLO c")
        assert (await say(reader, writer, b"MAIL FROM:<a@b>")).startswith(b"452 4.3.1")
        writer.close()
        assert worker.ctx.counts["flow_queue_now"] == 1
        spool.queued = 1
        async with asyncio.timeout(60):
            while worker.ctx.counts["flow_queue_now"]:
                await asyncio.sleep(0.01)
        assert [event[0] for event in worker.ctx.log.events if event[0].startswith("flow")] == ["flow-closed", "flow-open"]
        reader, writer = await client(worker)
        await read_reply(reader)
        await say(reader, writer, b"EHLO c")
        assert (await say(reader, writer, b"MAIL FROM:<a@b>")).startswith(b"250")
        with contextlib.suppress(OSError):
            writer.close()

    played(monkeypatch, body, flow_queue_high=10)


def test_short_of_memory(monkeypatch):
    async def body(worker, _):
        reader, writer = await client(worker)
        assert (await read_reply(reader)).startswith(b"421 4.3.2 System short of memory")
        writer.close()

    played(monkeypatch, body, flow_memory_high=0.01)


def test_the_client_that_a_proxy_tells_of_is_limited(monkeypatch):
    async def body(worker, _):
        header = b"PROXY TCP4 %b 127.0.0.1 4000 25\r\n"
        for ip, code in ((b"192.0.2.9", b"220"), (b"192.0.2.9", b"421"), (b"192.0.2.10", b"220")):
            reader, writer = await client(worker)
            writer.write(header % ip)
            assert (await read_reply(reader))[:3] == code
        writer = (await client(worker))[1]
        writer.close()

    played(monkeypatch, body, proxy_networks=["127.0.0.0/8"], max_sessions_per_ip=1, limit_loopback=False)
