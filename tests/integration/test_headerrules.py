"""Header rules in a running server: a draft changes nothing, a test tells what it would have hit, then it acts."""

from __future__ import annotations

import json

import pytest

from iems.perf.home import PrivateHome
from tests.integration.test_modules import inbox, send


def test_tested_before_it_acts():
    with PrivateHome(2, {"smtpd.trusted_networks": ["127.0.0.0/8"]}) as home:
        given = ("headerrule", "add", "prize", "--field", "Subject", "--matches", "(?i)PRIZE", "--action")
        home.ctl("headerrule", "add", "fine", "--field", "Subject", "--matches", "^fine", "--action", "ignore")
        home.ctl(*given, "discard", "--draft")
        for subject in ("a prize", "hello", "fine prize"):
            send(home, ["a1@load.test"], subject=subject)
        assert len(inbox(home, "a1@load.test")) == 3, "a draft does nothing"
        with pytest.raises(RuntimeError, match="never tested"):
            home.ctl(*given, "bounce")
        found = json.loads(home.ctl("headerrule", "test", "prize", "--json"))
        assert (found["messages"], found["hits"], found["earlier"]) == (3, 1, 1)
        assert found["shown"][0]["value"] == "a prize" and found["shown"][0]["account"] == "a1@load.test"
        assert "1 of 3 messages of the last 2 days" in home.ctl("headerrule", "test", "prize", "--days", "2")
        assert "1 of 3 messages of 2 days" in home.ctl(*given, "bounce")
        for subject in ("a prize", "fine prize"):
            send(home, ["a1@load.test"], subject=subject)
        assert len(inbox(home, "a1@load.test")) == 4
        assert b"a header field is not accepted here" in inbox(home, "a2@load.test")[-1]
        assert "bounce" in home.ctl("headerrule", "list")
        home.ctl("headerrule", "add", "prize", "--field", "Subject", "--matches", "other", "--action", "bounce", "--untested")
        assert "never" in home.ctl("headerrule", "list")
        home.ctl("headerrule", "remove", "prize")
        assert [json.loads(line)["name"] for line in home.ctl("headerrule", "list", "--json").splitlines()] == ["fine"]
        assert "headerrule add" in (home.path / "log/directory.log").read_text()
