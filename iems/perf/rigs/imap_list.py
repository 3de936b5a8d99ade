"""Listing a large mailbox: FETCH 1:* (FLAGS ENVELOPE BODYSTRUCTURE) over 10,000 messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from iems._native import loadgen
from iems.perf import measure
from iems.perf.filled import filled
from iems.perf.home import PASSWORD

NAME = "imap_list"
TITLE = "FETCH 1:* (FLAGS ENVELOPE BODYSTRUCTURE)"
MESSAGES = 10_000


def run(options: measure.Options) -> Iterator[dict[str, Any]]:
    """One connection, the whole listing again and again; cpu_us is of one listing."""
    count = max(500, int(MESSAGES * options.scale))
    with filled(1, 4_096, count, options.folder) as home:
        repetitions = [
            measure.repetition(
                [home.pid],
                lambda mark: loadgen.fetch(
                    home.port("imap"), home.users(), PASSWORD.encode(), b"FETCH 1:* (FLAGS ENVELOPE BODYSTRUCTURE)", 1, 1, sessions=1,
                    warmup_s=options.warmup_s, run_s=options.run_s, on_mark=mark,
                ),
            )
            for _ in range(options.repeats)
        ]  # fmt: skip
    yield {"rig": NAME, "case": f"{count} messages", "messages": count} | measure.figures(repetitions)
