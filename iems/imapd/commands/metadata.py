"""GETMETADATA and SETMETADATA (RFC 5464): annotations of mailboxes and, under the name "", of the account."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from msgspec import Struct

from iems.imap import names
from iems.imap.grammar import Arguments, Bad, Refused
from iems.imap.response import astring, nstring
from iems.imapd import places, verdicts
from iems.imapd.engine import LOGGED_IN, Command, Spec
from iems.store.rows import METADATA_VALUE_MAX

if TYPE_CHECKING:
    from iems.imapd.session import Session

#: Entries of one command.
MAX_ENTRIES = 100
#: Stands for DEPTH infinity.
INFINITY = 1 << 30

_ENTRY = re.compile(rb"/(?:private|shared)(?:/[^\x00-\x1f\x7f-\xff/*%]+)+", re.IGNORECASE)


class Get(Struct, frozen=True):
    """GETMETADATA. name: "" for the account."""

    name: str
    entries: list[str]
    depth: int
    maxsize: int | None


def _name(arguments: Arguments) -> str:
    raw = arguments.astring()
    return names.mailbox(raw, arguments.utf8) if raw else ""


def _entry(arguments: Arguments, depth: bool = False) -> str:
    entry = arguments.astring()
    if len(entry) > 255:
        raise Bad("Entry name too long")
    if not _ENTRY.fullmatch(entry) and not (depth and re.fullmatch(rb"/(?:private|shared)", entry, re.IGNORECASE)):
        raise Bad("Malformed entry name")
    return entry.decode("ascii").lower()


def parse_get(arguments: Arguments) -> Get:
    """The arguments of GETMETADATA. Raises Bad."""
    arguments.space()
    depth, maxsize = 0, None
    given = False
    if arguments.accept(b"("):
        given = True
        while True:
            word = arguments.word()
            arguments.space()
            if word == b"MAXSIZE":
                maxsize = arguments.number()
            elif word == b"DEPTH":
                depth = {b"0": 0, b"1": 1, b"INFINITY": INFINITY}.get(arguments.word(), -1)
                if depth < 0:
                    raise Bad("DEPTH is 0, 1 or infinity")
            else:
                raise Bad("Unknown option")
            if arguments.accept(b")"):
                break
            arguments.space()
        arguments.space()
    name = _name(arguments)
    arguments.space()
    if not given and arguments.looking_at(b"(") and re.match(rb"\((?:DEPTH|MAXSIZE) ", arguments.data[arguments.pos :], re.IGNORECASE):
        # Clients put the options behind the name too, as an erratum of RFC 5464 has it.
        options, closing, rest = arguments.data[arguments.pos :].partition(b")")
        inner = parse_get(Arguments(b" " + options + closing + b" x" + rest))
        return Get(name, inner.entries, inner.depth, inner.maxsize)
    entries = []
    if arguments.accept(b"("):
        while True:
            entries.append(_entry(arguments, True))
            if len(entries) > MAX_ENTRIES:
                raise Bad("Too many entries")
            if arguments.accept(b")"):
                break
            arguments.space()
    else:
        entries.append(_entry(arguments, True))
    arguments.end()
    return Get(name, entries, depth, maxsize)


def parse_set(arguments: Arguments) -> tuple[str, dict[str, bytes | None]]:
    """The arguments of SETMETADATA. Raises Bad."""
    arguments.space()
    name = _name(arguments)
    arguments.space()
    arguments.expect(b"(")
    changes: dict[str, bytes | None] = {}
    while True:
        entry = _entry(arguments)
        arguments.space()
        changes[entry] = arguments.nstring()
        if len(changes) > MAX_ENTRIES:
            raise Bad("Too many entries")
        if arguments.accept(b")"):
            break
        arguments.space()
    arguments.end()
    return name, changes


def _mailbox(session: Session, name: str, entries: Iterable[str], right: str) -> tuple[int, int]:
    """(account, mailbox id) of a name, ids of 0 being the account. Raises `Refused`."""
    if not name:
        return session.number, 0
    place = places.find(session, name)
    if place is None:
        raise Refused("[NONEXISTENT] No such mailbox")
    place.require(right)
    if place.rights is not None and any(not entry.startswith("/shared") for entry in entries):
        # There is one set of entries: what is private in it is the owner's.
        raise Refused("[METADATA NOPRIVATE] Only shared annotations in another's mailbox")
    return place.account, place.box.id


async def run_get(session: Session, command: Command) -> bytes:
    """Carry out GETMETADATA; the text of the tagged answer. Raises Refused, StoreError."""
    request: Get = command.arguments
    place = _mailbox(session, request.name, request.entries, "r")
    kept = session.services.reader.metadata(*place)
    if any(map(verdicts.is_ours, request.entries)):
        kept = kept | await verdicts.of_mailbox(session, *place, request.entries, request.depth)
    found: dict[str, bytes | None] = {}
    for entry in request.entries:
        if entry in kept:
            found[entry] = kept[entry]
        elif request.depth == 0:
            found[entry] = None
        if request.depth:
            for other, value in kept.items():
                if other.startswith(entry + "/") and other[len(entry) + 1 :].count("/") < request.depth:
                    found[other] = value
    longest = max((len(value) for value in found.values() if value is not None), default=0)
    too_long = request.maxsize is not None and longest > request.maxsize
    if request.maxsize is not None:
        limit = request.maxsize
        found = {entry: value for entry, value in found.items() if value is None or len(value) <= limit}
    if found:
        text = b" ".join([astring(entry.encode()) + b" " + nstring(value) for entry, value in found.items()])
        name = session.mailbox_text(request.name) if request.name else b'""'
        session.send(b"* METADATA %b (%b)\r\n" % (name, text))
    if too_long:
        return b"OK [METADATA LONGENTRIES %d] GETMETADATA completed" % longest
    return b"OK GETMETADATA completed"


async def run_set(session: Session, command: Command) -> bytes:
    """Carry out SETMETADATA; the text of the tagged answer. Raises Refused, StoreError."""
    name, changes = command.arguments
    if not name and any(entry.startswith("/shared/") for entry in changes):
        raise Refused("[NOPERM] Shared annotations of the server are set by the administrator")
    if any(map(verdicts.is_ours, changes)):
        raise Refused("[CANNOT] Verdicts are read from the messages")
    for value in changes.values():
        if value is not None and len(value) > METADATA_VALUE_MAX:
            raise Refused(f"[METADATA MAXSIZE {METADATA_VALUE_MAX}] Annotation too large")
    await session.services.store.set_metadata(*_mailbox(session, name, changes, "w"), changes)
    return b"OK SETMETADATA completed"


SPECS = [
    Spec(b"GETMETADATA", LOGGED_IN, parse_get, run_get),
    Spec(b"SETMETADATA", LOGGED_IN, parse_set, run_set),
]
