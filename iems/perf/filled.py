"""A private server whose mailboxes hold mail before the clock starts."""

from __future__ import annotations

import imaplib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iems._native import loadgen
from iems.perf import messages, queue
from iems.perf.home import PASSWORD, PrivateHome
from iems.perf.measure import Server

#: Messages sent one by one before the rest is made by COPY, and the most one COPY makes.
SENT = 1_000
COPIED = 50_000


@contextmanager
def filled(accounts: int, octets: int, each: int, folder: Path | None) -> Iterator[PrivateHome]:
    """A home in which every account has `each` messages of `octets` in its INBOX."""
    with PrivateHome(accounts, folder=folder) as home:
        fill(home, octets, each)
        yield home


@contextmanager
def filled_dovecot(accounts: int, octets: int, each: int, folder: Path | None, program: str, form: str) -> Iterator[Server]:
    """A Dovecot with the same mail, delivered by LMTP."""
    from iems.perf.peers.dovecot import Dovecot

    with Dovecot(accounts, folder, program, form=form) as peer:
        fill(peer, octets, each)
        yield peer


def fill(server: Server, octets: int, each: int) -> None:
    """Give every account `each` messages: the first ones sent, the rest copies of them. Raises RuntimeError."""
    ours = isinstance(server, PrivateHome)
    users = server.users()
    count = len(users) * min(each, SENT)
    for _ in range(3):
        result = loadgen.smtp(
            server.port("smtp" if ours else "lmtp"), messages.pool(octets), users, b"sender@load.test", sessions=min(20, len(users) * 4),
            count=count, lmtp=not ours, first_id=time.time_ns(),
        )  # fmt: skip
        if not result["errors"]:
            break
        if ours:
            raise RuntimeError(f"filling mailboxes: {result['complaint']}")
        # a peer may close a connection now and then: whoever missed a message gets one more, and so does everybody
        count = len(users) * result["errors"]
    else:
        raise RuntimeError(f"filling mailboxes: {result['complaint']}")
    queue.drained(server)
    if each <= SENT:
        return
    for user in users:
        multiply(server, user, SENT, each)


def multiply(server: Server, user: bytes, have: int, wanted: int) -> None:
    """Copy messages within the INBOX of a user until there are `wanted`. Raises RuntimeError."""
    with imaplib.IMAP4("127.0.0.1", server.port("imap")) as session:
        session.login(user.decode(), PASSWORD)
        session.select("INBOX")
        while have < wanted:
            count = min(have, wanted - have, COPIED)
            answer, text = session.copy(f"1:{count}", "INBOX")
            if answer != "OK":
                raise RuntimeError(f"filling mailboxes: {text}")
            have += count
