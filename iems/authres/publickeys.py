"""Key records of DKIM and ARC (RFC 6376 3.6.1, 8301, 8463): from DNS to a key that verifies."""

from __future__ import annotations

import base64
import binascii
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key
from msgspec import Struct

from iems.authres.asking import Lookup, texts
from iems.authres.tags import BadTags, parse, solid

#: RSA: shorter keys are broken (RFC 8301 3.2), longer ones only cost time.
MIN_BITS: Final = 1024
MAX_BITS: Final = 8192
#: Bits of a public exponent; 65537 has 17, and a long one makes verifying slow.
MAX_EXPONENT_BITS: Final = 32
#: Octets of a record that are read, and records of one name that are tried.
MAX_RECORD: Final = 8192
MAX_RECORDS: Final = 4

_PADDING = PKCS1v15()
_SHA256 = SHA256()


class BadKey(Exception):
    """A key that can't be used. word: the result for the signature, `permerror` or `policy`."""

    def __init__(self, word: str, problem: str) -> None:
        super().__init__(problem)
        self.word = word


class PublicKey(Struct, frozen=True):
    """A key of a domain. strict: i= must be d= itself (t=s). testing: t=y. bits: 256 for Ed25519."""

    algorithm: str
    key: RSAPublicKey | Ed25519PublicKey
    bits: int
    strict: bool = False
    testing: bool = False

    def verifies(self, signature: bytes, digest_of: bytes, digest: bytes) -> bool:
        """Whether `signature` is of the octets `digest_of`, whose SHA-256 is `digest`."""
        try:
            if isinstance(self.key, Ed25519PublicKey):
                self.key.verify(signature, digest)
            else:
                self.key.verify(signature, digest_of, _PADDING, _SHA256)
        except InvalidSignature:
            return False
        return True


@lru_cache(maxsize=4096)
def read_key(record: bytes) -> PublicKey:
    """The key in a TXT record. Raises BadKey. Kept: parsing costs more than verifying."""
    if len(record) > MAX_RECORD:
        raise BadKey("policy", f"a key record of {len(record)} octets")
    try:
        tags = parse(record)
    except BadTags as cause:
        raise BadKey("permerror", f"no key record: {cause}") from None
    if "p" not in tags or ("v" in tags and (tags["v"] != "DKIM1" or next(iter(tags)) != "v")):
        raise BadKey("permerror", "no key record")
    if not tags["p"]:
        raise BadKey("permerror", "the key is revoked")
    if "h" in tags and "sha256" not in solid(tags["h"]).lower().split(":"):
        raise BadKey("permerror", "the key is not for sha256")
    if "s" in tags and not {"*", "email"} & set(solid(tags["s"]).lower().split(":")):
        raise BadKey("permerror", "the key is not for mail")
    algorithm = tags.get("k", "rsa").lower()
    try:
        octets = base64.b64decode(solid(tags["p"]).encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise BadKey("permerror", "p= is no base64") from None
    flags = solid(tags.get("t", "")).lower().split(":")
    strict, testing = "s" in flags, "y" in flags
    if algorithm == "ed25519":
        try:
            return PublicKey(algorithm, Ed25519PublicKey.from_public_bytes(octets), 256, strict, testing)
        except ValueError:
            raise BadKey("permerror", "no Ed25519 key") from None
    if algorithm != "rsa":
        raise BadKey("permerror", f"unknown kind of key {algorithm[:20]!r}")
    try:
        key = load_der_public_key(octets)
    except (ValueError, UnsupportedAlgorithm):
        raise BadKey("permerror", "no RSA key") from None
    if not isinstance(key, RSAPublicKey):
        raise BadKey("permerror", "no RSA key")
    if not MIN_BITS <= key.key_size <= MAX_BITS:
        raise BadKey("policy", f"an RSA key of {key.key_size} bits")
    if key.public_numbers().e.bit_length() > MAX_EXPONENT_BITS:
        raise BadKey("policy", "an RSA key with a long exponent")
    return PublicKey(algorithm, key, key.key_size, strict, testing)


async def find_key(lookup: Lookup, domain: str, selector: str, algorithm: str) -> PublicKey:
    """The key `selector` of a domain for signatures of `algorithm`. Raises BadKey, DnsFailure."""
    problem = BadKey("permerror", "no key")
    for record in (await texts(lookup, f"{selector}._domainkey.{domain}"))[:MAX_RECORDS]:
        try:
            key = read_key(record)
        except BadKey as cause:
            problem = cause
            continue
        if key.algorithm == algorithm:
            return key
        problem = BadKey("permerror", "the key is of another kind")
    raise problem
