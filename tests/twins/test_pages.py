"""The kernel that reads leaf pages of LMDB against its twin, which asks for each row: random rows, gaps, damage, pages not as they should be."""

from __future__ import annotations

import random
import struct
from typing import Any

import lmdb
import msgspec
import numpy as np
import pytest

from iems._native import pages_py
from iems.imap.envelope import Envelope
from iems.imapd.columns import COLUMNS
from iems.message import summarize

pages = pytest.importorskip("iems._native.pages")

SUBJECTS = [
    b"", b"plain", b"Re: [x] TWO", b"NIL", b'"quoted"', b"a  b", b" a", b"a ", b"=?utf-8?q?=C3=A4?=", b"what=?", b"back\\slash", b"tab\there",
    b'x" "y', b"caf\xc3\xa9", b"\x7f", b"{3}", b"x" * 900, b"(NIL NIL", b"a\r\n b",
]  # fmt: skip


def prefix(kind: int, mailbox: int) -> bytes:
    return struct.pack(">IBI", 1, kind, mailbox)


def rope_of(rng: random.Random) -> bytes:
    """As the store writes it, of another shape, or none at all."""
    pieces: list[Any] = []
    for _ in range(rng.choice((0, 1, 1, 2, 2, 2, 3))):
        if rng.random() < 0.4:
            pieces.append(rng.randbytes(rng.choice((0, 1, 20, 255, 256, 300))))
        else:
            pieces.append([rng.choice((0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63, -1, True, 1.5)) for _ in range(3)] + [rng.choice((0, 0, 0, 1))])
    raw = msgspec.msgpack.encode(pieces)
    if rng.random() < 0.2 and raw:
        place = rng.randrange(len(raw))
        raw = rng.choice((raw[:place], raw + b"x", raw[:place] + rng.randbytes(1) + raw[place + 1 :]))
    return raw if rng.random() < 0.9 else rng.randbytes(rng.randrange(40))


def message_row(rng: random.Random) -> bytes:
    subject = rng.choice(SUBJECTS) if rng.random() < 0.8 else rng.randbytes(rng.randrange(30)).replace(b"\n", b"").replace(b"\r", b"")
    date = rng.choice((b"", b"Date: Tue, 1 Jan 2030 00:00:00 +0000\r\n", b'Date: "x\\"\r\n', b"Date: \xff\r\n"))
    envelope, structure = summarize(date + b"Subject: " + subject + b"\r\n\r\n")
    if rng.random() < 0.05:
        envelope = rng.randbytes(rng.randrange(40))
    if rng.random() < 0.05:
        structure *= 30  # a value that has a page of its own
    rope, bits = rope_of(rng), rng.choice((0, 1, 1, 1, 3))
    head = struct.pack("<BBHIIII16s", 1, bits, 0, len(rope), len(envelope), len(structure), 0, b"o" * 16)
    return head + rope + (b"p" * 16 if bits & 2 else envelope + structure)


def fill(env: lmdb.Environment, rng: random.Random, rows: int, damage: float = 0.0) -> None:
    """Rows of three mailboxes, put and removed in any order, so that pages are split and half empty."""
    with env.begin(write=True) as txn:
        for _ in range(rows):
            mailbox, uid = rng.randrange(1, 4), rng.randrange(1, rows)
            tail = uid.to_bytes(4, "big")
            if rng.random() < 0.2:
                txn.delete(prefix(0x20, mailbox) + tail)
                continue
            small = struct.pack("<IIQQq", uid, rng.getrandbits(32), rng.getrandbits(60), rng.getrandbits(60), rng.getrandbits(40))
            large = message_row(rng)
            if rng.random() < damage:
                small, large = small[:-1], large[: rng.randrange(len(large))]
            txn.put(prefix(0x20, mailbox) + tail, small)
            txn.put(prefix(0x21, mailbox) + tail, large)


def answers(module: Any, env: lmdb.Environment, rng: random.Random, rows: int, page_size: int, buffers: bool) -> list[Any]:
    """What a side says of all mailboxes, the one that is not there too."""
    found: list[Any] = []

    def ask(name: str, *arguments: Any) -> None:
        try:
            answer = getattr(module, name)(*arguments)
            found.append(bytes(answer) if name == "fixed" else [bytes(part) for part in answer] if name == "flags" else answer)
        except ValueError as error:
            found.append(str(error))

    with env.begin(buffers=buffers) as txn:
        for mailbox in range(1, 5):
            ask("fixed", txn.cursor(), prefix(0x20, mailbox), 32, page_size)
            ask("flags", txn.cursor(), prefix(0x20, mailbox), page_size, rng.randrange(rows))
            uids = np.array(sorted(rng.sample(range(rows), rng.randrange(1, rows))), np.uint32)
            start, count = rng.randrange(len(uids)), rng.randrange(len(uids) + 5)
            ask("subjects", txn.cursor(), prefix(0x21, mailbox), uids, start, count, page_size)
            ask("places", txn.cursor(), prefix(0x21, mailbox), uids, start, count, page_size)
    return found


@pytest.mark.parametrize("damage", [0.0, 0.002])
def test_pages_agree_with_rows(tmp_path: Any, damage: float) -> None:
    for seed in range(12):
        rng, rows = random.Random(seed), 20 + seed * 150
        with lmdb.open(str(tmp_path / str(seed)), map_size=1 << 26, sync=False) as env:
            fill(env, rng, rows, damage)
            wanted = answers(pages_py, env, random.Random(seed), rows, 0, False)
            assert any(wanted)
            # 0: pages are not looked into; sizes that are not the right one: what looks like a page there is none
            for page_size in (env.stat()["psize"], 0, 1024, 2048, 8192):
                for buffers in (True, False):
                    assert answers(pages, env, random.Random(seed), rows, page_size, buffers) == wanted, (page_size, buffers)
                    assert answers(pages_py, env, random.Random(seed), rows, page_size, buffers) == wanted


def test_a_snapshot_holds_still(tmp_path: Any) -> None:
    """What is read was so when the transaction began, whatever is written meanwhile."""
    rng = random.Random(7)
    with lmdb.open(str(tmp_path), map_size=1 << 26, sync=False) as env:
        fill(env, rng, 2_000)
        with env.begin(buffers=True) as txn:
            wanted = [bytes(part) for part in pages_py.flags(txn.cursor(), prefix(0x20, 2), 0, 0)]
            for _ in range(10):
                fill(env, rng, 2_000)
                assert [bytes(part) for part in pages.flags(txn.cursor(), prefix(0x20, 2), env.stat()["psize"], 0)] == wanted
        with env.begin(buffers=True) as txn:
            assert [bytes(part) for part in pages.flags(txn.cursor(), prefix(0x20, 2), env.stat()["psize"], 0)] != wanted


@pytest.mark.parametrize("module", [pages, pages_py], ids=["native", "python"])
def test_texts_are_what_search_compares(tmp_path: Any, module: Any) -> None:
    """A subject taken as it stands is the one that decoding gives, and only an odd one is left to decoding."""
    rng = random.Random(11)
    with lmdb.open(str(tmp_path), map_size=1 << 26, sync=False) as env:
        envelopes = []
        with env.begin(write=True) as txn:
            for uid in range(1, 3_000):
                subject = rng.choice(SUBJECTS) if uid % 2 else bytes(rng.choices(b"aZ =?\\\"()", k=rng.randrange(8)))
                envelope, structure = summarize(b"Subject: " + subject + b"\r\n\r\n")
                envelopes.append(envelope)
                head = struct.pack("<BBHIIII16s", 1, 0, 0, 0, len(envelope), len(structure), 0, b"o" * 16)
                txn.put(prefix(0x21, 1) + uid.to_bytes(4, "big"), head + envelope + structure)
        uids = np.arange(1, 3_000, dtype=np.uint32)
        with env.begin(buffers=True) as txn:
            found, texts, odd = module.subjects(txn.cursor(), prefix(0x21, 1), uids, 0, 3_000, env.stat()["psize"])
    assert found == uids.tobytes()
    values: list[Any] = texts.decode().split("\n")
    left = dict(odd)
    assert 100 < len(left) < 2_500
    for place, envelope in enumerate(envelopes):
        assert left.get(place, envelope) == envelope
        if place not in left:
            assert values[place] == COLUMNS["SUBJECT"](Envelope(envelope))


def test_arguments_are_checked(tmp_path: Any) -> None:
    with lmdb.open(str(tmp_path), map_size=1 << 20) as env, env.begin(buffers=True) as txn:
        for module in (pages, pages_py):
            for start, count in ((-1, 1), (0, -1)):
                with pytest.raises(ValueError):
                    module.subjects(txn.cursor(), b"x", np.zeros(3, np.uint32), start, count, 4096)
                with pytest.raises(ValueError):
                    module.places(txn.cursor(), b"x", np.zeros(3, np.uint32), start, count, 4096)
            assert bytes(module.fixed(txn.cursor(), b"x", 3, 4096)) == b""
