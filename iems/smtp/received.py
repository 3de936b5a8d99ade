"""The Received line a server puts on top of what it accepts (RFC 5321 4.4; protocol names RFC 3848, 6531)."""

from __future__ import annotations

import time

from iems.smtp.grammar import address_literal

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_last = (-1, b"")
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._:[]")


def date(now_s: int) -> bytes:
    """A date-time of RFC 5322 3.3 in UTC. Made once a second; now_s: whole seconds since 1970."""
    global _last
    if _last[0] != now_s:
        t = time.gmtime(now_s)
        text = (
            f"{_DAYS[t.tm_wday]}, {t.tm_mday:d} {_MONTHS[t.tm_mon - 1]} {t.tm_year:04d}"
            f" {t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d} +0000"
        )
        _last = now_s, text.encode()
    return _last[1]


def protocol(*, lmtp: bool, esmtp: bool, secure: bool, authenticated: bool, utf8: bool) -> bytes:
    """The `with` protocol: SMTP, ESMTP, ESMTPS, ESMTPA, ESMTPSA, LMTP..., UTF8SMTP..."""
    name = b"LMTP" if lmtp else (b"SMTP" if utf8 else b"ESMTP") if esmtp else b"SMTP"
    return (b"UTF8" if utf8 else b"") + name + (b"S" if secure else b"") + (b"A" if authenticated else b"")


def safe_domain(helo: bytes) -> bytes:
    """The name given in EHLO, made safe for a header: what is no part of a domain or address literal becomes `?`."""
    if _PLAIN.issuperset(helo):
        return helo
    return bytes(octet if octet in _PLAIN else 0x3F for octet in helo)


def prefix(*, helo: bytes, client_ip: str, by: bytes, protocol: bytes, tls: bytes = b"") -> bytes:
    """All of the line that is the same for every message of a session, up to and with `id `.

    client_ip: b"" where there is none. tls: `TLSv1.3 with cipher ...`, shown as a comment.
    """
    origin = safe_domain(helo) or b"unknown"
    if client_ip:
        origin += b" (" + address_literal(client_ip) + b")"
    comment = b"\r\n\t(using " + tls + b")" if tls else b""
    return b"Received: from " + origin + comment + b"\r\n\tby " + by + b" with " + protocol + b" id "


def line(prefix: bytes, id_text: str, recipient: bytes, now_s: int) -> bytes:
    """The whole line. recipient: the address if there is only one (others must not learn of each other), else b""."""
    to = b"\r\n\tfor <" + recipient + b">; " if recipient else b";\r\n\t"
    return prefix + id_text.encode() + to + date(now_s) + b"\r\n"
