"""What the workers before had at hand is read again before a client asks for it: large mailboxes selected lately, header values searched lately.

When a worker ends it notes which these were (`run/imapd.INDEX.warm`); each that starts reads all such notes and then, between its sessions, the
mailboxes. The notes are hints: without them, or with wrong ones, all is read when it is asked for.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from iems.durable import write_durably
from iems.imapd.columns import COLUMNS
from iems.imapd.kept import KEPT_FROM
from iems.imapd.services import Services
from iems.imapd.view import View

#: Mailboxes of one note.
MOST = 500
#: Octets of a note that are looked at.
NOTE_OCTETS = 256 << 10
#: Seconds left to the sessions between two mailboxes.
PAUSE_S = 0.01


class Held(Struct, array_like=True):
    """A mailbox: columns whose values were kept, whether its view was."""

    account: int
    mailbox_id: int
    columns: list[str]
    view: bool


_decode = msgspec.msgpack.Decoder(list[Held]).decode


def held(services: Services) -> list[Held]:
    """What a worker keeps, the latest last."""
    found: dict[tuple[int, int], Held] = {}
    for account, mailbox_id, name in services.columns.held():
        found.setdefault((account, mailbox_id), Held(account, mailbox_id, [], False)).columns.append(name)
    for key in services.views.held():
        found.setdefault(key, Held(*key, [], False)).view = True
    return list(found.values())[-MOST:]


def note(folder: Path, index: int, services: Services) -> None:
    """Leave a note for the next workers. Raises OSError."""
    write_durably(folder / f"imapd.{index}.warm", msgspec.msgpack.encode(held(services)))


def noted(folder: Path) -> list[Held]:
    """What all notes say together; a note that can't be read says nothing."""
    found: dict[tuple[int, int], Held] = {}
    for path in sorted(folder.glob("imapd.*.warm")):
        try:
            with path.open("rb") as file:
                one = _decode(file.read(NOTE_OCTETS))
        except (OSError, msgspec.MsgspecError):
            continue
        for item in one:
            known = found.setdefault((item.account, item.mailbox_id), Held(item.account, item.mailbox_id, [], False))
            known.columns = [name for name in dict.fromkeys(known.columns + item.columns) if name in COLUMNS]
            known.view = known.view or item.view
    return list(found.values())[-MOST:]


class _Quiet:
    """As much of a session as reading needs."""

    def __init__(self, services: Services, view: View) -> None:
        self.services = services
        self.view = view

    async def room(self) -> None:
        await asyncio.sleep(0)


async def warm(services: Services, mailboxes: list[Held]) -> int:
    """Read them, one after the other; how many were there."""
    there = 0
    for item in mailboxes:
        await asyncio.sleep(PAUSE_S)
        selected = services.reader.select(item.account, item.mailbox_id)
        if selected is None:
            continue
        there += 1
        view = View(item.account, selected, True, 1 << 32)
        quiet: Any = _Quiet(services, view)
        await services.columns.of(quiet, view, item.columns)
        if item.view and len(view) >= KEPT_FROM:
            services.views.keep(view)
    return there
