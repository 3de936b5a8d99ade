"""Another way for messages that wait: another channel, next hop or address, whatever the directory says.

Durable as a copy: a MOVED record of the next generation holds the message with its items as they stand from now on, so an index that is
built from the segments keeps the new way. A crash in between leaves the old way or the new one: a copy the index does not know is
voided, the original named by no copy counts (docs/spool.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct, field, structs

from iems.model import INPUT, Channel, Recipient, Reply, id_text
from iems.smtp import grammar
from iems.spool import admin
from iems.spool.admin import Selection, channel_name
from iems.spool.index import Index
from iems.spool.items import Item
from iems.spool.keys import FRESH, HELD
from iems.spool.reclaim import Made, Placed, Reclaimed, messages_of, move_message
from iems.spool.records import Record
from iems.spool.spool import Spool

#: Channels whose items have no destination, and those that need one.
_NO_DESTINATION = (INPUT, int(Channel.LOCAL))
_DESTINATION = (int(Channel.BSMTPOUT), int(Channel.DL), int(Channel.CCMAIL), int(Channel.NOTES))


class Way(Struct):
    """Where to. channel: INPUT has the directory asked again. destination: next hop or identifier; "" with SMTPC: by MX.

    address: a new address for the recipient, None to keep it.
    """

    channel: int
    destination: str = ""
    address: bytes | None = None


def way(channel: int, destination: str = "", address: str | None = None) -> Way:
    """A way that can be. Raises ValueError with what is wrong."""
    if channel in _NO_DESTINATION and destination:
        raise ValueError(f"{channel_name(channel)} has no destinations")
    if channel in _DESTINATION and not destination:
        raise ValueError(f"{channel_name(channel)} needs a destination (the identifier of its connector)")
    if not destination.isprintable() or " " in destination or len(destination.encode()) > 255:
        raise ValueError(f"{destination!a} is no destination")
    octets = None
    if address is not None:
        parsed = grammar.rcpt(b"TO:<%b>" % address.encode("utf-8", "replace")) if address.isprintable() else None
        if parsed is None or isinstance(parsed, Reply) or parsed.path.original != address.encode():
            raise ValueError(f"{address!a} is no address")
        octets = parsed.path.address
    return Way(channel, destination.lower() if channel == Channel.SMTPC else destination, octets)


class Changed(Struct):
    """What became of one item: from where to where, for whom. left: why it stays as it is, or ""."""

    id: bytes
    item: Item
    recipients: list[Recipient]
    way: Way
    left: str = ""


class Rerouted(Struct):
    """changed: items that go another way now; left: items that were meant and stay, with the reason."""

    changed: list[Changed] = field(default_factory=list)
    left: list[Changed] = field(default_factory=list)


class _Plan(Struct):
    """Of one message: its queued items, those that are meant, and what of them changes. busy: those meant that somebody has in hand."""

    group: list[tuple[bytes, Item, int, int]]
    meant: set[bytes]
    changes: dict[bytes, list[Recipient]]
    busy: list[Item]
    why: str = ""


def _means(selection: Selection, recipient: Recipient) -> bool:
    """Whether a recipient of a selected item is meant: those that the selection names, all if it names none."""
    address = recipient.address.lower()
    if selection.recipient is not None and address != selection.recipient.lower().encode():
        return False
    return selection.domain is None or address.endswith(b"@" + selection.domain.lower().encode())


def _destination(to: Way, recipient: Recipient) -> str:
    if to.destination or to.channel != Channel.SMTPC:
        return to.destination
    return (to.address or recipient.address).rpartition(b"@")[2].decode("utf-8", "replace").lower()


def _plans(index: Index, selection: Selection, to: Way) -> list[_Plan]:
    """What is to change, message by message, in the order of the queue."""
    meant: dict[bytes, set[bytes]] = {}
    busy: dict[bytes, list[Item]] = {}
    for found in admin.find(index, selection):
        if found.item is not None:
            meant.setdefault(found.id, set()).add(found.key)
            if found.state == "leased":
                busy.setdefault(found.id, []).append(found.item)
    groups: dict[bytes, list[tuple[bytes, Item, int, int]]] = {id: [] for id in meant}
    for class_, due_ms, item, key in index.queued(lambda id, _: id in groups):
        if item is not None:
            groups[item.id].append((key, item, class_, due_ms))
    leased = {item.id for _, item in index.leased() if item is not None and item.id in groups}
    plans = []
    for id, group in groups.items():
        plan = _Plan(group, meant[id], {}, busy.get(id, []))
        for key, item, _, _ in group:
            if key in plan.meant:
                chosen = [
                    r
                    for r in item.envelope.recipients
                    if _means(selection, r) and not _goes_there(item, r, to)
                ]
                if chosen:
                    plan.changes[key] = chosen
        if id in leased:
            plan.why = "somebody works on it"
        elif plan.changes:
            plan.why = _obstacle(plan, to)
        plans.append(plan)
    return plans


def _goes_there(item: Item, recipient: Recipient, to: Way) -> bool:
    return (
        item.channel == to.channel
        and item.destination == _destination(to, recipient)
        and (to.address is None or to.address == recipient.address)
    )


def _obstacle(plan: _Plan, to: Way) -> str:
    """Why the change can't be made, or ""."""
    after = [
        (to.channel, to.address or r.address) if r in plan.changes.get(key, ()) else (item.channel, r.address)
        for key, item, _, _ in plan.group
        for r in item.envelope.recipients
    ]
    if len(set(after)) < len(after):
        return "two of its recipients would have one address"
    if to.channel == INPUT:
        first = plan.group[0][1]
        whole = all(len(plan.changes.get(key, ())) == len(i.envelope.recipients) for key, i, _, _ in plan.group)
        if not whole:
            return "only a whole message can be routed again"
        if any((i.rope, i.envelope.reverse_path) != (first.rope, first.envelope.reverse_path) for _, i, _, _ in plan.group):
            return "its parts differ in content or sender"
    return ""


def _edited(plan: _Plan, to: Way, leased: list[Placed]) -> list[Made]:
    """The items of a message from now on."""
    made: list[Made] = []
    fresh: list[Made] = []
    for at, ((key, _, _, _), (item, class_, due_ms)) in enumerate(zip(plan.group, leased, strict=True)):
        chosen = [r.address for r in plan.changes.get(key, ())]
        rest = [r for r in item.envelope.recipients if r.address not in chosen]
        if rest:
            made.append((at, _with(item, rest), class_, due_ms))
        ways: dict[str, list[Recipient]] = {}
        for recipient in item.envelope.recipients:
            if recipient.address in chosen:
                ways.setdefault(_destination(to, recipient), []).append(recipient)
        for destination, recipients in ways.items():
            new = _with(item, [_aimed(r, to) for r in recipients])
            new.channel, new.destination, new.attempts = to.channel, destination, 0
            if class_ < HELD:
                class_, new.reason = FRESH, ""
            fresh.append((at, new, class_, 0))
    if to.channel == INPUT and len(fresh) > 1:
        at, new, class_, due_ms = fresh[0]
        new.envelope.recipients = [r for _, each, _, _ in fresh for r in each.envelope.recipients]
        fresh = [(at, new, max(class_ for _, _, class_, _ in fresh), due_ms)]
    # (id, part) tells the items of one message and destination apart
    used = {(item.channel, item.destination, item.part) for _, item, _, _ in made}
    for _, new, _, _ in fresh:
        new.part = 0
        while (new.channel, new.destination, new.part) in used:
            new.part += 1
        used.add((new.channel, new.destination, new.part))
    return made + fresh


def _with(item: Item, recipients: list[Recipient]) -> Item:
    return structs.replace(item, envelope=structs.replace(item.envelope, recipients=recipients))


def _aimed(recipient: Recipient, to: Way) -> Recipient:
    """A recipient on its new way, as the preprocessor would have made it; what the client wrote stays in `original`."""
    return structs.replace(
        recipient,
        address=to.address or recipient.address,
        channel=to.channel,
        identifier=to.destination,
        attempts=0,
        reply=None,
    )


def _told(plan: _Plan, to: Way, why: str) -> Iterator[Changed]:
    for key, item, _, _ in plan.group:
        if key in plan.changes:
            yield Changed(item.id, item, plan.changes[key], to, why)
    for item in plan.busy:
        yield Changed(item.id, item, item.envelope.recipients, to, why)


def would_reroute(path: Path, selection: Selection, to: Way) -> Rerouted:
    """What `reroute` would do now; nothing is changed."""
    result = Rerouted()
    with admin.looking(path) as index:
        for plan in _plans(index, selection, to):
            (result.left if plan.why else result.changed).extend(_told(plan, to, plan.why))
    return result


def reroute(path: Path, selection: Selection, to: Way) -> Rerouted:
    """Send what is meant another way, due at once unless it is held; on the disk when it returns. Raises SpoolError.

    What the selection names by recipient or domain goes alone; the message's other recipients keep their way.
    """

    async def work(spool: Spool) -> Rerouted:
        result = Rerouted()
        sources: dict[int, dict[bytes, Record]] = {}
        for plan in _plans(spool.index, selection, to):
            if not plan.changes and not plan.busy:
                continue
            why = plan.why
            if not why:
                home = plan.group[0][1].home
                if home not in sources:
                    sources[home] = messages_of(spool, home)
                done = Reclaimed()
                before = list(_told(plan, to, ""))
                await move_message(
                    spool, plan.group, sources[home], done, lambda leased, plan=plan: _edited(plan, to, leased)  # type: ignore[misc]
                )
                if done.moved:
                    result.changed += before
                    continue
                why = "its record is damaged: quarantined" if done.damaged else "somebody works on it"
            result.left += _told(plan, to, why)
        return result

    return admin.with_spool(path, work)


def shown(changed: Changed) -> dict[str, Any]:
    """For people and programs: id, from and to (channel, identifier), recipients[{address, to, identifier}], left."""
    item, to = changed.item, changed.way
    return {
        "id": id_text(changed.id),
        "channel": channel_name(item.channel),
        "identifier": item.destination,
        "to_channel": channel_name(to.channel),
        "recipients": [
            {
                "address": admin.text(r.address),
                "to_address": admin.text(to.address or r.address),
                "to_identifier": _destination(to, r),
            }
            for r in changed.recipients
        ],
        "left": changed.left,
    }


__all__ = ["Changed", "Rerouted", "Way", "reroute", "shown", "way", "would_reroute"]
