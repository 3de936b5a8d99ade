"""Addresses and domains in normal form; hostile names."""

import pytest

from iems.directory.names import (
    NameRefused,
    address_of,
    domain_of,
    entry_address,
    pattern_of,
    rdn,
    split_dn,
    suffixes,
)


@pytest.mark.parametrize(
    ("octets", "parts"),
    [
        (b"John@Example.TEST", ("john", "example.test")),
        (b'"john"@x.test', ("john", "x.test")),
        (b'"jo hn"@x.test', ('"jo hn"', "x.test")),
        (b'"a@b"@x.test', ('"a@b"', "x.test")),
        (b"postmaster", ("postmaster", "")),
        (b"a@[192.0.2.1]", ("a", "[192.0.2.1]")),
        ("jürgen@bücher.test".encode(), ("jürgen", "xn--bcher-kva.test")),
        (b"*)(uid=*@x.test", ("*)(uid=*", "x.test")),
        (b"../../etc@x.test", ("../../etc", "x.test")),
    ],
)
def test_address(octets, parts):
    assert address_of(octets) == parts


@pytest.mark.parametrize(
    "octets",
    [b"", b"@x.test", b"a@", b"a@b c", b"a\0b@x.test", b"a\r\nb@x.test", b"\xff@x.test", b'"@x.test', b'"a@x.test',
     b"a" * 65 + b"@x.test", b"a@" + b"b" * 300, b"a" * 65536, b"a@..", b"a@-x.test", b"a@x.test.", b"a@" + b"\xf0\x9f\x92\xa9" * 80],
)  # fmt: skip
def test_no_address(octets):
    assert address_of(octets) is None


@pytest.mark.parametrize("text", ["x", "a@[1.2.3.4]", "../@x.test", "*)(uid=*@x.test", "a b@x.test", "a..b@x.test", ".a@x.test",
                                  "a\0@x.test", "\ud800@x.test", "a@x.test" * 9000])  # fmt: skip
def test_no_entry_address(text):
    with pytest.raises(NameRefused) as refusal:
        entry_address(text)
    assert len(str(refusal.value)) < 200
    assert "\0" not in str(refusal.value)


def test_patterns():
    assert pattern_of("*.ABC.com") == "*.abc.com"
    for wrong in ("*", "*.", "a.*.com", "[1.2.3.4]", "a b", "", "../x", "x" * 254):
        with pytest.raises(NameRefused):
            pattern_of(wrong)
    assert suffixes("a.b.c") == ["*.b.c", "*.c"]
    assert suffixes("localhost") == []
    assert domain_of("EXAMPLE.test") == "example.test"


def test_names_of_entries():
    assert rdn("mail", "a+b@x") == "mail=a\\+b@x"
    assert split_dn("mail=a\\,b@x , dc=x,dc=net") == ["mail=a\\,b@x", "dc=x", "dc=net"]
