"""The Bayesian filter of two users in a running server: taught by moving mail, each judges the same message in his own way."""

from __future__ import annotations

import imaplib
import json
import random
import smtplib

import pytest

from iems.perf import queue
from iems.perf.home import PASSWORD, PrivateHome
from iems.store.homes import bayes_folder
from tests.integration.test_spam_control import mailbox, user
from tests.support.waiting import events, until

GOOD = ["meeting", "agenda", "minutes", "project", "review", "budget", "invoice", "schedule", "colleagues", "report", "draft", "attached", "regards", "thursday"]
SPAM = ["casino", "winner", "pills", "cheap", "viagra", "lottery", "million", "prize", "claim", "urgent", "bonus", "free", "click", "offer", "guaranteed"]


def words(kind, seed):
    rng = random.Random(seed)
    return " ".join(rng.choice(kind) for _ in range(60))


@pytest.fixture(scope="module")
def server():
    with PrivateHome(5) as home:
        yield home


def teach(home, choices):
    """Mail of both kinds for each, who switches the filter on with his choice then; the first takes the one for spam, all others the other."""
    addresses = list(choices)
    for seed in range(12):
        send(home, addresses, f"good {seed}", GOOD, seed)
        send(home, addresses, f"junk {seed}", SPAM, seed)
    for place, address in enumerate(addresses):
        user(home, "bayes", "on", address, *choices[address])
        move(home, address, "Good" if place else "Spam", ("SUBJECT", "junk"))
        move(home, address, "Spam" if place else "Good", ("SUBJECT", "good"))
    for address in addresses:
        until(lambda address=address: learnt(home, address)["good_learnt"] and learnt(home, address)["spam_learnt"])


def send(home, recipients, subject, kind, seed):
    with smtplib.SMTP("127.0.0.1", home.port("smtp"), timeout=60) as smtp:
        smtp.sendmail("x@else.test", recipients, f"From: x@else.test\r\nSubject: {subject}\r\n\r\n{words(kind, seed)}\r\n".encode())
    queue.until_drained(home.path)


def move(home, address, aim, criterion, source="INBOX"):
    with imaplib.IMAP4("127.0.0.1", home.port("imap")) as imap:
        imap.login(address, PASSWORD)
        imap.create(aim)
        imap.select(source)
        found = b",".join(imap.search(None, *criterion)[1][0].split())
        assert found and imap._simple_command("MOVE", found.decode(), aim)[0] == "OK"


def learnt(home, address):
    return json.loads(user(home, "bayes", "show", address, "--json"))["learnt"]


def test_taught_by_moving_mail(server):
    anna, bob, carl = (f"a{n}@load.test" for n in (1, 2, 3))
    assert json.loads(user(server, "bayes", "show", anna, "--json"))["on"] is False
    # Bob likes what Anna does not
    teach(server, {anna: ["--unsure", "file=Suspicious"], bob: ["--spam", "discard"]})
    assert (bayes_folder(server.path / "store", anna) / "good").exists()

    send(server, [anna, bob, carl], "one for three", SPAM, 100)
    assert "one for three" in mailbox(server, anna, "Spam") and "one for three" not in mailbox(server, anna)
    head = mailbox(server, anna, "Spam")["one for three"]
    assert "X-IEMS-Bayes: spam 0." in head
    assert "X-IEMS-Bayes: good" in mailbox(server, bob)["one for three"]
    assert "X-IEMS-Bayes" not in mailbox(server, carl)["one for three"], "who has not switched it on is not judged"
    send(server, [anna, bob], "work", GOOD, 101)
    assert "X-IEMS-Bayes: good" in mailbox(server, anna)["work"] and "work" not in mailbox(server, bob)
    [gone] = [event for event in events(server, "discarded") if event["recipient"] == bob]
    assert gone["detail"]["why"].startswith("bayesian filter, spam 0.")
    assert json.loads(user(server, "undelete", bob, "--list", "--json"))["subject"] == "work"
    assert json.loads(server.ctl("audit", "--json"))["missing"] == 0


def test_what_delivery_filed_teaches_nothing_and_what_comes_back_does(server):
    anna = "a4@load.test"
    teach(server, {anna: ["--unsure", "file=Suspicious"]})
    user(server, "spam", "allow", anna, "x@else.test")
    before = learnt(server, anna)
    send(server, [anna], "wrongly taken", SPAM, 200)
    assert "wrongly taken" in mailbox(server, anna, "Spam")
    move(server, anna, "INBOX", ("SUBJECT", '"wrongly taken"'), source="Spam")
    until(lambda: learnt(server, anna)["good_given"] > before["good_given"])
    assert learnt(server, anna)["spam_given"] == before["spam_given"], "what the filter filed itself was not given to it as spam"
    user(server, "bayes", "off", anna, "--forget")
    assert not bayes_folder(server.path / "store", anna).exists()
    send(server, [anna], "after", SPAM, 201)
    assert "X-IEMS-Bayes" not in mailbox(server, anna)["after"]


def test_choices_that_make_no_sense(server):
    for wrong in (["--spam", "bounce"], ["--good", "0.9", "--limit", "0.1"], ["--limit", "1"], ["--unsure", "file=\x07"]):
        user(server, "bayes", "on", "a5@load.test", *wrong, fails=True)
    user(server, "bayes", "on", "nobody@load.test", fails=True)
    assert json.loads(user(server, "bayes", "show", "a5@load.test", "--json"))["choice"] is None
