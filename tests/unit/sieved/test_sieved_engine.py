"""ManageSieve dialogues of RFC 5804 as octets, whole and byte by byte, and what ends a session."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.sieved.engine import (
    ERRORS_MAX,
    LITERALS_MAX,
    Engine,
    Event,
    Login,
    Request,
    StartTls,
    State,
    string,
)

PLAIN = base64.b64encode(b"\0me@x\0pw")


def engine(logged_in: bool = True, tls: bool = True, plaintext: bool = True) -> Engine:
    made = Engine(tls_offered=tls, plaintext=plaintext)
    if logged_in:
        made.feed(b'AUTHENTICATE "PLAIN" "' + PLAIN + b'"\r\n')
        assert made.next_event() == Login("me@x", "pw")
        made.logged_in("me@x")
        made.take_output()
    return made


def events(made: Engine, data: bytes, step: int = 1 << 20) -> list[Event]:
    found = []
    for at in range(0, len(data), step):
        made.feed(data[at : at + step])
        while (event := made.next_event()) is not None:
            found.append(event)
            made.ok()
    return found


def test_greeting_and_capabilities() -> None:
    made = engine(False, plaintext=False)
    made.greet()
    text = made.take_output().decode()
    assert text.startswith('"IMPLEMENTATION" "IEMS"\r\n') and text.endswith('OK "IEMS ready"\r\n')
    assert '"SASL" ""\r\n' in text and '"STARTTLS"\r\n' in text and '"VERSION" "1.0"\r\n' in text and "fileinto" in text
    assert events(made, b"AUTHENTICATE \"PLAIN\" \"" + PLAIN + b"\"\r\n") == []
    assert made.take_output().startswith(b"NO (ENCRYPT-NEEDED)")
    made.feed(b"STARTTLS\r\nLOGOUT\r\n")
    assert made.next_event() == StartTls() and made.take_output() == b'OK "Begin TLS"\r\n'
    made.secured()  # what came behind STARTTLS is gone
    assert made.next_event() is None and made.state is State.GREETED
    text = made.take_output().decode()
    assert '"SASL" "PLAIN"' in text and "STARTTLS" not in text
    assert events(made, b"STARTTLS\r\n") == [] and made.take_output().startswith(b"NO")


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_every_command(step: int) -> None:
    made = engine()
    data = (
        b'HAVESPACE "my script" 435\r\nputscript "a\\"b\\\\" {5+}\r\nkeep;\r\nPUTSCRIPT {3+}\r\nabc "x"\r\nLISTSCRIPTS\r\nSETACTIVE ""\r\n'
        b'GETSCRIPT "a"\r\nDELETESCRIPT "a"\r\nRENAMESCRIPT "a" "b"\r\nCHECKSCRIPT {6+}\r\n\r\n\r\n;;\r\n'
    )
    assert events(made, data, step) == [
        Request("HAVESPACE", "my script", size=435), Request("PUTSCRIPT", 'a"b\\', b"keep;"), Request("PUTSCRIPT", "abc", b"x"),
        Request("LISTSCRIPTS"), Request("SETACTIVE", ""), Request("GETSCRIPT", "a"), Request("DELETESCRIPT", "a"),
        Request("RENAMESCRIPT", "a", b"b"), Request("CHECKSCRIPT", text=b"\r\n\r\n;;"),
    ]  # fmt: skip
    assert made.take_output() == b"OK\r\n" * 9


def test_answers() -> None:
    made = engine()
    made.script("keep;\r\n")
    made.listing([("a\\", True), ("b", False)])
    made.no("one\r\ntwo", "QUOTA/MAXSIZE")
    assert made.take_output() == b'{7}\r\nkeep;\r\n\r\nOK\r\n"a\\\\" ACTIVE\r\n"b"\r\nOK\r\nNO (QUOTA/MAXSIZE) {8}\r\none\r\ntwo\r\n'
    assert events(made, b'NOOP "x y"\r\nNOOP\r\nCAPABILITY\r\nLOGOUT\r\nNOOP\r\n') == []
    text = made.take_output()
    assert text.startswith(b'OK (TAG "x y") "Done"\r\nOK "Done"\r\n"IMPL') and b'"OWNER" "me@x"' in text and text.endswith(b'OK "Bye"\r\n')
    assert made.state is State.CLOSED
    assert string("a" * 2000) == b"{2000}\r\n" + b"a" * 2000


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b"NOPE\r\n", b'NO "Unknown command"\r\n'),
        (b'"NOOP"\r\n', b'NO "Unknown command"\r\n'),
        (b"\r\n", b'NO "Empty command"\r\n'),
        (b"GETSCRIPT\r\n", b'NO "Wrong number of arguments"\r\n'),
        (b"GETSCRIPT 3\r\n", b'NO "Expected a string"\r\n'),
        (b"GETSCRIPT atom\r\n", b'NO "Expected a string"\r\n'),
        (b'HAVESPACE "a" "b"\r\n', b'NO "Expected a number"\r\n'),
        (b'GETSCRIPT "a\r\n', b'NO "The string has no end on its line"\r\n'),
        (b'GETSCRIPT"a"\r\n', b'NO "Words are separated by spaces"\r\n'),
        (b'GETSCRIPT "\xff"\r\n', b'NO "A name is UTF-8"\r\n'),
        (b"%\r\n", b'NO "Not a word, string or number"\r\n'),
        (b"AUTHENTICATE \"PLAIN\"\r\n", b'NO "Not after login"\r\n'),
        (b"NOOP\n\r\n", b'NO "Words are separated by spaces"\r\n'),
    ],
)
def test_wrong_commands(line: bytes, answer: bytes) -> None:
    made = engine()
    assert events(made, line + b"NOOP\r\n") == [] and made.take_output() == answer + b'OK "Done"\r\n'


@pytest.mark.parametrize(
    "data",
    [b"GETSCRIPT {4294967295+}\r\n", b"PUTSCRIPT \"a\" {%d+}\r\n" % (LITERALS_MAX + 1), b"GETSCRIPT {5}\r\n", b"A" * 20_000, b'NOOP "' + b"a" * 20_000,
     b"%" * 20_000, b" " * 20_000, b"NOOP" + b' "a"' * 9 + b"\r\n", b"% {9+}\r\n"],
)  # fmt: skip
def test_what_ends_a_session(data: bytes) -> None:
    made = engine()
    assert events(made, data) == []
    assert made.state is State.CLOSED and made.take_output().startswith(b"BYE") and made.buffered == 0


def test_log_in() -> None:
    made = engine(False)
    assert events(made, b'PUTSCRIPT "a" "keep;"\r\n') == [] and made.take_output() == b'NO "Log in first"\r\n'
    made.feed(b'AUTHENTICATE "plain"\r\n')
    assert made.next_event() is None and made.take_output() == b'""\r\n'
    made.feed(b"{%d+}\r\n" % len(PLAIN) + PLAIN + b"\r\n")
    assert made.next_event() == Login("me@x", "pw")
    made.refuse_login("no", wrong=True)
    for answer in (b'"*"', b'"%%%"', b'"' + base64.b64encode(b"a\0b") + b'"', b"NOOP", b'"' + base64.b64encode(b"you\0me\0pw") + b'"'):
        made.take_output()
        assert events(made, b'AUTHENTICATE "PLAIN"\r\n' + answer + b"\r\n") == []
        assert made.take_output().startswith(b'""\r\nNO ')
    assert events(made, b'AUTHENTICATE "CRAM-MD5"\r\n') == []
    for _ in range(3):
        made.feed(b'AUTHENTICATE "PLAIN" "' + PLAIN + b'"\r\n')
        assert isinstance(made.next_event(), Login)
        made.refuse_login("no", wrong=True)
    assert made.state is State.CLOSED and b'BYE "Too many failed logins"' in made.take_output()
    made = engine(False)
    made.feed(b'AUTHENTICATE "PLAIN" {20000+}\r\n')
    assert made.next_event() is None and made.state is State.CLOSED


def test_errors_are_counted() -> None:
    made = engine()
    events(made, b"NOPE\r\n" * (ERRORS_MAX + 3))
    assert made.state is State.CLOSED and made.take_output().endswith(b'BYE "Too many errors"\r\n')


_PIECES = st.sampled_from(
    [b"NOOP", b"PUTSCRIPT", b"GETSCRIPT", b"AUTHENTICATE", b"STARTTLS", b'"PLAIN"', b'"a"', b'"', b"{3+}\r\n", b"{3}\r\n", b"abc", b" ", b"\r\n", b"\r", b"\n", b"7", b"\\", b"\0"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(_PIECES, st.binary(max_size=5)), max_size=25), st.booleans(), st.integers(1, 9))
def test_any_octets(pieces: list[bytes], logged_in: bool, step: int) -> None:
    data = b"".join(pieces)
    whole, cut = engine(logged_in), engine(logged_in)
    if b"STARTTLS" not in data:  # which forgets what came with it
        assert events(whole, data) == events(cut, data, step)
        assert whole.take_output() == cut.take_output() and whole.state == cut.state
    else:
        events(whole, data)
