"""The relay with a real spool and scripted servers: outcomes per recipient, retries, notices, connections, draining."""

import asyncio
import email
import email.policy
import re
import socket
import time

import msgspec
import pytest
import uvloop

from iems.config import Config, Smtpc
from iems.config import Spool as SpoolSettings
from iems.directory import Directory
from iems.model import INPUT, Channel, Envelope, Notify, Outcome, Recipient, Reply
from iems.smtpc import worker as module
from iems.smtpc.engine import NONSENSE, TOO_BIG, Wait
from iems.smtpc.worker import Worker, classify
from iems.spool import Item, Message, Spool, SpoolParams, keys
from tests.support.dnsserver import DnsServer
from tests.support.smtpserver import SmtpServer

BODY = b"From: <ann@example.test>\r\nMessage-ID: <m%d@example.test>\r\nSubject: hi\r\n\r\nhello\r\n.dot\r\n"


class Log:
    def __init__(self):
        self.events = []

    def event(self, event, id=None, recipient=None, **detail):
        self.events.append((event, id, recipient, detail))

    def error(self, what, exc=None, id=None, **detail):
        self.events.append(("error", id, None, {"what": what, "cause": repr(exc)}))

    def of(self, name):
        return [entry for entry in self.events if entry[0] == name]


class Context:
    """What a worker gets from the master, without one."""

    role, slot, index, generation = "smtpc", 1, 0, 1
    client_tls: dict[str, int] = {}
    answers = None

    def __init__(self, home, config, loop):
        self.home, self.config, self.loop = home, config, loop
        self.hostname = config.hostname
        self.log = Log()
        self.counters = {}
        self.parked = False
        self.draining = False
        self.callback = None

    def count(self, name, n=1):
        self.counters[name] = self.counters.get(name, 0) + n

    def gauge(self, name, value):
        self.counters[name] = value

    def wake(self, role):
        if role == "smtpc" and self.parked and self.callback:
            self.parked = False
            self.loop.call_soon(self.callback)

    def on_wake(self, callback):
        self.callback = callback

    def park(self):
        self.parked = True

    def unpark(self):
        self.parked = False

    def working_on(self, id, deadline_s=None):
        pass


class Bench:
    """A home with a spool, a relay worker, and the other roles' part of the work done by hand."""

    def __init__(self, home, settings):
        self.loop = asyncio.get_running_loop()
        self.config = Config(hostname="me.test", domain="example.test", smtpc=Smtpc(**settings.pop("smtpc")), **settings)
        self.ctx = Context(home, self.config, self.loop)
        self.number = 0
        self.made = []

    async def start(self):
        self.worker = Worker(self.ctx)
        await self.worker.start()
        # LMDB opens an environment once a process: the worker's spool serves for the other roles, too.
        self.spool = self.worker._spool

    async def stop(self, deadline_s=2.0):
        self.ctx.draining = True
        await self.worker.drain(deadline_s)
        self.spool = Spool.open(SpoolParams(self.ctx.home / "spool", role="smtpd", slot=2, generation=1, loop=self.loop))

    async def queue(self, *recipients, count=1, destination=None, content=None, **envelope):
        """Accept messages and route them: one item per destination. Gives their ids."""
        recipients = recipients or (b"bob@x.test",)
        messages = []
        for _ in range(count):
            self.number += 1
            people = [r if isinstance(r, Recipient) else Recipient(r) for r in recipients]
            head = Envelope(Channel.SMTPD, envelope.get("reverse_path", b"ann@example.test"), people, time.time_ns())
            for name, value in envelope.items():
                setattr(head, name, value)
            body = content if content is not None else BODY % self.number
            messages.append(Message(self.spool.new_id(), head, [body]))
        assert await self.spool.append(messages) == [None] * count
        while items := self.spool.take(INPUT, 64)[0]:
            moves = []
            for item in items:
                if item.envelope.input_channel == Channel.MTA:
                    self.made.append(item)  # a notice: kept for `notices`
                    continue
                parts = {}
                for recipient in item.envelope.recipients:
                    domain = destination or recipient.address.rpartition(b"@")[2].decode()
                    parts.setdefault(domain, []).append(recipient)
                new = []
                for domain, people in parts.items():
                    part = Envelope(**{f: getattr(item.envelope, f) for f in item.envelope.__struct_fields__})
                    part.recipients = people
                    new.append(Item(item.id, Channel.SMTPC, domain, part, item.rope, queued_ms=item.queued_ms, home=item.home,
                                    fanout=item.fanout))
                moves.append((item, new))
            if moves:
                self.spool.move(moves)
        return [message.id for message in messages]

    async def until(self, condition, limit_s=60.0):
        end = self.loop.time() + limit_s
        while not condition():
            assert self.loop.time() < end, self.ctx.log.events[-12:]
            await asyncio.sleep(0.01)

    def outcomes(self):
        return [e for e in self.ctx.log.events if e[0] in ("relayed", "deferred", "failed")]

    async def settled(self, count, limit_s=60.0):
        """Wait until so many outcomes are logged and nothing is in hand."""
        await self.until(lambda: len(self.outcomes()) >= count and not self.worker._in_hand, limit_s)

    def waiting(self):
        return [item for _, _, item, _ in self.spool.index.queued() if item.channel == Channel.SMTPC]

    def notices(self):
        """Messages made since, as (item, parsed)."""
        items = self.made + self.spool.take(INPUT, 64)[0]
        return [(i, email.message_from_bytes(self.spool.blobs.read(i.rope), policy=email.policy.default)) for i in items]


def status_of(message):
    return message.get_payload()[1].get_payload()[1:]


def run(home, scenario, *servers, limit_s=120, **settings):
    """Runs `scenario(bench, *servers)`; the first server is the relay host unless `smtpc` says otherwise."""

    async def main():
        for server in servers:
            await server.__aenter__()
        settings.setdefault("smtpc", {})
        if servers and isinstance(servers[0], SmtpServer):
            settings["smtpc"].setdefault("resolution", "relay")
            settings["smtpc"].setdefault("relay_hosts", [f"127.0.0.1:{servers[0].port}"])
        for server in servers:
            if isinstance(server, DnsServer):
                settings["dns"] = module.Config().dns.__class__(servers=[f"127.0.0.1:{server.port}"], timeout_s=0.3, attempts=2)
        bench = Bench(home, settings)
        await bench.start()
        try:
            return await scenario(bench, *servers)
        finally:
            if not bench.ctx.draining:
                await bench.stop(0.5)
            bench.spool.close()
            for server in servers:
                await server.__aexit__()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(asyncio.wait_for(main(), limit_s))


def test_messages_are_relayed_and_settled(tmp_path):
    async def scenario(bench, server):
        await bench.queue(count=300)
        await bench.settled(300)
        return bench, server, bench.waiting(), bench.notices()

    bench, server, waiting, notices = run(tmp_path, scenario, SmtpServer())
    assert len(server.messages) == 300 and len({m[2] for m in server.messages}) == 300
    assert server.messages[0][2].endswith(b"hello\r\n..dot\r\n")
    assert waiting == [] and notices == [] and bench.ctx.log.of("error") == []
    assert 1 <= len(server.connections) <= 8 and server.most_open <= 5
    relayed = bench.ctx.log.of("relayed")
    assert len(relayed) == 300 and relayed[0][3]["reply"].startswith("250 2.0.0 queued as")
    assert bench.ctx.counters["messages_relayed_total"] == 300


def test_one_of_a_hundred_recipients_is_refused(tmp_path):
    people = [b"r%d@x.test" % n for n in range(100)]

    async def scenario(bench, server):
        await bench.queue(*people)
        await bench.settled(100)
        return bench, server, bench.waiting(), bench.notices()

    script = lambda c, verb, line: "550 5.1.1 no such user" if verb == "RCPT" and b"r42@" in line else None  # noqa: E731
    bench, server, waiting, notices = run(tmp_path, scenario, SmtpServer(script))
    assert len(server.messages) == 1 and len(server.messages[0][1]) == 99 and waiting == []
    ((item, message),) = notices
    assert item.envelope.reverse_path == b"" and item.envelope.recipients[0].address == b"ann@example.test"
    (status,) = status_of(message)
    assert status["Final-Recipient"] == "rfc822; r42@x.test" and status["Status"] == "5.1.1"
    assert status["Diagnostic-Code"] == "smtp; 550 5.1.1 no such user" and "127.0.0.1" in status["Remote-MTA"]
    assert message["In-Reply-To"] == "<m1@example.test>"
    assert len(bench.ctx.log.of("relayed")) == 99 and len(bench.ctx.log.of("failed")) == 1


def test_recipients_deferred_are_tried_again_alone(tmp_path):
    tries = []

    def script(connection, verb, line):
        if verb == "RCPT" and b"busy@" in line:
            tries.append(line)
            return "451 4.2.1 busy" if len(tries) < 3 else None
        return None

    async def scenario(bench, server):
        await bench.queue(b"a@x.test", b"busy@x.test", b"c@x.test")
        await bench.until(lambda: len(bench.ctx.log.of("relayed")) == 3)
        await bench.until(lambda: not bench.worker._in_hand)
        return bench, server, bench.waiting()

    bench, server, waiting = run(tmp_path, scenario, SmtpServer(script), smtpc={"retry_s": 0.1})
    assert [len(m[1]) for m in server.messages] == [2, 1] and waiting == []
    deferred = bench.ctx.log.of("deferred")
    assert [d[3]["next_attempt_s"] for d in deferred] == [0.1, 0.2]
    assert deferred[0][2] == b"busy@x.test" and deferred[0][3]["reply"] == "451 4.2.1 busy"


def test_more_recipients_than_a_host_takes_at_once(tmp_path):
    people = [b"r%d@x.test" % n for n in range(250)]

    def script(connection, verb, line):
        return "452 4.5.3 too many" if verb == "RCPT" and len(connection.rcpt) >= 40 else None

    async def scenario(bench, server):
        await bench.queue(*people)
        await bench.settled(250)
        return server

    server = run(tmp_path, scenario, SmtpServer(script))
    got = [line for _, recipients, _ in server.messages for line in recipients]
    assert len(got) == 250 and len(set(got)) == 250 and len(server.messages) >= 7


def test_a_transient_refusal_lasts_until_the_lifetime_ends(tmp_path):
    async def scenario(bench, server):
        await bench.queue()
        await bench.until(lambda: bench.ctx.log.of("failed"))
        await bench.until(lambda: not bench.worker._in_hand)
        return bench, bench.waiting(), bench.notices()

    settings = {"retry_s": 0.1, "lifetime_s": 0.5, "delay_notice_s": 0.25}
    bench, waiting, notices = run(tmp_path, scenario, SmtpServer(lambda c, v, line: "451 4.7.1 grey" if v == "RCPT" else None), smtpc=settings)
    assert waiting == [] and len(bench.ctx.log.of("deferred")) >= 3
    actions = [status_of(message)[0]["Action"] for _, message in notices]
    assert sorted(actions) == ["delayed", "failed"]  # one notice of delay, however many tries
    failed = next(m for _, m in notices if status_of(m)[0]["Action"] == "failed")
    assert status_of(failed)[0]["Status"] == "5.4.7" and "451 4.7.1 grey" in status_of(failed)[0]["Diagnostic-Code"]


def test_notices_that_nobody_wants_are_not_made(tmp_path):
    async def scenario(bench, server):
        await bench.queue(b"a@x.test", reverse_path=b"")
        await bench.queue(Recipient(b"b@x.test", notify=Notify.NEVER))
        await bench.queue(Recipient(b"c@x.test", notify=Notify.SUCCESS))
        await bench.settled(3)
        return bench, bench.waiting(), bench.notices()

    bench, waiting, notices = run(tmp_path, scenario, SmtpServer(lambda c, v, line: "550 no" if v == "RCPT" else None))
    assert waiting == [] and notices == [] and len(bench.ctx.log.of("failed")) == 3
    assert len(bench.ctx.log.of("discarded")) == 1  # the double bounce


def test_success_notice_only_where_the_next_host_sends_none(tmp_path):
    async def scenario(bench, server):
        await bench.queue(Recipient(b"a@x.test", notify=Notify.SUCCESS), b"b@x.test")
        await bench.settled(2)
        return bench.notices(), server

    notices, _ = run(tmp_path / "1", scenario, SmtpServer(extensions=("PIPELINING",)))
    ((_, message),) = notices
    assert [s["Final-Recipient"] for s in status_of(message)] == ["rfc822; a@x.test"]
    assert status_of(message)[0]["Action"] == "relayed"
    notices, server = run(tmp_path / "2", scenario, SmtpServer())
    assert notices == [] and b"NOTIFY=SUCCESS" in server.messages[0][1][0]


def test_three_recipients_that_asked_for_success(tmp_path):
    """RFC 3461 5.2.2, 5.2.3: a host without DSN is where we say "relayed"; a host with it is told, and we say nothing."""
    async def scenario(bench, server):
        await bench.queue(*(Recipient(b"%b@%b.test" % (n, n), notify=Notify.SUCCESS) for n in (b"a", b"b", b"c")), envid=b"E1")
        await bench.settled(3)
        return bench.notices(), server

    notices, _ = run(tmp_path / "1", scenario, SmtpServer(extensions=("PIPELINING",)))
    ((item, message),) = notices  # three domains, three items, one report
    assert item.envelope.reverse_path == b"" and message.get_content_type() == "multipart/report"
    assert message.get_payload()[1].get_payload()[0]["Original-Envelope-Id"] == "E1"
    assert sorted(s["Final-Recipient"] for s in status_of(message)) == [f"rfc822; {n}@{n}.test" for n in "abc"]
    assert {s["Action"] for s in status_of(message)} == {"relayed"} and {s["Status"] for s in status_of(message)} == {"2.0.0"}
    notices, server = run(tmp_path / "2", scenario, SmtpServer())
    assert notices == [] and sum(len(rcpt) for _, rcpt, _ in server.messages) == 3
    assert all(b"NOTIFY=SUCCESS" in rcpt and b"ENVID=E1" in mail for mail, (rcpt,), _ in server.messages)


def test_failures_at_several_destinations_are_one_report(tmp_path):
    async def scenario(bench, server):
        await bench.queue(b"a@a.test", b"b@b.test", b"c@c.test", b"d@d.test")
        await bench.settled(4)
        return bench.notices(), bench.waiting()

    def script(connection, verb, line):
        return "550 5.1.1 no" if verb == "RCPT" and b"c@c" not in line else None

    notices, waiting = run(tmp_path, scenario, SmtpServer(script))
    ((_, message),) = notices
    assert sorted(s["Final-Recipient"] for s in status_of(message)) == [f"rfc822; {n}@{n}.test" for n in "abd"]
    assert waiting == []


@pytest.mark.parametrize("setting", ["postmaster", "discard"])
def test_a_notice_that_fails(tmp_path, setting):
    # A notice of ours enters by MTA, which this bench keeps back: so it is put into the queue by hand.
    async def own(bench, server):
        head = Envelope(Channel.MTA, b"", [Recipient(b"gone@x.test")], time.time_ns(), parent=b"p" * 16)
        message = Message(bench.spool.new_id(), head, [BODY % 1])
        assert await bench.spool.append([message]) == [None]
        ((item,), _) = bench.spool.take(INPUT, 64)
        bench.spool.move([(item, [Item(item.id, Channel.SMTPC, "x.test", item.envelope, item.rope)])])
        await bench.settled(1)
        return bench.notices(), bench.ctx.log.of("discarded")

    refusing = SmtpServer(lambda c, v, line: "550 no" if v == "RCPT" else None)
    notices, discarded = run(tmp_path, own, refusing, spool=SpoolSettings(double_bounces=setting))
    if setting == "discard":
        assert notices == [] and len(discarded) == 1
    else:
        ((item, message),) = notices
        assert [r.address for r in item.envelope.recipients] == [b"postmaster@example.test"] and discarded == []
        assert item.envelope.recipients[0].notify == Notify.NEVER and item.envelope.reverse_path == b""
        assert status_of(message)[0]["Final-Recipient"] == "rfc822; gone@x.test"


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", "END", "drop-after"])
def test_a_connection_lost_once(tmp_path, verb):
    hits = []

    def script(connection, what, line):
        if not hits and (what == verb or (verb == "drop-after" and what == "DATA")):
            hits.append(what)
            return "drop-after" if verb == "drop-after" else "drop"
        return None

    async def scenario(bench, server):
        ids = await bench.queue(count=20)
        await bench.until(lambda: len({e[1] for e in bench.ctx.log.of("relayed")}) == 20)
        await bench.until(lambda: not bench.worker._in_hand)
        return bench, server, ids, bench.waiting()

    bench, server, _, waiting = run(tmp_path, scenario, SmtpServer(script), smtpc={"retry_s": 0.2, "max_per_host": 1})
    assert waiting == [] and len({content for _, _, content in server.messages}) == 20
    assert len(server.messages) == 20
    # Short content leaves in one piece with its dot, so from then on only the host knows whether it took the message.
    unknown = 1 if verb in ("END", "drop-after") else 0
    assert len(bench.ctx.log.of("deferred")) == len(bench.ctx.log.of("duplicate-possible")) == unknown


def test_a_message_that_always_breaks_the_connection_does_not_stop_the_others(tmp_path):
    script = lambda c, verb, line: "drop" if verb == "RCPT" and b"evil@" in line else None  # noqa: E731

    async def scenario(bench, server):
        await bench.queue(b"evil@x.test")
        await bench.queue(count=10)
        await bench.settled(11)
        return bench, bench.waiting()

    bench, waiting = run(tmp_path, scenario, SmtpServer(script))
    assert len(bench.ctx.log.of("relayed")) == 10
    assert [r.address for item in waiting for r in item.envelope.recipients] == [b"evil@x.test"]


def test_554_after_data_is_tried_again(tmp_path):
    script = lambda c, verb, line: "554 5.7.1 spam" if verb == "END" else None  # noqa: E731

    async def scenario(bench, server):
        await bench.queue()
        await bench.settled(1)
        return bench.outcomes()[0][0]

    assert run(tmp_path / "1", scenario, SmtpServer(script)) == "deferred"
    assert run(tmp_path / "2", scenario, SmtpServer(script), smtpc={"temporary_554": False}) == "failed"


def test_classify():
    assert classify(Reply(250, 0, 0, ""), None, True) == Outcome.RELAYED
    assert classify(Reply(421, 0, 0, ""), Wait.END, True) == Outcome.DEFERRED
    assert classify(Reply(354, 0, 0, ""), Wait.END, True) == Outcome.DEFERRED
    assert classify(Reply(554, 0, 0, ""), Wait.MAIL, True) == Outcome.FAILED
    assert classify(Reply(554, 0, 0, ""), None, True) == Outcome.FAILED
    assert classify(TOO_BIG, Wait.MAIL, True) == Outcome.FAILED
    assert classify(NONSENSE, Wait.END, True) == Outcome.DEFERRED


def closed_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_the_next_host_is_tried(tmp_path):
    async def scenario(bench, server):
        bench.worker._router._relays.insert(0, ("127.0.0.1", closed_port()))
        await bench.queue(count=3)
        await bench.settled(3)
        return bench, server

    bench, server = run(tmp_path, scenario, SmtpServer())
    assert len(server.messages) == 3 and len(bench.ctx.log.of("relayed")) == 3


@pytest.mark.parametrize("said", ["554 5.7.1 no", "421 4.3.2 busy", "drop"])
def test_a_host_that_greets_badly_is_passed_over(tmp_path, said):
    async def scenario(bench, bad, good):
        bench.worker._router._relays.append(("127.0.0.1", good.port))
        await bench.queue(count=3)
        await bench.settled(3)
        return bad, good

    bad, good = run(tmp_path, scenario, SmtpServer(lambda c, v, line: said if v == "CONNECT" else None), SmtpServer())
    assert len(good.messages) == 3 and bad.connections


def test_a_dead_destination_is_remembered(tmp_path, monkeypatch):
    async def scenario(bench):
        await bench.queue(count=50)
        await bench.settled(50)
        connects = bench.ctx.counters.get("sessions_total", 0)
        await bench.queue(count=5)
        await asyncio.sleep(0.1)
        assert len(bench.outcomes()) == 50  # they wait where they are
        fares = bench.spool.destination(Channel.SMTPC, "x.test")
        assert fares.failures == 1 and "refused" in fares.reason and fares.backoff_ms > bench.spool.queue_ms() + 200_000
        monkeypatch.setattr(keys, "LATE_MS", 50)
        await bench.queue()  # they are late now, and taken: senders hear of delays in time
        await bench.settled(55)
        return bench, bench.waiting(), connects

    settings = {"resolution": "relay", "relay_hosts": [f"127.0.0.1:{closed_port()}"]}
    bench, waiting, connects = run(tmp_path, scenario, smtpc=settings)
    waiting = [item for item in waiting if item.attempts]
    assert len(waiting) >= 55 and len(bench.ctx.log.of("deferred")) >= 55 and connects == 0
    assert {item.attempts for item in waiting} == {1} and all("refused" in item.reason for item in waiting), waiting[0]
    assert 1799 <= bench.ctx.log.of("deferred")[-1][3]["next_attempt_s"] <= 1800


def test_what_waited_for_a_dead_destination_leaves_when_it_is_back(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PROBE_S", 0.0)
    port = closed_port()

    async def scenario(bench):
        await bench.queue()
        await bench.settled(1)
        await bench.queue(count=200)
        await asyncio.sleep(0.1)
        assert len(bench.outcomes()) == 1
        server = SmtpServer()
        server.port = port
        async with server:
            # the first one is late, the others are not
            monkeypatch.setattr(keys, "LATE_MS", bench.spool.queue_ms() - 5)
            with bench.spool.index.change() as change:
                [[key, item]] = [(key, item) for _, _, item, key in bench.spool.index.queued() if item.attempts]
                change.remove(key, item)
                change.put(item, 1, 1)
            bench.worker._pump_soon()
            await bench.settled(202)
            return len(server.messages), bench.spool.destination(Channel.SMTPC, "x.test")

    sent, fares = run(tmp_path, scenario, smtpc={"resolution": "relay", "relay_hosts": [f"127.0.0.1:{port}"]})
    assert sent == 201 and not fares.failures and not fares.backoff_ms and not fares.reason


def test_what_is_pushed_by_hand_tries_a_dead_destination(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PROBE_S", 0.0)
    port = closed_port()

    async def scenario(bench):
        await bench.queue(count=3)
        await bench.settled(3)
        assert bench.worker._destinations[">"].dead_until_s > bench.loop.time() + 200
        server = SmtpServer()
        server.port = port
        async with server:
            with bench.spool.index.change() as change:  # as `iemsctl queue retry` does
                change.destination(Channel.SMTPC, keys.destination_hash("x.test")).backoff_ms = 0
                for _, _, item, key in list(bench.spool.index.queued()):
                    change.remove(key, item)
                    change.put(item, 1)
            bench.worker._pump_soon()
            await bench.settled(6)
            await bench.queue()  # and what comes now need not wait
            await bench.settled(7)
            return len(server.messages)

    assert run(tmp_path, scenario, smtpc={"resolution": "relay", "relay_hosts": [f"127.0.0.1:{port}"]}) == 4


def test_some_failed_some_deferred_some_relayed(tmp_path):
    said = {b"bad": "550 5.1.1 no", b"busy": "451 4.2.1 busy"}
    script = lambda c, v, line: next((r for word, r in said.items() if word in line), None) if v == "RCPT" else None  # noqa: E731

    async def scenario(bench, server):
        await bench.queue(b"good@x.test", b"bad1@x.test", b"busy@x.test", b"bad2@x.test")
        await bench.settled(4)
        return bench.waiting(), bench.notices()

    waiting, notices = run(tmp_path, scenario, SmtpServer(script))
    assert [r.address for i in waiting for r in i.envelope.recipients] == [b"busy@x.test"]
    assert waiting[0].envelope.recipients[0].attempts == 1 and waiting[0].envelope.recipients[0].reply.code == 451
    ((_, message),) = notices
    assert [s["Final-Recipient"] for s in status_of(message)] == ["rfc822; bad1@x.test", "rfc822; bad2@x.test"]


def test_no_relay_host_waits(tmp_path):
    async def scenario(bench):
        await bench.queue()
        await bench.settled(1)
        return bench.outcomes()[0]

    assert run(tmp_path, scenario, smtpc={"resolution": "relay"})[0] == "deferred"


def zone(server_address="127.0.0.1"):
    return {
        ("ok.test", "MX"): ["10 mx.ok.test."],
        ("mx.ok.test", "A"): [server_address],
        ("null.test", "MX"): ["0 ."],
        ("sick.test", "MX"): ["10 mx.sick.test."],
        ("plain.test", "A"): [server_address],
    }


def test_by_mx(tmp_path):
    async def scenario(bench, dns_server, server):
        bench.worker._router._port = server.port
        people = [b"a@ok.test", b"b@OK.test".lower(), b"c@null.test", b"d@nowhere.test", b"e@sick.test", b"f@plain.test", b"g@[127.0.0.1]"]
        await bench.queue(*people)
        await bench.settled(7)
        return bench, server, bench.waiting(), bench.notices()

    faults = {"mx.sick.test": "SERVFAIL"}
    bench, server, waiting, notices = run(
        tmp_path, scenario, DnsServer(zone(), faults), SmtpServer(), smtpc={"resolution": "dns"})
    outcomes = {e[2]: (e[0], e[3]["reply"]) for e in bench.outcomes()}
    assert {a for a, (what, _) in outcomes.items() if what == "relayed"} == {b"a@ok.test", b"b@ok.test", b"f@plain.test", b"g@[127.0.0.1]"}
    assert outcomes[b"c@null.test"][1].startswith("556 5.1.10") and outcomes[b"d@nowhere.test"][1].startswith("550 5.1.2")
    assert outcomes[b"e@sick.test"][0] == "deferred" and [i.destination for i in waiting] == ["sick.test"]
    ((_, report),) = notices  # one for both, as they ended together
    assert sorted(s["Status"] for s in status_of(report)) == ["5.1.10", "5.1.2"]
    assert all(status_of(m)[0]["Remote-MTA"] is None for _, m in notices)
    # a domain's recipients share one transaction; domains with one host share a connection where one is free
    assert sorted(len(m[1]) for m in server.messages) == [1, 1, 2]


def test_connections_are_kept_for_the_next_message(tmp_path):
    async def scenario(bench, server):
        for n in range(5):
            await bench.queue(b"bob@d%d.test" % n)  # in mode relay all domains share them
            await bench.settled(n + 1)
        first = len(server.connections)
        await bench.until(lambda: not bench.worker._sessions, 6)
        return first, server.connections[0].commands

    connections, commands = run(tmp_path, scenario, SmtpServer(), smtpc={"idle_s": 0.5})
    assert connections == 1 and commands[-1] == b"QUIT"


def test_messages_per_connection(tmp_path):
    async def scenario(bench, server):
        await bench.queue(count=25)
        await bench.settled(25)
        return server

    server = run(tmp_path, scenario, SmtpServer(), smtpc={"max_messages": 5, "max_per_host": 1})
    assert len(server.messages) == 25 and len(server.connections) == 5
    assert all(c.commands.count(b"DATA") == 5 for c in server.connections)


def test_connections_in_all(tmp_path):
    async def scenario(bench, server, dns_server):
        bench.worker._router._port = server.port
        for n in range(12):
            await bench.queue(b"bob@[127.0.0.%d]" % (n + 1))
        await bench.settled(12)
        return server

    server = run(tmp_path, scenario, SmtpServer(host="0.0.0.0"), DnsServer({}), smtpc={"resolution": "dns", "max_connections": 2})
    assert len(server.messages) == 12 and server.most_open <= 3  # one may still be saying goodbye


@pytest.mark.parametrize("trouble", ["dns", "connect"])
def test_hosts_that_do_not_answer_leave_room_for_those_that_do(tmp_path, monkeypatch, trouble):
    monkeypatch.setattr(module, "PATIENCE_S", 0.3)
    real = module.connect

    async def slow(loop, host):
        if host.address.startswith("192.0.2."):
            await asyncio.sleep(60)
        return await real(loop, host)

    monkeypatch.setattr(module, "connect", slow)
    records = {("good.test", "A"): ["127.0.0.1"]}
    records |= {(f"mute{n}.test", "A"): ["192.0.2.1"] for n in range(20)}
    faults = {f"mute{n}.test": "silent" for n in range(20)} if trouble == "dns" else {}

    async def scenario(bench, dns_server, server):
        bench.worker._router._port = server.port
        await bench.queue(*(b"a@mute%d.test" % n for n in range(20)))
        await bench.until(lambda: bench.worker._connecting == 2 or trouble == "dns")
        await bench.queue(b"b@good.test")
        started = bench.loop.time()
        await bench.until(lambda: server.messages)
        return bench.loop.time() - started

    took = run(tmp_path, scenario, DnsServer(records, faults), SmtpServer(), smtpc={"resolution": "dns", "max_connections": 2})
    assert took < (5 if trouble == "dns" else 30)  # all of them, two at a time: 6 s, 600 s


def mute_hosts(monkeypatch, count):
    """DNS of good.test, and of mute0.test and so on, whose hosts never take a connection."""
    real = module.connect

    async def slow(loop, host):
        if host.address.startswith("192.0.2."):
            await asyncio.sleep(60)
        return await real(loop, host)

    monkeypatch.setattr(module, "connect", slow)
    return {("good.test", "A"): ["127.0.0.1"]} | {(f"mute{n}.test", "A"): [f"192.0.2.{n + 1}"] for n in range(count)}


def test_mute_hosts_leave_places_to_hosts_that_answer(tmp_path, monkeypatch):
    """A host that took mail before takes more at once, though every place that others may have is lost to mute ones."""
    records = mute_hosts(monkeypatch, 20)

    async def scenario(bench, dns_server, server):
        bench.worker._router._port = server.port
        await bench.queue(b"b@good.test")
        await bench.settled(1)
        await bench.queue(*(b"a@mute%d.test" % n for n in range(20)))
        await bench.until(lambda: bench.worker._unproven == 3)
        await bench.queue(b"c@good.test")
        await bench.until(lambda: len(server.messages) == 2)
        assert not bench.ctx.log.of("deferred")  # the mute ones had their places all the time

    monkeypatch.setattr(module, "PATIENCE_S", 60.0)
    run(
        tmp_path, scenario, DnsServer(records), SmtpServer(), smtpc={"resolution": "dns", "max_connections": 4, "idle_s": 0.01}
    )


def test_mail_for_mute_hosts_leaves_room_in_hand(tmp_path, monkeypatch):
    """More mail for a few mute hosts than the worker takes in hand: what goes to a host that answers is taken all the same."""
    for name, value in {"TAKE": 2, "MAX_IN_HAND": 16, "CROWDED": 8, "FEW": 2}.items():
        monkeypatch.setattr(module, name, value)
    records = mute_hosts(monkeypatch, 4)

    async def scenario(bench, dns_server, server):
        bench.worker._router._port = server.port
        await bench.queue(b"b@good.test")
        await bench.settled(1)
        await bench.queue(*(b"a@mute%d.test" % n for n in range(4)), count=10)
        await bench.until(lambda: bench.worker._unproven == 3 and bench.worker._in_hand >= 8)
        await asyncio.sleep(0.1)  # it has taken what it will take
        await bench.queue(b"c@good.test", count=5)
        await bench.until(lambda: len(server.messages) == 6)
        assert not bench.ctx.log.of("deferred")  # the mute ones have their places still
        bench.worker._timeouts = msgspec.structs.replace(bench.worker._timeouts, connect_s=0.05)
        for limit in list(bench.worker._dialling):
            limit.reschedule(bench.loop.time())
        await bench.until(lambda: not bench.worker._in_hand)  # the rest waits in the queue until its hosts are tried again
        assert len(bench.waiting()) == 40

    monkeypatch.setattr(module, "PATIENCE_S", 60.0)
    settings = {"resolution": "dns", "max_connections": 4, "connect_timeout_s": 60.0}
    run(tmp_path, scenario, DnsServer(records), SmtpServer(), smtpc=settings)


def test_fresh_mail_is_not_gathered_behind_looks_for_dead_hosts(tmp_path, monkeypatch):
    """With mail for mute hosts in hand, what comes is taken at once, though the queue was looked at a moment before for their sake."""
    records = mute_hosts(monkeypatch, 12)

    async def scenario(bench, dns_server, server):
        bench.worker._router._port = server.port
        await bench.queue(b"b@good.test")
        await bench.settled(1)
        await bench.queue(*(b"a@mute%d.test" % n for n in range(12)))
        await bench.until(lambda: bench.worker._unproven == 12)
        monkeypatch.setattr(module, "GATHER_S", 0.05)
        monkeypatch.setattr(module, "FLOOD_S", 60.0)
        waits = []
        later = bench.loop.call_later
        monkeypatch.setattr(bench.worker, "_loop", Timers(bench.loop, lambda delay, call, *more: waits.append(call) or later(delay, call, *more)))
        bench.worker._news.clear()
        for _ in range(module.FLOOD):
            bench.worker._pump()  # as after outcomes of theirs
            bench.worker._woken()
            assert bench.worker._pump not in waits
            await asyncio.sleep(0)
        bench.worker._woken()  # so many in a row, and the next one right behind them: it may have company
        assert waits[-1] == bench.worker._pump
        await asyncio.sleep(0.06)

    class Timers:
        def __init__(self, loop, call_later):
            self._loop, self.call_later = loop, call_later

        def __getattr__(self, name):
            return getattr(self._loop, name)

    run(tmp_path, scenario, DnsServer(records), SmtpServer(), smtpc={"resolution": "dns", "max_connections": 40})


def test_a_destination_that_waits_for_a_connection_does_not_starve(tmp_path):
    """With one connection and ever newer destinations, the first that had to wait gets its turn."""

    async def scenario(bench, server, dns_server):
        bench.worker._router._port = server.port
        await bench.queue(b"first@[127.0.0.2]", b"old@[127.0.0.3]")
        number = 3
        while not any(b"old@" in line for _, recipients, _ in server.messages for line in recipients):
            number += 1
            assert number < 60, "starved"
            await bench.queue(b"new@[127.0.1.%d]" % number, b"new@[127.0.2.%d]" % number)
            await asyncio.sleep(0.02)
        return number

    server = SmtpServer(host="0.0.0.0", delay_s=0.01)
    run(tmp_path, scenario, server, DnsServer({}), smtpc={"resolution": "dns", "max_connections": 1, "max_messages": 1})


def test_the_host_limits_connections(tmp_path):
    def script(connection, verb, line):
        return "421 4.7.0 too many connections" if verb == "CONNECT" and connection.number % 2 else None

    async def scenario(bench, server):
        await bench.queue(count=60)
        await bench.settled(60)
        return bench, server

    bench, server = run(tmp_path, scenario, SmtpServer(script, delay_s=0.002))
    assert len(server.messages) == 60 and bench.ctx.log.of("deferred") == []


def test_tls_where_offered_and_in_the_clear_where_it_fails(tmp_path):
    async def scenario(bench, server):
        await bench.queue(count=3)
        await bench.settled(3)
        return bench, server

    bench, server = run(tmp_path, scenario, SmtpServer(extensions=("PIPELINING", "STARTTLS"), tls=None))
    assert len(server.messages) == 3 and len(bench.ctx.log.of("tls-failed")) == 1
    assert not any(c.secure for c in server.connections)


def test_smtputf8(tmp_path):
    async def scenario(bench, server):
        await bench.queue(b"a@x.test", smtputf8=True)
        await bench.queue(b"b@x.test", smtputf8=True, content="Subject: привет\r\n\r\nx\r\n".encode())
        await bench.queue("ю@x.test".encode(), smtputf8=True)
        await bench.settled(3)
        return {e[2].decode(): (e[0], e[3]["reply"][:9]) for e in bench.outcomes()}

    assert run(tmp_path / "1", scenario, SmtpServer(extensions=("PIPELINING",))) == {
        "a@x.test": ("relayed", "250 2.0.0"), "b@x.test": ("failed", "553 5.6.7"), "ю@x.test": ("failed", "553 5.6.7")}
    assert {what for what, _ in run(tmp_path / "2", scenario, SmtpServer()).values()} == {"relayed"}


def test_binary_content(tmp_path):
    binary = b"Subject: b\r\n\r\n" + bytes(range(256)) * 400 + b"\n.\n"

    async def scenario(bench, server):
        await bench.queue(b"text@x.test", body=2, content=b"Subject: t\r\n\r\n.text\r\n")
        await bench.queue(b"small@x.test", body=2, content=binary[:2000])
        await bench.queue(b"big@x.test", body=2, content=binary)
        await bench.settled(3)
        return {e[2]: (e[0], e[3]["reply"][:9]) for e in bench.outcomes()}, {m[2] for m in server.messages}

    outcomes, sent = run(tmp_path / "1", scenario, SmtpServer(extensions=("PIPELINING", "CHUNKING", "BINARYMIME")))
    assert {what for what, _ in outcomes.values()} == {"relayed"}
    assert sent == {b"Subject: t\r\n\r\n.text\r\n", binary[:2000], binary}
    outcomes, sent = run(tmp_path / "2", scenario, SmtpServer())
    assert outcomes[b"text@x.test"][0] == "relayed" and sent == {b"Subject: t\r\n\r\n..text\r\n"}
    assert outcomes[b"small@x.test"] == outcomes[b"big@x.test"] == ("failed", "554 5.6.3")


def test_content_that_is_gone_waits(tmp_path):
    async def scenario(bench, server):
        await bench.stop()
        await bench.queue(count=2)
        bench.spool.close()
        for path in (tmp_path / "spool/segments").iterdir():
            path.unlink()
        bench.ctx.draining = False
        await bench.start()
        await bench.settled(2)
        return bench, server

    bench, server = run(tmp_path, scenario, SmtpServer())
    assert server.messages == [] and len(bench.ctx.log.of("deferred")) == 2 and len(bench.ctx.log.of("error")) == 2


def test_draining_finishes_what_is_under_way_and_gives_back_the_rest(tmp_path):
    async def scenario(bench, server):
        await bench.queue(count=200)
        await bench.until(lambda: len(server.messages) >= 5)
        await bench.stop(5.0)
        return bench, server, bench.waiting()

    bench, server, waiting = run(tmp_path, scenario, SmtpServer(delay_s=0.01))
    sent = len(server.messages)
    assert 5 <= sent < 200 and len(waiting) == 200 - sent and len(bench.ctx.log.of("relayed")) == sent
    assert bench.ctx.log.of("deferred") == [] and all(item.attempts == 0 for item in waiting)


def test_draining_does_not_wait_for_a_host_that_is_silent(tmp_path):
    async def scenario(bench, server):
        await bench.queue(count=3)
        await bench.until(lambda: any(b"DATA" in c.commands for c in server.connections))
        started = bench.loop.time()
        await bench.stop(1.0)
        return bench, bench.loop.time() - started, bench.waiting()

    _, took, waiting = run(tmp_path, scenario, SmtpServer(lambda c, v, line: "silent" if v == "DATA" else None))
    assert took < 60 and len(waiting) == 3  # the host has five minutes for its answer


def test_a_slow_destination_does_not_hold_up_the_others(tmp_path):
    async def scenario(bench, slow, fast, dns_server):
        bench.worker._router._table = module.HostTable(tmp_path / "hosts", 25)
        (tmp_path / "hosts").write_text(f"slow.test 127.0.0.1:{slow.port}\nfast.test 127.0.0.1:{fast.port}\n")
        await bench.queue(b"a@slow.test", count=600)
        await bench.until(lambda: slow.connections)
        await bench.queue(b"b@fast.test", count=50)
        await bench.until(lambda: len(fast.messages) == 50)
        return len(slow.messages), bench.worker._in_hand

    slow = SmtpServer(delay_s=0.3)
    relayed, in_hand = run(tmp_path, scenario, slow, SmtpServer(), DnsServer({}), smtpc={"resolution": "hosts"})
    assert relayed < 300 and in_hand <= 400


def test_the_lowest_weight_leaves_first(tmp_path):
    """Of what one worker has in hand for a destination and has not begun."""
    async def scenario(bench, server):
        for word in (b"junk", b"bulk", b"none", b"list", b"special-delivery", b"first-class", b"bulk"):
            await bench.queue(content=b"Precedence: %b\r\nSubject: x\r\n\r\n" % word)
        go.set()
        await bench.settled(8)
        return [re.search(rb"Precedence: (\S+)", m[2])[1] for m in server.messages]

    async def first(bench, server):
        await bench.queue(content=b"Precedence: first\r\n\r\n")  # keeps the only connection busy meanwhile
        await bench.until(lambda: server.connections)
        return await scenario(bench, server)

    go = asyncio.Event()

    class Slow(SmtpServer):
        async def _content(self, reader):
            await go.wait()
            return await super()._content(reader)

    smtpc = {"weight_precedence": 1, "max_per_host": 1}
    order = run(tmp_path, first, Slow(extensions=()), smtpc=smtpc)
    assert order == [b"first", b"special-delivery", b"first-class", b"none", b"list", b"bulk", b"bulk", b"junk"]


def test_runs(tmp_path):
    """With run_interval_s mail leaves in runs of run_size messages."""
    async def scenario(bench, server):
        started = bench.loop.time()
        await bench.queue(count=5)
        await bench.settled(5)
        return bench.loop.time() - started, len(server.messages)

    took, sent = run(tmp_path, scenario, SmtpServer(), smtpc={"run_interval_s": 0.3, "run_size": 2})
    assert sent == 5 and took >= 0.6


def test_connections_grow_with_success_and_shrink_with_failure(tmp_path):
    async def scenario(bench, server):
        await bench.queue(count=200)
        await bench.until(lambda: server.messages)
        destination = bench.worker._destinations[">"]
        first = destination.window
        await bench.until(lambda: server.most_open == 6)
        await bench.settled(200)
        grown = destination.window
        refusing.append(1)
        for session in list(bench.worker._sessions):
            session.fail(Reply(451, 4, 2, "lost"))
        await bench.queue(count=1)
        await bench.settled(201)
        return first, grown, destination.window, len(bench.ctx.log.of("relayed"))

    refusing = []

    def script(connection, verb, line):
        return "421 4.3.2 busy" if verb == "CONNECT" and refusing else None

    first, grown, shrunk, relayed = run(tmp_path, scenario, SmtpServer(script, delay_s=0.002), smtpc={"max_per_host": 6})
    assert 2.0 <= first < 6.0 <= grown and shrunk == grown / 2 and relayed == 200


def profile(home, domain, **values):
    """Set a peer profile; the worker under test opens the directory later."""
    directory = Directory(home / "directory", create=True, who="test", audit=lambda record: None)
    directory.set_peer(domain, **values)
    directory.close()


def test_a_domain_that_gets_no_mail(tmp_path):
    profile(tmp_path, "x.test", transmit=False)
    profile(tmp_path, "small.test", max_out_octets=20)

    async def scenario(bench, server):
        await bench.queue(b"bob@x.test", b"eve@small.test", b"ann@y.test")
        await bench.settled(3)
        # Named relay host: the recipients' own domains count.
        people = [Recipient(b"%b@%b.test" % (n, n), identifier=f"127.0.0.1:{server.port}") for n in (b"x", b"z")]
        await bench.queue(*people, destination=f"127.0.0.1:{server.port}")
        await bench.settled(5)
        return bench, server, bench.waiting(), bench.notices()

    _, server, waiting, notices = run(tmp_path, scenario, SmtpServer())
    assert [m[1] for m in server.messages] == [[b"RCPT TO:<ann@y.test>"], [b"RCPT TO:<z@z.test>"]] and waiting == []
    said = {status_of(message)[0]["Final-Recipient"]: status_of(message)[0]["Status"] for _, message in notices}
    assert said == {"rfc822; bob@x.test": "5.7.1", "rfc822; eve@small.test": "5.3.4", "rfc822; x@x.test": "5.7.1"}


def test_limits_of_a_domain(tmp_path):
    profile(tmp_path, "x.test", max_sessions=1, max_messages=3)

    async def scenario(bench, server):
        await bench.queue(b"bob@x.test", count=20)
        await bench.settled(20)
        most = server.most_open
        await bench.queue(b"bob@y.test", count=40)
        await bench.settled(60)
        return server, most

    server, most = run(tmp_path, scenario, SmtpServer(delay_s=0.002))
    assert most <= 2  # one that says QUIT, one that is new
    to_x = [sum(b"@x.test" in c for c in connection.commands) for connection in server.connections]
    to_y = [sum(b"@y.test" in c for c in connection.commands) for connection in server.connections]
    assert (sum(to_x), max(to_x)) == (20, 3) and sum(to_y) == 40 and max(to_y) > 3


def test_mail_that_waits_for_the_next_run(tmp_path):
    profile(tmp_path, "x.test", queue_first=True, run_interval_s=0.4)

    async def scenario(bench, server):
        begin = time.monotonic()
        await bench.queue(b"bob@x.test", count=3)
        await bench.settled(3)
        assert not server.connections and len(bench.waiting()) == 3
        await bench.settled(6)
        return bench, server, time.monotonic() - begin

    bench, server, spent_s = run(tmp_path, scenario, SmtpServer())
    assert len(server.messages) == 3 and 0.3 < spent_s < 5
    assert {e[3]["next_attempt_s"] for e in bench.ctx.log.of("deferred")} == {0.4}


def test_retry_period_of_a_domain(tmp_path):
    profile(tmp_path, "x.test", run_interval_s=0.1, retry_period_h=0.3 / 3600)

    async def scenario(bench, server):
        await bench.queue(b"bob@x.test", b"ann@y.test")
        await bench.until(lambda: bench.ctx.log.of("failed") and not bench.worker._in_hand)
        return bench, bench.notices()

    script = lambda c, verb, line: "451 4.2.0 later" if verb == "RCPT" else None  # noqa: E731
    bench, notices = run(tmp_path, scenario, SmtpServer(script))
    ((_, recipient, detail),) = [e[1:] for e in bench.ctx.log.of("failed")]
    assert recipient == b"bob@x.test" and "not delivered within 0 seconds" in detail["reply"]
    assert [status_of(m)[0]["Status"] for _, m in notices] == ["5.4.7"]
    assert {e[3]["next_attempt_s"] for e in bench.ctx.log.of("deferred") if e[2] == b"ann@y.test"} == {1800.0}


def test_profiles_take_effect_at_once(tmp_path):
    profile(tmp_path, "z.test")

    async def scenario(bench, server):
        await bench.queue(b"bob@x.test")
        await bench.settled(1)
        bench.worker._profiles._directory.set_peer("x.test", transmit=False)
        await bench.queue(b"bob@x.test")
        await bench.settled(2)
        return bench

    bench = run(tmp_path, scenario, SmtpServer())
    assert [event[0] for event in bench.outcomes()] == ["relayed", "failed"]
