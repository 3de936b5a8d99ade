"""Reading a mailbox of 10,000 messages, native and twin, and the writer's work for a batch of deliveries without its flush.

    pytest perf/kernels/test_store.py --benchmark-only

`fetch` makes all responses of FETCH 1:* (FLAGS ENVELOPE BODYSTRUCTURE), `select` reads what SELECT needs, `subjects` what SEARCH SUBJECT does;
all with LMDB's part in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iems._native import kernel, pages_py, store_py
from iems.model import Extent
from iems.store import reader as reader_module
from iems.store import wire
from iems.store.partition import Job, Partition
from iems.store.reader import FETCH_BODYSTRUCTURE, FETCH_ENVELOPE, FETCH_FLAGS, Reader

MESSAGES = 10_000
SEGMENT = 0x0192_0000_0000_0001
ADDRESS = b'(("Name Person" NIL "user" "example.test"))'
ENVELOPE = b'("Mon, 1 Jan 2024 00:00:00 +0000" "A subject of usual length" %b %b %b %b NIL NIL NIL "<id@example.test>")' % (
    (ADDRESS,) * 4
)
LEAF = b'("text" "plain" ("charset" "utf-8") NIL NIL "quoted-printable" 1200 30 NIL NIL NIL NIL)'
STRUCTURE = b'(%b%b "alternative" ("boundary" "abc") NIL NIL NIL)' % (LEAF, LEAF)


def deliveries(first: int, count: int) -> list[wire.Delivery]:
    return [
        wire.Delivery(
            1, (first + i).to_bytes(16, "big"), [b"Return-Path: <>\r\n", Extent(SEGMENT, 64, 4096)], 4113, 0, ENVELOPE, STRUCTURE
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def partition(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Partition]:
    path = tmp_path_factory.mktemp("store")
    (path / "spool/segments").mkdir(parents=True)
    (path / "spool/segments" / f"{SEGMENT:016x}.seg").write_bytes(bytes(8192))
    made = Partition(path / "store/p0", path / "spool", sync=False)
    for first in range(0, MESSAGES, 250):
        made.apply([Job(0, 0, 0, wire.Deliver(deliveries(first, 250)))])
    yield made
    made.close()


@pytest.fixture(params=["native", "python"])
def side(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = kernel("store") if request.param == "native" else store_py
    monkeypatch.setattr(reader_module, "_native", module)
    monkeypatch.setattr(reader_module, "_pages", kernel("pages") if request.param == "native" else pages_py)
    return module


def test_fetch_summaries(benchmark: Any, partition: Partition, side: Any) -> None:
    reader = Reader(Path("unused"), {0: partition.env})
    selected = reader.select(1, 1)
    assert selected is not None
    uids = selected.uids[:MESSAGES]
    seqs = np.arange(1, MESSAGES + 1, dtype=np.uint32)

    def fetch() -> int:
        at = octets = 0
        while at < MESSAGES:
            data, at = reader.fetch_summaries(1, 1, seqs, uids, [FETCH_FLAGS, FETCH_ENVELOPE, FETCH_BODYSTRUCTURE], at)
            octets += len(data)
        return octets

    assert benchmark(fetch) > MESSAGES * 500


def test_select(benchmark: Any, partition: Partition, side: Any) -> None:
    reader = Reader(Path("unused"), {0: partition.env})
    assert len(benchmark(reader.select, 1, 1).uids) >= MESSAGES


def test_subjects(benchmark: Any, partition: Partition, side: Any) -> None:
    reader = Reader(Path("unused"), {0: partition.env})
    selected = reader.select(1, 1)
    assert selected is not None
    assert len(benchmark(reader.subjects, 1, 1, selected.uids, 0, MESSAGES)[0]) == MESSAGES


def test_apply_64_deliveries(benchmark: Any, partition: Partition) -> None:
    numbers = itertools.count(MESSAGES, 64)

    def apply() -> None:
        [outcome] = partition.apply([Job(0, 0, 0, wire.Deliver(deliveries(next(numbers), 64)))])
        assert outcome.status == wire.DONE

    benchmark.pedantic(apply, rounds=30)


def test_wire_64_deliveries(benchmark: Any) -> None:
    batch = wire.Deliver(deliveries(0, 64))
    assert benchmark(lambda: wire.decode_request(wire.frame((1, 1, batch))[4:])).seq == 1


