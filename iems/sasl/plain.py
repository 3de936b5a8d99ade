"""PLAIN (RFC 4616) and LOGIN (draft-murchison-sasl-login): the password itself crosses the wire."""

from __future__ import annotations

from iems.sasl.exchange import (
    MALFORMED,
    MAX_OCTETS,
    WRONG,
    Base,
    Challenge,
    Outcome,
    Password,
    Refused,
    acts_for_itself,
    text_of,
)


class Plain(Base):
    """authzid NUL authcid NUL password: exactly two NULs."""

    def step(self, response: bytes) -> Outcome:
        """See `Exchange`."""
        if len(response) > MAX_OCTETS:
            return Refused(MALFORMED)
        parts = [text_of(part) for part in response.split(b"\0")]
        if len(parts) != 3 or None in parts:
            return Refused(MALFORMED)
        authzid, login, password = (part or "" for part in parts)
        self.login = login
        if not login or not password or not acts_for_itself(authzid, login):
            return Refused(WRONG)
        return Password(login, password)


class Login(Base):
    """Name and password, each after its prompt; an initial response is the name."""

    def start(self, initial: bytes | None) -> Outcome:
        """See `Exchange`."""
        return Challenge(b"Username:") if initial is None else self.step(initial)

    def step(self, response: bytes) -> Outcome:
        """See `Exchange`."""
        text = text_of(response)
        if not text:
            return Refused(MALFORMED if text is None else WRONG)
        if self.login:
            return Password(self.login, text)
        self.login = text
        return Challenge(b"Password:")
