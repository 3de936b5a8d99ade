"""Signatures of ours: DKIM-Signature fields for mail that leaves (RFC 6376 5; 8301: RSA of 2048 bits; 8463: Ed25519)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from iems.authres.canonical import Field
from iems.authres.dkim import signed_octets
from iems.authres.mail import Mail

RSA_BITS: Final = 2048
ALGORITHMS: Final = ("rsa", "ed25519")

#: Named once more than they occur, so that none can be added (RFC 6376 8.15).
OVERSIGNED: Final = (
    b"from", b"to", b"cc", b"reply-to", b"subject", b"date", b"message-id",
    b"mime-version", b"content-type", b"content-transfer-encoding",
)  # fmt: skip
#: Signed as often as they occur.
SIGNED: Final = (
    b"sender", b"in-reply-to", b"references", b"content-id", b"content-description", b"resent-from", b"resent-to", b"resent-cc",
    b"resent-date", b"resent-message-id", b"list-id", b"list-help", b"list-unsubscribe", b"list-unsubscribe-post",
    b"list-subscribe", b"list-post", b"list-owner", b"list-archive", b"autocrypt",
)  # fmt: skip

PrivateKey = RSAPrivateKey | Ed25519PrivateKey


class Signer:
    """Signs as `selector`._domainkey.`domain`."""

    def __init__(self, domain: str, selector: str, key: PrivateKey) -> None:
        self.domain = domain
        self.selector = selector
        self._key = key
        self.algorithm = "ed25519-sha256" if isinstance(key, Ed25519PrivateKey) else "rsa-sha256"

    def signature(self, octets: bytes) -> bytes:
        """The signature of the octets, as base64."""
        if isinstance(self._key, Ed25519PrivateKey):
            return base64.b64encode(self._key.sign(hashlib.sha256(octets).digest()))
        return base64.b64encode(self._key.sign(octets, PKCS1v15(), SHA256()))

    async def sign(self, mail: Mail, now_s: int) -> bytes:
        """The DKIM-Signature field for a message, its CRLF included."""
        digest, _ = (await mail.body_hashes({(True, None)}))[True, None]
        names = names_to_sign(mail.fields)
        field = folded(
            b"DKIM-Signature",
            [
                b"v=1",
                b"a=" + self.algorithm.encode(),
                b"c=relaxed/relaxed",
                b"d=" + self.domain.encode(),
                b"s=" + self.selector.encode(),
                b"t=%d" % now_s,
                b"h=" + b":".join(names),
                b"bh=" + base64.b64encode(digest),
                b"b=",
            ],
        )
        return field + folded_value(
            self.signature(signed_octets(mail.fields, names, b"dkim-signature", field, True))
        )


def names_to_sign(fields: Sequence[Field], more: Sequence[bytes] = ()) -> list[bytes]:
    """The names for h=. more: further ones, signed as often as they occur."""
    counts: dict[bytes, int] = {}
    for name, _ in fields:
        counts[name] = counts.get(name, 0) + 1
    names: list[bytes] = []
    for name in OVERSIGNED:
        names += [name] * (min(counts.get(name, 0), 20) + 1)
    for name in (*SIGNED, *more):
        names += [name] * min(counts.get(name, 0), 20)
    return names


def folded(name: bytes, tags: Sequence[bytes]) -> bytes:
    """A field of these tags, at most 78 columns a line where values can be folded; it ends with the last tag, without CRLF."""
    out, column = bytearray(name + b":"), len(name) + 1
    for at, tag in enumerate(tags):
        text = tag + (b";" if at < len(tags) - 1 else b"")
        if column + 1 + len(text) > 78 and column > 1:
            out += b"\r\n\t"
            column = 8
        else:
            out += b" "
            column += 1
        while len(text) + column > 78:
            # h= and base64 may be folded; of h= behind a colon.
            room = 78 - column
            cut = text.rfind(b":", 0, room) + 1 if tag.startswith(b"h=") else room
            if cut <= 0:
                break
            out += text[:cut] + b"\r\n\t"
            text, column = text[cut:], 8
        out += text
        column += len(text)
    return bytes(out)


def folded_value(value: bytes) -> bytes:
    """A long base64 value on lines of its own, with the CRLF that ends the field."""
    return b"".join(b"\r\n\t" + value[at : at + 70] for at in range(0, len(value), 70)) + b"\r\n"


def new_key(algorithm: str) -> PrivateKey:
    """A new private key. algorithm: "rsa" (2048 bits) or "ed25519"."""
    if algorithm == "ed25519":
        return Ed25519PrivateKey.generate()
    return generate_private_key(public_exponent=65_537, key_size=RSA_BITS)


def key_pem(key: PrivateKey) -> str:
    """The key as PEM, unencrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def read_pem(pem: bytes) -> PrivateKey:
    """The key in PEM. Raises ValueError if it is none for DKIM, or RSA of fewer than 1024 bits."""
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError) as cause:
        raise ValueError("no private key in PEM without a password") from cause
    if isinstance(key, Ed25519PrivateKey) or (isinstance(key, RSAPrivateKey) and key.key_size >= 1024):
        return key
    raise ValueError("neither Ed25519 nor RSA of 1024 bits or more")


def record(key: PrivateKey) -> str:
    """The text of the TXT record for a key (RFC 6376 3.6.1; 8463 4 for Ed25519)."""
    if isinstance(key, Ed25519PrivateKey):
        octets = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return "v=DKIM1; k=ed25519; p=" + base64.b64encode(octets).decode()
    octets = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return "v=DKIM1; k=rsa; p=" + base64.b64encode(octets).decode()
