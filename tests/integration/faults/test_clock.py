"""The wall clock jumps two years ahead and an hour back (beyond.md 3, row 8): no mass bounce, retries go on in their order."""

from __future__ import annotations

import shutil
from typing import Any

from iems.perf.queue import until_drained
from tests.integration.faults.rig import FaultHome, noticed, until, variants
from tests.integration.faults.test_relay_faults import inbox, relaying, submit
from tests.support.smtpserver import Connection

YEARS = 2 * 365 * 86_400.0


@variants("age_by_wall_clock")
def test_the_clock_jumps(unsafe: str) -> None:
    """Deferred mail ages by queue time. Checked with ages taken from the wall clock (unsafe.py): all of it bounces."""
    refusing = True
    tries: dict[bytes, int] = {}

    def script(connection: Connection, verb: str, line: bytes) -> Any:
        if verb == "RCPT":
            tries[line] = tries.get(line, 0) + 1
            return "451 4.2.0 later" if refusing else None
        return None

    with relaying(script, unsafe=unsafe, clocked=True) as (home, sink), noticed(unsafe):
        for number in range(10):
            submit(home, [f"b{number}@elsewhere.test"], number=str(number))
        until(lambda: len(tries) == 10)
        for seconds in (YEARS, -3600.0, YEARS, 0.0):
            home.clock(seconds)
            before = sum(tries.values())
            until(lambda before=before: sum(tries.values()) >= before + 10)
            assert home.send("local", recipient="a1@load.test").startswith(b"250")
            assert home.events("failed") == [] and home.events("dsn") == [], "the jump bounced mail"
        # Over a restart, and with the index lost, at a clock that is off.
        home.clock(YEARS)
        home.stop()
        shutil.rmtree(home.path / "spool/index")
        home.start()
        home.clock(-3600.0)
        before = sum(tries.values())
        until(lambda: sum(tries.values()) >= before + 10)
        assert home.events("failed") == [] and home.events("dsn") == []
        refusing = False
        until(lambda: len(sink.messages) == 10)
        until_drained(home.path)
        assert {message["X-Number"] for message in inbox(home)} == {"local"}
        assert len(inbox(home)) == 4


def test_the_mailboxes_under_a_clock_that_goes_back() -> None:
    """Uids grow, no UIDVALIDITY comes again, segments get new names, though the clock shows the same time again and again."""
    with FaultHome(clocked=True) as home:
        seen: set[bytes] = set()
        names: set[str] = set()
        for step in range(3):
            home.clock(-3600.0 * step)
            assert home.send(f"m{step}").startswith(b"250")
            until_drained(home.path)
            client = home.imap()
            assert client.uid("SEARCH", "ALL")[1][0].split()[-1] == b"%d" % (step + 1)
            client.create("again")
            _, (validity,) = client.status("again", "(UIDVALIDITY)")
            assert validity not in seen
            seen.add(validity)
            client.delete("again")
            client.logout()
            home.stop()
            fresh = {path.name for path in (home.path / "spool/segments").glob("*.seg")}
            assert step == 0 or max(fresh - names) > max(names), "a younger segment has a smaller number"
            names |= fresh
            home.start()
        validities = [int(text.split()[-1].rstrip(b")")) for text in seen]
        assert len(set(validities)) == 3


def test_a_slow_clock_does_not_stop_work() -> None:
    """The clock stands an hour back from the start on: due times, timeouts and idle pushes don't wait for it."""
    with FaultHome(clocked=True) as home:
        session = home.imap()
        home.clock(-3600.0)
        session.send(b"i IDLE\r\n")
        assert session.readline().startswith(b"+")
        assert home.send("pushed").startswith(b"250")
        assert b"1 EXISTS" in session.readline()
        until(lambda: home.status()["channels"]["LOCAL"]["oldest_s"] == 0)
