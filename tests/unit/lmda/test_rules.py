"""What scripts of recipients do at delivery: places, forwards, rejections, vacation answers and who gets none."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from iems.directory.spamcontrol import Action, Allowed, SpamControl
from iems.lmda import answered
from iems.lmda.replies import answer, no_answer
from iems.model import Channel, Envelope, Notify, Outcome, Recipient, Verdict
from iems.sieve.actions import Vacation
from iems.sieve.message import ContentMessage
from iems.spool.items import Item, Message
from iems.store.scripts import Scripts, folder
from iems.store.wire import Delivered, Place
from tests.unit.lmda.test_worker import FakeContext, FakeSpool, FakeStore, outcomes, run, until

DAY = 86_400
HEAD = b"From: Ann <ann@far.test>\r\nTo: me@x, other@x\r\nSubject: hello\r\nMessage-ID: <1@far.test>\r\n"


def account(number: int, **more: Any) -> Any:
    return SimpleNamespace(
        **{"number": number, "address": f"u{number}@x", "enabled": True, "may_receive": True, "quota_octets": None, "domain": "x", "domain_quota_octets": None, "partition": 0,
           "filtered": True, "spam": None, "bayes": None, "shared": False} | more
    )  # fmt: skip


def mail(content: bytes, *addresses: bytes, number: int = 1, reverse_path: bytes = b"ann@far.test", notify: int = 0) -> Item:
    envelope = Envelope(1, reverse_path, [Recipient(a, b"me@x", notify=notify) for a in addresses or (b"me@x",)], 10**18)
    return Item(number.to_bytes(16, "big"), Channel.LOCAL, "", envelope, [content])


Test = Callable[[FakeContext, FakeSpool, FakeStore, Scripts], Awaitable[None]]


def with_script(monkeypatch: pytest.MonkeyPatch, path: Path, script: str, test: Test, **fields: Any) -> None:
    me = account(7, address="me@x", **fields)
    scripts = Scripts(folder(path, "me@x", 7))
    scripts.put("s", script, activate=True)

    async def inner(ctx: FakeContext, worker: Any, spool: FakeSpool, store: FakeStore) -> None:
        ctx.config.store_path = lambda home: path
        directory = worker._directory
        directory.account = lambda address: me if address in ("me@x", "alias@x") else account(8, filtered=False) if address == "plain@x" else None
        directory.detail_separator = lambda: "+"
        worker._reader_blobs = SimpleNamespace(read=lambda rope: b"".join(rope), close=lambda: None)
        ctx.me, ctx.directory, ctx.worker = me, directory, worker  # type: ignore[attr-defined]
        await test(ctx, spool, store, scripts)

    run(monkeypatch, inner)


def worker_account(ctx: FakeContext) -> Any:
    return ctx.me  # type: ignore[attr-defined]


async def deliver(ctx: FakeContext, spool: FakeSpool, *items: Item) -> None:
    # Each item settles by itself or with the messages it made.
    done = len(spool.settled) + len(spool.messages)
    spool.queue = list(items)
    ctx.wake()
    await until(lambda: len(spool.settled) + len(spool.messages) >= done + len(items))


def octets(message: Message) -> bytes:
    return b"".join(piece for piece in message.content if isinstance(piece, bytes))


def test_places_flags_and_one_script_for_two_addresses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = 'require ["fileinto","copy","imap4flags","mailbox"]; setflag "\\\\Seen"; fileinto :copy :create "A"; fileinto "a/b"; fileinto :copy "A";'

    async def test(ctx: FakeContext, spool: FakeSpool, store: FakeStore, scripts: Scripts) -> None:
        await deliver(ctx, spool, mail(HEAD + b"\r\n", b"plain@x", b"me@x", b"alias@x", b"no@x", reverse_path=b""))
        plain, mine = sorted(store.delivered, key=lambda d: -d.account)
        assert (plain.account, plain.mailbox, plain.also, plain.or_inbox) == (8, "INBOX", [], False)
        assert (mine.mailbox, mine.flags, mine.create, mine.or_inbox) == ("A", ["\\Seen"], True, True)
        assert mine.also == [Place("a/b", ["\\Seen"])]
        assert outcomes(spool.settled) == {1: [Outcome.DELIVERED, Outcome.DELIVERED, Outcome.DELIVERED, Outcome.FAILED]}

    with_script(monkeypatch, tmp_path, script, test)


def test_discard_and_reject(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = 'require "reject"; if header :contains "subject" "bad" { reject "Nö, not\r\nhere"; } else { discard; }'

    async def test(ctx: FakeContext, spool: FakeSpool, store: FakeStore, scripts: Scripts) -> None:
        await deliver(ctx, spool, mail(HEAD + b"\r\n"))
        assert outcomes(spool.settled) == {1: [Outcome.DISCARDED]}
        assert [d.discard for d in store.delivered] == [True]  # into the trash: it can be brought back
        assert ctx.counts["messages_discarded_total"] == 1
        await deliver(ctx, spool, mail(b"Subject: bad\r\n\r\n", number=2), mail(b"Subject: bad\r\n\r\n", number=3, reverse_path=b""))
        [report] = spool.messages
        assert outcomes(report.settled) == {2: [Outcome.FAILED]} and report.envelope.recipients[0].address == b"ann@far.test"
        parsed = email.message_from_bytes(octets(report), policy=email.policy.default)
        assert "Nö, not here" in parsed.get_payload(0).get_content()  # type: ignore[union-attr]
        assert outcomes(spool.settled)[3] == [Outcome.FAILED] and len(store.delivered) == 1  # no report about a report

    with_script(monkeypatch, tmp_path, script, test)


def test_a_copy_of_what_is_rejected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def test(ctx: FakeContext, spool: FakeSpool, store: FakeStore, scripts: Scripts) -> None:
        await deliver(ctx, spool, mail(HEAD + b"\r\n"))
        assert [d.mailbox for d in store.delivered] == ["A"] and outcomes(spool.messages[0].settled) == {1: [Outcome.FAILED]}

    with_script(monkeypatch, tmp_path, 'require ["fileinto","copy","reject"]; fileinto :copy "A"; reject "no";', test)


def test_spam_control_comes_first_and_scripts_see_its_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = (
        'require ["variables", "vnd.iems.variables", "fileinto", "vacation"]; vacation "x";'
        'if allof(string "${iems.verdict}" "spam", header "x-spam-status" "YES", header "delivered-to" "me@x") { if string :contains "${iems.tags}" "bl.test" { fileinto "Tagged"; } }'
    )

    async def test(ctx: FakeContext, spool: FakeSpool, store: FakeStore, scripts: Scripts) -> None:
        def tagged(number: int) -> Item:
            item = mail(HEAD + b"\r\n", b"me@x", b"alias@x", number=number)
            item.envelope.verdicts = (Verdict("dnsbl", "bl.test", "127.0.0.2"),)
            return item

        await deliver(ctx, spool, tagged(1))
        assert [(d.mailbox, d.also) for d in store.delivered] == [("Tagged", [])] and not spool.messages
        assert b"X-Spam-Status: YES" in store.delivered[0].rope[0]  # type: ignore[operator]
        me = worker_account(ctx)
        me.spam = SpamControl(Action("file", "Junk"))
        await deliver(ctx, spool, tagged(2))
        me.spam = SpamControl(Action("discard"))
        await deliver(ctx, spool, tagged(3))
        me.spam = SpamControl(Action("discard"), allow=(Allowed("address", "ann@far.test"),))
        await deliver(ctx, spool, tagged(4))
        assert [(d.mailbox, d.discard) for d in store.delivered[1:]] == [("Junk", False), ("INBOX", True), ("INBOX", False)]
        assert len(spool.messages) == 1 and outcomes(spool.settled)[3] == [Outcome.DISCARDED] * 2

    with_script(monkeypatch, tmp_path, script, test)


def test_redirect_keeps_path_and_content_and_ends_loops(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = 'redirect "boss@Far.test";'

    async def test(ctx: FakeContext, spool: FakeSpool, store: FakeStore, scripts: Scripts) -> None:
        await deliver(ctx, spool, mail(HEAD + b"\r\nbody", notify=Notify.NEVER), mail(HEAD + b"\r\nbody", number=2, reverse_path=b""))
        first, second = spool.messages
        assert outcomes(first.settled) == {1: [Outcome.EXPANDED]} and not store.delivered
        envelope = first.envelope
        assert (envelope.input_channel, envelope.reverse_path, envelope.parent) == (Channel.LOCALOUT, b"ann@far.test", first.settled[0].item.id)
        assert (envelope.recipients[0].address, envelope.recipients[0].notify) == (b"boss@far.test", Notify.NEVER)
        assert second.envelope.reverse_path == b""
        sent = octets(first)
        assert sent.startswith(b"Received: by mx.test (") and b"\r\nX-Loop: me@x\r\n" in sent and sent.endswith(HEAD + b"\r\nbody")
        spool.fail = 1  # the outcome can't be recorded: the step is done again, with the same id
        again = mail(HEAD + b"\r\nbody", number=1)
        await deliver(ctx, spool, again)
        assert spool.messages[2].id == first.id
        await deliver(ctx, spool, mail(sent, number=4))
        assert outcomes(spool.settled) == {4: [Outcome.DELIVERED]} and store.delivered[0].mailbox == "INBOX"

    with_script(monkeypatch, tmp_path, script, test)


def test_nothing_is_sent_for_mail_that_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = 'require ["copy","vacation"]; redirect :copy "boss@far.test"; vacation "away";'

    async def test(ctx: FakeContext, spool: FakeSpool, store: FakeStore, scripts: Scripts) -> None:
        status = ["overquota"]

        async def answers(batch: list[Any]) -> list[Delivered]:
            return [Delivered(status[0]) for _ in batch]

        store.deliver = answers  # type: ignore[method-assign, assignment]
        await deliver(ctx, spool, mail(HEAD + b"\r\n"))
        assert outcomes(spool.settled) == {1: [Outcome.DEFERRED]} and not spool.messages
        status[0] = "ok"
        await deliver(ctx, spool, mail(HEAD + b"\r\n"))
        assert [m.envelope.reverse_path for m in spool.messages] == [b"ann@far.test", b""]

    with_script(monkeypatch, tmp_path, script, test)


def test_a_script_that_fails_keeps_the_mail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def test(ctx: FakeContext, spool: FakeSpool, store: FakeStore, scripts: Scripts) -> None:
        await deliver(ctx, spool, mail(HEAD + b"\r\n"))
        assert store.delivered[0].mailbox == "INBOX" and any(name == "script-failed" for name, _, _ in ctx.events)
        (scripts.place / "scripts").write_bytes(b"\xc1garbage")
        await deliver(ctx, spool, mail(HEAD + b"\r\n", number=2))
        assert len(store.delivered) == 2
        (scripts.place / "scripts").unlink()
        (scripts.place / "scripts").mkdir()  # can't be read: later
        await deliver(ctx, spool, mail(HEAD + b"\r\n", number=3))
        assert outcomes(spool.settled)[3] == [Outcome.DEFERRED] and len(store.delivered) == 2

    with_script(monkeypatch, tmp_path, 'require "variables"; redirect "${x}"; discard;', test)


def test_vacation_once_in_seven_days(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def test(ctx: FakeContext, spool: FakeSpool, store: FakeStore, scripts: Scripts) -> None:
        await deliver(ctx, spool, mail(HEAD + b"References: <0@far.test>\r\n\r\n"))
        [message] = spool.messages
        assert outcomes(message.settled) == {1: [Outcome.DELIVERED]}
        parsed = email.message_from_bytes(octets(message), policy=email.policy.default)
        assert message.envelope.reverse_path == b"" and message.envelope.recipients[0].address == b"ann@far.test"
        assert message.envelope.recipients[0].notify == Notify.NEVER and message.envelope.input_channel == Channel.LOCALOUT
        assert (parsed["From"], parsed["To"], parsed["Subject"]) == ("me@x", "ann@far.test", "Auto: hello")
        assert parsed["Auto-Submitted"].startswith("auto-replied") and parsed["In-Reply-To"] == "<1@far.test>"
        assert parsed["References"].split() == ["<0@far.test>", "<1@far.test>"]
        assert parsed.get_content().strip() == "I'm away"
        await deliver(ctx, spool, mail(HEAD + b"\r\n", number=2), mail(HEAD + b"\r\n", number=3, reverse_path=b"ANN@far.test"))
        assert len(spool.messages) == 1
        await deliver(ctx, spool, mail(HEAD + b"\r\n", number=4, reverse_path=b"bob@far.test"))
        assert len(spool.messages) == 2
        # the same step again, after a crash before its outcome was recorded: the same answer with the same id
        await deliver(ctx, spool, mail(HEAD + b"\r\n", number=1))
        assert spool.messages[-1].id == message.id

    with_script(monkeypatch, tmp_path, 'require "vacation"; vacation "I\'m away";', test)


def why_not(head: bytes, reverse_path: str = "ann@far.test", *addresses: str) -> str:
    return no_answer(ContentMessage(head + b"\r\n", reverse_path, "me@x"), Vacation("x", DAY, addresses=addresses), ["me@x"], False)


@pytest.mark.parametrize(
    "line",
    [
        b"Auto-Submitted: auto-generated", b"Auto-Submitted: auto-replied (vacation)", b"List-Id: <a.b>", b"List-Unsubscribe: <mailto:x@y>",
        b"Precedence: bulk", b"Precedence: LIST", b"X-Auto-Response-Suppress: OOF, DR", b"Return-Path: <>", b"X-Spam-Status: Yes, score=9",
        b"X-Loop: ME@x", b"List-Post: NO",
    ],
)  # fmt: skip
def test_no_answer_to_machines_and_lists(line: bytes) -> None:
    assert why_not(HEAD) == ""
    assert why_not(HEAD + line + b"\r\n")


@pytest.mark.parametrize(
    "sender",
    ["", "MAILER-DAEMON@far.test", "owner-list@far.test", "list-request@far.test", "noreply@far.test", "no-reply+77@far.test", "do_not_reply@x.y",
     "postmaster@far.test", "list-bounces@far.test", "bounce-17=me=x@far.test", "listserv@far.test", "me@X", "SRS0=abc=de=f@far.test", "nobody"],
)  # fmt: skip
def test_no_answer_to_such_senders(sender: str) -> None:
    assert why_not(HEAD, sender)


def test_answers_only_what_is_addressed_to_the_user() -> None:
    assert why_not(b"To: all@x\r\n") == "the message is not addressed to the user"
    assert why_not(b"To: all@x\r\n", "ann@far.test", "ALL@x") == ""
    assert why_not(b"Resent-Cc: Me <ME@x>\r\n") == ""
    assert why_not(HEAD + b"Auto-Submitted: no\r\n") == ""
    assert no_answer(ContentMessage(HEAD, "a@b.c", "me@x"), Vacation("x", DAY), ["me@x"], True)
    for name in ("ann", "request", "ownership", "bounceman", "rooty"):
        assert why_not(HEAD, f"{name}@far.test") == ""


def test_nothing_of_a_message_breaks_out_of_an_answer() -> None:
    head = b"To: me@x\r\nSubject: =?utf-8?q?x=0D=0ABcc=3A_evil=40x?= \xff\r\nMessage-ID: <a@b>\r\nReferences: <c@d>\x00 evil\r\n"
    item = mail(head)
    message = ContentMessage(head + b"\r\n", "ann@far.test", "me@x")
    made = answer(item, message, Vacation("x\n.y\r\n", DAY, sender="Evil\u2028 <other@x>"), ["me@x"], "mx.test", 10**18)
    parsed = email.message_from_bytes(octets(made))
    assert parsed["Bcc"] is None and parsed["References"].split() == ["<c@d>", "<a@b>"] and "other@x" not in parsed["From"]
    made = answer(item, message, Vacation("Subject: evil\r\nContent-Type: text/html\r\nX: y\r\n\r\n<b>x</b>", DAY, mime=True), ["me@x"], "mx.test", 10**18)
    parsed = email.message_from_bytes(octets(made))
    assert parsed.get_all("X") is None and len(parsed.get_all("Subject")) == 1 and parsed.get_content_type() == "text/html"
    long = ContentMessage(b"To: me@x\r\nSubject: " + b"a" * 5000 + b"\r\n\r\n", "ann@far.test", "me@x")
    assert max(map(len, octets(answer(item, long, Vacation("x", DAY), ["me@x"], "mx.test", 10**18)).split(b"\r\n"))) < 998


def test_memory_of_answers(tmp_path: Path) -> None:
    a, b = answered.key_of("Ann@x", "h"), answered.key_of("ann@X", "other")
    one, two = b"1" * 16, b"2" * 16
    assert a == answered.key_of("ann@x", "h") != b
    assert answered.may_answer(tmp_path, a, 7 * DAY, 1000, one)
    assert answered.may_answer(tmp_path, a, 7 * DAY, 1001, one)  # the same step again
    assert not answered.may_answer(tmp_path, a, 7 * DAY, 7 * DAY, two)
    assert answered.may_answer(tmp_path, b, 7 * DAY, 1000, two)
    assert answered.may_answer(tmp_path, a, 7 * DAY, 7 * DAY + 1000, two)
    file = tmp_path / "answered"
    with file.open("ab") as torn:
        torn.write(b"half a record")
    assert not answered.may_answer(tmp_path, a, 7 * DAY, 7 * DAY + 2000, one)
    assert answered.may_answer(tmp_path, answered.key_of("c@x", ""), DAY, 7 * DAY + 2000, one)
    assert file.stat().st_size % 48 == 0
    size = file.stat().st_size
    for n in range(200):
        assert answered.may_answer(tmp_path, answered.key_of(f"{n}@x", ""), 60, 8 * DAY + n * 60, one)
    assert file.stat().st_size < size + 48 * 100  # old ones are left out
    assert [answered.may_answer(tmp_path, answered.key_of(f"z{n}@x", ""), DAY, 30 * DAY, one, most=3) for n in range(5)] == [True] * 3 + [False] * 2
