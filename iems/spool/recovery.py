"""What happens between two lives: whether the index can be trusted, what dead workers left, building the index again.

`prepare` and `seal` are called by the master while no worker runs; the rest by the janitor. docs/spool.md has the table of states.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb
import msgspec
from msgspec import Struct

from iems import reserve
from iems.blobs import blob_number, segment_name
from iems.durable import sync_folder, write_durably
from iems.model import INPUT, Channel, Extent
from iems.spool import keys, records
from iems.spool.clock import boot_ms
from iems.spool.index import MAP_OCTETS, Change, Index
from iems.spool.items import Item
from iems.spool.keys import BlobRow
from iems.spool.rebuild import message_item
from iems.spool.records import Done, Kind

if TYPE_CHECKING:
    from iems.spool.spool import Spool

#: Workers that may die over one message before it is quarantined.
MAX_DEATHS = 3
#: The slot of leases held by a command line; their generation is its pid.
ADMIN_SLOT = 0xFFFF

_BOOT = "boot"  # which boot and which file the index belongs to
_MARK = "clean"  # the index was synced and nothing has written since
_DISTRUST = "distrust"  # somebody met a damaged page
_HOLDS = "holds"  # in the spool's folder: names of the channels on hold


class Boot(Struct):
    """Where an index was last written."""

    boot_id: str
    device: int
    inode: int


class Prepared(Struct):
    """What `prepare` found. fresh: there was no spool. rebuild: the janitor must read the segments."""

    fresh: bool
    trusted: bool
    rebuild: bool


def boot_id() -> str:
    """The kernel's name for this boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def channels_on_hold(path: Path) -> list[int]:
    """Channels an administrator has put on hold; kept beside the index, which may be lost. path: HOME/spool."""
    try:
        names = (path / _HOLDS).read_text("ascii").split()
    except (OSError, UnicodeDecodeError):
        return []
    known = {"INPUT": INPUT, **{name: int(channel) for name, channel in Channel.__members__.items()}}
    return [known[name] for name in names if name in known]


def keep_hold(path: Path, channel: int, hold: bool) -> None:
    """Note durably that a channel is, or is no longer, on hold. Raises OSError. path: HOME/spool."""
    found = {*channels_on_hold(path), channel} if hold else {*channels_on_hold(path)} - {channel}
    write_durably(path / _HOLDS, "".join(f"{_name(each)}\n" for each in sorted(found)).encode())


def _name(channel: int) -> str:
    return Channel(channel).name if channel != INPUT else "INPUT"


def distrust(path: Path) -> bool:
    """Note that the index is damaged: the janitor, or the next `prepare`, builds it again. Whether that is news. path: HOME/spool."""
    mark = path / "index" / _DISTRUST
    if mark.exists():
        return False
    try:
        write_durably(mark, b"")
    except OSError:
        pass
    return True


def distrusted(path: Path) -> bool:
    """Whether somebody met damage in the index."""
    return (path / "index" / _DISTRUST).exists()


def _boot_of(index: Path) -> Boot | None:
    try:
        return msgspec.json.decode((index / _BOOT).read_bytes(), type=Boot)
    except (OSError, msgspec.DecodeError):
        return None


def _trusted(index: Path) -> bool:
    """Whether the index is as its last writers left it: same boot and same file, or a clean stop."""
    try:
        found = os.stat(index / "data.mdb")
    except OSError:
        return False
    if (index / _DISTRUST).exists():
        return False
    if (index / _MARK).exists():
        return True
    boot = _boot_of(index)
    now = boot_id()
    return (
        boot is not None
        and now != ""
        and boot.boot_id == now
        and (boot.device, boot.inode) == (found.st_dev, found.st_ino)
    )


def usable(path: Path) -> bool:
    """Whether a stopped server's index may be read as it is. path: HOME/spool."""
    return _trusted(path / "index")


def _blob_files(path: Path) -> list[Path]:
    return [
        entry
        for folder in ("segments", "large")
        for entry in sorted((path / folder).iterdir())
        if blob_number(entry.name) is not None
    ]


def prepare(path: Path, *, map_octets: int = MAP_OCTETS) -> Prepared:
    """Make the spool ready before any worker opens it. path: HOME/spool; nobody else may have it open.

    Decides whether the index can be trusted; if not, it is moved aside and an empty one made, which the janitor fills. Durable
    before any later index write: the clean mark is gone. Raises OSError if the folders can't be made.
    """
    for folder in (path, path / "segments", path / "large"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    sync_folder(path)
    index = path / "index"
    trusted = _trusted(index)
    reserve.lock_file(index)
    if trusted:
        try:
            return _reopen(path, map_octets)
        except (lmdb.Error, msgspec.DecodeError, OSError):
            pass
    files = _blob_files(path)
    fresh = not files and not index.exists()
    _new_index(path, map_octets, 1, _queue_ms_of_files(files) - boot_ms(), files)
    return Prepared(fresh, trusted=False, rebuild=bool(files))


def replace_index(spool: Spool) -> None:
    """Put an empty index in the place of a damaged one while everybody works; `rebuild` fills it. For the janitor.

    The other processes notice within a second, open the new one and let go of their segments. What they did to the old one
    meanwhile is lost with it, but not what they wrote.
    """
    path = spool.params.path
    old = spool.index
    # Another run: a lease of the old index is told from one of the new.
    _new_index(path, spool.params.map_octets, old.run + 1, old.clock.offset_ms, _blob_files(path))
    old.next_epoch()
    old.refresh()
    spool.writer.release()


def _new_index(path: Path, map_octets: int, run: int, clock_offset_ms: int, files: list[Path]) -> None:
    """An empty index, to be filled from `files`; the old one is moved aside."""
    folder = path / "index"
    # Made under another name: a worker that opens the index meanwhile must not find half of it.
    fresh = path / "index.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    env = lmdb.open(
        str(fresh), map_size=map_octets, max_dbs=len(keys.DATABASES), max_readers=4096, sync=False, mode=0o600
    )
    try:
        meta = {name: env.open_db(name.encode()) for name in keys.DATABASES}["meta"]
        with env.begin(write=True) as txn:
            txn.put(keys.META_VERSION, keys.VERSION.to_bytes(4, "big"), db=meta)
            txn.put(keys.META_RUN, run.to_bytes(4, "big"), db=meta)
            txn.put(keys.META_CLOCK, clock_offset_ms.to_bytes(8, "big", signed=True), db=meta)
            for channel in channels_on_hold(path):
                txn.put(keys.META_HOLD + bytes((channel,)), b"1", db=meta)
            if files:
                txn.put(keys.META_REBUILD, b"1", db=meta)
                highest = max(blob_number(f.name) or 0 for f in files)
                txn.put(keys.META_BLOB, highest.to_bytes(8, "big"), db=meta)
    finally:
        env.close()
    reserve.lock_file(fresh)
    _write_boot(fresh)
    if folder.exists():
        for old in path.glob("index.lost-*"):
            shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, path / f"index.lost-{time.time_ns()}")
    os.rename(fresh, folder)
    sync_folder(path)


def _reopen(path: Path, map_octets: int) -> Prepared:
    """Go on with a trusted index. Raises lmdb.Error if it can't be read after all."""
    folder = path / "index"
    boot = _boot_of(folder)
    if (folder / _MARK).exists():
        # Gone for good before the first write: after a power cut it would vouch for an index that was being written.
        os.unlink(folder / _MARK)
        sync_folder(folder)
    index = Index(folder, map_octets=map_octets)
    try:
        index.env.reader_check()
        with index.env.begin(write=True) as txn:
            meta = index.db["meta"]
            if txn.get(keys.META_VERSION, db=meta) != keys.VERSION.to_bytes(4, "big"):
                raise lmdb.VersionMismatchError("the index has another layout")
            txn.put(keys.META_RUN, (index.run + 1).to_bytes(4, "big"), db=meta)
            if boot is None or boot.boot_id != boot_id():
                saved = int.from_bytes(txn.get(keys.META_QUEUE_MS, b"\0", db=meta), "big")
                txn.put(keys.META_CLOCK, (saved - boot_ms()).to_bytes(8, "big", signed=True), db=meta)
            rebuild = txn.get(keys.META_REBUILD, db=meta) is not None
    finally:
        index.close()
    _write_boot(folder)
    return Prepared(fresh=False, trusted=True, rebuild=rebuild)


def _write_boot(index: Path) -> None:
    found = os.stat(index / "data.mdb")
    write_durably(index / _BOOT, msgspec.json.encode(Boot(boot_id(), found.st_dev, found.st_ino)))


def _queue_ms_of_files(files: list[Path]) -> int:
    """Queue time to go on with when only segments are left: the latest they show, with the time each was written."""
    latest = 0
    for file in files:
        if file.suffix != ".seg":
            continue
        try:
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            head = records.read_file_head(fd)
            if head is not None:
                # a segment is sealed after an hour; more can only be a step of the wall clock
                written_ms = (os.fstat(fd).st_mtime_ns - head.created_ns) // 1_000_000
                latest = max(latest, head.queue_ms + min(max(written_ms, 0), 7_200_000))
        finally:
            os.close(fd)
    return latest


class Recovered(Struct):
    """What a round of recovery did."""

    segments: int = 0
    settled: int = 0
    voided: int = 0
    messages: int = 0
    returned: int = 0
    quarantined: int = 0


async def recover(spool: Spool, alive: Callable[[int, int], bool], blamed: dict[bytes, int]) -> Recovered:
    """Take over what dead workers left: their segments first, then their leases.

    alive: whether (slot, generation) lives. blamed: message id -> workers that died with it in work; after three an item is
    quarantined. Run by the janitor, at its start and after each death; a second run finds nothing to do.
    """
    done = Recovered()
    index = spool.index
    dead = [(key, item) for key, item in index.leased() if not _holder_lives(index, key, alive)]
    for blob, row in index.blob_rows().items():
        if not row.sealed and not row.large:
            await _recover_segment(spool, blob, row, done)
    for start in range(0, len(dead), 128):
        with index.change() as change:
            for key, item in dead[start : start + 128]:
                _return_lease(change, key, item, blamed, done)
        await asyncio.sleep(0)
    return done


def _holder_lives(index: Index, key: bytes, alive: Callable[[int, int], bool]) -> bool:
    run, generation, slot, *_ = keys.unpack_lease_key(key)
    if slot == ADMIN_SLOT:
        return os.path.exists(f"/proc/{generation}")
    return run == index.run and alive(slot, generation)


def _return_lease(
    change: Change, key: bytes, item: Item | None, blamed: dict[bytes, int], done: Recovered
) -> None:
    if item is None:
        change.drop_damaged_lease(key)
        return
    if not change.unlease(item):
        return
    # a negative count is what an administrator forgave at a release
    deaths = blamed.get(item.id, 0) + min(item.deaths, 0)
    if item.deaths >= 0:
        item.deaths = deaths
    if deaths >= MAX_DEATHS:
        item.reason = f"{deaths} workers died over it"
        change.put(item, keys.QUARANTINED, live=False)
        done.quarantined += 1
    else:
        change.put(item, keys.RETRY if item.attempts else keys.FRESH, live=False)
        done.returned += 1


async def _recover_segment(spool: Spool, blob: int, row: BlobRow, done: Recovered) -> None:
    """Seal the segment of a dead writer: past its indexed length outcomes are applied, the rest was promised to nobody."""
    path = spool.params.path / "segments" / segment_name(blob)
    index = spool.index
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        with index.change() as change:
            change.edit_blob(blob, sealed=True)
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # its writer lives
        current = index.blob_row(blob)  # the writer may have gone on until just now
        if current is None or current.sealed:
            return
        size = os.fstat(fd).st_size
        head = records.read_file_head(fd)
        good: list[_Tail] = []
        void, end = [(current.indexed, size)], size
        if head is not None:
            good, void, end = _sift(fd, current.indexed, size, head.nonce)
        if good:
            os.fsync(fd)
        if void:
            ranges = [(blob, start, stop if stop < end else records.FOR_EVER) for start, stop in void]
            await spool.void(ranges)
            done.voided += len(void)
        with index.change() as change:
            leases = _leases_of(change, current)
            for record, message, outcomes in good:
                if message is not None:
                    _enqueue(change, blob, record, message)
                    done.messages += 1
                for outcome in outcomes:
                    done.settled += 1
                    if outcome.home != blob:
                        change.name(blob, outcome.home)
                    _apply_outcome(change, outcome, leases)
            change.edit_blob(blob, sealed=True, length=end, indexed=end)
        records.cut_zeros(path, end)
        done.segments += 1
    finally:
        os.close(fd)


_Tail = tuple[records.Record, records.MessageHead | None, list[Done]]


def _sift(fd: int, start: int, size: int, nonce: bytes) -> tuple[list[_Tail], list[tuple[int, int]], int]:
    """The unindexed end of a dead writer's segment: what counts, the ranges that don't, and where the zeros behind them begin.

    Outcomes count, with the messages made because of them when their chain is whole: the work was done. A message that
    was only accepted got no 250, so it is the client's still.
    """
    good: list[_Tail] = []
    void: list[tuple[int, int]] = []
    chains = records.Chains()
    end = start
    for found in records.scan(fd, start, size, nonce, unsealed=True):
        end = found.end
        counts, broken = chains.feed(found)
        void += [(record.offset, record.end) for record in broken]
        if isinstance(found, records.Damaged):
            void.append((found.offset, found.end))
        messages = [r for r in counts if r.kind == Kind.MESSAGE]
        if messages:
            heads = [records.decode_message(records.read_payload(fd, r)) for r in messages]
            if any(head.settles for head in heads):
                good += [(r, head, head.settles) for r, head in zip(messages, heads, strict=True)]
            else:
                void += [(r.offset, r.end) for r in messages]
        for record in counts:
            if record.kind == Kind.SETTLE:
                good.append((record, None, records.decode_settle(records.read_payload(fd, record))))
            elif record.kind in (Kind.CONTENT, Kind.MOVED):
                void.append((record.offset, record.end))
            # VOID, LEDGER and FOOTER say nothing about the queue, and stay true
    void += [(record.offset, record.end) for record in chains.end()]
    return good, void, end


def _leases_of(change: Change, row: BlobRow) -> dict[tuple[int, bytes, int], bytes]:
    """(channel, id, part) -> key of what a segment's writer had leased."""
    found = {}
    prefix = keys.holder_key(row.run, row.generation, row.slot)
    with change.txn.cursor(change.db["lease"]) as cursor:
        if cursor.set_range(prefix):
            for key in cursor.iternext(values=False):
                if not key.startswith(prefix):
                    break
                _, _, _, channel, _, id, part = keys.unpack_lease_key(key)
                found[channel, id, part] = bytes(key)
    return found


def _apply_outcome(change: Change, outcome: Done, leases: dict[tuple[int, bytes, int], bytes]) -> None:
    """Settle what a dead worker had settled but not told the index; recipients without an outcome return to the queue."""
    key = leases.get((outcome.channel, outcome.id, outcome.part))
    value = change.txn.get(key, db=change.db["lease"]) if key is not None else None
    if key is None or value is None:
        if change.index.rebuilding:
            change.note_settled(outcome.id, outcome.results, outcome.channel)
        return
    try:
        item = keys.decode_item(value)
    except keys.DamagedRow:
        return
    item.lease = key
    change.unlease(item)
    settled = {address for address, _ in outcome.results}
    left = [r for r in item.envelope.recipients if r.address not in settled]
    if left:
        item.envelope.recipients = left
        change.put(item, keys.RETRY if item.attempts else keys.FRESH, live=False)
    else:
        change.live(item, -1)


def _enqueue(change: Change, blob: int, record: records.Record, message: records.MessageHead) -> None:
    """Put a message found in a segment into the INPUT queue."""
    change.put(message_item(blob, record, message), keys.HELD if message.envelope.held else keys.FRESH)
    for extent in message.rope:
        if isinstance(extent, Extent):
            change.edit_blob(extent.blob, large=True, sealed=True, length=extent.length)


def seal(path: Path, *, map_octets: int = MAP_OCTETS) -> None:
    """At a clean stop, after all workers are gone: sync segments and index, then mark the index clean. path: HOME/spool."""
    folder = path / "index"
    index = Index(folder, map_octets=map_octets)
    try:
        for blob, row in index.blob_rows().items():
            if not row.sealed and not row.large:
                try:
                    fd = os.open(path / "segments" / f"{blob:016x}.seg", os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
        sync_folder(path / "segments")
        sync_folder(path / "large")
        index.set_meta(keys.META_QUEUE_MS, index.clock.now_ms().to_bytes(8, "big"))
        index.sync()
    finally:
        index.close()
    write_durably(folder / _MARK, b"")
