"""POP3 download: 18 connections that retrieve message after message."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from iems.perf.measure import Case, Options, Reading
from iems.perf.rigs import imap_fetch

NAME = "pop3_retr"
TITLE = "POP3 RETR"
PEERS = {"dovecot sdbox": ("dovecot",), "dovecot mdbox": ("dovecot",)}


def cases(options: Options) -> list[Case]:
    """Those of the IMAP download."""
    return imap_fetch.cases(options, "pop3")


@contextlib.contextmanager
def side(options: Options, case: Case, who: str) -> Iterator[Callable[[], Reading]]:
    """Fetch from filled mailboxes."""
    with imap_fetch.side(options, case, who, pop3=True) as once:
        yield once
