"""Writes mail to files: mbox, Maildir++ and .eml. A message goes out in pieces; a file has its name only when it is whole."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from iems.message.date import format_date
from iems.transfer.names import to_file

_FLAGS = {"\\Seen": "S", "\\Answered": "R", "\\Flagged": "F", "\\Deleted": "T", "\\Draft": "D"}


class Target:
    """Where mail goes. `add` writes one message and tells whether it was not there yet; `done` ends the writing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, mailbox: str, key: str, pieces: Iterator[bytes], flags: list[str], date_s: float) -> bool:
        """key: the same for the same message at every export. pieces: its octets, CRLF."""
        raise NotImplementedError

    def done(self) -> None:
        """Everything was added."""


def _levels(mailbox: str) -> list[str]:
    return [to_file(level) for level in mailbox.split("/")]


def _put(path: Path, pieces: Iterator[bytes], date_s: float) -> bool:
    if path.exists():
        return False
    part = path.with_name(f".{path.name[:80]}.part")
    with open(part, "wb") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())
    os.utime(part, (date_s, date_s))
    os.rename(part, path)
    return True


class EmlTarget(Target):
    """A folder for each mailbox, a file for each message."""

    def add(self, mailbox: str, key: str, pieces: Iterator[bytes], flags: list[str], date_s: float) -> bool:
        """One file."""
        folder = self.folder.joinpath(*_levels(mailbox))
        folder.mkdir(parents=True, exist_ok=True)
        return _put(folder / f"{key}.eml", pieces, date_s)


class MaildirTarget(Target):
    """Maildir++: INBOX is the folder itself, others `.Level.Level` in it."""

    def add(self, mailbox: str, key: str, pieces: Iterator[bytes], flags: list[str], date_s: float) -> bool:
        """One file in cur, its flags in its name."""
        folder = self.folder if mailbox == "INBOX" else self.folder / ("." + ".".join(_levels(mailbox)))
        for name in ("cur", "new", "tmp"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        if folder != self.folder:
            (folder / "maildirfolder").touch()
        info = "".join(sorted(_FLAGS[flag] for flag in flags if flag in _FLAGS))
        for known in (folder / "cur").glob(f"{key}:2,*"):
            if known.name != f"{key}:2,{info}":
                os.rename(known, folder / "cur" / f"{key}:2,{info}")
            return False
        return _put(folder / "cur" / f"{key}:2,{info}", pieces, date_s)


class MboxTarget(Target):
    """One file (mboxrd, LF line ends) for each mailbox, written anew at each export."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._mailbox = ""
        self._file: BinaryIO | None = None
        self._path = Path()

    def add(self, mailbox: str, key: str, pieces: Iterator[bytes], flags: list[str], date_s: float) -> bool:
        """One message behind its `From ` line; mailboxes come one after the other."""
        if self._file is None or mailbox != self._mailbox:
            self._close()
            *above, name = _levels(mailbox)
            self._path = self.folder.joinpath(*above, f"{name}.mbox")
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path.with_name(f".{self._path.name}.part"), "wb")  # noqa: SIM115
            self._mailbox = mailbox
        file = self._file
        # asctime in UTC (RFC 4155): `Mon Jan  2 03:04:05 2006`.
        day, number, month, year, clock = format_date(date_s).replace(",", "").split()[:5]
        file.write(f"From iems@localhost {day} {month} {int(number):2d} {clock} {year}\n".encode("ascii"))
        status = "RO" if "\\Seen" in flags else "O"
        marks = "".join(letter for flag, letter in (("\\Answered", "A"), ("\\Flagged", "F"), ("\\Deleted", "D"), ("\\Draft", "T")) if flag in flags)
        file.write(f"Status: {status}\n".encode() + (f"X-Status: {marks}\n".encode() if marks else b""))
        held = b""
        last = b"\n"
        for piece in pieces:
            held += piece
            cut = held.rfind(b"\n") + 1
            if cut:
                last = self._lines(held[:cut])
                held = held[cut:]
        if held:
            last = self._lines(held)
        if not last.endswith(b"\n"):
            file.write(b"\n")
        file.write(b"\n")
        return True

    def _lines(self, octets: bytes) -> bytes:
        assert self._file is not None
        text = re.sub(rb"^(>*From )", rb">\1", octets.replace(b"\r\n", b"\n"), flags=re.M)
        self._file.write(text)
        return text[-1:]

    def _close(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.rename(self._path.with_name(f".{self._path.name}.part"), self._path)
            self._file = None

    def done(self) -> None:
        """Give the last file its name."""
        self._close()


TARGETS: dict[str, type[Target]] = {"mbox": MboxTarget, "maildir": MaildirTarget, "eml": EmlTarget}
