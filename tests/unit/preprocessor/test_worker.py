"""The worker on a real spool and directory in a temporary home: moves, splits, reports, loops, outages."""

import asyncio
from types import SimpleNamespace

import pytest

from iems.config import Antivirus, Config
from iems.directory import Directory, passwords
from iems.errors import DirectoryUnavailable
from iems.model import INPUT, Channel, Envelope, Notify, Recipient, Reply
from iems.net.breaker import NoAnswer
from iems.preprocessor.absence import Absence
from iems.preprocessor.modules import Verdict
from iems.preprocessor.modules.antivirus import AntiVirus
from iems.preprocessor.modules.content import Content
from iems.preprocessor.worker import Worker
from iems.scan.checker import Score
from iems.spool import Message
from iems.spool.keys import QUARANTINED
from tests.support.waiting import soon


class Context:
    """What the worker uses of a WorkerContext."""

    def __init__(self, home):
        self.home = home
        self.hostname = "mx.example.test"
        self.config = Config(hostname=self.hostname, domain="example.test")
        self.role, self.slot, self.generation = "preprocessor", 3, 7
        self.loop = asyncio.get_running_loop()
        self.events = []
        self.errors = []
        self.counters = {}
        self.callback = None
        self.parked = False
        self.log = SimpleNamespace(
            event=self._event, error=lambda what, exc=None, id=None, **d: self.errors.append((what, exc))
        )

    def _event(self, name, id=None, recipient=None, **detail):
        self.events.append((name, recipient, detail))

    def count(self, name, n=1):
        self.counters[name] = self.counters.get(name, 0) + n

    def working_on(self, id):
        self.blamed = id

    def wake(self, role):
        if role == "preprocessor" and self.parked:
            self.parked = False
            self.loop.call_soon(self.callback)

    def on_wake(self, callback):
        self.callback = callback

    def park(self):
        self.parked = True

    def unpark(self):
        self.parked = False


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(passwords, "hash_password", lambda password: "hash")
    found = Directory(tmp_path / "directory", create=True)
    found.add_domain("example.test")
    for name in ("john", "mary"):
        found.create_account(f"{name}@example.test", "pw")
    found.add_alias("all@example.test", "john@example.test")
    found.add_alias("all@example.test", "bob@other.test")
    found.close()
    return tmp_path


CONTENT = b"Received: from x ([192.0.2.1])\r\n\tby mx.example.test with ESMTP id 1;\r\n\tMon\r\nSubject: hi\r\n\r\nbody\r\n"


def run(home, scenario, modules=()):
    async def main():
        ctx = Context(home)
        worker = Worker(ctx, modules)
        # One environment a process: the test posts and takes through the worker's own spool.
        spool = worker.spool

        async def post(*recipients, reverse_path=b"me@out.test", content=CONTENT, channel=Channel.SMTPD):
            message = Message(
                spool.new_id(),
                Envelope(channel, reverse_path, [Recipient(r, r) for r in recipients], 1),
                [content],
            )
            assert await spool.append([message]) == [None]
            return message.id

        async def settled():
            await asyncio.sleep(0.005)
            await soon(lambda: ctx.parked)

        await worker.start()
        try:
            await asyncio.wait_for(
                scenario(SimpleNamespace(ctx=ctx, worker=worker, spool=spool, post=post, settled=settled)), 20
            )
        finally:
            await worker.drain(5)
        return ctx

    return asyncio.run(main())


def taken(spool, channel):
    items, _ = spool.take(channel, 100)
    return sorted((item.destination, [r.address for r in item.envelope.recipients]) for item in items)


def test_split_and_moved(home):
    async def scenario(s):
        await s.settled()
        await s.post(b"john@example.test")
        await s.post(b"all@example.test", b"Mary+x@example.test", b"c@third.test", b"d@other.test")
        await s.settled()
        assert taken(s.spool, INPUT) == []
        assert taken(s.spool, Channel.LOCAL) == [
            ("", [b"john@example.test"]),
            ("", [b"john@example.test", b"mary@example.test"]),
        ]
        assert taken(s.spool, Channel.SMTPC) == [
            ("other.test", [b"bob@other.test", b"d@other.test"]),
            ("third.test", [b"c@third.test"]),
        ]

    ctx = run(home, scenario)
    assert ctx.counters["messages_routed_total"] == 2
    events = [(name, recipient) for name, recipient, _ in ctx.events]
    assert events.count(("routed", b"john@example.test")) == 2
    assert ("split", None) in events
    assert ctx.errors == []
    assert ctx.blamed is None


def test_outcomes_to_wait_for_are_those_of_the_routed(home):
    """Two ways to one mailbox are one recipient: the spool must not wait for a second outcome."""

    async def scenario(s):
        await s.post(b"john@example.test", b"John@example.test")
        await s.settled()
        [item] = s.spool.take(Channel.LOCAL, 10)[0]
        assert ([r.address for r in item.envelope.recipients], item.fanout) == ([b"john@example.test"], 1)

    run(home, scenario)


def test_unroutable_is_reported_and_the_rest_goes_on(home):
    async def scenario(s):
        await s.post(b"nobody@example.test", b"john@example.test")
        await s.settled()
        assert taken(s.spool, INPUT) == []
        items, _ = s.spool.take(Channel.LOCAL, 10)
        assert [[r.address for r in item.envelope.recipients] for item in items] == [[b"john@example.test"]]
        items, _ = s.spool.take(Channel.SMTPC, 10)
        (report,) = items
        assert (report.destination, report.envelope.reverse_path, report.envelope.input_channel) == (
            "out.test",
            b"",
            Channel.MTA,
        )
        text = s.spool.blobs.read(report.rope)
        assert b"nobody@example.test" in text and b"Status: 5.1.1" in text and b"john@" not in text

    ctx = run(home, scenario)
    failed = [(recipient, detail["reply"]) for name, recipient, detail in ctx.events if name == "failed"]
    assert failed == [(b"nobody@example.test", "550 5.1.1 No such user here")]
    assert ctx.counters["dsn_total"] == 1


def test_a_report_about_a_report_ends(home):
    async def scenario(s):
        await s.post(b"nobody@example.test", reverse_path=b"")
        await s.settled()
        for channel in (INPUT, Channel.LOCAL, Channel.SMTPC):
            assert taken(s.spool, channel) == []

    ctx = run(home, scenario)
    assert "dsn_total" not in ctx.counters
    assert ctx.counters["messages_failed_total"] == 1


def test_loop(home):
    own = CONTENT.partition(b"Subject")[0]

    async def scenario(s):
        await s.post(b"john@example.test", content=own * 24 + b"Subject: x\r\n\r\n" + own)
        await s.post(b"mary@example.test", content=own * 25 + b"Subject: x\r\n\r\n")
        await s.post(b"mary@example.test", content=own * 25 + b"Subject: x\r\n\r\n", channel=Channel.MTA)
        await s.settled()
        assert taken(s.spool, Channel.LOCAL) == [("", [b"john@example.test"]), ("", [b"mary@example.test"])]
        items, _ = s.spool.take(Channel.SMTPC, 10)
        (report,) = items
        assert b"Status: 5.4.6" in s.spool.blobs.read(report.rope)

    ctx = run(home, scenario)
    assert [detail["loop"] for name, _, detail in ctx.events if name == "failed"] == [True]


def test_loops_go_to_the_postmaster_where_that_is_set(home):
    from msgspec import structs

    async def scenario(s):
        s.ctx.config = structs.replace(s.ctx.config, preprocessor=structs.replace(s.ctx.config.preprocessor, loop_to_postmaster=True))
        await s.post(b"mary@example.test", content=CONTENT.partition(b"Subject")[0] * 25 + b"Subject: x\r\n\r\n")
        await s.settled()
        assert taken(s.spool, Channel.SMTPC) == [], "not to the sender"
        [report] = s.spool.take(Channel.LOCAL, 10)[0]
        assert [r.address for r in report.envelope.recipients] == [b"john@example.test"] and b"Status: 5.4.6" in s.spool.blobs.read(report.rope)

    directory = Directory(home / "directory")
    directory.add_alias("postmaster@example.test", "john@example.test")
    directory.close()
    run(home, scenario)


def test_directory_away_keeps_the_message(home, monkeypatch):
    monkeypatch.setattr("iems.preprocessor.worker.PAUSE_S", 0.02)

    async def scenario(s):
        resolve = s.worker.planner.resolve

        def away(address):
            raise DirectoryUnavailable("gone")

        s.worker.planner.resolve = away
        await s.post(b"john@example.test")
        await asyncio.sleep(0.1)
        assert taken(s.spool, Channel.LOCAL) == []
        s.worker.planner.resolve = resolve
        await s.settled()
        assert taken(s.spool, Channel.LOCAL) == [("", [b"john@example.test"])]

    ctx = run(home, scenario)
    assert ctx.errors


def test_a_fault_of_ours_touches_one_message(home):
    async def scenario(s):
        resolve = s.worker.planner.resolve

        def sick(address):
            if address == b"mary@example.test":
                raise RuntimeError("a fault of ours")
            return resolve(address)

        s.worker.planner.resolve = sick
        await s.post(b"mary@example.test")
        await s.post(b"john@example.test")
        await s.settled()
        assert taken(s.spool, Channel.LOCAL) == [("", [b"john@example.test"])]
        items, due_s = s.spool.take(INPUT, 10)
        assert items == [] and 50 < due_s <= 60

    ctx = run(home, scenario)
    assert len(ctx.errors) == 1


class Stamp:
    """Rewrites: puts a line on top."""

    name = "stamp"
    on_tags = False

    def wants(self, envelope):
        return True

    async def examine(self, work):
        content = work.read(work.rope, 0, 1 << 20)
        return Verdict(rope=[await work.write(b"X-Stamp: yes\r\n" + content)], note="stamped")


class Guard:
    """Refuses mary, drops bob."""

    name = "guard"
    on_tags = False

    def wants(self, envelope):
        return True

    async def examine(self, work):
        sources = [source for part in work.parts for source in part.sources]
        return Verdict(
            failed=[
                (s, Reply(550, 7, 1, "Refused by policy"))
                for s in sources
                if s.address == b"mary@example.test"
            ],
            discarded=[(s, "spam") for s in sources if s.address == b"bob@other.test"],
        )


def test_modules_run_where_their_matrix_says(home):
    directory = Directory(home / "directory")
    directory.set_matrix("stamp", {(Channel.SMTPD, Channel.SMTPC)})
    directory.close()

    async def scenario(s):
        await s.post(b"john@example.test", b"mary@example.test", b"bob@other.test", b"eve@other.test")
        await s.settled()
        items, _ = s.spool.take(Channel.LOCAL, 10)
        (local,) = items
        assert [r.address for r in local.envelope.recipients] == [b"john@example.test"]
        assert s.spool.blobs.read(local.rope) == CONTENT
        items, _ = s.spool.take(Channel.SMTPC, 10)
        remote, report = sorted(items, key=lambda item: item.destination)
        assert [r.address for r in remote.envelope.recipients] == [b"eve@other.test"]
        assert s.spool.blobs.read(remote.rope) == b"X-Stamp: yes\r\n" + CONTENT
        assert b"Status: 5.7.1" in s.spool.blobs.read(report.rope)

    ctx = run(home, scenario, (Guard(), Stamp()))
    assert [recipient for name, recipient, _ in ctx.events if name == "discarded"] == [b"bob@other.test"]
    assert [recipient for name, recipient, _ in ctx.events if name == "failed"] == [b"mary@example.test"]


def test_tagged_mail_for_channels_that_cannot_act(home):
    """LOCAL passes, SMTPC does as set; of an alias one way ends and the other goes on."""
    from iems.model import Verdict as Tag

    def scenario_for(default, check):
        directory = Directory(home / "directory")
        directory.set_tag_default("smtpc", default, [])
        directory.close()

        async def scenario(s):
            message = Message(
                s.spool.new_id(),
                Envelope(Channel.SMTPD, b"me@out.test", [Recipient(r, r) for r in (b"all@example.test", b"eve@other.test", b"mary@example.test")], 1, verdicts=(Tag("helo", "x", "y"),)),
                [CONTENT],
            )
            assert await s.spool.append([message]) == [None]
            await s.settled()
            local = [r.address for item in s.spool.take(Channel.LOCAL, 10)[0] for r in item.envelope.recipients]
            remote = [(r.address, s.spool.blobs.read(i.rope)) for i in s.spool.take(Channel.SMTPC, 10)[0] for r in i.envelope.recipients]
            check(local, remote)

        return run(home, scenario, None)

    def passed(local, remote):
        assert local == [b"john@example.test", b"mary@example.test"]
        assert [address for address, _ in remote] == [b"bob@other.test", b"eve@other.test"]

    def discarded(local, remote):
        assert local == [b"john@example.test", b"mary@example.test"] and remote == []

    def bounced(local, remote):
        assert local == [b"mary@example.test"], "an alias fails as a whole"
        [(address, report)] = remote
        assert address == b"me@out.test" and b"Status: 5.7.1" in report

    scenario_for("pass", passed)
    ctx = scenario_for("discard", discarded)
    assert sorted(recipient for name, recipient, _ in ctx.events if name == "discarded") == [b"bob@other.test", b"eve@other.test"]
    ctx = scenario_for("bounce", bounced)
    assert sorted(recipient for name, recipient, _ in ctx.events if name == "failed") == [b"all@example.test", b"eve@other.test"]


def test_wrapped_mail_starts_again_unwrapped(home):
    """winmail.dat comes out as ordinary parts, on input channel TNEF, at the root or deep inside; the rest stays octet for octet."""
    import base64
    import email
    import email.policy

    from iems.preprocessor.modules.tnef import Tnef
    from tests.support.tnef import attachment, rtf_body, stream

    wrapped = base64.encodebytes(stream(rtf_body(rb"{\rtf1 hello body\par}"), attachment("a b.txt", b"inside", "text/plain"))).replace(b"\n", b"\r\n")
    leaf = b"Content-Type: application/ms-tnef; name=winmail.dat\r\nContent-Transfer-Encoding: base64\r\n\r\n" + wrapped
    deep = (
        b"Subject: deep\r\nContent-Type: multipart/mixed; boundary=B\r\n\r\n--B\r\n\r\nmy own text\r\n--B\r\n" + leaf + b"--B--\r\nepilogue\r\n"
    )
    root = b"Subject: root\r\nX-Kept: 1\r\n" + leaf
    plain = b"Subject: none\r\n\r\nthe word tnef\r\n"
    seen = {}

    class Spy:
        name = "spy"
        on_tags = False

        def wants(self, envelope):
            return True

        async def examine(self, work):
            seen[work.read(work.rope, 9, 4)] = work.envelope.input_channel
            return Verdict()

    async def scenario(s):
        for content in (deep, root, plain):
            await s.post(b"john@example.test", b"eve@other.test", content=content)
        await s.settled()
        local = s.spool.take(Channel.LOCAL, 10)[0]
        assert len(local) == 3 and len(s.spool.take(Channel.SMTPC, 10)[0]) == 3
        for item in local:
            content = s.spool.blobs.read(item.rope)
            message = email.message_from_bytes(content, policy=email.policy.default)
            names = [p.get_filename() for p in message.walk() if p.get_filename()]
            if message["Subject"] == "none":
                assert content == plain
                continue
            assert names == ["a b.txt"] and b"ms-tnef" not in content
            [found] = [p for p in message.walk() if p.get_filename()]
            assert found.get_content() == "inside"
            if message["Subject"] == "deep":
                assert content.startswith(deep[: deep.index(b"Content-Type: application")]) and content.endswith(b"--B--\r\nepilogue\r\n")
                assert b"hello body" not in content, "there is a text already"
            else:
                assert message["X-Kept"] == "1" and message["MIME-Version"] == "1.0" and b"hello body" in content

    ctx = run(home, scenario, (Tnef(), Spy()))
    assert seen == {b"deep": Channel.TNEF, b"root": Channel.TNEF, b"none": Channel.SMTPD}
    assert not ctx.errors
    assert [d["note"] for n, _, d in ctx.events if n == "examined" and d["module"] == "tnef" and d["note"]] == ["unwrapped a b.txt"] * 2


def test_loops_end_where_the_matrix_says(home):
    line = b"Received: from x by mx.example.test with ESMTP id 1;\r\n\tMon\r\n"
    directory = Directory(home / "directory")
    directory.set_matrix("loopdetection", {(int(i), int(o)) for i in Channel if i < 32 for o in Channel if o >= 32} - {(1, 32)})
    directory.close()

    async def scenario(s):
        await s.post(b"john@example.test", b"eve@other.test", content=line * 30 + CONTENT)
        await s.post(b"mary@example.test", content=line * 30 + CONTENT)
        await s.settled()
        assert taken(s.spool, Channel.LOCAL) == [("", [b"john@example.test"]), ("", [b"mary@example.test"])]
        [(_, recipients)] = taken(s.spool, Channel.SMTPC)
        assert recipients == [b"me@out.test"], "the report"

    ctx = run(home, scenario)
    assert [recipient for name, recipient, _ in ctx.events if name == "failed"] == [b"eve@other.test"]


class Away:
    """A scanner that does not answer."""

    name = "away"

    async def scan(self, content):
        raise NoAnswer("no answer")


def test_mail_that_waits_for_a_scanner_has_a_lifetime(home):
    """It waits while it is young; then a report goes to the sender, and what may pass unseen goes on."""

    async def scenario(s):
        await s.post(b"john@example.test", b"eve@other.test", content=CONTENT + b"evil\r\n")
        await soon(lambda: [name for name, *_ in s.ctx.events].count("routed") == 2)
        await s.settled()
        assert taken(s.spool, INPUT) == []
        assert taken(s.spool, Channel.LOCAL) == []
        remote, report = sorted(s.spool.take(Channel.SMTPC, 10)[0], key=lambda item: item.destination)
        assert [r.address for r in remote.envelope.recipients] == [b"eve@other.test"]
        text = s.spool.blobs.read(report.rope)
        assert b"john@example.test" in text and b"Status: 5.4.7" in text and b"did not answer for too long" in text and b"eve@" not in text
        assert b"Subject: hi" in text and b"evil" not in text, "what nobody has looked at does not come back"

    absence = Absence("The virus scanner", "defer", {Channel.SMTPC: "defer_then_pass"}, 0.5)
    ctx = run(home, scenario, (AntiVirus([Away()], "quarantine", absence, "mx.test"),))
    assert [name for name, *_ in ctx.events if name in ("deferred", "failed")] == ["deferred", "failed", "deferred"], "the report waits, too, and goes on"
    assert ctx.errors == []


class Scores:
    """A checker to whom everything is spam."""

    kind, name = "spamd", "spamd:here"

    async def check(self, content, **_):
        return Score(True, 9.0, 5.0, ("BAD",))


def content_module(actions, archive=lambda content: None, inspector=""):
    return Content(Scores(), "pass", actions, subject="[X] ", archive=archive, inspector=inspector, refusal="No, thanks", max_octets=100_000,
                   absence=Absence("The content filter", "pass", {}, 1.0))  # fmt: skip


def test_spam_by_channel(home):
    kept = []

    async def scenario(s):
        await s.post(b"john@example.test", b"eve@other.test")
        await s.settled()
        [local] = s.spool.take(Channel.LOCAL, 10)[0]
        [remote] = s.spool.take(Channel.SMTPC, 10)[0]
        assert [tag.check for tag in local.envelope.verdicts] == ["content"] and s.spool.blobs.read(local.rope) == CONTENT
        assert s.spool.blobs.read(remote.rope) == b"X-Spam-Status: YES\r\n" + CONTENT and not remote.envelope.verdicts

    run(home, scenario, (content_module({Channel.LOCAL: "header", Channel.SMTPC: "header"}),))

    async def refused(s):
        await s.post(b"john@example.test", b"eve@other.test")
        await s.settled()
        [report] = s.spool.take(Channel.SMTPC, 10)[0]
        assert b"No, thanks" in s.spool.blobs.read(report.rope) and taken(s.spool, Channel.LOCAL) == []

    run(home, refused, (content_module({Channel.LOCAL: "bounce", Channel.SMTPC: "archive"}, kept.append),))
    assert kept == [CONTENT]


def test_spam_goes_to_the_inspector(home):
    """In the place of the recipients, once; others get what is for them; who can't be routed holds the message."""

    async def scenario(s):
        await s.post(b"john@example.test", b"all@example.test", b"eve@other.test", b"eve@third.test")
        await s.settled()
        assert taken(s.spool, INPUT) == []
        assert taken(s.spool, Channel.LOCAL) == [("", [b"mary@example.test"])]
        assert taken(s.spool, Channel.SMTPC) == [("other.test", [b"bob@other.test", b"eve@other.test"]), ("third.test", [b"eve@third.test"])]

    ctx = run(home, scenario, (content_module({Channel.LOCAL: "forward"}, inspector="mary@example.test"),))
    gone = [(recipient, detail["to"]) for name, recipient, detail in ctx.events if name == "redirected"]
    assert gone == [(b"john@example.test", b"mary@example.test")]

    async def outside(s):
        await s.post(b"john@example.test", b"eve@other.test")
        await s.settled()
        assert taken(s.spool, Channel.LOCAL) == [] and taken(s.spool, Channel.SMTPC) == [("spam.test", [b"look@spam.test"])]

    run(home, outside, (content_module({Channel.LOCAL: "forward", Channel.SMTPC: "forward"}, inspector="look@spam.test"),))

    async def nobody(s):
        await s.post(b"john@example.test")
        await s.settled()
        assert all(taken(s.spool, channel) == [] for channel in (INPUT, Channel.LOCAL, Channel.SMTPC))

    ctx = run(home, nobody, (content_module({Channel.LOCAL: "forward"}, inspector="none@example.test"),))
    assert [detail["why"] for name, _, detail in ctx.events if name == "quarantined"] == ["nobody to forward to: none@example.test"]


async def until(true, limit_s=15.0):
    """Wait for a condition."""
    for _ in range(int(limit_s / 0.005)):
        if true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it does not come true")


def test_the_sender_hears_once_of_mail_that_waits(home, monkeypatch):
    """For a scanner, as for a host that is away (RFC 3461 4.1): at the setting's age, unless he asked not to be told."""
    monkeypatch.setattr("iems.preprocessor.absence.RETRY_S", 0.02)
    monkeypatch.setattr("iems.preprocessor.absence.RETRY_MAX_S", 0.02)
    module = AntiVirus([Away()], "quarantine", Absence("The virus scanner", "defer", {}, 432_000.0), "mx.test")

    async def scenario(s):
        def count(name):
            return sum(event == name for event, *_ in s.ctx.events)

        wishes = {b"john@example.test": 0, b"mary@example.test": Notify.NEVER, b"eve@other.test": Notify.DELAY, b"joe@other.test": Notify.FAILURE}
        recipients = [Recipient(address, address, notify=notify) for address, notify in wishes.items()]
        message = Message(s.spool.new_id(), Envelope(Channel.SMTPD, b"me@out.test", recipients, 1, envid=b"E+31"), [CONTENT + b"evil\r\n"])
        assert await s.spool.append([message]) == [None]
        await until(lambda: count("deferred") > 2)
        assert not count("dsn"), "it is young"
        s.spool.age_s = lambda item: 20_000.0
        await until(lambda: count("dsn"))
        before = count("deferred")
        await until(lambda: count("deferred") > before + 3)
        [report] = s.spool.take(Channel.SMTPC, 10)[0]
        text = s.spool.blobs.read(report.rope)
        assert report.envelope.reverse_path == b"" and [r.address for r in report.envelope.recipients] == [b"me@out.test"]
        assert b"Action: delayed" in text and b"Status: 4.4.7" in text and b"Will-Retry-Until:" in text and b"Original-Envelope-Id: E1" in text
        assert b"john@" in text and b"eve@" in text and b"mary@" not in text and b"joe@" not in text
        assert b"Subject: hi" in text and b"evil" not in text
        # It is remembered on the way out, too: nobody hears twice.
        module._scanners = []
        await until(lambda: count("routed") == 5)
        await s.settled()
        found = [item for channel in (Channel.LOCAL, Channel.SMTPC) for item in s.spool.take(channel, 10)[0]]
        noticed = {r.address: r.delay_noticed for item in found for r in item.envelope.recipients}
        assert noticed == {b"john@example.test": True, b"mary@example.test": False, b"eve@other.test": True, b"joe@other.test": False}

    ctx = run(home, scenario, (module,))
    assert [detail["kind"] for name, _, detail in ctx.events if name == "dsn"] == ["delayed"] and ctx.counters["dsn_total"] == 1
    assert ctx.errors == []


def test_the_sender_hears_of_mail_that_waits_for_the_directory(home, monkeypatch):
    monkeypatch.setattr("iems.preprocessor.worker.PAUSE_S", 0.02)

    async def scenario(s):
        resolve = s.worker.planner.resolve

        def away(address):
            if address.endswith(b"@out.test"):
                return resolve(address)
            raise DirectoryUnavailable("gone")

        s.worker.planner.resolve = away
        s.spool.age_s = lambda item: 20_000.0
        await s.post(b"john@example.test")
        await s.post(b"mary@example.test", reverse_path=b"")
        await until(lambda: len(s.ctx.errors) > 5)
        s.worker.planner.resolve = resolve
        await until(lambda: sum(name == "routed" for name, *_ in s.ctx.events) == 3)
        [report] = s.spool.take(Channel.SMTPC, 10)[0]
        assert b"The directory does not answer" in s.spool.blobs.read(report.rope)

    ctx = run(home, scenario)
    assert ctx.counters["dsn_total"] == 1


class Finds:
    """Everything is infected."""

    name = "finds"

    async def scan(self, content):
        return "Evil.A"


def test_the_postmaster_hears_of_what_is_deleted(home, monkeypatch):
    """The first at once, what comes within the hour in one message, the rest as the worker ends; of notices, of reports and of a setting that is off nothing."""
    sent = []

    async def scenario(s):
        append = s.spool.append

        async def seen(messages):
            sent.extend(b"".join(m.content) for m in messages if m.envelope.input_channel == Channel.MTA and b"ended or changed" in b"".join(m.content))
            return await append(messages)

        s.spool.append = seen
        await s.post(b"john@example.test", b"mary@example.test", reverse_path=b"x\r\n@evil.test")
        await until(lambda: sent)
        for _ in range(300):
            await s.post(b"mary@example.test")
        await s.post(b"john@example.test", channel=Channel.MTA, reverse_path=b"")
        await s.settled()
        assert len(sent) == 1

    def module(tell=True):
        return AntiVirus([Finds()], "delete", Absence("The virus scanner", "defer", {}, 1.0), "mx.test", tell)

    ctx = run(home, scenario, (module(),))
    first, last = sent
    assert b"deleted, virus Evil.A; from <x @evil.test> to <john@example.test>, <mary@example.test>" in first.replace(b"=\r\n", b"") and b"Subject: 1 messages" in first
    assert b"Subject: 300 messages" in last and last.count(b"Evil.A") == 200 and b"and 100 more" in last and b"MTA" not in last
    assert ctx.errors == [] and [detail["messages"] for name, _, detail in ctx.events if name == "notice-mailed"] == [1, 300]

    sent.clear()

    async def off(s):
        await s.post(b"john@example.test")
        await s.settled()

    run(home, off, (module(tell=False),))
    assert sent == []


def test_a_scanner_that_finds_a_virus_in_all_loses_nothing(home):
    """As set out of the box: put aside, each of them, for a person to let out."""

    async def scenario(s):
        for _ in range(20):
            await s.post(b"john@example.test", b"eve@other.test")
        await until(lambda: sum(name == "quarantined" for name, *_ in s.ctx.events) == 20)
        await s.settled()
        assert all(taken(s.spool, channel) == [] for channel in (INPUT, Channel.LOCAL, Channel.SMTPC))
        assert s.spool.index.counts()[INPUT, QUARANTINED] == 20

    ctx = run(home, scenario, (AntiVirus([Finds()], Antivirus().infected, Absence("The virus scanner", "defer", {}, 1.0), "mx.test"),))
    assert {detail["why"] for name, _, detail in ctx.events if name == "quarantined"} == {"virus Evil.A"} and ctx.errors == []


def test_the_postmaster_hears_of_attachments(home):
    """Of what was removed and of what was refused, if that is set."""
    from iems.attachment.rules import Rule
    from iems.preprocessor.modules.attachments import Attachments

    rules = [Rule("-", "*.exe", "strip"), Rule("-", "*.scr", "bounce")]
    mail = CONTENT.replace(b"Subject: hi\r\n", b"Subject: hi\r\nContent-Type: application/x; name=NAME\r\n")

    async def scenario(s):
        for name in (b"a.exe", b"b.scr", b"c.txt"):
            await s.post(b"john@example.test", content=mail.replace(b"NAME", name))
        await s.settled()
        await s.worker._notices.close()

    for tell in (True, False):
        ctx = run(home, scenario, (Attachments(lambda: rules, "strip", "mx.test", tell),))
        told = sum(detail["messages"] for name, _, detail in ctx.events if name == "notice-mailed")
        assert told == (2 if tell else 0) and ctx.errors == []
