"""NOTIFY (RFC 5465): which changes, and of which mailboxes, the client is told of as they happen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from iems.imap import fetch, names
from iems.imap.grammar import Arguments, Bad, Refused
from iems.imapd import telling
from iems.imapd.engine import LOGGED_IN, Command, Spec
from iems.imapd.notify import EVENTS, Group, Notifier

if TYPE_CHECKING:
    from iems.imapd.session import Session

MAX_GROUPS = 50
MAX_NAMES = 1000

_KNOWN = {event.upper() for event in EVENTS}
_UNSUPPORTED = {b"ANNOTATIONCHANGE", b"MAILBOXMETADATACHANGE", b"SERVERMETADATACHANGE"}
_KINDS = {b"SELECTED", b"SELECTED-DELAYED", b"INBOXES", b"PERSONAL", b"SUBSCRIBED", b"SUBTREE", b"MAILBOXES"}


class Request(Struct, frozen=True):
    """groups: None for NOTIFY NONE. status: SET STATUS. refused: an event that can't be told."""

    groups: list[Group] | None
    status: bool = False
    refused: bool = False


def parse(arguments: Arguments) -> Request:
    """The arguments of NOTIFY. Raises Bad."""
    arguments.space()
    word = arguments.word()
    if word == b"NONE":
        arguments.end()
        return Request(None)
    if word != b"SET":
        raise Bad("SET or NONE expected")
    arguments.space()
    status = refused = False
    if not arguments.looking_at(b"("):
        if arguments.word() != b"STATUS":
            raise Bad("STATUS expected")
        status = True
        arguments.space()
    groups: list[Group] = []
    while True:
        group, bad = _group(arguments)
        refused = refused or bad
        groups.append(group)
        if len(groups) > MAX_GROUPS:
            raise Bad("Too many groups")
        if arguments.at_end():
            break
        arguments.space()
    if sum(1 for group in groups if group.kind.startswith(b"SELECTED")) > 1:
        raise Bad("SELECTED occurs twice")
    return Request(groups, status, refused)


def _group(arguments: Arguments) -> tuple[Group, bool]:
    arguments.expect(b"(")
    kind = arguments.word()
    if kind not in _KINDS:
        raise Bad("Unknown mailbox filter")
    arguments.space()
    found: list[str] = []
    if kind in (b"SUBTREE", b"MAILBOXES"):
        if arguments.accept(b"("):
            while True:
                found.append(names.mailbox(arguments.astring(), arguments.utf8))
                if len(found) > MAX_NAMES:
                    raise Bad("Too many mailboxes")
                if arguments.accept(b")"):
                    break
                arguments.space()
        else:
            found.append(names.mailbox(arguments.astring(), arguments.utf8))
        arguments.space()
    events, request, refused = _events(arguments, kind.startswith(b"SELECTED"))
    arguments.expect(b")")
    return Group(kind, tuple(found), frozenset(events), request), refused


def _events(arguments: Arguments, selected: bool) -> tuple[set[bytes], fetch.Request | None, bool]:
    events: set[bytes] = set()
    request = None
    refused = False
    if arguments.looking_at(b"("):
        arguments.expect(b"(")
        while True:
            word = arguments.word()
            if word in _UNSUPPORTED:
                refused = True
            elif word not in _KNOWN:
                raise Bad("Unknown event")
            events.add(word)
            if word == b"MESSAGENEW" and arguments.accept(b" ("):
                if not selected:
                    raise Bad("FETCH items are for the selected mailbox")
                request = fetch.items_until_close(arguments)
            if arguments.accept(b")"):
                break
            arguments.space()
    elif arguments.word() != b"NONE":
        raise Bad("Events expected")
    messages = events & {b"MESSAGENEW", b"MESSAGEEXPUNGE", b"FLAGCHANGE"}
    if messages and not {b"MESSAGENEW", b"MESSAGEEXPUNGE"} <= messages:
        # RFC 5465 5: the one makes no sense without the other.
        raise Bad("MessageNew and MessageExpunge go together, FlagChange needs both")
    return events, request, refused


def run(session: Session, command: Command) -> bytes:
    """Carry out NOTIFY; the text of the tagged answer. Raises Refused, StoreError."""
    request: Request = command.arguments
    if request.refused:
        raise Refused("[BADEVENT (" + " ".join(event.decode() for event in EVENTS) + ")] Event not supported")
    session.notify(None)
    if request.groups:
        notifier = Notifier(session, request.groups, telling.notified)
        session.notify(notifier)
        if request.status:
            session.send(notifier.statuses())
    return b"OK NOTIFY completed"


SPECS = [Spec(b"NOTIFY", LOGGED_IN, parse, run)]
