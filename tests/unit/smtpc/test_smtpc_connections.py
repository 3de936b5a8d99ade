"""Sessions against a scripted server: content in all sizes, TLS, lost connections, deadlines."""

import asyncio
import random
import ssl
import subprocess

import pytest
import uvloop

from iems.blobs import Blobs, segment_name
from iems.model import Channel, Envelope, Extent, Recipient
from iems.smtpc import connections
from iems.smtpc.connections import Content, Session, Stuffer, Timeouts, connect, stuffed
from iems.smtpc.engine import Stage, Transaction
from iems.smtpc.mx import Host
from tests.support.smtpserver import SmtpServer


class Job:
    def __init__(self, content):
        self.content = content


class Owner:
    """Hands out transactions from a list and notes what became of them."""

    def __init__(self, transactions):
        self.todo = list(transactions)
        self.done = []
        self.unfinished = []
        self.reply = None
        self.event = asyncio.Event()

    def next_transaction(self, session):
        return self.todo.pop(0) if self.todo else None

    def finished(self, session, transaction):
        self.done.append(transaction)

    def rested(self, session):
        self.event.set()

    def ended(self, session, reply, unfinished):
        self.reply = reply
        self.unfinished = unfinished
        self.event.set()


class Bench:
    """A server, a folder with one blob to send from, and a session on demand."""

    def __init__(self, folder, server, **options):
        self.folder = folder
        self.server = server
        self.options = options
        self.blobs = Blobs([folder])
        self.owner = None

    def transaction(self, content, *addresses, inline=True, dot_free=False):
        recipients = [Recipient(a) for a in addresses or (b"bob@example.net",)]
        data = stuffed(content, dot_free) if inline else None
        rope = [content]
        if not inline:
            path = self.folder / segment_name(7)
            path.write_bytes(b"HEAD" + content)
            half = len(content) // 2
            rope = [b"X-In: line\r\n", Extent(7, 4, half), Extent(7, 4 + half, len(content) - half)]
        size = len(content) + (0 if inline else 12)
        envelope = Envelope(Channel.SMTPD, b"ann@example.test", recipients, 0)
        return Transaction(envelope, recipients, size, Job(Content(rope, size, dot_free, data)))

    async def open(self, transactions=(), tls=None, timeouts=Timeouts(), **options):
        loop = asyncio.get_running_loop()
        host = Host("localhost", "127.0.0.1", self.server.port)
        self.owner = Owner(transactions)
        sock = await connect(loop, host)
        self.session = Session(
            loop, sock, host, self.owner, helo=b"me.test", timeouts=timeouts, blobs=self.blobs, tls=tls, **options)
        return await asyncio.wait_for(self.session.opened, 60)

    async def play(self, *transactions, **options):
        """Open, send all of them, wait until the session rests or ends."""
        assert await self.open(transactions, **options) is None
        self.session.go_on()
        await asyncio.wait_for(self.owner.event.wait(), 60)
        return self.owner


def run(tmp_path, scenario, script=None, **options):
    async def main():
        async with SmtpServer(script, **options) as server:
            bench = Bench(tmp_path, server)
            try:
                return await scenario(bench)
            finally:
                if getattr(bench, "session", None):
                    bench.session.stream.abort()
                    await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(asyncio.wait_for(main(), 60))


def test_messages_follow_each_other_over_one_connection(tmp_path):
    async def scenario(bench):
        owner = await bench.play(*(bench.transaction(b"Subject: %d\r\n\r\n.dot\r\n" % n) for n in range(50)))
        return owner, bench.server

    owner, server = run(tmp_path, scenario)
    assert len(server.connections) == 1 and len(owner.done) == 50
    assert [content for _, _, content in server.messages] == [b"Subject: %d\r\n\r\n..dot\r\n" % n for n in range(50)]
    assert [t.replies[0].text for t in owner.done] == [f"queued as {n}" for n in range(50)]


def test_without_pipelining(tmp_path):
    async def scenario(bench):
        owner = await bench.play(*(bench.transaction(b"A: %d\r\n\r\n" % n, b"a@x.net", b"b@x.net") for n in range(5)))
        return len(owner.done), len(bench.server.messages), bench.server.connections[0].commands

    done, taken, commands = run(tmp_path, scenario, extensions=())
    assert (done, taken) == (5, 5)
    assert commands[1:5] == [b"MAIL FROM:<ann@example.test>", b"RCPT TO:<a@x.net>", b"RCPT TO:<b@x.net>", b"DATA"]


BIG = b"Subject: big\r\n\r\n" + b"".join(b"%07d a line of text\r\n" % n for n in range(60_000))
DOTTED = BIG.replace(b" a line", b"\r\n.a line")


@pytest.mark.parametrize("secure", [False, True])
def test_big_content(tmp_path, secure, tls_contexts):
    server_tls, client_tls = tls_contexts

    async def scenario(bench):
        jobs = [bench.transaction(BIG, inline=False, dot_free=True)]
        owner = await bench.play(*jobs, tls=client_tls if secure else None)
        jobs = [bench.transaction(DOTTED, inline=False), bench.transaction(b"A: b\r\n\r\n")]
        owner.todo = jobs
        owner.event.clear()
        bench.session.go_on()
        await asyncio.wait_for(owner.event.wait(), 60)
        assert owner.reply is None
        return owner, bench.server, bench.session.secure

    extensions = ("PIPELINING", "STARTTLS") if secure else ("PIPELINING",)
    owner, server, was_secure = run(tmp_path, scenario, extensions=extensions, tls=server_tls)
    assert was_secure == secure and len(owner.done) == 3
    assert [content for _, _, content in server.messages] == [
        b"X-In: line\r\n" + BIG, b"X-In: line\r\n" + DOTTED.replace(b"\n.", b"\n.."), b"A: b\r\n\r\n"]


def test_content_that_ends_without_crlf(tmp_path):
    async def scenario(bench):
        await bench.play(
            bench.transaction(BIG[:-2], inline=False, dot_free=True), bench.transaction(b"A: b\r\n\r\nx"),
        )
        return bench.server.messages

    messages = run(tmp_path, scenario)
    assert messages[0][2] == b"X-In: line\r\n" + BIG and messages[1][2] == b"A: b\r\n\r\nx\r\n"


def test_unreadable_content_is_never_sent_short(tmp_path):
    async def scenario(bench):
        job = bench.transaction(BIG, inline=False)
        (tmp_path / segment_name(7)).write_bytes(BIG[:300_000])
        owner = await bench.play(job)
        return owner, bench.server.messages

    owner, messages = run(tmp_path, scenario)
    assert messages == [] and owner.unfinished[0].stage == Stage.CONTENT and owner.reply.code == 451


@pytest.fixture(scope="module")
def tls_contexts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", cert,
         "-days", "2", "-subj", "/CN=localhost"], check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    return server, connections.client_tls()


def test_a_failed_handshake_is_told_apart(tmp_path, tls_contexts):
    async def scenario(bench):
        reply = await bench.open(tls=tls_contexts[1])
        return reply, bench.session.tls_failed

    reply, failed = run(tmp_path, scenario, extensions=("STARTTLS",), tls=None)
    assert failed and reply.code == 451


def test_what_is_slipped_in_before_the_handshake_is_dropped(tmp_path, tls_contexts):
    server_tls, client_tls = tls_contexts

    def script(connection, verb, line):
        return b"220 go\r\n250-mx\r\n250 SIZE 1\r\n" if verb == "STARTTLS" else None

    async def scenario(bench):
        owner = await bench.play(bench.transaction(b"A: b\r\n\r\n"), tls=client_tls)
        return owner.done[0].replies[0].code, bench.session.engine.extensions.size

    assert run(tmp_path, scenario, script, extensions=("STARTTLS", "SIZE 99999"), tls=server_tls) == (250, 99999)


@pytest.mark.parametrize("verb", ["CONNECT", "EHLO"])
@pytest.mark.parametrize("said", ["drop", "421 4.3.2 no", "554 5.7.1 no"])
def test_refused_before_it_was_opened(tmp_path, verb, said):
    def script(connection, what, line):
        return said if what == verb or (what == "HELO" and verb == "EHLO") else None

    async def scenario(bench):
        return await bench.open(), bench.owner.reply

    reply, told = run(tmp_path, scenario, script)
    assert reply is not None and told is None
    assert reply.code == (451 if said == "drop" else int(said[:3]))


@pytest.mark.parametrize(
    ("verb", "said", "stage"),
    [("MAIL", "drop", Stage.COMMANDS), ("RCPT", "421 bye", Stage.COMMANDS), ("DATA", "drop", Stage.COMMANDS), ("END", "drop", Stage.DOT)],
)
def test_a_lost_connection_tells_how_far_each_message_got(tmp_path, verb, said, stage):
    def script(connection, what, line):
        return said if what == verb and len(connection.server.messages) == 2 else None

    async def scenario(bench):
        return await bench.play(*(bench.transaction(b"A: %d\r\n\r\n" % n) for n in range(5)))

    owner = run(tmp_path, scenario, script)
    assert len(owner.done) == 2 and owner.reply.code in (421, 451)
    assert owner.unfinished[0].stage == stage
    assert len(owner.unfinished) + len(owner.todo) == 3


@pytest.mark.parametrize(
    ("verb", "word"),
    [("CONNECT", "greeting"), ("EHLO", "EHLO"), ("MAIL", "MAIL"), ("RCPT", "RCPT"), ("DATA", "DATA"), ("END", "final dot")],
)
def test_deadlines(tmp_path, verb, word):
    async def scenario(bench):
        short = Timeouts(*([0.05] * 8))
        task = asyncio.ensure_future(bench.open([bench.transaction(b"A: b\r\n\r\n")], timeouts=short))
        await asyncio.sleep(0.2)
        if verb in ("CONNECT", "EHLO"):
            bench.session.tick(asyncio.get_running_loop().time())
            return await task
        await task
        bench.session.go_on()
        await asyncio.sleep(0.2)
        bench.session.tick(asyncio.get_running_loop().time())
        return bench.owner.reply

    reply = run(tmp_path, scenario, lambda c, what, line: "silent" if what == verb else None)
    assert reply.code == 451 and word in reply.text


def test_a_peer_that_reads_slowly_has_time_for_every_block(tmp_path):
    async def scenario(bench):
        assert await bench.open([], timeouts=Timeouts(block_s=10, end_s=1)) is None
        session = bench.session
        session.engine.begin(bench.transaction(b""))
        for now, pending, expected in ((100, 500, False), (109, 500, False), (110.5, 400, False), (119, 400, False), (121, 400, True)):
            session.stream.pending_out = pending
            session.tick(now)
            assert session.gone == expected, now

    run(tmp_path, scenario)


def test_spent_after_its_share_of_messages(tmp_path):
    async def scenario(bench):
        owner = await bench.play(*(bench.transaction(b"A: b\r\n\r\n") for _ in range(5)), max_messages=3)
        assert bench.session.spent and len(owner.done) == 3
        owner.event.clear()
        bench.session.quit()
        await owner.event.wait()
        return owner.reply.code, bench.server.connections[0].commands[-1]

    assert run(tmp_path, scenario) == (221, b"QUIT")


def test_limits_of_the_host_are_kept(tmp_path):
    async def scenario(bench):
        owner = await bench.play(*(bench.transaction(b"A: b\r\n\r\n") for _ in range(5)))
        return len(owner.done)

    assert run(tmp_path, scenario, extensions=("PIPELINING", "LIMITS MAILMAX=2")) == 2


SMUGGLING = [b"\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n.\n", b"\r.\r\n", b"\r\n.\r", b"\n\n.\r\n", b"\0.\r\n", b"\r\n.\r\n"]


@pytest.mark.parametrize("trick", SMUGGLING)
def test_smuggling_ends_in_one_message(tmp_path, trick):
    """Content that reached us by any way leaves as one message, read by a receiver that takes LF for a line end as well."""
    content = b"Subject: x\r\n\r\nbody" + trick + b"MAIL FROM:<evil@x>\r\nRCPT TO:<bob@x>\r\nDATA\r\nspam\r\n"

    async def scenario(bench):
        await bench.play(bench.transaction(content), bench.transaction(content, inline=False))
        return [content for _, _, content in bench.server.messages]

    for sent in run(tmp_path, scenario):
        assert b"\n" not in sent.replace(b"\r\n", b"") and b"\r" not in sent.replace(b"\r\n", b"")
        assert not any(line == b"." for line in sent.split(b"\r\n"))


def test_stuffing_does_not_depend_on_where_the_content_is_cut():
    rng = random.Random(5321)
    for _ in range(5000):
        content = bytes(rng.choices(b"\r\n.a", k=rng.randrange(30)))
        whole = stuffed(content, False)
        stuffer, out, at = Stuffer(), b"", 0
        while at < len(content):
            step = rng.randrange(1, 8)
            out += stuffer.feed(content[at : at + step])
            at += step
        assert out + stuffer.finish() == whole, content
        lines = whole.split(b"\r\n")
        assert lines.pop() == b"" and b"\r" not in b"".join(lines) and b"\n" not in b"".join(lines)
        assert b"." not in lines
        plain = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if plain[-1] == b"":
            plain.pop()
        assert [line[1:] if line.startswith(b".") else line for line in lines] == plain


def test_text_is_told_from_binary_wherever_it_is_cut():
    cases = {b"": True, b"a\r\nb": True, b"a\nb": False, b"a\rb": False, b"\0": False, b"x" * 998 + b"\r\n": True,
             b"x" * 999: False, b"a\r": False, b"\r\r\n": False, b"\n": False, b"ab\r\n" * 500: True}
    for content, expected in cases.items():
        for step in (1, 2, 3, 7, 1000):
            pieces = (content[at : at + step] for at in range(0, len(content), step))
            assert connections.is_text(pieces) == expected, (content, step)


def test_no_connection():
    async def main():
        with pytest.raises(OSError):
            await connect(asyncio.get_running_loop(), Host("x", "127.0.0.1", 1))

    asyncio.run(main())
