"""LIST (RFC 3501 6.3.8) with LIST-EXTENDED (RFC 5258), LIST-STATUS (5819), SPECIAL-USE (6154) and CHILDREN (3348)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from iems.errors import StoreError
from iems.imap import mailboxes, names
from iems.imap.grammar import Arguments, Bad
from iems.imapd import places
from iems.imapd.commands import status
from iems.imapd.engine import LOGGED_IN, Command, Spec
from iems.imapd.places import Place
from iems.store.shared import SHARED

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from iems.imapd.session import Session

MAX_PATTERNS = 100


class Request(Struct, frozen=True):
    """What is asked. selection, returned: options in upper case. extended: answered by the rules of RFC 5258."""

    reference: str
    patterns: list[str]
    selection: frozenset[bytes] = frozenset()
    returned: frozenset[bytes] = frozenset()
    status_items: tuple[bytes, ...] = ()
    extended: bool = False


class Entry(Struct):
    """A name to list. box: its mailbox; None if only a name below it exists, or if it is only subscribed."""

    name: str
    box: Any = None
    subscribed: bool = False
    has_children: bool = False
    place: Place | None = None  # of a mailbox of another account


_SELECTION = {b"SUBSCRIBED", b"REMOTE", b"RECURSIVEMATCH", b"SPECIAL-USE"}
_RETURN = {b"SUBSCRIBED", b"CHILDREN", b"SPECIAL-USE"}


def _options(arguments: Arguments, known: set[bytes]) -> tuple[frozenset[bytes], tuple[bytes, ...]]:
    arguments.expect(b"(")
    found = set()
    items: tuple[bytes, ...] = ()
    if not arguments.accept(b")"):
        while True:
            word = arguments.word()
            if word == b"STATUS" and known is _RETURN:
                arguments.space()
                items = status.items(arguments)
            elif word in known:
                found.add(word)
            else:
                raise Bad(f"Unknown option {word.decode()}")
            if arguments.accept(b")"):
                break
            arguments.space()
    return frozenset(found), items


def _decoded(pattern: bytes, utf8: bool = False) -> str:
    if utf8:
        return names.plain(pattern)
    # A lone & is no modified UTF-7, yet people type it: take such a pattern as it is.
    try:
        return names.decode(pattern)
    except Bad:
        return pattern.decode("utf-8", "surrogateescape")


def parse(arguments: Arguments) -> Request:
    """The arguments of LIST. Raises Bad."""
    arguments.space()
    extended = False
    selection: frozenset[bytes] = frozenset()
    if arguments.looking_at(b"("):
        extended = True
        selection, _ = _options(arguments, _SELECTION)
        if b"RECURSIVEMATCH" in selection and not selection - {b"RECURSIVEMATCH", b"REMOTE"}:
            raise Bad("RECURSIVEMATCH needs another selection option")
        arguments.space()
    reference = _decoded(arguments.astring(), arguments.utf8)
    arguments.space()
    if arguments.accept(b"("):
        extended = True
        patterns = []
        while True:
            patterns.append(_decoded(arguments.list_mailbox(), arguments.utf8))
            if len(patterns) > MAX_PATTERNS:
                raise Bad("Too many patterns")
            if arguments.accept(b")"):
                break
            arguments.space()
    else:
        patterns = [_decoded(arguments.list_mailbox(), arguments.utf8)]
    returned: frozenset[bytes] = frozenset()
    items: tuple[bytes, ...] = ()
    if arguments.accept(b" "):
        if arguments.word() != b"RETURN":
            raise Bad("RETURN expected")
        extended = True
        arguments.space()
        returned, items = _options(arguments, _RETURN)
    arguments.end()
    for text in (reference, *patterns):
        if len(text) > mailboxes.NAME_OCTETS_MAX:
            raise Bad("Pattern too long")
    return Request(reference, patterns, selection, returned, items, extended)


def entries(session: Session, subscribed_too: bool) -> list[Entry]:
    """All names of the account: its mailboxes and, if wanted, subscribed names that have none."""
    reader = session.services.reader
    found = {box.name: Entry(box.name, box, box.subscribed) for box in reader.mailboxes(session.number)}
    shared = list(places.foreign(session))
    if shared:
        subscribed = set(reader.subscriptions(session.number))
        for place in shared:
            found.setdefault(place.name, Entry(place.name, place.box, place.name in subscribed, False, place))
    if subscribed_too:
        for name in reader.subscriptions(session.number):
            if name not in found:
                found[name] = Entry(name, None, True)
    for entry in list(found.values()):
        for parent in mailboxes.parents(entry.name):
            above = found.get(parent)
            if above is None:
                if entry.box is None:
                    continue
                above = found[parent] = Entry(parent)
            if entry.box is not None:
                above.has_children = True
    return sorted(found.values(), key=lambda entry: (entry.name != "INBOX", entry.name))


def _use(entry: Entry, request: Request) -> bytes:
    """The special use of a mailbox, b"" if none is to be told. Those of a shared mailbox are told to who lists its names only: in a list of
    everything, what is \\Sent is where this user's mail goes (RFC 6154 2)."""
    if entry.box is None or not entry.box.special_use:
        return b""
    if entry.place is not None and not (
        entry.place.member and all((request.reference + pattern).startswith(SHARED) for pattern in request.patterns)
    ):
        return b""
    return bytes(entry.box.special_use.encode())


def _attributes(entry: Entry, request: Request) -> list[bytes]:
    found = []
    if entry.box is None or entry.box.noselect:
        found.append(rb"\NonExistent" if request.extended else rb"\Noselect")
    if entry.subscribed and (b"SUBSCRIBED" in request.returned or b"SUBSCRIBED" in request.selection):
        found.append(rb"\Subscribed")
    if not request.extended or b"CHILDREN" in request.returned:
        found.append(rb"\HasChildren" if entry.has_children else rb"\HasNoChildren")
    if use := _use(entry, request):
        found.append(use)
    return found


def run(session: Session, command: Command) -> bytes | Coroutine[Any, Any, bytes]:
    """Carry out LIST; the text of the tagged answer. Raises Refused, StoreError."""
    bare = places.unmade(session)
    return _made(session, command, bare) if bare else _run(session, command)


async def _made(session: Session, command: Command, bare: list[Any]) -> bytes:
    """LIST once the shared mailboxes nothing came to yet have their INBOX."""
    # While the store's writer is away, reading goes on.
    with contextlib.suppress(StoreError):
        for owner in bare:
            await session.services.store.ensure(owner.number)
    return _run(session, command)


def _run(session: Session, command: Command) -> bytes:
    request: Request = command.arguments
    if request.patterns == [""] and not request.extended:
        session.send(b'* LIST (\\Noselect) "/" ""\r\n')
        return b"OK LIST completed"
    patterns = [names.Pattern(request.reference + pattern) for pattern in request.patterns if pattern]
    only_subscribed = b"SUBSCRIBED" in request.selection
    only_special = b"SPECIAL-USE" in request.selection
    recursive = b"RECURSIVEMATCH" in request.selection
    parts = []
    listed = entries(session, only_subscribed)
    matching = {entry.name for entry in listed if any(pattern.matches(entry.name) for pattern in patterns)}
    above: set[str] = set()
    if recursive and only_subscribed:
        # Only for names below that the patterns do not list themselves (RFC 5258 3.5).
        for entry in listed:
            if entry.subscribed and entry.name not in matching:
                above.update(mailboxes.parents(entry.name))
    for entry in listed:
        if entry.name not in matching:
            continue
        info = b' ("CHILDINFO" ("SUBSCRIBED"))' if entry.name in above else b""
        wanted = not only_subscribed or entry.subscribed
        if only_special and not _use(entry, request):
            wanted = False
        if not wanted and not info:
            continue
        attributes = b" ".join(_attributes(entry, request))
        parts.append(b'* LIST (%b) "/" %b%b\r\n' % (attributes, session.mailbox_text(entry.name), info))
        if request.status_items and entry.box is not None and not entry.box.noselect:
            account = session.number if entry.place is None else entry.place.account
            if entry.place is None or entry.place.may("r"):
                member = 0 if entry.place is None else entry.place.member
                parts.append(status.response(session, account, entry.box, entry.name, request.status_items, member))
    session.send(b"".join(parts))
    return b"OK LIST completed"


SPECS = [Spec(b"LIST", LOGGED_IN, parse, run)]
