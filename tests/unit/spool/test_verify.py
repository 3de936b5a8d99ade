"""Contents are checked against the record they stand in: whatever bit flips, it is not taken for what was accepted."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import pytest

from iems.blobs import segment_name
from iems.model import INPUT, Extent
from iems.spool import Item, Message, Spool, keys
from iems.spool.verify import ContentDamaged, Verifier, quarantine
from tests.support.spool import Harness, envelope


def flip(spool: Spool, blob: int, at: int) -> None:
    fd = os.open(spool.params.path / "segments" / segment_name(blob), os.O_RDWR)
    os.pwrite(fd, bytes((os.pread(fd, 1, at)[0] ^ 4,)), at)
    os.close(fd)


def extent(item: Item) -> Extent:
    (piece,) = item.rope
    assert isinstance(piece, Extent)
    return piece


async def items_of(harness: Harness, spool: Spool, *contents: bytes, to: tuple[str, ...] = ("b@example.test",)) -> list[Item]:
    messages = [Message(spool.new_id(), envelope(*to), [content]) for content in contents]
    assert await spool.append(messages) == [None] * len(messages)
    items, _ = spool.take(INPUT, 100)
    return sorted(items, key=lambda item: item.id)


def test_whole_contents_are_read(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open()
        verifier = Verifier(spool.blobs)
        many = tuple(f"{'r' * 50}{n}@example.test" for n in range(1000))  # an envelope of 100 KB before the content
        rng = random.Random(6)
        for to in (("b@example.test",), many):
            contents = [rng.randbytes(n) for n in (1, 7, 4096, 300_000)]
            for item, content in zip(await items_of(harness, spool, *contents, to=to), contents, strict=True):
                assert verifier.read(item) == content
                verifier.check(item)
        spool.close()

    run(body())


def test_every_flip_is_seen(harness: Harness, run: Any) -> None:
    """In the content, the envelope, the header and the checksum; the neighbours are not touched by it."""

    async def body() -> None:
        spool = harness.open()
        items = await items_of(harness, spool, *(b"%d" % n * 500 for n in range(30)))
        rng = random.Random(7)
        hurt = set()
        for item in items[::3]:
            piece = extent(item)
            at = rng.choice((piece.offset - 80, piece.offset - 1, piece.offset + rng.randrange(piece.length), piece.offset + piece.length))
            flip(spool, piece.blob, at)
            hurt.add(item.id)
        verifier = Verifier(spool.blobs)
        for item in items:
            if item.id in hurt:
                with pytest.raises(ContentDamaged):
                    verifier.read(item)
                with pytest.raises(ContentDamaged):
                    verifier.check(item)
            else:
                assert len(verifier.read(item)) in (500, 1000)
        spool.close()

    run(body())


def test_a_header_in_mail_is_no_header(harness: Harness, run: Any) -> None:
    """Content that holds a whole true record of the same segment, nonce and checksum and all, does not lead astray."""

    async def body() -> None:
        spool = harness.open()
        [first] = await items_of(harness, spool, b"first")
        piece = extent(first)
        fd = spool.blobs.fd(piece.blob)
        whole = os.pread(fd, 4096, 64)
        [second] = await items_of(harness, spool, whole + b"second")
        verifier = Verifier(spool.blobs)
        assert verifier.read(second) == whole + b"second"
        flip(spool, piece.blob, extent(second).offset + len(whole))
        with pytest.raises(ContentDamaged):
            verifier.read(second)
        assert verifier.read(first) == b"first"
        spool.close()

    run(body())


def test_quarantined_and_released(harness: Harness, run: Any) -> None:
    """What was put aside is nobody's until an administrator releases it; then it goes as it is."""

    async def body() -> None:
        spool = harness.open()
        [item] = await items_of(harness, spool, b"content")
        flip(spool, extent(item).blob, extent(item).offset)
        with spool.index.change() as change:
            assert quarantine(change, item, "content damaged")
            assert not quarantine(change, item, "again")
        assert spool.take(INPUT, 1) == ([], None)
        assert spool.index.counts()[INPUT, keys.QUARANTINED] == 1
        spool.close()
        from iems.spool import admin

        assert await asyncio.to_thread(admin.release, spool.params.path, admin.Selection([item.id])) == 1
        spool = harness.open()
        [item], _ = spool.take(INPUT, 1)
        assert Verifier(spool.blobs).read(item) == b"gontent"
        spool.close()

    run(body())


def test_content_in_a_file_of_its_own(harness: Harness, run: Any) -> None:
    """Its checksum stands in the item; an end that is missing is told too."""

    async def body() -> None:
        spool = harness.open(large_octets=4096)
        content = spool.new_content()
        content.buffer.append(b"x" * 100_000)
        content.check_spill()
        assert await spool.append([Message(spool.new_id(), envelope(), [b"Received: here\r\n", content])]) == [None]
        [item], _ = spool.take(INPUT, 1)
        verifier = Verifier(spool.blobs)
        assert verifier.read(item) == b"Received: here\r\n" + b"x" * 100_000
        verifier.check(item)
        large = next(piece for piece in item.rope if isinstance(piece, Extent) and piece.blob != item.home)
        os.truncate(spool.params.path / "large" / f"{large.blob:016x}.blob", 10)
        with pytest.raises(ContentDamaged):
            verifier.read(item)
        item.deaths = -3  # released by an administrator: as it is, but not cut short
        with pytest.raises(EOFError):
            verifier.read(item)
        spool.close()

    run(body())
