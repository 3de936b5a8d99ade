"""The tag of suspect mail: one header field that people and programs can read (product.md 5).

    X-IEMS-AntiSpam: ip=192.0.2.8; t=2026-11-24T15:00:00Z; dnsbl=bl.example (127.0.0.2); helo=mail (no such host)

`ip` is the client the checks were about, then each verdict: check=subject (answer). Between MTAs that trust each other the field ends
with `k=KEY; s=SIGNATURE`: HMAC-SHA-256 over all before it and over the fields From, Date and Message-ID, so that a tag can neither be
made up nor moved to another message. For the reader of a mailbox it ends with `action=...`: what was done and whose rule it was.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import quote, unquote

from msgspec import Struct

from iems.message import header
from iems.model import Verdict

FIELD = b"X-IEMS-AntiSpam"
#: The field mail programs know; as the product wrote it.
STATUS = b"X-Spam-Status: YES\r\n"
#: Fields that only we write. Of the last, other filters write their own kind (`Yes, score=...`), which is left alone.
OWN_FIELDS = frozenset({FIELD.lower(), b"x-iems-bayes", b"x-iems-verdict", b"x-spam-status"})
#: Verdicts in one tag, octets of one that is written (an inline piece of a rope), and of one that is read.
MAX_VERDICTS = 64
MAX_OCTETS = 4_096
MAX_FIELD_OCTETS = 16_384
#: How old a signed tag may be, and how far ahead a clock.
MAX_AGE_S = 7 * 86_400
MAX_AHEAD_S = 3_600

_SAFE = " !#$&'*+,-./:?@[]^_`{|}~"
_ITEM = re.compile(r"([a-z][a-z0-9-]{0,40})=([^ ;()]{0,1024})(?: \(([^;()]{0,1024})\))?\Z")
_SIGNED = (b"from", b"date", b"message-id")


class Tag(Struct, frozen=True):
    """What a field says. time_s: seconds since 1970. key: id of the key that signed it, "" if none did."""

    ip: str
    time_s: int
    verdicts: tuple[Verdict, ...]
    key: str = ""


def is_ours(name: bytes, raw: bytes) -> bool:
    """Whether a field says what only we may say. name: in lower case. raw: its value."""
    return name.startswith(b"x-iems-") or (name == b"x-spam-status" and header.unfold(raw) == b"YES")


def _quoted(text: str) -> str:
    # Folded by us or not, the value stands on lines of printable ASCII.
    return quote(text[:255], safe=_SAFE)


def _word(text: str) -> str:
    return quote(text[:255], safe=_SAFE.strip())


def value(ip: str, time_s: int, verdicts: Sequence[Verdict]) -> str:
    """The field's value without signature and action, with as many verdicts as find room."""
    moment = datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    items = [f"ip={_word(ip)}", f"t={moment}"]
    room = MAX_OCTETS - 600
    for verdict in verdicts[:MAX_VERDICTS]:
        answer = f" ({_quoted(verdict.answer)})" if verdict.answer else ""
        items.append(f"{_word(verdict.check)}={_word(verdict.subject)}{answer}")
        room -= len(items[-1]) + 4
        if room < 0:
            items.pop()
            break
    return "; ".join(items)


def _line(text: str) -> bytes:
    """The field, folded between its items."""
    return FIELD + b": " + text.replace("; ", ";\r\n\t").encode("ascii") + b"\r\n"


def for_reader(ip: str, time_s: int, verdicts: Sequence[Verdict], action: str, rule: str) -> bytes:
    """The field of delivered mail, with CRLF. action, rule: what was done, and whose rule it was."""
    return _line(f"{value(ip, time_s, verdicts)}; action={_word(action)} ({_quoted(rule)})")


def _digest(secret: bytes, text: str, head: bytes) -> str:
    end = header.header_end(head)
    parts = [b"iems tag 1", text.encode("ascii")]
    for name in _SIGNED:
        found = header.values(head, name, 0, end)
        parts.append(b"%d" % len(found))
        parts += [re.sub(rb"[ \t]+", b" ", each) for each in found]
    made = hmac.new(secret, b"\0".join(parts), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(made).decode("ascii").rstrip("=")


def signed(ip: str, time_s: int, verdicts: Sequence[Verdict], key: str, secret: bytes, head: bytes) -> bytes:
    """The field for a trusted MTA, with CRLF. head: the message's header as it leaves."""
    text = f"{value(ip, time_s, verdicts)}; k={_word(key)}"
    return _line(f"{text}; s={_digest(secret, text, head)}")


def parse(raw: bytes) -> Tag | None:
    """What an unfolded value says, None if it is none of ours. Nothing is checked but its form."""
    if len(raw) > MAX_FIELD_OCTETS or not raw.isascii():
        return None
    items = [item.strip() for item in raw.decode("ascii").replace("\t", " ").split(";")]
    ip = key = ""
    time_s = 0
    verdicts: list[Verdict] = []
    for item in items:
        found = _ITEM.match(item)
        if found is None:
            return None
        name, word, answer = found[1], unquote(found[2]), unquote(found[3] or "")
        if name == "ip":
            ip = word
        elif name == "t":
            try:
                moment = datetime.strptime(word, "%Y-%m-%dT%H:%M:%SZ")
            except ValueError:
                return None
            time_s = int(moment.replace(tzinfo=UTC).timestamp())
        elif name == "k":
            key = word
        elif name not in ("s", "action"):
            verdicts.append(Verdict(name, word, answer))
            if len(verdicts) > MAX_VERDICTS:
                return None
    return Tag(ip, time_s, tuple(verdicts), key)


def verified(head: bytes, secrets: Mapping[str, bytes], now_s: float | None = None) -> Tag | None:
    """The one signed tag in a header whose signature is right and young enough; None if there is none, or several.

    secrets: key id -> secret.
    """
    found = []
    for raw in header.values(head, FIELD, 0, header.header_end(head)):
        text, mark, signature = re.sub(rb";[ \t]+", b"; ", raw).partition(b"; s=")
        tag = parse(text) if mark else None
        secret = secrets.get(tag.key) if tag is not None and tag.key else None
        if tag is None or secret is None:
            continue
        right = _digest(secret, text.decode("ascii"), head)
        if hmac.compare_digest(right.encode(), signature.strip()):
            found.append(tag)
    if len(found) != 1:
        return None
    now = time.time() if now_s is None else now_s
    return found[0] if now - MAX_AGE_S <= found[0].time_s <= now + MAX_AHEAD_S else None
