"""Address lists and the one identity of a message."""

import email.utils
import random

import pytest

from iems._native import mime_py
from iems.message import address
from iems.message.address import Address, author, parse_addresses


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"a@b.example", [(b"a", b"b.example", "", None)]),
        (b"A B <a@b>, <c@d>", [(b"a", b"b", "A B", None), (b"c", b"d", "", None)]),
        (b'"Doe, J." <"a b"@[192.0.2.1]>', [(b"a b", b"[192.0.2.1]", "Doe, J.", None)]),
        (b"a@b (Comment)", [(b"a", b"b", "Comment", None)]),
        (b"=?utf-8?q?=C3=84?= <a@b>", [(b"a", b"b", "Ä", None)]),
        (b"G: a@b, C <c@d>;, e@f", [(b"a", b"b", "", "G"), (b"c", b"d", "C", "G"), (b"e", b"f", "", None)]),
        (b"undisclosed:;", []),
        (b"<@r,@s:a@b>", [(b"a", b"b", "", None)]),
        (b"Pete(A \\) b) <pete(x)@silly . test(y)>", [(b"pete", b"silly.test", "Pete", None)]),
        (b"nobody", [(b"nobody", b"", "", None)]),
        (b", ,, ()", []),
        (b"<a@b", [(b"a", b"b", "", None)]),
        (b"", []),
    ],
)
def test_lists(value, found):
    assert parse_addresses(value) == [Address(*row) for row in found]


def test_the_standard_library_agrees_on_plain_lists():
    rng = random.Random(5322)
    for _ in range(500):
        rows = []
        for _ in range(rng.randrange(1, 5)):
            address = (
                "".join(rng.choices("abc.", k=4)).strip(".") + "x@" + rng.choice(("b.example", "c.example"))
            )
            rows.append(email.utils.formataddr((rng.choice(("", "A B", "Doe, J.", 'q"x', "a\\b")), address)))
        value = ", ".join(rows)
        got = [(a.name, a.local.decode() + "@" + a.domain.decode()) for a in parse_addresses(value.encode())]
        assert (
            got == email.utils.getaddresses([value], strict=False)
            if "strict" in email.utils.getaddresses.__code__.co_varnames
            else email.utils.getaddresses([value])
        )


def test_addr_spec_is_quoted_again():
    assert Address(b"a.b", b"c").addr_spec == "a.b@c"
    assert Address(b'a "b\\', b"c").addr_spec == '"a \\"b\\\\"@c'
    assert Address(b"a\r\nb", b"c").addr_spec == '"ab"@c'
    assert Address(b"a", b"").addr_spec == "a"


ONE = [b"a@b.example", b"A <a@b.example>", b'"x@y.example" <a@b.example>', b'"a@x"@b.example', b"a@[192.0.2.1]", b"A@b.example <a@B.example>", b"a@b.example (c@d)",
       b"=?utf-8?q?c=40d?= <a@b.example>"]  # fmt: skip
NONE = [b"", b"a@b.example, c@d.example", b"G: a@b.example;", b"G:;", b"a@b@c.example", b"c@d.example <a@b.example>", b"<a@b> <c@d>",
        b"a", b"@b.example", b"a@", b"a@b c.example", b"a b@c.example", b"<a@b.example", b"a@b..example", b"a@b.example\0"]  # fmt: skip


@pytest.mark.parametrize("value", ONE)
def test_one_identity(value):
    found = author(b"From: " + value + b"\r\nTo: z@z\r\n\r\nFrom: body@x\r\n")
    assert found is not None
    assert (found.local, found.domain) == (parse_addresses(value)[0].local, parse_addresses(value)[0].domain)


@pytest.mark.parametrize("value", NONE)
def test_no_identity(value):
    assert author(b"From: " + value + b"\r\n\r\n") is None


def test_two_from_fields_are_no_identity():
    assert author(b"From: a@b.example\r\nFROM : a@b.example\r\n\r\n") is None
    assert author(b"To: a@b.example\r\n\r\nFrom: a@b.example\r\n") is None


def test_envelope_shows_the_same_mailboxes():
    """Display, search and DMARC must not read an address differently (the kernel's answer is tested against its twin)."""
    rng = random.Random(7489)
    marks = [b'"', b"\\", b"(", b")", b"<", b">", b"@", b",", b";", b":", b"[", b"]", b" ", b"a", b"b.c"]
    for _ in range(3000):
        value = b"".join(rng.choices(marks, k=rng.randrange(16)))
        shown: list[bytes] = []
        mime_py._address_list(value, shown)
        mailboxes = [row for row in shown if not row.endswith(b" NIL)")]
        named_only = [row for row in mailboxes if row.endswith(b' "" "")')]
        assert len(mailboxes) - len(named_only) == len(parse_addresses(value)), value


def test_the_short_way_says_what_the_long_one_says(monkeypatch):
    rng = random.Random(5322)
    pieces = [b'"', b"a", b"b.c", b" ", b"\t", b"<", b">", b"@", b".", b",", b":", b";", b"(", b")", b"x@y.z", b"<a@b>", b"=?utf-8?q?=C3=A4?="]
    pieces += [b"\xc3\xa4", b"\r\n ", b"'", b"[1.2.3.4]", b'"q r"', b"Anna ", b"\x01", b"\x7f", b"=?utf-8?q?a=40b?=", b"\xff", b"\\"]
    heads = [b"From:" + b"".join(rng.choices(pieces, k=rng.randrange(9))) + b"\r\nTo: x\r\n\r\n" for _ in range(20_000)]
    short = [address.author(head) for head in heads]
    monkeypatch.setattr(address, "_plain", lambda value: None)
    assert [address.author(head) for head in heads] == short and sum(found is not None for found in short) > 500
