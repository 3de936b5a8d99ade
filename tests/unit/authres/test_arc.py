"""ARC: chains sealed by us and by dkimpy, each verified by the other; chains that are broken, endless, or none."""

from __future__ import annotations

import asyncio
import re

import dkim as dkimpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.authres import arc, sign
from iems.authres.header import MethodResult
from iems.authres.mail import Mail
from tests.support.zones import Zones

KEYS = {"r": sign.new_key("rsa"), "e": sign.new_key("ed25519")}
ZONE = {f"{name}._domainkey.{domain}": {"TXT": [sign.record(key).encode()]} for name, key in KEYS.items() for domain in ("one.example", "two.example")}
NOW = 1_700_000_000
MESSAGE = b"From: a@d.example\r\nTo: b@e.example\r\nSubject: x\r\nDate: y\r\nMIME-Version: 1.0\r\n\r\nHello\r\n"
RESULTS = [MethodResult("spf", "pass", (("smtp.mailfrom", "a@d.example"),)), MethodResult("dmarc", "pass", (("header.from", "d.example"),))]


def verify(octets, zone=None):
    return asyncio.run(arc.verify(zone or Zones(ZONE), Mail.of(octets), NOW + 10))


def sealed(octets, domain="one.example", name="r", found=None):
    signer = sign.Signer(domain, name, KEYS[name])
    return asyncio.run(arc.seal(signer, Mail.of(octets), found or verify(octets), domain, RESULTS, NOW)) + octets


def by_dkimpy(octets):
    def txt(name, timeout=5):
        texts = ZONE.get(name.decode().rstrip("."), {}).get("TXT", [])
        return texts[0] if texts else None

    return dkimpy.arc_verify(octets, dnsfunc=txt)


def test_our_chains_are_taken_by_dkimpy():
    octets = MESSAGE
    for count in (1, 2, 3):
        octets = sealed(octets, "one.example" if count % 2 else "two.example")
        found = verify(octets)
        assert (found.result, found.instance, found.sealer) == ("pass", count, "one.example" if count % 2 else "two.example")
        assert found.reported == {"spf": "pass", "dmarc": "pass"}
        word, details, problem = by_dkimpy(octets)
        assert word == b"pass", (problem, details)
    assert verify(sealed(MESSAGE, name="e")).result == "pass"
    # A list that changes subject and body and then seals itself leaves a whole chain behind.
    found = verify(octets)
    assert verify(sealed(octets.replace(b"Hello", b"Hallo"), found=found)).result == "pass"
    assert verify(octets.replace(b"Hello", b"Hallo")).result == "fail"


def test_chains_of_dkimpy():
    pem = sign.key_pem(KEYS["r"]).encode()
    octets = MESSAGE
    for state in (b"none", b"pass"):
        octets = re.sub(rb"(?m)^Authentication-Results:.*\r\n", b"", octets)
        octets = b"Authentication-Results: one.example; arc=" + state + b"; spf=pass smtp.mailfrom=a@d.example\r\n" + octets
        made = dkimpy.arc_sign(octets, b"r", b"one.example", pem, b"one.example", timestamp=str(NOW))
        octets = b"".join(made) + octets
        found = verify(octets)
        assert found.result == "pass", found
        assert found.reported["spf"] == "pass"
    assert verify(sealed(octets, "two.example")).result == "pass"


@pytest.mark.parametrize(("pattern", "text"), [
    (rb"ARC-Seal: i=2;", b"ARC-Seal: i=3;"), (rb"ARC-Seal: i=1;", b"ARC-Seal: i=2;"), (rb"cv=pass", b"cv=fail"), (rb"cv=none", b"cv=pass"),
    (rb"ARC-Authentication-Results: i=1; one", b"ARC-Authentication-Results: i=1; two"), (rb"ARC-Message-Signature: i=1", b"X: i=1"),
    (rb"ARC-Seal: i=1", b"ARC-Seal: i=0"), (rb"ARC-Seal: i=1", b"ARC-Seal: i=51"), (rb"ARC-Seal: i=1;", b"ARC-Seal: "), (rb"s=r;", b"s=no;"),
    (rb"(?s)(ARC-Seal: i=2;.*?b=)[^;]*?\r\nARC-M", rb"\1\r\nARC-M"), (rb"ARC-Seal: i=2;", b"ARC-Seal: i=2; h=from;"), (rb"Subject: x", b"Subject: z"),
])  # fmt: skip
def test_broken_chains(pattern, text):
    whole = sealed(sealed(MESSAGE))
    broken = re.sub(pattern, text, whole, count=1)
    assert broken != whole
    found = verify(broken)
    assert found.result == "fail" and found.problem
    assert sealed(broken, found=found) == broken  # nobody seals what is broken


def test_none_endless_and_temporary():
    assert verify(MESSAGE) == arc.Arc("none")
    lookup = Zones(ZONE)
    field = sealed(MESSAGE)[: -len(MESSAGE)]
    many = b"".join(field.replace(b"i=1;", b"i=%d;" % n) for n in range(1, 200))
    assert verify(many + MESSAGE, lookup).result == "fail" and len(lookup.asked) <= arc.MAX_SETS + 1
    assert verify(field * 2 + MESSAGE).result == "fail"
    assert verify(sealed(MESSAGE), Zones({}, ("r._domainkey.one.example",))).result == "temperror"
    full = arc.Arc("pass", arc.MAX_SETS)
    assert sealed(MESSAGE, found=full) == MESSAGE


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([b"ARC-Seal", b"ARC-Message-Signature", b"ARC-Authentication-Results"]), st.text("iabcvdhs=;1 0\r\n\t:none", max_size=40).map(str.encode)), max_size=6))
def test_any_fields(fields):
    verify(b"".join(name + b": " + value + b"\r\n" for name, value in fields) + MESSAGE)
