"""OAUTHBEARER (RFC 7628) and XOAUTH2 (Google's, which it came from): a token of an authorization server logs in."""

from __future__ import annotations

import json
import re

from iems.sasl.exchange import (
    MALFORMED,
    MAX_OCTETS,
    WRONG,
    Base,
    Challenge,
    Outcome,
    Proven,
    Refused,
    Token,
    text_of,
)

_BEARER = re.compile(r"Bearer +([A-Za-z0-9._~+/=-]+) *", re.IGNORECASE)


class OAuth(Base):
    """One exchange.

    bearer: OAUTHBEARER, else XOAUTH2. scope, configuration: what a refused client is told (RFC 7628 3.2.2): the scope to ask
    for and the address of the authorization server's metadata; "" leaves them out.
    """

    def __init__(self, *, bearer: bool, scope: str = "", configuration: str = "") -> None:
        super().__init__()
        self._bearer = bearer
        self._refused = False
        self._asked = False
        error = {"status": "invalid_token" if bearer else "401"}
        if not bearer:
            error["schemes"] = "bearer"
        if scope:
            error["scope"] = scope
        if configuration and bearer:
            error["openid-configuration"] = configuration
        self._error = json.dumps(error, separators=(",", ":")).encode()

    def step(self, response: bytes) -> Outcome:
        """See `Exchange`."""
        if self._refused:
            # The client owes one octet, %x01, and gets the failure for it (RFC 7628 3.2.3); whatever it sent.
            return Refused(WRONG)
        if len(response) > MAX_OCTETS or self._asked:
            return Refused(MALFORMED)
        head, *fields = response.split(b"\x01")
        # Each field ends with %x01, and one more ends the message.
        if len(fields) < 3 or fields[-1] or fields[-2]:
            return Refused(MALFORMED)
        values: dict[str, str] = {}
        for field in fields[:-2]:
            text = text_of(field)
            name, equals, value = (text or "").partition("=")
            if not equals or not name.isalpha() or name in values:
                return Refused(MALFORMED)
            values[name] = value
        login = self._name(head)
        found = _BEARER.fullmatch(values.get("auth", ""))
        if login is None:
            return Refused(MALFORMED)
        self.login = login
        if found is None:
            # RFC 7628 4.3: an empty auth field asks what would be needed.
            return self._refuse()
        self._asked = True
        return Token(login, found[1])

    def _name(self, head: bytes) -> str | None:
        """The user's name in the first part: a GS2 header, or `user=NAME`."""
        text = text_of(head)
        if text is None:
            return None
        if not self._bearer:
            return text[5:] if text.startswith("user=") and len(text) > 5 else None
        parts = text.split(",")
        # "p=" asks for channel binding, which no bearer token has.
        if len(parts) != 3 or parts[0] not in ("n", "y") or parts[2]:
            return None
        if not parts[1]:
            return ""
        return parts[1][2:].replace("=2C", ",").replace("=3D", "=") if parts[1].startswith("a=") else None

    def token(self, good: bool) -> Outcome:
        """See `Exchange`."""
        return Proven(self.login) if good else self._refuse()

    def _refuse(self) -> Outcome:
        self._refused = True
        return Challenge(self._error)
