"""The verdict record: one header field of delivered mail that says what was asked, what was answered, and what acted.

    X-IEMS-Verdict: dnsbl=bl.example (127.0.0.2); antivirus (clamd: clean); spamcontrol=file=Spam (zone bl.example);
        to=Spam

Items in the order of the message's way: checks at the door and modules (`check=subject (answer)`), then what the recipient's own filters
said and did (`spamcontrol`, `bayes`, `rule`), at last `to`: where it went. A message about which nothing was asked has `asked=nothing`.
Delivery writes it, each recipient his own; one that came from outside is removed at the edge, and what stands behind the lines that
delivery put in front is never read as a record.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote, unquote

from msgspec import Struct

from iems.model import Verdict

FIELD = b"X-IEMS-Verdict"
#: The record of mail about which nothing was asked and that nothing acted on.
NOTHING = "asked=nothing"
PLAIN = f"{NOTHING}; to=INBOX"
PLAIN_LINE = FIELD + b": " + PLAIN.encode("ascii") + b"\r\n"
#: Octets of one record, characters of a word or answer as written. A record that would be longer says how many items it leaves out.
MAX_OCTETS = 3_000
TEXT_MAX = 120
#: Items at the end that are never left out: what acted, and where it went.
_LAST = 8

_SAFE = " !#$&'*+,-./:<=>?@[]^_`{|}~"
_WORD_SAFE = _SAFE.replace(" ", "")
_TORN = re.compile("%[0-9A-F]?$")
_ITEM = re.compile(r"([a-z][a-z0-9-]{0,40})(?:=([^ ;()]{0,1024}))?(?: \(([^;()]{0,1024})\))?\Z")
#: What delivery puts in front of a message; whatever stands behind these lines came with it.
FRONT = re.compile(
    rb"(?:(?:Return-Path|Delivered-To|X-IEMS-AntiSpam|X-IEMS-Bayes|X-IEMS-Verdict|X-Spam-Status):[^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*)+"
)
_FOUND = re.compile(rb"^X-IEMS-Verdict:((?:[^\r\n]*\r\n[ \t])*[^\r\n]*)\r\n", re.M)


class Item(Struct, frozen=True):
    """One item of a record: `name=word (text)`."""

    name: str
    word: str = ""
    text: str = ""


def item(name: str, word: str = "", text: str = "") -> str:
    """An item as it is written: printable ASCII, everything else as %XX (UTF-8)."""
    shown = f"{name}={_quoted(word, _WORD_SAFE)}" if word else name
    return f"{shown} ({_quoted(text, _SAFE)})" if text else shown


def _quoted(text: str, safe: str) -> str:
    quoted = quote(text[:TEXT_MAX], safe=safe, errors="replace")
    return quoted if len(quoted) <= TEXT_MAX else _TORN.sub("", quoted[:TEXT_MAX])


def answers(asked: Iterable[Verdict], tags: Sequence[Verdict]) -> list[str]:
    """The items of the checks. asked: what found nothing, or nothing to tag; tags: what did."""
    found = [item(verdict.check, verdict.subject, verdict.answer) for verdict in (*tags, *asked)]
    return found or [NOTHING]


def value(items: Sequence[str]) -> str:
    """A record on one line. Of too many items those in the middle are left out: what acted, and where it went, is always said."""
    last = items[-_LAST:]
    room = MAX_OCTETS - sum(len(each) + 2 for each in last) - 20
    first: list[str] = []
    for each in items[:-_LAST]:
        room -= len(each) + 2
        if room < 0:
            break
        first.append(each)
    left = len(items) - len(first) - len(last)
    return "; ".join([*first, *([f"more={left}"] if left else []), *last])


def line(text: str) -> bytes:
    """The field of a record, with CRLF, folded between items."""
    return FIELD + b": " + _folded(text).encode("ascii") + b"\r\n"


def _folded(text: str) -> str:
    if len(text) < 60:
        return text
    rows = [""]
    for each in text.split("; "):
        if rows[-1] and len(rows[-1]) + len(each) > 100:
            rows.append("")
        rows[-1] += ("; " if rows[-1] else "") + each
    return ";\r\n\t".join(rows)


def recorded(head: bytes) -> str:
    """The record in the lines that delivery put in front of a message, on one line; "" if there is none. head: the start of the message."""
    front = FRONT.match(head)
    found = _FOUND.search(front[0]) if front is not None else None
    return " ".join(found[1].decode("ascii", "replace").split()) if found is not None else ""


def parse(text: str) -> list[Item]:
    """The items of a record; what is none of ours is left out."""
    found = []
    for each in text.split(";"):
        matched = _ITEM.match(each.strip())
        if matched is not None:
            found.append(Item(matched[1], unquote(matched[2] or ""), unquote(matched[3] or "")))
    return found
