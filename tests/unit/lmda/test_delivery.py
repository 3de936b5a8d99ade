"""What each recipient of a local item gets, and what becomes of him."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from iems.errors import DirectoryUnavailable
from iems.lmda.delivery import Planner, Policy, delay_s, fallback_summary, header_lines
from iems.model import Channel, Envelope, Extent, Outcome, Recipient
from iems.spool.items import Item
from iems.store.wire import Delivered, Delivery

SUMMARY = (b"(ENVELOPE)", b"(STRUCTURE)")


def account(number: int, **fields: Any) -> Any:
    return SimpleNamespace(
        **{"number": number, "enabled": True, "may_receive": True, "quota_octets": None, "domain": "x", "domain_quota_octets": None, "partition": 0, "filtered": False, "bayes": None, **fields}
    )


ACCOUNTS = {
    "a@x": account(1),
    "alias-of-a@x": account(1),
    "b@x": account(2, quota_octets=1000, partition=3),
    "off@x": account(3, enabled=False),
    "closed@x": account(4, may_receive=False),
}


def look_up(address: str) -> Any:
    if address == "away@x":
        raise DirectoryUnavailable("away")
    return ACCOUNTS.get(address)


def item(*addresses: bytes, attempts: int = 0) -> Item:
    envelope = Envelope(1, b"from@y", [Recipient(address) for address in addresses], 1_700_000_000_123_456_789)
    return Item(b"i" * 16, Channel.LOCAL, "", envelope, [b"Received: x\r\n", Extent(5, 64, 1000)], attempts)


def planner(age_s: float = 0, **policy: Any) -> Planner:
    return Planner(look_up, Policy(**policy), lambda item: age_s)


def test_each_recipient_gets_his_own_lines_and_one_copy() -> None:
    batch: list[Delivery] = []
    work = planner().plan(item(b"a@x", b"alias-of-a@x", b"b@x", b"no@x", b"off@x", b"closed@x", b"away@x"), SUMMARY, 1013, batch)
    assert [(d.account, d.partition, d.quota_octets, d.origin) for d in batch] == [
        (1, 0, None, b"i" * 16), (2, 3, 1000, b"i" * 16),
    ]
    lines = b"Return-Path: <from@y>\r\nDelivered-To: b@x\r\nX-IEMS-Verdict: asked=nothing; to=INBOX\r\n"
    assert batch[1].rope == [lines, b"Received: x\r\n", Extent(5, 64, 1000)]
    assert batch[1].size == len(lines) + 13 + 1000 and batch[1].internaldate_s == 1_700_000_000
    results = planner().answer(work, [Delivered("ok", 1, 1), Delivered("duplicate", 1, 1)])
    assert [r.outcome for r in results] == [Outcome.DELIVERED] * 3 + [Outcome.FAILED] * 3 + [Outcome.DEFERRED]
    assert [r.reply.status for r in results if r.reply][3:] == ["5.1.1", "5.2.1", "5.2.1", "4.3.0"]
    assert [r.recipient.address for r in results] == [r.address for r in work.item.envelope.recipients]


@pytest.mark.parametrize(
    ("policy", "age_s", "outcome", "status"),
    [
        ("defer", 0, Outcome.DEFERRED, "4.2.2"),
        ("defer", 500_000, Outcome.FAILED, "5.2.2"),
        ("fail", 0, Outcome.FAILED, "5.2.2"),
    ],
)
def test_full_mailbox(policy: str, age_s: float, outcome: Outcome, status: str) -> None:
    plan = planner(age_s, over_quota=policy)
    batch: list[Delivery] = []
    work = plan.plan(item(b"b@x"), SUMMARY, 1013, batch)
    [result] = plan.answer(work, [Delivered("overquota")])
    assert result.reply and (result.outcome, result.reply.status) == (outcome, status)


def test_faults_of_ours_are_tried_again_until_the_message_is_too_old() -> None:
    for age_s, outcome in ((10, Outcome.DEFERRED), (432_000, Outcome.FAILED)):
        plan = planner(age_s)
        batch: list[Delivery] = []
        unreadable = plan.answer(plan.plan(item(b"a@x"), None, 1013, batch), [])
        assert not batch and unreadable[0].outcome == outcome
        work = plan.plan(item(b"a@x", attempts=3), SUMMARY, 1013, batch)
        [result] = plan.answer(work, [Delivered("error", text="x")])
        assert result.outcome == outcome
        if outcome == Outcome.DEFERRED:
            assert result.next_attempt_s == 480


def test_delays_double_to_a_limit() -> None:
    assert [delay_s(Policy(), n) for n in (0, 1, 5, 6, 10_000)] == [60, 120, 1920, 3600, 3600]


def test_line_ends_in_an_address_make_no_header() -> None:
    assert header_lines(b"", b"a@x") == b"Return-Path: <>\r\nDelivered-To: a@x\r\n"
    assert header_lines(b"a\r\nX: y", b"b\nZ: z") == b"Return-Path: <>\r\nDelivered-To: \r\n"


def test_a_summary_is_always_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import iems.lmda.delivery as module

    def broken(_: bytes) -> None:
        raise RuntimeError("poison")

    monkeypatch.setattr(module, "summarize", broken)
    found, error = module.summary(b"abc")
    assert found == fallback_summary(3) and str(error) == "poison"
