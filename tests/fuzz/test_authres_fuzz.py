"""SPF, DKIM, DMARC and ARC on mutated messages and records, and what an attacker would send to keep us busy."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from iems.authres import arc, outcome, sign
from iems.authres.canonical import relaxed_field, split
from iems.authres.dmarc import read_record
from iems.authres.header import claimed_id, parse, write
from iems.authres.mail import Mail
from iems.authres.spfrecord import BadRecord
from iems.authres.spfrecord import parse as parse_spf
from iems.authres.tags import BadTags
from iems.authres.tags import parse as parse_tags
from tests.support.zones import Zones

KEYS = {name: sign.new_key(kind) for name, kind in (("r", "rsa"), ("e", "ed25519"))}
RECORDS = {
    "d.example": b"v=spf1 a mx include:o.example exists:%{ir}.x.example ?ptr -all", "o.example": b"v=spf1 ip4:192.0.2.0/24 redirect=d.example",
    "_dmarc.d.example": b"v=DMARC1; p=reject; sp=none; pct=50; rua=mailto:a@d.example",
    **{f"{name}._domainkey.d.example": sign.record(key).encode() for name, key in KEYS.items()},
}  # fmt: skip
NOW = 1_700_000_000
PLAIN = b"From: A <a@d.example>\r\nTo: b@e.example\r\nSubject: one  two\r\nMIME-Version: 1.0\r\n\r\nHello  world\r\n\r\n line \r\n"


def sample():
    """A message with two signatures and an ARC set on top."""
    octets = PLAIN
    for name, key in KEYS.items():
        octets = asyncio.run(sign.Signer("d.example", name, key).sign(Mail.of(PLAIN), NOW)) + octets
    signer = sign.Signer("d.example", "r", KEYS["r"])
    return asyncio.run(arc.seal(signer, Mail.of(octets), arc.Arc("none"), "d.example", [], NOW)) + octets


def zone(**changed):
    return Zones({name: {"TXT": [changed.get(name, text)]} for name, text in RECORDS.items()})


def evaluate(octets, lookup):
    found = asyncio.run(
        outcome.evaluate(lookup, Mail.of(octets), ip="192.0.2.1", helo="h", mail_from="a@d.example", receiver="mx", now_s=NOW)
    )
    field = write("mx", outcome.words(found, "h", "a@d.example"))
    assert parse(field.partition(b":")[2]).authserv_id == "mx"
    return found


def mutated(rng, octets):
    out = bytearray(octets)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(out))
        how = rng.randrange(4)
        if how == 0:
            out[at] = rng.choice(b"\r\n \t;=:,.@\0\xff" + bytes(range(48, 123)))
        elif how == 1:
            del out[at : at + rng.randrange(1, 30)]
        elif how == 2:
            out[at:at] = out[at : at + rng.randrange(60)]
        else:
            out[at:at] = rng.choice((b"\r\n", b"; b=", b"l=0;", b"i=2;", b"From: x@y\r\n", b"\r\n\r\n", b"(", b'"'))
    return bytes(out)


def same(first, second):
    """Whether two messages are one for a relaxed signature over all fields but the trace."""
    return [relaxed_field(*field) for field in split(first)] == [relaxed_field(*field) for field in split(second)]


def hammer(seed, rounds):
    rng = random.Random(seed)
    whole = sample()
    head = PLAIN.partition(b"\r\n\r\n")[0]
    assert [one.result for one in evaluate(whole, zone()).dkim] == ["pass", "pass"]
    for _ in range(rounds):
        octets = mutated(rng, whole)
        name = rng.choice(list(RECORDS))
        found = evaluate(octets, zone(**{name: mutated(rng, RECORDS[name])}) if rng.random() < 0.3 else zone())
        if any(one.result == "pass" for one in found.dkim):
            # What is signed can't have been changed: From stands there once, and reads as it did.
            (name, raw), *more = [field for field in split(octets.partition(b"\r\n\r\n")[0]) if field[0] == b"from"]
            assert not more and same(b"%s" % raw, head.partition(b"\r\n")[0])


@pytest.mark.parametrize("seed", range(3))
def test_mutated(seed):
    hammer(seed, 1000)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_mutated_at_length(seed):
    hammer(1000 + seed, 20_000)


BUSY = {
    "signatures": b"DKIM-Signature: v=1; a=rsa-sha256; d=d.example; s=r; h=from; bh=AAAA; b=AAAA\r\n" * 1000,
    "spaces in tags": (b"DKIM-Signature: v=1; a=rsa-sha256; d=d.example; s=r; h=from; bh=A" + b" " * 60_000 + b"A; b=AAAA\r\n") * 8,
    "many names": (b"DKIM-Signature: v=1; a=rsa-sha256; d=d.example; s=r; h=from" + b":x" * 499 + b"; bh=" + b"A" * 43 + b"=; b=AAAA\r\n") * 8 + b"X: y\r\n" * 9000,
    "tags": b"DKIM-Signature: " + b"a=b; " * 12_000 + b"\r\n",
    "ARC": b"".join(b"%s: i=%d; a=rsa-sha256; d=d.example; s=s%d; h=from; cv=pass; bh=AA==; b=AAAA\r\n" % (kind, n, n) for n in range(1, 51) for kind in (b"ARC-Seal", b"ARC-Message-Signature", b"ARC-Authentication-Results")),
    "From": b"From: " + b"(" * 30_000 + b"a@d.example" + b")" * 30_000 + b"\r\n",
    "white space": b"From: a" + b" " * 60_000 + b"@d.example\r\nSubject:" + b" \t" * 100_000 + b"\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", BUSY)
def test_busy_headers(name):
    lookup = zone()
    begun = time.process_time()
    evaluate(BUSY[name] + PLAIN, lookup)
    assert time.process_time() - begun < 1.0
    assert len(lookup.asked) < 150


@pytest.mark.parametrize("body", [b" " * 8_000_000, b"\r\n" * 4_000_000, b" \r\n" * 2_000_000, b"\r" * 4_000_000 + b"\n", b"\t \r\r\n" * 1_000_000, b"\n" * 4_000_000])
def test_busy_bodies(body):
    octets = asyncio.run(sign.Signer("d.example", "r", KEYS["r"]).sign(Mail.of(PLAIN), NOW)) + PLAIN + body
    begun = time.process_time()
    evaluate(octets, zone())
    assert time.process_time() - begun < 1.0


def test_busy_records():
    begun = time.process_time()
    for text in (b"v=spf1 include:a." + b"a" * 16_000 + b"!", b"v=spf1 " + b"a " * 8000, b"v=spf1 a:" + b"/1" * 8000, b"v=spf1 x=" + b"%{d1r.}" * 2000, b"v=spf1 " + b"." * 16_000):
        try:
            parse_spf(text)
        except BadRecord:
            pass
    for text in (b"v=DMARC1;" + b" " * 8000 + b"x", b"v=DMARC1; rua=" + b"mailto:a@b.example," * 400, b"v=DMARC1;" + b"p = " * 2000):
        read_record(text, "d.example")
    for text in (b"x=" + b" " * 65_000 + b"y", b" " * 65_000, b";" * 65_000, b"a=b;" * 16_000):
        try:
            parse_tags(text)
        except BadTags:
            pass
    for text in (b"(" * 65_000, b"()" * 32_000, b'"' * 65_000, b"\\" * 65_000, b"mx;" + b" " * 65_000, b"mx;" + b"a=b " * 16_000, b"mx; a=b reason=" + b"x" * 60_000):
        claimed_id(text)
        try:
            parse(text)
        except ValueError:
            pass
    assert time.process_time() - begun < 2.0
