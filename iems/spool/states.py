"""Every state a message, or some recipients of it, can be in: who moves it on, by which transaction, and what recovery does.

For people: `docs/spool.md` shows this table (a test compares them). One transaction a move; nothing in it waits for a socket, DNS or a flush.
"""

from __future__ import annotations

from typing import NamedTuple


class State(NamedTuple):
    """One row. where: what holds it; onward: who moves it on and how; killed: after the death of a process; lost: after a lost index."""

    name: str
    where: str
    onward: str
    killed: str
    lost: str


STATES = (
    State(
        "staged",
        "memory of smtpd, or a locked file in `large/`",
        "smtpd: `submit`, or `discard` at RSET and lost connections",
        "gone, the client got no 250; the file is an orphan and goes after an hour",
        "the same",
    ),
    State(
        "written",
        "MESSAGE record past the indexed length, perhaps flushed",
        "its writer: the index transaction of its group (INPUT row, indexed length), then 250",
        "voided: nobody got a 250. With outcomes in it (a DSN) it is applied, as the work was done",
        "counts if it is whole: a 250 may have been sent",
    ),
    State(
        "ready",
        "`queue` row, class 0",
        "preprocessor or an output channel: `take` makes it leased",
        "untouched",
        "MESSAGE without all outcomes: INPUT, to be routed again; MOVED: where it stood",
    ),
    State(
        "leased",
        "`lease` row of (run, generation, slot)",
        "its holder: `move`, `settle` or `give_back`",
        "outcomes its holder wrote are applied first; what is left returns to its queue; after three deaths with this message in work: quarantined",
        "as ready; outcomes that arrive late still count",
    ),
    State(
        "deferred",
        "`queue` row, class 1, due later",
        "time, or `queue retry`: `take`",
        "untouched",
        "as ready: tried at once, attempts and due time are forgotten, its age is not",
    ),
    State(
        "held",
        "`queue` row, class 200",
        "an administrator: `queue release`, `delete`, `bounce`",
        "untouched",
        "as ready, so a hold is lost unless the message was moved since",
    ),
    State(
        "quarantined",
        "`queue` row, class 201, with the reason",
        "an administrator: `queue release`, `delete`, `bounce`",
        "untouched",
        "as ready; quarantined again if its content is missing",
    ),
    State(
        "set aside",
        "`damaged` row: a row of the index failed its checksum",
        "janitor: mended from its record",
        "untouched",
        "as ready: the record was never damaged",
    ),
    State(
        "settled",
        "SETTLE record (or a MESSAGE that carries it) written; no row any more",
        "committer: flushed within a second, at once for relayed mail",
        "applied, if the index did not have it yet",
        "counts if it was flushed; else as leased, and the store knows a delivery by its origin",
    ),
    State(
        "moved",
        "MOVED record of the next generation; the original stays",
        "janitor, or an administrator who sends it another way: one transaction gives the items their new place",
        "a copy the index does not know is voided",
        "the copy of the highest generation counts",
    ),
    State(
        "done",
        "MESSAGE and outcomes in sealed segments in which nothing lives",
        "janitor: LEDGER record, then the names go, ten minutes after the last need",
        "the ledger's names are removed at the next round",
        "complete: not queued; names the latest ledger lists are removed unread",
    ),
)


def table() -> str:
    """The states as a Markdown table."""
    head = "| state | where it is | who moves it on | after a kill -9 | after a lost index |\n| --- | --- | --- | --- | --- |\n"
    return head + "".join("| " + " | ".join(state) + " |\n" for state in STATES)
