"""MailSort, Sieve and vacation with a started server: mail goes in by SMTP, what scripts made of it is read by IMAP."""

from __future__ import annotations

import contextlib
import imaplib
import json
import os
import signal
import smtplib
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from iems.perf import queue
from iems.perf.home import PASSWORD, PrivateHome
from tests.support.waiting import until

#: Each test has users of its own, so that none sees the mail or the rules of another.
USERS = iter([f"a{number}@load.test" for number in range(1, 17)])


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateHome]:
    with PrivateHome(16) as home:
        yield home


@pytest.fixture
def three() -> tuple[str, str, str]:
    """Three users nobody else has."""
    return next(USERS), next(USERS), next(USERS)


def balance(home: PrivateHome) -> dict[str, int]:
    """The sums of all mail; nothing is missing, nothing is lost."""
    found: dict[str, int] = json.loads(home.ctl("audit", "--json"))
    assert (found["missing"], found["lost"]) == (0, 0), found
    return found


def user(home: PrivateHome, *arguments: str, stdin: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-m", "iems.cli.iemsuser", "--home", str(home.path), *arguments],
        input=stdin, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def send(home: PrivateHome, sender: str, to: str, subject: str, head: str = "") -> str:
    with smtplib.SMTP("127.0.0.1", home.port("smtp"), timeout=60) as client:
        client.ehlo()
        client.mail(sender)
        client.rcpt(to)
        code, text = client.data(f"From: {sender}\r\nTo: {to}\r\nSubject: {subject}\r\nMessage-ID: <{subject}@t>\r\n{head}\r\nbody\r\n")
        assert code == 250
        return text.decode().split()[-1]


def subjects(home: PrivateHome, who: str, mailbox: str = "INBOX", flags: str = "ALL") -> list[str]:
    with imaplib.IMAP4("127.0.0.1", home.port("imap"), timeout=60) as client:
        client.login(who, PASSWORD)
        if client.select(f'"{mailbox}"', readonly=True)[0] != "OK":
            return []
        numbers = client.search(None, flags)[1][0].split()
        found = []
        for number in numbers:
            parts = client.fetch(number.decode(), "(BODY.PEEK[HEADER.FIELDS (SUBJECT)])")[1]
            found.append(parts[0][1].decode().partition(":")[2].strip())  # type: ignore[index, union-attr]
        return found


def wait(home: PrivateHome, who: str, subject: str, mailbox: str = "INBOX") -> None:
    until(lambda: subject in subjects(home, who, mailbox))


def test_mailsort_moves_copies_forwards_and_rejects(server: PrivateHome, three: tuple[str, str, str]) -> None:
    A, B, C = three
    before = balance(server)
    for rule in (
        ["--header", "subject", "--contains", "COPY", "--copy", "Copies", "--continue"],
        ["--header", "subject", "--contains", "forward", "--forward", B, "--continue"],
        ["--header", "from", "--contains", "friend", "--move", "Friends/Old"],
        ["--header", "subject", "--contains", "nö", "--reject", "Nö!"],
    ):
        user(server, "mailsort", "add", A, *rule)
    send(server, "friend@far.test", A, "copy-of-a-friend")
    wait(server, A, "copy-of-a-friend", "Friends/Old")
    wait(server, A, "copy-of-a-friend", "Copies")
    send(server, "x@far.test", A, "forward-this")
    wait(server, A, "forward-this")
    wait(server, B, "forward-this")
    send(server, C, A, "=?utf-8?q?n=C3=B6?=")
    wait(server, C, "Undelivered mail returned to sender")
    assert subjects(server, A) == ["forward-this"]
    queue.until_drained(server.path)
    after = balance(server)
    grown = {name: after[name] - before[name] for name in after}
    assert (grown["accepted"], grown["delivered"], grown["dsn"], after["queued"]) == (3, 2, 1, 0)
    # Of what was made here, too: a copy for each forward, and the report.
    assert grown["held"] == 4


def test_a_loop_of_two_forwards_ends(server: PrivateHome, three: tuple[str, str, str]) -> None:
    A, B, _ = three
    user(server, "mailsort", "add", A, "--header", "subject", "--contains", "forward", "--forward", B)
    user(server, "mailsort", "add", B, "--header", "subject", "--contains", "forward", "--forward", A)
    send(server, "x@far.test", A, "forward-round")
    wait(server, B, "forward-round")
    until(lambda: subjects(server, A).count("forward-round") >= 2)
    queue.until_drained(server.path)
    assert subjects(server, A).count("forward-round") == 2 and subjects(server, B).count("forward-round") == 1


def test_vacation_once_and_not_to_lists(server: PrivateHome, three: tuple[str, str, str]) -> None:
    other, B, C = three
    user(server, "vacation", "set", B, "--subject", "Away", "--body-stdin", stdin="Back in May.\n")
    message = send(server, C, B, "first")
    wait(server, C, "Away")
    send(server, C, B, "second")
    send(server, other, B, "list-mail", "List-Id: <l.test>\r\n")
    wait(server, B, "second")
    wait(server, B, "list-mail")
    queue.until_drained(server.path)
    assert subjects(server, C).count("Away") == 1 and "Away" not in subjects(server, other)
    events = [json.loads(line) for line in server.ctl("trace", message, "--json").splitlines()]
    assert [e["event"] for e in events if e["role"] == "lmda"][:3] == ["leased", "delivered", "vacation"]


def test_no_crash_forwards_or_answers_twice(server: PrivateHome, three: tuple[str, str, str]) -> None:
    """The LMDA is killed twice while it works on mail that is forwarded and answered."""
    A, B, C = three
    user(
        server, "sieve", "put", A, "storm", "--activate",
        stdin='require ["vacation", "copy"]; vacation :subject "Storm" "x"; redirect :copy "' + C + '";',
    )  # fmt: skip
    names = [f"storm-{n}" for n in range(30)]
    server.ctl("queue", "hold", "--channel", "LOCAL")
    for name in names:
        send(server, B, A, name)
    server.ctl("queue", "release", "--channel", "LOCAL")
    for _ in range(2):  # a third death with the same message in work would put it aside
        for pid in server.roles().get("lmda", ()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)  # let it get somewhere, never the same place
    until(lambda: all(set(names) <= set(subjects(server, who)) for who in (A, C)))
    wait(server, B, "Storm")
    queue.until_drained(server.path)
    for who in (A, C):
        assert sorted(s for s in subjects(server, who) if s.startswith("storm")) == sorted(names)
    assert subjects(server, B).count("Storm") == 1
    balance(server)


def test_a_script_of_the_user(server: PrivateHome, three: tuple[str, str, str]) -> None:
    _, B, C = three
    before = balance(server)
    user(
        server, "sieve", "put", C, "mine", "--activate",
        stdin='require ["fileinto", "imap4flags", "envelope", "body"];\n'
        'if allof(envelope :domain "from" "far.test", body :contains "BODY") { addflag "\\\\Flagged"; fileinto "Archive"; }\n'
        'elsif header "subject" "gone" { discard; }\n',
    )  # fmt: skip
    send(server, "x@far.test", C, "kept-by-script")
    wait(server, C, "kept-by-script", "Archive")
    assert subjects(server, C, "Archive", "FLAGGED") == ["kept-by-script"]
    message = send(server, B, C, "gone")
    send(server, B, C, "after")
    wait(server, C, "after")
    assert "gone" not in subjects(server, C)
    assert '"discarded"' in server.ctl("trace", message, "--json")
    assert balance(server)["discarded"] == before["discarded"] + 1
