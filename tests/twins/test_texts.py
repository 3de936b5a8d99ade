"""The kernel that looks for texts in messages against `message.text.Searchable`, which defines the answer: it may be unsure, never wrong."""

from __future__ import annotations

import base64
import os
import quopri
import random
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iems._native import texts_py
from iems.message import sift
from iems.message.text import Searchable, decode_transfer, fold
from tests.unit.fulltext import mail

texts = pytest.importorskip("iems._native.texts")
if sift.judge is not texts.judge:
    pytest.skip("the twins are in use", allow_module_level=True)

NO, YES, UNSURE = texts.NO, texts.YES, texts.UNSURE
CORPUS = Path(__file__).parents[1] / "corpus" / "mime"

#: Pieces that are put together to headers and bodies, dense in what matters.
PIECES = [
    "a", "B", "kelvin", " ", "  ", "\t", "\r\n", "\r\n ", "\n", "\n\t", "\r", ":", "Subject:", "=?", "=?utf-8?q?x?=", "\x0b", "\x1c", "\0", "\x1b", "\x7f", "-", "=",
    "é", "É", "ß", "ſ", "K", "ﬁ", "Ａ", "e\u0301", "\u0301", "\xa0", "\u2003", "\u2028", "\x85", "İ", "ΐ", "ς", "Σ", "½", "日本", "カ\u3099", "각", "\u11a8", "🙂",
    "\ufeff", "\xad", "€", "¨", "´", "ǆ",
]  # fmt: skip


def dense(rng: random.Random, most: int = 12) -> str:
    return "".join(rng.choices(PIECES, k=rng.randrange(most)))


def plain(rng: random.Random, most: int = 12) -> str:
    return "".join(rng.choices([piece for piece in PIECES if piece.isascii()], k=rng.randrange(most)))


def composed(rng: random.Random) -> bytes:
    """A message of one part or two, its texts dense in edge cases."""
    parts = []
    for _ in range(rng.randrange(1, 4)):
        charset = rng.choice(["utf-8", "UTF-8", "", "us-ascii", "iso-8859-1", "windows-1252", "koi8-r", "utf-7", "utf-16", "hz", "iso-2022-jp", "no-such", "shift_jis"])
        try:
            octets = dense(rng).encode(rng.choice([charset or "utf-8", "utf-8"]), "replace")
        except LookupError:
            octets = dense(rng).encode()
        if rng.random() < 0.5:
            octets = plain(rng, 30).encode()
        if rng.random() < 0.1:
            octets += rng.randbytes(4)
        encoding = rng.choice(["base64", "quoted-printable", "8bit", "", "x-uuencode", "Base64 (c)", "no-such", "7bit 8bit", "quoted-printable;", "binary"])
        if encoding.lower().startswith("base64"):
            octets = base64.encodebytes(octets)
            if rng.random() < 0.3:
                octets = octets[: rng.randrange(len(octets) + 1)] + rng.choice([b"", b"=", b"==", b"*a", b"\r\n"])
        elif encoding.startswith("quoted") and rng.random() < 0.7:
            octets = quopri.encodestring(octets)
        kind = rng.choice(["text/plain", "text/html", "application/x", "TEXT/x", "message/x", "text", "", "image/png", "(c) text/plain"])
        parameter = rng.choice(["; charset=%s", '; charset="%s"', "; x=y; charset=%s", "; charset*=%s", "; charset = %s (c)", ";charset=%s; charset=utf-7"]) % charset
        head = f"Content-Type: {kind}{parameter if charset else ''}\r\nContent-Transfer-Encoding: {encoding}\r\n"
        if not kind:
            head = head.partition("\n")[2]
        if rng.random() < 0.5:
            head += "X: %s\r\n" % (plain(rng) if rng.random() < 0.8 else dense(rng))
        parts.append(head.encode() + b"\r\n" + octets)
    top = (plain(rng) if rng.random() < 0.7 else dense(rng)).encode()
    head = b"Subject: " + top + b"\r\nFrom:a@b\r\n"
    if len(parts) == 1:
        return head + parts[0]
    outer = b"message/rfc822" if rng.random() < 0.1 else b'multipart/mixed; boundary="b"'
    return head + b"Content-Type: " + outer + b"\r\n\r\npreamble\r\n--b\r\n" + b"\r\n--b\r\n".join(parts) + rng.choice([b"\r\n--b--\r\n", b""]) + b"epilogue"


WORDS = [
    b"=?utf-8?q?caf=C3=A9?=", b"=?utf-8?Q?=C3?=", b"=?utf-8?q?=A9x?=", b"=?UTF-8?B?w6k=?=", b"=?utf-8?b?w6?=", b"=?utf-8*en?q?a_b?=", b"=?iso-8859-1?q?=E9?=",
    b"=?windows-1251?b?4eI=?=", b"=?us-ascii?q?x=FFy?=", b"=?no-such?q?z?=", b"=?no-such?q?=E9?=", b"=?iso-2022-jp?b?GyRCRnxLXBsoQg==?=", b"=?utf-7?q?+AGE-?=",
    b"=?*?q?x?=", b"=?utf-8?x?y?=", b"=?utf-8?q?y", b"=?a?b?q?c?=", b"=?utf-8?q?=0A=0D?=", b"=?utf-8?q??=", b"=?" + b"u" * 76 + b"?q?x?=", b"?=", b"=?",
    b" ", b"\t", b"\r\n ", b"\r\n\t", b"\r", b"a", b"B:", b"\xc3\xa9", b"\xe9", b"\xc3", b"\r\nX: ", b"\r\nno colon", b"\r\n\xc3\xa9: y", b"=", b"?",
]  # fmt: skip


def test_encoded_words() -> None:
    """Headers full of them: joined, cut in two, in other charsets, broken, beside raw octets."""
    told: Counter[int] = Counter()
    for seed in range(12_000):
        rng = random.Random(seed)
        some = rng.sample(WORDS, 6) if rng.random() < 0.7 else WORDS
        content = b"Subject:" + b"".join(rng.choices(some, k=rng.randrange(10))) + rng.choice([b"\r\n\r\nbody", b"\n\nbody", b""])
        told.update(checked(content, keys_of(rng, Searchable(content), 4)))
    assert min(told[NO], told[YES]) > 4_000, told


def keys_of(rng: random.Random, searchable: Searchable, count: int = 6) -> list[tuple[str, bool]]:
    """Texts that are there, that nearly are, and others."""
    held = [searchable.header, searchable.body]
    found: list[tuple[str, bool]] = []
    while len(found) < count:
        text = rng.choice(held)
        if rng.random() < 0.75 and text:
            start = rng.randrange(len(text))
            text = text[start : start + rng.randrange(1, 25)]
            if rng.random() < 0.2:
                text = text.replace(" ", "", 1) + rng.choice(["", "x"])
        else:
            text = dense(rng, 4)
        text = fold(text)
        if text and sift.key_of(text):
            found.append((text, rng.random() < 0.5))
    return found


def checked(content: bytes, keys: list[tuple[str, bool]]) -> Iterator[int]:
    """What the kernel says of each key, once it agrees."""
    searchable = Searchable(content)
    said = texts.judge(content, [(text.encode(), header) for text, header in keys])
    for (text, header), one in zip(keys, said, strict=True):
        wanted = searchable.in_text(text) if header else searchable.in_body(text)
        assert one in (UNSURE, YES if wanted else NO), (content, text, header, one, wanted)
        yield one


@pytest.mark.parametrize("make", [composed, mail.message])
def test_kernel_is_never_wrong(make: Any) -> None:
    told: Counter[int] = Counter()
    for seed in range(6_000):
        rng = random.Random(seed)
        content = make(rng)
        told.update(checked(content, keys_of(rng, Searchable(content))))
    assert min(told[NO], told[YES], told[UNSURE]) > 1_000, told


def test_random_octets() -> None:
    for seed in range(4_000):
        rng = random.Random(seed)
        content = bytes(rng.choices(b"ab :=?\r\n\t-\xc3\xa9\xff;\"/", k=rng.randrange(120)))
        list(checked(content, keys_of(rng, Searchable(content), 3)))


def test_messages_of_other_projects() -> None:
    told: Counter[int] = Counter()
    rng = random.Random(9051)
    names = sorted(path for path in CORPUS.rglob("*") if path.suffix in (".eml", ".raw", ".msg", ".txt"))
    assert len(names) > 100
    for path in names:
        content = path.read_bytes()
        if len(content) > 300_000:
            continue
        told.update(checked(content, keys_of(rng, Searchable(content))))
    assert told[NO] + told[YES] > told[UNSURE], told


def test_common_mail_is_sure() -> None:
    """What most mail is made of is decided here: ASCII, UTF-8, Latin-1 and Cyrillic in base64, quoted-printable or as it is."""
    body = "Grüße aus Köln – 100 € für die Straße\r\nnaïve ŒUVRE 🙂 日本語\r\n"
    for charset in ("utf-8", "windows-1252", "iso-8859-15", ""):
        octets = body.encode(charset or "utf-8", "ignore")
        for encoding in ("8bit", "base64", "quoted-printable"):
            coded = base64.encodebytes(octets) if encoding == "base64" else quopri.encodestring(octets) if encoding[0] == "q" else octets
            content = (
                b'Subject: x\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\nContent-Type: text/plain; charset="%b"\r\n'
                b"Content-Transfer-Encoding: %b\r\n\r\n%b\r\n--b\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\nAAAA\r\n--b--\r\n"
            ) % (charset.encode(), encoding.encode(), coded)
            keys = [(fold(key), True) for key in ("KÖLN", "strasse naïve", "strasse", "für die", "nowhere", "aaaa", "png", "x content-type")]
            assert list(checked(content, keys)) == [YES, YES, YES, YES, NO, NO, YES, YES], (charset, encoding)


def test_transfer_encodings_are_undone_alike() -> None:
    """A part is found by what binascii makes of it, whatever is wrong with its encoding."""
    for seed in range(6_000):
        rng = random.Random(seed)
        encoding = rng.choice([b"base64", b"quoted-printable"])
        raw = bytes(rng.choices(b"QUJD=3dD \t\r\n+/*4", k=rng.randrange(40)))
        content = b"Content-Transfer-Encoding: %b\r\n\r\n%b" % (encoding, raw)
        octets = decode_transfer(raw, encoding)
        text = fold(octets.decode("utf-8", "replace") if octets.isascii() else "abc")
        list(checked(content, [(text or "abc", False), ("abc", False), ("c", False), ("=", False)]))


def test_what_is_taught_of_characters() -> None:
    """A text of characters that are folded alone folds to their folds, one after the other."""
    alone = [chr(number) for number in (*range(0x80, 0x600), *range(0x1E00, 0x2200)) if sift.folded_alone(chr(number))]
    itself = [*range(0x3041, 0x3097), *range(0x30A1, 0x30FB), *range(0x3400, 0xA000), *range(0xAC00, 0xD7A4), *range(0x1F300, 0x1FB00), 0xFFFD, 0xFE0F,
              0x3001, 0x3002, 0x3003, *range(0x3008, 0x3012)]  # fmt: skip
    for number in itself:
        if 0x4DC0 <= number < 0x4E00:
            continue
        char = chr(number)
        assert fold(char) == char and not unicodedata.combining(char) and not char.isspace(), hex(number)
    rng = random.Random(10646)
    letters = [chr(number) for number in range(0x20, 0x7F)]
    for _ in range(3_000):
        chosen = rng.choices(rng.choice([alone, letters, [chr(number) for number in rng.sample(itself, 30)]]), k=20) + rng.choices(alone + letters, k=20)
        rng.shuffle(chosen)
        folded = "".join(sift.folded_alone(char) if ord(char) < 0x2200 and char in alone else fold(char) or " " for char in chosen)
        assert fold("".join(chosen)) == " ".join(folded.split()), chosen


@pytest.mark.parametrize("module", [texts, texts_py], ids=["native", "python"])
def test_messages_where_they_lie(tmp_path: Path, module: Any) -> None:
    contents = [b"Subject: one\r\n\r\nthe offer", b"Subject: two\r\n\r\nnothing", b"offer: three\r\n\r\n", b"x\r\n\r\n" + b"y" * texts.MAX_OCTETS + b"offer"]
    heads, places, at = b"", [], 0
    with (tmp_path / "segment").open("wb") as file:
        for content in contents:
            head, rest = content[:5], content[5:]
            file.write(b"##" + rest)
            places.append((1, len(heads), len(head), 7, at + 2, len(rest)))
            heads += head
            at += len(rest) + 2
    whole = b"all: offer\r\n\r\n"
    places += [
        (1, len(heads), len(whole), 0, 0, 0),  # nothing of it in a file
        (0, 0, 0, 0, 0, 0),  # of another shape
        (1, 0, 5, 7, at - 3, 100),  # cut short
        (1, 0, len(heads) + 100, 7, 0, 1),
        (1, 0, 5, 7, 2, len(contents[0]) - 5),  # can be read, though what follows it can't
        (1, 0, 5, 7, at, 100),
        (1, 0, 5, 8, 2, 5),  # a file that can't be opened
    ]
    table = np.array(places, np.uint64)
    fd = os.open(tmp_path / "segment", os.O_RDONLY)
    try:
        fds = np.full(len(table), fd, np.int32)
        fds[-1] = -1
        out = np.full((len(table), 2), 77, np.uint8)
        at = 0
        while at < len(table):
            at = module.sift(table, heads + whole, fds, [(b"offer", True), (b"offer", False)], at, 1, out)
    finally:
        os.close(fd)
    wanted = [[YES, YES], [NO, NO], [YES, NO], [UNSURE] * 2, [YES, NO], *[[UNSURE] * 2] * 3, [YES, YES], *[[UNSURE] * 2] * 2]
    assert out.tolist() == (wanted if module is texts else [[UNSURE] * 2] * len(table))


@pytest.mark.parametrize("module", [texts, texts_py], ids=["native", "python"])
def test_arguments_are_checked(module: Any) -> None:
    table, fds, out = np.zeros((2, 6), np.uint64), np.zeros(2, np.int32), np.zeros((2, 1), np.uint8)
    for keys in ([], [(b"", True)], [(b"x", True)] * 17):
        with pytest.raises(ValueError, match="key"):
            module.judge(b"", keys)
        with pytest.raises(ValueError, match="key"):
            module.sift(table, b"", fds, keys, 0, 1, out)
    for start, some, result in ((-1, fds, out), (3, fds, out), (0, fds[:1], out), (0, fds, out[:1]), (0, fds, np.zeros((2, 2), np.uint8))):
        with pytest.raises(ValueError, match="lengths"):
            module.sift(table, b"", some, [(b"x", True)], start, 1, result)
    with pytest.raises(ValueError, match="charsets"):
        module.learn([], [])
    with pytest.raises(ValueError, match="charsets"):
        module.learn([], [(b"x", b"short")])
