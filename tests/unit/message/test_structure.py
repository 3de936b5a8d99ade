"""Sections of FETCH (RFC 3501 6.4.5) as ranges of a message."""

import pytest

from iems.message import Structure, body, header_fields, summarize

MESSAGE = b"""\
From: A <a@b.example>\r
To: x@y.example (Foo)\r
Subject: hi\r
 there\r
Content-Type: multipart/mixed; boundary=foo\r
\r
preamble\r
--foo\r
\r
text\r
--foo\r
Content-Type: message/rfc822\r
\r
From: z@z.example\r
\r
body\r
\r
--foo\r
Content-Type: message/rfc822\r
\r
Content-Type: multipart/alternative; boundary="foo bar"\r
Subject: inner\r
\r
--foo bar\r
\r
one\r
--foo bar\r
Content-Type: text/html\r
\r
two\r
--foo bar--\r
--foo--\r
epilogue\r
"""

SECTIONS = {
    "": MESSAGE,
    "HEADER": MESSAGE[: MESSAGE.index(b"preamble")],
    "TEXT": MESSAGE[MESSAGE.index(b"preamble") :],
    "HEADER.FIELDS (SUBJECT X-None)": b"Subject: hi\r\n there\r\n\r\n",
    "header.fields.not (from to content-type)": b"Subject: hi\r\n there\r\n\r\n",
    'HEADER.FIELDS ("from")': b"From: A <a@b.example>\r\n\r\n",
    "1": b"text",
    "1.MIME": b"\r\n",
    "1.1": None,
    "1.HEADER": None,
    "1.TEXT": None,
    "2": b"From: z@z.example\r\n\r\nbody\r\n",
    "2.MIME": b"Content-Type: message/rfc822\r\n\r\n",
    "2.HEADER": b"From: z@z.example\r\n\r\n",
    "2.HEADER.FIELDS (To)": b"\r\n",
    "2.TEXT": b"body\r\n",
    "2.1": b"body\r\n",
    "2.1.1": None,
    "2.2": None,
    "3.1": b"one",
    "3.2": b"two",
    "3.2.MIME": b"Content-Type: text/html\r\n\r\n",
    "3.3": None,
    "3.HEADER.FIELDS (Subject)": b"Subject: inner\r\n\r\n",
    "3.TEXT": b"--foo bar\r\n\r\none\r\n--foo bar\r\nContent-Type: text/html\r\n\r\ntwo\r\n--foo bar--\r\n",
    "4": None,
}


@pytest.mark.parametrize("spec", SECTIONS)
def test_sections(spec):
    assert Structure.parse(MESSAGE).text(spec) == SECTIONS[spec]


@pytest.mark.parametrize(
    "spec",
    [
        "MIME",
        "1.",
        "1.FOO",
        "HEADER.FIELDS",
        "HEADER.FIELDS ()",
        "TEXT (a)",
        "0",
        "01",
        "1HEADER",
        ".HEADER",
        "1..2",
        "-1",
    ],
)
def test_what_is_no_section_is_refused(spec):
    with pytest.raises(ValueError):
        Structure.parse(MESSAGE).section(spec)


def test_a_message_that_is_no_multipart_has_one_part():
    structure = Structure.parse(b"Subject: x\r\n\r\nthe body\r\n")
    assert structure.text("1") == structure.text("TEXT") == b"the body\r\n"
    assert structure.text("1.MIME") == b"Subject: x\r\n\r\n"
    assert structure.text("1.1") is None and structure.text("2") is None


def test_header_without_empty_line_still_gets_one_in_header_fields():
    assert header_fields(b"Subject: x\r\nTo: y\r\n", [b"to"]) == b"To: y\r\n\r\n"
    assert header_fields(b"", [b"to"]) == b"\r\n"


def test_summaries():
    envelope, structure = summarize(b"From: A <a@b.example>\r\nSubject: hi\r\n there\r\n\r\nx\r\n")
    address = b'(("A" NIL "a" "b.example"))'
    assert envelope == b'(NIL "hi there" %s %s %s NIL NIL NIL NIL NIL)' % (address, address, address)
    assert structure == b'("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 3 1 NIL NIL NIL NIL)'
    assert body(MESSAGE).startswith(b'(("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 4 0)("message"')
