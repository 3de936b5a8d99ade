"""Object identifiers (RFC 8474): of a mailbox, of a message's content, of a conversation. All of them stay for ever.

MAILBOXID comes from the mailbox's number, which no other mailbox of the account ever gets. EMAILID is the id a message was
accepted under: copies have the same. THREADID is a digest of the first message of the conversation as the header names it.
"""

from __future__ import annotations

import hashlib


def mailbox(account: int, number: int) -> bytes:
    """MAILBOXID."""
    return b"F%x-%x" % (account, number)


def email(origin: bytes, account: int, mailbox_id: int, uid: int) -> bytes:
    """EMAILID of a message with the id `origin` it was accepted under; the rest is for rows that have none."""
    return b"M" + (origin.hex().encode() if any(origin) else b"%x-%x-%x" % (account, mailbox_id, uid))


def thread(own: bytes, references: tuple[bytes, ...]) -> bytes | None:
    """THREADID of a message by its Message-ID and those it refers to, oldest first; None if it has none of them."""
    first = references[0] if references else own
    return b"T" + hashlib.blake2b(first, digest_size=12).hexdigest().encode() if first else None


def is_id(text: bytes) -> bool:
    """Whether a text can be an object id at all (RFC 8474 7)."""
    return 1 <= len(text) <= 255 and all(chr(octet).isalnum() or octet in b"_-" for octet in text)
