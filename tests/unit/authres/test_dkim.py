"""DKIM: the message of RFC 8463, dkimpy as a second opinion both ways, canonical forms in pieces, hostile signatures."""

from __future__ import annotations

import asyncio
import base64
import re
from pathlib import Path

import dkim as dkimpy
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import example, given, settings
from hypothesis import strategies as st

from iems.authres import dkim, sign
from iems.authres.canonical import BodyHash, relaxed_field, split, without_b
from iems.authres.mail import THREAD_OCTETS, Mail
from iems.authres.tags import BadTags, parse
from tests.support.zones import Zones

RFC8463 = Path(__file__).parents[2] / "corpus/dkim/rfc8463-example.msg"
RFC8463_ZONE = {
    "brisbane._domainkey.football.example.com": {"TXT": [b"v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="]},
    "test._domainkey.football.example.com": {"TXT": [
        b"v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/J16JYi0Qvx/byYz"
        b"CNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT+l/K4w3QIDAQAB"]},
}  # fmt: skip
NOW = 1_700_000_000
MESSAGE = (
    b"Received: from a by b\r\nFrom: A <a@d.example>\r\nTo: b@e.example\r\nSubject: one\r\n\ttwo  three \r\nDate: today\r\n\r\n"
    b"Hello  world \r\n\t\r\n line\t\ttwo\r\n\r\n\r\n"
)
KEYS = {"r": sign.new_key("rsa"), "e": sign.new_key("ed25519")}


def zone(domain="d.example", **more):
    records = {f"{name}._domainkey.{domain}": {"TXT": [sign.record(key).encode()]} for name, key in KEYS.items()}
    return Zones(records | more)


def verify(octets, lookup=None, now=NOW):
    lookup = zone() if lookup is None else lookup
    return asyncio.run(dkim.verify(lookup, Mail.of(octets), now))


def signed(octets=MESSAGE, name="r", domain="d.example"):
    return asyncio.run(sign.Signer(domain, name, KEYS[name]).sign(Mail.of(octets), NOW)) + octets


def by_dkimpy(octets, lookup=None):
    lookup = lookup or zone()

    def txt(name, timeout=5):
        texts = lookup.records.get(name.decode().rstrip("."), {}).get("TXT", [])
        return texts[0] if texts else None

    return dkimpy.verify(octets, dnsfunc=txt)


def test_rfc8463():
    octets = re.sub(rb"\r?\n", b"\r\n", RFC8463.read_bytes())
    ed25519, rsa_ = verify(octets, Zones(RFC8463_ZONE), 1_528_637_910)
    assert (ed25519.result, ed25519.algorithm, ed25519.identity) == ("pass", "ed25519-sha256", "@football.example.com")
    assert (rsa_.result, rsa_.bits) == ("pass", 1024)
    for changed in (octets.replace(b"Hi.", b"Ho."), octets.replace(b"dinner", b"Dinner"), octets + b"x\r\n"):
        assert {one.result for one in verify(changed, Zones(RFC8463_ZONE), 1_528_637_910)} == {"fail"}
    assert {one.result for one in verify(octets + b"\r\n\r\n", Zones(RFC8463_ZONE), 1_528_637_910)} == {"pass"}


@pytest.mark.parametrize("name", ["r", "e"])
def test_ours_is_taken_by_dkimpy_and_by_us(name):
    octets = signed(name=name)
    assert by_dkimpy(octets)
    assert [one.result for one in verify(octets)] == ["pass"]
    assert max(map(len, octets.split(b"\r\n\r\n")[0].split(b"\r\n"))) <= 78
    for addition in (b"From: x@y.example\r\n", b"Subject: other\r\n", b"Content-Type: text/html\r\n", b"Reply-To: x@y\r\n"):
        assert [one.result for one in verify(addition + octets)] == ["fail"]
    assert [one.result for one in verify(b"Received: from x by y\r\nAuthentication-Results: x; none\r\n" + octets)] == ["pass"]


TEXT = st.lists(st.sampled_from([b"a", b" ", b"\t", b"\r\n", b"bc", b"  ", b"\r\n\r\n", b".", b"=", b":"]), max_size=24).map(b"".join)


@settings(max_examples=120, deadline=None)
@given(TEXT, TEXT, st.sampled_from([b"simple/simple", b"relaxed/relaxed", b"relaxed/simple", b"simple/relaxed"]), st.booleans())
@example(b"", b"", b"simple/simple", False)
@example(b"", b"", b"relaxed/relaxed", False)
@example(b"", b" \t\r\n", b"relaxed/relaxed", False)
def test_as_dkimpy_whatever_the_form(subject, body, form, length):
    subject = re.sub(rb"(\r\n)+", b"\r\n ", subject).rstrip()
    octets = b"From: a@d.example\r\nSubject:" + subject + b"x\r\nX: y\r\n\r\n" + body
    key = KEYS["r"]
    if body and not body.endswith(b"\r\n"):
        body += b"\r\n"  # as all mail that came by SMTP; without it dkimpy keeps white space at the end
        octets += b"\r\n"
    head, canon = form.split(b"/")
    made = dkimpy.sign(
        octets, b"r", b"d.example", sign.key_pem(key).encode(), canonicalize=(head, canon), include_headers=[b"from", b"subject"],
        length=length,
    )  # fmt: skip
    assert [one.result for one in verify(made + octets, now=4_000_000_000)] == ["pass"]
    # dkimpy makes no difference between a field and one with a longer last line, so only the body is changed.
    assert verify(made + octets + b"z", now=4_000_000_000)[0].result == ("policy" if length else "fail")


@settings(max_examples=200, deadline=None)
@given(TEXT, st.booleans(), st.lists(st.integers(1, 5), max_size=20), st.integers(0, 30))
def test_pieces_give_the_same_hash(body, relaxed, cuts, limit):
    whole, pieces = BodyHash(relaxed, [limit]), BodyHash(relaxed, [limit])
    whole.update(body)
    at = 0
    for cut in cuts:
        pieces.update(body[at : at + cut])
        at += cut
    pieces.update(body[at:])
    for one in (whole, pieces):
        one.finish()
    assert (whole.digest(), whole.length, whole.digest(limit)) == (pieces.digest(), pieces.length, pieces.digest(limit))


def test_large_bodies_are_hashed_beside_the_loop():
    octets = signed(MESSAGE + b"line of text \r\n" * (THREAD_OCTETS // 7))
    assert [one.result for one in verify(octets)] == ["pass"] and by_dkimpy(octets)
    blank = BodyHash(True)
    for _ in range(200):
        blank.update(b"\r\n" * 50_000)  # kept as a number, not as octets
    blank.finish()
    assert blank.length == 0
    spaces = BodyHash(True)
    spaces.update(b" " * 3_000_000)
    spaces.finish()
    assert spaces.length == 0


def changed(octets, **tags):
    """A signature with other tags; b= no longer fits, which is not reached in these cases."""
    for name, value in tags.items():
        text = b"" if value is None else b" %s=%s;" % (name.encode(), value)
        octets, count = re.subn(rb"\s%s=[^;]*;" % name.encode(), text.replace(b"\\", b"\\\\"), octets, count=1)
        assert count == 1
    return octets


BAD = {
    "version": ({"v": b"2"}, "permerror"), "no version": ({"v": None}, "permerror"), "algorithm": ({"a": b"rsa-md5"}, "permerror"),
    "sha1": ({"a": b"rsa-sha1"}, "policy"), "form": ({"c": b"nice"}, "permerror"), "domain": ({"d": b"a..b"}, "permerror"),
    "no From": ({"h": b"to:subject"}, "permerror"), "empty bh": ({"bh": b""}, "permerror"), "no bh": ({"bh": None}, "permerror"),
    "not base64": ({"bh": b"?"}, "permerror"), "time": ({"t": b"soon"}, "permerror"), "future": ({"t": b"1900000000"}, "fail"),
    "h too long": ({"h": b"from:" + b"x:" * 600 + b"y"}, "policy"), "other key": ({"s": b"e"}, "permerror"), "no key": ({"s": b"no"}, "permerror"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_signature(name):
    tags, word = BAD[name]
    (found,) = verify(changed(signed(), **tags))
    assert found.result == word and found.problem


def test_more_tags():
    field = b"DKIM-Signature: v=1; a=rsa-sha256; d=d.example; s=r; h=from; bh=AA==; b=AA==; "
    for tags, word in [
        (b"x=1", "fail"), (b"x=5; t=6", "permerror"), (b"i=@other.example", "permerror"), (b"i=d.example", "permerror"),
        (b"q=dns/other", "permerror"), (b"l=x", "permerror"), (b"l=" + b"9" * 76, "fail"), (b"l=0", "policy"), (b"v=1", "permerror"), (b"=", "permerror"),
        (b"i=a@x.d.example", "fail"),
    ]:  # fmt: skip
        assert verify(field + tags + b"\r\n" + MESSAGE)[0].result == word, tags
    empty_b = re.sub(rb"b=\r\n.*?\r\nReceived", b"b=\r\nReceived", signed(), flags=re.DOTALL)
    assert verify(empty_b)[0].result == "permerror"


def test_a_thousand_signatures_cost_eight_questions():
    lookup = zone()
    field = signed()[: -len(MESSAGE)]
    found = verify(field * 1000 + MESSAGE, lookup)
    assert len(found) == dkim.MAX_SIGNATURES == len(lookup.asked)
    many = b"".join(changed(field, s=b"s%d" % n) for n in range(1000))
    lookup = zone()
    assert {one.result for one in verify(many + MESSAGE, lookup)} == {"permerror"} and len(lookup.asked) == dkim.MAX_SIGNATURES


def der(bits, exponent=65_537):
    """An RSA key of that size that nobody has."""
    key = rsa.RSAPublicNumbers(exponent, (1 << (bits - 1)) + 1).public_key()
    return base64.b64encode(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


@pytest.mark.parametrize(("record", "word"), [
    (b"v=DKIM1; p=", "permerror"), (b"v=DKIM2; p=AAAA", "permerror"), (b"p=AAAA", "permerror"), (b"v=DKIM1; k=rsa", "permerror"),
    (b"v=DKIM1; k=dsa; p=AAAA", "permerror"), (b"v=DKIM1; k=ed25519; p=AAAA", "permerror"), (b"nothing", "permerror"),
    (b"v=DKIM1; h=sha1; p=AAAA", "permerror"), (b"v=DKIM1; s=fax; p=AAAA", "permerror"), (b"v=DKIM1; p=?", "permerror"),
    (b"v=DKIM1; p=" + b"A" * 20_000, "policy"), (b"p=" + der(16_384), "policy"), (b"p=" + der(512), "policy"), (b"p=" + der(2048, (1 << 60) + 1), "policy"),
])  # fmt: skip
def test_keys_that_are_not_taken(record, word):
    lookup = zone()
    lookup.records["r._domainkey.d.example"] = {"TXT": [record]}
    (found,) = verify(signed(), lookup)
    assert found.result == word and found.problem


def test_dns_that_fails_is_temporary():
    lookup = Zones({}, ("r._domainkey.d.example",))
    assert verify(signed(), lookup)[0].result == "temperror"
    alias = {"r._domainkey.d.example": {"CNAME": ["x.d.example"]}, "x.d.example": {"CNAME": ["r._domainkey.d.example"]}}
    assert verify(signed(), Zones(alias))[0].result == "temperror"
    assert verify(signed(), Zones({"r._domainkey.d.example": {"CNAME": ["k.e.example"]}, "k.e.example": {"TXT": [sign.record(KEYS["r"]).encode()]}}))[0].result == "pass"


def test_key_flags():
    lookup = zone()
    lookup.records["r._domainkey.d.example"] = {"TXT": [sign.record(KEYS["r"]).encode() + b"; t=y:s"]}
    (found,) = verify(signed(), lookup)
    assert found.result == "pass" and found.testing


def test_a_header_that_is_too_long_is_not_verified():
    octets = signed()
    cut = octets.replace(b"\r\n\r\n", b"\r\nX: " + b"y" * (1 << 20) + b"\r\n\r\n", 1)
    assert verify(cut)[0].result == "policy"


def test_keys_from_elsewhere():
    for name in KEYS:
        assert sign.record(sign.read_pem(sign.key_pem(KEYS[name]).encode())) == sign.record(KEYS[name])
    with pytest.raises(ValueError):
        sign.read_pem(b"nothing")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120), st.one_of(st.binary(max_size=60), st.text("abdhsvtx=;: \t\r\n/+@.019", max_size=60).map(str.encode)))
def test_any_octets(octets, tags):
    verify(b"DKIM-Signature: " + tags + b"\r\n" + octets)
    verify(octets)
    for name, raw in split(octets):
        relaxed_field(name, raw)
        without_b(raw)
    try:
        parse(tags)
    except BadTags:
        pass
