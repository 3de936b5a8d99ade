"""What is kept of a password beside its hash, so that log-ins work which never send it: values of `authPassword`.

SCRAM keys as RFC 5803 has them (`SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`); for CRAM-MD5 the key of its HMAC, which is
as good as the password, in the same form. All are made when a password is set, or at the next log-in that shows it.
"""

from __future__ import annotations

import base64
import binascii
import os
from typing import TYPE_CHECKING

from msgspec import Struct

from iems.sasl import cram, scram
from iems.sasl.exchange import Keys

if TYPE_CHECKING:
    from iems.config import Auth

ATTRIBUTE = "authPassword"


class Forms(Struct, frozen=True):
    """What to keep. iterations: of SCRAM-SHA-256, 0 for no such keys."""

    iterations: int = 0
    cram_md5: bool = False

    @classmethod
    def of(cls, auth: Auth) -> Forms:
        """As the section [auth] says."""
        return cls(auth.scram_iterations if auth.scram else 0, auth.cram_md5)

    @property
    def schemes(self) -> frozenset[str]:
        """The schemes that are kept."""
        wanted = {scram.SCHEME: bool(self.iterations), cram.SCHEME: self.cram_md5}
        return frozenset(scheme for scheme, kept in wanted.items() if kept)


NO_FORMS = Forms()


def stored(password: str, forms: Forms) -> list[str]:
    """The values to keep for a password. Takes tens of milliseconds."""
    values = []
    if forms.iterations:
        keys = scram.make_keys(password, os.urandom(scram.SALT_OCTETS), forms.iterations)
        values.append(
            f"{scram.SCHEME}${keys.iterations}:{_text(keys.salt)}${_text(keys.stored)}:{_text(keys.server)}"
        )
    if forms.cram_md5:
        values.append(f"{cram.SCHEME}$${_text(cram.make_key(password).stored)}")
    return values


def scheme_of(value: str) -> str:
    """The scheme of a value."""
    return value.partition("$")[0]


def keys_of(values: tuple[str, ...], scheme: str) -> Keys | None:
    """The keys of a scheme among the values of an account, None if there are none that can be used."""
    for value in values:
        name, _, rest = value.partition("$")
        if name != scheme:
            continue
        info, _, secret = rest.partition("$")
        try:
            if scheme == cram.SCHEME:
                return Keys(_octets(secret))
            iterations, _, salt = info.partition(":")
            kept, _, server = secret.partition(":")
            keys = Keys(_octets(kept), _octets(salt), int(iterations), _octets(server))
        except (binascii.Error, ValueError):
            return None
        return keys if len(keys.stored) == len(keys.server) == 32 and keys.salt else None
    return None


def _text(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


def _octets(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
