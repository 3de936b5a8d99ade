"""The store kernel against its twin: random mailboxes, items, gaps, damaged rows."""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import pytest

from iems._native import store_py

store = pytest.importorskip("iems._native.store")

SMALL = b"\0\0\0\1\x20\0\0\0\1"
LARGE = b"\0\0\0\1\x21\0\0\0\1"


def run(module: Any, *arguments: Any) -> Any:
    try:
        return module(*arguments)
    except (ValueError, TypeError) as error:
        return type(error)


def rows(rng: random.Random, damaged: bool) -> tuple[list[Any], list[Any], list[int]]:
    uids = sorted(rng.sample(range(1, 60), rng.randrange(30)))
    small, large = [], []
    for uid in uids:
        tail = uid.to_bytes(4, "big")
        flags = rng.getrandbits(5) | rng.getrandbits(3) << 16
        row = struct.pack(
            "<IIQQq", uid, rng.getrandbits(32), flags, rng.getrandbits(40), rng.randrange(-(1 << 40), 1 << 40)
        )
        small.append((SMALL + tail, row[: rng.choice((32, 32, 31)) if damaged else 32]))
        if rng.random() < 0.9:
            rope, envelope, structure = (rng.randbytes(rng.randrange(40)) for _ in range(3))
            bits = rng.choice((0, 1, 2))
            head = struct.pack(
                "<BBHIIII16s", 1, bits, 0, len(rope), len(envelope), len(structure), 0, b"o" * 16
            )
            value = head + rope + (struct.pack("<QQ", len(envelope), uid) if bits & 2 else envelope + structure)
            large.append((LARGE + tail, value[: rng.randrange(len(value))] if damaged and rng.random() < 0.3 else value))
    for found, key in ((small, SMALL), (large, LARGE)):
        if rng.random() < 0.5:
            found.append((key[:-1] + b"\2\0\0\0\1", b"other mailbox"))
    return small, large, uids


def load(blob: int, offset: int, length: int) -> bytes:
    return bytes((blob + i) & 255 for i in range(length))


def test_fetch_agrees() -> None:
    rng = random.Random(9051)
    for turn in range(20_000):
        small, large, present = rows(rng, turn % 5 == 0)
        uids = sorted(set(present) & set(rng.sample(range(60), 40)) | set(rng.sample(range(1, 60), 3)))
        seqs = sorted(rng.sample(range(1, 1 << 31), len(uids)))
        items = bytes(rng.choices(range(1, 8), k=rng.randrange(1, 6))) if turn % 50 else rng.randbytes(3)
        names = [b"\\Seen", b"\\Answered", b"\\Flagged", b"\\Deleted", b"\\Draft", b"$A", b"Work"]
        arguments = (
            items, names, np.array(seqs, np.uint32), np.array(uids, np.uint32), rng.randrange(len(uids) + 1), small,
            SMALL, large, LARGE, load, rng.choice((1, 100, 1000, 1 << 20)), rng.choice((1, 30, 1 << 32)),
        )
        assert run(store.fetch, *arguments) == run(store_py.fetch, *arguments), arguments


def test_dates_agree() -> None:
    rng = random.Random(3501)
    for _ in range(20_000):
        seconds = rng.randrange(-70_000_000_000, 260_000_000_000)
        assert store.internal_date(seconds) == store_py.internal_date(seconds), seconds
    assert store.internal_date(0) == b'" 1-Jan-1970 00:00:00 +0000"'


def test_wrong_arguments_are_refused() -> None:
    one = np.array([1], np.uint32)
    two = np.array([1, 2], np.uint32)
    for module in (store, store_py):
        for items, seqs in ((b"", one), (b"\x08", one), (b"\x01", two)):
            with pytest.raises(ValueError):
                module.fetch(items, [], seqs, one, 0, [], SMALL, [], LARGE, load, 100, 1)
    with pytest.raises(TypeError):
        store.fetch(b"\x01", [], one, one, 0, [(SMALL, "text")], SMALL, [], LARGE, load, 100, 1)
