"""What clients and server say to each other on HOME/run/mta.sock: lines of JSON, and octets behind those that announce some.

Pure: no socket, no spool. docs/api-mta.md describes it for clients in any language.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from iems.model import Channel, Envelope, Notify, Outcome, Recipient, Reply, Result, id_text
from iems.smtp import grammar
from iems.spool.items import Item

VERSION = 1
#: Longest line, either way.
LINE_OCTETS = 256 << 10
#: Recipients of one message handed in.
MOST_RECIPIENTS = 1000

_NOTIFY = {notify.name: int(notify) for notify in Notify}
_REPLY = re.compile(r"([245]\d\d)(?: ([245])\.(\d{1,3})\.(\d{1,3}))?(?: (.{0,400}))?")
_WORD = re.compile(r"[A-Za-z0-9._-]{1,64}")
_OUTCOMES = {
    "delivered": Outcome.DELIVERED,
    "relayed": Outcome.RELAYED,
    "failed": Outcome.FAILED,
    "deferred": Outcome.DEFERRED,
}
#: What is noted where a client gives no reply of its own.
REFUSED = Reply(554, 5, 0, "The channel could not deliver it")
LATER = Reply(451, 5, 0, "The channel could not deliver it yet")
#: Wait of a deferred recipient for which the client names none.
RETRY_S = 300.0
RETRY_MOST_S = 604_800.0


class Refused(Exception):
    """A request that can't be met: `error` is a word for programs, the text is for people."""

    def __init__(self, error: str, text: str) -> None:
        super().__init__(text)
        self.error = error


class To(Struct, forbid_unknown_fields=True):
    """A recipient of a message handed in. notify: NEVER, or any of SUCCESS, FAILURE, DELAY. orcpt: as in RFC 3461, xtext."""

    address: str
    notify: list[Literal["NEVER", "SUCCESS", "FAILURE", "DELAY"]] = []
    orcpt: str = ""


class Told(Struct, forbid_unknown_fields=True):
    """What a client says became of one recipient. seconds: until the next try, of a deferred one."""

    recipient: str
    outcome: Literal["delivered", "relayed", "failed", "deferred"]
    reply: str = ""
    seconds: float | None = None


class Request(Struct, forbid_unknown_fields=True):
    """One line of a client; each operation uses some of the fields."""

    op: Literal["hello", "insert", "take", "content", "ack", "nack", "renew"]
    tag: str | int | UnsetType = UNSET
    name: str = ""
    channel: str = ""
    octets: int = 0
    reverse_path: str = ""
    recipients: list[To | str] = []
    smtputf8: bool = False
    ret: Literal["", "FULL", "HDRS"] = ""
    envid: str = ""
    limit: int = 1
    wait_s: float = 0.0
    lease_s: float = 0.0
    pieces: bool = False
    lease: str = ""
    results: list[Told] | None = None
    seconds: float = 0.0
    reason: str = ""


_decode = msgspec.json.Decoder(Request).decode
_encode = msgspec.json.Encoder().encode


def read(line: bytes) -> Request:
    """The request in a line. Raises Refused: what follows such a line can't be told apart, so the connection must end."""
    try:
        request = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused("bad", str(error)) from None
    if request.octets < 0 or (request.octets and request.op != "insert"):
        raise Refused("bad", "octets: only behind insert, and not below 0")
    return request


def answer(request: Request | None, found: dict[str, Any]) -> bytes:
    """An answer as a line, with the request's tag."""
    head: dict[str, Any] = {"ok": "error" not in found}
    if request is not None and request.tag is not UNSET:
        head["tag"] = request.tag
    return _encode(head | found) + b"\n"


def refusal(error: Refused) -> dict[str, Any]:
    """A refusal, for `answer`."""
    return {"error": error.error, "text": str(error)}


def client_name(text: str) -> str:
    """The name a client gives itself, as log and Received lines show it. Raises Refused."""
    if not _WORD.fullmatch(text):
        raise Refused("bad", "name: 1 to 64 letters, digits, dots, hyphens and underscores")
    return text


def channel(text: str, allowed: Sequence[str]) -> Channel:
    """The channel of that name. Raises Refused if the settings don't allow it."""
    if text not in allowed:
        raise Refused("denied", f"channel: {', '.join(allowed) or 'none'} may be named here")
    return Channel[text]


# --- a message handed in


def envelope(request: Request, input_channel: Channel, now_ns: int) -> Envelope:
    """The envelope of a message handed in; its size and body are for the caller to set. Raises Refused."""
    words = " SMTPUTF8" if request.smtputf8 or not request.reverse_path.isascii() else ""
    words += f" RET={request.ret}" if request.ret else ""
    mail = _parsed(grammar.mail, "FROM", request.reverse_path, words, "ENVID", request.envid, "reverse_path")
    assert isinstance(mail, grammar.Mail)
    if not 0 < len(request.recipients) <= MOST_RECIPIENTS:
        raise Refused("bad", f"recipients: between 1 and {MOST_RECIPIENTS}")
    recipients = []
    for to in request.recipients:
        given = to if isinstance(to, To) else To(to)
        words = f" NOTIFY={','.join(given.notify)}" if given.notify else ""
        rcpt = _parsed(grammar.rcpt, "TO", given.address, words, "ORCPT", given.orcpt, "recipients")
        assert isinstance(rcpt, grammar.Rcpt)
        recipients.append(Recipient(rcpt.path.address, rcpt.path.original, rcpt.orcpt, rcpt.notify))
    return Envelope(
        input_channel,
        mail.path.address,
        recipients,
        now_ns,
        smtputf8=mail.smtputf8 or any(not r.address.isascii() for r in recipients),
        ret=mail.ret,
        envid=mail.envid,
    )


def _parsed(parse: Any, keyword: str, address: str, words: str, parameter: str, value: str, where: str) -> Any:
    """What the grammar of the command makes of an address and its parameters. Raises Refused."""
    if value:
        if " " in value or not value.isascii() or not value.isprintable():
            raise Refused("bad", f"{parameter.lower()}: xtext (RFC 3461 4) is expected")
        words += f" {parameter}={value}"
    try:
        octets = address.encode()
    except UnicodeEncodeError:
        raise Refused("bad", f"{where}: no UTF-8") from None
    if any(octet < 32 or octet == 127 for octet in octets):
        raise Refused("bad", f"{where}: a control character")
    found = parse(b"%b:<%b>%b" % (keyword.encode(), octets, words.encode()))
    if isinstance(found, Reply):
        raise Refused("bad", f"{where}: {found.text}")
    if found.path.original != octets:  # a route, or something that reads as parameters
        raise Refused("bad", f"{where}: a bare address is expected, nothing beside it")
    return found


# --- an item on its way out


def offer(item: Item, lease: str, lease_s: float, received: str) -> dict[str, Any]:
    """A leased item as clients see it."""
    envelope = item.envelope
    return {
        "lease": lease,
        "lease_s": lease_s,
        "id": id_text(item.id),
        "part": item.part,
        "channel": Channel(item.channel).name,
        "destination": item.destination,
        "reverse_path": text(envelope.reverse_path),
        "recipients": [
            {
                "address": text(r.address),
                "original": text(r.original or r.address),
                "notify": [name for name, bit in _NOTIFY.items() if r.notify & bit],
                "orcpt": text(r.orcpt or b""),
                "attempts": max(r.attempts, item.attempts),
            }
            for r in envelope.recipients
        ],
        "received": received,
        "octets": sum(len(p) if isinstance(p, bytes) else p.length for p in item.rope),
        "body": ("7BIT", "8BITMIME", "BINARYMIME")[min(envelope.body, 2)],
        "smtputf8": envelope.smtputf8,
        "ret": ("", "FULL", "HDRS")[min(envelope.ret, 2)],
        "envid": text(envelope.envid or b""),
        "client_ip": envelope.client_ip,
        "verdicts": [[v.check, v.subject, v.answer] for v in envelope.verdicts],
    }


def text(octets: bytes) -> str:
    """Wire data as JSON shows it."""
    return octets.decode("utf-8", "replace")


def inline(octets: bytes) -> dict[str, str]:
    """A short piece of a content that stands in no file."""
    return {"base64": base64.b64encode(octets).decode()}


# --- what became of it


def reply_of(given: str, default: Reply, digit: str) -> Reply:
    """A reply a client gave as text, of the class `digit`. Raises Refused."""
    if not given:
        return default
    found = _REPLY.fullmatch(given)
    if found is None or not given.isprintable() or found[1][0] != digit or (found[2] or digit) != digit:
        raise Refused("bad", f"reply: {digit}xx {digit}.x.x text, on one line")
    return Reply(int(found[1]), int(found[3] or 0), int(found[4] or 0), found[5] or default.text)


def retry_s(seconds: float | None) -> float:
    """The wait of a deferred recipient. Raises Refused."""
    if seconds is None:
        return RETRY_S
    if not 0 <= seconds <= RETRY_MOST_S:
        raise Refused("bad", f"seconds: between 0 and {RETRY_MOST_S:g}")
    return seconds


def results(item: Item, told: list[Told] | None) -> list[Result]:
    """The result of every recipient of an item; told None: all are delivered. Raises Refused unless each is told of once."""
    left = {text(r.address): r for r in item.envelope.recipients}
    if told is None:
        return [Result(r, Outcome.DELIVERED) for r in item.envelope.recipients]
    found = []
    for one in told:
        recipient = left.pop(one.recipient, None)
        if recipient is None:
            raise Refused("bad", f"results: {one.recipient!a} is no recipient of this item, or stands there twice")
        outcome = _OUTCOMES[one.outcome]
        if outcome == Outcome.FAILED:
            found.append(Result(recipient, outcome, reply_of(one.reply, REFUSED, "5")))
        elif outcome == Outcome.DEFERRED:
            found.append(Result(recipient, outcome, reply_of(one.reply, LATER, "4"), retry_s(one.seconds)))
        else:
            found.append(Result(recipient, outcome, reply_of(one.reply, None, "2") if one.reply else None))  # type: ignore[arg-type]
    if left:
        raise Refused("bad", f"results: nothing is said of {next(iter(left))!a}")
    return found
