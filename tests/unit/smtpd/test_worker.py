"""The worker on real sockets with a fake spool: greeting, limits, deadlines, TLS, draining, clients that go away."""

import asyncio
import contextlib
import resource
import smtplib
import socket
import ssl
import struct
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from iems.cli.init import self_signed
from iems.config import Config, Smtpd
from iems.directory.screening import ban_of
from iems.master.board import Board
from iems.smtpd import worker as module
from tests.support.waiting import soon
from tests.transcripts.smtp_server import FakeAuthenticator, FakeDirectory, FakeLog, FakeSpool


class LoopSpool(FakeSpool):
    """Answers on the loop, or when told to."""

    def __init__(self):
        super().__init__()
        self.held = False
        self.closed = False
        self.queued = 0
        self.index = SimpleNamespace(counts=lambda: {(0, 0): self.queued})

    def submit(self, message, done):
        super().submit(message, done)
        if not self.held:
            asyncio.get_running_loop().call_soon(self.run)

    def close(self):
        self.closed = True


class Context(SimpleNamespace):
    def count(self, name, n=1):
        self.counts[name] = self.counts.get(name, 0) + n

    def gauge(self, name, value):
        self.counts[name] = value

    def total(self, name):
        return self.counts.get(name, 0)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    chain, key = self_signed("mx.test", ["mx.test"])
    (folder / "pair.pem").write_bytes(chain + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "pair.pem")
    return context


@contextlib.asynccontextmanager
async def serving(monkeypatch, tls=None, now=None, **smtpd):
    """A worker with its listeners; `port` tells where."""
    spool = LoopSpool()
    authenticator = FakeAuthenticator()
    authenticator.close = lambda: None
    monkeypatch.setattr(module, "Spool", SimpleNamespace(open=lambda ctx: spool))
    monkeypatch.setattr(module, "Directory", lambda path: FakeDirectory())
    monkeypatch.setattr(module, "Authenticator", SimpleNamespace(of=lambda *args: authenticator))
    monkeypatch.setattr(module, "TICK_S", 0.02)
    monkeypatch.setattr(module, "LOOK_S", 0.1)
    sockets = {}
    for name in module.LISTENERS:
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        sockets[name] = [sock]
    folder = tempfile.TemporaryDirectory()
    home = Path(folder.name)
    (home / "run").mkdir()
    (home / "spool").mkdir()
    ctx = Context(
        loop=asyncio.get_running_loop(),
        config=Config(hostname="mx.test", domain="mx.test", smtpd=Smtpd(**smtpd)),
        home=home,
        board=Board.create(home / "run" / "board"),
        role="smtpd",
        slot=0,
        generation=1,
        sockets=sockets,
        tls=tls,
        log=FakeLog(),
        counts={},
        answers=None,
    )
    worker = module.Worker(ctx)
    await worker.start()
    worker.port = lambda name="smtp": sockets[name][0].getsockname()[1]
    try:
        yield worker, spool
    finally:
        await worker.drain(1.0)
        for group in sockets.values():
            group[0].close()
        folder.cleanup()


async def client(worker, name="smtp"):
    return await asyncio.open_connection("127.0.0.1", worker.port(name))


async def read_reply(reader):
    """One reply, or b"" at the end."""
    reply = b""
    while line := await asyncio.wait_for(reader.readline(), 60):
        reply += line
        if line[3:4] != b"-":
            break
    return reply


async def say(reader, writer, line):
    writer.write(line + b"\r\n")
    return await read_reply(reader)


def test_a_message(monkeypatch):
    async def go():
        async with serving(monkeypatch) as (worker, spool):
            reader, writer = await client(worker)
            assert await read_reply(reader) == b"220 mx.test ESMTP IEMS\r\n"
            for line, code in (
                (b"EHLO c", b"250"),
                (b"MAIL FROM:<a@b>", b"250"),
                (b"RCPT TO:<john@mx.test>", b"250"),
            ):
                assert (await say(reader, writer, line))[:3] == code
            assert (await say(reader, writer, b"DATA"))[:3] == b"354"
            body = (b"x" * 76 + b"\r\n") * 4_000
            writer.write(body)
            assert (await say(reader, writer, b"."))[:10] == b"250 2.0.0 "
            assert spool.messages[0][2] == body
            assert (await say(reader, writer, b"QUIT"))[:3] == b"221"
            assert await reader.read() == b""
            await soon(lambda: not worker.sessions and worker.ctx.counts["sessions_now"] == 0)

    asyncio.run(go())


def test_replies_of_a_group_come_in_one_piece(monkeypatch):
    async def go():
        async with serving(monkeypatch) as (worker, _):
            reader, writer = await client(worker)
            await read_reply(reader)
            await say(reader, writer, b"EHLO c")
            writer.write(b"MAIL FROM:<a@b>\r\nRCPT TO:<john@mx.test>\r\nRCPT TO:<nobody@mx.test>\r\nDATA\r\n")
            got = await asyncio.wait_for(reader.read(4096), 60)
            assert [line[:3] for line in got.splitlines()] == [b"250", b"250", b"550", b"354"]
            writer.close()

    asyncio.run(go())


def test_one_session_too_many_gets_421(monkeypatch):
    async def go():
        async with serving(monkeypatch, max_sessions=2) as (worker, _):
            first, second = await client(worker), await client(worker, "submission")
            assert (await read_reply(first[0]))[:3] == (await read_reply(second[0]))[:3] == b"220"
            reader, _ = await client(worker)
            assert (await read_reply(reader)).startswith(b"421 4.7.0 ") and await reader.read() == b""
            await say(*first, b"QUIT")
            await soon(lambda: len(worker.sessions) == 1)
            reader, writer = await client(worker)
            assert (await read_reply(reader))[:3] == b"220"
            assert worker.ctx.counts["sessions_refused_total"] == 1
            writer.close()
            second[1].close()

    asyncio.run(go())


def test_out_of_descriptors_gets_421(monkeypatch):
    async def go():
        async with serving(monkeypatch) as (worker, _):
            worker.last_descriptor = 0
            reader, _ = await client(worker)
            assert (await read_reply(reader)).startswith(b"421 4.7.0 ")

    asyncio.run(go())


def test_silence_and_slow_drip_end_in_421(monkeypatch):
    async def go():
        async with serving(monkeypatch, line_timeout_s=0.3) as (worker, _):
            quiet, dripping = await client(worker), await client(worker)
            await read_reply(quiet[0])
            await read_reply(dripping[0])

            async def drip():
                with contextlib.suppress(OSError):
                    while True:
                        dripping[1].write(b"x")
                        await dripping[1].drain()
                        await asyncio.sleep(0.03)

            task = asyncio.ensure_future(drip())
            began = asyncio.get_running_loop().time()
            assert (await read_reply(quiet[0])).startswith(b"421 4.4.2 ")
            assert (await read_reply(dripping[0])).startswith(b"421 4.4.2 ")
            assert asyncio.get_running_loop().time() - began > 0.2
            task.cancel()

    asyncio.run(go())


def test_content_has_a_deadline_however_steadily_it_comes(monkeypatch):
    async def go():
        async with serving(monkeypatch, data_timeout_s=0.3, content_deadline_s=0.6) as (worker, spool):
            reader, writer = await client(worker)
            await read_reply(reader)
            await say(reader, writer, b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<john@mx.test>\r\nDATA")
            began = asyncio.get_running_loop().time()
            with contextlib.suppress(OSError):
                while worker.sessions and not next(iter(worker.sessions)).engine.closed:
                    writer.write(b"text\r\n")
                    await asyncio.sleep(0.05)
            assert asyncio.get_running_loop().time() - began > 0.5
            assert not spool.messages and spool.discarded == 1

    asyncio.run(go())


def test_no_timer_while_nobody_is_here(monkeypatch):
    async def go():
        async with serving(monkeypatch) as (worker, _):
            assert worker._ticking is None
            reader, writer = await client(worker)
            await read_reply(reader)
            assert worker._ticking is not None
            writer.close()
            await soon(lambda: worker._ticking is None and not worker._wheel)

    asyncio.run(go())


def test_a_half_closed_client_still_gets_its_250(monkeypatch):
    async def go():
        async with serving(monkeypatch) as (worker, spool):
            spool.held = True
            reader, writer = await client(worker)
            await read_reply(reader)
            writer.write(b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<john@mx.test>\r\nDATA\r\nx\r\n.\r\nNOOP\r\n")
            writer.write_eof()
            await soon(lambda: worker.handlers.pending == 1)
            await asyncio.sleep(0.05)  # for the end to be seen as well
            spool.run()
            got = await asyncio.wait_for(reader.read(), 60)
            assert b"250 2.0.0 queued as" in got and got.endswith(b"250 2.0.0 OK\r\n")

    asyncio.run(go())


def test_lost_before_the_250(monkeypatch):
    """The message is accepted, once; nothing is sent and nothing fails."""

    async def go():
        async with serving(monkeypatch) as (worker, spool):
            spool.held = True
            reader, writer = await client(worker)
            await read_reply(reader)
            writer.write(b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<john@mx.test>\r\nDATA\r\nx\r\n.\r\n")
            await soon(lambda: worker.handlers.pending == 1)
            reset = struct.pack("ii", 1, 0)  # close with RST
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            writer.transport.abort()
            await soon(lambda: not worker.sessions)
            assert worker.handlers.pending == 1
            spool.run()
            assert worker.handlers.pending == 0 and worker.ctx.counts["messages_accepted_total"] == 1
            assert not [event for event in worker.ctx.log.events[1:] if event[0] == "error"]

    asyncio.run(go())


def test_a_client_that_does_not_read_costs_no_memory(monkeypatch):
    async def go():
        async with serving(monkeypatch, max_errors=1_000_000) as (worker, _):
            _reader, writer = await client(worker)
            writer.transport.pause_reading()
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with contextlib.suppress(asyncio.TimeoutError):
                for _ in range(400):
                    writer.write(b"XYZZY\r\n" * 2000)
                    await asyncio.wait_for(writer.drain(), 0.3)
            (session,) = worker.sessions
            assert (
                session._paused
                and session.stream.pending_out < 4_000_000
                and session.engine.backlog < 300_000
            )
            writer.transport.abort()

    asyncio.run(go())


def test_faults_of_ours_are_451(monkeypatch):
    async def go():
        async with serving(monkeypatch) as (worker, spool):
            monkeypatch.setattr(spool, "submit", lambda *_: 1 / 0)
            reader, writer = await client(worker)
            await read_reply(reader)
            await say(reader, writer, b"EHLO c")
            assert (await say(reader, writer, b"MAIL FROM:<a@b>"))[:3] == b"250"
            assert (await say(reader, writer, b"RCPT TO:<john@mx.test>"))[:3] == b"250"
            assert (await say(reader, writer, b"DATA"))[:3] == b"354"
            assert (await say(reader, writer, b"x\r\n.")).startswith(b"451 4.3.0 ")
            assert spool.discarded == 1 and worker.handlers.pending == 0
            assert "ZeroDivisionError" in worker.ctx.log.events[-1][3]["cause"]
            writer.close()

    asyncio.run(go())


def test_draining(monkeypatch):
    async def go():
        async with serving(monkeypatch) as (worker, spool):
            idle, busy = await client(worker), await client(worker)
            await read_reply(idle[0])
            await read_reply(busy[0])
            await say(*busy, b"EHLO c")
            await say(*busy, b"MAIL FROM:<a@b>")
            await say(*busy, b"RCPT TO:<john@mx.test>")
            draining = asyncio.ensure_future(worker.drain(60.0))
            assert (await read_reply(idle[0])).startswith(b"421 4.3.2 ") and await idle[0].read() == b""
            assert (await say(*busy, b"DATA"))[:3] == b"354"
            assert (await say(*busy, b"x\r\n."))[:3] == b"250"
            assert (await read_reply(busy[0])).startswith(b"421 4.3.2 ")
            await asyncio.wait_for(draining, 60)
            assert spool.closed and len(spool.messages) == 1

    asyncio.run(go())


def test_drain_deadline(monkeypatch):
    async def go():
        async with serving(monkeypatch) as (worker, _spool):
            reader, writer = await client(worker)
            await read_reply(reader)
            await say(reader, writer, b"EHLO c")
            await say(reader, writer, b"MAIL FROM:<a@b>")
            await asyncio.wait_for(worker.drain(0.8), 60)
            assert (await read_reply(reader)).startswith(b"421 4.3.2 ")

    asyncio.run(go())


def test_retire_lets_sessions_go_on(monkeypatch):
    async def go():
        async with serving(monkeypatch) as (worker, _spool):
            reader, writer = await client(worker)
            await read_reply(reader)
            retiring = asyncio.ensure_future(worker.retire())
            await asyncio.sleep(0.05)
            assert (await say(reader, writer, b"EHLO c"))[:3] == b"250"
            assert not retiring.done()
            assert (await say(reader, writer, b"QUIT"))[:3] == b"221"
            await asyncio.wait_for(retiring, 60)

    asyncio.run(go())


def test_starttls_and_implicit_tls_with_smtplib(monkeypatch, certificate):
    def talk(worker):
        trust = ssl._create_unverified_context()
        with smtplib.SMTP("127.0.0.1", worker.port("smtp"), timeout=60) as smtp:
            smtp.starttls(context=trust)
            assert smtp.login("john@mx.test", "pw")[0] == 235
            smtp.sendmail("john@mx.test", ["x@else.test"], b"Subject: a\r\n\r\n.x\r\n")
        with smtplib.SMTP_SSL("127.0.0.1", worker.port("submissions"), context=trust, timeout=60) as smtp:
            with pytest.raises(smtplib.SMTPSenderRefused, match="530"):
                smtp.sendmail("john@mx.test", ["mary@mx.test"], b"x")
            with pytest.raises(smtplib.SMTPAuthenticationError):
                smtp.login("john@mx.test", "wrong")
            smtp.login("john@mx.test", "pw")
            smtp.sendmail("john@mx.test", ["mary@mx.test"], b"y" * 300_000)

    async def go():
        async with serving(monkeypatch, tls=certificate) as (worker, spool):
            await asyncio.get_running_loop().run_in_executor(None, talk, worker)
            assert [len(content) for *_, content in spool.messages] == [
                len(b"Subject: a\r\n\r\n.x\r\n"),
                300_002,
            ]
            assert (
                b"with ESMTPSA id" in spool.messages[0][1]
                and b"(using TLSv1.3 with cipher " in spool.messages[0][1]
            )
            assert spool.messages[0][0].auth == "john@mx.test"

    asyncio.run(go())


def test_commands_behind_starttls_never_count(monkeypatch, certificate):
    async def go():
        async with serving(monkeypatch, tls=certificate) as (worker, spool):
            reader, writer = await client(worker)
            await read_reply(reader)
            await say(reader, writer, b"EHLO c")
            writer.write(b"STARTTLS\r\nMAIL FROM:<evil@x>\r\nRCPT TO:<john@mx.test>\r\nDATA\r\nx\r\n.\r\n")
            assert (await read_reply(reader))[:3] == b"220"
            trust = ssl._create_unverified_context()
            with contextlib.suppress(ssl.SSLError, ConnectionError, asyncio.TimeoutError):
                await asyncio.wait_for(writer.start_tls(trust), 10)
                writer.write(b"RCPT TO:<john@mx.test>\r\n")
                assert (await read_reply(reader))[:3] == b"503"
            assert not spool.messages
            writer.close()

    asyncio.run(go())


def test_no_certificate_no_implicit_tls(monkeypatch):
    async def go():
        async with serving(monkeypatch) as (worker, _):
            assert len(worker._servers) == 4
            assert worker.ctx.log.events[0][0] == "error"

    asyncio.run(go())


def test_proxy_header(monkeypatch, certificate):
    async def go():
        async with serving(monkeypatch, tls=certificate, proxy_networks=["127.0.0.0/8"]) as (worker, spool):
            reader, writer = await client(worker)
            writer.write(b"PROXY TCP4 203.0.113.9 127.0.0.1 1 25\r\n")
            assert (await read_reply(reader))[:3] == b"220"
            assert b"AUTH" not in await say(
                reader, writer, b"EHLO c"
            )  # not loopback: no password without TLS
            await say(reader, writer, b"MAIL FROM:<a@b>")
            await say(reader, writer, b"RCPT TO:<john@mx.test>")
            await say(reader, writer, b"DATA")
            await say(reader, writer, b".")
            assert spool.messages[0][0].client_ip == "203.0.113.9"
            writer.close()
            reader, writer = await client(worker)
            with contextlib.suppress(ConnectionResetError):
                assert await say(reader, writer, b"EHLO c") == b""  # no header, no service
            reader, writer = await client(worker, "submissions")
            writer.write(b"PROXY UNKNOWN\r\n")
            await writer.start_tls(ssl._create_unverified_context())
            assert (await read_reply(reader))[:3] == b"220"
            writer.close()
            await soon(lambda: worker.ctx.counts["sessions_now"] == len(worker.sessions) == 0)

    asyncio.run(go())


def test_banned_clients_get_554_also_behind_a_proxy(monkeypatch, certificate):
    async def go():
        async with serving(monkeypatch, tls=certificate, proxy_networks=["127.0.0.0/8"]) as (worker, _):
            worker.directory.bans = [ban_of("cidr", "203.0.113.0/24"), ban_of("ip", "198.51.100.1", 451)]
            worker.directory.seen += 1
            for ip, said in (("203.0.113.9", b"554 5.7.1 "), ("198.51.100.1", b"421 4.7.1 ")):
                reader, writer = await client(worker)
                writer.write(b"PROXY TCP4 %b 127.0.0.1 1 25\r\n" % ip.encode())
                assert (await read_reply(reader)).startswith(said) and await reader.read() == b""
            reader, writer = await client(worker, "submissions")
            writer.write(b"PROXY TCP4 203.0.113.9 127.0.0.1 1 25\r\n")
            assert await reader.read() == b""  # a word in the clear would be read as TLS
            reader, writer = await client(worker)
            writer.write(b"PROXY TCP4 203.0.114.9 127.0.0.1 1 25\r\n")
            assert (await read_reply(reader))[:3] == b"220"
            assert worker.ctx.counts["sessions_refused_total"] == 3
            assert worker.ctx.counts["sessions_now"] == len(worker.sessions) == 1
            writer.close()

    asyncio.run(go())


def test_descriptors_without_a_limit(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert module.last_descriptor() > 1_000_000
    monkeypatch.setattr(resource, "getrlimit", lambda _: (128, 128))
    assert module.last_descriptor() == 96
