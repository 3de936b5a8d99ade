"""Mail that scripts send: a message passed on (RFC 5228 4.2), and the vacation answer with its guards (RFC 5230 4.5, 4.6, RFC 3834).

Pure: no clock, no disk. Nothing that stood in a message reaches a header line of ours but encoded or checked.
"""

from __future__ import annotations

import re
from typing import Final

from iems.message.address import parse_addresses
from iems.message.build import address_field, date_field, field, raw_field, text_part
from iems.message.words import decode
from iems.model import Channel, Envelope, Notify, Recipient, child_id, id_text
from iems.sieve.actions import Vacation
from iems.sieve.message import ContentMessage
from iems.smtp.received import date as received_date
from iems.spool.items import Item, Message

LOOP_FIELD: Final = "X-Loop"
SUBJECT_MAX: Final = 200
REFERENCES_MAX: Final = 20

_MESSAGE_ID = re.compile(rb"<[!-;=?-~]{1,250}>")
_NOBODY = re.compile(
    r"(?:mailer-?daemon|postmaster|hostmaster|root|daemon|listserv|majordomo|mailman|bounces?|notifications?|"
    r"(?:no|do[-_.]?not|dont)[-_.]?reply)(?:[-_+.=].*)?\Z|owner-|.*(?:-request|-owner|-bounces?|-noreply|-no-reply)\Z|.*-bounces?\+|srs[01]=",
    re.I,
)
_LIST_FIELDS: Final = (
    "list-id", "list-help", "list-subscribe", "list-unsubscribe", "list-post", "list-owner", "list-archive", "mailing-list",
    "x-mailing-list", "x-loop-list",
)  # fmt: skip
_RECIPIENT_FIELDS: Final = ("to", "cc", "bcc", "resent-to", "resent-cc", "resent-bcc")


def loops(message: ContentMessage, owner: str) -> bool:
    """Whether the message was passed on, or answered, for `owner` before."""
    return any(value.strip().lower() == owner.lower() for value in message.texts(LOOP_FIELD))


def redirected(
    item: Item, content: bytes, owner: str, address: str, notify: int, hostname: str, now_ns: int
) -> Message:
    """The message sent on to an address: as it came, under two lines of ours, with its reverse path.

    owner: whose script does so. notify: what the sender wanted to hear about this recipient. The reverse path is rewritten where it
    leaves, if the server is set to do so (SRS). The same item, owner and address give the same id.
    """
    parent = item.envelope
    to = address.encode()
    message_id = child_id(item.id, b"redirect\0" + owner.encode("utf-8", "surrogateescape") + b"\0" + to)
    head = (
        b"Received: by " + hostname.encode("ascii", "replace") + b" (a rule of the recipient) id " + id_text(message_id).encode()
        + b";\r\n\t" + received_date(now_ns // 1_000_000_000) + b"\r\n" + raw_field(LOOP_FIELD, owner)
    )  # fmt: skip
    envelope = Envelope(
        input_channel=Channel.LOCALOUT,
        reverse_path=parent.reverse_path,
        recipients=[Recipient(_lower_domain(to), to, notify=notify)],
        received_ns=now_ns,
        size=len(head) + len(content),
        client_ip=parent.client_ip,  # with the verdicts: who gets it here decides by his own spam control
        verdicts=parent.verdicts,
        asked=parent.asked,
        body=parent.body,
        smtputf8=parent.smtputf8 or not address.isascii(),
        ret=parent.ret,
        envid=parent.envid,
        parent=item.id,
        dot_free=parent.dot_free,
        requiretls=parent.requiretls,
    )
    return Message(message_id, envelope, [head, content])


def no_answer(message: ContentMessage, action: Vacation, own: list[str], spam: bool) -> str:
    """Why a message gets no vacation answer; "" if it may. own: the addresses of the user. spam: as a check before said."""
    sender = message.reverse_path
    if not sender or "@" not in sender:
        return "the sender's path is null"
    if _NOBODY.match(sender.rpartition("@")[0]):
        return "the sender is no person"
    known = {address.lower() for address in (*own, *action.addresses) if address}
    if sender.lower() in known:
        return "the sender is the user"
    if any(value.partition(";")[0].strip().lower() != "no" for value in message.texts("auto-submitted")):
        return "the message is automatic"
    if any(message.raw(name) for name in _LIST_FIELDS):
        return "the message is from a list"
    if any(value.strip().lower() in ("bulk", "list", "junk") for value in message.texts("precedence")):
        return "the message is bulk mail"
    if any(re.search(r"\b(?:all|oof|autoreply)\b", value, re.I) for value in message.texts("x-auto-response-suppress")):
        return "the sender wants no automatic answer"
    if any(value.strip() == b"<>" for value in message.raw("return-path")):
        return "the sender's path is null"
    if spam or any(
        re.match("yes", value, re.I) for name in ("x-spam-status", "x-spam-flag") for value in message.texts(name)
    ):
        return "the message is marked as spam"
    if any(loops(message, address) for address in own):
        return "the message was here before"
    for name in _RECIPIENT_FIELDS:
        for line in message.addresses(name):
            if any(f"{decode(one.local)}@{decode(one.domain)}".lower() in known for one in line):
                return ""
    return "the message is not addressed to the user"


def answer(
    item: Item, message: ContentMessage, action: Vacation, own: list[str], hostname: str, now_ns: int
) -> Message:
    """The vacation answer, from the null path to the reverse path. own: the addresses of the user, the first is the account's.

    The same item and user give the same id. Raises ValueError if the sender's path is no address a header can hold.
    """
    parent = item.envelope
    to = message.reverse_path
    message_id = child_id(item.id, b"vacation\0" + own[0].encode("utf-8", "surrogateescape"))
    sender, name = own[0], ""
    if action.sender:
        found = parse_addresses(action.sender.encode("utf-8", "replace"))
        if found:
            name = found[0].name
            # Nobody answers under the address of another.
            if found[0].addr_spec.lower() in {address.lower() for address in own}:
                sender = found[0].addr_spec
    subject = action.subject
    if not subject:
        theirs = next(iter(message.texts("subject")), "")
        subject = f"Auto: {theirs}" if theirs else "Automatic answer"
    head = [
        address_field("From", [(sender, _one_line(name))]),
        address_field("To", [(to, "")]),
        field("Subject", _one_line(subject)[:SUBJECT_MAX]),
        date_field(now_ns / 1e9),
        raw_field("Message-ID", f"<{id_text(message_id)}@{hostname}>"),
    ]
    theirs_id = _MESSAGE_ID.search(b" ".join(message.raw("message-id")[:1]))
    if theirs_id:
        ids = _MESSAGE_ID.findall(b" ".join((message.raw("references") or message.raw("in-reply-to"))[:1]))
        chain = [*ids[-REFERENCES_MAX:], theirs_id[0]]
        head += [b"In-Reply-To: ", theirs_id[0], b"\r\nReferences: ", b"\r\n ".join(dict.fromkeys(chain)), b"\r\n"]
    head += [b"Auto-Submitted: auto-replied (vacation)\r\n", raw_field(LOOP_FIELD, own[0]), b"MIME-Version: 1.0\r\n"]
    body = _mime_part(action.reason) if action.mime else text_part(action.reason)
    content = b"".join(head) + body
    envelope = Envelope(
        input_channel=Channel.LOCALOUT,
        reverse_path=b"",
        recipients=[Recipient(_lower_domain(parent.reverse_path), parent.reverse_path, notify=Notify.NEVER)],
        received_ns=now_ns,
        size=len(content),
        body=0 if content.isascii() else 1,
        smtputf8=not to.isascii() or not content.partition(b"\r\n\r\n")[0].isascii(),
        parent=item.id,
        dot_free=b"\n." not in content,
        requiretls=parent.requiretls,
    )
    return Message(message_id, envelope, [content])


def _one_line(text: str) -> str:
    return " ".join(re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", " ", text).split())


def _mime_part(reason: str) -> bytes:
    """The reason of `:mime`, a whole part: only its Content fields are taken, so that it can't say more than a body may."""
    octets = re.sub(r"\r\n|\r|\n", "\r\n", reason.replace("\0", "")).encode("utf-8", "replace")
    head, _, body = octets.partition(b"\r\n\r\n")
    kept = [
        row
        for row in re.findall(rb"(?m)^[!-9;-~]+:.*(?:\r\n[ \t].*)*", head)
        if row.lower().startswith(b"content-") and row.isascii()
    ]
    if not kept:
        return text_part(reason)
    return b"".join(row.rstrip(b"\r\n") + b"\r\n" for row in kept) + b"\r\n" + body


def _lower_domain(path: bytes) -> bytes:
    local, at, domain = path.rpartition(b"@")
    return local + at + domain.lower() if at else path
