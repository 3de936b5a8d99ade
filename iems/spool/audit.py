"""Whether every message answered with 250 is accounted for, and whether what is on the disk can be read.

`audit` adds up the living segments and the ledger of those reclaimed, and looks for messages with neither an outcome for each recipient nor
a place in the queue. It may run beside a working server: what moved between two looks is looked at again. `fsck` reads
every octet.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from iems.blobs import Blobs, blob_number, large_name, segment_name
from iems.errors import SpoolError
from iems.model import Channel, Extent, Outcome, id_text
from iems.spool import keys, records
from iems.spool.admin import folder, looking
from iems.spool.index import Index
from iems.spool.keys import BlobRow
from iems.spool.rebuild import Facts
from iems.spool.reclaim import add_record
from iems.spool.records import NO_ID, Damaged, Kind, Record, file_crc

#: How long to wait for an index being built.
REBUILD_S = 120.0


def audit(path: Path, delivered: set[tuple[bytes, bytes]] | None = None) -> dict[str, int]:
    """accepted, delivered, relayed, dsn, discarded, queued, quarantined (recipients) and missing (messages).

    accepted: recipients of mail answered with 250. dsn: recipients that failed. A recipient that stands for several (an alias) has
    several outcomes. Notices made here are not in these sums, but are looked for among the missing. path: a home or
    its spool folder. delivered: gets (id, address) of each delivery to a mailbox that a segment still names. Raises SpoolError if an index is being built for too long.
    """
    spool = folder(path)
    with looking(path) as index:
        _await_rebuild(index)
        return _Audit(spool, index, delivered).run()


def _await_rebuild(index: Index) -> None:
    until = time.monotonic() + REBUILD_S
    while index.is_rebuilding():
        if time.monotonic() > until:
            raise SpoolError("the index is being built from the segments; ask again later")
        time.sleep(0.1)


class _Audit:
    def __init__(self, spool: Path, index: Index, delivered: set[tuple[bytes, bytes]] | None) -> None:
        self.spool = spool
        self.index = index
        self.delivered = delivered
        self.facts = Facts()
        self.messages: dict[bytes, int] = {}  # id -> generation of the latest copy
        self.read_to: dict[int, int] = {}  # blob -> end of what was read
        value = index.meta(keys.META_LEDGER)
        ledger = records.decode_ledger(value) if value else records.Ledger(0, {}, [])
        self.totals = (
            dict.fromkeys(("accepted", "delivered", "relayed", "dsn", "discarded", "made"), 0) | ledger.totals
        )
        self.gone = set(ledger.gone)

    def run(self) -> dict[str, int]:
        rows = self._rows()
        for blob in rows:
            for fd, record in self._records(blob, records.FILE_OCTETS):
                if record.kind == Kind.VOID and records.intact(fd, record):
                    self.facts.read(blob, fd, record)
        for blob, row in rows.items():
            self._read(blob, row)
        queued, quarantined, present = self._queue()
        lost = self._lost(present)
        if lost:
            # settled or moved between our two looks?
            for blob, row in self._rows().items():
                self._read(blob, row, messages=False)
            lost = [id for id in lost if not self.facts.complete(id, self.messages[id])]
            lost = [id for id in lost if id not in self._queue()[2]] if lost else []
            lost = self._whole(rows, lost) if lost else []
        return {
            **{name: self.totals[name] for name in ("accepted", "delivered", "relayed", "dsn", "discarded")},
            "queued": queued,
            "quarantined": quarantined,
            "missing": len(lost),
        }

    def _rows(self) -> dict[int, BlobRow]:
        return {b: row for b, row in self.index.blob_rows().items() if not row.large and b not in self.gone}

    def _records(self, blob: int, start: int) -> Iterator[tuple[int, Record]]:
        try:
            fd = os.open(self.spool / "segments" / segment_name(blob), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return  # reclaimed this moment
        try:
            opened = records.open_records(fd)
            if opened is not None:
                head, end, _ = opened
                for record in records.walk(fd, start, end, head.nonce):
                    yield fd, record
        finally:
            os.close(fd)

    def _read(self, blob: int, row: BlobRow, messages: bool = True) -> None:
        """Take in the records of a segment; messages only as far as the index knew it: behind that nobody got a 250."""
        chains = records.Chains()
        for fd, record in self._records(blob, self.read_to.get(blob, records.FILE_OCTETS)):
            if not row.sealed and record.end > row.indexed and record.kind != Kind.SETTLE:
                break
            counted = chains.feed(record)[0]
            if not chains.pending:
                self.read_to[blob] = record.end
            for counts in counted:
                if self.facts.is_void(blob, counts) or counts.kind in (Kind.VOID, Kind.LEDGER):
                    continue
                try:
                    self.facts.read(blob, fd, counts)
                except msgspec.DecodeError:
                    continue
                settles = add_record(self.totals, fd, counts)
                if self.delivered is not None:
                    for done in settles:
                        if done.channel == Channel.LOCAL:
                            self.delivered.update((done.id, address) for address, outcome in done.results if outcome == Outcome.DELIVERED)
                if messages and counts.kind in (Kind.MESSAGE, Kind.MOVED):
                    generation = counts.generation if counts.kind == Kind.MOVED else 0
                    self.messages[counts.id] = max(self.messages.get(counts.id, 0), generation)

    def _queue(self) -> tuple[int, int, set[bytes]]:
        """(recipients queued, quarantined, ids) at one moment."""
        queued = quarantined = 0
        present: set[bytes] = set()
        with self.index.read() as txn:
            for name in ("queue", "lease"):
                for key, value in txn.cursor(self.index.db[name]):
                    present.add(key[-18:-2])
                    try:
                        number = len(keys.decode_item(value).envelope.recipients)
                    except keys.DamagedRow:
                        quarantined += 1
                        continue
                    if name == "queue" and key[1] == keys.QUARANTINED:
                        quarantined += number
                    else:
                        queued += number
        for damage in self.index.damages().values():
            if damage.id == NO_ID or damage.id in present:
                continue
            generation = self.messages.get(damage.id)
            # The outcomes of a message may be torn too; it is done all the same if others tell so.
            if generation is None or not self.facts.complete(damage.id, generation):
                present.add(damage.id)
                quarantined += 1
        return queued, quarantined, present

    def _whole(self, rows: dict[int, BlobRow], lost: list[bytes]) -> list[bytes]:
        """Those of `lost` of which an undamaged record is there.

        A power cut tears the last records of a segment, of which nobody had a 250: recovery passes over them, and so do the totals.
        """
        candidates = set(lost)
        whole: set[bytes] = set()
        torn = dict.fromkeys(self.totals, 0)
        for blob in rows:
            for fd, record in self._records(blob, records.FILE_OCTETS):
                if record.kind not in (Kind.MESSAGE, Kind.MOVED) or record.id not in candidates:
                    continue
                if records.intact(fd, record):
                    whole.add(record.id)
                elif not self.facts.is_void(blob, record):
                    add_record(torn, fd, record)
        for name, number in torn.items():
            self.totals[name] -= number
        return [id for id in lost if id in whole]

    def _lost(self, present: set[bytes]) -> list[bytes]:
        return [
            id
            for id, generation in self.messages.items()
            if id not in present and not self.facts.complete(id, generation)
        ]


def fsck(path: Path) -> Iterator[dict[str, Any]]:
    """What can't be read: {where, offset, end, id, what}; nothing if all is well. Reads every octet of the spool."""
    spool = folder(path)
    with looking(path) as index:
        rows = index.blob_rows()
        for file in sorted((spool / "segments").iterdir()):
            blob = blob_number(file.name)
            if blob is None:
                yield _finding(file.name, 0, 0, NO_ID, "no segment by its name")
                continue
            yield from _check_segment(file, rows.get(blob))
        for blob, row in rows.items():
            if not row.large and not (spool / "segments" / segment_name(blob)).exists() and row.live > 0:
                yield _finding(segment_name(blob), 0, 0, NO_ID, f"gone, but {row.live} queue items need it")
        yield from _check_index(spool, index)


def _finding(where: str, offset: int, end: int, id: bytes, what: str) -> dict[str, Any]:
    return {
        "where": where,
        "offset": offset,
        "end": end,
        "id": id_text(id) if id != NO_ID else None,
        "what": what,
    }


def _check_segment(file: Path, row: BlobRow | None) -> Iterator[dict[str, Any]]:
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        opened = records.open_records(fd)
        if opened is None:
            yield _finding(file.name, 0, records.FILE_OCTETS, NO_ID, "the head of the segment is damaged")
            return
        head, end, sealed = opened
        if row is not None and not sealed:
            end = min(
                end, row.length or row.indexed
            )  # behind it a writer is at work, or a crash cut it short
        elif row is None and end > records.FILE_OCTETS:
            yield _finding(file.name, 0, end, NO_ID, "the index does not know this segment")
        unsealed = row is None and not sealed
        for found in records.scan(fd, records.FILE_OCTETS, end, head.nonce, unsealed=unsealed):
            if isinstance(found, Damaged):
                yield _finding(file.name, found.offset, found.end, found.id, "a record is damaged")
    finally:
        os.close(fd)


def _check_index(spool: Path, index: Index) -> Iterator[dict[str, Any]]:
    blobs = Blobs([spool / "segments", spool / "large"], max_open=64)
    try:
        for _, _, item, key in index.queued():
            if item is None:
                yield _finding("index", 0, 0, bytes(key[18:34]), "a row of the queue is damaged")
                continue
            try:
                for piece in item.rope:
                    if isinstance(piece, Extent):
                        size = os.fstat(blobs.fd(piece.blob)).st_size
                        end = piece.offset + piece.length
                        if size < end:
                            yield _finding(f"{piece.blob:016x}", size, end, item.id, "content is cut short")
                for blob, crc in item.sums:
                    size = os.fstat(blobs.fd(blob)).st_size
                    if file_crc(blobs.fd(blob), size) != crc:
                        yield _finding(large_name(blob), 0, size, item.id, "content is damaged")
            except FileNotFoundError as error:
                yield _finding("index", 0, 0, item.id, str(error))
        for key, item in index.leased():
            if item is None:
                yield _finding("index", 0, 0, bytes(key[-18:-2]), "a row of the leases is damaged")
        for (blob, offset), damage in index.damages().items():
            where = segment_name(blob) if blob else "index"
            yield _finding(
                where, offset if blob else 0, damage.end, damage.id, f"noted before: {damage.what}"
            )
    finally:
        blobs.close()
