"""Lists of IMAP flags in scripts (RFC 5232 2): strings that may hold several flags each, in variables too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iems.sieve.run import Run

FLAGS_MAX = 32
_SYSTEM = {
    "\\seen": "\\Seen",
    "\\answered": "\\Answered",
    "\\flagged": "\\Flagged",
    "\\deleted": "\\Deleted",
    "\\draft": "\\Draft",
}


def is_flag(flag: str) -> bool:
    """Whether a name can be a flag of a stored message: a system flag other than \\Recent, or a keyword (RFC 9051 9)."""
    if flag.startswith("\\"):
        return flag.lower() in _SYSTEM
    return 0 < len(flag) <= 64 and flag.isascii() and flag.isprintable() and not any(c in '(){ %*"\\]' for c in flag)


def flag_list(strings: Iterable[str], checked: bool = True) -> list[str]:
    """The flags in some strings, each once in any case of letters; what can't be a flag is left out if `checked`."""
    found: dict[str, str] = {}
    for text in strings:
        for flag in text.split():
            if checked and not is_flag(flag):
                continue
            if len(found) < FLAGS_MAX:
                found.setdefault(flag.lower(), _SYSTEM.get(flag.lower(), flag))
    return list(found.values())


def flags_of(run: Run, name: str) -> list[str]:
    """The flags in a variable."""
    return flag_list([run.variables.get(name.lower(), "")])
