"""Reads mail from files: mbox, Maildir (also Maildir++), folders of .eml. Lenient: what is no message is skipped and told."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import Struct

from iems.message import header
from iems.message.date import parse_date
from iems.transfer.names import from_file

#: A longer message is skipped.
MAX_OCTETS = 256 << 20
_FROM_LINE = re.compile(rb"From [^\r\n]*\d\d?:\d\d[^\r\n]*\r?\n?\Z")
_NOTED = re.compile(rb"(?:(?:X-)?Status: [A-Z]{0,8}\r\n){1,2}")
_QUOTED = re.compile(rb"^>(>*From )", re.M)
_MAILDIR_FLAGS = {"S": "\\Seen", "R": "\\Answered", "F": "\\Flagged", "T": "\\Deleted", "D": "\\Draft"}
_STATUS = {b"R": "\\Seen"}
_XSTATUS = {b"A": "\\Answered", b"F": "\\Flagged", b"D": "\\Deleted", b"T": "\\Draft"}
FORMATS = ("mbox", "maildir", "eml")


class Mail(Struct):
    """One message. place: where it was, for people. mailbox: the levels of its mailbox's name. date_s: of delivery, None if unknown."""

    place: str
    mailbox: tuple[str, ...]
    content: bytes
    flags: list[str]
    date_s: float | None


Skipped = Callable[[str, str], None]


def guess(path: Path) -> str:
    """The format of a file or folder. Raises ValueError."""
    if path.is_file():
        with open(path, "rb") as file:
            start = file.read(5)
        return "mbox" if start == b"From " else "eml"
    if path.is_dir():
        for folder, names, files in os.walk(path):
            if "cur" in names or "new" in names:
                return "maildir"
            if any(name.lower().endswith(".eml") for name in files):
                return "eml"
            if any(_is_mbox(Path(folder, name)) for name in files[:50]):
                return "mbox"
    raise ValueError(f"{path}: neither mbox, Maildir nor .eml is found there")


def _is_mbox(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(5) == b"From "
    except OSError:
        return False


def read(path: Path, kind: str, skipped: Skipped) -> Iterator[Mail]:
    """Every message below a path. skipped: told (place, why) of what is left out. Raises OSError, ValueError."""
    if kind == "maildir":
        yield from _maildir(path, skipped)
    elif kind == "eml":
        yield from _emls(path, skipped)
    elif kind == "mbox":
        yield from _mboxes(path, skipped)
    else:
        raise ValueError(f"a format is {', '.join(FORMATS)}, not {kind}")


def crlf(content: bytes) -> bytes:
    """With CRLF line ends, as mail has them on the wire and in the store."""
    if b"\n" in content.replace(b"\r\n", b"") or b"\r" in content.replace(b"\r\n", b""):
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    return content


def _dated(content: bytes) -> float | None:
    end = header.header_end(content[: 1 << 20])
    for value in header.values(content, b"date", 0, end):
        found = parse_date(value)
        if found is not None:
            return found.timestamp()
    return None


def _whole(path: Path, skipped: Skipped) -> bytes | None:
    if path.stat().st_size > MAX_OCTETS:
        skipped(str(path), "too long")
        return None
    return path.read_bytes()


# --- .eml


def _emls(path: Path, skipped: Skipped) -> Iterator[Mail]:
    if path.is_file():
        files = [path]
        top = path.parent
    else:
        top = path
        files = sorted(found for found in path.rglob("*") if found.is_file() and found.suffix.lower() == ".eml")
    for file in files:
        content = _whole(file, skipped)
        if content is None:
            continue
        if not content.strip():
            skipped(str(file), "empty")
            continue
        levels = tuple(from_file(level) for level in file.parent.relative_to(top).parts)
        content = crlf(content)
        yield Mail(str(file), levels, content, [], _dated(content) or file.stat().st_mtime)


# --- Maildir


def _maildir(path: Path, skipped: Skipped) -> Iterator[Mail]:
    for folder, names, _ in sorted(os.walk(path)):
        names[:] = [name for name in names if name not in ("cur", "new", "tmp")]
        place = Path(folder)
        if not (place / "cur").is_dir() and not (place / "new").is_dir():
            continue
        levels: list[str] = []
        for part in place.relative_to(path).parts:
            levels += [from_file(level) for level in part.strip(".").split(".") if level] if part.startswith(".") else [from_file(part)]
        for name in ("cur", "new"):
            if not (place / name).is_dir():
                continue
            for file in sorted((place / name).iterdir()):
                if file.name.startswith(".") or not file.is_file():
                    continue
                content = _whole(file, skipped)
                if content is None:
                    continue
                if not content.strip():
                    skipped(str(file), "empty")
                    continue
                info = file.name.rpartition(":2,")[2] if ":2," in file.name else ""
                flags = [_MAILDIR_FLAGS[flag] for flag in info if flag in _MAILDIR_FLAGS]
                yield Mail(str(file), tuple(levels), crlf(content), flags, file.stat().st_mtime)


# --- mbox


def _mboxes(path: Path, skipped: Skipped) -> Iterator[Mail]:
    if path.is_file():
        yield from _mbox(path, (), skipped)
        return
    for file in sorted(found for found in path.rglob("*") if found.is_file() and not found.name.startswith(".")):
        if _is_mbox(file):
            parts = [*file.relative_to(path).parts[:-1], file.name.removesuffix(".mbox")]
            yield from _mbox(file, tuple(from_file(part.removesuffix(".sbd")) for part in parts), skipped)


def _mbox(path: Path, levels: tuple[str, ...], skipped: Skipped) -> Iterator[Mail]:
    """Messages of one mbox file (mboxrd and its kin): a line `From ` with a time, after an empty line or at the start."""
    number = 0
    lines: list[bytes] = []
    size = 0
    blank = True
    began = b""

    def made() -> Mail | None:
        nonlocal number
        number += 1
        place = f"{path}, message {number}"
        if size > MAX_OCTETS:
            skipped(place, "too long")
            return None
        raw = b"".join(lines)
        content = crlf(_QUOTED.sub(rb"\1", raw[:-1] if raw.endswith(b"\n\n") else raw.removesuffix(b"\r\n") if raw.endswith(b"\n\r\n") else raw))
        if not content.strip():
            skipped(place, "empty")
            return None
        # What a program noted of the message above the message itself is no part of it; else its last program's fields count.
        noted = _NOTED.match(content)
        if noted:
            content = content[noted.end() :]
        head = noted[0] if noted else content[: 1 << 20]
        end = header.header_end(head)
        flags = [
            flag
            for name, known in ((b"status", _STATUS), (b"x-status", _XSTATUS))
            for value in header.values(head, name, 0, end)
            for letter, flag in known.items()
            if letter in value.upper()
        ]
        when = parse_date(began.split(b" ", 2)[2] if began.count(b" ") >= 2 else b"")
        return Mail(place, levels, content, list(dict.fromkeys(flags)), when.timestamp() if when is not None else _dated(content))

    with open(path, "rb") as file:
        while line := file.readline(1 << 20):
            if blank and line.startswith(b"From ") and (_FROM_LINE.match(line) or not began):
                if began and (found := made()) is not None:
                    yield found
                lines, size, began = [], 0, line.rstrip(b"\r\n")
                blank = False
                continue
            blank = line in (b"\n", b"\r\n")
            size += len(line)
            if size <= MAX_OCTETS:
                lines.append(line)
    if began and (found := made()) is not None:
        yield found
