"""What becomes of a log that was full and was renamed: sent to the postmaster, removed, or both.

A log mail is a message of our own with the null reverse path: one that can't be delivered leaves some lines in the log and no report, so
there is no mail about it. Each log is sent once; after a crash at the wrong moment, perhaps twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from iems import log as logs
from iems.durable import write_durably
from iems.message import build
from iems.model import Channel, Envelope, Recipient
from iems.spool.items import Message

if TYPE_CHECKING:
    from iems.spool.spool import Spool

#: A renamed log nobody has written to for so long is whole.
SETTLED_S = 3.0
#: A log up to this size is sent as text, above it compressed.
TEXT_OCTETS = 64 << 10
#: Of a larger log the last octets, and of what comes out of the compression no more than this.
LAST_OCTETS = 32 << 20
MOST_OCTETS = 8 << 20
_CHUNK = 1 << 20


class OldLogs:
    """Looked after by the janitor, once a round."""

    def __init__(self, ctx: Any, spool: Spool) -> None:
        self._ctx = ctx
        self._spool = spool
        self._mail = ctx.config.log.mail_old
        self._keep = ctx.config.log.keep_old
        self._folder: Path = ctx.home / "log"
        self._noted = self._folder / "mailed"

    async def round(self) -> None:
        """Deal with logs renamed since the last round. Raises OSError, SpoolError: again in the next one."""
        if self._keep and not self._mail:
            return
        known = self._known()
        found = [path for path in logs.files(self._folder) if path.name != "mail.log" and _settled(path)]
        names = {path: _identity(path) for path in found}
        if known is None:
            # Turned on just now: what lies there already is old news, but goes if nothing is to be kept.
            known = set(filter(None, names.values())) if self._mail else set()
        fresh = [path for path in found if names[path] is not None and names[path] not in known]
        for path in fresh:
            if self._mail:
                await self._send(path)
        present = {name for name in names.values() if name is not None}
        if present - known or not self._noted.exists():
            write_durably(self._noted, msgspec.json.encode(sorted(present)))
        if not self._keep:
            for path in found:
                if names[path] is not None and _identity(path) == names[path]:
                    path.unlink()

    def _known(self) -> set[str] | None:
        """Logs dealt with before; None if none ever was."""
        try:
            return set(msgspec.json.decode(self._noted.read_bytes(), type=list[str]))
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    async def _send(self, path: Path) -> None:
        ctx = self._ctx
        part, left_out = await asyncio.get_running_loop().run_in_executor(None, _part, path)
        address = f"postmaster@{ctx.config.domain or ctx.hostname}"
        id = self._spool.new_id()
        text = f"The log of {ctx.hostname} was full and a new one was begun. The old one is attached.\n"
        if left_out:
            text += f"Its first {left_out} octets are left out.\n"
        if self._keep:
            text += f"It is kept on the server as log/{path.name} or under a higher number.\n"
        content = [
            build.address_field("From", [(address, "Mail system")]),
            build.address_field("To", [(address, "")]),
            build.field("Subject", f"Old log of {ctx.hostname}"),
            build.date_field(time.time()),
            build.raw_field("Message-ID", build.message_id(id, ctx.hostname)),
            b"Auto-Submitted: auto-generated\r\n",
            b"MIME-Version: 1.0\r\n",
            build.multipart("mixed", [build.text_part(text), part]),
        ]
        octets = address.encode()
        envelope = Envelope(
            Channel.MTA, b"", [Recipient(octets, octets)], time.time_ns(), sum(map(len, content))
        )
        [error] = await self._spool.append([Message(id, envelope, content)])
        if error is not None:
            raise error
        ctx.log.event("log-mailed", id, address, octets=envelope.size, left_out=left_out)


def _identity(path: Path) -> str | None:
    """What tells a log from all others, whatever its number is by now; None if it is gone.

    Its first line, that is: an inode may be used again, and a worker may still write the last lines.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.blake2b(file.readline(4096), digest_size=16).hexdigest()
    except FileNotFoundError:
        return None


def _settled(path: Path) -> bool:
    """Whether nobody writes a renamed log any more: each process notices within a heartbeat."""
    try:
        return time.time() - os.stat(path).st_mtime >= SETTLED_S
    except FileNotFoundError:
        return False


def _part(path: Path) -> tuple[bytes, int]:
    """In a thread: the attachment, and how many octets at the log's beginning it leaves out."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= TEXT_OCTETS:
            return build.text_part(file.read().decode("utf-8", "backslashreplace"), disposition="attachment"), 0
        left_out = max(0, size - LAST_OCTETS)
        while True:
            file.seek(left_out)
            if left_out:
                left_out += len(file.readline())
            packed = _gzip(file)
            if packed is not None:
                return build.octets_part(packed, "application/gzip", "mail.log.gz"), left_out
            left_out += (size - left_out) // 2 + 1  # what hardly shrinks: the younger half


def _gzip(file: Any) -> bytes | None:
    """The rest of a file, compressed; None if that is too much."""
    packer = zlib.compressobj(6, wbits=31)
    out: list[bytes] = []
    octets = 0
    while data := file.read(_CHUNK):
        out.append(packer.compress(data))
        octets += len(out[-1])
        if octets > MOST_OCTETS:
            return None
    packed = b"".join([*out, packer.flush()])
    return packed if len(packed) <= MOST_OCTETS else None
