"""What mail in a mailbox teaches the Bayesian filter of its owner, and what teaches nothing because nobody has looked at it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from iems.bayes.filter import Filters
from iems.janitor.training import MOVED_S, Training, _lesson
from iems.message import summarize
from iems.store import wire
from iems.store.homes import bayes_folder
from iems.store.partition import Job, Partition
from iems.store.reader import Reader

NUMBER, ADDRESS = 7, "me@x"
LINES = b"Return-Path: <a@b>\r\nDelivered-To: me@x\r\n"
JUDGED = b"X-IEMS-Bayes: spam 0.970000000000 (limits 0.35 0.65; action file=Spam)\r\n"
BODY = b"Received: from a\r\nSubject: %b\r\n\r\n%b\r\n"


def record(*places: str) -> bytes:
    return b"X-IEMS-Verdict: asked=nothing; " + "; ".join(f"to={place}" for place in places).encode() + b"\r\n"


@pytest.mark.parametrize(
    ("mailbox", "lines", "lesson"),
    [
        ("INBOX", JUDGED + record("INBOX"), None),  # its owner only looks on
        ("Spam", b"X-IEMS-AntiSpam: ip=1.2.3.4; t=x; action=file=Odd (all tags)\r\n" + record("Odd"), True),
        ("Spam", record("INBOX"), True),
        ("Spam", record("Spam"), None),  # by a rule, or by User Spam Control
        ("Spam", record("INBOX", "Spam"), None),  # a copy by a rule
        ("Spam", JUDGED + record("Spam"), None),
        ("Spam", JUDGED, None),  # delivered by an older version
        ("Spam", b"X-IEMS-AntiSpam: ip=1.2.3.4; t=x; action=file (all tags)\r\n", None),
        ("Spam", b"", True),
        ("Good", record("INBOX"), False),
        ("Good", JUDGED + record("Spam"), False),
        ("Good", record("Good"), None),
        ("INBOX", JUDGED + record("Spam"), False),
        ("INBOX", record("INBOX"), None),
        ("INBOX", b"X-IEMS-Bayes: unsure 0.5 (x)\r\n" + record("INBOX"), None),
    ],
)  # fmt: skip
def test_lessons(mailbox: str, lines: bytes, lesson: bool | None) -> None:
    assert _lesson(mailbox, LINES + lines + BODY % (b"x", b"y")) is lesson


def test_what_a_sender_wrote_is_no_reason() -> None:
    assert _lesson("Spam", LINES + record("INBOX") + b"Received: x\r\n" + record("Spam") + JUDGED + b"\r\n") is True
    assert _lesson("INBOX", LINES + record("INBOX") + b"Received: x\r\n" + JUDGED + b"\r\n") is None


class Home:
    """One account in a store of its own, whose clock the test sets."""

    def __init__(self, path: Path) -> None:
        self.now = 1_700_000_000.0
        (path / "spool" / "segments").mkdir(parents=True)
        self.store = path / "store"
        self.partition = Partition(self.store / "p0", path / "spool", clock=lambda: self.now, sync=False)
        self.training = Training(SimpleNamespace(), self.store, None)
        # LMDB opens an environment once a process.
        self.reader = self.training._reader = Reader(self.store, {0: self.partition.env})
        self.account: Any = SimpleNamespace(number=NUMBER, address=ADDRESS)

    def do(self, body: Any) -> Any:
        [outcome] = self.partition.apply([Job(0, 0, 0, body)])
        assert outcome.status == wire.DONE, outcome
        return outcome.value

    def deliver(self, mailbox: str, lines: bytes, subject: bytes, text: bytes, late_s: int = 0) -> None:
        content = LINES + lines + BODY % (subject, text)
        sent_s = int(self.now) - late_s
        self.do(wire.Deliver([wire.Delivery(NUMBER, os.urandom(16), [content], len(content), sent_s, *summarize(content), mailbox, create=True)]))

    def move(self, source: str, aim: str, uid: int = 1) -> None:
        box = self.reader.mailbox(NUMBER, source)
        assert box is not None
        self.do(wire.Copy(NUMBER, box.id, uid.to_bytes(4, "little"), aim, move=True))

    def learn(self) -> dict[str, int]:
        return self.training._train(self.account)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_delivery_teaches_nothing_and_moves_do(home: Home) -> None:
    home.do(wire.Ensure(NUMBER))
    home.do(wire.Create(NUMBER, "Good"))
    assert home.learn() == {}  # switched on
    home.deliver("INBOX", record("INBOX"), b"a", b"alpha beta gamma")
    home.deliver("Spam", JUDGED + record("Spam"), b"b", b"casino winner")
    home.deliver("Spam", record("Spam"), b"c", b"filed by a rule")
    home.deliver("Good", record("Good"), b"d", b"filed by a rule, too")
    # Late because the store was away: still nobody has moved it.
    home.deliver("INBOX", record("INBOX"), b"e", b"late", late_s=600)
    assert home.learn() == {}
    home.move("INBOX", "Spam")
    home.move("Spam", "Good", uid=1)
    assert home.learn() == {"spam": 1, "good": 1}
    assert Filters(None).of(bayes_folder(home.store, ADDRESS)).score(BODY % (b"a", b"alpha beta gamma")).score > 0.5
    assert home.learn() == {}, "each once"


def test_what_comes_back_to_the_inbox_was_good_if_it_was_moved(home: Home) -> None:
    home.do(wire.Ensure(NUMBER))
    home.deliver("INBOX", record("INBOX"), b"before", b"was here before")
    assert home.learn() == {}
    # delivered into INBOX though judged spam (its owner only looks on): nobody has moved it
    home.deliver("INBOX", JUDGED + record("INBOX"), b"looks on", b"never moved")
    home.deliver("Spam", JUDGED + record("Spam"), b"wrongly taken", b"a letter of a friend")
    home.deliver("Spam", record("Spam"), b"by a rule", b"no verdict")
    assert home.learn() == {}
    home.move("Spam", "INBOX", uid=1)
    home.move("Spam", "INBOX", uid=2)
    assert home.learn() == {"good": 1}


def test_mail_of_a_version_without_records_is_told_by_its_time(home: Home) -> None:
    home.do(wire.Ensure(NUMBER))
    assert home.learn() == {}
    home.deliver("INBOX", JUDGED, b"looks on", b"delivered at once", late_s=MOVED_S - 1)
    assert home.learn() == {}
    home.deliver("INBOX", JUDGED, b"back", b"moved later", late_s=MOVED_S + 1)
    assert home.learn() == {"good": 1}


def test_at_most_so_many_a_round_and_none_is_left_out(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iems.janitor.training.MOST", 2)
    home.do(wire.Ensure(NUMBER))
    assert home.learn() == {}
    for number in range(5):
        home.deliver("Spam", b"", b"%d" % number, b"word%d other%d" % (number, number))
    assert [home.learn() for _ in range(4)] == [{"spam": 2}, {"spam": 2}, {"spam": 1}, {}]
