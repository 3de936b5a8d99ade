"""The id at the end of a refusal leads, by iemsctl refusal, to what refused it and what to do."""

from __future__ import annotations

import contextlib
import json
import re
import socket

import pytest

from iems.perf.home import PrivateHome
from tests.support.waiting import until

ID = re.compile(rb" \[([0-9A-Z]{8,12})\]$")


class Talk:
    """A dialogue by hand."""

    def __init__(self, port):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.file = self.sock.makefile("rb")
        self.greeting = self.reply()

    def reply(self):
        while (line := self.file.readline())[3:4] == b"-":
            pass
        return line.rstrip(b"\r\n")

    def say(self, line):
        self.sock.sendall(line + b"\r\n")
        return self.reply()

    def close(self):
        self.file.close()
        self.sock.close()


def id_in(reply):
    found = ID.search(reply)
    assert found, reply
    return found[1].decode()


@pytest.fixture(scope="module")
def home():
    with PrivateHome(2, {"smtpd.size_limit": 2000, "smtpd.max_recipients": 100, "smtpd.max_errors": 50}) as running:
        running.ctl("ban", "add", "domain", "bulk.test")
        yield running


def asked(home, id):
    """`iemsctl refusal ID`, which may be a second behind."""

    def known():
        with contextlib.suppress(RuntimeError):
            return json.loads(home.ctl("refusal", id, "--json"))

    return until(known)


def test_refusals_by_their_ids(home):
    talk = Talk(home.port("smtp"))
    assert talk.say(b"EHLO client.test").startswith(b"250")
    unknown = id_in(talk.say(b"WHAT"))
    early = [id_in(talk.say(line)) for line in (b"RCPT TO:<a1@load.test>", b"RSET now", b"DATA", b"WHAT")]
    assert early[3] == unknown and len(set(early)) == 3  # alike ones share a record
    found = asked(home, early[0])
    assert (found["reply"], found["client"], found["helo"], found["rule"]) == ("503 5.5.1 MAIL first", "127.0.0.1", "client.test", "need-mail")
    assert "out of order" in found["cause"]
    banned = id_in(talk.say(b"MAIL FROM:<offer@bulk.test>"))
    large = id_in(talk.say(b"MAIL FROM:<s@x.test> SIZE=99999"))
    broken = id_in(talk.say(b"MAIL FROM:<s@@x.test>"))
    assert talk.say(b"MAIL FROM:<S@x.test>").startswith(b"250")
    unknown = id_in(talk.say(b"RCPT TO:<Nobody@load.test>"))
    relay = id_in(talk.say(b"RCPT TO:<x@else.test>"))
    none = id_in(talk.say(b"DATA"))
    assert talk.say(b"RCPT TO:<a1@load.test>") == b"250 2.1.5 Recipient OK"
    talk.say(b"RCPT TO:<a2@load.test>")
    talk.say(b"DATA")
    bare = id_in(talk.say(b"Subject: x\r\n\r\nbare\nline\r\n."))
    assert talk.say(b"QUIT").startswith(b"221")
    talk.close()

    found = asked(home, unknown)
    assert found | {"time": "", "administrator": "", "sender": ""} == {
        "id": unknown, "time": "", "listener": "smtp", "client": "127.0.0.1", "helo": "client.test", "reverse_path": "S@x.test",
        "recipient": "Nobody@load.test", "more_recipients": 0, "user": "", "reply": "550 5.1.1 No such user here", "rule": "no-such-user",
        "subject": "", "cause": "The recipient is not known here.", "sender": "", "administrator": "",
    }  # fmt: skip
    assert "typing error" in found["sender"] and "route explain" in found["administrator"]
    assert (asked(home, banned)["rule"], asked(home, banned)["reverse_path"]) == ("ban", "offer@bulk.test")
    assert [asked(home, id)["rule"] for id in (large, broken, relay, none, bare)] == [
        "too-big", "bad-sender", "relaying-denied", "no-valid-recipients", "bare-content",
    ]  # fmt: skip
    assert (asked(home, bare)["recipient"], asked(home, bare)["more_recipients"]) == ("a1@load.test", 1)
    text = home.ctl("refusal", relay.lower())
    assert "Cause: The recipient's domain is not served here" in text and "<x@else.test>" in text and "Administrator:" in text

    talk = Talk(home.port("smtp"))
    talk.say(b"EHLO client.test")
    closing = id_in(talk.say(b"BDAT much"))
    talk.close()
    assert asked(home, closing)["rule"] == "bad-size"
    listed = [json.loads(line) for line in home.ctl("refusal", "list", "--sender", "s@x.test", "--since", "1h", "--json").splitlines()]
    assert [one["id"] for one in listed] == [large, unknown, relay, none, bare]
    assert home.ctl("refusal", "list", "--client", "192.0.2.").strip() == ""
    assert len(home.ctl("refusal", "list", "--limit", "2").splitlines()) == 3
    for wrong in ("nonsense", unknown[:-1] + ("0" if unknown[-1] != "0" else "1"), "ZZ" + unknown[2:]):
        with pytest.raises(RuntimeError):
            home.ctl("refusal", wrong)


def test_lmtp_and_logins(home):
    talk = Talk(home.port("lmtp"))
    talk.say(b"LHLO client.test")
    talk.say(b"MAIL FROM:<>")
    for name in (b"a1", b"a2"):
        talk.say(b"RCPT TO:<%b@load.test>" % name)
    talk.say(b"DATA")
    first = id_in(talk.say(b"x" * 3000 + b"\r\n."))
    assert id_in(talk.reply()) == first  # one content, one refusal
    assert asked(home, first)["reverse_path"] == ""
    talk.close()
    talk = Talk(home.port("submission"))
    talk.say(b"EHLO c")
    failed = id_in(talk.say(b"AUTH PLAIN AGExQGxvYWQudGVzdABzZWNyZXQ="))  # a1@load.test, secret
    talk.close()
    found = asked(home, failed)
    assert found["rule"] == "bad-credentials" and "secret" not in json.dumps(found)


def test_at_the_connection(home):
    home.ctl("ban", "add", "ip", "127.0.0.1")
    talk = Talk(home.port("smtp"))
    talk.close()
    home.ctl("ban", "remove", "ip", "127.0.0.1")
    assert asked(home, id_in(talk.greeting))["rule"] == "ban" and talk.greeting.startswith(b"554 5.7.1")


def test_ids_outlive_a_restart(home):
    talk = Talk(home.port("smtp"))
    talk.say(b"EHLO client.test")
    talk.say(b"MAIL FROM:<>")
    id = id_in(talk.say(b"RCPT TO:<gone@load.test>"))
    talk.close()
    home.stop()
    home.start()
    assert asked(home, id)["recipient"] == "gone@load.test"
    files = list((home.path / "log/refusals").iterdir())
    assert files and all(file.stat().st_mode & 0o077 == 0 for file in files)
