"""SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, 7677), channel binding by RFC 5929.

The server holds no password, and what crosses the wire lets nobody log in who listened. With -PLUS the proof holds for this
TLS connection only, so one who sits in between with a certificate of his own gets nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from collections.abc import Mapping

from iems.sasl.exchange import (
    MALFORMED,
    MAX_OCTETS,
    WRONG,
    Base,
    Challenge,
    Keys,
    Lookup,
    Outcome,
    Proven,
    Refused,
    acts_for_itself,
    text_of,
)
from iems.sasl.prep import saslprep

SCHEME = "SCRAM-SHA-256"
#: RFC 7677 4.
MIN_ITERATIONS = 4096
MAX_ITERATIONS = 10_000_000
SALT_OCTETS = 16
MAX_NONCE_OCTETS = 1024

_FIRST = re.compile(
    rb"(n|y|p=([A-Za-z0-9.-]{1,64})),(?:a=([^,]*))?,(n=([^,]*),r=([!-+\--~]+)(?:,.*)?)", re.DOTALL
)
_FINAL = re.compile(rb"(c=([A-Za-z0-9+/=]*),r=([!-+\--~]+)(?:,.*)?),p=([A-Za-z0-9+/=]+)", re.DOTALL)


def make_keys(password: str, salt: bytes, iterations: int) -> Keys:
    """The keys to store for a password. Takes tens of milliseconds: call it in a thread.

    A password that SASLprep prohibits is taken as written, as a client that does not prepare would.
    """
    try:
        octets = saslprep(password).encode("utf-8", "surrogatepass")
    except ValueError:
        octets = password.encode("utf-8", "surrogatepass")
    salted = hashlib.pbkdf2_hmac("sha256", octets, salt, iterations)
    client = hmac.digest(salted, b"Client Key", "sha256")
    return Keys(
        hashlib.sha256(client).digest(), salt, iterations, hmac.digest(salted, b"Server Key", "sha256")
    )


def made_up(secret: bytes, login: str, iterations: int) -> Keys:
    """Keys for a name that has none: the salt is the same each time, so it tells nothing (RFC 5802 9)."""
    salt = hmac.digest(secret, b"scram salt\0" + login.encode("utf-8", "surrogatepass"), "sha256")
    return Keys(os.urandom(32), salt[:SALT_OCTETS], iterations, os.urandom(32), known=False)


class Scram(Base):
    """One exchange.

    plus: the mechanism is -PLUS. plus_offered: the client was offered it. bindings: channel binding type -> its data.
    nonce: the server's part, printable without comma; by default random.
    """

    def __init__(
        self,
        *,
        plus: bool = False,
        plus_offered: bool = False,
        bindings: Mapping[bytes, bytes] | None = None,
        nonce: bytes = b"",
    ) -> None:
        super().__init__()
        self._plus = plus
        self._plus_offered = plus_offered
        self._bindings = bindings or {}
        self._nonce = nonce or base64.b64encode(os.urandom(18))
        self._bound = b""
        self._client_first = b""
        self._server_first = b""
        self._stored: Keys | None = None
        self._proven = False

    def step(self, response: bytes) -> Outcome:
        """See `Exchange`."""
        if len(response) > MAX_OCTETS:
            return Refused(MALFORMED)
        if self._proven:
            # The last server message is a challenge here, answered by nothing (RFC 4954 4, RFC 9051 6.2.2).
            return Refused(MALFORMED) if response else Proven(self.login)
        if self._stored is not None:
            return self._final(response, self._stored)
        return self._first(response)

    def _first(self, message: bytes) -> Outcome:
        found = _FIRST.fullmatch(message)
        if found is None or self._client_first:
            return Refused(MALFORMED)
        flag, binding, authzid, bare, name, nonce = found.groups()
        login, acting = _name(name), _name(authzid or b"")
        if login is None or acting is None or len(nonce) > MAX_NONCE_OCTETS:
            return Refused(MALFORMED)
        self.login = login
        if self._plus != (binding is not None) or (flag == b"y" and self._plus_offered):
            # "y" says that we offer no -PLUS: if we do, somebody in between took it off the list (RFC 5802 6).
            return Refused(WRONG)
        data = b""
        if binding is not None:
            if binding not in self._bindings:
                return Refused(WRONG)
            data = self._bindings[binding]
        if not login or not acts_for_itself(acting, login):
            return Refused(WRONG)
        self._bound = message[: len(message) - len(bare)] + data
        self._client_first = bare
        self._nonce = nonce + self._nonce
        return Lookup(login, SCHEME)

    def found(self, keys: Keys) -> Outcome:
        """See `Exchange`."""
        self._stored = keys
        self._server_first = b"r=%b,s=%b,i=%d" % (self._nonce, base64.b64encode(keys.salt), keys.iterations)
        return Challenge(self._server_first)

    def _final(self, message: bytes, keys: Keys) -> Outcome:
        found = _FINAL.fullmatch(message)
        if found is None:
            return Refused(MALFORMED)
        without_proof, bound, nonce, encoded = found.groups()
        try:
            bound, proof = base64.b64decode(bound, validate=True), base64.b64decode(encoded, validate=True)
        except binascii.Error:
            return Refused(MALFORMED)
        signed = b",".join((self._client_first, self._server_first, without_proof))
        signature = hmac.digest(keys.stored, signed, "sha256")
        if len(proof) != len(signature):
            return Refused(MALFORMED)
        client = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
        right = hmac.compare_digest(hashlib.sha256(client).digest(), keys.stored)
        # All of it is looked at before anything is said.
        right &= hmac.compare_digest(bound, self._bound)
        right &= hmac.compare_digest(nonce, self._nonce)
        if not right or not keys.known:
            return Refused(WRONG)
        self._proven = True
        return Challenge(b"v=" + base64.b64encode(hmac.digest(keys.server, signed, "sha256")))


def _name(octets: bytes) -> str | None:
    """A saslname: `=2C` and `=3D` stand for comma and equals sign, and nothing else follows one (RFC 5802 5.1)."""
    parts = octets.split(b"=")
    if any(part[:2] not in (b"2C", b"3D") for part in parts[1:]):
        return None
    return text_of(octets.replace(b"=2C", b",").replace(b"=3D", b"="))
