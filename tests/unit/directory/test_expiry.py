"""Rules of expiry: what they take, which of them counts."""

from __future__ import annotations

import pytest

from iems.directory import Directory
from iems.directory.entries import DirectoryRefusal
from iems.directory.expiry import Expiry, days_of, pop3


@pytest.fixture
def directory(tmp_path):
    made = Directory(tmp_path / "directory", create=True)
    yield made
    made.close()


def test_rules(directory):
    assert directory.expiry() == []
    directory.set_channel_default("INTERNET", "BSMTPOUT")
    directory.add_expiry("Trash", 30)
    directory.add_expiry("Lists/* old", 7, "X.test")
    directory.add_expiry("Trash", 20)
    assert directory.expiry() == [Expiry("", "Trash", 20), Expiry("x.test", "Lists/* old", 7)]
    directory.remove_expiry("Trash")
    assert directory.expiry() == [Expiry("x.test", "Lists/* old", 7)]
    with pytest.raises(DirectoryRefusal, match="no rule"):
        directory.remove_expiry("Lists/* old")
    directory.remove_expiry("Lists/* old", "x.test")
    assert directory.expiry() == []
    assert directory.channel_defaults()["INTERNET"].name == "BSMTPOUT", "other settings stay"


@pytest.mark.parametrize("wrong", [("Trash", 0), ("Trash", 10**6), ("", 3), ("a\nb", 3), ("x" * 2_000, 3), ("Trash", 3, "no domain")])
def test_refused(directory, wrong):
    with pytest.raises(DirectoryRefusal):
        directory.add_expiry(*wrong)
    assert directory.expiry() == []


def test_which_counts():
    rules = [Expiry("", "Trash", 30), Expiry("", "T*", 10), Expiry("x.test", "Trash", 90), Expiry("", "INBOX", 365), Expiry("y.test", "*", 5)]
    assert days_of(rules, "a@else.test", "Trash") == 10
    assert days_of(rules, "a@x.test", "Trash") == 90
    assert days_of(rules, "a@y.test", "INBOX") == 5
    assert days_of(rules, "a@else.test", "Sent") == 0
    assert (pop3(rules), pop3(rules, "a@else.test"), pop3(rules, "a@y.test")) == ("5 USER", "365", "5")
    assert (pop3([Expiry("", "Trash", 3)]), pop3([], "a@x.test")) == ("NEVER", "NEVER")
