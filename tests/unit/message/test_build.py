"""Mail made here can't be broken out of, and other readers understand it."""

import email
import email.policy
import random

import pytest

from iems.message import Structure, build
from iems.message.text import part_octets, part_text
from iems.message.words import decode_words

HOSTILE = ["a\r\nBcc: x@y", "a\nb", "a\rb", "a\0b", "a\x0bb", "a\x85b", "a\u2028b", "a\x1b[2J"]


@pytest.mark.parametrize("value", HOSTILE)
def test_injection_is_refused(value):
    for make in (
        lambda: build.field("Subject", value),
        lambda: build.raw_field("X-Raw", value),
        lambda: build.address_field("To", [("a@b.example", value)]),
        lambda: build.address_field("To", [(value + "@b.example", "")]),
        lambda: build.octets_part(b"", "image/png", value),
        lambda: build.content_type_field("text/" + value),
        lambda: build.multipart(value, []),
        lambda: build.field(value, "x"),
        lambda: build.message_id(b"x", value),
    ):
        with pytest.raises(ValueError):
            make()


@pytest.mark.parametrize(
    "address", ["", "a", "@b", "a@", "a b@c", "a@b>,<c@d", "a@b, c@d", "a@b(c)", '"a@b', "a@[x y]"]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError):
        build.mailbox(address)


def test_fields_fold_and_come_back():
    rng = random.Random(998)
    for _ in range(500):
        text = " ".join(
            "".join(rng.choices("abäß€", k=rng.randrange(1, 30))) for _ in range(rng.randrange(1, 30))
        )
        made = build.field("Subject", text)
        assert made.endswith(b"\r\n") and made.isascii()
        assert all(len(line) <= 76 or b" " not in line[1:] for line in made.split(b"\r\n"))
        assert decode_words(made[len(b"Subject:") :]) == text
    plain = build.field("Subject", "word " * 40)
    assert max(map(len, plain.split(b"\r\n"))) <= 76
    with pytest.raises(ValueError):
        build.raw_field("X", "x" * 1000)


def test_the_standard_library_reads_it():
    raw = (
        build.address_field(
            "From", [("a@b.example", "Jürgen Müller"), ("c@d.example", 'Doe, "J."'), ("e@f.example", "")]
        )
        + build.field("Subject", "Grüße aus Köln")
        + build.date_field(1_772_442_000, 60)
        + build.raw_field("Message-ID", build.message_id(b"\x01" * 16, "b.example"))
        + build.raw_field("MIME-Version", "1.0")
        + build.multipart(
            "mixed",
            [
                build.text_part("Größe\n.\nFrom me\n=\t\nend"),
                build.text_part("plain"),
                build.octets_part(bytes(range(256)), "image/png", "Bild schön " * 12 + ".png"),
            ],
        )
    )
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert [a.display_name for a in message["from"].addresses] == ["Jürgen Müller", 'Doe, "J."', ""]
    assert message["subject"] == "Grüße aus Köln"
    assert message["date"].datetime.isoformat() == "2026-03-02T10:00:00+01:00"
    parts = list(message.iter_parts())
    assert parts[0].get_content().replace("\r\n", "\n").rstrip("\n") == "Größe\n.\nFrom me\n=\t\nend"
    assert parts[2].get_content() == bytes(range(256))
    assert parts[2].get_filename() == "Bild schön " * 12 + ".png"
    assert not message.defects and not any(part.defects for part in parts)
    structure = Structure.parse(raw)
    assert part_text(raw, structure.part("1")).replace("\r\n", "\n") == "Größe\n.\nFrom me\n=\t\nend"
    assert part_octets(raw, structure.part("3")) == bytes(range(256))
    assert all(len(line) <= 998 for line in raw.split(b"\r\n")) and b"\n" not in raw.replace(b"\r\n", b"")


def test_text_comes_back():
    rng = random.Random(2045)
    for _ in range(500):
        text = "".join(
            rng.choices(
                ["a", "b ", "ä", "\n", "\r\n", "=", ".", "From ", "\t", "x" * 80], k=rng.randrange(30)
            )
        )
        raw = build.text_part(text)
        structure = Structure.parse(raw)
        got = part_text(raw, structure.part("1"))
        assert got == text.replace("\r\n", "\n").replace("\n", "\r\n"), text
        assert max(map(len, raw.split(b"\r\n"))) <= 78


def test_no_part_ends_its_multipart():
    inner = build.multipart("alternative", [build.text_part("x")])
    first = build.multipart("mixed", [inner, inner])
    again = build.multipart("mixed", [first])
    assert Structure.parse(again).text("1.2.1") == b"x"
    assert build.multipart("mixed", [inner, inner]) == first
