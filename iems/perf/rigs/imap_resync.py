"""A client comes back to a large mailbox with QRESYNC after ten changes (RFC 7162); figures are of its SELECT.

`first_ms`, `first_cpu_us`: the first by a server that has just started, least of the repetitions. The rest is of sessions that follow, each after ten
further changes: four flags set, three messages gone, three that are new.
"""

from __future__ import annotations

import contextlib
import imaplib
import random
import time
from collections.abc import Callable, Iterator

from iems.perf import measure, peers
from iems.perf.filled import filled, filled_dovecot
from iems.perf.home import PASSWORD, PrivateHome
from iems.perf.measure import Case, Options, Reading, Server

NAME = "imap_resync"
TITLE = "SELECT with QRESYNC after ten changes"
PEERS = {"dovecot sdbox": ("dovecot",)}
MESSAGES = 100_000
#: Sessions of a repetition; starts of the server.
TRIES, STARTS = 10, 3


def cases(options: Options) -> list[Case]:
    """One mailbox."""
    count = options.count(MESSAGES, 2_000)
    return [Case(f"{count} messages", {"messages": count, "also": ["first_ms", "first_cpu_us"]})]


@contextlib.contextmanager
def side(options: Options, case: Case, who: str) -> Iterator[Callable[[], Reading]]:
    """One client at a time."""
    place = (
        filled(1, 1_000, case["messages"], options.folder)
        if who == "iems"
        else filled_dovecot(1, 1_000, case["messages"], options.folder, peers.started("dovecot", options), who.split()[1])
    )
    chance = random.Random(7162)
    with place as home:
        known = _state(home)

        def resync() -> tuple[float, float]:
            nonlocal known
            began = known
            _change(home, chance)
            if restart and isinstance(home, PrivateHome):
                home.stop()
                home.start()
            seconds, cpu, known = _resync(home, began)
            return seconds, cpu

        restart = True
        firsts = [resync() for _ in range(1 if options.brief else STARTS)]
        first = {"first_ms": min(seconds for seconds, _ in firsts) * 1e3, "first_cpu_us": min(cpu for _, cpu in firsts) * 1e6}
        restart = False

        def once() -> Reading:
            taken = [resync() for _ in range(options.count(TRIES, 3))]
            return measure.latencies([seconds for seconds, _ in taken]) | {"cpu_us": min(cpu for _, cpu in taken) * 1e6} | first

        for _ in range(4):
            resync()  # each worker has had the mailbox before
        yield once


def _session(home: Server) -> imaplib.IMAP4:
    session = imaplib.IMAP4("127.0.0.1", home.port("imap"))
    session.login(home.users()[0].decode(), PASSWORD)
    session.enable("QRESYNC")
    return session


def _told(session: imaplib.IMAP4, what: str) -> int:
    value = session.untagged_responses.get(what, [b""])[-1]
    return int(value) if isinstance(value, bytes) and value else 0


def _state(home: Server) -> tuple[int, int]:
    """(UIDVALIDITY, HIGHESTMODSEQ) as a client keeps them."""
    with _session(home) as session:
        session.select("INBOX")
        return _told(session, "UIDVALIDITY"), _told(session, "HIGHESTMODSEQ")


def _change(home: Server, chance: random.Random) -> None:
    with _session(home) as session:
        count = int(session.select("INBOX")[1][0] or b"0")
        places = chance.sample(range(1, count + 1), 7)
        for place in places[:4]:
            session.store(str(place), "+FLAGS.SILENT" if place % 2 else "-FLAGS.SILENT", "\\Flagged")
        session.store(",".join(map(str, sorted(places[4:]))), "+FLAGS.SILENT", "\\Deleted")
        session.expunge()
        for _ in range(3):
            session.append("INBOX", "", "", b"Subject: new\r\n\r\nx\r\n")


def _resync(home: Server, known: tuple[int, int]) -> tuple[float, float, tuple[int, int]]:
    """(seconds, CPU seconds, what the client knows then). Raises RuntimeError unless the changes are told."""
    with _session(home) as session:
        time.sleep(0.1)  # what a login leaves to be done is done
        cpu, begun = home.cpu_s(), time.monotonic()
        answer, _ = session._simple_command("SELECT", "INBOX", f"(QRESYNC ({known[0]} {known[1]}))")
        seconds, spent = time.monotonic() - begun, home.cpu_s() - cpu
        session.state = "SELECTED"
        told = session.untagged_responses
        if answer != "OK" or not told.get("VANISHED") or not 3 <= len(told.get("FETCH", ())) <= 10:
            raise RuntimeError(f"SELECT with QRESYNC: {answer} {told!r:.500}")
        return seconds, spent, (_told(session, "UIDVALIDITY"), _told(session, "HIGHESTMODSEQ"))
