"""Arguments read from commands (RFC 3501 9), and what breaks the grammar."""

import pytest

from iems.imap.grammar import MAX_NESTING, Arguments, Bad


def test_strings():
    arguments = Arguments(b'atom "quo\\"ted \\\\" {4}\r\na\r\nb {2+}\r\n() NIL ""')
    assert arguments.astring() == b"atom"
    arguments.space()
    assert arguments.astring() == b'quo"ted \\'
    arguments.space()
    assert arguments.astring() == b"a\r\nb"
    arguments.space()
    assert arguments.string() == b"()"
    arguments.space()
    assert arguments.nstring() is None
    arguments.space()
    assert arguments.nstring() == b""
    arguments.end()


@pytest.mark.parametrize(
    "data", [b"", b'"open', b'"bad \\escape"', b"{5}\r\nabc", b"{1}\r\n\0", b"(", b"{x}", b'"a\nb"', b"%"]
)
def test_bad_strings(data):
    with pytest.raises(Bad):
        Arguments(data).astring()


def test_numbers():
    assert Arguments(b"4294967295").number() == 4294967295
    for data in (b"4294967296", b"-1", b"", b"99999999999999999999999999"):
        with pytest.raises(Bad):
            Arguments(data).number()
    assert Arguments(b"9223372036854775807").number64() == 2**63 - 1
    with pytest.raises(Bad):
        Arguments(b"9223372036854775808").number64()


def test_dates():
    assert Arguments(b"1-Jan-1970").date() == 0
    assert Arguments(b'"7-feb-1994"').date() == 8803
    for data in (b"30-Feb-2000", b"1-Foo-2000", b'"1-Jan-2000', b"0-Jan-2000", b"1-Jan-0000"):
        with pytest.raises(Bad):
            Arguments(data).date()
    assert Arguments(b'" 7-Feb-1994 21:52:25 -0800"').date_time() == 760686745
    assert Arguments(b'"01-Jan-1970 01:00:00 +0100"').date_time() == 0
    for data in (
        b'"7-Feb-1994 21:52:25 -0800"',
        b'" 7-Feb-1994 24:00:00 +0000"',
        b'" 7-Feb-1994 21:52:25 EST"',
    ):
        with pytest.raises(Bad):
            Arguments(data).date_time()


def test_flag_lists():
    assert Arguments(b"()").flag_list() == []
    assert Arguments(b"(\\Seen $Junk)").flag_list() == [b"\\Seen", b"$Junk"]
    for data in (b"(\\Seen", b"( \\Seen)", b"(\\Seen  a)", b"(\\*)"):
        with pytest.raises(Bad):
            Arguments(data).flag_list()


def test_nesting_ends():
    arguments = Arguments(b"")
    for _ in range(MAX_NESTING):
        arguments.enter()
    with pytest.raises(Bad):
        arguments.enter()
