"""A maildrop (RFC 1939): the INBOX as it was at login, with what this session marked. Pure."""

from __future__ import annotations

from collections.abc import Sequence


class Maildrop:
    """Messages by number, 1..count, fixed for the session.

    account, mailbox_id, uidvalidity: of the INBOX. uids, sizes: of its messages, in uid order; sizes in octets as stored.
    """

    __slots__ = (
        "account",
        "deleted",
        "mailbox_id",
        "octets",
        "retrieved",
        "seen",
        "sizes",
        "uids",
        "uidvalidity",
    )

    def __init__(
        self, account: int, mailbox_id: int, uidvalidity: int, uids: Sequence[int], sizes: Sequence[int]
    ) -> None:
        self.account = account
        self.mailbox_id = mailbox_id
        self.uidvalidity = uidvalidity
        self.uids = uids
        self.sizes = sizes
        #: Octets of the messages not marked as deleted.
        self.octets = sum(sizes)
        #: Numbers marked by DELE; they go at QUIT.
        self.deleted: set[int] = set()
        #: Numbers sent whole that were not \Seen before.
        self.retrieved: set[int] = set()
        #: Numbers that were \Seen when the session began.
        self.seen: set[int] = set()

    @property
    def count(self) -> int:
        """Messages not marked as deleted."""
        return len(self.uids) - len(self.deleted)

    def has(self, number: int) -> bool:
        """Whether the message exists and is not marked."""
        return 0 < number <= len(self.uids) and number not in self.deleted

    def numbers(self) -> list[int]:
        """Numbers of the messages not marked."""
        if not self.deleted:
            return list(range(1, len(self.uids) + 1))
        return [number for number in range(1, len(self.uids) + 1) if number not in self.deleted]

    def size(self, number: int) -> int:
        """Octets of a message."""
        return self.sizes[number - 1]

    def unique_id(self, number: int) -> str:
        """The unique-id of UIDL: never given to another message, whatever happens to the mailbox (RFC 1939 7)."""
        return f"{self.uidvalidity}-{self.uids[number - 1]}"

    def delete(self, number: int) -> None:
        """Mark a message."""
        self.deleted.add(number)
        self.octets -= self.sizes[number - 1]

    def reset(self) -> None:
        """Take all marks back."""
        self.octets = sum(self.sizes)
        self.deleted.clear()

    def deleted_uids(self) -> list[int]:
        """Uids of the marked messages."""
        return [self.uids[number - 1] for number in sorted(self.deleted)]

    def read_uids(self) -> list[int]:
        """Uids of the messages sent whole that stay."""
        return [self.uids[number - 1] for number in sorted(self.retrieved - self.deleted)]
