"""What the verdict record of each recipient says, in the message and in the log; and rules that file into mailboxes of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from iems.bayes.filter import Score
from iems.directory.bayeschoice import BayesChoice
from iems.directory.spamcontrol import Action, Allowed, SpamControl
from iems.lmda.delivery import Planner, Policy
from iems.message.verdict import recorded
from iems.model import Envelope, Outcome, Recipient, Verdict, child_id
from iems.sieve.mailsort import Answer, MailSort, Rule, write
from iems.spool.items import Item
from iems.store.rows import Mailbox
from iems.store.scripts import Scripts
from iems.store.wire import Delivered, Delivery
from tests.unit.lmda.test_rules import HEAD, account, deliver, mail, with_script
from tests.unit.lmda.test_worker import FakeContext, FakeSpool, FakeStore, outcomes

SUMMARY = (b"(ENVELOPE)", b"(STRUCTURE)")
TAG = Verdict("dnsbl", "bl.test", "127.0.0.2")
ASKED = (Verdict("dnsbl", "b2.test", "not listed"), Verdict("antivirus", "", "clamd: clean"))
ANSWERS = "dnsbl=bl.test (127.0.0.2); dnsbl=b2.test (not listed); antivirus (clamd: clean)"


def lines_of(delivery: Delivery) -> str:
    front = delivery.rope[0]
    assert isinstance(front, bytes)
    return recorded(front + b"Received: x\r\n")


def test_each_recipient_has_his_own() -> None:
    people = {
        "ignores@x": account(1, filtered=False, spam=SpamControl(Action("ignore"))),
        "files@x": account(2, filtered=False, spam=SpamControl(None, {"bl.test": Action("file", "Spam")})),
        "bounces@x": account(3, filtered=False, spam=SpamControl(Action("bounce"))),
        "discards@x": account(4, filtered=False, spam=SpamControl(Action("discard"))),
        "allows@x": account(5, filtered=False, spam=SpamControl(Action("discard"), allow=(Allowed("address", "ann@far.test"),)), bayes=BayesChoice()),
        "judges@x": account(6, filtered=False, bayes=BayesChoice()),
        "also-files@x": account(2, filtered=False, spam=SpamControl(None, {"bl.test": Action("file", "Spam")})),
    }
    planner = Planner(people.get, Policy(), lambda item: 0)
    envelope = Envelope(1, b"ann@far.test", [Recipient(name.encode()) for name in people], 10**18, verdicts=(TAG,), asked=ASKED)
    batch: list[Delivery] = []
    work = planner.plan(Item(b"i" * 16, 32, "", envelope, [b"x"]), SUMMARY, 1, batch, HEAD, {6: Score(0.93, "spam", [])})
    assert {name.decode().partition("@")[0]: text.removeprefix(ANSWERS + "; ") for name, text in work.records.items()} == {
        "ignores": "spamcontrol=ignore (all tags); to=INBOX",
        "files": "spamcontrol=file=Spam (zone bl.test); to=Spam",
        "bounces": "spamcontrol=bounce (all tags); to (refused)",
        "discards": "spamcontrol=discard (all tags); to (discarded)",
        "allows": "spamcontrol=ignore (white list); to=INBOX",
        "judges": "spamcontrol=ignore (site); bayes=spam (0.9300, limits 0.35 0.65, action file=Spam); to=Spam",
        "also-files": "spamcontrol=file=Spam (zone bl.test); to=Spam",
    }
    assert [lines_of(delivery) for delivery in batch] == [work.records[name.encode()] for name in people if name.split("@")[0] not in ("bounces", "also-files")]


def test_mail_nobody_asked_about_says_so_in_few_octets() -> None:
    people = {"a@x": account(1, filtered=False)}
    batch: list[Delivery] = []
    work = Planner(people.get, Policy(), lambda item: 0).plan(
        Item(b"i" * 16, 32, "", Envelope(1, b"s@x", [Recipient(b"a@x")], 10**18), [b"x"]), SUMMARY, 1, batch
    )
    assert lines_of(batch[0]) == "asked=nothing; to=INBOX" and not work.records


def test_rules_that_acted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rules = [Rule("subject", "hello", "copy", "Copies & more", True), Rule("from", "ann", "forward", "b@else.test", True), Rule("from", "far", "move", "Far")]
    script = write(MailSort(rules, Answer("away", "I am away")))

    async def test(ctx: FakeContext, spool: FakeSpool, store: FakeStore, scripts: Scripts) -> None:
        told: list[tuple[str, Any]] = []
        ctx.log.event = lambda name, id=None, recipient=None, **detail: told.append((name, detail.get("verdict")))
        scripts.put("mailsort", script, activate=True)
        item = mail(HEAD + b"\r\n")
        item.envelope.asked = ASKED
        await deliver(ctx, spool, item)
        [delivery] = store.delivered
        record = lines_of(delivery)
        assert record == (
            "dnsbl=b2.test (not listed); antivirus (clamd: clean); rule=mailsort:vacation (vacation); rule=mailsort:1 (fileinto); rule=mailsort:2 (redirect); "
            "rule=mailsort:3 (fileinto); to=Copies%20&%20more; to=Far; to=ann@far.test (vacation); to=b@else.test (forwarded)"
        )
        assert [said for name, said in told if name == "delivered"] == [record]
        [sent] = [message for message in spool.messages if message.envelope.reverse_path]
        assert item.envelope.asked == sent.envelope.asked, "who gets the forward has the same record of checks"

        scripts.put("own", 'require "reject";\r\nif header :contains "subject" "no" {\r\n  reject "x";\r\n}\r\nelsif header :is "subject" "drop" {\r\n discard; }', activate=True)
        await deliver(ctx, spool, mail(b"Subject: no\r\n\r\n", number=2), mail(b"Subject: drop\r\n\r\n", number=3), mail(b"Subject: x\r\n\r\n", number=4))
        assert [said for name, said in told if name in ("failed", "discarded", "delivered")][1:] == [
            "asked=nothing; rule=own:3 (reject); to (refused)", "asked=nothing; rule=own:6 (discard); to (discarded)", "asked=nothing; to=INBOX",
        ]  # fmt: skip
        assert lines_of(store.delivered[1]).endswith("to (discarded)") and lines_of(store.delivered[2]) == "asked=nothing; to=INBOX"

    with_script(monkeypatch, tmp_path, "keep;", test)


SHARED = 'require ["fileinto","imap4flags"]; setflag ["\\\\Seen","\\\\Flagged"]; fileinto "Other Users/o@x/Team";'


class OthersReader:
    """Mailbox Team of account 9, which is shared by the list `rights`."""

    def __init__(self, rights: dict[str, tuple[int, str]]) -> None:
        self.rights = rights

    def mailbox(self, number: int, name: str) -> Mailbox | None:
        return Mailbox(id=5, name="Team") if (number, name) == (9, "Team") else None

    def mailboxes(self, number: int) -> list[Mailbox]:
        return []

    def acl(self, number: int, mailbox_id: int) -> dict[str, tuple[int, str]]:
        return self.rights

    def close(self) -> None:
        pass


@pytest.mark.parametrize("rights", ["lrswi", "lrip", "p", "lrs", ""])
def test_into_a_mailbox_of_somebody_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rights: str) -> None:
    owner = account(9, address="o@x", partition=3, quota_octets=77, filtered=False)
    monkeypatch.setattr("iems.lmda.rules.Reader", lambda path: OthersReader({"me@x": (7, rights)} if rights else {"z@x": (8, "lrswip")}))

    async def test(ctx: FakeContext, spool: FakeSpool, store: FakeStore, scripts: Scripts) -> None:
        await deliver(ctx, spool, mail(HEAD + b"\r\n"))
        [delivery] = store.delivered
        assert outcomes(spool.settled) == {1: [Outcome.DELIVERED]}
        if "i" in rights or "p" in rights:
            assert (delivery.account, delivery.partition, delivery.quota_octets, delivery.mailbox, delivery.create) == (9, 3, 77, "Team", False)
            assert delivery.flags == [flag for flag, right in (("\\Seen", "s"), ("\\Flagged", "w")) if right in rights]
            assert delivery.origin == child_id((1).to_bytes(16, "big"), b"shared\x007\x005"), "not what the owner himself would get"
            assert lines_of(delivery).endswith("to=Other%20Users/o@x/Team")
        else:
            assert (delivery.account, delivery.mailbox) == (7, "INBOX") and ("not-shared", (1).to_bytes(16, "big"), b"me@x") in ctx.events
            assert "(no right to Other Users/o@x/Team); to=INBOX" in lines_of(delivery)

    known = {"o@x": owner}
    with_script(monkeypatch, tmp_path, SHARED, _knowing(test, known))


def _knowing(test: Any, known: dict[str, Any]) -> Any:
    """The test with more accounts in the directory."""

    async def inner(ctx: FakeContext, spool: FakeSpool, store: FakeStore, scripts: Scripts) -> None:
        directory = ctx.directory  # type: ignore[attr-defined]
        before = directory.account
        directory.account = lambda address: known.get(address) or before(address)
        await test(ctx, spool, store, scripts)

    return inner


class Refusing(FakeStore):
    """Takes nothing for the owner."""


@pytest.mark.parametrize("status", ["overquota", "nomailbox", "error"])
@pytest.mark.parametrize("script", [SHARED, SHARED + " keep;"])
def test_what_the_owner_s_mailbox_does_not_take_stays_in_the_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: str, script: str) -> None:
    monkeypatch.setattr("iems.lmda.rules.Reader", lambda path: OthersReader({"me@x": (7, "i")}))

    async def test(ctx: FakeContext, spool: FakeSpool, store: FakeStore, scripts: Scripts) -> None:
        async def deliver_to(batch: list[Delivery]) -> list[Delivered]:
            store.delivered += batch
            return [Delivered(status if delivery.account == 9 else "ok") for delivery in batch]

        store.deliver = deliver_to  # type: ignore[method-assign]
        await deliver(ctx, spool, mail(HEAD + b"\r\n"))
        assert sorted((delivery.account, delivery.mailbox) for delivery in store.delivered) == [(7, "INBOX"), (9, "Team")]
        assert outcomes(spool.settled) == {1: [Outcome.DELIVERED]} and ("not-shared", (1).to_bytes(16, "big"), b"me@x") in ctx.events

    with_script(monkeypatch, tmp_path, script, _knowing(test, {"o@x": account(9, address="o@x", filtered=False)}))


def test_a_copy_beside_a_deferred_delivery_is_not_forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("iems.lmda.rules.Reader", lambda path: OthersReader({"me@x": (7, "i")}))

    async def test(ctx: FakeContext, spool: FakeSpool, store: FakeStore, scripts: Scripts) -> None:
        async def deliver_to(batch: list[Delivery]) -> list[Delivered]:
            return [Delivered("ok" if delivery.account == 9 else "overquota") for delivery in batch]

        store.deliver = deliver_to  # type: ignore[method-assign]
        await deliver(ctx, spool, mail(HEAD + b"\r\n"))
        assert outcomes(spool.settled) == {1: [Outcome.DEFERRED]}
        worker: Any = ctx.worker  # type: ignore[attr-defined]
        assert worker._settled == [], "the same copy would come a second time"

    with_script(monkeypatch, tmp_path, SHARED + " keep;", _knowing(test, {"o@x": account(9, address="o@x", filtered=False)}))
