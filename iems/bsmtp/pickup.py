"""What becomes of a fetched mail: messages for the INPUT queue, all or nothing. Pure but for the look-up of addresses.

A mail with batches that may come in gives the messages in them. Any other gives one message for a person: the mail as it is, to the
profile's address or the local postmaster, with a line on top that says why. So nothing fetched is ever dropped.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct

from iems._native import kernel
from iems.bsmtp import batch, carrier
from iems.bsmtp.batch import BatchError, Entry, Limits
from iems.bsmtp.memory import KEY_OCTETS
from iems.message import build
from iems.model import Channel, Envelope, Recipient, Reply, id_text
from iems.smtp import grammar, received
from iems.spool.items import Message

if TYPE_CHECKING:
    from iems.directory.entries import Resolution

_DataDecoder = kernel("smtp").DataDecoder
_Buffer = kernel("buffer").Buffer

#: The field on top of a mail that gave no messages.
REASON_FIELD = "X-IEMS-Pickup"


class Trust(Struct, frozen=True):
    """Who may inject through a profile.

    name: of the profile. senders: addresses or domains the carrier's From must be of; empty: any. key: signatures are asked for
    if it is not empty. relay: recipients that are not ours are taken. deliver_to: where mail goes that is no batch.
    """

    name: str
    deliver_to: bytes
    senders: tuple[str, ...] = ()
    key: bytes = b""
    relay: bool = False


class Taken(Struct):
    """What a mail gave. key: for the memory. messages: to submit. problem: why the batches in it don't count, or ""."""

    key: bytes
    messages: list[Message]
    problem: str = ""


class NoPlace(Exception):
    """Nobody here can take this mail: it stays where it is."""


class Taker:
    """Turns fetched mail into messages.

    resolve: `Directory.resolve`; DirectoryUnavailable passes through. hostname: of this host, for Received lines.
    """

    def __init__(self, resolve: Callable[[bytes], Resolution], hostname: str, limits: Limits) -> None:
        self._resolve = resolve
        self._hostname = hostname.encode()
        self._limits = limits

    def take(self, trust: Trust, unique: bytes, content: bytes, now_ns: int) -> Taken:
        """The messages a mail gives. unique: its unique id in the maildrop, b"" if it has none.

        May run in a thread. Raises NoPlace, DirectoryUnavailable.
        """
        parts = carrier.open_parts(content)
        problem = parts.problem
        now_s = now_ns // 1_000_000_000
        signed = bool(trust.key)
        if parts.batches and not problem:
            if signed:
                problem = carrier.check_signature(trust.key, content, parts.batches, now_s)
            if not problem and trust.senders and not _of(carrier.author(content), trust.senders):
                problem = "From is no sender this profile trusts"
        # A signed batch is known by itself: sent again by another it is the same.
        source = (
            b"signed\0" + b"".join(parts.batches)
            if signed and parts.batches and not problem
            else b"\0".join((trust.name.encode(), unique, carrier.body_hash(content)))
        )
        key = hashlib.blake2b(source, digest_size=KEY_OCTETS).digest()
        messages: list[Message] = []
        if parts.batches and not problem:
            try:
                messages = self._messages(trust, key, parts.batches, now_ns)
            except BatchError as error:
                problem = str(error)
        if not messages:
            messages = [self._for_person(trust, key, content, problem or "no batch in it", now_ns)]
        return Taken(key, messages, problem)

    def _messages(self, trust: Trust, key: bytes, batches: list[bytes], now_ns: int) -> list[Message]:
        messages: list[Message] = []
        for number, octets in enumerate(batches):
            left = Limits(self._limits.octets, self._limits.messages - len(messages), self._limits.recipients)
            for place, entry in enumerate(batch.decode(octets, left)):
                if not trust.relay:
                    self._check_ours(entry)
                messages.append(self._message(_id(key, number, place, now_ns), trust.name, entry, now_ns))
        return messages

    def _check_ours(self, entry: Entry) -> None:
        for recipient in entry.recipients:
            if not self._resolve(recipient.address).ours:
                raise BatchError(f"a recipient is not ours, and this profile may not relay: {recipient.address.decode('utf-8', 'replace')!a}")

    def _message(self, id: bytes, profile: str, entry: Entry, now_ns: int) -> Message:
        protocol = b"UTF8SMTP" if entry.smtputf8 else b"BSMTP"
        line = received.line(
            received.prefix(helo=profile.encode(), client_ip="", by=self._hostname, protocol=protocol),
            id_text(id),
            entry.recipients[0].original if len(entry.recipients) == 1 else b"",
            now_ns // 1_000_000_000,
        )
        envelope = Envelope(
            Channel.BSMTPIN,
            entry.reverse_path,
            entry.recipients,
            now_ns,
            len(line) + len(entry.content),
            body=entry.body,
            smtputf8=entry.smtputf8,
            ret=entry.ret,
            envid=entry.envid,
            dot_free=entry.dot_free,
        )
        return Message(id, envelope, [line, entry.content])

    def _for_person(self, trust: Trust, key: bytes, content: bytes, reason: str, now_ns: int) -> Message:
        address = trust.deliver_to
        if not self._resolve(address).exists:
            raise NoPlace(f"{address.decode('utf-8', 'replace')} is no address here")
        decoder, buffer = _DataDecoder(normalise=True, raw=True), _Buffer()
        decoder.feed(content, 0, len(content), buffer)
        decoder.finish(buffer)
        path = carrier.return_path(content)
        if path and isinstance(grammar.mail(b"FROM:<%b>" % path), Reply):
            path = b""
        entry = Entry(
            path, [Recipient(address, address)], bytes(buffer), int(decoder.eight_bit), dot_free=decoder.dot_free
        )
        note = build.field(REASON_FIELD, f"{trust.name}: {''.join(c if c.isprintable() else '?' for c in reason)[:500]}")
        entry.content = note + entry.content
        return self._message(_id(key, 0, 0xFFFFFFFF, now_ns), trust.name, entry, now_ns)


def _id(key: bytes, part: int, place: int, now_ns: int) -> bytes:
    """A message id whose last ten octets are the same whenever the same mail is taken in."""
    tail = hashlib.blake2b(key + struct.pack("<II", part, place), digest_size=10).digest()
    return (now_ns // 1_000_000).to_bytes(6, "big") + tail


def tail(id: bytes) -> bytes:
    """The part of an id that says which mail it is of, whenever it was taken in."""
    return id[6:]


def _of(address: str, senders: tuple[str, ...]) -> bool:
    domain = address.rpartition("@")[2]
    return bool(address) and any(sender.lower() in (address, domain) for sender in senders)


__all__ = ["NoPlace", "Taken", "Taker", "Trust", "tail"]
