"""Texts added to mail: the four shapes, every transfer encoding, charsets, and what is left alone."""

from __future__ import annotations

import base64
import email
import email.policy
import quopri

import pytest

from iems.directory import Directory
from iems.directory.entries import DirectoryRefusal
from iems.preprocessor.modules.autotext import AutoText, insert
from iems.preprocessor.ropes import replaced

TEXTS = AutoText("-- \r\nDies ist vertraulich – bitte löschen.\r\n", "<p>Confidential – löschen</p>")
ASCII = AutoText("Plain notice.\n", "<p>Notice</p>")


def result(content: bytes, texts: AutoText = TEXTS, signed: bool = False) -> bytes | str:
    found = insert(content, texts, signed)
    if isinstance(found, str):
        return found
    return b"".join(replaced([content], [(c.start, c.end, [c.new] if c.new else []) for c in found]))  # type: ignore[arg-type]


def bodies(octets: bytes | str) -> dict[str, str]:
    assert isinstance(octets, bytes), octets
    message = email.message_from_bytes(octets, policy=email.policy.default)
    assert not [d for p in message.walk() for d in p.defects]
    return {p.get_content_type(): p.get_content() for p in message.walk() if p.get_content_maintype() == "text"}


def mail(kind: str, body: bytes, encoding: str = "") -> bytes:
    extra = f"Content-Transfer-Encoding: {encoding}\r\n" if encoding else ""
    return f"Subject: s\r\nMIME-Version: 1.0\r\nContent-Type: {kind}\r\n{extra}X-Kept: 1\r\n\r\n".encode() + body


@pytest.mark.parametrize("texts", [TEXTS, ASCII])
@pytest.mark.parametrize(
    ("kind", "body", "encoding"),
    [
        ("text/plain", b"hello\r\n", ""),
        ("text/plain", b"hello", "7bit"),
        ("text/plain; charset=utf-8", "grüße\r\n".encode(), "8bit"),
        ("text/plain; charset=iso-8859-1", "grüße".encode("latin-1"), "8bit"),
        ("text/plain; charset=utf-8", quopri.encodestring("grüße\r\n".encode()), "quoted-printable"),
        ("text/plain; charset=utf-8", base64.encodebytes("grüße\r\n".encode()), "base64"),
        ("text/plain; charset=utf-16", base64.encodebytes("grüße\r\n".encode("utf-16")), "base64"),
        ("text/plain; charset=no-such", b"hello\r\n", ""),
    ],
)
def test_single_part(texts: AutoText, kind: str, body: bytes, encoding: str) -> None:
    found = bodies(result(mail(kind, body, encoding), texts))
    text = found["text/plain"].replace("\r\n", "\n")
    assert text.startswith("hello\n" if b"hello" in body else "grüße\n") and texts.text.replace("\r\n", "\n").strip() in text


def test_no_mime_at_all() -> None:
    content = b"Subject: s\r\n\r\nhello\r\n"
    assert result(content, ASCII) == content + b"Plain notice.\r\n"
    made = result(content)
    assert isinstance(made, bytes) and made.count(b"MIME-Version") == 1 and "vertraulich – bitte" in bodies(made)["text/plain"]
    assert bodies(result(b"Subject: s\r\n\r\n", ASCII))["text/plain"].strip() == "Plain notice."


@pytest.mark.parametrize("encoding", ["7bit", "quoted-printable", "base64"])
def test_html(encoding: str) -> None:
    page = b"<html><body><p>hi</p></BODY ></html>\r\n"
    raw = {"7bit": page, "quoted-printable": quopri.encodestring(page), "base64": base64.encodebytes(page)}[encoding]
    text = bodies(result(mail("text/html", raw, encoding)))["text/html"]
    assert "<p>Confidential &#8211; l&#246;schen</p>" in text and text.index("Confidential") < text.lower().index("</body")


def test_alternative_and_mixed() -> None:
    alternative = b"Content-Type: multipart/alternative; boundary=A\r\n\r\n--A\r\n\r\nhello\r\n--A\r\nContent-Type: text/html\r\n\r\n<p>hello</p>\r\n--A--\r\n"
    mixed = b"Subject: s\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=M\r\n\r\n--M\r\n" + alternative
    mixed += b"--M\r\nContent-Type: text/plain; name=a.txt\r\nContent-Disposition: attachment\r\n\r\nfile\r\n--M\r\nContent-Type: message/rfc822\r\n\r\nSubject: in\r\n\r\ninner\r\n--M--\r\n"
    for content in (b"Subject: s\r\nMIME-Version: 1.0\r\n" + alternative, mixed):
        made = result(content, ASCII)
        assert isinstance(made, bytes)
        assert b"hello\r\nPlain notice.\r\n--A" in made and b"<p>hello</p>\r\n<p>Notice</p>\r\n--A--" in made
        assert made.count(b"notice") == 1 and len(made) == len(content) + len(b"\r\nPlain notice.") + len(b"\r\n<p>Notice</p>")
    assert b"Plain" not in result(content, AutoText(html="<p>Notice</p>")), "no HTML text, no plain one"  # type: ignore[operator]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (mail("multipart/signed; boundary=S; protocol=x", b"--S\r\n\r\nhello\r\n--S\r\n\r\nsig\r\n--S--\r\n"), "signed or encrypted"),
        (mail("multipart/encrypted; boundary=S", b"--S\r\n\r\nx\r\n--S--\r\n"), "signed or encrypted"),
        (mail("application/pkcs7-mime", b"abc"), "signed or encrypted"),
        (mail("text/plain", b"-----BEGIN PGP SIGNED MESSAGE-----\r\nhello\r\n"), "signed or encrypted"),
        (b"DKIM-Signature: v=1\r\n" + mail("text/plain", b"hello\r\n"), "signed by DKIM"),
        (mail("text/plain", b"I answer\r\n> hello\r\n> Plain\r\n> notice.\r\n"), "quotes the text already"),
        (mail("text/html", b"<blockquote><p>Plain <b>notice.</b></p></blockquote>"), "quotes the text already"),
        (mail("image/png", b"x"), "no body for a text"),
    ],
)
def test_left_alone(content: bytes, why: str) -> None:
    assert result(content, ASCII) == why
    if "DKIM" in why:
        assert isinstance(result(content, ASCII, signed=True), bytes)


def test_texts_are_kept(tmp_path) -> None:
    directory = Directory(tmp_path / "d", create=True)
    directory.set_autotext("smtpd", "a\nb", "")
    directory.set_autotext("WEBCLIENT", "", "<p>")
    directory.set_autotext("SMTPD", "a\nc", "<b>")
    assert directory.autotexts() == {1: ("a\nc", "<b>"), 3: ("", "<p>")}
    for wrong in (("MTA", "x", ""), ("LOCAL", "x", ""), ("SMTPD", "x" * 20_001, ""), ("SMTPD", "\x00", ""), ("DLOUT", "", "")):
        with pytest.raises(DirectoryRefusal):
            directory.set_autotext(*wrong)
    directory.set_autotext("SMTPD", "", "")
    assert set(directory.autotexts()) == {3}
    directory.close()
