"""Text of a message decoded, and what SEARCH finds in it."""

import base64
import binascii
import random
import re

import pytest

from iems.message import Structure
from iems.message import text as text_module
from iems.message.text import Searchable, decode_transfer, fold, part_text, preview, search_text

MESSAGE = (
    b"From: =?utf-8?q?J=C3=BCrgen?= <j@b.example>\r\nSubject: =?iso-8859-1?q?Gr=FC=DFe?=\r\n aus\r\n =?utf-8?q?K=C3=B6ln?=\r\n"
    b"Content-Type: multipart/mixed; boundary=x\r\n\r\npreamble secret\r\n"
    b"--x\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nDer Stra=C3=9Fen=\r\nverkehr\r\n"
    b"--x\r\nContent-Type: text/html; charset=iso-8859-1\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    + base64.encodebytes("<p>Müller &amp; Söhne</p>".encode("latin-1"))
    + b"--x\r\nContent-Type: application/pdf; name=\"=?utf-8?q?Rechnung_=C3=84?=.pdf\"\r\n\r\nbinary needle\r\n"
    b"--x\r\nContent-Type: message/rfc822\r\n\r\nSubject: =?utf-8?q?Inn=C3=A9n?=\r\n\r\ninner body\r\n--x--\r\n"
)  # fmt: skip


@pytest.mark.parametrize(
    ("key", "in_body", "in_text"),
    [
        ("strassenverkehr", True, True),
        ("STRAßENVERKEHR", True, True),
        ("müller", True, True),
        ("rechnung ä", True, True),
        ("innén", True, True),
        ("inner  body", True, True),
        ("jürgen", False, True),
        ("GRÜSSE aus Köln", False, True),
        ("needle", False, False),
        ("secret", False, False),
        ("absent", False, False),
        ("", True, True),
    ],
)
def test_keys(key, in_body, in_text):
    message = Searchable(MESSAGE)
    assert message.in_body(fold(key)) is in_body
    assert message.in_text(fold(key)) is in_text


def test_fields():
    message = Searchable(MESSAGE)
    assert message.field(b"subject") == ["grüsse aus köln"]
    assert message.in_field(b"From", fold("JÜRGEN <J@B"))
    assert message.in_field(b"Subject", "") and not message.in_field(b"X-None", "")
    assert "köln" in search_text(MESSAGE, "SUBJECT") and "köln" in search_text(MESSAGE, "TEXT")
    assert "köln" not in search_text(MESSAGE, "BODY") and "köln" in search_text(MESSAGE, "HEADER")


def test_a_part_as_text():
    structure = Structure.parse(MESSAGE)
    assert part_text(MESSAGE, structure.part("1")) == "Der Straßenverkehr"
    assert part_text(MESSAGE, structure.part("2")) == "<p>Müller &amp; Söhne</p>"
    assert preview(MESSAGE) == "Der Straßenverkehr"
    assert preview(b"Content-Type: text/html\r\n\r\n<style>p{}</style><b>a</b>&amp;<!-- x -->b") == "a & b"
    assert preview(b"Content-Type: image/png\r\n\r\nx") == ""


def test_transfer_encodings():
    assert decode_transfer(b"=41=\r\nb=zz", b" Quoted-Printable ") == b"Ab=zz"
    assert decode_transfer(b"YWI", b"BASE64") == b"ab"
    assert decode_transfer(b"as it is", b"x-unknown") == b"as it is"
    uu = b"begin 644 f\r\n" + b"".join(binascii.b2a_uu(b"some octets") for _ in range(2)) + b"`\r\nend\r\n"
    assert decode_transfer(uu, b"x-uuencode") == b"some octets" * 2
    assert decode_transfer(b"begin 644 f\n" + b"M" * 10 + b"\n\xff\n", b"uuencode") is not None
    assert decode_transfer(b"", b"base64") == b""


def test_a_message_without_structure_is_text():
    assert Searchable(b"caf\xe9").in_text("caf") is True
    assert Searchable(b"").in_body("") is True
    assert Searchable(b"Content-Type: multipart/mixed\r\n\r\nno boundary here").in_body("no boundary")


def test_encoded_words_over_a_fold_are_one_text_in_the_whole_header_too():
    content = b"Subject: =?utf-8?Q?Gr=C3=BC?=\r\n =?utf-8?Q?=C3=9Fe?= aus\r\n Ulm\r\n\r\nbody"
    assert Searchable(content).in_field(b"Subject", fold("Grüße aus Ulm"))
    assert Searchable(content).in_text(fold("Grüße aus Ulm"))


def test_white_space_that_transport_added_is_found_and_no_other() -> None:
    rng = random.Random(2045)
    for _ in range(20_000):
        raw = bytes(rng.choices(b" \t\r\nx", k=rng.randrange(9)))
        assert text_module._trails(raw) == bool(re.search(rb"[ \t](?=\r?\n|\Z)", raw)), raw
        assert decode_transfer(raw, b"quoted-printable") == re.sub(rb"[ \t]+(?=\r?\n|\Z)", b"", raw), raw
