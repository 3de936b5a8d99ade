"""What a script wants done with a message. Values only; the LMDA carries them out."""

from __future__ import annotations

from msgspec import Struct


class Keep(Struct, frozen=True):
    """Deliver to INBOX (RFC 5228 4.3). flags: names of IMAP flags (RFC 5232)."""

    flags: tuple[str, ...] = ()


class FileInto(Struct, frozen=True):
    """Deliver to a mailbox (RFC 5228 4.1). create: make it if it is not there (RFC 5490)."""

    mailbox: str
    flags: tuple[str, ...] = ()
    create: bool = False


class Redirect(Struct, frozen=True):
    """Send the message on to an address (RFC 5228 4.2)."""

    address: str


class Reject(Struct, frozen=True):
    """Refuse the message (RFC 5429). ereject: its second form; both end in a report to the sender here."""

    reason: str
    ereject: bool = False


class Vacation(Struct, frozen=True):
    """Answer the sender, unless that was done lately (RFC 5230).

    interval_s: not again for so long. subject, sender: "" is the default. addresses: further ones of the user. mime: the
    reason is a whole MIME part. handle: what is the same answer, "" for one made of the rest.
    """

    reason: str
    interval_s: int
    subject: str = ""
    sender: str = ""
    addresses: tuple[str, ...] = ()
    mime: bool = False
    handle: str = ""


Action = Keep | FileInto | Redirect | Reject | Vacation
