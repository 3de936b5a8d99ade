"""POP3 download: 18 connections that retrieve message after message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from iems.perf import measure
from iems.perf.rigs.imap_fetch import download

NAME = "pop3_retr"
TITLE = "POP3 RETR"
CASES = ((4_096, 18, 500), (250_000, 18, 100))


def run(options: measure.Options) -> Iterator[dict[str, Any]]:
    """Every case."""
    for octets, sessions, each in CASES:
        record = {"rig": NAME} | download(options, octets, sessions, each, pop3=True)
        if octets == 250_000:
            record["module"] = "pop3"
        yield record
