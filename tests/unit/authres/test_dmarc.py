"""DMARC: records, the tree walk, alignment, policies; authheaders as a second opinion; From fields that are no identity."""

from __future__ import annotations

import asyncio

import authheaders.dmarc_lookup as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.authres import dmarc, outcome
from iems.authres.dkim import Signature
from iems.authres.mail import Mail
from iems.authres.spf import Spf
from tests.support.zones import Zones


def policies(failing=(), **records):
    zone = {name.replace("__", "-").replace("_", "."): {"TXT": [text.encode()]} for name, text in records.items()}
    return Zones({(f"_dmarc.{name}"): kinds for name, kinds in zone.items()}, failing)


def evaluate(lookup, domain="d.example", spf=None, dkim=(), sample=0, words=("pass", "pass")):
    found = [Signature(words[1], one) for one in dkim]
    return asyncio.run(dmarc.evaluate(lookup, domain, Spf(words[0], spf) if spf else None, found, sample=sample))


def organisation(lookup, domain):
    return asyncio.run(dmarc.Walk(lookup).organisation(domain))[0]


def test_records():
    read = dmarc.read_record
    found = read(b"v=DMARC1; p=reject; sp=none; adkim=s; pct=40; rua=mailto:a@b.example!10m, mailto:c@d.example,http://x; np=quarantine; x; p=none", "d.example")
    assert found == dmarc.Record("d.example", "reject", "none", "quarantine", True, False, 40, False, "u", ("a@b.example", "c@d.example"))
    assert read(b"v = DMARC1 ; P = Reject", "d.example") == dmarc.Record("d.example", "reject")
    assert read(b"v=DMARC1; rua=mailto:a@b.example", "d").p == "none" and read(b"v=DMARC1; p=maybe; rua=mailto:a@b.example", "d").p == "none"
    for text in (b"v=DMARC1; p=maybe", b"v=DMARC1", b"v=dmarc1; p=none", b"p=none; v=DMARC1", b"v=spf1", b"v=DMARC12; p=none", b""):
        assert read(text, "d") is None


def test_the_walk_of_rfc9989():
    assert dmarc.steps("a.mail.example.com") == ["a.mail.example.com", "mail.example.com", "example.com", "com"]
    assert dmarc.steps("a.b.c.d.e.f.g.h.i.j.k.example.com") == [
        "a.b.c.d.e.f.g.h.i.j.k.example.com", "g.h.i.j.k.example.com",
        "h.i.j.k.example.com", "i.j.k.example.com", "j.k.example.com", "k.example.com", "example.com", "com"]  # fmt: skip
    assert organisation(policies(example_com="v=DMARC1; p=none"), "a.mail.example.com") == "example.com"
    assert organisation(policies(example_com="v=DMARC1; p=none", mail_example_com="v=DMARC1; p=none; psd=n"), "a.mail.example.com") == "mail.example.com"
    assert organisation(policies(com="v=DMARC1; p=none; psd=y"), "a.mail.example.com") == "example.com"
    assert organisation(policies(com="v=DMARC1; p=none; psd=y", mail_example_com="v=DMARC1; p=none"), "a.mail.example.com") == "example.com"
    assert organisation(policies(), "a.mail.example.com") == "a.mail.example.com"
    lookup = policies()
    organisation(lookup, ".".join("abcdefghijklmnop") + ".example")
    assert len(lookup.asked) == dmarc.MAX_WALK


def test_alignment():
    relaxed = policies(d_example="v=DMARC1; p=reject")
    assert evaluate(relaxed, spf="d.example").result == "pass" and evaluate(relaxed, dkim=["d.example"]).dkim
    assert evaluate(relaxed, spf="bounce.d.example").spf and evaluate(relaxed, "news.d.example", dkim=["mail.d.example"]).dkim
    for other in ("e.example", "xd.example", "example", "d.example.org"):
        found = evaluate(relaxed, spf=other, dkim=[other])
        assert (found.result, found.disposition) == ("fail", "reject"), other
    strict = policies(d_example="v=DMARC1; p=reject; adkim=s; aspf=s")
    assert evaluate(strict, spf="bounce.d.example", dkim=["mail.d.example"]).result == "fail"
    assert evaluate(strict, spf="D.example.").result == "pass"
    assert evaluate(relaxed, spf="d.example", words=("softfail", "pass")).result == "fail"
    apart = policies(d_example="v=DMARC1; p=reject", sub_d_example="v=DMARC1; p=none; psd=n")
    assert evaluate(apart, "sub.d.example", dkim=["d.example"]).result == "fail"


@pytest.mark.parametrize(("record", "domain", "sample", "disposition"), [
    ("p=reject", "d.example", 0, "reject"), ("p=quarantine", "d.example", 99, "quarantine"), ("p=none", "d.example", 0, "none"),
    ("p=reject; sp=none", "x.d.example", 0, "none"), ("p=none; sp=reject", "x.d.example", 0, "reject"), ("p=reject", "x.d.example", 0, "reject"),
    ("p=none; np=reject", "nowhere.d.example", 0, "reject"), ("p=none; np=reject", "x.d.example", 0, "none"),
    ("p=reject; pct=30", "d.example", 29, "reject"), ("p=reject; pct=30", "d.example", 30, "quarantine"), ("p=quarantine; pct=0", "d.example", 0, "none"),
    ("p=reject; t=y", "d.example", 0, "quarantine"),
])  # fmt: skip
def test_policies(record, domain, sample, disposition):
    lookup = policies(d_example=f"v=DMARC1; {record}")
    lookup.records["x.d.example"] = {"A": ["192.0.2.1"]}
    found = evaluate(lookup, domain, sample=sample)
    assert (found.result, found.disposition) == ("fail", disposition)


def test_no_record_and_two():
    assert evaluate(policies()).result == "none"
    two = Zones({"_dmarc.d.example": {"TXT": [b"v=DMARC1; p=reject", b"v=DMARC1; p=none"]}})
    assert evaluate(two).result == "none"
    other = Zones({"_dmarc.d.example": {"TXT": [b"some text", b"v=DMARC1; p=reject"]}})
    assert evaluate(other).disposition == "reject"


def test_unsure_is_temporary():
    assert evaluate(Zones({}, ("_dmarc.d.example",))).result == "temperror"
    lookup = policies(d_example="v=DMARC1; p=reject")
    for words in (("temperror", "fail"), ("fail", "temperror")):
        found = evaluate(lookup, spf="d.example", dkim=["d.example"], words=words)
        assert (found.result, found.disposition) == ("temperror", "none")
    assert evaluate(lookup, spf="d.example", dkim=["d.example"], words=("pass", "temperror")).result == "pass"
    # A stranger's DNS that fails can't keep the policy from acting.
    assert evaluate(lookup, dkim=["other.org"], words=("", "temperror")).result == "fail"


RECORDS = st.fixed_dictionaries(
    {"p": st.sampled_from(["none", "quarantine", "reject"])},
    optional={"sp": st.sampled_from(["none", "quarantine", "reject"]), "adkim": st.sampled_from("rs"), "aspf": st.sampled_from("rs"), "rua": st.just("mailto:a@b.example")},
)  # fmt: skip


@settings(max_examples=20, deadline=None)  # it reads its list of suffixes each time
@given(RECORDS, st.sampled_from(["example.com", "a.example.com", "a.b.example.co.uk", "example.co.uk"]), st.booleans())
def test_as_authheaders(tags, domain, own):
    text = "; ".join(["v=DMARC1", *(f"{name}={value}" for name, value in tags.items())])
    base = "example.co.uk" if domain.endswith("uk") else "example.com"
    at = domain if own else base
    lookup = Zones({f"_dmarc.{at}": {"TXT": [text.encode()]}, domain: {"A": ["192.0.2.1"]}})

    def txt(name, *_, **__):
        records = lookup.records.get(str(name).rstrip("."), {}).get("TXT", [])
        return records[0].decode() if records else None

    theirs, theirs_org = oracle.receiver_record(domain, dnsfunc=txt)
    ours = asyncio.run(dmarc.discover(dmarc.Walk(lookup), domain))
    assert {name: theirs[name] for name in tags} == tags and ours is not None
    assert (ours.p, ours.sp or None) == (theirs["p"], theirs.get("sp"))
    assert (ours.domain != domain) == bool(theirs_org) or domain == base
    assert oracle.get_org_domain(domain) == base


FROMS = {
    b"a@d.example": "d.example", b"A <a@D.Example>": "D.Example", b'"x@e.example" <a@d.example>': "d.example", b"a@d.example (c)": "d.example",
    b"=?utf-8?q?x=40e.example?= <a@d.example>": "d.example", b'"a@b"@d.example': "d.example",
    b"a@d.example, b@e.example": "", b"g: a@d.example;": "", b"": "", b"x@e.example <a@d.example>": "", b"<a@d.example>, <a@d.example>": "", b"a": "",
}  # fmt: skip


@pytest.mark.parametrize("value", FROMS)
def test_one_identity_or_none(value):
    mail = Mail.of(b"Subject: x\r\nFrom: " + value + b"\r\n\r\n")
    assert outcome.from_domain(mail)[1] == FROMS[value]
    twice = Mail.of(b"From: a@d.example\r\nFrom: " + value + b"\r\n\r\n")
    assert outcome.from_domain(twice) == ("", "")
    found = asyncio.run(outcome.evaluate(policies(d_example="v=DMARC1; p=none"), twice, ip="192.0.2.1", helo="h", mail_from="a@d.example", receiver="mx", now_s=1))
    assert found.dmarc.result == "permerror" and found.identity == ""


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=80), st.text("psprua=;, rejctnoequi:@.!10m", max_size=60).map(lambda t: b"v=DMARC1;" + t.encode())))
def test_any_octets(text):
    dmarc.read_record(text, "d.example")
