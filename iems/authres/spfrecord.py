"""The text of an SPF record: terms and macros (RFC 7208 5, 6, 7). Pure; evaluation is in `spf`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final
from urllib.parse import quote

from msgspec import Struct

#: Octets of a record that are read; longer ones are permanent errors (a TXT record of DNS holds up to 64 KiB).
MAX_OCTETS: Final = 16_384
#: Terms of one record, and characters of one term: a name of DNS has 253, macros make it longer before they make it shorter.
MAX_TERMS: Final = 512
MAX_TERM: Final = 1024
#: Records up to this size are kept parsed.
KEPT_OCTETS: Final = 1024

_MACRO = re.compile(r"%(?:\{([a-zA-Z])(\d*)([rR]?)([-.+,/_=]*)\}|([%_-]))")
_LITERAL = re.compile(r"[\x21-\x24\x26-\x7e]+")
_SPACED = re.compile(r"[\x20-\x24\x26-\x7e]+")
_TOP_LABEL = re.compile(r"\.(?:[A-Za-z0-9]*[A-Za-z][A-Za-z0-9]*|[A-Za-z0-9]+-[A-Za-z0-9-]*[A-Za-z0-9])\.?\Z")
_MODIFIER = re.compile(r"([A-Za-z][A-Za-z0-9_.-]*)=(.*)\Z", re.DOTALL)
_MECHANISM = re.compile(r"([-+?~]?)([A-Za-z][A-Za-z0-9_.-]*)(.*)\Z", re.DOTALL)
_CIDR = re.compile(r"(?:/(0|[1-9][0-9]?))?(?://(0|[1-9][0-9]{0,2}))?\Z")
_RESULTS: Final = {"": "pass", "+": "pass", "-": "fail", "~": "softfail", "?": "neutral"}
_MECHANISMS: Final = frozenset(("all", "include", "a", "mx", "ptr", "ip4", "ip6", "exists"))


class BadRecord(Exception):
    """A record that the grammar doesn't allow: a permanent error (RFC 7208 4.6)."""


class Term(Struct, frozen=True):
    """A mechanism. result: of a match. domain: macro string, "" for the domain in question. v4, v6: lengths of prefixes.

    network: (version, address, mask) of ip4 and ip6.
    """

    result: str
    kind: str
    domain: str = ""
    v4: int = 32
    v6: int = 128
    network: tuple[int, int, int] | None = None


class Record(Struct, frozen=True):
    """A record. redirect, exp: macro strings, "" if not given; redirect is "" too where `all` stands."""

    terms: tuple[Term, ...]
    redirect: str = ""
    exp: str = ""


def is_spf(text: bytes) -> bool:
    """Whether a TXT record is one of SPF (RFC 7208 4.5)."""
    return text[:6].lower() == b"v=spf1" and (len(text) == 6 or text[6] == 32)


def parse(text: bytes) -> Record:
    """The record in `text`. Raises BadRecord: one wrong term anywhere makes the whole record void."""
    return _kept(text) if len(text) <= KEPT_OCTETS else _parse(text)


@lru_cache(maxsize=512)
def _kept(text: bytes) -> Record:
    return _parse(text)


def _parse(text: bytes) -> Record:
    if len(text) > MAX_OCTETS or not text.isascii():
        raise BadRecord("too long, or not ASCII")
    words = text.decode("ascii").split(" ")[1:]
    terms: list[Term] = []
    modifiers: dict[str, str] = {}
    for word in words:
        if not word:
            continue
        if len(word) > MAX_TERM:
            raise BadRecord("a term is too long")
        if len(terms) >= MAX_TERMS:
            raise BadRecord("too many terms")
        found = _MODIFIER.match(word)
        if found:
            name = found[1].lower()
            if name in ("redirect", "exp"):
                if name in modifiers:
                    raise BadRecord(f"{name} twice")
                modifiers[name] = _domain_spec(found[2])
            else:
                _macros(found[2], _LITERAL)
            continue
        terms.append(_mechanism(word))
    if any(term.kind == "all" for term in terms):
        modifiers.pop("redirect", None)
    return Record(tuple(terms), modifiers.get("redirect", ""), modifiers.get("exp", ""))


def _mechanism(word: str) -> Term:
    found = _MECHANISM.match(word)
    if not found or found[2].lower() not in _MECHANISMS:
        raise BadRecord(f"no mechanism: {word[:60]}")
    result, kind, rest = _RESULTS[found[1]], found[2].lower(), found[3]
    if kind == "all":
        if rest:
            raise BadRecord("all takes no argument")
        return Term(result, kind)
    if kind in ("ip4", "ip6"):
        return Term(result, kind, network=_network(kind, rest))
    if kind in ("include", "exists"):
        if not rest.startswith(":"):
            raise BadRecord(f"{kind} without a domain")
        return Term(result, kind, _domain_spec(rest[1:]))
    if kind == "ptr":
        if rest and not rest.startswith(":"):
            raise BadRecord("ptr with a prefix length")
        return Term(result, kind, _domain_spec(rest[1:]) if rest else "")
    domain, v4, v6 = "", 32, 128
    if rest.startswith(":"):
        # Slashes may stand in macros and literals: the lengths are what a dual-cidr-length at the end can be.
        body = rest[1:]
        tail = re.search(r"(?:/\d+)?(?://\d+)?\Z", body)
        assert tail is not None
        domain, rest = _domain_spec(body[: tail.start()]), body[tail.start() :]
    lengths = _CIDR.match(rest)
    if not lengths:
        raise BadRecord(f"no prefix length: {rest[:20]}")
    v4, v6 = int(lengths[1] or 32), int(lengths[2] or 128)
    if v4 > 32 or v6 > 128:
        raise BadRecord("prefix too long")
    return Term(result, kind, domain, v4, v6)


def _network(kind: str, rest: str) -> tuple[int, int, int]:
    if not rest.startswith(":"):
        raise BadRecord(f"{kind} without an address")
    text, slash, length = rest[1:].partition("/")
    bits = 32 if kind == "ip4" else 128
    if slash and not re.fullmatch(r"0|[1-9][0-9]{0,2}", length):
        raise BadRecord(f"no prefix length: {length[:20]}")
    prefix = int(length) if slash else bits
    try:
        address: ipaddress.IPv4Address | ipaddress.IPv6Address
        if kind == "ip4":
            address = ipaddress.IPv4Address(text)
        else:
            if "%" in text:
                raise ValueError
            address = ipaddress.IPv6Address(text)
    except ValueError:
        raise BadRecord(f"no address: {text[:60]}") from None
    if prefix > bits:
        raise BadRecord("prefix too long")
    mask = ((1 << prefix) - 1) << (bits - prefix)
    return (4 if kind == "ip4" else 6), int(address) & mask, mask


def _macros(text: str, literal: re.Pattern[str], letters: str = "slodiphv") -> bool:
    """Check a macro string; whether it ends in a macro. Raises BadRecord."""
    at, ends_in_macro = 0, False
    while at < len(text):
        found = _MACRO.match(text, at)
        if found:
            if found[1] is not None and (
                found[1].lower() not in letters or (found[2] and not 0 < int(found[2][:9]) < 1000)
            ):
                raise BadRecord(f"no macro: {found[0]}")
            at, ends_in_macro = found.end(), found[1] is not None
            continue
        run = literal.match(text, at)
        if not run:
            raise BadRecord(f"no macro string: {text[:60]!r}")
        at, ends_in_macro = run.end(), False
    return ends_in_macro


def _domain_spec(text: str) -> str:
    if not text:
        raise BadRecord("a domain is missing")
    if not _macros(text, _LITERAL) and not _TOP_LABEL.search(text):
        raise BadRecord(f"no domain: {text[:60]}")
    return text


def expand(text: str, values: Mapping[str, str], explanation: bool = False) -> str:
    """`text` with its macros replaced (RFC 7208 7.3). values: by letter in lower case; `c`, `r`, `t` for explanations only.

    Raises BadRecord if it is no macro string.
    """
    if "%" not in text and not explanation:
        return text
    _macros(text, _SPACED if explanation else _LITERAL, "slodiphvcrt" if explanation else "slodiphv")

    def replaced(found: re.Match[str]) -> str:
        if found[5]:
            return {"%": "%", "_": " ", "-": "%20"}[found[5]]
        value = values[found[1].lower()]
        delimiters = found[4] or "."
        if found[2] or found[3] or found[4]:
            parts = re.split("[" + re.escape(delimiters) + "]", value)
            if found[3]:
                parts.reverse()
            if found[2]:
                parts = parts[-int(found[2]) :]
            value = ".".join(parts)
        return quote(value, safe="-._~") if found[1].isupper() else value

    return _MACRO.sub(replaced, text)


def uses(text: str, letter: str) -> bool:
    """Whether a macro string has the macro `letter`."""
    return any((found[1] or "").lower() == letter for found in _MACRO.finditer(text))
