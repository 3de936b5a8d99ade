"""Carriers made and taken apart, signatures, and what becomes of a fetched mail."""

from __future__ import annotations

import email
import email.policy
import os
import quopri
import re

import pytest

from iems.bsmtp import carrier
from iems.bsmtp.batch import Batch, Entry, Limits, decode, encode
from iems.bsmtp.memory import KEEP_S, Memory
from iems.bsmtp.pickup import NoPlace, Taker, Trust, tail
from iems.directory.entries import Resolution
from iems.model import Channel, Recipient

NOW_S = 1_800_000_000
NOW_NS = NOW_S * 10**9
KEY = b"sixteen octets.."
CONTENT = b"Received: by one.test; now\r\nSubject: x\r\nReceived: from a\r\n\tby two.test; then\r\n\r\n.\r\n\xe9\r\n"


def written(*addresses: bytes, content: bytes = CONTENT) -> Batch:
    recipients = [Recipient(address) for address in addresses or (b"a@here.test", b"b@here.test")]
    return encode([Entry(b"s@out.test", recipients, content, 1)], b"mx.out.test")


def made(batch: Batch, key: bytes = b"", now_s: int = NOW_S, sender: str = "postmaster@out.test") -> bytes:
    return b"".join(
        carrier.make(
            batch, sender=sender, to="drop@far.test", hostname="mx.out.test", unique=bytes(16), content=CONTENT, now_s=now_s, key=key
        )
    )


def resolve(address: bytes) -> Resolution:
    ours = address.endswith(b"@here.test")
    return Resolution(ours, ours, [], ours=ours)


def trust(**changes):
    return Trust(**{"name": "p", "deliver_to": b"postmaster@here.test", **changes})


def taker(**limits):
    return Taker(resolve, "mx.here.test", Limits(**limits))


def take(content, unique=b"1", now_ns=NOW_NS, **changes):
    return taker().take(trust(**changes), unique, content, now_ns)


def test_a_carrier_as_the_standard_library_reads_it():
    batch = written()
    message = email.message_from_bytes(made(batch), policy=email.policy.default)
    assert message.get_content_type() == "application/batch-smtp"
    assert message.get_param("required-extensions") == "8BITMIME"
    assert message.get_payload(decode=True) == batch.octets
    assert message["To"] == "drop@far.test" and message["Auto-Submitted"] == "auto-generated"
    assert len(message.get_all("Received")) == 3  # so that a tunnel into itself is found as a loop
    assert not message.defects


def test_batches_of_all_encodings_and_places():
    octets = written().octets
    head = b"From: a@b.test\r\nMIME-Version: 1.0\r\n"
    kind = b"Content-Type: application/batch-SMTP\r\n"
    plain = head + kind + b"Content-Transfer-Encoding: 8bit\r\n\r\n" + octets
    assert carrier.open_parts(plain).batches == [octets]
    lines = quopri.encodestring(octets.replace(b"\r\n", b"\n")).replace(b"\n", b"\r\n")
    quoted = head + kind + b"Content-Transfer-Encoding: Quoted-Printable\r\n\r\n" + lines
    assert decode(carrier.open_parts(quoted).batches[0]) == decode(octets)
    nested = (
        head + b'Content-Type: multipart/mixed; boundary="B"\r\n\r\n--B\r\nContent-Type: text/plain\r\n\r\nhello\r\n--B\r\n' + kind
        + b"\r\n" + octets + b"\r\n--B\r\n" + kind + b"\r\n" + octets.removesuffix(b"\r\n") + b"\r\n--B--\r\n"
    )  # fmt: skip
    assert [len(decode(found)) for found in carrier.open_parts(nested).batches] == [1, 1]
    assert len(take(nested).messages) == 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda raw: raw.replace(b"base64", b"x-magic"), "unknown transfer encoding"),
        (lambda raw: raw.replace(b"8BITMIME", b"FUTURE"), "needs the extension"),
        (lambda raw: raw[:-8] + b"\r\n", "damaged|ends without QUIT"),
        (lambda raw: raw + b"!!!\r\n", "damaged"),
    ],
)
def test_damage_goes_to_a_person(change, problem):
    taken = take(change(made(written())))
    [message] = taken.messages
    assert message.envelope.recipients[0].address == b"postmaster@here.test"
    assert message.envelope.input_channel == Channel.BSMTPIN

    assert re.search(problem, taken.problem), taken.problem


def test_the_envelope_is_restored():
    taken = take(made(written(b"a@here.test", b"hidden@here.test")))
    [message] = taken.messages
    envelope = message.envelope
    assert not taken.problem and envelope.input_channel == Channel.BSMTPIN
    assert (envelope.reverse_path, envelope.body) == (b"s@out.test", 1)
    assert [r.address for r in envelope.recipients] == [b"a@here.test", b"hidden@here.test"]
    line, content = message.content
    assert content == CONTENT and line.startswith(b"Received: from p") and b"hidden" not in line


def test_ids_say_which_mail_it_is():
    raw = made(written())
    first, later = take(raw), take(raw.replace(b"Subject:", b"Status: RO\r\nSubject:"), now_ns=NOW_NS + 10**9)
    assert first.key == later.key
    assert [tail(m.id) for m in first.messages] == [tail(m.id) for m in later.messages]
    assert first.key != take(raw, unique=b"2").key and first.key != take(raw, name="q").key
    assert first.key != take(made(written(content=b"y\r\n"))).key  # a unique id given again


def test_a_signed_batch_sent_again_by_another_is_the_same():
    raw = made(written(), KEY)
    assert take(raw, key=KEY).key == take(raw, unique=b"other", name="q", key=KEY).key


def test_signatures():
    raw = made(written(), KEY)
    assert not take(raw, key=KEY).problem
    assert "not signed" in take(made(written()), key=KEY).problem
    assert "wrong" in take(raw, key=b"another key of 16").problem
    field = carrier.SIGNATURE + b": "
    assert "wrong" in take(raw.replace(field + b"v=1; t=18", field + b"v=1; t=19"), key=KEY).problem
    assert "more than one" in take(carrier.sign(KEY, b"x", NOW_S) + raw, key=KEY).problem
    assert "too old" in take(raw, key=KEY, now_ns=NOW_NS + (carrier.SIGNATURE_S + 9) * 10**9).problem
    assert "time to come" in take(raw, key=KEY, now_ns=NOW_NS - 2 * carrier.AHEAD_S * 10**9).problem
    assert carrier.SIGNATURE_S < KEEP_S  # a replay is known for as long as its signature is good


def test_senders_and_relay():
    raw = made(written())
    assert not take(raw, senders=("out.test",)).problem
    assert not take(raw, senders=("Postmaster@Out.test",)).problem
    assert "From" in take(raw, senders=("other.test",)).problem
    far = made(written(b"a@here.test", b"b@elsewhere.test"))
    assert "may not relay" in take(far).problem
    assert len(take(far).messages) == 1  # for a person; nothing of the batch
    assert not take(far, relay=True).problem


def test_ordinary_mail_is_delivered_as_it_is():
    raw = b"Return-Path: <s@out.test>\r\nSubject: hello\r\n\r\n.dot\nbare\r\n"
    taken = take(raw, deliver_to=b"a@here.test")
    [message] = taken.messages
    assert not taken.problem and message.envelope.reverse_path == b"s@out.test"
    assert message.envelope.recipients[0].address == b"a@here.test"
    content = b"".join(message.content)
    assert content.endswith(b"X-IEMS-Pickup: p: no batch in it\r\n" + raw.replace(b".dot\nbare", b".dot\r\nbare"))
    with pytest.raises(NoPlace):
        take(raw, deliver_to=b"nobody@elsewhere.test")
    [message] = take(b"Return-Path: <a b> x\r\n\r\n").messages
    assert message.envelope.reverse_path == b""


def test_limits_of_a_mail_are_over_all_its_batches():
    octets = written().octets
    part = b"--B\r\nContent-Type: application/batch-smtp\r\n\r\n" + octets + b"\r\n"
    raw = b"Content-Type: multipart/mixed; boundary=B\r\n\r\n" + part * 3 + b"--B--\r\n"
    assert len(taker(messages=3).take(trust(), b"", raw, NOW_NS).messages) == 3
    assert "more than" in taker(messages=2).take(trust(), b"", raw, NOW_NS).problem


def test_memory(tmp_path):
    path = tmp_path / "bsmtp" / "taken"
    memory = Memory(path, NOW_S)
    keys = [bytes([n]) * 10 for n in range(5)]
    for n, key in enumerate(keys):
        memory.note(key, NOW_S + n)
    memory.close()
    with open(path, "ab") as file:
        file.write(b"torn by a crash")
    again = Memory(path, NOW_S)
    assert all(key in again for key in keys) and b"x" * 10 not in again
    again.note(b"x" * 10, NOW_S)
    again.close()
    later = Memory(path, NOW_S + KEEP_S + 3)
    assert [key in later for key in keys] == [False, False, False, True, True]
    later.close()
    assert path.stat().st_size == 48


def test_memory_is_bounded(tmp_path):
    memory = Memory(tmp_path / "taken", NOW_S, most=10)
    for n in range(95):
        memory.note(n.to_bytes(10, "big"), NOW_S)
    assert sum(n.to_bytes(10, "big") in memory for n in range(95)) == 10
    assert (94).to_bytes(10, "big") in memory
    memory.close()
    assert (tmp_path / "taken").stat().st_size <= 20 * 24


def test_memory_after_a_short_write(tmp_path, monkeypatch):
    """Half a record is taken off again, so what is noted later is found."""
    memory = Memory(tmp_path / "taken", 1000)
    memory.note(b"a" * 10, 1000)
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: real(fd, data[:11]))
        with pytest.raises(OSError):
            memory.note(b"b" * 10, 1000)
    memory.note(b"c" * 10, 1000)
    memory.close()
    again = Memory(tmp_path / "taken", 1000)
    assert [key in again for key in (b"a" * 10, b"b" * 10, b"c" * 10)] == [True, False, True]
    again.close()
