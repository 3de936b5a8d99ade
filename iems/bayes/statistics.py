"""What a folder has learnt, and what it takes on the disk."""

from __future__ import annotations

from pathlib import Path

from iems.bayes import records
from iems.bayes.side import Damaged, Side

_FILES = ("good", "spam", "journal", "undo", "waiting", "recent")


def statistics(folder: Path) -> dict[str, int | float | str]:
    """Figures of a folder, without changing it. Damaged or missing tables count as empty and are named in `state`."""
    figures: dict[str, int | float | str] = {}
    state = []
    octets = given_octets = 0
    for name in ("good", "spam"):
        try:
            side = Side.map(folder / name)
        except FileNotFoundError:
            side = Side()
        except Damaged as exc:
            side = Side()
            state.append(f"{name} is damaged ({exc}): the next learning starts anew")
        slots = 16 << side.bits
        entries = len(side.items())
        figures |= {
            f"{name}_given": side.given,
            f"{name}_learnt": side.messages,
            f"{name}_features": entries,
            f"{name}_fill": round(entries / slots, 3),
            f"{name}_halved": side.halved,
        }
        given_octets += side.given_octets
    waiting = sum(1 for _ in records.read(folder / "waiting"))
    for name in _FILES:
        path = folder / name
        octets += path.stat().st_size if path.exists() else 0
    if not (figures["good_learnt"] and figures["spam_learnt"]) and not state:
        state.append("nothing is told apart until both good mail and spam have been learnt")
    figures |= {
        "waiting": waiting,
        "undo": len({record.digest for record in records.read(folder / "undo") if record.lesson}),
        "octets": octets,
        "given_octets": given_octets,
        "octets_share": round(octets / given_octets, 4) if given_octets else 0.0,
        "state": "; ".join(state) or "ready",
    }
    return figures
