"""Refusals found again: one by its id, or those that match, the oldest first. Reads beside the workers that write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from iems.refusals.ring import HEAD, LENGTH, MAGIC, Refusal, chunk_name, chunks, id_of, place_of

_decode = msgspec.msgpack.Decoder(list[Refusal]).decode


class Selection(Struct):
    """What is looked for: all that is given must match. client: an address or the front of one. since_ns: not before."""

    client: str = ""
    sender: str | None = None
    recipient: str | None = None
    since_ns: int = 0

    def takes(self, refusal: Refusal) -> bool:
        """Whether a refusal is meant. Text case is ignored."""
        return (
            refusal.time_ns >= self.since_ns
            and refusal.client.startswith(self.client)
            and (self.sender is None or _same(self.sender, refusal.reverse_path))
            and (self.recipient is None or _same(self.recipient, refusal.recipient))
        )


def _same(text: str, octets: bytes | None) -> bool:
    return octets is not None and text.strip("<>").lower() == octets.decode("utf-8", "backslashreplace").lower()


def _refusals(data: bytes) -> Iterator[Refusal]:
    """What a chunk holds; what is torn or damaged is passed over."""
    at = HEAD.size
    while at + LENGTH.size <= len(data):
        (length,) = LENGTH.unpack_from(data, at)
        at += LENGTH.size
        if at + length > len(data):
            return
        try:
            yield from _decode(data[at : at + length])
        except msgspec.DecodeError:
            pass
        at += length


def _chunk(folder: Path, number: int) -> tuple[bytes, int] | None:
    """(octets, nonce) of a chunk, or None if it is gone or is none."""
    try:
        data = (folder / chunk_name(number)).read_bytes()
    except FileNotFoundError:
        return None
    if len(data) < HEAD.size:
        return None
    magic, _, nonce = HEAD.unpack_from(data)
    return (data, nonce) if magic == MAGIC else None


def find(folder: Path, text: str) -> Refusal | None:
    """The refusal with an id, or None if it is not kept (any more). Raises ValueError for what is no id."""
    number, place, bits = place_of(text)
    chunk = _chunk(folder, number)
    if chunk is None:
        return None
    data, nonce = chunk
    if nonce & 1023 != bits:
        raise ValueError(f"{text!r} is no id this server has given")
    return next((refusal for refusal in _refusals(data) if refusal.place == place), None)


def matching(folder: Path, selection: Selection) -> Iterator[tuple[str, Refusal]]:
    """(id, refusal) of those that match, chunk by chunk; within a chunk in the order they were given."""
    for number in chunks(folder):
        chunk = _chunk(folder, number)
        if chunk is None:
            continue
        data, nonce = chunk
        for refusal in _refusals(data):
            if selection.takes(refusal):
                yield id_of(number, refusal.place, nonce), refusal
