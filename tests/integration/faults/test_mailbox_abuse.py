"""Clients of IMAP and POP3 that break the rules (beyond.md 3, rows 17, 21, 22, 27), and mail made to break its readers (row 20).

Limits are sizes and counts, so what shows a missing one is memory or time: the long forms show that it is noticed.
"""

from __future__ import annotations

import base64
import imaplib
from collections.abc import Iterator

import psutil
import pytest

from iems.perf.queue import until_drained
from tests.integration.faults.rig import FaultHome, Wire, noticed


@pytest.fixture(scope="module")
def home() -> Iterator[FaultHome]:
    with FaultHome(3, settings={"imapd.workers": 1, "auth.max_failures": 1000}) as home:
        yield home
        assert home.deaths() == []
        assert home.events("error") == []


def cpu_of(home: FaultHome, role: str) -> float:
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in home.pids(role))


def logged_in(home: FaultHome, user: int = 1) -> Wire:
    wire = home.wire("imap")
    wire.line()
    assert wire.tagged(b"LOGIN a%d@load.test pw" % user)[-1].startswith(b"t OK")
    return wire


def pour(wire: Wire, data: bytes) -> None:
    """Send as much as the peer takes."""
    try:
        wire.send(data)
    except OSError:
        pass


def refused(lines: bytes) -> bool:
    return b" BAD" in lines or b"* BYE" in lines or b" NO" in lines or lines == b""


# --- row 17


@pytest.mark.parametrize("listener", ["imap", "pop3"])
def test_commands_pipelined_after_starttls(home: FaultHome, listener: str) -> None:
    """What came in clear behind STARTTLS or STLS is dropped, or the connection closed."""
    start, behind = {
        "imap": (b"t STARTTLS\r\n", [b"x LOGIN a1@load.test pw\r\n", b"x NOOP\r\nx SELECT INBOX\r\n", b"x" * 3000]),
        "pop3": (b"STLS\r\n", [b"USER a1@load.test\r\n", b"USER a1@load.test\r\nPASS pw\r\n", b"x" * 3000]),
    }[listener]
    for more in behind:
        with home.wire(listener) as wire:
            wire.line()
            wire.send(start + more)
            line = wire.line()
            if b"OK" not in line:
                assert b"BAD" in line or b"ERR" in line or line == b"", line
                continue
            try:
                wire.tls()
            except OSError:
                continue
            if listener == "imap":
                wire.send(b"y NOOP\r\n")
                assert wire.line().startswith(b"y OK"), "an answer to what came in clear"
                assert wire.tagged(b"SELECT INBOX", b"z")[-1].startswith(b"z BAD")
            else:
                wire.send(b"NOSUCH\r\n")
                assert wire.line().startswith(b"-ERR")
                wire.send(b"PASS pw\r\n")
                assert wire.line().startswith(b"-ERR"), "a USER from before TLS counts"


# --- row 21

HUGE = [
    b"x LOGIN {4294967295}\r\n",
    b"x LOGIN {4294967295+}\r\n" + b"a" * 200_000,
    b"x LOGIN {99999999999999999999}\r\n",
    b"x LOGIN {1000000+}\r\n" + b"a" * 1_000_000,
    b"x APPEND INBOX {4294967295+}\r\n" + b"a" * 200_000,
    b"x NOOP {10+}\r\n0123456789\r\n",
    b"x SEARCH " + b"(" * 1_000_000 + b"\r\n",
    b"x SEARCH " + b"NOT " * 250_000 + b"ALL\r\n",
    b"x SEARCH " + b"OR ALL " * 150_000 + b"ALL\r\n",
    b"x FETCH 1 " + b"(" * 1_000_000 + b"\r\n",
    b"x FETCH 1 BODY[" + b"1." * 500_000 + b"1]\r\n",
    b"x FETCH " + b"1," * 500_000 + b"1 FLAGS\r\n",
    b"x FETCH 1:4294967295,1:4294967295,*:1 FLAGS\r\n",
    b"x STORE 1 +FLAGS (" + b"a " * 300_000 + b"a)\r\n",
    b"x LIST \"\" \"" + b"*%" * 300_000 + b"\"\r\n",
    b"x" * 1_000_000,
    b"x " + b"y" * 1_000_000 + b"\r\n",
    b"\0" * 100_000 + b"\r\n",
    b'x LOGIN "' + b'\\"' * 500_000 + b"\r\n",
]  # fmt: skip


@pytest.mark.parametrize("before_login", [True, False], ids=["before-login", "selected"])
def test_huge_commands(home: FaultHome, before_login: bool) -> None:
    """Literals of 4 GiB, a million parentheses, endless lines: BAD or BYE at once, little CPU, the memory as before."""
    send_huge_commands(home, before_login)


@pytest.mark.long
@pytest.mark.parametrize("before_login", [True, False], ids=["before-login", "selected"])
def test_huge_commands_without_limits(before_login: bool) -> None:
    """The same notices that limits are off (unsafe.py)."""
    with FaultHome(settings={"imapd.workers": 1}, unsafe="no_imap_limits") as home, noticed("no_imap_limits"):
        send_huge_commands(home, before_login)


def send_huge_commands(home: FaultHome, before_login: bool) -> None:
    before = home.rss("imapd")
    cpu = cpu_of(home, "imapd")
    wires = []
    for data in HUGE:
        if before_login:
            wire = home.wire("imap")
            wire.line()
        else:
            wire = logged_in(home)
            wire.tagged(b"SELECT INBOX")
        wire.sock.settimeout(5)
        pour(wire, data)
        answer = wire.rest(0.3)
        legal = not before_login and data.startswith((b"x FETCH 1", b"x STORE", b"x LIST"))
        # (a legal command may have a legal answer)
        assert refused(answer) or legal or b"x OK" in answer, (data[:40], answer[:200])
        wires.append(wire)  # all at once, so that what each holds adds up
    held = home.rss("imapd") - before
    for wire in wires:
        wire.sock.close()
    assert held < 24 << 20, f"{held >> 20} MiB are held"
    assert cpu_of(home, "imapd") - cpu < 5.0
    with logged_in(home) as wire:
        assert wire.tagged(b"NOOP")[-1].startswith(b"t OK")


def test_pop3_huge_commands(home: FaultHome) -> None:
    before = home.rss("pop3d")
    for data in (b"x" * 1_000_000, b"USER " + b"a" * 1_000_000 + b"\r\n", b"AUTH PLAIN " + b"A" * 1_000_000 + b"\r\n", b"\0" * 10_000 + b"\r\n", b"LIST 99999999999999999999999\r\n", b"TOP 1 -1\r\n"):
        with home.wire("pop3") as wire:
            wire.line()
            pour(wire, data)
            answer = wire.rest(0.3)
            assert b"-ERR" in answer or answer == b"", (data[:20], answer[:100])
    assert home.rss("pop3d") - before < 8 << 20
    with home.wire("pop3") as wire:
        wire.line()
        assert wire.ask(b"USER a1@load.test").startswith(b"+OK")
        assert wire.ask(b"PASS pw").startswith(b"+OK")
        assert wire.ask(b"RETR 0").startswith(b"-ERR") and wire.ask(b"DELE 18446744073709551617").startswith(b"-ERR")


# --- row 22


def test_login_abuses(home: FaultHome) -> None:
    """Bad base64, NULs, another's authorization identity, a megabyte: nobody is logged in."""
    plain = [
        b"!!!!", b"=", b"YQ", b"\xff", base64.b64encode(b"\0"), base64.b64encode(b"\0a1@load.test\0"), base64.b64encode(b"a\0b"),
        base64.b64encode(b"a1@load.test\0a2@load.test\0wrong"), base64.b64encode(b"a2@load.test\0a1@load.test\0pw"),
        base64.b64encode(b"\0a1@load.test\0pw\0x"), base64.b64encode(b"\0" * 3000), b"A" * 1_000_000,
    ]  # fmt: skip
    for text in plain:
        with home.wire("imap") as wire:
            wire.line()
            wire.send(b"t AUTHENTICATE PLAIN\r\n")
            assert wire.line().startswith(b"+")
            pour(wire, text + b"\r\n")
            lines = wire.rest(0.3)
            assert b"t OK" not in lines and refused(lines), (text[:40], lines)
        with home.wire("pop3") as wire:
            wire.line()
            wire.send(b"AUTH PLAIN\r\n")
            assert wire.line().startswith(b"+")
            pour(wire, text + b"\r\n")
            lines = wire.rest(0.3)
            assert b"+OK" not in lines, (text[:40], lines)
    for login in (b'"a1@load.test" ""', b'"" ""', b'"" pw', b'"a1@load.test" {3}', b"a1@load.test p\0w", b'{15}'):
        with home.wire("imap") as wire:
            wire.line()
            wire.send(b"t LOGIN " + login + b"\r\n")
            assert b"t OK" not in wire.rest(0.3), login


# --- row 27

NASTY = [
    b"../../etc/passwd", b"../a2", b"..", b".", b"a/../../b", b"/etc/passwd", b"*)(uid=*", b"$(touch pwned)", b"`touch pwned`", b"; touch pwned", b"~/x", b"~root",
    b"#shared/x", b"x\\..\\y", b"&AC4ALg-", b"INBOX/../../x", b"//", b"a//b", b"a/", b"%", b"*", b"con", b"-rf", b"'; DROP TABLE x; --", b"&", b"&AAA-", b"&AAo-x",
]  # fmt: skip


def test_paths_and_shells_in_mailbox_names(home: FaultHome) -> None:
    """`../`, globs and shell text as mailbox names: refused, or names like any other of this account only; no file appears."""
    before = {path for path in home.path.rglob("*") if "spool" not in path.parts}
    with logged_in(home, 2) as wire:
        names = []
        for name in NASTY:
            quoted = b'"' + name.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
            made = wire.tagged(b"CREATE " + quoted)[-1]
            assert made.startswith((b"t OK", b"t NO", b"t BAD")), (name, made)
            if made.startswith(b"t OK"):
                names.append(quoted)
                wire.send(b"t APPEND " + quoted + b" {16+}\r\nSubject: x\r\n\r\nx\r\n\r\n")
                wire.until_tag()
                assert wire.tagged(b"SELECT " + quoted)[-1].startswith(b"t OK"), name
        listed = wire.tagged(b'LIST "" "*"')
        assert listed[-1].startswith(b"t OK")
        for quoted in names:
            wire.tagged(b"RENAME " + quoted + b' "../moved"')
            wire.tagged(b'RENAME "../moved" ' + quoted)
            wire.tagged(b"DELETE " + quoted)
        assert wire.tagged(b"SELECT INBOX")[-1].startswith(b"t OK")
    with logged_in(home, 3) as wire:
        assert not [line for line in wire.tagged(b'LIST "" "*"') if b".." in line or b"etc" in line], "another account's names"
    for name in NASTY:
        with home.wire("imap") as wire:
            wire.line()
            quoted = b'"' + name.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
            assert wire.tagged(b"LOGIN " + quoted + b" pw")[-1].startswith((b"t NO", b"t BAD", b"* BYE")), name
        with home.wire("pop3") as wire:
            wire.line()
            wire.ask(b"USER " + name)
            assert wire.ask(b"PASS pw").startswith(b"-ERR"), name
    after = {path for path in home.path.rglob("*") if "spool" not in path.parts}
    strange = [path for path in after - before if "pwned" in path.name or "etc" in path.parts or "moved" in path.name]
    assert not strange and not (home.path.parent / "pwned").exists()


# --- row 20


def nested(depth: int) -> bytes:
    """A multipart in a multipart in ..., each with a boundary of its own."""
    parts = [b"Subject: nested\r\nMIME-Version: 1.0\r\n"]
    for level in range(depth):
        parts.append(b'Content-Type: multipart/mixed; boundary="b%d"\r\n\r\n--b%d\r\n' % (level, level))
    parts.append(b"\r\ndeep\r\n")
    parts += [b"--b%d--\r\n" % level for level in reversed(range(depth))]
    return b"".join(parts)


def messages_in_messages(depth: int) -> bytes:
    return b"Subject: rfc822\r\n" + b"Content-Type: message/rfc822\r\n\r\n" * depth + b"Subject: last\r\n\r\nx\r\n"


def cyclic(count: int) -> bytes:
    """The same boundary at every level, and boundaries that are prefixes of each other."""
    text = b'Subject: cyclic\r\nContent-Type: multipart/mixed; boundary="a"\r\n\r\n'
    text += b'--a\r\nContent-Type: multipart/mixed; boundary="a"\r\n\r\n' * count
    for length in range(1, 70):
        text += b'--a\r\nContent-Type: multipart/mixed; boundary="%b"\r\n\r\n--%b\r\n' % (b"a" * length, b"a" * length)
    return text + b"--a--\r\n" * 10


HARD = {
    "nested": nested(10_000),
    "rfc822": messages_in_messages(10_000),
    "cyclic": cyclic(5_000),
    "parts": b'Subject: parts\r\nContent-Type: multipart/mixed; boundary="p"\r\n\r\n' + b"--p\r\n\r\nx\r\n" * 100_000 + b"--p--\r\n",
    "no-end": b'Subject: no end\r\nContent-Type: multipart/mixed; boundary="q"\r\n\r\n--q\r\nContent-Type: multipart/mixed; boundary="r"\r\n\r\n--r\r\n',
    "addresses": b"Subject: addresses\r\nTo: " + b", ".join(b"a%d@x.test" % n for n in range(60_000)).replace(b", a", b",\r\n a") + b"\r\n\r\nx\r\n",
    "parameters": b"Subject: parameters\r\nContent-Type: text/plain" + b"".join(b";\r\n n*%d*=u''x" % n for n in range(60_000)) + b"\r\n\r\nx\r\n",
    "words": b"Subject: " + b"=?utf-8?q?x?=\r\n " * 50_000 + b"end\r\n\r\nx\r\n",
    "comments": b"Subject: comments\r\nFrom: " + b"(" * 200_000 + b"\r\n\r\nx\r\n",
    "received": b"".join(b"Received: from a by b%d; x\r\n" % n for n in range(10_000)) + b"Subject: received\r\n\r\nx\r\n",
    "long-line": b"Subject: " + b"x" * 900_000 + b"\r\n\r\nx\r\n",
}  # fmt: skip


@pytest.mark.parametrize("unsafe", ["", pytest.param("any_depth", marks=pytest.mark.long)])
def test_mail_that_is_hard_to_read(unsafe: str) -> None:
    """MIME 10,000 deep, cyclic boundaries, missing ends, 60,000 addresses or parameters: taken, delivered, served as it came;
    what is asked of its structure is answered, in bounded time and octets."""
    settings = {"imapd.workers": 1, "preprocessor.max_trips": 1000}
    with FaultHome(settings=settings, unsafe=unsafe) as home, noticed(unsafe):
        sizes = {}
        with home.smtp() as client:
            client.ehlo()
            for name, content in HARD.items():
                client.mail("s@load.test")
                client.rcpt("a1@load.test")
                code, text = client.data(content)
                assert code == 250, (name, text)
                sizes[name] = len(content)
        cpu = cpu_of(home, "lmda")
        until_drained(home.path)
        assert home.events("error") == [], "a message could not be summarized"
        assert cpu_of(home, "lmda") - cpu < 0.5 * len(HARD)
        assert home.deaths() == []
        session = imaplib.IMAP4("127.0.0.1", home.port("imap"), timeout=60)
        session.login("a1@load.test", "pw")
        imaplib._MAXLINE = 64 << 20  # type: ignore[attr-defined]
        _, (count,) = session.select()
        assert int(count) == len(HARD)
        before = home.rss("imapd")
        for number, (name, content) in enumerate(HARD.items(), 1):
            cpu = cpu_of(home, "imapd")
            _, data = session.fetch(str(number), "(BODY.PEEK[])")
            assert data[0][1].endswith(content), name
            _, data = session.fetch(str(number), "(BODYSTRUCTURE ENVELOPE RFC822.SIZE)")
            answer = b"".join(part if isinstance(part, bytes) else b"".join(part) for part in data)
            assert len(answer) < 4 * sizes[name] + 100_000, (name, len(answer))
            for section in ("1", "1.1.1.1", ".".join(["1"] * 60), "1.MIME", "2.HEADER", "TEXT", "HEADER.FIELDS (SUBJECT)"):
                kind, data = session.fetch(str(number), f"(BODY.PEEK[{section}]<0.100>)")
                assert kind == "OK", (name, section, data)
            session.search(None, "TEXT", "nowhere-to-be-found")
            assert cpu_of(home, "imapd") - cpu < 6.0, name
        assert home.rss("imapd") - before < 200 << 20
        session.logout()
        assert home.deaths() == []
        assert home.events("error") == []

