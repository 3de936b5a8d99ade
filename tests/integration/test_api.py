"""The socket for programs of others on a running server: mail in, mail out, and every death in between."""

from __future__ import annotations

import contextlib
import json
import os
import poplib
import re
import signal
import smtplib
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from iems.api.client import ApiError, Client
from iems.perf.home import PASSWORD, PrivateHome
from tests.support.waiting import until

EXAMPLE = Path(__file__).parents[2] / "docs/examples/folder_channel.py"
BODY = b"From: s@load.test\r\nTo: x@load.test\r\nSubject: %b\r\n\r\n.dots\r\n..\r\nend\r\n"


@pytest.fixture(scope="module")
def home():
    with PrivateHome(3, {"api.enabled": True, "api.max_clients": 8}) as running:
        # p1 and p4 are in a post office, a2 and a3 have mailboxes here
        running.ctl("connector", "add", "p1@load.test", "CCMAIL", "PO1")
        running.ctl("connector", "add", "p4@load.test", "CCMAIL", "PO1")
        yield running


def mta(home):
    return Client(home.path / "run/mta.sock", name="test")


def again(home):
    """A connection, as soon as somebody serves."""
    return until(lambda: mta(home))


def send(home, *recipients, subject=b"x", sender="a2@load.test", body=b""):
    with smtplib.SMTP("127.0.0.1", home.port("smtp")) as client:
        client.ehlo()
        client.mail(sender)
        for recipient in recipients or ("p1@load.test",):
            client.rcpt(recipient)
        return client.data((BODY % subject) + body)[1].split()[-1].decode()


def pop(home, user):
    client = poplib.POP3("127.0.0.1", home.port("pop3"), timeout=60)
    client.user(f"a{user}@load.test")
    client.pass_(PASSWORD)
    return client


def mail_of(home, user, wanted):
    """The mails of a user that hold `wanted`."""
    client = pop(home, user)
    try:
        found = [b"\r\n".join(client.retr(n + 1)[1]) for n in range(client.stat()[0])]
    finally:
        client.quit()
    return [mail for mail in found if wanted in mail]


def audit(home):
    return json.loads(home.ctl("audit", "--json"))


def listed(home):
    return [json.loads(line) for line in home.ctl("queue", "list", "--json").splitlines()]


def test_the_example_channel(home, tmp_path):
    """A third-party program, as the page shows it: both ways."""
    out, into = tmp_path / "out", tmp_path / "in"
    out.mkdir()
    into.mkdir()
    mode = os.stat(home.path / "run/mta.sock").st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLE), str(home.path / "run/mta.sock"), str(out), str(into)], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        id = send(home, "p1@load.test", "p4@load.test", subject=b"to the post office")
        files = until(lambda: len(found := sorted(out.glob("*.eml"))) == 2 and found)
        assert all(file.name.startswith(id) for file in files)
        received, _, rest = files[0].read_bytes().partition(b"From: s@load.test")
        assert b"From: s@load.test" + rest == BODY % b"to the post office" and received.startswith(b"Received:")
        envelopes = [json.loads(file.read_text()) for file in sorted(out.glob("*.json"))]
        assert {e["recipient"] for e in envelopes} == {"p1@load.test", "p4@load.test"}
        assert {(e["reverse_path"], e["post_office"]) for e in envelopes} == {("a2@load.test", "PO1")}
        until(lambda: not listed(home))
        events = [json.loads(line) for line in home.ctl("trace", id, "--json").splitlines()]
        assert [e["detail"]["channel"] for e in events if e["event"] == "delivered"] == ["CCMAIL", "CCMAIL"]

        (into / "new").write_bytes(BODY.replace(b"x@load", b"a3@load") % b"from the post office")
        (into / "new").rename(into / "new.eml")
        [mail] = until(lambda: mail_of(home, 3, b"from the post office"))
        assert b" with CCOUT id " in mail and b"Received: from folder" in mail
        (into / "bad.eml").write_bytes(b"To: a3@load.test\r\n\r\nbare\n")
        until((into / "bad.bad").exists)
        assert not list(into.glob("*.eml"))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert audit(home)["missing"] == 0


def test_content_is_exact_whatever_its_size(home):
    large = b"".join(b"%07d and more text to make a line of it\r\n" % n for n in range(70_000))
    send(home, subject=b"small")
    send(home, subject=b"large", body=large)
    with mta(home) as client:
        items = []
        until(lambda: items.extend(client.take("CCMAIL", limit=10, wait_s=1, pieces=True)) or len(items) == 2)
        for item in items:
            content = item.content()
            assert len(content) == item.octets and b"".join(item.from_files()) == content
            assert content.endswith(large if b"Subject: large" in content else b"..\r\nend\r\n")
            item.ack()
        with pytest.raises(ApiError) as caught:
            items[0].ack()
        assert caught.value.error == "lease"
    assert listed(home) == []


def test_each_recipient_has_its_outcome(home):
    id = send(home, "p1@load.test", "p4@load.test", subject=b"outcomes")
    with mta(home) as client:
        [item] = client.take("CCMAIL", wait_s=50)
        assert item.id == id and item.recipients == ["p1@load.test", "p4@load.test"] and item.data["recipients"][0]["attempts"] == 0
        item.ack(
            [
                {"recipient": "p1@load.test", "outcome": "failed", "reply": "550 5.1.1 no such box in PO1"},
                {"recipient": "p4@load.test", "outcome": "deferred", "seconds": 3600, "reply": "452 4.2.2 full"},
            ]
        )
        [entry] = listed(home)
        [left] = entry["recipients"]
        assert (left["address"], left["state"], left["reply"]) == ("p4@load.test", "deferred", "452 4.2.2 full")
        assert until(lambda: mail_of(home, 2, b"no such box in PO1"))
        assert client.take("CCMAIL") == []
        home.ctl("queue", "retry", id)
        [item] = client.take("CCMAIL", wait_s=50)
        assert item.recipients == ["p4@load.test"] and item.data["recipients"][0]["attempts"] == 1
        item.nack(3600, "gateway closed")
        assert listed(home)[0]["reason"] == "451 4.5.0 gateway closed"
        home.ctl("queue", "retry", id)
        [item] = client.take("CCMAIL", wait_s=50)
        item.nack()
        [item] = client.take("CCMAIL", wait_s=50)  # at once
        item.ack()
    assert listed(home) == [] and audit(home)["missing"] == 0


def test_a_lease_ends(home):
    """By its deadline, whoever hangs; at once, when the client goes."""
    id = send(home, subject=b"leases")
    with mta(home) as hangs, mta(home) as other:
        [item] = hangs.take("CCMAIL", wait_s=50, lease_s=60)
        assert other.take("CCMAIL") == []
        item.renew(0.4)
        [same] = other.take("CCMAIL", wait_s=50)
        assert same.id == id
        with pytest.raises(ApiError) as caught:
            item.ack()
        assert caught.value.error == "lease"
        other.close()
        [item] = hangs.take("CCMAIL", wait_s=50)
        item.ack()
    assert listed(home) == []


TAKES = """
import sys, time
from iems.api.client import Client
item, = Client(sys.argv[1]).take("CCMAIL", wait_s=50)
print(item.id, len(item.content()), flush=True)
time.sleep(600)
"""


def test_a_client_killed_between_take_and_ack(home):
    id = send(home, subject=b"killed")
    process = subprocess.Popen([sys.executable, "-c", TAKES, str(home.path / "run/mta.sock")], stdout=subprocess.PIPE)
    assert process.stdout.readline().split()[0].decode() == id
    with mta(home) as client:
        assert client.take("CCMAIL") == []
        process.kill()
        [item] = client.take("CCMAIL", wait_s=50)
        assert item.id == id
        item.ack()
    process.wait()
    process.stdout.close()
    assert listed(home) == []


def test_the_worker_killed(home):
    """Nothing is lost, nothing that was acked comes again, what was inserted and answered is there once."""
    before = audit(home)
    ids = {send(home, subject=b"n%d" % n) for n in range(6)}
    inserted = 0
    acked: set[str] = set()
    for step in range(3):
        client = again(home)
        items = []
        until(lambda client=client, items=items: items.extend(client.take("CCMAIL", limit=6, wait_s=0.2)) or len(items) == 6 - len(acked))
        assert {item.id for item in items} == ids - acked
        for item in items[:2]:
            item.ack()
            acked.add(item.id)
        client.insert("CCOUT", "s@load.test", ["a3@load.test"], BODY % b"survives-%d" % step)
        inserted += 1
        [pid] = home.roles()["api"]
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(OSError):
            client.take("CCMAIL", wait_s=50)
        client.close()
    with again(home) as client:
        assert client.take("CCMAIL", limit=10) == []
    assert listed(home) == []
    until(lambda: len(mail_of(home, 3, b"survives-")) == inserted)
    after = audit(home)
    assert after["missing"] == 0 and after["delivered"] - before["delivered"] == 6 + inserted


def raw(home, *lines):
    """Send lines by hand; the answers until the server closes or all are answered."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(str(home.path / "run/mta.sock"))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has heard enough
            sock.sendall(b"".join(lines))
            sock.shutdown(socket.SHUT_WR)
        got = b""
        while data := sock.recv(65536):
            got += data
    return [json.loads(line) for line in got.splitlines()]


def test_what_is_refused(home):
    """Clear words, and nothing half taken."""

    def insert(content=BODY % b"refused", **fields):
        request = {"op": "insert", "channel": "CCOUT", "recipients": ["a3@load.test"], "octets": len(content)} | fields
        return json.dumps(request).encode() + b"\n" + content

    def word(*lines):
        return [answer.get("error", "") for answer in raw(home, *lines)]

    assert word(b"{nonsense\n", insert()) == ["bad"]  # what follows can't be told apart
    assert word(b'{"op":"take","channel":"LOCAL"}\n', b'{"op":"take","channel":"SMTPC"}\n') == ["denied", "denied"]
    assert word(insert(channel="SMTPD"), insert(channel="CCMAIL")) == ["denied", "denied"]
    assert word(insert(recipients=["a3@load.test\r\nDATA"]), insert(recipients=[])) == ["bad", "bad"]
    assert word(insert(b"Subject: x\n\nbare\n"), insert(b"")) == ["bad", "bad"]
    assert word(b'{"op":"ack","lease":"1-1"}\n', b'{"op":"content","lease":""}\n') == ["lease", "lease"]
    assert word(b'{"op":"take","channel":"CCMAIL","limit":0}\n', b'{"op":"take","channel":"CCMAIL","lease_s":1e9}\n') == ["bad", "bad"]
    assert word(b'{"op":"hello","name":"a b\\r\\n"}\n', b"x" * 600_000) == ["bad", "bad"]
    assert word(insert()[:-3]) == []  # cut within the content
    [first, second] = raw(home, b'{"op":"hello","tag":7}\n', insert(tag="two"))
    assert first["tag"] == 7 and first["version"] == 1 and second["tag"] == "two" and re.fullmatch("[0-9A-Z]{26}", second["id"])
    until(lambda: not listed(home))
    assert len(mail_of(home, 3, b"Subject: refused")) == 1


def test_settings_that_do_not_fit(tmp_path):
    from iems import config
    from iems.errors import ConfigError

    with pytest.raises(ConfigError) as caught:
        config.parse(b'[api]\nenabled = true\ntake = ["CCMAIL", "SMTPC"]\n', "x")
    assert caught.value.problems == ["x:3: api.take: SMTPC is taken by a role that is enabled"]
    with pytest.raises(ConfigError):
        config.parse(b'[api]\ninsert = ["SMTPD"]\n', "x")


def test_clients_are_bounded_and_a_reload_brings_them_back(home):
    first = mta(home)
    with contextlib.ExitStack() as stack:
        for _ in range(7):
            stack.enter_context(mta(home))
        with pytest.raises(ApiError) as caught:
            mta(home)
        assert caught.value.error == "limit"
    [old] = home.roles()["api"]
    home.ctl("reload")
    with pytest.raises(OSError):
        first.take("CCMAIL", wait_s=30)
    first.close()
    id = send(home, subject=b"after a reload")
    with again(home) as client:
        [item] = client.take("CCMAIL", wait_s=50)
        assert item.id == id
        item.ack()
    assert home.roles()["api"] != [old]
