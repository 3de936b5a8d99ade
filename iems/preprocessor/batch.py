"""One batch of the input queue: what is to be moved, refused, tried later. No queue, no loop; directory and content come in.

Order for each message: loop check, routing, split by action matrix. Modules, when there are any, run in the worker
between this and the move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from iems.errors import DirectoryUnavailable
from iems.model import INPUT, Channel, Envelope, Recipient, Reply, Rope
from iems.preprocessor.route import Part, Routed, route
from iems.preprocessor.trips import HEAD_OCTETS, LONG_HEAD_OCTETS, Trips

if TYPE_CHECKING:
    from iems.directory.entries import Resolution
    from iems.preprocessor.modules import TryLater
    from iems.preprocessor.tags import Tags
    from iems.spool.items import Item

LOOP = Reply(554, 4, 6, "Too many hops: the message has been here before, again and again")

#: Answers of checks and modules that a message carries for its record.
ASKED_MAX = 64
#: Made on this machine, without Received lines: nothing to count.
_UNTRAVELLED = frozenset({int(Channel.MTA), int(Channel.WEBCLIENT)})


class Plan(Struct):
    """What becomes of one message. loop: all recipients fail because it has been here too often.

    failed, discarded: recipients of the envelope that go nowhere; as long as there are any, the parts are not moved.
    dropped: ways of a recipient that has others, taken out of the parts. redirected: (address, recipient and reason) of those whose mail
    goes to an address instead. again: the message starts anew with this input channel and
    content; its parts count no more. quarantine: why it is put aside. later: a module can't answer now. fault: of a module.
    notices: what the postmaster is told of it.
    """

    item: Item
    parts: list[Part]
    failed: list[tuple[Recipient, Reply]]
    discarded: list[tuple[Recipient, str]] = []
    dropped: list[tuple[Recipient, str]] = []
    redirected: list[tuple[bytes, Recipient, str]] = []
    again: tuple[int, Rope] | None = None
    quarantine: str = ""
    later: TryLater | None = None
    fault: Exception | None = None
    loop: bool = False
    notices: list[str] = []


class Batch(Struct):
    """plans: in the order taken. later: messages the directory could not be asked about. broken: (item, fault of ours)."""

    plans: list[Plan]
    later: list[Item]
    broken: list[tuple[Item, Exception]]


class Planner:
    """Makes plans.

    resolve: `Directory.resolve`. read: (rope, start, length) -> octets of the content. hostname: as in own Received
    lines. max_trips: own lines at which mail is a loop. tags: what is done with tags of suspect mail. ends_loops: whether a loop ends on
    the way from an input to an output channel. reverse_path: (reverse path, recipients as they were given, None for a forward) -> the reverse
    path with which mail leaves by SMTPC; None to keep it.
    """

    def __init__(
        self,
        resolve: Callable[[bytes], Resolution],
        read: Callable[[Rope, int, int], bytes],
        hostname: str,
        max_trips: int,
        reverse_path: Callable[[bytes, list[bytes] | None], bytes] | None = None,
        tags: Tags | None = None,
        ends_loops: Callable[[int, int], bool] = lambda input_channel, output_channel: True,
    ) -> None:
        self.resolve = resolve
        self._read = read
        self._trips = Trips(hostname)
        self._max_trips = max_trips
        self._reverse_path = reverse_path
        self._tags = tags
        self._ends_loops = ends_loops

    def plan(self, items: Iterable[Item], begin: Callable[[bytes], None] = lambda message_id: None) -> Batch:
        """Plan every message; a fault in one does not touch the others. begin: told of each id before it is looked at."""
        batch = Batch([], [], [])
        for item in items:
            begin(item.id)
            try:
                batch.plans.append(self._one(item))
            except DirectoryUnavailable:
                batch.later.append(item)
            except Exception as fault:
                batch.broken.append((item, fault))
        return batch

    def _one(self, item: Item) -> Plan:
        envelope = item.envelope
        clean: Rope | None = None
        if envelope.input_channel not in _UNTRAVELLED:
            head = self._read(item.rope, 0, HEAD_OCTETS)
            if self._looping(item.rope, head) and (plan := self._ended(item)) is not None:
                return plan
            if self._tags is not None:
                clean = self._tags.incoming(envelope, item.rope, self._read, head)
        routed: Routed = route(self.resolve, envelope.recipients)
        if self._reverse_path is not None:
            for part in routed.parts:
                if part.channel == Channel.SMTPC:
                    # What a user's rule sends on is a forward, whatever its addresses look like.
                    forward = envelope.input_channel == Channel.LOCALOUT
                    given = None if forward else [source.address for source in part.sources]
                    part.reverse_path = self._reverse_path(envelope.reverse_path, given)
        if clean is not None:
            for part in routed.parts:
                part.rope = clean
        return Plan(item, routed.parts, routed.failed)

    def ways(self, envelope: Envelope, address: bytes) -> list[Part]:
        """Parts for an address that gets a message in the place of others; none if it can't be routed. Raises DirectoryUnavailable."""
        routed = route(self.resolve, [Recipient(address)])
        if self._reverse_path is not None:
            for part in routed.parts:
                if part.channel == Channel.SMTPC:
                    part.reverse_path = self._reverse_path(envelope.reverse_path, None)
        return routed.parts

    def _ended(self, item: Item) -> Plan | None:
        """What becomes of a message that loops; None if loops are let be on all of its ways."""
        envelope = item.envelope
        routed = route(self.resolve, envelope.recipients)
        ends = [part for part in routed.parts if self._ends_loops(envelope.input_channel, part.channel)]
        if routed.parts and not ends:
            return None
        failed = {id(source): (source, LOOP) for part in ends for source in part.sources}
        failed |= {id(recipient): (recipient, reply) for recipient, reply in routed.failed}
        return Plan(item, [part for part in routed.parts if part not in ends], list(failed.values()), loop=True)

    def _looping(self, rope: Rope, head: bytes) -> bool:
        limit = self._max_trips
        found = self._trips.at_least(head, limit)
        if found is None:
            found = self._trips.at_least(self._read(rope, 0, LONG_HEAD_OCTETS), limit)
        return bool(found)


def again_item(plan: Plan, make: Callable[..., Item]) -> Item:
    """The queue item of a message that starts anew. make: `iems.spool.items.Item`."""
    assert plan.again is not None
    channel, rope = plan.again
    envelope = plan.item.envelope
    # What was found so far stays with the message: the modules that found it may not run for the new channel.
    verdicts = envelope.verdicts + tuple(tag for tag in plan.parts[0].tags if tag not in envelope.verdicts)
    asked = (envelope.asked + plan.parts[0].asked)[:ASKED_MAX]
    return make(plan.item.id, INPUT, "", structs.replace(envelope, input_channel=channel, verdicts=verdicts, asked=asked), rope)


def parts_items(item: Item, parts: list[Part], make: Callable[..., Item]) -> list[Item]:
    """The queue items of a message's parts. make: `iems.spool.items.Item`."""
    envelope = item.envelope
    if len(parts) == 1 and len(parts[0].recipients) == len(envelope.recipients):
        # Nearly all mail: the envelope is changed where it is. With another number of recipients it must not be, the spool counts both.
        part = parts[0]
        envelope.recipients = part.recipients
        if part.reverse_path is not None:
            envelope.reverse_path = part.reverse_path
        if part.tags:
            envelope.verdicts += part.tags
        if part.asked:
            envelope.asked = (envelope.asked + part.asked)[:ASKED_MAX]
        return [make(item.id, part.channel, part.destination, envelope, part.rope or item.rope)]
    return [
        make(
            item.id,
            part.channel,
            part.destination,
            structs.replace(
                envelope,
                recipients=part.recipients,
                reverse_path=envelope.reverse_path if part.reverse_path is None else part.reverse_path,
                verdicts=envelope.verdicts + part.tags,
                asked=(envelope.asked + part.asked)[:ASKED_MAX],
            ),
            part.rope or item.rope,
        )
        for part in parts
    ]
