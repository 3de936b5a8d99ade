"""Access tokens of an authorization server (JWT, RFC 7519, 9068), checked here against its keys: nobody is asked over the network."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iems.config import Auth

#: Signatures with a private key. HMAC is left out: its key would be as secret as a password, and a public one mistaken for it a hole.
ALGORITHMS = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519", "Ed448",
]  # fmt: skip
#: Seconds by which clocks may differ.
LEEWAY_S = 60
MAX_JWKS_OCTETS = 1 << 20


class Tokens:
    """Says whom a token is for.

    jwks: the file of keys, read again when it changes; one that can't be used keeps the keys there were. issuer, audience: what a token
    must say. claim: names the user. scope: must be among those of the token, "" for any. error: told what is wrong with the file.
    """

    def __init__(
        self,
        jwks: Path,
        *,
        issuer: str,
        audience: str,
        claim: str = "email",
        scope: str = "",
        error: Callable[[str, BaseException], None] = lambda text, fault: None,
    ) -> None:
        self._path = jwks
        self._issuer = issuer
        self._audience = audience
        self._claim = claim
        self._scope = scope
        self._error = error
        self._keys: Any = None
        self._read_of: tuple[int, int, int] | None = None

    @classmethod
    def of(cls, auth: Auth, home: Path, error: Callable[[str, BaseException], None]) -> Tokens | None:
        """As the section [auth] says; None if the keys, the issuer or the audience are not set."""
        if not (auth.oauth_jwks and auth.oauth_issuer and auth.oauth_audience):
            return None
        return cls(
            home / auth.oauth_jwks,
            issuer=auth.oauth_issuer,
            audience=auth.oauth_audience,
            claim=auth.oauth_claim,
            scope=auth.oauth_scope,
            error=error,
        )

    def user(self, token: str) -> str:
        """The user a token names, "" if it is not good. Reads a file and checks a signature: call it in a thread."""
        from joserfc import jwt
        from joserfc.errors import JoseError

        keys = self._current()
        if keys is None:
            return ""
        try:
            claims = jwt.decode(token, keys, algorithms=ALGORITHMS).claims
            jwt.JWTClaimsRegistry(
                leeway=LEEWAY_S,
                iss={"essential": True, "value": self._issuer},
                aud={"essential": True, "value": self._audience},
                exp={"essential": True},
            ).validate(claims)
        except (JoseError, ValueError, TypeError, KeyError, RecursionError):
            return ""
        user = claims.get(self._claim)
        if not isinstance(user, str) or (self._claim == "email" and claims.get("email_verified") is False):
            return ""
        scopes = claims.get("scope")
        if self._scope and self._scope not in (scopes.split() if isinstance(scopes, str) else ()):
            return ""
        return user

    def _current(self) -> Any:
        """The keys as the file has them now."""
        from joserfc.errors import JoseError
        from joserfc.jwk import KeySet

        try:
            found = os.stat(self._path)
            state = found.st_mtime_ns, found.st_size, found.st_ino
            if state != self._read_of:
                self._read_of = state
                if found.st_size > MAX_JWKS_OCTETS:
                    raise ValueError(f"more than {MAX_JWKS_OCTETS} octets")
                keys = json.loads(self._path.read_bytes())["keys"]
                self._keys = KeySet.import_key_set({"keys": [key for key in keys if key.get("kty") != "oct"]})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, JoseError) as fault:
            self._error(f"{self._path} can't be used", fault)
        return self._keys


def is_jwt(token: str) -> bool:
    """Whether a token has the form of a signed JWT (RFC 7515 3.1): three parts, the first a JSON object with `alg`."""
    head, *rest = token.split(".")
    if len(rest) != 2:
        return False
    try:
        found = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "alg" in found
