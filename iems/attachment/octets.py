"""Octets of an archive's header read one after the other; every length is checked before it is believed."""

from __future__ import annotations


class BadArchive(ValueError):
    """What is there is no archive of its kind, or one that can't be read to its end."""


class NoArchive(BadArchive):
    """It does not even begin as one."""


class Octets:
    """at: where the next one is read; it never gets behind the end."""

    def __init__(self, octets: bytes, at: int = 0) -> None:
        self.octets = octets
        self.at = at

    @property
    def left(self) -> int:
        """How many are not read."""
        return len(self.octets) - self.at

    def take(self, count: int) -> bytes:
        """The next `count` octets. Raises BadArchive if there are fewer."""
        if count > self.left:
            raise BadArchive("cut short")
        self.at += count
        return self.octets[self.at - count : self.at]

    def number(self, octets: int) -> int:
        """An unsigned number of so many octets, the lowest first. Raises BadArchive."""
        return int.from_bytes(self.take(octets), "little")
