"""SASL on the server's side (RFC 4422), for SMTP, IMAP and POP3 alike, without I/O.

`begin` gives an exchange; `start` and `step` take what the client sends, already out of base64, and give an outcome: a
challenge to send, a question for whoever knows the users (`Password`, `Lookup`, `Token`), or the end (`Proven`, `Refused`).
Who the users are is the directory's business, and so is what a failure costs; lines and base64 are the protocols'.
"""

from iems.sasl.exchange import (
    MALFORMED,
    MAX_OCTETS,
    WRONG,
    Challenge,
    Exchange,
    Keys,
    Lookup,
    Outcome,
    Password,
    Proven,
    Refused,
    Token,
)
from iems.sasl.lines import decode, encode, first
from iems.sasl.offer import NO_BINDINGS, NOTHING, Offer, begin

__all__ = [
    "MALFORMED",
    "MAX_OCTETS",
    "NOTHING",
    "NO_BINDINGS",
    "WRONG",
    "Challenge",
    "Exchange",
    "Keys",
    "Lookup",
    "Offer",
    "Outcome",
    "Password",
    "Proven",
    "Refused",
    "Token",
    "begin",
    "decode",
    "encode",
    "first",
]
