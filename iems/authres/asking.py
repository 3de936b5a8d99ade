"""What the evaluators ask of DNS. `iems.net.resolver.Resolver` is one; tests hand in zones."""

from __future__ import annotations

from typing import Any, Protocol

from iems.net.resolver import Answer, DnsFailure, ascii_name

__all__ = ["Answer", "DnsFailure", "Lookup", "ascii_name", "ask", "texts"]

#: A name that DNS can't hold does not exist: no question is needed to know it.
NO_SUCH_NAME = Answer((), False, "", 0.0)


class Lookup(Protocol):
    """Asks DNS. Raises DnsFailure where there is no definite answer, ValueError where `name` is no domain name.

    loose: the name may hold any printable octet, as a local part in a macro of SPF does.
    """

    async def query(self, name: str, kind: str, *, loose: bool = False) -> Answer:
        """The records of one type."""


async def ask(lookup: Lookup, name: str, kind: str) -> Answer:
    """The answer for any text as name; one that DNS can't hold does not exist. Raises DnsFailure."""
    try:
        return await lookup.query(name, kind, loose=True)
    except ValueError:
        return NO_SUCH_NAME


async def texts(lookup: Lookup, name: str) -> tuple[Any, ...]:
    """The TXT records of a name, each as octets with its strings joined. Raises DnsFailure."""
    return (await ask(lookup, name, "TXT")).records
