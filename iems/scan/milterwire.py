"""The packets of the milter protocol, version 6, as sendmail's libmilter speaks it: octets to values and back, no I/O.

A packet is a length (u32, big-endian) of what follows, a letter and data. Numbers in data are u32, strings end with NUL. What a
milter sends is never trusted: lengths and counts have bounds, names and values can't leave their field.
"""

from __future__ import annotations

import re

from msgspec import Struct

from iems.model import Reply
from iems.net.breaker import NoAnswer

VERSION = 6
#: libmilter takes no packet with more data.
DATA_MAX = 65_535
#: The longest packet believed.
ANSWER_MAX = 1 << 20

# Commands to the milter.
NEGOTIATE, MACRO, CONNECT, HELO, MAIL, RCPT, DATA = b"O", b"D", b"C", b"H", b"M", b"R", b"T"
HEADER, END_OF_HEADER, BODY, END_OF_BODY, ABORT, QUIT = b"L", b"N", b"B", b"E", b"A", b"Q"

# Answers that end a stage.
CONTINUE, ACCEPT, REJECT, TEMPFAIL, DISCARD, REPLY, SKIP = b"c", b"a", b"r", b"t", b"d", b"y", b"s"
#: It wants the client's connection cut (421); after acceptance this is a temporary refusal.
CUT_OFF = (b"f", b"4")
PROGRESS = b"p"
# What it wants changed, at the end of the message.
ADD_HEADER, INSERT_HEADER, CHANGE_HEADER, REPLACE_BODY = b"h", b"i", b"m", b"b"
QUARANTINE, DELETE_RECIPIENT = b"q", b"-"

_ADD_HEADERS, _CHANGE_BODY, _DELETE_RECIPIENT, _CHANGE_HEADERS, _QUARANTINE, _MACRO_LIST = 0x01, 0x02, 0x08, 0x10, 0x20, 0x100
#: What we let a milter do. Adding recipients and another reverse path are not offered: the message is routed already.
ACTIONS = _ADD_HEADERS | _CHANGE_BODY | _DELETE_RECIPIENT | _CHANGE_HEADERS | _QUARANTINE | _MACRO_LIST
NEEDS = {
    ADD_HEADER: _ADD_HEADERS, INSERT_HEADER: _ADD_HEADERS, CHANGE_HEADER: _CHANGE_HEADERS, REPLACE_BODY: _CHANGE_BODY,
    QUARANTINE: _QUARANTINE, DELETE_RECIPIENT: _DELETE_RECIPIENT,
}  # fmt: skip

#: Stages a milter may leave out, and stages it may leave unanswered.
NOT_WANTED = {CONNECT: 0x01, HELO: 0x02, MAIL: 0x04, RCPT: 0x08, BODY: 0x10, HEADER: 0x20, END_OF_HEADER: 0x40, DATA: 0x200}
NO_ANSWER = {
    HEADER: 0x80, CONNECT: 0x1000, HELO: 0x2000, MAIL: 0x4000, RCPT: 0x8000, DATA: 0x10000, END_OF_HEADER: 0x40000, BODY: 0x80000,
}  # fmt: skip
_SKIPS, LEADING_SPACE, _NO_UNKNOWN, _NO_ANSWER_UNKNOWN = 0x400, 0x100000, 0x100, 0x20000
STEPS = sum(NOT_WANTED.values()) | sum(NO_ANSWER.values()) | _SKIPS | LEADING_SPACE | _NO_UNKNOWN | _NO_ANSWER_UNKNOWN

_NAME = re.compile(rb"[!-9;-~]{1,255}\Z")
_REPLY = re.compile(rb"([45])([0-9]{2})(?:[ -]|\Z)(?:[45]\.([0-9]{1,3})\.([0-9]{1,3})(?:\s|\Z))?(.*)", re.DOTALL)
_LINE_END = re.compile(rb"\r\n|\r|\n")


class Terms(Struct, frozen=True):
    """What was negotiated: version, actions the milter may take, steps it leaves out or unanswered (bits)."""

    version: int
    actions: int
    steps: int

    def sends(self, command: bytes) -> bool:
        """Whether the milter wants this stage."""
        return not self.steps & NOT_WANTED.get(command, 0)

    def answers(self, command: bytes) -> bool:
        """Whether it answers this stage."""
        return not self.steps & NO_ANSWER.get(command, 0)


class HeaderChange(Struct, frozen=True):
    """action: ADD_HEADER, INSERT_HEADER or CHANGE_HEADER. place: of the latter two, read as said in `preprocessor.modules.milter.applied`. value: b"" removes."""

    action: bytes
    place: int
    name: bytes
    value: bytes


def packet(command: bytes, data: bytes = b"") -> bytes:
    """A packet."""
    return (len(data) + 1).to_bytes(4, "big") + command + data


def strings(*values: bytes) -> bytes:
    """Strings, each with its NUL; a NUL inside becomes a space."""
    return b"".join(value.replace(b"\0", b" ") + b"\0" for value in values)


def offer() -> bytes:
    """The data of our NEGOTIATE."""
    return b"".join(number.to_bytes(4, "big") for number in (VERSION, ACTIONS, STEPS))


def terms(data: bytes) -> Terms:
    """What the milter makes of our offer. Raises NoAnswer. Its list of macros is passed over: it gets all we have."""
    if len(data) < 12:
        raise NoAnswer("its answer to the negotiation is cut off")
    found = Terms(*(int.from_bytes(data[at : at + 4], "big") for at in (0, 4, 8)))
    if not 2 <= found.version <= VERSION:
        raise NoAnswer(f"it speaks version {found.version}, we {VERSION}")
    if found.actions & ~ACTIONS or found.steps & ~STEPS:
        raise NoAnswer(f"it wants what was not offered (actions {found.actions:#x}, steps {found.steps:#x})")
    return found


def reply(data: bytes) -> Reply:
    """The reply a milter words itself, on one line of printable ASCII. Raises NoAnswer."""
    found = _REPLY.match(data.rstrip(b"\0"))
    if found is None:
        raise NoAnswer(f"no reply: {data[:80]!r}")
    digit, rest, subject, detail, text = found.groups()
    words = " ".join(text.decode("ascii", "replace").replace("%%", "%").split())
    shown = "".join(char if " " <= char <= "~" else "?" for char in words)[:400]
    return Reply(int(digit + rest), int(subject or 7), int(detail or 1), shown or "Refused")


def header_change(action: bytes, data: bytes) -> HeaderChange:
    """A wish about a field. Raises NoAnswer if the name is none."""
    place = 0
    if action != ADD_HEADER:
        if len(data) < 4:
            raise NoAnswer("a change of a field is cut off")
        place, data = int.from_bytes(data[:4], "big"), data[4:]
    name, nul, value = data.partition(b"\0")
    if not nul or not _NAME.match(name):
        raise NoAnswer(f"no field name: {name[:80]!r}")
    return HeaderChange(action, place, name, value.partition(b"\0")[0])


def field(name: bytes, value: bytes, leading_space: bool) -> bytes:
    """A field with its CRLF. A line of the value never begins another field, and an empty one never ends the header."""
    lines = [line.rstrip() for line in _LINE_END.split(value)]
    folded = [line if line[:1] in (b" ", b"\t") else b"\t" + line for line in lines[1:] if line]
    return name + (b":" if leading_space else b": ") + b"\r\n".join([lines[0], *folded]) + b"\r\n"


class Lines:
    """Makes every line end of a stream CRLF: a bare CR or LF would be read differently by others (smuggling)."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, octets: bytes) -> bytes:
        """The next octets; a CR at their end is held back."""
        octets = self._held + octets
        self._held = b"\r" if octets.endswith(b"\r") else b""
        return _LINE_END.sub(b"\r\n", octets[:-1] if self._held else octets)

    def end(self) -> bytes:
        """What was held back."""
        held, self._held = self._held, b""
        return b"\r\n" if held else b""
