"""The sender rewriting scheme: a reverse path of somebody else's made into one of ours that only we can undo. Pure.

    SRS0=HASH=TT=example.net=anna@our.domain          anna@example.net, forwarded by us
    SRS1=HASH=first.hop==HASH=TT=example.net=anna@our.domain   SRS0=HASH=TT=example.net=anna@first.hop, forwarded by us

HASH is an HMAC over what follows it, TT the day. Both are letters and digits that bear a change of case on their way.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from typing import Final

#: How long bounces may take: days after which an address is no longer undone.
VALID_DAYS: Final = 21
HASH_LENGTH: Final = 6
_DAYS: Final = 1024
_ALPHABET: Final = b"abcdefghijklmnopqrstuvwxyz234567"
MAX_LOCAL_OCTETS: Final = 64

_TAG = re.compile(rb"srs([01])[=+-]", re.I)
_SRS0 = re.compile(rb"([a-z2-7]{6})=([a-z2-7]{2})=([^=@]+)=(.+)\Z", re.I | re.S)
_SRS1 = re.compile(rb"([a-z2-7]{6})=([^=@]+)=([=+-].+)\Z", re.I | re.S)


class Forged(ValueError):
    """An address of this scheme that we did not make, or made too long ago."""


class Rewriter:
    """Makes and undoes addresses. secret: at least 16 octets, the same on all hosts of the domain. domain: ours.

    Raises ValueError for a secret that is too short.
    """

    def __init__(self, secret: bytes, domain: str) -> None:
        if len(secret) < 16:
            raise ValueError("the secret for SRS has fewer than 16 octets")
        self._secret = secret
        self.domain = domain.lower().encode("ascii")

    def _hash(self, *parts: bytes) -> bytes:
        digest = hmac.digest(self._secret, b"\0".join(parts).lower(), hashlib.sha256)
        return base64.b32encode(digest)[:HASH_LENGTH].lower()

    def encode(self, reverse_path: bytes, day: int) -> bytes:
        """The reverse path to forward with. day: days since 1970. What would be too long (64 octets before the `@`), quoted,
        ours already or null is given back as it is."""
        local, _, domain = reverse_path.rpartition(b"@")
        if (
            not local
            or not domain
            or b"=" in domain
            or domain.lower() == self.domain
            or local[:1] == b'"'
            or domain[:1] == b"["
        ):
            return reverse_path
        tag = _TAG.match(local)
        if tag is None:
            stamp = bytes((_ALPHABET[day % _DAYS >> 5], _ALPHABET[day % 32]))
            made = b"SRS0=%b=%b=%b=%b" % (self._hash(b"0", stamp, domain, local), stamp, domain, local)
        else:
            rest = local[tag.end() - 1 :]
            if tag[1] == b"1":
                inner = _SRS1.match(local[tag.end() :])
                if inner is None:
                    return reverse_path
                domain, rest = inner[2], inner[3]
            made = b"SRS1=%b=%b=%b" % (self._hash(b"1", domain, rest), domain, rest)
        return made + b"@" + self.domain if len(made) <= MAX_LOCAL_OCTETS else reverse_path

    def decode(self, address: bytes, day: int) -> bytes | None:
        """Where mail to an address made by `encode` goes; None if it is no address of this scheme in our domain.

        Raises Forged.
        """
        local, _, domain = address.rpartition(b"@")
        tag = _TAG.match(local)
        if tag is None or domain.lower() != self.domain:
            return None
        rest = local[tag.end() :]
        if tag[1] == b"1":
            match = _SRS1.match(rest)
            if match is None or not hmac.compare_digest(
                match[1].lower(), self._hash(b"1", match[2], match[3])
            ):
                raise Forged("no SRS1 address of ours")
            return b"SRS0" + match[3] + b"@" + match[2]
        match = _SRS0.match(rest)
        if match is None or not hmac.compare_digest(
            match[1].lower(), self._hash(b"0", match[2], match[3], match[4])
        ):
            raise Forged("no SRS0 address of ours")
        high, low = (_ALPHABET.index(letter) for letter in match[2].lower())
        if (day - (high * 32 + low)) % _DAYS > VALID_DAYS:
            raise Forged("an SRS0 address that is too old")
        return match[4] + b"@" + match[3]
