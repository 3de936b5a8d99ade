"""Relay domains: which recipients of a domain that is forwarded to another server are taken (values only)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from msgspec import Struct

from iems.directory.names import suffixes

Check = Literal["none", "list", "ldap", "callahead"]
CHECKS: Final = ("none", "list", "ldap", "callahead")
#: The object class of a recipient that is on the list.
RELAYED: Final = "iemsRelayRecipient"


class RelayDomain(Struct, frozen=True):
    """A row of the domain forwarding table as RCPT needs it. check: how a recipient is looked at before it is taken."""

    pattern: str
    identifier: str
    check: str


class RelayDomains:
    """All of them at one moment; false if no recipient is to be checked."""

    __slots__ = ("_active", "_rows")

    def __init__(self, rows: Iterable[RelayDomain] = ()) -> None:
        self._rows = {row.pattern: row for row in rows}
        self._active = any(row.check != "none" for row in self._rows.values())

    def __bool__(self) -> bool:
        return self._active

    def find(self, domain: str) -> RelayDomain | None:
        """The row for a domain (in normal form): its own, else the nearest `*.`."""
        for pattern in (domain, *suffixes(domain)):
            row = self._rows.get(pattern)
            if row is not None:
                return row
        return None


#: What a home without such domains has.
NONE: Final = RelayDomains()
