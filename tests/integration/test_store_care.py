"""Care of the mailboxes of a real server: damage, storage reports, expiry."""

from __future__ import annotations

import asyncio
import imaplib
import json
import poplib
import re
import smtplib
import subprocess
import sys
import time
from types import SimpleNamespace

import lmdb
import pytest

from iems import config as settings
from iems.janitor import storage
from iems.perf.home import PASSWORD, PrivateHome
from iems.store import keys, usage
from tests.integration.test_spam_control import user
from tests.support.senders import Senders


def fsck(home, *options):
    done = subprocess.run(
        [sys.executable, "-m", "iems.cli.iemsctl", "--home", str(home.path), "fsck", "--json", *options],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def inbox(home, address="a1@load.test"):
    imap = imaplib.IMAP4("127.0.0.1", home.port("imap"))
    imap.login(address, PASSWORD)
    imap.select("INBOX")
    return imap


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    box = tmp_path_factory.mktemp("box") / "in.mbox"
    box.write_bytes(b"".join(b"From a Mon Jan  1 00:00:00 2024\nSubject: m%d\n\nwords %d\n\n" % (n, n) for n in range(6)))
    with PrivateHome(3) as home:
        user(home, "import", "a1@load.test", str(box), "--mailbox", "INBOX")
        yield home


def texts(home):
    """uid -> text of each message of the first user."""
    imap = inbox(home)
    _, answers = imap.uid("FETCH", "1:*", "(BODY.PEEK[TEXT])")
    imap.logout()
    return {int(re.search(rb"UID (\d+)", answer[0])[1]): answer[1] for answer in answers if isinstance(answer, tuple)}


def test_fsck_and_repair(home):
    before = texts(home)
    senders = Senders(home.port("smtp"), ["a2@load.test", "a3@load.test"], body=b"x" * 3000, pause_s=0.002)
    try:
        assert fsck(home, "--content")[:2] == (0, []), "sound while mail comes in"
        code, _, error = fsck(home, "--repair")
        assert code == 1 and "stop the server" in error
    finally:
        senders.stop()
    home.stop()
    number = 1
    with lmdb.open(str(home.path / "store/p0/index"), map_size=1 << 38) as env, env.begin(write=True) as txn:
        key = keys.message(number, 1, 3)
        txn.put(key, bytes(txn.get(key))[:50])
    code, found, _ = fsck(home)
    assert code == 1
    assert [(f["account"], f["mailbox"], f["uid"], f["mended"]) for f in found if f["uid"]] == [("a1@load.test", "INBOX", 3, False)]
    code, found, _ = fsck(home, "--repair")
    assert code == 0 and found and all(f["mended"] for f in found)
    assert fsck(home, "--content") == (0, [], "")
    home.start()
    assert before.pop(3) == b"words 2\r\n" and texts(home) == before, "the rest is served"


def test_storage_report(home):
    store = home.path / "store"
    usage.note(store, usage.Day("2020-01-01", 1_577_836_800, usage.Sum(100, 1, 1), {"load.test": usage.Sum(100, 1, 1)}))
    assert storage.sums(home.path)["users"] == 3 and storage.sums(home.path) == {}, "once a day"
    assert usage.history(store)[0].day == "2020-01-01"
    rows = [json.loads(line) for line in home.ctl("report", "storage", "--top", "1", "--json").splitlines()]
    assert [row["kind"] for row in rows] == ["user", "domain", "total"]
    total = rows[2]
    assert total["growth_bytes"] == total["used_bytes"] - 100 and total["since"] == "2020-01-01" and total["disk_bytes"] > 0
    assert rows[1]["users"] == 3 and rows[1]["growth_bytes"] == total["growth_bytes"]
    text = home.ctl("report", "storage", "--domain", "load.test")
    assert "a1@load.test" in text and "SINCE 2020-01-01" in text
    with pytest.raises(RuntimeError, match="no local domain"):
        home.ctl("report", "storage", "--domain", "else.test")


def capa(home, login=True):
    pop = poplib.POP3("127.0.0.1", home.port("pop3"))
    if login:
        pop.user("a1@load.test")
        pop.pass_(PASSWORD)
    found = pop.capa()["EXPIRE"]
    pop.quit()
    return found


def test_expiry(home):
    """What came into a mailbox days ago goes when there is a rule, without any session's help."""
    assert capa(home) == ["NEVER"]
    imap = inbox(home)
    uids = imap.uid("SEARCH", "ALL")[1][0].split()
    imap.logout()
    home.stop()
    with lmdb.open(str(home.path / "store/p0/index"), map_size=1 << 38) as env, env.begin(write=True) as txn:
        for uid in (1, 2):
            value = txn.get(keys.message(1, 1, uid))
            txn.put(keys.message(1, 1, uid), value[:16] + (1_500_000_000).to_bytes(4, "little") + value[20:])
    home.ctl("expire", "add", "INBOX", "400", "--domain", "load.test")
    home.start()
    imap = inbox(home)
    if len(imap.uid("SEARCH", "ALL")[1][0].split()) == len(uids):
        imap.send(b"i IDLE\r\n")
        while b" EXPUNGE" not in imap.readline():
            pass
        imap.send(b"DONE\r\n")
        while not imap.readline().startswith(b"i OK"):
            pass
    assert imap.uid("SEARCH", "ALL")[1][0].split() == uids[2:]
    imap.logout()
    assert capa(home, login=False) == ["400", "USER"] and capa(home) == ["400"]
    assert json.loads(home.ctl("expire", "list", "--json")) == {"mailbox": "INBOX", "days": 400, "domain": "load.test"}
    home.ctl("expire", "remove", "INBOX", "--domain", "load.test")
    assert home.ctl("expire", "list") == "" and capa(home) == ["NEVER"]
    with pytest.raises(RuntimeError, match="between 1 and"):
        home.ctl("expire", "add", "INBOX", "0")
    assert "expire add" in (home.path / "log/directory.log").read_text()


class Kept:
    """A spool and a log that keep what they are given."""

    def __init__(self):
        self.messages = []
        self.events = []

    def new_id(self):
        return b"i" * 16

    async def append(self, messages):
        self.messages += messages
        return [None] * len(messages)

    def event(self, name, id=None, **fields):
        self.events.append((name, fields))

    def error(self, text, fault):
        raise fault


def test_quota_warnings(home):
    kept = Kept()
    ctx = SimpleNamespace(home=home.path, config=settings.load(home.path / "conf/iems.toml"), hostname="load.test", log=kept)
    care = storage.StorageCare(ctx, home.path / "store", kept)
    asyncio.run(care.warn())
    assert kept.messages == [], "nobody has a quota"
    used = usage.usages(home.path / "store")[1][0]
    user(home, "quota", "a1@load.test", str(used * 100 // 85))
    asyncio.run(care.warn())
    asyncio.run(care.warn())
    [message] = kept.messages
    assert message.envelope.recipients[0].address == b"a1@load.test" and message.envelope.reverse_path == b""
    assert b"more than 80 % full" in message.content[0] and storage.levels(home.path / "store") == {1: 80}
    user(home, "quota", "a1@load.test", str(used))
    asyncio.run(care.warn())
    assert len(kept.messages) == 2 and b"95 %" in kept.messages[1].content[0]
    assert [fields["percent"] for _, fields in kept.events] == [80, 95]
    user(home, "quota", "a1@load.test", "unlimited")
    asyncio.run(care.warn())
    assert len(kept.messages) == 2 and storage.levels(home.path / "store") == {}


def wait(condition):
    until = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


def test_a_full_mailbox_is_told_as_temporary_and_then_as_permanent(home):
    home.stop()
    home.configure({"lmda.retry_s": 0.2, "lmda.retry_max_s": 0.5})
    home.start()
    user(home, "quota", "a2@load.test", "2000")
    with smtplib.SMTP("127.0.0.1", home.port("smtp")) as smtp:
        smtp.sendmail("a3@load.test", ["a2@load.test"], "Subject: too much\r\n\r\n" + "x" * 3_000)

    def waiting():
        found = [json.loads(line) for line in home.ctl("queue", "list", "--json").splitlines()]
        return [one["recipients"][0] for one in found if one["recipients"] and (one["recipients"][0]["reply"] or "").startswith("452 4.2.2")]

    [recipient] = wait(waiting)
    assert recipient["address"] == "a2@load.test" and recipient["attempts"] >= 1
    home.stop()
    home.configure({"lmda.lifetime_s": 0.1})
    home.start()

    def report():
        imap = inbox(home, "a3@load.test")
        try:
            found = imap.uid("SEARCH", "HEADER", "Auto-Submitted", "auto-replied")[1][0].split()
            return found and imap.uid("FETCH", found[-1], "BODY.PEEK[]")[1][0][1]
        finally:
            imap.logout()

    assert b"Status: 5.2.2" in wait(report)
    wait(lambda: home.ctl("queue", "list", "--json") == "")
    user(home, "quota", "a2@load.test", "unlimited")


def test_rows_of_deleted_mail_are_erased_with_the_server_stopped(home, tmp_path):
    secret = b"Lohengrin 4711"
    (tmp_path / "one.eml").write_bytes(b"Subject: " + secret + b"\r\n\r\nx\r\n")
    user(home, "import", "a1@load.test", str(tmp_path / "one.eml"), "--mailbox", "INBOX")
    imap = inbox(home)
    before = imap.uid("FETCH", "1:*", "(ENVELOPE)")[1]
    found = imap.uid("SEARCH", "SUBJECT", f'"{secret.decode()}"')[1][0]
    imap.uid("STORE", found, "+FLAGS", "\\Deleted")
    imap.expunge()
    imap.logout()
    with pytest.raises(RuntimeError, match="stop the server"):
        home.ctl("compact")
    home.stop()

    def there():
        return secret in b"".join(path.read_bytes() for path in (home.path / "store").rglob("*") if path.is_file())

    home.ctl("compact")
    assert there(), "it can still be undeleted"
    home.configure({"store.undelete_s": 3600})
    with lmdb.open(str(home.path / "store/p0/index"), map_size=1 << 38) as env, env.begin(write=True) as txn:
        # As if the day was over.
        for key, value in [(bytes(k), bytes(v)) for k, v in txn.cursor() if k[:5] == keys.head(0, keys.TRASH)]:
            txn.delete(key)
            txn.put(key[:5] + (1_500_000_000).to_bytes(4, "big") + key[9:], value)
    told = json.loads(home.ctl("compact", "--json"))
    assert told["partition"] == "p0" and told["after_bytes"] > 0
    assert not there()
    assert fsck(home) == (0, [], "")
    home.start()
    imap = inbox(home)
    assert imap.uid("FETCH", "1:*", "(ENVELOPE)")[1] == before[:-1]
    imap.logout()
