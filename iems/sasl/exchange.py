"""What every mechanism's exchange gives and takes."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

#: Octets of one message of a client, out of base64; RFC 4954 4 lets a line have 12,288 in base64.
MAX_OCTETS = 9216

#: Why an exchange was refused: the client's message makes no sense, or name and proof don't go together.
MALFORMED = "malformed"
WRONG = "wrong"


class Challenge(Struct, frozen=True):
    """Send these octets; what the client answers goes to `Exchange.step`."""

    octets: bytes


class Password(Struct, frozen=True):
    """Is this the password? The exchange is over; nobody need be told the answer."""

    login: str
    password: str


class Lookup(Struct, frozen=True):
    """What is stored for this name? Answer with `Exchange.found`. scheme: "SCRAM-SHA-256" or "CRAM-MD5"."""

    login: str
    scheme: str


class Token(Struct, frozen=True):
    """Is this token one of this user? login: as the client names itself, "" if it does not. Answer: `Exchange.token`."""

    login: str
    token: str


class Proven(Struct, frozen=True):
    """The client has proven that it is this user; whether that one may log in is for the directory to say."""

    login: str


class Refused(Struct, frozen=True):
    """The exchange failed. why: MALFORMED or WRONG."""

    why: str


class Keys(Struct, frozen=True):
    """What is stored for a name. known: False for keys made up for a name that has none; no proof fits them.

    SCRAM-SHA-256: salt, iterations, stored, server (RFC 5802 3). CRAM-MD5: stored is the key of the HMAC.
    """

    stored: bytes
    salt: bytes = b""
    iterations: int = 0
    server: bytes = b""
    known: bool = True


Outcome = Challenge | Password | Lookup | Token | Proven | Refused


class Exchange(Protocol):
    """One authentication under way.

    login: the name given so far, "" before. keys, scheme: for whoever answers `Lookup`, to note what the proof will be of.
    """

    login: str
    keys: Keys | None
    scheme: str

    def start(self, initial: bytes | None) -> Outcome:
        """Begin. initial: the initial response, None if there is none; b"" is an empty one."""

    def step(self, response: bytes) -> Outcome:
        """Go on with the client's answer to a challenge."""

    def found(self, keys: Keys) -> Outcome:
        """Go on with the answer to `Lookup`."""

    def token(self, good: bool) -> Outcome:
        """Go on with the answer to `Token`."""


class Base:
    """An exchange that asks nothing; mechanisms override what they have."""

    def __init__(self) -> None:
        self.login = ""
        self.keys: Keys | None = None
        self.scheme = ""

    def start(self, initial: bytes | None) -> Outcome:
        """See `Exchange`; by default the client begins, after an empty challenge if it sent nothing."""
        return Challenge(b"") if initial is None else self.step(initial)

    def step(self, response: bytes) -> Outcome:
        """See `Exchange`."""
        return Refused(MALFORMED)

    def found(self, keys: Keys) -> Outcome:
        """See `Exchange`."""
        return Refused(MALFORMED)

    def token(self, good: bool) -> Outcome:
        """See `Exchange`."""
        return Refused(MALFORMED)


def text_of(octets: bytes) -> str | None:
    """UTF-8 without NUL and within MAX_OCTETS, else None."""
    if len(octets) > MAX_OCTETS or b"\0" in octets:
        return None
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        return None


def acts_for_itself(authzid: str, login: str) -> bool:
    """Whether an authorization identity is absent or the user's own: nobody acts for another here."""
    return authzid.lower() in ("", login.lower())
