"""Joins an exchange of SASL to those who know the users: what the three protocols do with an outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from iems.sasl import (
    WRONG,
    Challenge,
    Exchange,
    Keys,
    Lookup,
    Offer,
    Outcome,
    Password,
    Proven,
    Refused,
    Token,
)

if TYPE_CHECKING:
    from iems.directory.entries import Account


class Logins(Protocol):
    """What is asked of the authenticator; see there."""

    offer: Offer

    async def check(self, login: str, password: str, peer_ip: str) -> Account | None:
        """The account, if the password is its; None if not."""

    def keys(self, login: str, scheme: str, peer_ip: str) -> Keys:
        """What a SCRAM or CRAM-MD5 exchange is checked with."""

    async def proven(self, login: str, keys: Keys | None, scheme: str, peer_ip: str) -> Account | None:
        """The account, after an exchange that proved it."""

    async def token(self, login: str, token: str, peer_ip: str) -> Account | None:
        """The account a bearer token names; None if it is no good."""

    async def failed(self, login: str, peer_ip: str) -> None:
        """Note a failure, and wait as long as that costs."""


async def settle(
    logins: Logins, exchange: Exchange, outcome: Outcome, peer_ip: str
) -> Challenge | Account | Refused:
    """What comes of an outcome: a challenge to send, the account that has logged in, or the refusal.

    Wrong ones are counted, and answered after a while. Raises DirectoryUnavailable for "try later".
    """
    if isinstance(outcome, Lookup):
        exchange.scheme = outcome.scheme
        exchange.keys = logins.keys(outcome.login, outcome.scheme, peer_ip)
        outcome = exchange.found(exchange.keys)
    if isinstance(outcome, Challenge):
        return outcome
    if isinstance(outcome, Password):
        return await logins.check(outcome.login, outcome.password, peer_ip) or Refused(WRONG)
    if isinstance(outcome, Proven):
        return await logins.proven(outcome.login, exchange.keys, exchange.scheme, peer_ip) or Refused(WRONG)
    if isinstance(outcome, Token):
        account = await logins.token(outcome.login, outcome.token, peer_ip)
        if account is not None:
            return account
        refusal = exchange.token(False)
        return refusal if isinstance(refusal, Challenge) else Refused(WRONG)
    assert isinstance(outcome, Refused)
    if outcome.why == WRONG:
        await logins.failed(exchange.login, peer_ip)
    return outcome
