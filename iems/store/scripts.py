"""The scripts a user keeps, and which one is active: one small file an account, replaced whole and durably.

It lies in the home directory of the account, STORE/home/ADDRESS/sieve.NUMBER/scripts; the number keeps the scripts of a deleted
account from whoever gets its address next. The directory only notes whether an account has an active script, so that mail
of all others costs no look at the disk. Written by iemsuser and by the ManageSieve server, under a lock.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct, field

from iems.durable import write_durably
from iems.errors import IemsError
from iems.sieve.compiler import SCRIPT_MAX, Script, compile_script
from iems.store.homes import home_of

if TYPE_CHECKING:
    from iems.directory import Account, Directory

#: Scripts of one account, octets of one, characters of a name.
SCRIPTS_MAX: Final = 16
NAME_MAX: Final = 128

_FILE = "scripts"
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Refused(IemsError):
    """A change that can't be made. code: as ManageSieve names it (RFC 5804 1.3), such as NONEXISTENT; "" if it has no name."""

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.code = code


class Kept(Struct):
    """What the file holds."""

    version: int = 1
    active: str = ""
    scripts: dict[str, str] = field(default_factory=dict)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Kept).decode


def folder(store: Path, address: str, number: int) -> Path:
    """Where the scripts of an account lie. store: the store's folder. An address can't lead out of it, whatever is in it."""
    return home_of(store, address) / f"sieve.{number}"


def checked_name(name: str) -> str:
    """The name of a script if it can be one (RFC 5804 1.6). Raises Refused."""
    if not name or len(name) > NAME_MAX or _CONTROL.search(name):
        raise Refused(f"a script's name has 1 to {NAME_MAX} characters, none of them control characters")
    return name


class Scripts:
    """The scripts of one account.

    place: of `folder`. note: told whether there is an active script, after each change of that. Methods raise Refused
    for what can't be, ScriptError for a script with errors, OSError.
    """

    def __init__(self, place: Path, note: Callable[[bool], None] = lambda on: None) -> None:
        self.place = place
        self._note = note

    def read(self) -> Kept:
        """All of it; empty if there is nothing yet."""
        try:
            return _decode((self.place / _FILE).read_bytes())
        except FileNotFoundError:
            return Kept()
        except msgspec.DecodeError as error:
            raise Refused(f"the scripts in {self.place} can't be read: {error}") from None

    @contextmanager
    def _change(self) -> Iterator[Kept]:
        """Read, let change, write; one at a time."""
        self.place.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self.place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            kept = self.read()
            yield kept
            write_durably(self.place / _FILE, _encode(kept))
            # Told each time: a crash between the two is healed by the next change.
            self._note(bool(kept.active))
        finally:
            os.close(lock)

    def get(self, name: str) -> str:
        """The text of a script."""
        found = self.read().scripts.get(name)
        if found is None:
            raise Refused(f"there is no script {name!r}", "NONEXISTENT")
        return found

    def room(self, name: str, octets: int) -> None:
        """Whether a script of this size could be put. Raises Refused."""
        checked_name(name)
        if octets > SCRIPT_MAX:
            raise Refused(f"a script has at most {SCRIPT_MAX} octets", "QUOTA/MAXSIZE")
        kept = self.read()
        if name not in kept.scripts and len(kept.scripts) >= SCRIPTS_MAX:
            raise Refused(f"at most {SCRIPTS_MAX} scripts can be kept", "QUOTA/MAXSCRIPTS")

    def put(self, name: str, text: str, activate: bool = False) -> None:
        """Keep a script, a new one or in place of the old one of that name; it must be without errors.

        activate: make it the active one in the same step.
        """
        self.room(name, len(text.encode("utf-8", "replace")))
        compile_script(text)
        with self._change() as kept:
            if name not in kept.scripts and len(kept.scripts) >= SCRIPTS_MAX:
                raise Refused(f"at most {SCRIPTS_MAX} scripts can be kept", "QUOTA/MAXSCRIPTS")
            kept.scripts[name] = text
            if activate:
                kept.active = name

    def activate(self, name: str) -> None:
        """Make a script the active one; "": none."""
        with self._change() as kept:
            if name and name not in kept.scripts:
                raise Refused(f"there is no script {name!r}", "NONEXISTENT")
            kept.active = name

    def delete(self, name: str, even_active: bool = False) -> None:
        """Remove a script. even_active: otherwise the active one is refused (RFC 5804 2.10)."""
        with self._change() as kept:
            if name not in kept.scripts:
                raise Refused(f"there is no script {name!r}", "NONEXISTENT")
            if kept.active == name:
                if not even_active:
                    raise Refused("the active script can't be deleted", "ACTIVE")
                kept.active = ""
            del kept.scripts[name]

    def rename(self, old: str, new: str) -> None:
        """Give a script another name; it stays active if it was."""
        checked_name(new)
        with self._change() as kept:
            if old not in kept.scripts:
                raise Refused(f"there is no script {old!r}", "NONEXISTENT")
            if new in kept.scripts:
                raise Refused(f"there is a script {new!r} already", "ALREADYEXISTS")
            kept.scripts = {new if name == old else name: text for name, text in kept.scripts.items()}
            if kept.active == old:
                kept.active = new

    def remove_all(self) -> None:
        """Remove everything, for an account that is gone."""
        shutil.rmtree(self.place, ignore_errors=True)


def scripts_of(directory: Directory, store: Path, account: Account) -> Scripts:
    """The scripts of an account of the directory, which hears when it begins or ends to have an active one."""

    def note(on: bool) -> None:
        now = directory.account_by_number(account.number)
        if now is not None and now.filtered != on:
            directory.set_filtered(now.address, on)

    return Scripts(folder(store, account.address, account.number), note)


def named_script(name: str, text: str) -> Script:
    """A script that knows its name and, if it is made of MailSort's rules, where they stand. Raises ScriptError."""
    from iems.sieve import mailsort

    script = compile_script(text)
    rules = mailsort.rule_lines(text) if name == mailsort.NAME else ()
    return msgspec.structs.replace(script, name=name, rules=rules)


class Active:
    """The active scripts of accounts, compiled, kept while their files stay the same. most: accounts kept at once."""

    def __init__(self, store: Path, most: int = 1024) -> None:
        self._store = store
        self._most = most
        self._kept: OrderedDict[int, tuple[tuple[int, int, int], Script | None]] = OrderedDict()

    def script(self, address: str, number: int) -> Script | None:
        """The script to run, None if there is none. Raises OSError, Refused, ScriptError. One look at the disk."""
        place = folder(self._store, address, number)
        try:
            found = os.stat(place / _FILE)
        except FileNotFoundError:
            return None
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        known = self._kept.get(number)
        if known is not None and known[0] == stamp:
            self._kept.move_to_end(number)
            return known[1]
        kept = Scripts(place).read()
        script = named_script(kept.active, kept.scripts[kept.active]) if kept.active in kept.scripts else None
        self._kept[number] = (stamp, script)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return script
