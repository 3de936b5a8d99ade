"""Whose addresses an authenticated client may send from: its own, what leads to it, and what it was granted."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from iems.directory.names import address_of, suffixes
from iems.message.address import parse_addresses
from iems.message.header import fields, header_fields, unfold
from iems.model import Channel

if TYPE_CHECKING:
    from iems.directory import Account, Resolution

_LOCAL = int(Channel.LOCAL)
#: Octets of a header, of its From fields and addresses in one that are looked at; more is refused where the check rejects.
HEADER_OCTETS = 262_144
FIELD_OCTETS = 65_536
MAX_MAILBOXES = 100
#: `Senders.foreign` of a header that names more than is looked at.
TOO_MANY = "(too many addresses)"


class Accounts(Protocol):
    """What is asked of the directory."""

    def account(self, address: str) -> Account | None:
        """The account of an address. Raises DirectoryUnavailable."""


class Senders:
    """Decisions only.

    accounts: knows who was granted what. resolve: where mail to an address goes. reject: else mismatches are told of. header_octets:
    how much of a header is looked at for From, 0 for the reverse-path alone.
    """

    def __init__(
        self, accounts: Accounts, resolve: Callable[[bytes], Resolution], *, reject: bool, header_octets: int = 0
    ) -> None:
        self._accounts = accounts
        self._resolve = resolve
        self.reject = reject
        self.header_octets = header_octets

    def owns(self, user: str, address: bytes) -> bool:
        """Whether mail may be sent from an address by a user.

        user: the account's address. address: a reverse-path; the null path is anybody's, as notices have it (RFC 3798, 5321 4.5.5).
        True if it is the user's own, with or without detail; an address whose mail comes to the user (alias, group), or to a shared
        mailbox the user may send for; or one that was granted, by itself or with its domain. Raises DirectoryUnavailable.
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
        here = [target.address for target in found.targets if target.channel == _LOCAL] if found.local else []
        if owner in here:
            return True
        account = self._accounts.account(user)
        if account is not None and account.member_of and any(self._for_shared(account.number, target) for target in here):
            return True
        granted = account.send_as if account is not None else ()
        return bool(granted) and not {name, parts[1], *suffixes(parts[1])}.isdisjoint(granted)

    def _for_shared(self, number: int, address: bytes) -> bool:
        """Whether mail to an address comes to a shared mailbox that the account may send for."""
        shared = self._accounts.account(address.decode("utf-8", "replace"))
        member = shared.member(number) if shared is not None else None
        return member is not None and member.send_as

    def foreign(self, user: str, header: bytes) -> str:
        """The first address in From that a user may not send from, "" if there is none. Raises DirectoryUnavailable.

        header: the message, or as much of it as holds the whole header. All fields From count, if there are several: any of
        them may be the one that a reader shows.
        """
        raw = header_fields(header, [b"from"])
        if len(raw) > FIELD_OCTETS:
            return TOO_MANY
        for field in fields(raw):
            mailboxes = parse_addresses(unfold(raw[field.value : field.end]))
            if len(mailboxes) > MAX_MAILBOXES:
                return TOO_MANY
            for mailbox in mailboxes:
                address = mailbox.addr_spec.encode("utf-8", "surrogateescape")
                if address and not self.owns(user, address):
                    return address.decode("utf-8", "backslashreplace")
        return ""


class Arrival:
    """How far the header of one content has been looked at while it came in."""

    __slots__ = ("_looked", "ended")

    def __init__(self) -> None:
        self._looked = 0
        self.ended = False

    def header(self, buffer: Any, octets: int, limit: int, complete: bool) -> bytes | None:
        """The header once it is whole, None before; then `ended` is set, and without one (b"") it could not be seen.

        buffer: where the content stands, unless it has gone to a file. octets: of the content so far. limit: where it must have ended.
        complete: all content is here.
        """
        if self.ended:
            return None
        if octets > len(buffer):
            self.ended = True
            return b""
        start = max(self._looked - 3, 0)
        with memoryview(buffer) as view:
            piece = bytes(view[start : limit + 4])
            found = 0 if start == 0 and piece[:2] == b"\r\n" else piece.find(b"\r\n\r\n")
            self._looked = octets
            if found < 0 and octets <= limit and not complete:
                return None
            self.ended = True
            if found < 0 and octets > limit:
                return b""
            return bytes(view[: start + found + 4]) if found >= 0 else bytes(view[:octets])
