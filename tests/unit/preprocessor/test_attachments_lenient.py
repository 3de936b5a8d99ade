"""What any program could still see must be found: the filter beside readers that forgive much, on real, broken and hostile messages."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from iems.attachment.rules import Rule, normal
from iems.preprocessor.modules.attachments import judge
from tests.support.lenient import READERS

CORPUS = sorted(
    path for path in (Path(__file__).parents[2] / "corpus/mime").rglob("*") if path.suffix in (".eml", ".msg", ".raw") and path.stat().st_size < 300_000
)
PIECES = (
    b"--B\r\n", b"--B--\r\n", b"--C\r\n", b"--B \r\n", b"--BB\r\n", b"Content-Type: multipart/mixed; boundary=B\r\n",
    b'Content-Type: multipart/alternative;\r\n boundary="C"\r\n', b"Content-Type: multipart/mixed;\r\n boundary=B\r\n",
    b"Content-Type: a/b; name=a.exe\r\n", b"Content-Disposition: attachment; filename=a.exe\r\n",
    b'Content-Disposition: attachment;\r\n filename="a.exe"\r\n', b"Content-Type: text/plain; name*0=a.; name*1=exe\r\n",
    b"Content-Type: message/rfc822\r\n", b"Content-Type: text/plain\r\n", b"Content-Transfer-Encoding: base64\r\n", b"MIME-Version: 1.0\r\n",
    b"Subject: x\r\n", b":\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b" ", b"text\r\n", b"\0\xff", b"TVoAAAAA\r\n",
)  # fmt: skip
PLACES = (b"\r\n", b"\n", b";", b"=", b'"', b"--", b"boundary", b"name", b"Content")


def rules(name: str, kind: str) -> Iterator[Rule]:
    """What an administrator would write against this part: by the end of its name, by its type."""
    end = re.search(r"\.([a-z0-9]{1,5})$", normal(name))
    if end:
        yield Rule("-", f"*.{end[1]}", "strip")
    if re.fullmatch(r"[a-z0-9.+-]+/[a-z0-9.+-]+", kind := kind.lower()) and not kind.startswith(("multipart/", "message/", "text/")):
        yield Rule(kind, "*", "strip")


def missed(content: bytes) -> list[tuple[str, str, str, Rule]]:
    """(reader, name, type, rule) of each part a reader sees and the filter lets pass."""
    return [
        (reader.__name__, name, kind, rule)
        for reader in READERS
        for name, kind in dict.fromkeys(reader(content))
        for rule in rules(name, kind)
        if judge(content, [rule], "strip", "mx.test").action == "pass"
    ]


def broken(rng: random.Random, contents: list[bytes]) -> bytes:
    """A message made of pieces, or a real one with some damage."""
    if rng.random() < 0.5:
        return b"Content-Type: multipart/mixed; boundary=B\r\n" * (rng.random() < 0.5) + b"".join(rng.choices(PIECES, k=rng.randrange(3, 14)))
    out = bytearray(rng.choice(contents))
    for _ in range(rng.randrange(1, 4)):
        at, how = rng.randrange(len(out) + 1), rng.randrange(6)
        if how == 0:
            out[at : at + 1] = bytes((rng.choice(b"\r\n \t;=:\"'(),-\\\0\xff<>"),))
        elif how == 1:
            del out[at : at + rng.randrange(1, 30)]
        elif how == 2:
            out[at:at] = rng.choice(PIECES)
        elif how == 3:
            out = bytearray(out.replace(b"\r\n", b"\n"))
        elif how == 4 and rng.random() < 0.3:
            out = bytearray(out.replace(b"\r\n", b"\r"))
        elif (place := out.find(rng.choice(PLACES), at)) >= 0:
            out[place : place + 1] = rng.choice((b"", b" ", b"\r\n", b"\n", b"\r\n ", b"x"))
    return bytes(out)


def hammer(seed: int, rounds: int) -> None:
    rng = random.Random(seed)
    contents = [content for path in CORPUS if len(content := path.read_bytes()) < 12_000 and b"name" in content]
    for _ in range(rounds):
        content = broken(rng, contents)
        assert not missed(content), content


def test_real_messages() -> None:
    assert len(CORPUS) > 150
    for path in CORPUS:
        assert not missed(path.read_bytes()), path.name


def test_broken_messages() -> None:
    hammer(2046, 500)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_broken_messages_at_length(seed: int) -> None:
    hammer(seed, 10_000)
