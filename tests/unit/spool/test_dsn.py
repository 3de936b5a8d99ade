"""Delivery status notifications: their fields, who is told, and that nothing a peer wrote becomes a line of its own."""

import email
import email.policy
import random
from dataclasses import dataclass, field

import pytest

from iems.model import Channel, Envelope, Notify, Outcome, Recipient, Reply, Result
from iems.spool import dsn

NOW = 1_800_000_000 * 10**9
HEAD = b"From: <ann@example.test>\r\nMessage-ID: <one@example.test>\r\nSubject: hello\r\n\r\nbody\r\n"


@dataclass
class Item:
    """The attributes of a spool item that a notification reads."""

    id: bytes = bytes(range(16))
    channel: int = Channel.SMTPC
    destination: str = "example.net"
    envelope: Envelope = None
    rope: list = field(default_factory=lambda: [HEAD])


def make(recipients, kind="failed", *, head=HEAD, reply=Reply(550, 1, 1, "no such user"), remote=None, outcome=None, **env):
    env = {"input_channel": Channel.SMTPD, "reverse_path": b"ann@Example.test", "received_ns": NOW - 10**12, **env}
    item = Item(envelope=Envelope(recipients=recipients, **env), rope=[head])
    outcome = outcome or {"failed": Outcome.FAILED, "delayed": Outcome.DEFERRED, "relayed": Outcome.RELAYED}[kind]
    results = [Result(r, outcome, reply) for r in recipients]
    return dsn.compose(
        item, results, kind, hostname="mx.example.test", postmaster="postmaster@example.test",
        content_head=head, now_ns=NOW, remote=remote, retry_until_ns=NOW + 10**14,
    )


def parsed(made):
    raw = b"".join(made[2])
    assert b"\r" not in raw.replace(b"\r\n", b"") and b"\n" not in raw.replace(b"\r\n", b"")
    assert max(map(len, raw.split(b"\r\n"))) <= 998
    return email.message_from_bytes(raw, policy=email.policy.default)


def groups(message):
    """The header groups of the delivery-status part: first the message's, then one per recipient."""
    return message.get_payload()[1].get_payload()


def test_failed():
    made = make([Recipient(b"bob@example.net", orcpt=b"rfc822;Bob+2Bx@example.net")], envid=b"QQ+2B1",
                remote={b"bob@example.net": "mx1.example.net"})
    message_id, envelope, _ = made
    assert envelope.reverse_path == b"" and envelope.input_channel == Channel.MTA
    assert [r.address for r in envelope.recipients] == [b"ann@example.test"]
    assert envelope.recipients[0].original == b"ann@Example.test"
    assert envelope.parent == bytes(range(16)) and envelope.size == sum(map(len, made[2])) and envelope.dot_free
    assert message_id[:6] == bytes(range(6))
    message = parsed(made)
    assert message.get_content_type() == "multipart/report" and message["Auto-Submitted"] == "auto-replied"
    assert message["In-Reply-To"] == "<one@example.test>"
    assert [p.get_content_type() for p in message.get_payload()] == [
        "text/plain", "message/delivery-status", "message/rfc822"]
    whole, one = groups(message)
    assert whole["Original-Envelope-Id"] == "QQ+1" and whole["Reporting-MTA"] == "dns; mx.example.test"
    assert one["Original-Recipient"] == "rfc822; Bob+x@example.net"
    assert one["Final-Recipient"] == "rfc822; bob@example.net"
    assert (one["Action"], one["Status"], one["Remote-MTA"]) == ("failed", "5.1.1", "dns; mx1.example.net")
    assert one["Diagnostic-Code"] == "smtp; 550 5.1.1 no such user"
    assert message.get_payload()[2].get_payload()[0]["Subject"] == "hello"
    assert b"".join(made[2]).endswith(HEAD + b"\r\n" + b"--" + message.get_boundary().encode() + b"--\r\n")


def test_the_same_cause_makes_the_same_message():
    one, two = (make([Recipient(b"bob@example.net")]) for _ in range(2))
    assert one == two
    assert make([Recipient(b"eve@example.net")])[0] != one[0]
    assert make([Recipient(b"bob@example.net")], "delayed", reply=Reply(451, 4, 1, "x"))[0] != one[0]


@pytest.mark.parametrize(
    ("notify", "told"),
    [
        (0, {"failed", "delayed"}),
        (Notify.NEVER, set()),
        (Notify.FAILURE, {"failed"}),
        (Notify.DELAY, {"delayed"}),
        (Notify.SUCCESS, {"relayed"}),
        (Notify.SUCCESS | Notify.FAILURE, {"relayed", "failed"}),
    ],
)
def test_notify(notify, told):
    assert {k for k in ("failed", "delayed", "relayed") if make([Recipient(b"b@example.net", notify=notify)], k)} == told


def test_none_for_the_null_reverse_path():
    assert make([Recipient(b"b@example.net")], reverse_path=b"") is None


def test_the_postmaster_hears_of_a_notice_of_ours_that_failed():
    item = Item(envelope=Envelope(Channel.MTA, b"", [Recipient(b"gone@example.net")], NOW, parent=b"p" * 16))
    given = {"hostname": "h.test", "postmaster": "postmaster@h.test", "content_head": HEAD, "now_ns": NOW, "double_bounces": True}
    results = [Result(item.envelope.recipients[0], Outcome.FAILED, Reply(550, 1, 1, "no such user"))]
    made = dsn.compose(item, results, "failed", **given)
    envelope = made[1]
    assert envelope.reverse_path == b"" and [r.address for r in envelope.recipients] == [b"postmaster@h.test"]
    message = parsed(made)
    assert message["To"] == "postmaster@h.test" and "double bounce" in message["Subject"]
    assert groups(message)[1]["Final-Recipient"] == "rfc822; gone@example.net" and groups(message)[1]["Action"] == "failed"
    assert dsn.heard(item.envelope, item.envelope.recipients[0], True)
    # It ends there, even if the postmaster has no mailbox; and only notices of ours are told of, and only failures.
    again = Item(envelope=envelope)
    failed = [Result(envelope.recipients[0], Outcome.FAILED, None)]
    assert dsn.compose(again, failed, "failed", **given) is None
    assert not dsn.heard(envelope, envelope.recipients[0], True)
    assert dsn.compose(item, [Result(results[0].recipient, Outcome.DEFERRED)], "delayed", **given) is None
    item.envelope.input_channel = Channel.SMTPD
    assert dsn.compose(item, results, "failed", **given) is None


def test_one_message_names_all_failed_recipients_and_no_other():
    recipients = [Recipient(b"r%d@example.net" % n) for n in range(300)]
    item = Item(envelope=Envelope(Channel.SMTPD, b"a@example.test", recipients, NOW))
    results = [Result(r, Outcome.RELAYED if n % 3 else Outcome.FAILED, None) for n, r in enumerate(recipients)]
    made = dsn.compose(item, results, "failed", hostname="h.test", postmaster="p@h.test", content_head=HEAD, now_ns=NOW)
    addresses = [g["Final-Recipient"] for g in groups(parsed(made))[1:]]
    assert addresses == [f"rfc822; r{n}@example.net" for n in range(0, 300, 3)]
    assert [g["Status"] for g in groups(parsed(made))[1:]] == ["5.0.0"] * 100


def test_a_transient_reply_that_ran_out_of_time_has_class_5():
    status = groups(parsed(make([Recipient(b"b@example.net")], reply=Reply(451, 4, 1, "timeout"))))[1]
    assert status["Status"] == "5.4.1" and status["Diagnostic-Code"] == "x-iems; 451 4.4.1 timeout"


def test_delayed_returns_the_header_only():
    made = make([Recipient(b"b@example.net")], "delayed", reply=Reply(451, 4, 1, "busy"), ret=1)
    message = parsed(made)
    assert message.get_payload()[2].get_content_type() == "text/rfc822-headers"
    assert b"body" not in made[2][-2]
    status = groups(message)[1]
    assert status["Action"] == "delayed" and status["Status"] == "4.4.1" and status["Will-Retry-Until"]


@pytest.mark.parametrize("change", [{"ret": 2}, {"body": 2}])
def test_header_only_when_asked_or_binary(change):
    message = parsed(make([Recipient(b"b@example.net")], **change))
    assert message.get_payload()[2].get_content_type() == "text/rfc822-headers"


def test_a_long_message_comes_back_as_header():
    item = Item(envelope=Envelope(Channel.SMTPD, b"a@example.test", [Recipient(b"b@example.net")], NOW),
                rope=[HEAD, b"x" * 100_000])
    made = dsn.compose(item, [Result(item.envelope.recipients[0], Outcome.FAILED)], "failed", hostname="h.test",
                       postmaster="p@h.test", content_head=HEAD, now_ns=NOW)
    assert parsed(made).get_payload()[2].get_content_type() == "text/rfc822-headers"


def test_a_header_without_end_is_cut_at_a_line():
    made = make([Recipient(b"b@example.net")], head=b"A: b\r\n" + b"X: y\r\n" * 20_000, ret=2)
    assert made[2][-2].endswith(b"X: y\r\n") and len(made[2][-2]) <= dsn.HEADER_OCTETS


def test_utf8_addresses_take_the_types_of_rfc_6533():
    address = "грета@пример.test".encode()
    made = make([Recipient(address, orcpt=rb"utf-8;\x{433}rete@example.net")], smtputf8=True)
    assert made[1].smtputf8 and made[1].body == 1
    raw = b"".join(made[2])
    for kind in (b"message/global-delivery-status", b"message/global\r\n", b"Final-Recipient: utf-8; " + address):
        assert kind in raw
    assert "Original-Recipient: utf-8; гrete@example.net".encode() in raw
    plain = make([Recipient(b"b@example.net")], smtputf8=True)
    assert not plain[1].smtputf8 and b"message/rfc822" in b"".join(plain[2])


def test_eight_bit_replies_stay_out_of_an_ascii_report():
    made = make([Recipient(b"b@example.net")], reply=Reply(550, 1, 1, "неизвестен"))
    assert b"".join(made[2]).isascii() and made[1].body == 0
    eight = make([Recipient(b"b@example.net")], head=HEAD + b"\xff\xfe\r\n")
    assert eight[1].body == 1 and parsed(eight)["Content-Transfer-Encoding"] == "8bit"


def test_nothing_can_be_injected():
    rng = random.Random(3464)
    evil = "\r\nBcc: x@evil.test\r\n\r\n--=_\r\n.\r\nMAIL FROM:<x>\n\x85\u2028X-A: b\r\0"
    for _ in range(300):
        def some():
            start = rng.randrange(len(evil))
            return evil[start:start + rng.randrange(1, 40)]
        recipient = Recipient((some() + "@example.net").encode(), orcpt=some().encode(), original=some().encode())
        made = make([recipient], reply=Reply(550, 1, 1, some() * 30), reverse_path=("a" + some()).encode(),
                    envid=some().encode(), remote={recipient.address: some()},
                    head=b"Subject: x\r\n\r\n" + some().encode())
        raw = b"".join(made[2])
        message = parsed(made)
        head = raw.partition(b"\r\n\r\n")[0]
        names = [line.split(b":")[0] for line in head.split(b"\r\n") if line[:1] not in b" \t"]
        assert names == [b"From", b"To", b"Subject", b"Date", b"Message-ID", b"Auto-Submitted", b"MIME-Version",
                         b"Content-Type", b"Content-Transfer-Encoding"]
        assert len(message.get_payload()) == 3
        status = raw.split(b"--" + message.get_boundary().encode())[2]
        for line in status.split(b"\r\n"):
            assert not line or line[:1] in b" " or line.split(b":")[0] in {
                b"Content-Type", b"Content-Transfer-Encoding", b"Original-Envelope-Id", b"Reporting-MTA", b"Arrival-Date",
                b"Original-Recipient", b"Final-Recipient", b"Action", b"Status", b"Remote-MTA", b"Diagnostic-Code"}


def test_bare_line_ends_and_nul_are_never_returned_as_they_are():
    made = make([Recipient(b"b@example.net")], head=b"Subject: a\nEvil: b\rc\0\r\n\r\nx\n.\n")
    assert parsed(made).get_payload()[2].get_content_type() == "text/rfc822-headers"


def test_dot_free_is_told_truly():
    assert not make([Recipient(b"b@example.net")], head=b"A: b\r\n\r\n.\r\n")[1].dot_free


def test_folding_keeps_the_words():
    rng = random.Random(822)
    for _ in range(2000):
        words = ["x" * rng.choice([1, 5, 80, 400, 2000]) for _ in range(rng.randrange(1, 8))]
        line = ("Diagnostic-Code: " + " ".join(words)).encode()
        folded = dsn._fold(line)
        assert folded.endswith(b"\r\n") and max(map(len, folded.split(b"\r\n"))) <= 998
        assert folded.replace(b"\r\n", b"").replace(b" ", b"") == line.replace(b" ", b"")
        assert all(part.strip() for part in folded[:-2].split(b"\r\n"))
