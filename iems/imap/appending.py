"""Arguments of APPEND and REPLACE as steps: MULTIAPPEND (RFC 3502), CATENATE (4469), UTF8 (6855), literal8 (3516).

A command is read in pieces, one before each literal that is content and one behind the last: each gives what to do before
that literal, and what the literal is.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from iems.imap import flags, mailboxes, names
from iems.imap.fetch import Section, section
from iems.imap.grammar import MAX_NUMBER, Arguments, Bad

MAX_FLAGS = 100
#: Octets of one URL.
MAX_URL = 4096

#: What a literal is: a whole message, a text of CATENATE, a URL of CATENATE; NOTHING: the command ends here.
NOTHING, MESSAGE, TEXT, URL = range(4)
#: Where the grammar stands behind a literal.
_NEXT, _UTF8, _PARTS = range(3)


class Begin(Struct, frozen=True):
    """A message begins. flags: as the store takes them."""

    flags: list[str]
    date_s: int | None


class Link(Struct, frozen=True):
    """Content of another message, named by its URL, comes next."""

    url: bytes


Step = Begin | Link


class Prefix(Struct, frozen=True):
    """What stands before one content. name: "" for the second and later literals. replaces: of REPLACE, the message."""

    name: str
    steps: list[Step]
    what: int
    replaces: int = 0
    state: int = _NEXT


class Complete(Struct, frozen=True):
    """A command that needs no content of its own: all its messages are made of URLs."""

    name: str
    steps: list[Step]
    replaces: int = 0


def _at_literal(arguments: Arguments) -> bool:
    return arguments.data[arguments.pos :] in (b"", b"~")


def _message(arguments: Arguments, steps: list[Step]) -> tuple[int, int]:
    """Flags, date and how the content comes: (what the next literal is, state behind it)."""
    arguments.space()
    found: list[bytes] = []
    date_s = None
    if arguments.looking_at(b"("):
        found = arguments.flag_list()
        if len(found) > MAX_FLAGS:
            raise Bad("Too many flags")
        arguments.space()
    if arguments.looking_at(b'"'):
        date_s = arguments.date_time()
        arguments.space()
    steps.append(Begin(flags.settable(found), date_s))
    if _at_literal(arguments):
        return MESSAGE, _NEXT
    word = arguments.word()
    arguments.space()
    arguments.expect(b"(")
    if word == b"CATENATE":
        return _parts(arguments, steps, True)
    if word == b"UTF8" and _at_literal(arguments):
        return MESSAGE, _UTF8
    raise Bad("Message literal expected")


def _parts(arguments: Arguments, steps: list[Step], first: bool) -> tuple[int, int]:
    """The parts of CATENATE up to a literal or the end of the list."""
    while True:
        if not first:
            if arguments.accept(b")"):
                return _after(arguments, steps)
            arguments.space()
        first = False
        word = arguments.word()
        arguments.space()
        if word == b"TEXT" and _at_literal(arguments):
            return TEXT, _PARTS
        if word != b"URL":
            raise Bad("TEXT or URL expected")
        if _at_literal(arguments):
            return URL, _PARTS
        steps.append(Link(arguments.astring()))


def _after(arguments: Arguments, steps: list[Step]) -> tuple[int, int]:
    """Behind a message: the end, or the next one."""
    if arguments.at_end():
        return NOTHING, _NEXT
    return _message(arguments, steps)


def _following(arguments: Arguments, steps: list[Step], state: int) -> tuple[int, int]:
    if state == _PARTS:
        return _parts(arguments, steps, False)
    if state == _UTF8:
        arguments.expect(b")")
    return _after(arguments, steps)


def _head(arguments: Arguments, numbered: bool) -> tuple[int, str] | None:
    """(message to replace, mailbox); None if the mailbox is still to come as a literal."""
    arguments.space()
    number = 0
    if numbered:
        number = arguments.number()
        if not number:
            raise Bad("Message numbers start at 1")
        arguments.space()
    if arguments.at_end():
        return None
    return number, names.mailbox(arguments.astring(), arguments.utf8)


def stream(arguments: Arguments, previous: Prefix | None, numbered: bool = False) -> Prefix | None:
    """See `engine.Spec.stream`. numbered: REPLACE, which names a message first. Raises `Bad`."""
    steps: list[Step] = []
    if previous is not None:
        what, state = _following(arguments, steps, previous.state)
        if what == NOTHING or (numbered and any(isinstance(step, Begin) for step in steps)):
            raise Bad("Unexpected literal")
        return Prefix("", steps, what, 0, state)
    head = _head(arguments, numbered)
    if head is None:
        return None
    what, state = _message(arguments, steps)
    if what == NOTHING or (numbered and len([step for step in steps if isinstance(step, Begin)]) > 1):
        raise Bad("Unexpected literal")
    return Prefix(head[1], steps, what, head[0], state)


def tail(arguments: Arguments, previous: Prefix) -> list[Step]:
    """What follows the last content. Raises `Bad`."""
    steps: list[Step] = []
    what, _ = _following(arguments, steps, previous.state)
    if what != NOTHING:
        raise Bad("Message literal expected")
    return steps


def parse(arguments: Arguments, numbered: bool = False) -> Complete:
    """A command without content. Raises `Bad`."""
    head = _head(arguments, numbered)
    if head is None:
        raise Bad("Message literal expected")
    steps: list[Step] = []
    what, _ = _message(arguments, steps)
    if what != NOTHING or (numbered and len([step for step in steps if isinstance(step, Begin)]) > 1):
        raise Bad("Message literal expected")
    return Complete(head[1], steps, head[0])


# -------------------------------------------------------------------- URLs of CATENATE

_URL = re.compile(
    rb"(?:imap://[^/]*)?/?(?P<box>[^;?]+?)(?:;UIDVALIDITY=(?P<validity>\d{1,10}))?/?;UID=(?P<uid>\d{1,10})"
    rb"(?:/?;SECTION=(?P<section>[^/;]+))?(?:/?;PARTIAL=(?P<origin>\d{1,10})(?:\.(?P<count>\d{1,10}))?)?",
    re.IGNORECASE,
)


class Target(Struct, frozen=True):
    """What a URL names. uidvalidity: 0 if it does not say."""

    name: str
    uidvalidity: int
    uid: int
    section: Section


def url(text: bytes) -> Target | None:
    """A URL of RFC 5092 with a message in it, relative to this server; None for anything else."""
    match = _URL.fullmatch(text) if len(text) <= MAX_URL else None
    if match is None:
        return None
    try:
        box = unquote_to_bytes(match["box"]).decode("utf-8")
        part = unquote_to_bytes(match["section"] or b"")
        found = section(part)
    except (UnicodeDecodeError, Bad):
        return None
    if match["origin"] is not None:
        count = int(match["count"]) if match["count"] is not None else MAX_NUMBER
        found = Section(found.part, found.kind, found.fields, int(match["origin"]), count)
    return Target(mailboxes.normal(box), int(match["validity"] or 0), int(match["uid"]), found)
