"""The engine: lines, literals, content, limits, whatever the chunks."""

import tracemalloc

import pytest

from iems.imapd import commands
from iems.imapd.engine import NEED_DATA, Close, Command, Content, Engine, Limits, Line, State


def engine(state=State.SELECTED, **limits):
    made = Engine(commands.COMMANDS, Limits(**limits), commands.SHORTCUT)
    made.state = state
    return made


def events(made, data, step=0, accept=True):
    """All events of `data`, content as (prefix, octets), and the output."""
    found, out = [], b""
    for start in range(0, len(data), step or len(data)):
        made.feed(data[start : start + (step or len(data))])
        while (event := made.next_event()) is not NEED_DATA:
            out += made.take_output()
            if isinstance(event, Content):
                octets = bytearray()
                found.append((event.prefix, octets))
                made.accept(octets.extend) if accept else made.refuse("[X] no")
            else:
                found.append(event)
            out += made.take_output()
            if isinstance(event, Close):
                return found, out
        out += made.take_output()
    return found, out


@pytest.mark.parametrize("step", [0, 1, 7])
def test_commands(step):
    found, out = events(engine(), b"a noop\r\nB UID FETCH 1 FLAGS\r\nc FETCH 7 (BODY.PEEK[])\r\n", step)
    assert [(event.tag, event.spec.name) for event in found] == [
        (b"a", b"NOOP"),
        (b"B", b"UID FETCH"),
        (b"c", b"FETCH"),
    ]
    assert found[2].arguments == (False, 7, b"", b"BODY.PEEK[]")
    assert out == b""


@pytest.mark.parametrize("step", [0, 1, 7])
def test_literals(step):
    found, out = events(
        engine(State.NOT_AUTHENTICATED), b"a LOGIN {3}\r\na\r\n {2+}\r\npw\r\nb NOOP\r\n", step
    )
    assert found[0].arguments == (b"a\r\n", b"pw")
    assert found[1].tag == b"b"
    assert out == b"+ OK\r\n"


@pytest.mark.parametrize("step", [0, 1, 7])
def test_content(step):
    data = b"a APPEND x (\\Seen) {5}\r\n12\r\n3 {2+}\r\nyz\r\nb NOOP\r\n"
    found, out = events(engine(), data, step)
    assert [bytes(octets) for _, octets in found[:2]] == [b"12\r\n3", b"yz"]
    assert found[0][0].name == "x"
    assert isinstance(found[2], Command)
    assert found[3].tag == b"b"
    assert out == b"+ OK\r\n"


@pytest.mark.parametrize("step", [0, 1, 7])
def test_content_refused(step):
    made = engine()
    found, out = events(
        made, b"a APPEND x {5}\r\nb NOOP\r\nc APPEND x {8+}\r\nd NOOP\r\n\r\ne NOOP\r\n", step, accept=False
    )
    assert out == b"a NO [X] no\r\nc NO [X] no\r\n"
    assert [event.tag for event in found if isinstance(event, Command)] == [b"b", b"e"]


def test_content_is_not_kept():
    made = engine()
    got = 0

    def sink(view):
        nonlocal got
        got += len(view)

    made.feed(b"a APPEND x {67108864+}\r\n")
    assert isinstance(made.next_event(), Content)
    made.accept(sink)
    chunk = bytes(1 << 20)
    tracemalloc.start()
    for _ in range(64):
        made.feed(chunk)
        assert made.next_event() is NEED_DATA
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert got == 64 << 20
    assert peak < 1 << 20
    made.feed(b"\r\n")
    assert isinstance(made.next_event(), Command)


def test_content_given_up():
    made = engine()
    made.feed(b"a APPEND x {10+}\r\n123")
    assert isinstance(made.next_event(), Content)
    made.accept(lambda view: made.abandon("[FULL] no room"))
    assert made.next_event() is NEED_DATA
    made.feed(b"4567890\r\nb NOOP\r\n")
    event = made.next_event()
    assert made.take_output() == b"a NO [FULL] no room\r\n"
    assert event.tag == b"b"


@pytest.mark.parametrize(
    "data",
    [
        b"a LOGIN " + b"x" * 70_000,
        b"a SEARCH " + b"(" * 1_000_000,
        b"a XYZZY {4294967295+}\r\n",
        b"a LIST {300000+}\r\n",
        b"\r\n" * 100,
        b"a ID {40000+}\r\n" + b"x" * 40_000 + b" {40000+}\r\n",
    ],
)
@pytest.mark.parametrize("state", [State.NOT_AUTHENTICATED, State.SELECTED])
def test_limits_end_it(data, state):
    made = engine(state, command=70_000)
    found, out = events(made, data)
    assert isinstance(found[-1], Close)
    assert out.splitlines()[-1].startswith(b"* BYE")
    made.feed(b"a NOOP\r\n" * 1000)
    assert made.next_event() is NEED_DATA
    assert made.buffered == 0


def test_bad_counts_in_a_row():
    made = engine(bad=3)
    found, _ = events(made, (b"a X\r\nb X\r\nc NOOP\r\n") * 5)
    assert len(found) == 5
    found, out = events(made, b"a X\r\n" * 3)
    assert isinstance(found[-1], Close)
    assert out.count(b"BAD") == 3


def test_expected_line():
    made = engine()
    made.feed(b"a IDLE\r\nDONE\r\nb NOOP\r\n")
    assert made.next_event().spec.name == b"IDLE"
    made.expect_line(b"go")
    assert made.take_output() == b"+ go\r\n"
    assert made.next_event() == Line(b"DONE")
    assert made.next_event().tag == b"b"
    assert made.next_event() is NEED_DATA
    assert made.idle


def test_input_before_tls_is_dropped():
    made = engine(State.NOT_AUTHENTICATED)
    made.feed(b"a STARTTLS\r\nb LOGIN x y\r\nc LOG")
    assert made.next_event().tag == b"a"
    made.discard_input()
    assert made.next_event() is NEED_DATA
    made.feed(b"d NOOP\r\n")
    assert made.next_event().tag == b"d"


def test_pipelined_input_does_not_pile_up():
    made = engine()
    for _ in range(200):
        made.feed(b"a FETCH 1 BODY.PEEK[]\r\nb NOOP\r\nc NO")
        while made.next_event() is not NEED_DATA:
            pass
        made.feed(b"OP\r\n")
        while made.next_event() is not NEED_DATA:
            pass
        assert made.buffered == 0
