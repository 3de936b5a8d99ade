"""Which messages of one role the spool has made durable, read from its segments.

For a role that takes mail from a place it can't ask twice (a maildrop, a folder): after a crash it learns what it had handed in already.
The answer goes back as far as segments are kept: ten minutes after all mail in one has left.
"""

from __future__ import annotations

import os
from pathlib import Path

from iems.blobs import blob_number
from iems.spool import records
from iems.spool.index import Index
from iems.spool.keys import BlobRow
from iems.spool.rebuild import Facts
from iems.spool.records import Kind


def accepted_ids(spool: Path, index: Index, role: str) -> set[bytes]:
    """Ids of the messages that workers of `role` submitted and that count. Blocks: reads every record's header.

    Call it when no other worker of the role lives. What such a worker wrote and the index had not taken up doesn't count, as
    recovery voids it (docs/spool.md). spool: the folder.
    """
    # The rows first: when one says that its segment is sealed, the record that voids its end is already written.
    rows = index.blob_rows()
    facts = Facts()
    found: list[tuple[int, records.Record]] = []
    for file in sorted((spool / "segments").iterdir()):
        blob = blob_number(file.name)
        if blob is None:
            continue
        try:
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # reclaimed this moment
        try:
            _read(blob, fd, role, rows.get(blob), facts, found)
        finally:
            os.close(fd)
    return {record.id for blob, record in found if not facts.is_void(blob, record)}


def _read(
    blob: int, fd: int, role: str, row: BlobRow | None, facts: Facts, found: list[tuple[int, records.Record]]
) -> None:
    opened = records.open_records(fd)
    if opened is None:
        return
    head, end, _ = opened
    if row is not None and not row.sealed:
        end = min(end, row.indexed)
    ours = head.role == role
    chains = records.Chains()
    for record in records.walk(fd, records.FILE_OCTETS, end, head.nonce):
        if record.kind == Kind.VOID and records.intact(fd, record):
            facts.read(blob, fd, record)
        for counts in chains.feed(record)[0]:
            if counts.kind == Kind.MOVED or (ours and counts.kind == Kind.MESSAGE):
                found.append((blob, counts))
