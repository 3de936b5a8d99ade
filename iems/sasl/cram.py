"""CRAM-MD5 (RFC 2195), for clients that know nothing better. It needs a key as good as the password in store, so it is off
by default, and works only for passwords set while it was on.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time

from iems.sasl.exchange import (
    MALFORMED,
    WRONG,
    Base,
    Challenge,
    Keys,
    Lookup,
    Outcome,
    Proven,
    Refused,
    text_of,
)

SCHEME = "CRAM-MD5"


def make_key(password: str) -> Keys:
    """The key to store: what HMAC-MD5 makes of a password (RFC 2104 2), which is one of 64 octets or fewer itself."""
    octets = password.encode("utf-8", "surrogatepass")
    if len(octets) > 64:
        octets = hashlib.md5(octets, usedforsecurity=False).digest()
    return Keys(octets)


class CramMd5(Base):
    """One exchange. challenge: for tests; by default of a random number, the time and the host's name."""

    def __init__(self, hostname: str, challenge: bytes = b"") -> None:
        super().__init__()
        self._challenge = challenge or b"<%b.%d@%b>" % (
            os.urandom(12).hex().encode(),
            int(time.time()),
            hostname.encode("ascii", "replace"),
        )
        self._digest = b""

    def start(self, initial: bytes | None) -> Outcome:
        """See `Exchange`; the server begins, so there is no initial response."""
        return Challenge(self._challenge) if initial is None else Refused(MALFORMED)

    def step(self, response: bytes) -> Outcome:
        """See `Exchange`."""
        name, _, digest = response.rpartition(b" ")
        login = text_of(name)
        if login is None or len(digest) != 32:
            return Refused(MALFORMED)
        self.login = login
        if not login:
            return Refused(WRONG)
        self._digest = digest.lower()
        return Lookup(login, SCHEME)

    def found(self, keys: Keys) -> Outcome:
        """See `Exchange`."""
        wanted = hmac.new(keys.stored, self._challenge, "md5").hexdigest().encode()
        right = hmac.compare_digest(wanted, self._digest)
        return Proven(self.login) if right and keys.known else Refused(WRONG)
