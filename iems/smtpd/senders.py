"""Whose addresses an authenticated client may send from: its own, what leads to it, and what it was granted."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from iems.directory.names import address_of, suffixes
from iems.model import Channel

if TYPE_CHECKING:
    from iems.directory import Account, Resolution

_LOCAL = int(Channel.LOCAL)


class Accounts(Protocol):
    """What is asked of the directory."""

    def account(self, address: str) -> Account | None:
        """The account of an address. Raises DirectoryUnavailable."""


class Senders:
    """Decisions only. accounts: knows who was granted what. resolve: where mail to an address goes. reject: else mismatches are told of."""

    def __init__(self, accounts: Accounts, resolve: Callable[[bytes], Resolution], *, reject: bool) -> None:
        self._accounts = accounts
        self._resolve = resolve
        self.reject = reject

    def owns(self, user: str, address: bytes) -> bool:
        """Whether mail may be sent from an address by a user.

        user: the account's address. address: a reverse-path; the null path is anybody's, as notices have it (RFC 3798, 5321 4.5.5).
        True if it is the user's own, with or without detail; an address whose mail comes to the user (alias, group); or one that
        was granted, by itself or with its domain. Raises DirectoryUnavailable.
        """
        if not address:
            return True
        parts = address_of(address)
        if parts is None or not parts[1]:
            return False
        name = "@".join(parts)
        if name == user:
            return True
        owner = user.encode()
        found = self._resolve(address)
        if found.local and any(target.channel == _LOCAL and target.address == owner for target in found.targets):
            return True
        account = self._accounts.account(user)
        granted = account.send_as if account is not None else ()
        return bool(granted) and not {name, parts[1], *suffixes(parts[1])}.isdisjoint(granted)
