"""IMAP download: connections that fetch message after message, one command in flight (the paper used 18)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from iems._native import loadgen
from iems.perf import measure
from iems.perf.filled import filled
from iems.perf.home import PASSWORD

NAME = "imap_fetch"
TITLE = "IMAP FETCH BODY[]"
CASES = ((4_096, 18, 500), (250_000, 18, 100))


def download(options: measure.Options, octets: int, sessions: int, each: int, pop3: bool) -> dict[str, Any]:
    """Fetch from filled mailboxes by IMAP or POP3."""
    with filled(sessions, octets, max(20, int(each * min(1.0, options.scale * 3))), options.folder) as home:
        last = max(20, int(each * min(1.0, options.scale * 3)))
        repetitions = [
            measure.repetition(
                [home.pid],
                lambda mark: loadgen.fetch(
                    home.port("pop3" if pop3 else "imap"), home.users(), PASSWORD.encode(),
                    b"RETR %ld" if pop3 else b"FETCH %ld BODY.PEEK[]", 1, last, sessions=sessions, pop3=pop3,
                    warmup_s=options.warmup_s + 1, run_s=options.run_s, on_mark=mark,
                ),
            )
            for _ in range(options.repeats)
        ]  # fmt: skip
    return {"case": f"{octets}x{sessions}", "octets": octets, "sessions": sessions} | measure.figures(repetitions)


def run(options: measure.Options) -> Iterator[dict[str, Any]]:
    """Every case."""
    for octets, sessions, each in CASES:
        record = {"rig": NAME} | download(options, octets, sessions, each, pop3=False)
        if octets == 250_000:
            record["module"] = "imap"
        yield record
