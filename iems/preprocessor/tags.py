"""Tags on their way through this MTA: what outsiders wrote is removed, what a trusted MTA signed is believed, what leaves is signed.

Inside, the verdicts travel in the envelope. The field of `message/tag.py` exists only between systems: it comes off as the message
comes in, and goes on again only towards peers whose profile keeps our tags. Content is never copied: a field is cut out of the rope,
or put in front of it.

A Delivered-To that names an address of ours goes the same way: only delivery here writes one, and rules of users read it. Those of other
systems stay, by which these find their loops.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from iems.directory.peers import Peers
from iems.directory.tagkeys import TagKeys
from iems.message import header, tag
from iems.model import Channel, Envelope, Rope
from iems.preprocessor.ropes import replaced
from iems.preprocessor.route import Part
from iems.preprocessor.trips import HEAD_OCTETS, LONG_HEAD_OCTETS

_DELIVERED = b"delivered-to"
_NAMES = (*sorted(tag.OWN_FIELDS), _DELIVERED)
_LINES = (b"\nx-iems-", b"\nx-spam-status", b"\n" + _DELIVERED)
_DOMAIN = re.compile(rb"@\s*([^\s@<>(),;:\"\[\]]{1,255})")


class Tags:
    """keys: of the home. peers: the profiles as they are now. is_local: whether a domain is ours (`Directory.is_local`)."""

    def __init__(self, keys: TagKeys, peers: Callable[[], Peers], is_local: Callable[[str], bool] = lambda domain: False) -> None:
        self._keys = keys
        self._peers = peers
        self._is_local = is_local

    def incoming(self, envelope: Envelope, rope: Rope, read: Callable[[Rope, int, int], bytes], head: bytes) -> Rope | None:
        """The content without our fields; None if it has none. A tag that a trusted MTA signed goes into the envelope.

        head: the first octets of the content. Raises DirectoryUnavailable.
        """
        end = head.find(b"\r\n\r\n")
        if end < 0 and len(head) >= HEAD_OCTETS:
            head = read(rope, 0, LONG_HEAD_OCTETS)
            end = head.find(b"\r\n\r\n")
        if end >= 0:
            head = head[: end + 4]
        folded = head.lower()
        if not any(name in folded for name in _LINES) and not folded.startswith(_NAMES):
            return None
        domains: dict[bytes, bool] = {}
        ours = [
            (field.start, field.end)
            for field in header.fields(head)
            if (field.name in tag.OWN_FIELDS and tag.is_ours(field.name, head[field.value : field.end]))
            or (field.name == _DELIVERED and self._names_us(head[field.value : field.end], domains))
        ]
        if not ours:
            return None
        found = tag.verified(head, self._keys.all) if self._keys.all else None
        if found is not None:
            envelope.client_ip = found.ip
            envelope.verdicts += tuple(v for v in found.verdicts if v not in envelope.verdicts)
        return replaced(rope, [(start, end, ()) for start, end in ours])

    def _names_us(self, value: bytes, known: dict[bytes, bool]) -> bool:
        """Whether an address in a field's value is in a domain of ours. known: domains asked about for this message."""
        for name in _DOMAIN.findall(value):
            if name not in known:
                known[name] = self._is_local(name.decode("utf-8", "replace"))
            if known[name]:
                return True
        return False

    def keeps(self, part: Part) -> bool:
        """Whether a part leaves with our tags: by SMTPC, signed, and only to domains whose profile keeps them."""
        if part.channel != Channel.SMTPC or not (peers := self._peers()) or self._keys.signing is None:
            return False
        for recipient in part.recipients:
            peer = peers.find(recipient.address.rpartition(b"@")[2].decode("utf-8", "replace"))
            if peer is None or not peer.keep_tags:
                return False
        return True

    def outgoing(self, envelope: Envelope, part: Part, rope: Rope, read: Callable[[Rope, int, int], bytes]) -> None:
        """Put the signed tag in front of a part that keeps it. rope: the content the part has so far."""
        signing = self._keys.signing
        if signing is None or not self.keeps(part):
            return
        key, secret = signing
        head = read(rope, 0, LONG_HEAD_OCTETS)
        line = tag.signed(envelope.client_ip, int(time.time()), envelope.verdicts + part.tags, key, secret, head)
        part.rope = [line, *rope]
