"""Variables (RFC 5229) and encoded characters (RFC 5228 2.4.2.4) in strings."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import re2

from iems.sieve.errors import RunError

if TYPE_CHECKING:
    from iems.sieve.run import Run

#: Characters of a value (RFC 5229 6 asks for 4,000 octets); what is longer is cut. Variables of one run (128 asked for).
VALUE_MAX = 16_384
VARIABLES_MAX = 256
#: Names that the server sets, for `vnd.iems.variables`.
NAMESPACE = "iems."

_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*|[0-9]{1,10})\}")
_ENCODED = re.compile(
    r"\$\{(?:(hex):[ \t\r\n]*([0-9a-f]{1,2}(?:[ \t\r\n]+[0-9a-f]{1,2})*)|(unicode):[ \t\r\n]*([0-9a-f]+(?:[ \t\r\n]+[0-9a-f]+)*))[ \t\r\n]*\}",
    re.I,
)
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

Text = Callable[["Run"], str]


class BadReference(ValueError):
    """A reference that can't be in this script."""


def decode_characters(text: str) -> str:
    """The text with ${hex:...} and ${unicode:...} decoded. Raises BadReference for a number that is no character."""

    def one(match: re.Match[str]) -> str:
        if match[1]:
            octets = bytes(int(each, 16) for each in match[2].split())
            try:
                return octets.decode("utf-8")
            except UnicodeDecodeError:
                raise BadReference(f"{match[0]} is not UTF-8") from None
        numbers = [int(each[-9:], 16) if len(each.lstrip("0")) <= 6 else -1 for each in match[4].split()]
        if any(not 0 <= n <= 0x10FFFF or 0xD800 <= n <= 0xDFFF for n in numbers):
            raise BadReference(f"{match[0]} is no Unicode character")
        return "".join(map(chr, numbers))

    return _ENCODED.sub(one, text)


def template(text: str, server: bool) -> Text | None:
    """What puts values in the place of references; None if there are none. server: names of the server may be read.

    Raises BadReference for a name with a namespace that is not known.
    """
    pieces: list[str | int | tuple[str]] = []
    at = 0
    for match in _REFERENCE.finditer(text):
        name = match[1].lower()
        if "." in name and not (server and name.startswith(NAMESPACE)):
            raise BadReference(f"there is no variable {match[0]}")
        if match.start() > at:
            pieces.append(text[at : match.start()])
        pieces.append(int(name) if name.isdigit() else (name,))
        at = match.end()
    if not pieces:
        return None
    if at < len(text):
        pieces.append(text[at:])

    def expand(run: Run) -> str:
        out = []
        for piece in pieces:
            if isinstance(piece, str):
                out.append(piece)
            elif isinstance(piece, int):
                out.append(run.matched[piece] if piece < len(run.matched) else "")
            else:
                out.append(run.variables.get(piece[0], ""))
        value = "".join(out)
        run.spend(10 + len(value) // 8)
        return value[:VALUE_MAX]

    return expand


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


#: Modifiers of `set`: name -> (precedence, what it does); RFC 5229 4.1.
MODIFIERS: dict[str, tuple[int, Callable[[str], str]]] = {
    "lower": (40, str.lower),
    "upper": (40, str.upper),
    "lowerfirst": (30, _lower_first),
    "upperfirst": (30, _upper_first),
    "quotewildcard": (20, lambda text: re.sub(r"([*?\\])", r"\\\1", text)),
    "quoteregex": (20, lambda text: str(re2.escape(text))),
    "length": (10, lambda text: str(len(text))),
}


def assign(run: Run, name: str, value: str) -> None:
    """Set a variable. Raises RunError if there are too many."""
    if name not in run.variables and len(run.variables) >= VARIABLES_MAX:
        raise RunError("too many variables")
    run.variables[name] = value[:VALUE_MAX]
