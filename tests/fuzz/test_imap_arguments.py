"""Whatever arguments a command gets, its parser gives a value or refuses: nothing else may come out of it."""

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from iems.imap import appending
from iems.imap.grammar import Arguments, Bad, Refused
from iems.imapd.commands import COMMANDS

TOKENS = [
    b" ", b" ", b" ", b"(", b")", b"<", b">", b"[", b"]", b"*", b"$", b"%", b"~", b'"', b'""', b"{3}\r\nabc", b"{9}\r\nx", b"~{1}\r\n\0",
    b"1", b"0", b"1:*", b"4294967296", b"1,3:2", b"INBOX", b'"a b"', b"&AMQ-", b"&x", b"\xc3\xa4", b"\xff",
    b"RETURN (", b"PARTIAL ", b"1:2", b"-1:-5", b"ALL", b"SAVE", b"COUNT", b"UPDATE", b"NOT", b"OR", b"HEADER", b"SUBJECT", b"CHARSET ", b"UTF-8",
    b"MODSEQ", b"EMAILID", b"SAVEDON", b"1-Jan-2020", b"FLAGS", b"+FLAGS.SILENT", b"\\Seen", b"UNCHANGEDSINCE", b"CHANGEDSINCE", b"VANISHED",
    b"BODY.PEEK[", b"BINARY[", b"BINARY.SIZE[1]", b"HEADER.FIELDS (", b"PREVIEW (LAZY)", b"QRESYNC (", b"CONDSTORE", b"STATUS", b"MESSAGES",
    b"CATENATE (", b"URL ", b"TEXT ", b"UTF8 (", b'" 1-Jan-2020 00:00:00 +0000"', b"DEPTH ", b"MAXSIZE ", b"infinity", b"/shared/x", b"/private",
    b"SET", b"NONE", b"SELECTED", b"SUBTREE", b"MessageNew", b"MessageExpunge", b"REVERSE", b"DATE", b"REFERENCES", b"DEFLATE", b"lrs", b"+kx", b"NIL",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(TOKENS), max_size=14).map(lambda parts: b" " + b"".join(parts))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(COMMANDS)), TEXTS, st.booleans())
def test_arguments(name, text, utf8):
    arguments = Arguments(text)
    arguments.utf8 = utf8
    with contextlib.suppress(Bad, Refused):
        COMMANDS[name].parse(arguments)


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.lists(TEXTS, max_size=3), st.booleans())
def test_arguments_around_contents(first, rest, numbered):
    with contextlib.suppress(Bad, Refused):
        prefix = appending.stream(Arguments(first), None, numbered)
        for text in rest:
            if prefix is None:
                return
            with contextlib.suppress(Bad, Refused):
                appending.tail(Arguments(text), prefix)
            prefix = appending.stream(Arguments(text), prefix, numbered)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_urls(text):
    for url in (text, b"/INBOX/;UID=1/;SECTION=" + text, b"/INBOX;UIDVALIDITY=" + text + b"/;UID=1"):
        target = appending.url(url)
        assert target is None or target.uid >= 0
