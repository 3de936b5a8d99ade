"""The IMAP engine without sockets: commands from octets, in their plain form and by the general parser; LIST patterns; sets.

pytest perf/kernels/test_imap.py --benchmark-only
"""

from array import array

import pytest

from iems.imap import names, sequence
from iems.imapd import commands
from iems.imapd.engine import Command, Engine, Limits, State

LINES = {
    "noop": b"a1 NOOP\r\n",
    "whole message": b"a1 FETCH 5 BODY.PEEK[]\r\n",
    "with uid and flags": b"a1 UID FETCH 5 (UID FLAGS BODY.PEEK[])\r\n",
    "summaries": b"a1 UID FETCH 1:* (UID FLAGS INTERNALDATE RFC822.SIZE ENVELOPE BODYSTRUCTURE)\r\n",
    "search": b'a1 UID SEARCH OR (UNSEEN SINCE 1-Feb-2026) FROM "anna"\r\n',
    "store": b"a1 UID STORE 5,7:9 +FLAGS.SILENT (\\Seen $Junk)\r\n",
}


@pytest.mark.parametrize("name", LINES)
def test_command(benchmark, name):
    engine = Engine(commands.COMMANDS, Limits(), commands.SHORTCUT)
    engine.state = State.SELECTED
    line = LINES[name]

    def once():
        engine.feed(line)
        return engine.next_event()

    assert type(benchmark(once)) is Command


def test_uid_set(benchmark):
    uids = array("I", range(1, 200_001, 2))
    ranges = sequence.parse(b",".join(b"%d:%d" % (low, low + 50) for low in range(1, 100_000, 200)))
    benchmark(sequence.uid_positions, ranges, uids)


def test_render_set(benchmark):
    numbers = [n for n in range(10_000) if n % 7]
    benchmark(sequence.render, numbers)


def test_pattern(benchmark):
    pattern = names.Pattern("Projects/%/*2026*")
    listed = [f"Projects/p{n}/year 20{n % 40:02}/mail" for n in range(100)]
    benchmark(lambda: sum(pattern.matches(name) for name in listed))
