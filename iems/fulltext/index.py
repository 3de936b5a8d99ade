"""One account's index: an SQLite file with the trigrams of every text (FTS5), asked by one thread at a time.

| table | row | what |
|---|---|---|
| `box` | mailbox id | UIDVALIDITY, and the uid up to which every message is in |
| `message` | mailbox id << 32 with uid | origin of the message; `long` = 1: its text is not in, it may hold anything |
| `grams` | mailbox id << 33 with uid << 1 with part | trigrams of a header (part 0) or a body (part 1), no text, no places |

Header and body are rows of their own, because a key must occur in one of them. What `find` gives may be too much, never too little:
all trigrams of a key occur in a text that holds it. Rows of expunged messages stay; `stale` says when they are too many.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from msgspec import Struct

#: Of the layout and of the texts in it: to be raised when `message.text.fold` or what `Searchable` looks at changes.
FORMAT = 1
#: Characters of the shortest text that can be looked up.
GRAM = 3
#: Trigrams of a longer text that are looked up.
MAX_GRAMS = 16
#: Mailbox ids above this have no place in a row number.
MAILBOX_MAX = (1 << 30) - 1
#: How long a connection waits for another process's commit.
BUSY_S = 1.0

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_AWAY = {
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH,
}  # fmt: skip


class Entry(Struct):
    """The texts of one message, folded; None for both: too long, so that it is always read."""

    uid: int
    origin: bytes
    header: str | None
    body: str | None


def available() -> bool:
    """Whether this Python's SQLite has FTS5 with trigrams (SQLite 3.34 and later, if built in)."""
    try:
        with sqlite3.connect(":memory:") as database:
            database.execute("create virtual table probe using fts5(text, content='', detail=none, tokenize='trigram')")
    except sqlite3.Error:
        return False
    finally:
        if "database" in locals():
            database.close()
    return True


def is_damage(fault: sqlite3.Error) -> bool:
    """Whether the file is to blame, so that it must go: not for a lock, a full disk or one that can't be read now."""
    code = getattr(fault, "sqlite_errorcode", None)
    return code is None or code & 0xFF not in _BUSY | _AWAY


class Index:
    """See the module. Raises sqlite3.Error on anything wrong with the file (`is_damage`), OSError if it can't be reached."""

    def __init__(self, path: Path, create: bool) -> None:
        """Raises FileNotFoundError if there is none and none is to be made."""
        self.path = path
        if create:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._inode = path.stat().st_ino
        self._database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            # A journal that is no write-ahead log needs no shared memory, so a file cut short can't kill the process.
            self._run("pragma journal_mode=truncate")
            self._run("pragma cache_size=-4000")
            if self._one("pragma user_version") != FORMAT:
                if not create:
                    raise FileNotFoundError(f"{path}: of another format")
                self._make()
            #: Mailboxes whose last message was compared with the store since the file was opened.
            self.compared: set[int] = set()
        except BaseException:
            self._database.close()
            raise

    def _run(self, statement: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        return self._database.execute(statement, values)

    def _one(self, statement: str, values: Sequence[object] = ()) -> int:
        row = self._run(statement, values).fetchone()
        return int(row[0]) if row is not None and row[0] is not None else 0

    def _make(self) -> None:
        with self:
            for (name,) in self._run(
                "select name from sqlite_master where name in ('box', 'message', 'grams')"
            ).fetchall():
                self._run(f"drop table {name}")
            self._run("create table box (id integer primary key, uidvalidity integer, upto integer)")
            self._run("create table message (id integer primary key, origin blob, long integer)")
            self._run("create index long on message (id) where long")
            self._run(
                "create virtual table grams using fts5(text, content='', detail=none, columnsize=0,"
                " tokenize='trigram case_sensitive 1')"
            )
            self._run(f"pragma user_version={FORMAT}")

    def __enter__(self) -> Index:
        """One transaction; it is undone if the block raises."""
        self._run("begin immediate")
        return self

    def __exit__(self, kind: object, fault: object, trace: object) -> None:
        if kind is None:
            self._run("commit")
        elif self._database.in_transaction:
            self._run("rollback")

    @property
    def in_place(self) -> bool:
        """Whether the file that is open is the one of its name."""
        try:
            return self.path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def upto(self, mailbox: int, uidvalidity: int) -> int:
        """Every message of the mailbox up to this uid is in; 0: none, or the mailbox was another one then."""
        return self._one("select upto from box where id = ? and uidvalidity = ?", (mailbox, uidvalidity))

    def add(self, mailbox: int, uidvalidity: int, entries: Iterable[Entry], upto: int) -> None:
        """Take messages in, uids ascending and above `upto` of before; from now on all up to `upto` are in. In a transaction."""
        for entry in entries:
            number = mailbox << 32 | entry.uid
            is_long = entry.header is None or entry.body is None
            self._run("insert or replace into message values (?, ?, ?)", (number, entry.origin, is_long))
            if entry.header is not None and entry.body is not None:
                self._run("insert into grams (rowid, text) values (?, ?)", (number << 1, _plain(entry.header)))
                self._run("insert into grams (rowid, text) values (?, ?)", (number << 1 | 1, _plain(entry.body)))
        self._run("insert or replace into box values (?, ?, ?)", (mailbox, uidvalidity, upto))

    def last(self, mailbox: int, below: int, count: int) -> list[tuple[int, bytes]]:
        """(uid, origin) of the last `count` messages that were taken in with a uid below `below`, descending."""
        found = self._run(
            "select id, origin from message where id >= ? and id < ? order by id desc limit ?",
            (mailbox << 32, (mailbox << 32) + below, count),
        )
        return [(number & 0xFFFFFFFF, bytes(origin)) for number, origin in found]

    def long(self, mailbox: int) -> np.ndarray:
        """Uids (uint32) of the messages whose text is not in."""
        found = self._run(
            "select id from message where long and id >= ? and id < ?", (mailbox << 32, (mailbox + 1) << 32)
        )
        return np.fromiter((number & 0xFFFFFFFF for (number,) in found), np.uint32)

    def find(self, mailbox: int, text: str, body: bool) -> np.ndarray:
        """Uids (uint32) of the messages that may hold a folded text of GRAM characters and more. body: not in the header."""
        found = self._run(
            "select rowid from grams where grams match ? and rowid >= ? and rowid < ?",
            (_expression(_plain(text)), mailbox << 33, (mailbox + 1) << 33),
        )
        rows = np.fromiter((row for (row,) in found), np.int64)
        if body:
            rows = rows[(rows & 1) == 1]
        return (rows >> 1 & 0xFFFFFFFF).astype(np.uint32)

    def messages(self) -> int:
        """Messages ever taken in."""
        return self._one("select count(*) from message")

    def close(self) -> None:
        """Close the file; an open transaction is undone."""
        self._database.close()


def remove(path: Path) -> None:
    """Remove an index with its journal; nothing if it is not there."""
    for name in (path.name, path.name + "-journal"):
        path.with_name(name).unlink(missing_ok=True)


def _plain(text: str) -> str:
    """A text as the tokenizer takes it, one character for one: it ends at NUL, and lone surrogates have no octets."""
    if text.isascii():
        return text.replace("\0", "\1")
    return text.encode("utf-8", "replace").decode().replace("\0", "\1")


def _expression(text: str) -> str:
    grams = list(dict.fromkeys(text[at : at + GRAM] for at in range(len(text) - GRAM + 1)))
    if len(grams) > MAX_GRAMS:
        step = (len(grams) - 1) / (MAX_GRAMS - 1)
        grams = [grams[round(step * number)] for number in range(MAX_GRAMS)]
    return " AND ".join('"' + gram.replace('"', '""') + '"' for gram in grams)
