"""The field Authentication-Results (RFC 8601): read, written, and found where somebody forged it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from msgspec import Struct

#: Results of one field that are read or written, and properties of a result.
MAX_RESULTS: Final = 64
MAX_PROPERTIES: Final = 16
#: Octets of a field that are read.
MAX_OCTETS: Final = 65_536
#: Characters of a value that are written: what a peer sent must not fill the header.
MAX_VALUE: Final = 255

_TOKEN = r"[!#$%&'*+\-.^_`{|}~A-Za-z0-9]"
# A value may be an address too, and real writers leave addresses with other characters unquoted.
_VALUE = re.compile(r'"((?:[^"\\]|\\.)*)"|([^\s;()"]+)', re.DOTALL)
_METHOD = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)\s*(?:/\s*([0-9]+))?\s*=\s*([A-Za-z0-9][A-Za-z0-9-]*)")
_PROPERTY = re.compile(r"(?:([A-Za-z0-9][A-Za-z0-9-]*)\s*\.\s*([A-Za-z0-9][A-Za-z0-9_-]*)|(reason))\s*=\s*")
_PLAIN = re.compile(r"(?:" + _TOKEN + r"|[@:/=])+\Z")
_SPACE = re.compile(r"\s*")
_VERSION = re.compile(r"[0-9]+(?=\s|;|\Z)")


class MethodResult(Struct, frozen=True):
    """What one method found. properties: ("ptype.property", value) in order. reason: why, in words."""

    method: str
    result: str
    properties: tuple[tuple[str, str], ...] = ()
    reason: str = ""


class Results(Struct, frozen=True):
    """A whole field. authserv_id: who tells. results: () for `none`."""

    authserv_id: str
    results: tuple[MethodResult, ...] = ()


def parse(value: bytes) -> Results:
    """The results in a field's value. Raises ValueError if it is none (RFC 8601 2.2)."""
    text = _bare(value)
    authserv_id, at = _id(text)
    version = _VERSION.match(text, _space(text, at))
    if version:
        at = version.end()
    found: list[MethodResult] = []
    at = _space(text, at)
    while at < len(text):
        if text[at] != ";":
            raise ValueError("a semicolon is missing")
        at = _space(text, at + 1)
        if at == len(text):
            break
        if re.match(r"none\s*\Z", text[at:], re.IGNORECASE) and not found:
            break
        method = _METHOD.match(text, at)
        if not method or len(found) >= MAX_RESULTS:
            raise ValueError("no method and result")
        at = _space(text, method.end())
        reason = ""
        properties: list[tuple[str, str]] = []
        while at < len(text) and text[at] != ";":
            name = _PROPERTY.match(text, at)
            if not name or len(properties) >= MAX_PROPERTIES:
                raise ValueError("no property")
            read = _VALUE.match(text, name.end())
            if not read:
                raise ValueError("no value")
            word = read[2] if read[1] is None else re.sub(r"\\(.)", r"\1", read[1], flags=re.DOTALL)
            if name[3]:
                reason = word
            else:
                properties.append((f"{name[1]}.{name[2]}".lower(), word))
            at = _space(text, read.end())
        found.append(MethodResult(method[1].lower(), method[3].lower(), tuple(properties), reason))
    return Results(authserv_id, tuple(found))


def claimed_id(value: bytes) -> str | None:
    """Who a field says it is from, in lower case; None where that can't be told."""
    try:
        return _id(_bare(value[:MAX_OCTETS]))[0].lower()
    except ValueError:
        return None


def _bare(value: bytes) -> str:
    """The text without its comments, a space for each; quoted strings stay. Raises ValueError if one does not end."""
    if len(value) > MAX_OCTETS:
        raise ValueError("too long")
    text = value.decode("utf-8", "replace")
    if "(" not in text:
        return text.strip()
    out: list[str] = []
    at, depth, quoted, kept = 0, 0, False, 0
    # Only what can change the state is looked at.
    for found in re.finditer(r'\\.|[()"]', text, re.DOTALL):
        mark = found[0]
        if mark == '"' and not depth:
            quoted = not quoted
        elif mark == "(" and not quoted:
            if not depth:
                out.append(text[kept : found.start()] + " ")
            depth += 1
        elif mark == ")" and not quoted and depth:
            depth -= 1
            kept = found.end()
        at = found.end()
    if depth or quoted or at > len(text):
        raise ValueError("a comment or string does not end")
    out.append(text[kept:])
    return "".join(out).strip()


def _id(text: str) -> tuple[str, int]:
    at = _space(text, 0)
    found = _VALUE.match(text, at)
    if not found:
        raise ValueError("no authserv-id")
    word = found[2] if found[1] is None else re.sub(r"\\(.)", r"\1", found[1], flags=re.DOTALL)
    return word.strip(), found.end()


def _space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def write(authserv_id: str, results: Iterable[MethodResult], name: str = "Authentication-Results") -> bytes:
    """A field with its CRLF, a line for each result. Values are quoted where they must be; what no header may hold becomes `?`.

    name: with its colon's text before the id, as ARC-Authentication-Results has (`ARC-Authentication-Results: i=1;`).
    """
    lead = name if name.endswith(";") else name + ":"
    return f"{lead} {_value(authserv_id)}{payload(results)}\r\n".encode("ascii", "replace")


def payload(results: Iterable[MethodResult]) -> str:
    """All behind the authserv-id, folded."""
    # Signatures have their b= in it, the others say the same for many messages.
    lines = [_line(one) if one.method == "dkim" or len(one.reason) > MAX_VALUE else _kept_line(one) for one in results]
    return "".join([";\r\n\t" + line for line in lines]) if lines else "; none"


def _line(one: MethodResult) -> str:
    words = [f"{one.method}={one.result}"]
    if one.reason:
        words.append(f"reason={_value(one.reason, always=True)}")
    words += [f"{key}={_value(value)}" for key, value in one.properties if value]
    line, column = "", 8
    for word in words:
        if line and column + 1 + len(word) > 76:
            line, column = line + "\r\n\t", 8
        elif line:
            line, column = line + " ", column + 1
        line, column = line + word, column + len(word)
    return line


_kept_line = lru_cache(maxsize=1024)(_line)


def _value(text: str, always: bool = False) -> str:
    """A value for a header: ASCII without controls, quoted unless it is a token or an address."""
    if not always and len(text) <= MAX_VALUE and _PLAIN.match(text):
        return text
    safe = "".join(c if " " <= c <= "~" else "?" for c in text[:MAX_VALUE])
    if _PLAIN.match(safe) and not always:
        return safe
    return '"' + safe.replace("\\", "\\\\").replace('"', '\\"') + '"'
