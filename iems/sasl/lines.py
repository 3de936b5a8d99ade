"""Base64 as the three protocols carry it: strict, one line, bounded."""

from __future__ import annotations

import base64
import binascii

from iems.sasl.exchange import MALFORMED, MAX_OCTETS, Exchange, Outcome, Refused


def decode(line: bytes) -> bytes | None:
    """The octets of a line of base64, None if it is none: no blanks, no missing padding, no more than MAX_OCTETS."""
    try:
        octets = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        return None
    return octets if len(octets) <= MAX_OCTETS else None


def encode(octets: bytes) -> bytes:
    """A challenge as it is sent."""
    return base64.b64encode(octets)


def first(exchange: Exchange, initial: bytes | None) -> Outcome:
    """Start an exchange with the initial response as written: base64, `=` for an empty one, None for none."""
    if initial is None:
        return exchange.start(None)
    octets = b"" if initial == b"=" else decode(initial)
    return Refused(MALFORMED) if octets is None else exchange.start(octets)
