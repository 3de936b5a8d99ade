"""Event lines: one per change of a message's state, with its id; `iemsctl trace` reads them back.

Every process appends to HOME/log/mail.log itself (O_APPEND, one write per loop iteration), so a line is never cut by
another process's. Lines are gathered and written when the loop comes round: a delivered batch costs one write.
The writer never fails its caller: on a full disk lines wait in memory up to a bound, then are counted as lost.
No secret is ever given to `event`; control characters are escaped, so no peer can forge a line (CR LF injection).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import mmap
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from iems.levels import LEVELS, MESSAGE, is_wanted
from iems.model import id_text

#: Octets of lines kept while the disk takes none; more are lost and counted.
PENDING_OCTETS = 4 << 20

_encode = msgspec.json.Encoder(enc_hook=lambda value: str(value)).encode
_shown = functools.lru_cache(4096)(id_text)  # a message has several events
_PLAIN = frozenset({str, int, float, bool, type(None)})
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\\\\]")


def text_of(value: Any) -> Any:
    """Wire data as text for a log line: UTF-8 where it is, `\\xNN` where not; containers are walked."""
    if type(value) is bytes:
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, dict):
        return {str(key): text_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [text_of(item) for item in value]
    if isinstance(value, msgspec.Struct):
        return {name: text_of(getattr(value, name)) for name in value.__struct_fields__}
    return value


def _plain_text(value: Any) -> Any:
    """A value as text that can be encoded, whatever it is."""
    if isinstance(value, dict):
        return {_plain_text(key): _plain_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain_text(item) for item in value]
    return str(value).encode("utf-8", "backslashreplace").decode()


def printable(text: str) -> str:
    """Text with control characters and backslashes escaped: safe on a line and on a terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Log:
    """Writes event lines of one process.

    role: name in each line. path: the file, or None for standard error only. form: "json" or "text".
    loop: with one, lines are written once per iteration; without, at each event. echo: also to standard error. level: of
    `levels.LEVELS`; `level` holds its number.
    """

    def __init__(
        self,
        path: Path | None,
        role: str,
        *,
        form: str = "json",
        loop: asyncio.AbstractEventLoop | None = None,
        echo: bool = False,
        level: str = "message",
    ) -> None:
        self.set_level(level)
        self.path = path
        self.role = role
        self.form = form
        self.loop = loop
        self.echo = echo
        self.lost = 0
        self._lines: list[bytes] = []
        self._waiting = 0
        self._scheduled = False
        self._second = -1
        self._second_text = ""
        self._millisecond = -1
        self._stamp = ""
        self._fd = -1
        self._file_id = (0, 0)
        self._pid = os.getpid()
        self._heads: dict[str, bytes] = {}
        self._tail = f'"role":"{role}","pid":{self._pid}}}\n'.encode()
        self._open()

    def _open(self) -> None:
        if self.path is None:
            return
        try:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            status = os.fstat(self._fd)
            self._file_id = (status.st_dev, status.st_ino)
        except OSError as exc:
            self._fd = -1
            print(f"iems: {self.path}: {exc.strerror}", file=sys.stderr)

    def set_level(self, level: str) -> None:
        """From now on write what belongs to this level and those before it."""
        self.level = LEVELS.index(level) + 1
        self._sparse = self.level < MESSAGE

    def forked(self, role: str, loop: asyncio.AbstractEventLoop | None) -> None:
        """Makes the log of the parent that of this child: its role, pid and loop; lines of the parent are dropped."""
        self._lines.clear()
        self._waiting = 0
        self._scheduled = False
        self.role = role
        self.loop = loop
        self.echo = False
        self._pid = os.getpid()
        self._tail = f'"role":"{role}","pid":{self._pid}}}\n'.encode()

    def event(
        self, event: str, id: bytes | None = None, recipient: bytes | str | None = None, **detail: Any
    ) -> None:
        """Notes one event. id: 16 octets of the message. detail: what else there is to say; never a secret."""
        if self._sparse and not is_wanted(event, self.level):
            return
        milliseconds = time.time_ns() // 1_000_000
        if milliseconds != self._millisecond:
            self._millisecond = milliseconds
            second = milliseconds // 1000
            if second != self._second:
                self._second = second
                self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
            self._stamp = f"{self._second_text}{milliseconds % 1000:03d}Z"
            self._heads.clear()
        if self.form == "json":
            # One encoding of everything that may hold foreign text; the rest is ours.
            rest: dict[str, Any] = {}
            if recipient is not None:
                rest["recipient"] = text_of(recipient)
            if detail:
                for key, value in detail.items():
                    if type(value) not in _PLAIN:
                        detail[key] = text_of(value)
                rest["detail"] = detail
            try:
                body = _encode(rest)[1:-1]
            except (UnicodeEncodeError, ValueError, OverflowError, TypeError):
                # Half a surrogate pair, a huge number: the log takes it all.
                body = _encode(_plain_text(rest))[1:-1]
            # The front is the same for all events of a name within a millisecond: a batch has many.
            line = self._heads.get(event)
            if line is None:
                line = self._heads[event] = f'{{"time":"{self._stamp}","event":"{event}",'.encode()
            if id:
                line += f'"id":"{_shown(id)}",'.encode()
            line += body + b"," + self._tail if body else self._tail
        else:
            parts = [self._stamp, f"{self.role}[{self._pid}]", event]
            if id:
                parts.append("id=" + _shown(id))
            if recipient is not None:
                parts.append("recipient=" + _word(text_of(recipient)))
            parts.extend(f"{key}={_word(text_of(value))}" for key, value in detail.items())
            line = (" ".join(parts) + "\n").encode("utf-8", "backslashreplace")
        self._add(line)

    def error(
        self, what: str, exc: BaseException | None = None, id: bytes | None = None, **detail: Any
    ) -> None:
        """Notes a fault of ours with its cause; the peer is told nothing of it."""
        if exc is not None:
            import traceback

            last = traceback.extract_tb(exc.__traceback__)[-3:]
            detail["cause"] = f"{type(exc).__name__}: {exc}"
            detail["where"] = [f"{os.path.basename(at.filename)}:{at.lineno} {at.name}" for at in last]
        self.event("error", id, what=what, **detail)

    def _add(self, line: bytes) -> None:
        if self._waiting + len(line) > PENDING_OCTETS:
            self.lost += 1
            return
        self._lines.append(line)
        self._waiting += len(line)
        if self.loop is None:
            self.flush()
        elif not self._scheduled:
            self._scheduled = True
            # Runs when the loop comes round: one write for all events of this iteration.
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Writes what waits. On a failure the lines are kept for the next time."""
        self._scheduled = False
        if not self._lines:
            return
        data = b"".join(self._lines)
        if self.echo:
            try:
                sys.stderr.write(data.decode("utf-8", "replace"))
                sys.stderr.flush()
            except OSError:
                pass
        written = len(data)
        if self._fd >= 0:
            try:
                written = os.write(self._fd, data)
            except OSError:
                written = 0
        if written == len(data):
            self._lines.clear()
            self._waiting = 0
        else:
            self._lines[:] = [data[written:]]
            self._waiting = len(data) - written

    def refresh(self) -> None:
        """Opens the file anew if it was renamed (rotation); called with each heartbeat."""
        if self.path is None:
            return
        self.flush()
        try:
            status = os.stat(self.path)
            if (status.st_dev, status.st_ino) == self._file_id:
                return
        except OSError:
            pass
        old = self._fd
        self._open()
        if self._fd < 0:
            self._fd = old
        elif old >= 0:
            os.close(old)
        if self.lost:
            lost, self.lost = self.lost, 0
            self.event("log-lost", lines=lost)

    def rotate(self, limit_octets: int, keep: int) -> bool:
        """Renames a log above `limit_octets` to mail.log.1 (older ones move up, `keep` stay). The master's duty alone."""
        if self.path is None or limit_octets <= 0:
            return False
        try:
            if os.stat(self.path).st_size < limit_octets:
                return False
            for number in range(keep - 1, 0, -1):
                old = f"{self.path}.{number}"
                if os.path.exists(old):
                    os.replace(old, f"{self.path}.{number + 1}")
            os.replace(self.path, f"{self.path}.1")
        except OSError:
            return False
        self.refresh()
        return True

    def close(self) -> None:
        """Writes what waits and closes the file."""
        self.flush()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _word(value: Any) -> str:
    """A value for a line of text: quoted if it holds spaces, quotes or control characters."""
    if isinstance(value, str):
        if value and not any(char in value for char in ' "=') and not _CONTROL.search(value):
            return value
        return '"' + printable(value).replace('"', '\\"') + '"'
    return printable(_encode(value).decode())


# --- reading back

_TEXT_LINE = re.compile(r"(\S+Z) ([A-Za-z0-9_-]+)\[(\d+)\] (\S+)((?: .*)?)$")
_TEXT_PAIR = re.compile(r' ([A-Za-z0-9_]+)=("(?:[^"\\]|\\.)*"|\S*)')


def read_line(line: bytes) -> dict[str, Any] | None:
    """The event of one line, in either form, or None if it is not one (a torn line after a crash)."""
    if line.startswith(b"{"):
        try:
            found = msgspec.json.decode(line)
        except msgspec.DecodeError:
            return None
        return found if isinstance(found, dict) and "time" in found and "event" in found else None
    parsed = _TEXT_LINE.match(line.decode("utf-8", "replace").rstrip("\n"))
    if parsed is None:
        return None
    result: dict[str, Any] = {"time": parsed[1], "event": parsed[4], "role": parsed[2], "pid": int(parsed[3])}
    detail: dict[str, Any] = {}
    for key, word in _TEXT_PAIR.findall(parsed[5]):
        value = word
        if word.startswith('"'):
            value = re.sub(
                r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|.)",
                lambda found: (
                    chr(int(found[1][1:], 16))
                    if len(found[1]) > 1
                    else {"n": "\n", "r": "\r", "t": "\t"}.get(found[1], found[1])
                ),
                word[1:-1],
            )
        if key in ("id", "recipient"):
            result[key] = value
        else:
            detail[key] = value
    if detail:
        result["detail"] = detail
    return result


def files(folder: Path) -> list[Path]:
    """mail.log and its rotated predecessors in `folder`, oldest first."""

    def age(path: Path) -> int:
        return -int(path.name.rpartition(".")[2])

    old = sorted((path for path in folder.glob("mail.log.*") if path.suffix[1:].isdigit()), key=age)
    now = folder / "mail.log"
    return old + ([now] if now.exists() else [])


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[list[BinaryIO]]:
    """All log files, open, oldest first, each once.

    Opened from the youngest on: a rotation in between then shows a file twice instead of never.
    """
    with contextlib.ExitStack() as stack:
        found: dict[tuple[int, int], BinaryIO] = {}
        for path in reversed(files(folder)):
            with contextlib.suppress(FileNotFoundError):
                file = stack.enter_context(open(path, "rb"))
                status = os.fstat(file.fileno())
                found.setdefault((status.st_dev, status.st_ino), file)
        yield list(reversed(found.values()))


def events(folder: Path, wanted: Callable[[bytes], bool]) -> Iterator[dict[str, Any]]:
    """The events of the log files in `folder` whose raw line `wanted` accepts, oldest first, in constant memory."""
    with _opened(folder) as opened:
        for file in opened:
            for line in file:
                if wanted(line):
                    found = read_line(line)
                    if found is not None:
                        yield found


def events_with(folder: Path, needle: bytes) -> Iterator[dict[str, Any]]:
    """The events whose line holds `needle`, oldest first; looks through mapped files, not line by line."""
    with _opened(folder) as opened:
        for file in opened:
            if os.fstat(file.fileno()).st_size == 0:
                continue
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as lines:
                at = lines.find(needle)
                while at >= 0:
                    start = lines.rfind(b"\n", 0, at) + 1
                    end = lines.find(b"\n", at)
                    if end < 0:
                        break  # still being written
                    found = read_line(lines[start:end])
                    if found is not None:
                        yield found
                    at = lines.find(needle, end)
