"""Password hashes: Argon2id, 19 MiB, two passes, one lane (OWASP's second choice; 42 ms where it was measured).

Passwords are compared in NFKC, so one typed on another system's keyboard is the same (the useful part of RFC 8265).
"""

from __future__ import annotations

import unicodedata

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

MAX_PASSWORD_OCTETS = 4096

_hasher = PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1, hash_len=32, salt_len=16)

#: A hash no password has: verified for unknown users, so their refusal takes as long as a wrong password.
NOBODY = "$argon2id$v=19$m=19456,t=2,p=1$XhlXsifqG6udpCOP6PLwpQ$PmldZD3BdsYZOrgOzM20KSOTPaUj5TSIIjshEHnIzps"


def octets_of(password: str) -> bytes:
    """The octets that are hashed."""
    if not password.isascii():
        password = unicodedata.normalize("NFKC", password)
    return password.encode("utf-8", "surrogatepass")


def hash_password(password: str) -> str:
    """The hash to store. Any non-empty password is allowed; raises ValueError for none or more than 4,096 octets."""
    octets = octets_of(password)
    if not octets:
        raise ValueError("the password is empty")
    if len(octets) > MAX_PASSWORD_OCTETS:
        raise ValueError(f"the password has more than {MAX_PASSWORD_OCTETS} octets")
    return _hasher.hash(octets)


def verify(stored: str, password: str) -> bool:
    """Whether the password is the one of the hash. Takes tens of milliseconds and no GIL: call it in a thread."""
    octets = octets_of(password)
    if not octets or len(octets) > MAX_PASSWORD_OCTETS:
        return False
    try:
        return bool(_hasher.verify(stored, octets))
    except (Argon2Error, InvalidHashError):
        return False
