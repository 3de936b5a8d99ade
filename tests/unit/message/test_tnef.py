"""TNEF and the RTF in it: what Outlook wraps comes out, what is broken is noted, nothing runs away."""

from __future__ import annotations

import email
import email.policy
import re
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.message import expand, rtf, tnef
from tests.support.tnef import attachment, attribute, prop, props, rtf_body, stream

HTML = (
    rb"{\rtf1\ansi\ansicpg1252\fromhtml1 \deff0{\fonttbl{\f0\fcharset0 Arial;}{\f1\fcharset204 Arial;}}"
    rb"{\*\htmltag64 <p>}\htmlrtf {\htmlrtf0 caf\'e9 \u8364? {\f1 \'cf\'f0} \htmlrtf hidden\htmlrtf0{\*\htmltag84 &nbsp;}\htmlrtf }\htmlrtf0 {\*\htmltag72 </p>}"
    rb"{\*\other secret}}"
)


def test_bodies_and_attachments_come_out() -> None:
    inner = stream(attribute(1, 0x00018004, b"inner\0"), attachment("deep.txt", b"deep"))
    found = tnef.parse(
        stream(
            attribute(1, 0x00069007, struct.pack("<II", 1252, 0)),
            attribute(1, 0x00018004, b"Gr\xfc\xdfe\0"),
            rtf_body(HTML),
            attachment("Bericht \u0416.pdf", b"%PDF", "application/pdf"),
            attachment("plain", b"", message=inner),
            attribute(2, 0x00069002, bytes(14)) + attribute(2, 0x0006800F, b"data first") + attribute(2, 0x00018010, b"AUTOEXEC.BAT\0"),
        )
    )
    assert found is not None and not found.defects and found.subject == "Grüße"
    assert found.names() == ["Bericht Ж.pdf", "plain", "deep.txt", "AUTOEXEC.BAT"]
    assert rtf.extract(found.rtf) == ("<p>café € Пр&nbsp;</p>".replace("Пр&nbsp;", "Пр &nbsp;"), True)
    part = b"MIME-Version: 1.0\r\n" + expand.expanded(found)
    message = email.message_from_bytes(part, policy=email.policy.default)
    kinds = [(p.get_content_type(), p.get_filename()) for p in message.walk() if not p.is_multipart()]
    assert ("text/html", None) in kinds and ("application/pdf", "Bericht Ж.pdf") in kinds and ("text/plain", "deep.txt") in kinds
    [pdf] = [p for p in message.walk() if p.get_filename() == "Bericht Ж.pdf"]
    assert pdf.get_content() == b"%PDF"
    [attached] = [p for p in message.walk() if p.get_content_type() == "message/rfc822"]
    assert attached.get_content()["Subject"] == "inner"


def test_plain_rtf_is_text() -> None:
    text, html = rtf.extract(rb"{\rtf1\ansi{\fonttbl\f0 Arial;}Hello\par \{x\} \bullet  \'80\u-4000?{\*\x y}{\info z}\par}")
    assert not html and text == "Hello\r\n{x} \u2022 \u20ac\uf060\r\n"


@pytest.mark.parametrize(
    "data",
    [
        stream(attribute(1, 0x00069003, struct.pack("<I", 0xFFFFFFFF))),
        stream(attribute(1, 0x00069003, props(prop(0x1000, 0x1F, b"x" * 4)[:-6]))),
        stream(attribute(1, 0x00069003, struct.pack("<IHHI", 1, 0x101F, 0x1000, 0xFFFFFFF0))),
        stream(struct.pack("<BIi", 2, 0x0006800F, -5) + b"xx"),
        stream(struct.pack("<BIi", 2, 0x0006800F, 1 << 30) + b"xx"),
        stream(b"\x07" * 40),
        stream(attribute(1, 0x00069003, props(prop(0x1009, 0x102, b"\xff" * 40)))),
        stream(attribute(1, 0x00018004, b"x\0", checksum=1)),
    ],
)
def test_what_is_broken_is_noted(data: bytes) -> None:
    found = tnef.parse(attachment_first(data))
    assert found is not None and found.defects and found.names() == ["kept.txt"]


def attachment_first(data: bytes) -> bytes:
    return data[:6] + attachment("kept.txt", b"kept") + data[6:]


def test_depth_and_number_are_bounded() -> None:
    data = stream()
    for _ in range(30):
        data = stream(attachment("m", b"", message=data))
    found = tnef.parse(data)
    assert found is not None and len(found.names()) <= tnef.MAX_DEPTH + 2
    many = tnef.parse(stream(*[attribute(2, 0x00069002, b"")] * (tnef.MAX_ATTACHMENTS + 50)))
    assert many is not None and len(many.attachments) == tnef.MAX_ATTACHMENTS and many.defects
    assert tnef.parse(b"no") is None and tnef.parse(b"\x78\x9f\x3e\x22") is None


def test_names_are_harmless() -> None:
    for name in ("../../etc/passwd", "a\r\nX: y", "C:\\x\\con", "", "\0", "x" * 3000):
        part = expand.expanded(tnef.parse(stream(attachment(name, b"x"))))  # type: ignore[arg-type]
        shown = email.message_from_bytes(part, policy=email.policy.default).get_filename()
        assert shown and "/" not in shown and "\\" not in shown and len(shown) < 300 and "\n" not in shown


def test_hostile_rtf_is_quick() -> None:
    begun = time.process_time()
    rtf.extract(b"{\\rtf1" + b"{" * 1_000_000)
    rtf.extract(b"{\\rtf1" + b"\\u12?" * 200_000)
    rtf.extract(b"{\\rtf1{\\fonttbl" + b"{\\f1" * 100_000)
    assert time.process_time() - begun < 10


@given(st.binary(max_size=300), st.integers(0, 200), st.binary(min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_never_raises(tail: bytes, at: int, octets: bytes) -> None:
    sound = stream(attribute(1, 0x00018004, b"s\0"), rtf_body(HTML), attachment("a.txt", b"abc", "text/plain"))
    damaged = sound[:at] + octets + sound[at + len(octets) :] + tail
    for data in (damaged, stream(tail)):
        found = tnef.parse(data)
        if found is not None:
            expand.expanded(found)
    rtf.extract(tail)
    rtf.extract(b"{\\rtf1\\fromhtml1 " + tail)


SETS = Path(__file__).parents[4] / "shared" / "data" / "tnef"


@pytest.mark.shared
@pytest.mark.skipif(not SETS.is_dir(), reason="the wider sets are not there")
def test_wider_set_is_complete() -> None:
    """Every attachment and body that the lists of other programs name comes out."""
    seen = 0
    for path in sorted(SETS.glob("*.tnef")):
        found = tnef.parse(path.read_bytes())
        assert found is not None, path.name
        expand.expanded(found)
        listed = path.with_suffix(".list")
        if not listed.exists():
            continue
        names = {re.sub(r"[^A-Za-z0-9._-]", "_", name) for name in found.names()}
        for name in listed.read_text().split():
            body = {"body.rtf": bool(found.rtf), "body.html": bool(found.html)}.get(name)
            assert body if body is not None else name in names, f"{path.name}: {name}"
            seen += 1
    assert seen > 20
