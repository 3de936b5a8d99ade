"""Flags, FETCH items, search keys, response strings."""

import pytest

from iems.imap import fetch, flags, response, search
from iems.imap.grammar import Arguments, Bad, Refused


def test_flags():
    assert flags.settable([b"\\seen", b"\\RECENT", b"Foo", b"\\Seen"]) == ["\\Seen", "Foo"]
    with pytest.raises(Bad):
        flags.settable([b"\\Nonsense"])
    assert flags.render(flags.SEEN | flags.RECENT | 1 << 17 | 1 << 30, ["a", "b"]) == b"(\\Seen \\Recent b)"
    assert flags.keyword_bit(b"B", ["a", "b"]) == 1 << 17
    assert flags.keyword_bit(b"c", ["a", "b"]) == 0


def test_fetch_items():
    request = fetch.parse(
        Arguments(b"(UID BODY.PEEK[1.2.header.fields (from {2}\r\nTo)]<5.10> BODY[] RFC822.TEXT)")
    )
    assert request.simple == (b"UID",)
    first, second, third = request.sections
    assert first.part == (1, 2)
    assert first.fields == (b"FROM", b"TO")
    assert (first.origin, first.count, first.peek) == (5, 10, True)
    assert first.label == b"BODY[1.2.HEADER.FIELDS (FROM TO)]<5>"
    assert second == fetch.Section(peek=False)
    assert third.label == b"RFC822.TEXT"
    assert request.sets_seen
    assert fetch.parse(Arguments(b"full")).simple == (
        b"FLAGS",
        b"INTERNALDATE",
        b"RFC822.SIZE",
        b"ENVELOPE",
        b"BODY",
    )
    assert fetch.parse(Arguments(b"FLAGS (CHANGEDSINCE 12)")).changed_since == 12


@pytest.mark.parametrize(
    "data",
    [
        b"", b"()", b"(FLAGS", b"FOO", b"BODY[", b"BODY[0]", b"BODY[1.0]", b"BODY[MIME]", b"BODY[1.FOO]", b"BODY[HEADER.FIELDS ()]",
        b"BODY[HEADER.FIELDS]", b"BODY[HEADER.FIELDS (a:b)]", b"BODY[]<1>", b"BODY[]<1.0>", b"BODY[]<-1.5>", b"BODY.PEEK",
        b"(FULL)", b"FLAGS UID", b"BODY[1.]", b"BODY[" + b"1." * 100 + b"]", b"(" + b"BODY[] " * 300 + b"UID)",
        b"FLAGS (CHANGEDSINCE)", b"FLAGS (VANISHED)",
    ],
)  # fmt: skip
def test_bad_fetch_items(data):
    with pytest.raises(Bad):
        fetch.parse(Arguments(data))


def test_search_keys():
    key = search.parse(Arguments(b'OR (SEEN FROM x) NOT LARGER 5 2:* UID 7 HEADER X-Y ""'))
    assert key == search.And(
        [
            search.Or(
                search.And([search.Flag(flags.SEEN, True), search.Envelope(b"FROM", "x")]),
                search.Not(search.Size(5, True)),
            ),
            search.Sequence([(2, 1 << 32)], False),
            search.Sequence([(7, 7)], True),
            search.Header(b"X-Y", ""),
        ]
    )
    assert search.parse(Arguments(b'CHARSET utf-8 TEXT "\xc3\xbc"')) == search.Text("ü", True)
    assert search.uses_modseq(search.parse(Arguments(b'NOT MODSEQ "/flags/\\\\draft" all 620162338')))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"FOO", b"(SEEN", b"SEEN)", b"SEEN  ANSWERED", b"NOT", b"OR SEEN", b"FROM", b"BEFORE 1-1-2000", b"LARGER x", b"()",
        b"(" * 70 + b"ALL" + b")" * 70, b"NOT " * 70 + b"ALL", b"OR " * 70 + b"ALL " * 71, b"ALL " * 1001 + b"ALL",
        b"TEXT " + b"x" * 5000, b'TEXT "\xff"', b"MODSEQ -1", b"HEADER a:b c", b"KEYWORD \\*",
    ],
)  # fmt: skip
def test_bad_search_keys(data):
    with pytest.raises(Bad):
        search.parse(Arguments(data))


def test_unknown_charset():
    with pytest.raises(Refused):
        search.parse(Arguments(b"CHARSET KOI8-R ALL"))


def test_strings():
    assert response.string(b'a"\\') == b'"a\\"\\\\"'
    assert response.string(b"a\r\nb") == b"{4}\r\na\r\nb"
    assert response.string("ü".encode()) == b"{2}\r\n\xc3\xbc"
    assert response.nstring(None) == b"NIL"
    assert response.astring(b"INBOX") == b"INBOX"
    assert response.astring(b"nil") == b'"nil"'
    assert response.mailbox("a b") == b'"a b"'
    assert response.internaldate(760686745) == b'" 8-Feb-1994 05:52:25 +0000"'
