"""What clients may say, and what is made of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.api import wire
from iems.api.wire import Refused
from iems.model import Channel, Envelope, Notify, Outcome, Recipient
from iems.spool.items import Item


def request(**fields: Any) -> wire.Request:
    return wire.read(json.dumps({"op": "insert"} | fields).encode())


def item(*addresses: str) -> Item:
    recipients = [Recipient(a.encode(), a.encode()) for a in addresses]
    return Item(b"\1" * 16, Channel.CCMAIL, "PO", Envelope(Channel.SMTPD, b"s@x.test", recipients, 0), [b"abc"])


def test_an_envelope_is_what_was_said():
    made = wire.envelope(
        request(
            reverse_path="ann@one.test", ret="HDRS", envid="a+20b",
            recipients=["Bob@Two.Test", {"address": '"o d"@two.test', "notify": ["FAILURE", "DELAY"], "orcpt": "rfc822;x@y"}],
        ),
        Channel.CCOUT,
        7,
    )  # fmt: skip
    assert (made.reverse_path, made.ret, made.envid, made.received_ns) == (b"ann@one.test", 2, b"a+20b", 7)
    first, second = made.recipients
    assert (first.address, first.original) == (b"Bob@two.test", b"Bob@Two.Test")
    assert second.notify == Notify.FAILURE | Notify.DELAY and second.orcpt == b"rfc822;x@y"
    assert wire.envelope(request(recipients=["a@b.test"]), Channel.CCOUT, 0).reverse_path == b""
    assert wire.envelope(request(recipients=["ä@b.test"]), Channel.CCOUT, 0).smtputf8


@pytest.mark.parametrize(
    "fields",
    [
        {"recipients": []},
        {"recipients": ["a@b.test"] * 1001},
        {"recipients": ["<a@b.test>"]},
        {"recipients": ["a@b.test> NOTIFY=NEVER"]},
        {"recipients": ["@relay.test:a@b.test"]},
        {"recipients": ["a@b.test\r\nRCPT TO:<c@d.test>"]},
        {"recipients": ['"a\nb"@b.test']},
        {"recipients": ["no domain"]},
        {"recipients": ["a@b.test"], "reverse_path": "x\0@b.test"},
        {"recipients": ["a@b.test"], "envid": "a b"},
        {"recipients": ["a@b.test"], "envid": "a BODY=BINARYMIME"},
        {"recipients": [{"address": "a@b.test", "orcpt": "no type"}]},
        {"recipients": [{"address": "a@b.test", "notify": ["NEVER", "DELAY"]}]},
    ],
)
def test_bad_envelopes(fields):
    with pytest.raises(Refused) as caught:
        wire.envelope(request(**fields), Channel.CCOUT, 0)
    assert caught.value.error == "bad"


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b"null", b'{"op":"no"}', b'{"op":"take","octets":4}', b'{"op":"insert","octets":-1}', b'{"op":"take","limt":4}',
     b'{"op":"insert","octets":1e99}', b'{"op":"\xff"}', b"[" * 100_000],
)  # fmt: skip
def test_bad_lines(line):
    with pytest.raises(Refused):
        wire.read(line)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_line_is_read_or_refused(line):
    try:
        wire.read(line)
    except Refused as error:
        assert json.loads(wire.answer(None, wire.refusal(error)))["ok"] is False


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_no_address_grows_parameters(address, envid):
    try:
        made = wire.envelope(request(recipients=[address], envid=envid), Channel.CCOUT, 0)
    except Refused:
        return
    [recipient] = made.recipients
    assert recipient.original == address.encode() and recipient.notify == 0 and made.body == 0
    assert not any(ord(char) < 32 for char in address + envid)


def told(*entries: dict[str, Any]) -> list[wire.Told]:
    found = wire.read(json.dumps({"op": "ack", "results": list(entries)}).encode()).results
    assert found is not None
    return found


def test_results():
    one = item("a@p.test", "b@p.test", "c@p.test")
    assert [r.outcome for r in wire.results(one, None)] == [Outcome.DELIVERED] * 3
    found = wire.results(
        one,
        told(
            {"recipient": "c@p.test", "outcome": "deferred", "seconds": 9, "reply": "452 4.2.2 mailbox full"},
            {"recipient": "a@p.test", "outcome": "relayed", "reply": "250 OK"},
            {"recipient": "b@p.test", "outcome": "failed"},
        ),
    )
    assert [(r.recipient.address, r.outcome) for r in found] == [
        (b"c@p.test", Outcome.DEFERRED), (b"a@p.test", Outcome.RELAYED), (b"b@p.test", Outcome.FAILED),
    ]  # fmt: skip
    assert found[0].next_attempt_s == 9 and found[0].reply.status == "4.2.2"
    assert found[2].reply.code == 554


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [{"recipient": "x@p.test", "outcome": "delivered"}],
        [{"recipient": "a@p.test", "outcome": "delivered"}] * 2,
        [{"recipient": "a@p.test", "outcome": "failed", "reply": "451 4.0.0 later"}],
        [{"recipient": "a@p.test", "outcome": "failed", "reply": "550 4.0.0 mixed"}],
        [{"recipient": "a@p.test", "outcome": "failed", "reply": "550 5.0.0 x\r\nSubject: forged"}],
        [{"recipient": "a@p.test", "outcome": "deferred", "seconds": -1}],
    ],
)
def test_bad_results(entries):
    with pytest.raises(Refused):
        wire.results(item("a@p.test"), told(*entries))


def test_an_offer_can_be_written():
    found = wire.offer(item("a@p.test"), "1-1", 60.0, "2026-01-01T00:00:00.000Z")
    assert json.loads(wire.answer(None, {"items": [found]}))["items"][0]["recipients"][0]["address"] == "a@p.test"
