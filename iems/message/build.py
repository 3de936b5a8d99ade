"""Mail made here: header fields that can't be broken out of, bodies in a transfer encoding, multiparts.

What comes from outside (a subject, a name, a file name, an API field) is encoded or refused, never passed on with a CR or
LF (RFC 5322 2.2). No clock and no randomness: both are handed in.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Iterable, Sequence

from iems.message.date import format_date
from iems.message.words import encode_parameter, encode_words

_NAME = re.compile(r"[!-9;-~]{1,76}\Z")  # RFC 5322 3.6.8: printable ASCII without a colon
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~. -]+\Z")
_ADDRESS = re.compile(r"(?:[^\x00-\x20\x7f-\x9f<>()\[\]:;@\\,\"]{1,64}|\"(?:[^\x00-\x1f\x7f-\x9f\\\"]|\\[ -~]){0,62}\")@"
                      r"(?:[^\x00-\x20\x7f-\x9f<>()\[\]:;@\\,\"]{1,255}|\[[!-Z^-~]{1,255}\])\Z")  # fmt: skip
_TOKEN = re.compile(r"[A-Za-z0-9!#$&+.^_-]{1,127}\Z")
LINE = 76
HARD_LINE = 998  # RFC 5322 2.1.1


class Injection(ValueError):
    """A value that would end its field or header and begin another one."""


def field(name: str, value: str) -> bytes:
    """An unstructured field (Subject, Comments, X-...) with its CRLF; what is not printable ASCII in encoded words.

    Raises Injection if `value` has a CR, LF, NUL or another control character, ValueError if `name` is no field name.
    """
    _check_name(name)
    if _CONTROL.search(value):
        raise Injection(f"control character in {name}")
    return _folded(name, encode_words(value.rstrip(" "), len(name) + 2))


def raw_field(name: str, value: str) -> bytes:
    """A structured field whose value is already in wire form (ASCII, or UTF-8 if the message is SMTPUTF8), folded at spaces.

    Raises Injection if `value` has a CR, LF, NUL or another control character, ValueError if `name` is no field name.
    """
    _check_name(name)
    if _CONTROL.search(value):
        raise Injection(f"control character in {name}")
    return _folded(name, value)


def _check_name(name: str) -> None:
    if not _NAME.match(name):
        raise ValueError(f"no field name: {name!r}")


def _folded(name: str, value: str) -> bytes:
    """Fold at spaces so that lines stay within 76 columns where they can, and within 998 octets always."""
    lines, line = [], name + ":"
    for word in re.split(r"(?<=[^ ]) (?=[^ ])", value.replace("\r\n ", "\n")):
        pieces = word.split("\n")
        if len(line) + 1 + len(pieces[0]) > LINE and line.strip() and not line.endswith(":"):
            lines.append(line)
            line = ""
        line += " " + pieces[0]
        for piece in pieces[1:]:
            lines.append(line)
            line = " " + piece
    lines.append(line)
    out = "\r\n".join(lines)
    for row in out.split("\r\n"):
        if len(row.encode("utf-8", "replace")) > HARD_LINE:
            raise ValueError(f"a word of {name} is longer than a line may be")
    return out.encode("utf-8", "replace") + b"\r\n"


def mailbox(address: str, name: str = "") -> str:
    """`name <address>` in wire form, the name quoted or in encoded words.

    Raises Injection for control characters in either, ValueError if `address` is no local@domain.
    """
    if _CONTROL.search(name) or _CONTROL.search(address):
        raise Injection("control character in an address")
    if not _ADDRESS.match(address):
        raise ValueError(f"no address: {address!r}")
    if not name:
        return f"<{address}>"
    if not name.isascii() or "=?" in name:
        phrase = encode_words(name).replace("\r\n ", " ")
    elif _ATOM.match(name) and "." not in name:
        phrase = name
    else:
        phrase = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"{phrase} <{address}>"


def address_field(name: str, mailboxes: Iterable[tuple[str, str]]) -> bytes:
    """An address field (From, To, ...) of (address, display name) pairs. Raises as `mailbox` does, and for none."""
    rows = [mailbox(address, shown) for address, shown in mailboxes]
    if not rows:
        raise ValueError(f"{name} needs an address")
    return raw_field(name, ", ".join(rows))


def date_field(epoch_s: float, zone_minutes: int = 0) -> bytes:
    """The Date field for a moment."""
    return raw_field("Date", format_date(epoch_s, zone_minutes))


def message_id(unique: bytes, domain: str) -> str:
    """<...@domain> from octets that are unique for ever, such as the 16 of our own message ids."""
    if not _TOKEN.match(domain):
        raise ValueError(f"no domain: {domain!r}")
    return f"<{binascii.hexlify(unique).decode()}@{domain}>"


def content_type_field(
    kind: str, parameters: Sequence[tuple[str, str]] = (), name: str = "Content-Type"
) -> bytes:
    """A Content-Type, or with `name` a Content-Disposition; parameters by RFC 2231 where they must be.

    Raises Injection for control characters, ValueError for a `kind` that is no token or token/token.
    """
    if not all(map(_TOKEN.match, kind.split("/"))) or kind.count("/") > 1:
        raise ValueError(f"no type: {kind!r}")
    out = f"{name}: {kind}"
    for attribute, value in parameters:
        if _CONTROL.search(value):
            raise Injection(f"control character in {attribute}")
        for piece in encode_parameter(attribute, value):
            out += (";\r\n " if len(out.rpartition("\n")[2]) + len(piece) + 2 > LINE else "; ") + piece
    return out.encode("ascii") + b"\r\n"


def text_part(text: str, subtype: str = "plain", disposition: str = "") -> bytes:
    """A text part, header and body: lines end with CRLF, 7bit if it can, else quoted-printable or base64 of UTF-8."""
    body = re.sub(r"\r\n|\r|\n", "\r\n", text)
    octets = body.encode("utf-8", "replace")
    lines_fit = all(len(line) <= 78 for line in octets.split(b"\r\n"))
    charset = "us-ascii" if octets.isascii() else "utf-8"
    head = content_type_field(f"text/{subtype}", [("charset", charset)])
    if disposition:
        head += content_type_field(disposition, name="Content-Disposition")
    if octets.isascii() and lines_fit and b"\0" not in octets:
        return head + b"Content-Transfer-Encoding: 7bit\r\n\r\n" + octets
    quoted = encode_quoted_printable(octets)
    if len(quoted) <= len(octets) * 4 // 3:
        return head + b"Content-Transfer-Encoding: quoted-printable\r\n\r\n" + quoted
    return head + b"Content-Transfer-Encoding: base64\r\n\r\n" + encode_base64(octets)


def octets_part(octets: bytes, kind: str = "application/octet-stream", filename: str = "") -> bytes:
    """An attachment in base64, header and body. Raises as `content_type_field` does."""
    named = [("filename", filename)] if filename else []
    return (
        content_type_field(kind)
        + content_type_field("attachment", named, "Content-Disposition")
        + b"Content-Transfer-Encoding: base64\r\n\r\n"
        + encode_base64(octets)
    )


def multipart(subtype: str, parts: Sequence[bytes], parameters: Sequence[tuple[str, str]] = ()) -> bytes:
    """A multipart of whole parts (header and body each): its Content-Type field, an empty line and the body.

    The boundary is a hash of the parts, and lengthened until it is in none of them, so that the same parts give the same
    octets and no part can end itself. Put further fields before what this returns.
    """
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        digest.update(b"%d:" % len(part) + part)
    boundary = "=_" + digest.hexdigest()
    while any(boundary.encode() in part for part in parts):
        boundary += hashlib.blake2b(boundary.encode(), digest_size=2).hexdigest()
    marker = b"--" + boundary.encode()
    out = [content_type_field(f"multipart/{subtype}", [*parameters, ("boundary", boundary)]), b"\r\n"]
    for part in parts:
        out += [marker, b"\r\n", part, b"" if part.endswith(b"\r\n") else b"\r\n"]
    return b"".join([*out, marker, b"--\r\n"])


def encode_base64(octets: bytes) -> bytes:
    """Base64 in lines of 76 columns with CRLF (RFC 2045 6.8)."""
    return b"".join(
        binascii.b2a_base64(octets[at : at + 57], newline=False) + b"\r\n" for at in range(0, len(octets), 57)
    )


def encode_quoted_printable(octets: bytes) -> bytes:
    """Quoted-printable of text with CRLF line ends (RFC 2045 6.7); other CR and LF are encoded."""
    rows = []
    for line in octets.split(b"\r\n"):
        row = bytearray()
        for at, octet in enumerate(line):
            plain = (33 <= octet <= 126 and octet != 61) or (octet in b" \t" and at + 1 < len(line))
            unit = bytes((octet,)) if plain else b"=%02X" % octet
            # "From " and a lone dot are mangled on the way by some; at the start of a line they are encoded.
            if not row and octet in b"F.":
                unit = b"=%02X" % octet
            if len(row) + len(unit) > LINE - 1:
                rows.append(bytes(row) + b"=")
                row.clear()
            row += unit
        rows.append(bytes(row))
    return b"\r\n".join(rows)
