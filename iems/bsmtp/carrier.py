"""The message a batch travels in: made for the encoder, taken apart for the decoder, signed and checked. No I/O, no clock."""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re

from msgspec import Struct

from iems._native.mime_py import single_token
from iems.bsmtp.batch import Batch, BatchError, check_extensions
from iems.message import build, words
from iems.message.header import fields, header_end, unfold, values
from iems.message.structure import Structure
from iems.model import id_text
from iems.smtp import received

#: The header field with the signature of the batch.
SIGNATURE = b"IEMS-Batch-Signature"
#: A signature is good for this long; `memory.KEEP_S` is longer, so that a replay is known for as long as it would be taken.
SIGNATURE_S = 28 * 86_400
#: A sender's clock may be this far ahead.
AHEAD_S = 86_400
#: Received fields of the message that are carried on, so that a tunnel into itself is found as a loop.
TRACES = 100
#: So many turns through tunnels of one host are a loop. Each makes a message a third larger, so `preprocessor.max_trips` is too many.
TURNS = 8
#: Parts looked at in one message.
PARTS = 1000

_SIGNED = re.compile(rb"v=1;[ \t]*t=(\d{1,12});[ \t]*s=([0-9a-f]{64})\Z")


class Parts(Struct):
    """What a fetched message holds. batches: octets of each batch, in order. problem: why they don't count, or ""."""

    batches: list[bytes]
    problem: str = ""


def sign(key: bytes, batch: bytes, now_s: int) -> bytes:
    """The header field, with CRLF, that proves a batch to come from who holds the key (HMAC-SHA-256)."""
    return b"%b: v=1; t=%d; s=%b\r\n" % (SIGNATURE, now_s, _digest(key, batch, b"%d" % now_s))


def _digest(key: bytes, batch: bytes, time: bytes) -> bytes:
    return hmac.new(key, b"iems batch 1\0" + time + b"\0" + batch, hashlib.sha256).hexdigest().encode()


def check_signature(key: bytes, content: bytes, batches: list[bytes], now_s: int) -> str:
    """"" if the one batch in `content` is signed with `key` and not too old, else what is wrong."""
    found = values(content, SIGNATURE, 0, header_end(content))
    if not found:
        return "the batch is not signed"
    if len(found) > 1 or len(batches) != 1:
        return "more than one batch or signature in a message"
    match = _SIGNED.match(found[0])
    if match is None or not hmac.compare_digest(_digest(key, batches[0], match[1]), match[2]):
        return "the signature of the batch is wrong"
    if not now_s - SIGNATURE_S <= int(match[1]) <= now_s + AHEAD_S:
        return "the signature of the batch is too old or of a time to come"
    return ""


def make(
    batch: Batch, *, sender: str, to: str, hostname: str, unique: bytes, content: bytes, now_s: int, key: bytes = b""
) -> list[bytes]:
    """The carrier of a batch: header and body.

    sender, to: addresses. unique: the carrier's id. content: of the message carried, whose Received fields are repeated under
    one of our own. key: signs it, if not empty. Raises ValueError if an address can't stand in a header.
    """
    parameters = [("required-extensions", ",".join(batch.extensions))] if batch.extensions else []
    # Each turn through a tunnel is one more line of ours, or a tunnel into itself would never end.
    name = hostname.encode()
    traces = [
        received.line(
            received.prefix(helo=name, client_ip="", by=name, protocol=b"BSMTP"), id_text(unique), b"", now_s
        )
    ]
    for found in fields(content, 0, header_end(content)):
        if found.name == b"received" and len(traces) < TRACES:
            trace = content[found.start : found.end]
            if trace.endswith(b"\r\n") and trace.isascii():
                traces.append(trace)
    return [
        *traces,
        build.address_field("From", [(sender, "Mail tunnel")]),
        build.address_field("To", [(to, "")]),
        build.field("Subject", "Mail in a batch"),
        build.date_field(now_s),
        build.raw_field("Message-ID", build.message_id(unique, hostname)),
        b"Auto-Submitted: auto-generated\r\n",
        sign(key, batch.octets, now_s) if key else b"",
        b"MIME-Version: 1.0\r\n",
        build.content_type_field("application/batch-SMTP", parameters),
        b"Content-Transfer-Encoding: base64\r\n\r\n",
        build.encode_base64(batch.octets),
    ]


def is_loop(content: bytes, hostname: str) -> bool:
    """Whether a message has been through tunnels of this host `TURNS` times."""
    mark = b"by %b with BSMTP id" % hostname.encode()
    traces = values(content, b"received", 0, header_end(content))
    return sum(mark in b" ".join(trace.split()) for trace in traces) >= TURNS


def open_parts(content: bytes) -> Parts:
    """The batches in a message, wherever they stand in its MIME tree (not within messages it holds)."""
    structure = Structure.parse(content)
    found = Parts([])
    if len(structure) > PARTS:
        return Parts([], "the message has too many parts" if b"batch-smtp" in content.lower() else "")
    rows = [0]
    while rows:
        row = rows.pop(0)
        part = structure.at(row)
        kind, subtype, parameters = words.content_type(content[slice(*part.content_type)])
        if kind.lower() == "multipart":
            rows[:0] = structure.children[row]
            continue
        if (kind.lower(), subtype.lower()) != ("application", "batch-smtp"):
            continue
        try:
            check_extensions(parameters.get("required-extensions", ""))
            found.batches.append(
                _undo(content[part.body_start : part.body_end], single_token(content[slice(*part.encoding)]).lower())
            )
        except BatchError as error:
            found.problem = found.problem or str(error)
            found.batches.append(b"")
    return found


def _undo(body: bytes, encoding: bytes) -> bytes:
    """A body with its transfer encoding undone, strictly. Raises BatchError."""
    if encoding == b"base64":
        text = body.translate(None, b"\r\n \t")
        try:
            return binascii.a2b_base64(text, strict_mode=True)
        except binascii.Error as error:
            raise BatchError(f"the base64 of the batch is damaged: {error}") from None
    if encoding == b"quoted-printable":
        for at in _ESCAPE.finditer(body):
            if not at[1]:
                raise BatchError("the quoted-printable of the batch is damaged")
        return binascii.a2b_qp(body)
    if encoding in (b"", b"7bit", b"8bit", b"binary"):
        return body
    raise BatchError(f"an unknown transfer encoding {encoding[:40]!r}")


_ESCAPE = re.compile(rb"=([0-9A-Fa-f]{2}|[ \t]*\r?\n)?")


def author(content: bytes) -> str:
    """The address of the only author of a message, in lower case, or ""."""
    from iems.message.address import author as read

    found = read(content)
    return found.addr_spec.lower() if found is not None else ""


def body_hash(content: bytes) -> bytes:
    """A hash of a message's body: a server may change header fields (Status) between two fetches, not the body."""
    return hashlib.blake2b(content[header_end(content) :], digest_size=16).digest()


def return_path(content: bytes) -> bytes:
    """The address in the Return-Path a maildrop put on top, b"" if there is none or it is the null path."""
    for found in fields(content, 0, header_end(content)):
        if found.name == b"return-path":
            return unfold(content[found.value : found.end]).strip(b"<> \t")
    return b""
