"""The arguments of SMTP commands, read as RFC 5321 4.1 writes them; what can't be read is a reply, not an exception.

Strict where a second meaning could hide, lenient where clients are known to differ and only one meaning is possible:
blanks after `FROM:` (Outlook), a path without its angle brackets, `_` in domains, a name without a domain
(completed by `qualify`). Source routes are read and ignored (RFC 5321 appendix C).
"""

from __future__ import annotations

import ipaddress
import re

from msgspec import Struct

from iems._native import kernel
from iems.model import Notify, Reply
from iems.smtp import replies

_plain_path = kernel("smtp").plain_path

#: RFC 5321 4.5.3.1 asks servers to take 64 and 255; VERP and SRS make longer local parts in practice.
LOCAL_PART_OCTETS = 256
DOMAIN_OCTETS = 255
ENVID_OCTETS = 100
ORCPT_OCTETS = 500
AUTH_OCTETS = 500

_LET_DIG = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_ATEXT = _LET_DIG | frozenset(b"!#$%&'*+/=?^_`{|}~-")
_HEX = frozenset(b"0123456789ABCDEF")
_XCHAR = frozenset(range(33, 127)) - frozenset(b"+=")


class Path(Struct, frozen=True, array_like=True):
    """A reverse-path or forward-path.

    address: `local-part@domain`, the domain in lower case, a local part that needs no quotes without them; b"" is the
    null path. original: as the client wrote it, without brackets and source route. utf8: not all ASCII.
    """

    address: bytes
    original: bytes
    utf8: bool = False


class Mail(Struct, frozen=True, array_like=True):
    """The argument of MAIL (RFC 5321 4.1.1.2, 1870, 6152, 3030, 6531, 3461, 4954, 8689).

    size: 0 if not given. body: 0 7BIT, 1 8BITMIME, 2 BINARYMIME. ret: 0 not given, 1 FULL, 2 HDRS. envid and auth: still
    xtext.
    """

    path: Path
    size: int = 0
    body: int = 0
    smtputf8: bool = False
    ret: int = 0
    envid: bytes | None = None
    auth: bytes | None = None
    requiretls: bool = False


class Rcpt(Struct, frozen=True, array_like=True):
    """The argument of RCPT (RFC 5321 4.1.1.3, 3461). notify: bits of `model.Notify`. orcpt: still xtext."""

    path: Path
    notify: int = 0
    orcpt: bytes | None = None


def mail(argument: bytes, qualify: bytes = b"") -> Mail | Reply:
    """Read the argument of MAIL. qualify: the domain that completes a name without one; b"" refuses it."""
    start = _after_keyword(argument, b"FROM:")
    if start < 0:
        return replies.BAD_SENDER
    path, end = _path(argument, start, qualify, null=True)
    if path is None:
        return replies.UNQUALIFIED if end == _UNQUALIFIED else replies.BAD_SENDER
    if end == len(argument):
        return replies.NEED_SMTPUTF8 if path.utf8 else Mail(path)
    given = _parameters(argument, end)
    if isinstance(given, Reply):
        return given
    size = body = ret = 0
    smtputf8 = requiretls = False
    envid = auth = None
    for key, value in given.items():
        bad = False
        if key == b"SIZE":
            bad = value is None or not value.isdigit() or len(value) > 20
            size = 0 if bad else int(value or b"")
        elif key == b"BODY":
            body = {b"7BIT": 0, b"8BITMIME": 1, b"BINARYMIME": 2}.get((value or b"").upper(), -1)
            bad = body < 0
        elif key == b"SMTPUTF8":
            smtputf8, bad = True, value is not None
        elif key == b"REQUIRETLS":
            requiretls, bad = True, value is not None
        elif key == b"RET":
            ret = {b"FULL": 1, b"HDRS": 2}.get((value or b"").upper(), 0)
            bad = ret == 0
        elif key == b"ENVID":
            envid = value
            bad = value is None or len(value) > ENVID_OCTETS or unxtext(value) is None
        elif key == b"AUTH":
            auth = value
            bad = value is None or len(value) > AUTH_OCTETS or (value != b"<>" and unxtext(value) is None)
        else:
            return replies.UNKNOWN_PARAMETER
        if bad:
            return replies.BAD_PARAMETER
    if path.utf8 and not smtputf8:
        return replies.NEED_SMTPUTF8
    return Mail(path, size, body, smtputf8, ret, envid, auth, requiretls)


def rcpt(argument: bytes, qualify: bytes = b"") -> Rcpt | Reply:
    """Read the argument of RCPT. qualify: as in `mail`; `<postmaster>` is completed by it as well (RFC 5321 4.5.1)."""
    start = _after_keyword(argument, b"TO:")
    if start < 0:
        return replies.BAD_RECIPIENT
    path, end = _path(argument, start, qualify, null=False)
    if path is None:
        return replies.UNQUALIFIED if end == _UNQUALIFIED else replies.BAD_RECIPIENT
    if end == len(argument):
        return Rcpt(path)
    given = _parameters(argument, end)
    if isinstance(given, Reply):
        return given
    notify = 0
    orcpt = None
    for key, value in given.items():
        if key == b"NOTIFY":
            notify = _notify(value)
            if not notify:
                return replies.BAD_PARAMETER
        elif key == b"ORCPT":
            if value is None or not _original_recipient(value):
                return replies.BAD_PARAMETER
            orcpt = value
        else:
            return replies.UNKNOWN_PARAMETER
    return Rcpt(path, notify, orcpt)


def hello(argument: bytes) -> bytes | Reply:
    """The domain or address literal of EHLO, HELO or LHLO, as given; one printable word is enough (RFC 5321 4.1.4)."""
    if not argument or len(argument) > DOMAIN_OCTETS or any(octet < 33 or octet == 127 for octet in argument):
        return replies.BAD_HELLO
    return argument


_NODE = re.compile(rb"@?[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_QUEUE = re.compile(rb"#[A-Za-z0-9._:\[\]-]{1,253}")


def etrn_node(argument: bytes) -> str | Reply:
    """The node of ETRN in lower case, with its `@` or `#` (RFC 1985 5.2)."""
    if len(argument) > DOMAIN_OCTETS + 1 or not (_NODE.fullmatch(argument) or _QUEUE.fullmatch(argument)):
        return replies.SYNTAX
    return argument.decode("ascii").lower().rstrip(".")


def atrn_domains(argument: bytes) -> tuple[str, ...] | Reply:
    """The domains of ATRN in lower case, each once; () if none is named (RFC 2645 5.2.1)."""
    found: dict[str, None] = {}
    for domain in argument.split(b",") if argument else ():
        domain = domain.strip(b" \t")
        if len(domain) > DOMAIN_OCTETS or not _NODE.fullmatch(domain) or domain[:1] == b"@":
            return replies.SYNTAX
        found[domain.decode("ascii").lower().rstrip(".")] = None
    return tuple(found)


def chunk(argument: bytes) -> tuple[int, bool] | Reply:
    """The size and the LAST of BDAT (RFC 3030 2)."""
    words = argument.split()
    if not words or len(words) > 2 or not words[0].isdigit() or len(words[0]) > 18:
        return replies.BAD_SIZE
    if len(words) == 2 and words[1].upper() != b"LAST":
        return replies.BAD_SIZE
    return int(words[0]), len(words) == 2


#: Attributes of Postfix's XCLIENT; those without effect here are read all the same.
XCLIENT_ATTRIBUTES = (b"NAME", b"ADDR", b"PORT", b"PROTO", b"HELO", b"LOGIN", b"DESTADDR", b"DESTPORT")


def xclient(argument: bytes) -> dict[bytes, bytes] | Reply:
    """The attributes of XCLIENT, decoded, names in upper case; what is [UNAVAILABLE] is left out."""
    given: dict[bytes, bytes] = {}
    words = argument.split()
    for word in words:
        name, equals, text = word.partition(b"=")
        value = unxtext(text)
        name = name.upper()
        if (
            not equals
            or not value
            or name not in XCLIENT_ATTRIBUTES
            or any(octet < 33 or octet == 127 for octet in value)
        ):
            return replies.SYNTAX
        if value.upper() not in (b"[UNAVAILABLE]", b"[TEMPUNAVAIL]"):
            given[name] = value
    return given if words else replies.SYNTAX


def unxtext(value: bytes) -> bytes | None:
    """The octets an xtext stands for (RFC 3461 4), or None if it is none."""
    out = bytearray()
    at = 0
    while at < len(value):
        octet = value[at]
        if octet == 0x2B:  # "+" and two digits
            digits = value[at + 1 : at + 3]
            if len(digits) != 2 or not _HEX.issuperset(digits):
                return None
            out.append(int(digits, 16))
            at += 3
        elif octet in _XCHAR:
            out.append(octet)
            at += 1
        else:
            return None
    return bytes(out)


def xtext(octets: bytes) -> bytes:
    """Octets as xtext (RFC 3461 4)."""
    return b"".join(bytes((octet,)) if octet in _XCHAR else b"+%02X" % octet for octet in octets)


def is_domain(text: bytes) -> bool:
    """Whether text is a domain: labels of letters, digits, hyphens, `_` and UTF-8, at most 63 octets each."""
    if not text or len(text) > DOMAIN_OCTETS:
        return False
    for label in text.split(b"."):
        if not 0 < len(label) <= 63 or label[0] == 0x2D or label[-1] == 0x2D:
            return False
        if not all(octet in _LET_DIG or octet in b"-_" or octet > 127 for octet in label):
            return False
    return text.isascii() or _utf8(text)


def is_address_literal(text: bytes) -> bool:
    """Whether text is `[IPv4]` or `[IPv6:address]` (RFC 5321 4.1.3). General literals have no registered use."""
    return literal_address(text) is not None


def literal_address(text: bytes) -> str | None:
    """The IP address of an address literal in its usual form, or None."""
    if len(text) < 3 or text[:1] != b"[" or text[-1:] != b"]" or not text.isascii():
        return None
    inner = text[1:-1].decode()
    try:
        if inner[:5].upper() == "IPV6:":
            return str(ipaddress.IPv6Address(inner[5:])) if "%" not in inner else None
        return str(ipaddress.IPv4Address(inner))
    except ValueError:
        return None


def address_literal(ip: str) -> bytes:
    """An IP address as the literal that Received lines and EHLO use."""
    return b"[IPv6:%b]" % ip.encode() if ":" in ip else b"[%b]" % ip.encode()


# --- what the above is made of

_UNQUALIFIED = -2


def _utf8(text: bytes) -> bool:
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    # Controls of C1 and separators that some readers take for line ends.
    return not any(
        0x80 <= ord(char) < 0xA0 or char in "\u2028\u2029\ufeff" for char in decoded if char > "\x7f"
    )


def _after_keyword(argument: bytes, keyword: bytes) -> int:
    """Where the path begins after FROM: or TO:, or -1."""
    size = len(keyword)
    if argument[:size].upper() != keyword:
        return -1
    # Outlook puts a space after "FROM:"; RFC 5321 3.3 forbids it, but no second meaning is possible.
    while argument[size : size + 1] in (b" ", b"\t") and size < len(argument):
        size += 1
    return size


def _path(text: bytes, start: int, qualify: bytes, null: bool) -> tuple[Path | None, int]:
    """The path at text[start:] and the offset after it; None with -1 or _UNQUALIFIED if there is none."""
    at_sign, end = _plain_path(text, start)
    if end > 0:
        original = text[start + 1 : end - 1]
        domain = text[at_sign + 1 : end - 1]
        if (
            at_sign - start - 1 > LOCAL_PART_OCTETS
            or len(domain) > DOMAIN_OCTETS
            or not _short_labels(domain)
        ):
            return None, -1
        if end < len(text) and text[end] not in b" \t":
            return None, -1
        lower = domain.lower()
        return Path(original if lower == domain else text[start + 1 : at_sign + 1] + lower, original), end
    if text[start : start + 1] == b"<":
        if text[start : start + 2] == b"<>":
            return (Path(b"", b""), start + 2) if null else (None, -1)
        at = _skip_route(text, start + 1)
        address, end = _mailbox(text, at, qualify) if at >= 0 else (None, -1)
        if address is None or text[end : end + 1] != b">":
            return None, end if address is None else -1
        original = text[at:end]
        end += 1
    else:
        address, end = _mailbox(text, start, qualify)
        if address is None:
            return None, end
        original = text[start:end]
    if not original.isascii() and not _utf8(original):
        return None, -1
    if end < len(text) and text[end] not in b" \t":
        return None, -1
    return Path(address, original, not original.isascii()), end


def _short_labels(domain: bytes) -> bool:
    return len(domain) < 64 or all(len(label) <= 63 for label in domain.split(b"."))


def _skip_route(text: bytes, at: int) -> int:
    """The offset after a source route `@a,@b:`, `at` itself if there is none, -1 if it is malformed."""
    if text[at : at + 1] != b"@":
        return at
    colon = text.find(b":", at)
    if colon < 0:
        return -1
    for hop in text[at:colon].split(b","):
        if hop[:1] != b"@" or not is_domain(hop[1:]):
            return -1
    return colon + 1


def _mailbox(text: bytes, at: int, qualify: bytes) -> tuple[bytes | None, int]:
    """The address at text[at:] in normal form and the offset after it."""
    begin = at
    size = len(text)
    if text[at : at + 1] == b'"':
        at = _quoted_end(text, at)
        if at < 0:
            return None, -1
        local_part = _unquoted(text[begin:at])
    else:
        while at < size and (text[at] in _ATEXT or text[at] > 127 or text[at] == 0x2E):
            at += 1
        local_part = text[begin:at]
        if not local_part or local_part[0] == 0x2E or local_part[-1] == 0x2E or b".." in local_part:
            return None, -1
    if at - begin > LOCAL_PART_OCTETS:
        return None, -1
    if text[at : at + 1] != b"@":
        if not qualify:
            return None, _UNQUALIFIED
        return local_part + b"@" + qualify, at
    at += 1
    begin = at
    if text[at : at + 1] == b"[":
        at = text.find(b"]", at) + 1
        if not at or not is_address_literal(text[begin:at]):
            return None, -1
    else:
        while at < size and (text[at] in _LET_DIG or text[at] in b"-_." or text[at] > 127):
            at += 1
        if not is_domain(text[begin:at]):
            return None, -1
    domain = text[begin:at]
    if domain.isascii():
        return local_part + b"@" + domain.lower(), at
    return (
        (local_part + b"@" + domain.decode("utf-8").lower().encode("utf-8"), at)
        if _utf8(domain)
        else (None, -1)
    )


def _quoted_end(text: bytes, at: int) -> int:
    """The offset after the quoted string that begins at `at`, or -1."""
    at += 1
    while at < len(text):
        octet = text[at]
        if octet == 0x22:
            return at + 1
        if octet == 0x5C:
            at += 1
            if at >= len(text) or not 32 <= text[at] < 127:
                return -1
        elif octet < 32 or octet == 127:
            return -1
        at += 1
    return -1


def _unquoted(quoted: bytes) -> bytes:
    """A quoted local part without quotes if it is a dot-string, else with no more backslashes than needed."""
    plain = bytearray()
    at = 1
    while at < len(quoted) - 1:
        if quoted[at] == 0x5C:
            at += 1
        plain.append(quoted[at])
        at += 1
    inner = bytes(plain)
    atoms = inner.split(b".")
    if all(atom and _ATEXT.issuperset(atom) for atom in atoms):
        return inner
    return b'"' + inner.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def _parameters(text: bytes, at: int) -> dict[bytes, bytes | None] | Reply:
    """The esmtp-params of text[at:], keywords in upper case."""
    given: dict[bytes, bytes | None] = {}
    for word in text[at:].replace(b"\t", b" ").split(b" "):
        if not word:
            continue
        key, equals, value = word.partition(b"=")
        key = key.upper()
        if not key or key[0] not in _LET_DIG or not all(octet in _LET_DIG or octet == 0x2D for octet in key):
            return replies.SYNTAX
        if equals and (not value or any(octet < 33 or octet == 127 or octet == 0x3D for octet in value)):
            return replies.SYNTAX
        if key in given:
            return replies.DUPLICATE_PARAMETER
        given[key] = value if equals else None
    return given


_NOTIFY = {b"SUCCESS": Notify.SUCCESS, b"FAILURE": Notify.FAILURE, b"DELAY": Notify.DELAY}


def _notify(value: bytes | None) -> int:
    """The bits of a NOTIFY value, 0 if it is wrong."""
    if value is None:
        return 0
    words = value.upper().split(b",")
    if words == [b"NEVER"]:
        return int(Notify.NEVER)
    bits = 0
    for word in words:
        bit = _NOTIFY.get(word)
        if bit is None:
            return 0
        bits |= bit
    return bits


def _original_recipient(value: bytes) -> bool:
    """Whether value is `addr-type;xtext` (RFC 3461 4.2; with addr-type utf-8 also UTF-8, RFC 6533 3)."""
    kind, semicolon, address = value.partition(b";")
    if not semicolon or not address or len(value) > ORCPT_OCTETS or not kind:
        return False
    if not all(octet in _ATEXT for octet in kind):
        return False
    if kind.lower() == b"utf-8":
        return _utf8(address)
    return unxtext(address) is not None
