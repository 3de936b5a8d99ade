"""The queue for people: counting, listing, holding, releasing, retrying, bouncing, deleting; and the audit.

Called by the command line from a process of its own, with the server running or stopped; acts on the index, and where a fact must
survive on a record. `path` is a home or its spool folder. Functions raise FileNotFoundError if there is no spool.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from iems.model import INPUT, Channel
from iems.spool import keys
from iems.spool.index import Index

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
    index = Index(folder(path) / "index", readonly=True)
    try:
        numbers = index.counts()
        found = {}
        for channel in sorted({INPUT, int(Channel.LOCAL), int(Channel.SMTPC)} | {c for (c, _), n in numbers.items() if n}):
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
