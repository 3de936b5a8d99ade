"""Whether an index is sound: read whole, in a process that may die of it.

`python -m iems.spool.soundness HOME/spool` ends with 0 if all is well, 1 if rows contradict each other (the reason on stdout). LMDB has no
checksum on its pages: a bad one may as well crash, or send a reader round in circles. So this runs apart, and anything
but 0 or 1, or no answer in time, means the same to the janitor: build another index. What readers never look at, the list of free
pages, is tried by writing, in a child: every writer would die of it.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
from pathlib import Path

import lmdb
import msgspec

from iems.model import Extent
from iems.spool import keys
from iems.spool.index import Index, is_damage
from iems.spool.keys import HELD, LEASED, DamagedRow, has_agenda

#: A reader that goes round in circles is ended after this time.
LIMIT_S = 60
#: The same of a writer; and how long it waits for its turn, after which nothing is said of writing.
WRITE_S = 10
#: So many pages in one piece are asked for, that LMDB goes through its list of free ones.
ROOM_OCTETS = 1 << 20


def check(index: Index) -> str:
    """What is wrong, '' if nothing is. One read transaction, so it holds while others write. May raise lmdb.Error."""
    counts: dict[tuple[int, int], int] = {}
    live: dict[int, int] = {}
    waiting: set[bytes] = set()
    damaged = 0
    with index.read() as txn:
        meta = index.db["meta"]
        if txn.get(keys.META_VERSION, db=meta) != keys.VERSION.to_bytes(4, "big"):
            return "the version is wrong"
        for name, octets in (("queue", keys.QUEUE_OCTETS), ("lease", keys.LEASE_OCTETS)):
            last = b""
            search = txn.cursor(index.db[name])
            for key, value in txn.cursor(index.db[name]):
                if key <= last or len(key) != octets:
                    return f"keys of {name} are out of order"
                last = key
                if not search.set_key(key):
                    return f"a row of {name} stands where nobody would look"
                if name == "queue":
                    place = (key[0], key[1])
                    if key[1] < HELD and has_agenda(key[0]):
                        waiting.add(key[:1] + key[2:10])
                else:
                    place = (key[10], LEASED)
                counts[place] = counts.get(place, 0) + 1
                try:
                    item = keys.decode_item(value)
                except DamagedRow:
                    damaged += 1
                    continue
                if item.channel != place[0] or item.id != key[-18:-2]:
                    return f"a row of {name} stands under another's key"
                homes = {item.home, *(piece.blob for piece in item.rope if isinstance(piece, Extent))}
                for blob in homes:
                    live[blob] = live.get(blob, 0) + 1
        stored = {(k[0], k[1]): int.from_bytes(v, "big") for k, v in txn.cursor(index.db["count"])}
        if {k: n for k, n in stored.items() if n} != counts:
            return "the counters don't fit the rows"
        rows = {int.from_bytes(k, "big"): keys.decode_blob(v) for k, v in txn.cursor(index.db["blob"])}
        if not damaged and not sum(1 for _ in txn.cursor(index.db["damaged"])):
            for blob in rows.keys() | live.keys():
                if blob not in rows or rows[blob].live != live.get(blob, 0):
                    return f"the items that live in {blob:016x} are not those of its row"
        listed = {}
        for key in txn.cursor(index.db["agenda"]).iternext(values=False):
            channel, at, hashed = keys.unpack_agenda_key(key)
            listed[keys.dest_key(channel, hashed)] = at
        destinations = {k: keys.decode_destination(v) for k, v in txn.cursor(index.db["dest"])}
        for key, found in destinations.items():
            if listed.get(key, -1) != found.agenda_ms:
                return f"the agenda of {found.name} is not that of its row"
        for name, found_keys in (("dest", destinations), ("blob", [b.to_bytes(8, "big") for b in rows])):
            if any(txn.get(key, db=index.db[name]) is None for key in found_keys):
                return f"a row of {name} stands where nobody would look"
        for key in waiting:
            found_one = destinations.get(key)
            if found_one is None or (found_one.agenda_ms < 0 and not found_one.limit):
                return "nobody would come by for a destination's items"
        for name in ("names", "settled"):
            for _ in txn.cursor(index.db[name]):
                pass
    return ""


def write(path: Path, begun: int) -> None:
    """Take free pages and give them back, then commit what the janitor writes in each round. An octet to `begun` says it has its turn."""
    index = Index(path / "index")
    with index.env.begin(write=True) as txn:
        os.write(begun, b".")
        txn.put(b"soundness", bytes(ROOM_OCTETS), db=index.db["meta"])
        txn.abort()
    index.set_meta(keys.META_QUEUE_MS, index.clock.now_ms().to_bytes(8, "big"))


def check_writing(path: Path) -> str:
    """What is wrong with writing to the index, '' if nothing is or others kept it from its turn. Forks: for a process without threads."""
    look, tell = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            signal.alarm(0)
            os.close(look)
            write(path, tell)
            code = 0
        except lmdb.Error as error:
            code = 2 if is_damage(error) else 0
        finally:
            os._exit(code)
    os.close(tell)
    try:
        began = bool(select.select([look], [], [], WRITE_S)[0]) and bool(os.read(look, 1))
        ended = bool(select.select([look], [], [], WRITE_S)[0])  # readable, as nobody has the other end any more
    finally:
        os.close(look)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not ended:
        return "its writer gave no answer" if began else ""
    return f"its writer ended with {code}" if code else ""


async def sound(path: Path, limit_s: float = LIMIT_S + 10) -> str:
    """Have another process read the index; '' if it is sound, else what is wrong. path: HOME/spool."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "iems.spool.soundness",
        str(path),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), limit_s)
    except (TimeoutError, asyncio.CancelledError) as error:
        try:
            process.kill()
        except ProcessLookupError:
            pass
        await process.wait()
        if isinstance(error, asyncio.CancelledError):
            raise
        return "its reader gave no answer"
    if process.returncode == 0:
        return ""
    return said.decode(errors="replace").strip() or f"its reader ended with {process.returncode}"


def main(path: Path) -> int:
    """Check the index of a spool; the exit code."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LIMIT_S)
    try:
        wrong = check_writing(path) or check(Index(path / "index", readonly=True))
    except (lmdb.Error, msgspec.DecodeError, ValueError, IndexError) as error:
        wrong = f"{type(error).__name__}: {error}"
    if wrong:
        print(wrong, flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
