"""The queue for people: counting, listing, holding, releasing, retrying, bouncing, deleting.

Called by the command line from a process of its own, with the server running or stopped; acts on the index, and where a fact must
survive the index (a deletion, a bounce) on a record. `path` is a home or its spool folder. Raises FileNotFoundError if there is
no spool. While the server is stopped, a command that writes takes `run/lock` alone, and an index that can't be trusted is built anew
first; a started server is only read, or written beside its workers.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
import tomllib
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import lmdb
from msgspec import Struct, field

from iems.model import INPUT, Channel, Outcome, Recipient, Reply, Result, id_text
from iems.spool import keys, recovery
from iems.spool.index import Change, Index
from iems.spool.items import Item, Message, Settlement
from iems.spool.keys import FRESH, HELD, QUARANTINED, RETRY
from iems.spool.rebuild import rebuild
from iems.spool.spool import Spool, SpoolParams

if TYPE_CHECKING:
    from iems.blobs import Blobs
    from iems.spool.weight import Weights

T = TypeVar("T")

STATES = ("ready", "leased", "deferred", "held", "quarantined")
#: Rows looked at for the age of the oldest, per channel and class.
_OLDEST_ROWS = 10_000


def folder(path: Path) -> Path:
    """The spool's folder for a home or for itself. Raises FileNotFoundError."""
    path = Path(path)
    if (path / "segments").is_dir():
        return path
    inside = "spool"
    try:
        with open(path / "conf" / "iems.toml", "rb") as file:
            inside = str(tomllib.load(file).get("spool", {}).get("path", inside))
    except (OSError, tomllib.TOMLDecodeError):
        pass
    if not (path / inside / "segments").is_dir():
        raise FileNotFoundError(f"no spool in {path}")
    return path / inside


def channel_name(channel: int) -> str:
    """The name of a queue, as the command line shows it."""
    return "INPUT" if channel == INPUT else Channel(channel).name


def channel_number(name: str) -> int:
    """The queue of that name, in any case. Raises ValueError."""
    name = name.upper()
    if name == "INPUT":
        return INPUT
    if name not in Channel.__members__:
        raise ValueError(f"no channel {name!r}")
    return int(Channel[name])


def counts(path: Path) -> dict[str, dict[str, Any]]:
    """Per channel: ready, leased, deferred, held, quarantined items and oldest_s, the age of what is longest in that queue.

    INPUT, LOCAL and SMTPC are always there. On a channel on hold everything that waits is held.
    """
    spool = folder(path)
    if not recovery.usable(spool):
        raise FileNotFoundError(f"the index in {spool} is built anew at the next start")
    index = Index(spool / "index", readonly=True)
    try:
        numbers = index.counts()
        found = {}
        for channel in sorted(
            {INPUT, int(Channel.LOCAL), int(Channel.SMTPC)} | {c for (c, _), n in numbers.items() if n}
        ):
            of = {class_: numbers.get((channel, class_), 0) for class_ in (keys.FRESH, keys.RETRY, keys.HELD)}
            row: dict[str, Any] = {
                "ready": of[keys.FRESH],
                "leased": numbers.get((channel, keys.LEASED), 0),
                "deferred": of[keys.RETRY],
                "held": of[keys.HELD],
                "quarantined": numbers.get((channel, keys.QUARANTINED), 0),
                "on_hold": index.channel_held(channel),
                "oldest_s": 0.0,
            }
            if row["on_hold"]:
                row["held"] += row["ready"] + row["deferred"]
                row["ready"] = row["deferred"] = 0
            if any(row[state] for state in STATES):
                row["oldest_s"] = _oldest_s(index, channel)
            found[channel_name(channel)] = row
        return found
    finally:
        index.close()


class Selection(Struct):
    """Which messages a command is about; all that is given must match, and at least one thing must be given.

    ids: of messages. channel: a queue. sender: the reverse-path. recipient: an address; domain: of a recipient. reason: part of
    what is known of why it waits (of the item, of its last replies, of its destination). older_s, younger_s: bounds of its age, counted
    in queue time from its acceptance. Text case is ignored.
    """

    ids: list[bytes] = field(default_factory=list)
    channel: int | None = None
    sender: str | None = None
    recipient: str | None = None
    domain: str | None = None
    reason: str | None = None
    older_s: float | None = None
    younger_s: float | None = None

    def takes_key(self, id: bytes, channel: int) -> bool:
        """Whether an item may be meant, as far as its key tells."""
        return (not self.ids or id in self.ids) and (self.channel is None or self.channel == channel)

    def takes(self, item: Item, now_ms: int, why: Callable[[Item], str]) -> bool:
        """Whether the item is meant. now_ms: queue time; why: what its destination suffers from, asked only if `reason` is given."""
        if not self.takes_key(item.id, item.channel):
            return False
        age_s = (now_ms - item.queued_ms) / 1000
        if self.older_s is not None and age_s < self.older_s:
            return False
        if self.younger_s is not None and age_s >= self.younger_s:
            return False
        if self.reason is not None:
            texts = [item.reason, *(reply_text(r) or "" for r in item.envelope.recipients), why(item)]
            if not any(self.reason.lower() in text.lower() for text in texts):
                return False
        if (
            self.sender is not None
            and item.envelope.reverse_path.lower() != self.sender.strip("<>").lower().encode()
        ):
            return False
        addresses = [r.address.lower() for r in item.envelope.recipients]
        if self.recipient is not None and self.recipient.lower().encode() not in addresses:
            return False
        return self.domain is None or any(a.endswith(b"@" + self.domain.lower().encode()) for a in addresses)


def reply_text(recipient: Recipient) -> str | None:
    """The last reply to a recipient, or None."""
    reply = recipient.reply
    return f"{reply.code} {reply.status} {reply.text}" if reply else None


class Found(Struct):
    """An item in the index. state: one of `STATES`; due_ms: queue time, 0 for a leased one; item None: the row is damaged."""

    key: bytes
    id: bytes
    channel: int
    state: str
    due_ms: int
    item: Item | None


_STATE = {FRESH: "ready", RETRY: "deferred", HELD: "held", QUARANTINED: "quarantined"}


def rebuilding(path: Path) -> bool:
    """Whether the queue's index is built anew from the segments, or is about to be: counts and lists are not whole until it is."""
    spool = folder(path)
    if recovery.distrusted(spool) or not recovery.usable(spool):
        return True
    try:
        index = Index(spool / "index", readonly=True)
    except (lmdb.Error, FileNotFoundError):
        return True
    try:
        return index.is_rebuilding()
    finally:
        index.close()


def find(index: Index, selection: Selection) -> Iterator[Found]:
    """Items that are meant: those queued, then those leased; read in short transactions."""
    held = {channel for channel in range(64) if index.channel_held(channel)}
    now_ms = index.clock.now_ms()
    reasons: dict[tuple[int, str], str] = {}

    def why(item: Item) -> str:
        place = (item.channel, item.destination)
        if place not in reasons:
            known = index.destination(*place) if item.destination else None
            reasons[place] = known.reason if known else ""
        return reasons[place]

    for class_, due_ms, item, key in index.queued(selection.takes_key):
        if item is None or selection.takes(item, now_ms, why):
            state = _STATE.get(class_, "held")
            if key[0] in held and state != "quarantined":
                state = "held"
            yield Found(key, key[18:34], key[0], state, due_ms, item)
    for key, item in index.leased():
        if item is not None and selection.takes(item, now_ms, why):
            yield Found(key, item.id, item.channel, "leased", 0, item)


def text(value: bytes) -> str:
    """Wire data as people read it."""
    return value.decode("utf-8", "backslashreplace")


def rfc3339(ns: int) -> str:
    """A wall clock, ns since 1970, as RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(ns / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_GRAVITY = {state: n for n, state in enumerate(("ready", "deferred", "leased", "held", "quarantined"))}


def list_items(
    path: Path, selection: Selection | None = None, *, limit: int = 0, weights: Weights | None = None
) -> list[dict[str, Any]]:
    """Messages in the queue, the oldest first, one entry each with all of its recipients that have no outcome yet.

    id, input_channel, reverse_path, size, received, state, reason, recipients[{address, channel, identifier, state, attempts,
    next_attempt, reply}]. A message's state is the gravest of its recipients'. Times are RFC 3339 in UTC. limit: entries, 0: all.
    weights: if mail leaves by weight; then there is `weight`, the lowest of the message's parts for remote hosts (None: it has none).
    """
    with looking(path) as index, content_of(path, weights) as blobs:
        offset_ns = time.time_ns() - index.clock.now_ms() * 1_000_000
        found: dict[bytes, dict[str, Any]] = {}
        backoffs: dict[tuple[int, str], int] = {}
        for entry in find(index, selection or Selection()):
            item = entry.item
            if item is None:
                found.setdefault(entry.id, _damaged_entry(entry))
                continue
            place = (item.channel, item.destination)
            if place not in backoffs:
                known = index.destination(*place) if item.destination else None
                backoffs[place] = known.backoff_ms if known else 0
            envelope = item.envelope
            message = found.get(item.id)
            if message is None:
                message = found[item.id] = {
                    "id": id_text(item.id),
                    "input_channel": channel_name(envelope.input_channel),
                    "reverse_path": text(envelope.reverse_path),
                    "size": envelope.size,
                    "received": rfc3339(envelope.received_ns),
                    "state": entry.state,
                    "reason": item.reason,
                    "recipients": [],
                }
            elif _GRAVITY[entry.state] > _GRAVITY[message["state"]]:
                message["state"] = entry.state
                message["reason"] = item.reason or message["reason"]
            if weights is not None and blobs is not None:
                weight = message.setdefault("weight", None)
                if item.channel == Channel.SMTPC:
                    age_s = max(0, index.clock.now_ms() - item.queued_ms) / 1000
                    own = weights.of_item(item, blobs, age_s)
                    message["weight"] = own if weight is None else min(weight, own)
            waits = entry.state in ("ready", "deferred")
            due_ms = keys.resumes_ms(entry.due_ms, backoffs[place])
            message["recipients"] += [
                {
                    "address": text(r.address),
                    "channel": channel_name(item.channel),
                    "identifier": item.destination,
                    "state": entry.state,
                    "attempts": max(r.attempts, item.attempts),
                    "next_attempt": rfc3339(due_ms * 1_000_000 + offset_ns) if waits else None,
                    "reply": reply_text(r),
                }
                for r in envelope.recipients
            ]
        entries = sorted(found.values(), key=lambda m: (m["received"] or "", m["id"]))
        return entries[:limit] if limit else entries


@contextmanager
def content_of(path: Path, weights: Weights | None) -> Iterator[Blobs | None]:
    """What reads the headers that weights ask for; None without weights."""
    if weights is None:
        yield None
        return
    from iems.blobs import Blobs

    spool = folder(path)
    blobs = Blobs([spool / "segments", spool / "large"], max_open=16)
    try:
        yield blobs
    finally:
        blobs.close()


def _damaged_entry(entry: Found) -> dict[str, Any]:
    return {
        "id": id_text(entry.id),
        "input_channel": None,
        "reverse_path": None,
        "size": None,
        "received": None,
        "state": "quarantined",
        "reason": "its row in the index is damaged",
        "recipients": [],
    }


def show(path: Path, id: bytes, octets: int = 65536) -> tuple[dict[str, Any], bytes] | None:
    """(entry as in `list_items`, first octets of the content) of a message, or None if it is not in the queue."""
    from iems.blobs import Blobs

    entries = list_items(path, Selection(ids=[id]))
    if not entries:
        return None
    spool = folder(path)
    with looking(path) as index:
        for found in find(index, Selection(ids=[id])):
            if found.item is not None:
                blobs = Blobs([spool / "segments", spool / "large"], max_open=4)
                try:
                    return entries[0], blobs.read_range(found.item.rope, 0, octets)
                except (FileNotFoundError, EOFError) as error:
                    return entries[0] | {"reason": str(error)}, b""
                finally:
                    blobs.close()
    return entries[0], b""


#: For each command, the states of the items it changes; a channel on hold is none of their own.
CHANGES = {
    "hold": ("ready", "deferred"),
    "release": ("held", "quarantined"),
    "retry": ("ready", "deferred"),
    "bounce": ("ready", "deferred", "held", "quarantined"),
    "delete": ("ready", "deferred", "held", "quarantined"),
}


def would_change(path: Path, selection: Selection, states: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Items that are meant and stand in one of `states`, in the order of the queue; nothing is changed.

    id, channel, identifier, state, reverse_path, recipients[address].
    """
    with looking(path) as index:
        for found in find(index, selection):
            state = _own_state(found)
            if found.item is None or state not in states:
                continue
            yield {
                "id": id_text(found.id),
                "channel": channel_name(found.channel),
                "identifier": found.item.destination,
                "state": state,
                "reverse_path": text(found.item.envelope.reverse_path),
                "recipients": [text(r.address) for r in found.item.envelope.recipients],
            }


def _own_state(found: Found) -> str:
    """The state of an item itself, whatever its channel's is."""
    return "leased" if found.state == "leased" else _STATE.get(found.key[1], "held")


# --- changing


def hold_channel(path: Path, channel: int, hold: bool) -> None:
    """Put a channel on hold, for what waits and what arrives later; or let it go on."""

    def change(index: Index) -> None:
        recovery.keep_hold(folder(path), channel, hold)
        index.hold_channel(channel, hold)

    _with_index(path, change)


def hold(path: Path, selection: Selection) -> int:
    """Nobody takes these items until they are released; how many. Leased and quarantined ones are left alone."""
    return _reclass(path, selection, CHANGES["hold"], _hold)


def _hold(change: Change, found: Found, item: Item) -> None:
    item.reason = item.reason or "held by an administrator"
    change.put(item, HELD, found.due_ms, live=False)


def release(path: Path, selection: Selection) -> int:
    """Held and quarantined items become due at once; how many."""
    return _reclass(path, selection, CHANGES["release"], _release)


def _release(change: Change, found: Found, item: Item) -> None:
    if found.state == "quarantined":
        item.deaths = -recovery.MAX_DEATHS  # those deaths are forgiven, not the next three
    item.reason = item.envelope.held = ""
    change.put(item, RETRY if item.attempts else FRESH, live=False)


def retry(path: Path, selection: Selection) -> int:
    """Deferred items become due at once, and their destinations are tried again; how many."""
    return _reclass(path, selection, CHANGES["retry"], _retry)


def _retry(change: Change, found: Found, item: Item) -> None:
    if item.destination and keys.has_agenda(item.channel):
        hop = change.destination(item.channel, keys.destination_hash(item.destination), item.destination)
        hop.backoff_ms = hop.failures = 0
    change.put(item, RETRY if item.attempts else FRESH, live=False)


def _reclass(
    path: Path, selection: Selection, states: tuple[str, ...], put: Callable[[Change, Found, Item], None]
) -> int:
    def work(index: Index) -> int:
        number = 0
        chosen: list[Found] = []

        def flush() -> int:
            done = 0
            with index.change() as change:
                for found in chosen:
                    item = found.item
                    if item is not None and change.remove(found.key, item, live=False):
                        put(change, found, item)
                        done += 1
            chosen.clear()
            return done

        for found in list(find(index, selection)):
            if _own_state(found) in states and found.item is not None:
                chosen.append(found)
                if len(chosen) == 128:
                    number += flush()
        return number + flush()

    return _with_index(path, work)


def delete(path: Path, selection: Selection) -> int:
    """Discard these items without telling anybody; how many. What is leased at the moment is left alone."""

    async def work(spool: Spool) -> int:
        number = 0
        for items in _leased_by_us(spool, selection):
            await spool.settle(
                [Settlement(i, [Result(r, Outcome.DISCARDED) for r in i.envelope.recipients]) for i in items],
                flush=True,
            )
            number += len(items)
        return number

    return with_spool(path, work)


#: What the sender of a bounced message is told.
BOUNCED = Reply(554, 5, 0, "Returned by the administrator")


def bounce(path: Path, selection: Selection, *, hostname: str, postmaster: str) -> int:
    """Return these items to their senders, with a DSN where the sender asked for none to be left out; how many."""
    from iems.spool import dsn

    async def work(spool: Spool) -> int:
        number = 0
        for items in _leased_by_us(spool, selection):
            plain: list[Settlement] = []
            for item in items:
                results = [Result(_told(r), Outcome.FAILED, BOUNCED) for r in item.envelope.recipients]
                try:
                    head = spool.blobs.read_range(item.rope, 0, dsn.HEAD_OCTETS)
                except (FileNotFoundError, EOFError):
                    head = b""
                report = dsn.make(
                    item,
                    results,
                    "failed",
                    hostname=hostname,
                    postmaster=postmaster,
                    content_head=head,
                    now_ns=time.time_ns(),
                )
                settlement = Settlement(item, results)
                if report is None:
                    plain.append(settlement)
                else:
                    report.settled = [settlement]
                    await spool.settle([], [report])
            if plain:
                await spool.settle(plain, flush=True)
            number += len(items)
        return number

    return with_spool(path, work)


def _told(recipient: Recipient) -> Recipient:
    recipient.reply = BOUNCED
    return recipient


def _leased_by_us(spool: Spool, selection: Selection) -> Iterator[list[Item]]:
    """Items that are meant, leased to this process in batches."""
    chosen = [f for f in find(spool.index, selection) if f.state != "leased" and f.item is not None]
    for start in range(0, len(chosen), 64):
        batch = []
        with spool.index.change() as change:
            for found in chosen[start : start + 64]:
                item = found.item
                if item is not None and change.lease(
                    found.key, item, spool.params.generation, spool.params.slot
                ):
                    batch.append(item)
        if batch:
            yield batch


# --- opening the spool of a running or a stopped server


@contextmanager
def _stopped(spool: Path) -> Iterator[bool]:
    """Whether the server is stopped; while the block runs it stays that way, or a running one can't be replaced."""
    lock = spool.parent / "run" / "lock"
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False
    finally:
        os.close(fd)


@contextmanager
def looking(path: Path) -> Iterator[Index]:
    """The index to read. A stopped server's untrusted index is built anew first."""
    spool = folder(path)
    with _stopped(spool) as stopped:
        if stopped and not recovery.usable(spool):
            _put_in_order(spool)
    index = Index(spool / "index", readonly=True)
    try:
        yield index
    finally:
        index.close()


def _put_in_order(spool: Path) -> None:
    """Do for a stopped server what its start would: nobody else is there to build the index."""

    async def nothing(opened: Spool) -> None:
        return None

    recovery.prepare(spool)
    try:
        _run(spool, nothing, alone=True)
    finally:
        recovery.seal(spool)


def _with_index(path: Path, work: Callable[[Index], T]) -> T:
    async def body(spool: Spool) -> T:
        return work(spool.index)

    return with_spool(path, body)


def with_spool(path: Path, work: Callable[[Spool], Coroutine[Any, Any, T]]) -> T:
    """What `work` gives, called with the opened spool of a running or a stopped server."""
    spool = folder(path)
    with _stopped(spool) as stopped:
        if not stopped:
            return _run(spool, work, alone=False)
        recovery.prepare(spool)
        try:
            return _run(spool, work, alone=True)
        finally:
            recovery.seal(spool)


def _run(spool: Path, work: Callable[[Spool], Coroutine[Any, Any, T]], *, alone: bool) -> T:
    async def body() -> T:
        opened = Spool.open(
            SpoolParams(
                spool,
                role="admin",
                slot=recovery.ADMIN_SLOT,
                generation=os.getpid(),
                loop=asyncio.get_running_loop(),
            )
        )
        try:
            if alone:
                await rebuild(opened)
                await recovery.recover(opened, lambda slot, generation: False, {})
            return await work(opened)
        finally:
            opened.close()

    return asyncio.run(body())


def submit(path: Path, messages: list[Message]) -> None:
    """Put messages into the INPUT queue, durably. Raises SpoolError if one could not be."""

    async def work(spool: Spool) -> None:
        for error in await spool.append(messages):
            if error is not None:
                raise error

    with_spool(path, work)


def audit(path: Path, delivered: set[tuple[bytes, bytes]] | None = None) -> dict[str, int]:
    """The balance of all mail; see `audit.audit`."""
    from iems.spool.audit import audit as run

    return run(path, delivered)


def fsck(path: Path) -> list[dict[str, Any]]:
    """What can't be read; see `audit.fsck`."""
    from iems.spool.audit import fsck as run

    return list(run(path))


def _oldest_s(index: Index, channel: int) -> float:
    """Age of the oldest item of a queue, by the time in its id; of a long queue the rows due first are looked at."""
    oldest = None
    now_ms = index.clock.now_ms()
    with index.read() as txn:
        cursor = txn.cursor(index.db["queue"])
        for class_ in (keys.FRESH, keys.RETRY, keys.HELD, keys.QUARANTINED):
            prefix = bytes((channel, class_))
            if not cursor.set_range(prefix):
                continue
            for seen, key in enumerate(cursor.iternext(values=False)):
                if not key.startswith(prefix) or seen >= _OLDEST_ROWS:
                    break
                if class_ == keys.FRESH:
                    due = int.from_bytes(key[10:18], "big")
                    oldest = due if oldest is None else min(oldest, due)
                    if not keys.has_agenda(channel):
                        break  # in the order of arrival: the first is the oldest
                else:
                    item = keys.peek_queued_ms(txn.get(key, db=index.db["queue"]))
                    if item is not None:
                        oldest = item if oldest is None else min(oldest, item)
    return 0.0 if oldest is None else max(0.0, (now_ms - oldest) / 1000)
