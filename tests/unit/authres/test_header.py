"""Authentication-Results: examples of RFC 8601, a second opinion, forgeries, any octets."""

from __future__ import annotations

import authres as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.authres.header import MAX_VALUE, MethodResult, claimed_id, parse, write


def test_examples_of_rfc8601():
    assert parse(b" example.org 1; none") == parse(b"example.org;none") and parse(b"example.org").results == ()
    found = parse(
        b" example.com;\r\n\tauth=pass (cram-md5)\r\n\tsmtp.auth=sender@example.net;\r\n\tspf=pass smtp.mailfrom=example.net;"
        b" dkim/1 = fail reason=\"good (but \\\"old\\\")\" header.i=@example.com"
    )
    assert found.authserv_id == "example.com"
    assert found.results == (
        MethodResult("auth", "pass", (("smtp.auth", "sender@example.net"),)),
        MethodResult("spf", "pass", (("smtp.mailfrom", "example.net"),)),
        MethodResult("dkim", "fail", (("header.i", "@example.com"),), 'good (but "old")'),
    )
    nested = parse(b"foo.example.net (foobar) 1 (baz);\r\n dkim (Because I like it) / 1 (One yay) = (wait for it) fail\r\n policy (A dot can go here) . (like that) expired\r\n (this surprised me) = (as I wasn't expecting it) 1362471462")
    assert nested.results == (MethodResult("dkim", "fail", (("policy.expired", "1362471462"),)),)


@pytest.mark.parametrize("value", [b"", b";", b"x; spf", b"x; spf=pass smtp", b"x (", b'"x', b"x; spf=pass smtp.mailfrom=", b"x y z", b"x;" + b"a=b;" * 100])
def test_what_is_none(value):
    with pytest.raises(ValueError):
        parse(value)


@pytest.mark.parametrize("value", [b"mx.d.example; spf=pass", b"\r\n\tMX.D.Example 1;none", b'"mx.d.example";none', b"(c) mx.d.example(;x);none", b"mx.d.example", b'(a \\) "b) mx.d.example; x'])
def test_who_a_field_claims_to_be(value):
    assert claimed_id(value) == "mx.d.example"


def test_who_can_not_be_told():
    assert claimed_id(b"(mx.d.example; none") is None and claimed_id(b"") is None and claimed_id(b"mx.d.example.org; none") == "mx.d.example.org"


NAMES = st.sampled_from(["smtp.mailfrom", "header.d", "header.from", "policy.dmarc"])
WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=60)
RESULT = st.builds(
    MethodResult, st.sampled_from(["spf", "dkim", "dmarc"]), st.sampled_from(["pass", "fail", "none"]),
    st.lists(st.tuples(NAMES, WORDS), max_size=4).map(tuple), st.one_of(st.just(""), WORDS),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(RESULT, max_size=5))
def test_what_is_written_is_read(results):
    field = write("mx.d.example", results)
    assert field.endswith(b"\r\n") and b"\r\n\r\n" not in field and field.isascii()
    found = parse(field[field.index(b":") + 1 :])
    assert list(found.results) == results and found.authserv_id == "mx.d.example"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.builds(MethodResult, st.sampled_from(["spf", "dkim"]), st.sampled_from(["pass", "fail"]), st.lists(st.tuples(NAMES, st.sampled_from(["a@d.example", "d.example", "x", "@e.example"])), max_size=3, unique_by=lambda one: one[0]).map(tuple)), min_size=1, max_size=4))
def test_another_reader_agrees(results):
    field = write("mx.d.example", results).decode().replace("\r\n\t", " ").strip()
    found = oracle.AuthenticationResultsHeader.parse(field)
    assert [(one.method, one.result) for one in found.results] == [(one.method, one.result) for one in results]
    assert [[p.value for p in one.properties] for one in found.results] == [[v for _, v in one.properties] for one in results]


def test_a_peer_can_not_write_our_header():
    field = write("mx", [MethodResult("spf", "fail", (("smtp.mailfrom", "x\r\nBcc: y\0\xff" + "z" * 9999),), "a\nb")])
    assert field.count(b"\r\n") == field.count(b"\r\n\t") + 1 and b"\0" not in field and len(field) < MAX_VALUE + 100


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=100), st.text('x;=." ()\\/1\r\n\t', max_size=60).map(str.encode)))
def test_any_octets(value):
    claimed_id(value)
    try:
        parse(value)
    except ValueError:
        pass
