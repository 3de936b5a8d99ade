"""SPF: the suite of RFC 7208, pyspf as a second opinion, and what an attacker would publish."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import spf as pyspf
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.authres import spf
from iems.authres.spfrecord import BadRecord, expand, parse
from tests.support.zones import Zones

SUITE = Path(__file__).parents[2] / "corpus/spf/rfc7208-tests.yml"


def zones(zonedata):
    records, failing = {}, []
    for name, entries in zonedata.items():
        kinds = records.setdefault(name, {})
        for entry in entries:
            if entry == "TIMEOUT":
                failing.append(name)
                continue
            ((kind, value),) = entry.items()
            if kind == "RCODE":
                failing.append(name)
            elif kind in ("TXT", "SPF"):
                text = "".join(value) if isinstance(value, list) else value
                kinds.setdefault(kind, []).append(text.encode("latin-1"))
            elif kind == "MX":
                kinds.setdefault(kind, []).append((value[0], value[1].rstrip(".").lower()))
            else:
                kinds.setdefault(kind, []).append(value.rstrip(".").lower())
        texts = kinds.setdefault("TXT", list(kinds.get("SPF", [])))
        kinds["TXT"] = [text for text in texts if text != b"NONE"]
        if not kinds["TXT"]:
            del kinds["TXT"]
        if name in failing and not kinds:
            del records[name]
    return Zones(records, tuple(failing))


def cases():
    with SUITE.open() as file:
        for section in yaml.safe_load_all(file):
            for name, case in section["tests"].items():
                yield pytest.param(section["zonedata"], case, id=name)


def test_the_suite_is_whole():
    assert len(list(cases())) == 203


@pytest.mark.parametrize(("zonedata", "case"), list(cases()))
def test_suite(zonedata, case):
    found = asyncio.run(
        spf.check(zones(zonedata), str(case["host"]), str(case["helo"]), case["mailfrom"], receiver="receiver")
    )
    expected = case["result"]
    assert found.result in (expected if isinstance(expected, list) else [expected]), found
    if "explanation" in case:
        wanted = case["explanation"]
        assert found.explanation == ("" if wanted == "DEFAULT" else wanted)


def run(records, ip="192.0.2.1", sender="a@d.example", helo="h.example"):
    lookup = Zones(records)
    return asyncio.run(spf.check(lookup, ip, helo, sender)), lookup


def text(*records):
    return {"TXT": [record.encode() for record in records]}


TERMS = st.sampled_from(
    ["a", "mx", "-a:b.example", "include:b.example", "~include:c.example", "ip4:192.0.2.0/24", "ip6:2001:db8::/32", "?all",
     "-all", "exists:%{ir}.b.example", "ptr", "redirect=b.example", "a/24", "mx//64", "a:c.example/0", "exp=b.example", "x=y",
     "ip4:1.2.3", "a:", "include", "all:x", "redirect=c.example"]
)  # fmt: skip
ADDRESSES = st.sampled_from(["192.0.2.1", "198.51.100.7", "2001:db8::1"])


@settings(max_examples=100, deadline=None)
@given(st.lists(TERMS, max_size=5), st.lists(TERMS, max_size=3), st.lists(TERMS, max_size=3), ADDRESSES)
def test_as_pyspf(first, second, third, ip):
    # pyspf ends at the first loop, RFC 7208 at the tenth question.
    second = [term for term in second if "b.example" not in term]
    third = [term for term in third if not term.startswith(("redirect", "include", "~include"))]
    # It refuses any modifier that stands twice, RFC 7208 6 only the two it knows; and it asks for a client's names at each ptr.
    first = [term for at, term in enumerate(first) if term not in ("x=y", "ptr") or term not in first[:at]]
    second, third = ([term for term in terms if term not in ("x=y", "ptr")] for terms in (second, third))
    records = {
        "d.example": text("v=spf1 " + " ".join(first)) | {"A": ["192.0.2.1"], "MX": [(10, "b.example")]},
        "b.example": text("v=spf1 " + " ".join(second)) | {"A": ["198.51.100.7"], "AAAA": ["2001:db8::1"]},
        "c.example": text("v=spf1 " + " ".join(third)) | {"A": ["192.0.2.9"]},
        "1.2.0.192.in-addr.arpa": {"PTR": ["d.example"]},
    }
    ours, _ = run(records, ip)

    def lookup(name, kind, tcpfallback=True, timeout=30):
        kinds = records.get(name.rstrip(".").lower(), {})
        return [((name, kind), [r] if kind == "TXT" else r) for r in kinds.get(kind, [])]

    kept, pyspf.DNSLookup = pyspf.DNSLookup, lambda name, kind, *a, **k: lookup(name, kind)
    try:
        query = pyspf.query(ip, "a@d.example", "h.example", strict=False)
        theirs = query.check()[0]
    finally:
        pyspf.DNSLookup = kept
    assert ours.result == theirs, (ours, first, second, third)


def test_questions_are_bounded():
    loop = {"d.example": text("v=spf1 include:d.example -all")}
    found, lookup = run(loop)
    assert found.result == "permerror" and len(lookup.asked) <= 11
    fan = {"d.example": text("v=spf1 " + " ".join(f"mx:m{n}.example" for n in range(20)) + " -all")}
    for n in range(20):
        fan[f"m{n}.example"] = {"MX": [(1, f"x{n}-{i}.example") for i in range(10)]}
        fan |= {f"x{n}-{i}.example": {"A": ["198.51.100.9"]} for i in range(10)}
    found, lookup = run(fan)
    assert found.result == "permerror" and len(lookup.asked) <= 111
    found, lookup = run({"d.example": text("v=spf1 " + "a:none.example " * 9 + "-all")})
    assert found.result == "permerror" and len(lookup.asked) == 4
    alias = {"d.example": {"CNAME": ["e.example"]}, "e.example": {"CNAME": ["d.example"]}}
    assert run(alias)[0].result == "temperror"


def test_failing_dns_is_temporary():
    lookup = Zones({"d.example": text("v=spf1 a:sick.example -all")}, ("sick.example", "ill.example"))
    assert asyncio.run(spf.check(lookup, "192.0.2.1", "h", "x@d.example")).result == "temperror"
    assert asyncio.run(spf.check(lookup, "192.0.2.1", "h", "x@ill.example")).result == "temperror"


def test_null_path_asks_about_helo():
    found, _ = run({"h.example": text("v=spf1 ip4:192.0.2.1 -all")}, sender="")
    assert (found.result, found.scope, found.domain, found.mechanism) == ("pass", "helo", "h.example", "ip4:192.0.2.1/32")


def test_local_parts_in_names():
    found, _ = run({"d.example": text("v=spf1 exists:%{l}.u.d.example -all"), "a+b=c.u.d.example": {"A": ["127.0.0.2"]}}, sender="a+b=c@d.example")
    assert found.result == "pass"
    found, _ = run({"d.example": text("v=spf1 exists:%{l}.u.d.example -all")}, sender='"a b"@d.example')
    assert found.result == "fail"


def test_mapped_addresses_are_those_of_ipv4():
    assert run({"d.example": text("v=spf1 ip4:192.0.2.1 -all")}, "::ffff:192.0.2.1")[0].result == "pass"
    with pytest.raises(ValueError):
        run({}, "nowhere")


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text("v=spf1 aimx:/.%{}sldohr+-~?0123456789", max_size=80).map(lambda t: b"v=spf1 " + t.encode())))
def test_any_record_is_read_or_refused(octets):
    try:
        record = parse(octets)
    except BadRecord:
        return
    for term in record.terms:
        if term.domain:
            expand(term.domain, dict.fromkeys("slodiphv", "x.y@z"))
