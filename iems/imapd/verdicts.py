"""Verdict records as annotations that nobody stores: they are read from the messages when GETMETADATA asks (RFC 5464, docs/decisions/0018).

    /private/vendor/iems/verdicts          the newest messages of a mailbox, a line each: UID, SP, record
    /private/vendor/iems/verdicts/UID      of one message

They are the owner's: as for all private entries, who shares his mailbox does not show them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from iems.message.verdict import recorded

if TYPE_CHECKING:
    from iems.imapd.session import Session
    from iems.store.rows import Row

ENTRY = "/private/vendor/iems/verdicts"
#: Messages named by one value.
NEWEST = 50
#: What delivery puts in front of a message is shorter than this.
HEAD_OCTETS = 16 << 10

_ONE = re.compile(re.escape(ENTRY) + r"/([1-9][0-9]{0,9})\Z")


def is_ours(entry: str) -> bool:
    """Whether an entry is one of these, so that it can't be set."""
    return entry == ENTRY or entry.startswith(ENTRY + "/")


async def of_mailbox(session: Session, account: int, mailbox_id: int, entries: Iterable[str], depth: int) -> dict[str, bytes]:
    """The values of those of `entries` that are ours and have one; with a depth above 0 also those of the newest messages, each by itself."""
    wanted = [entry for entry in entries if is_ours(entry)]
    if not wanted or not mailbox_id:
        return {}
    uids = {int(found[1]) for entry in wanted if (found := _ONE.match(entry)) is not None}
    newest: list[int] = []
    if ENTRY in wanted:
        selected = session.services.reader.select(account, mailbox_id)
        newest = selected.uids[-NEWEST:].tolist()[::-1] if selected is not None else []
    asked = sorted(uid for uid in {*uids, *newest} if uid <= 0xFFFF_FFFF)
    rows = [row for row in session.services.reader.messages(account, mailbox_id, asked) if row is not None]
    heads = [row.rope[0] for row in rows if row.rope and isinstance(row.rope[0], bytes)]
    if len(heads) < len(rows):
        # Mail that came back from a backup: its lines are on the disk.
        blobs = session.services.reader.blobs
        heads = await session.services.loop.run_in_executor(None, _heads, blobs, rows)
    said = {row.uid: text for row, head in zip(rows, heads, strict=True) if (text := recorded(head))}
    values = {f"{ENTRY}/{uid}": said[uid].encode("ascii", "replace") for uid in uids if uid in said}
    lines = [f"{uid} {said[uid]}" for uid in newest if uid in said]
    if lines:
        values[ENTRY] = "\r\n".join(lines).encode("ascii", "replace")
        if depth:
            values |= {f"{ENTRY}/{uid}": said[uid].encode("ascii", "replace") for uid in newest if uid in said}
    return values


def _heads(blobs: Any, rows: list[Row]) -> list[bytes]:
    heads = []
    for row in rows:
        try:
            heads.append(blobs.read_range(row.rope, 0, HEAD_OCTETS))
        except (OSError, EOFError):
            heads.append(b"")  # damaged: fsck names it
    return heads
