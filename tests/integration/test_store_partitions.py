"""A real server with two partitions: an account moves while it is used, a domain is full, the rows are converted and back."""

from __future__ import annotations

import asyncio
import imaplib
import json
import os
import poplib
import signal
import smtplib
import subprocess
import sys
import time
from types import SimpleNamespace

import lmdb
import pytest

from iems import config as settings
from iems.directory import Directory
from iems.janitor import storage
from iems.perf import queue
from iems.perf.home import PASSWORD, PrivateHome
from iems.store import keys
from iems.store.reader import Reader
from iems.store.rows import FORMAT, Meta, encode
from tests.integration.test_spam_control import user
from tests.integration.test_store_care import Kept, fsck
from tests.support.senders import Senders, delivered
from tests.support.waiting import until

ME, OTHER = "a1@load.test", "a2@load.test"


@pytest.fixture(scope="module")
def home():
    with PrivateHome(3, {"store.partitions": 2, "store.workers": 2, "lmda.retry_s": 1.0, "lmda.retry_max_s": 1.0}) as home:
        for address in (ME, OTHER):  # each test by itself finds accounts that have been used
            imap = session(home, address)
            imap.append("INBOX", None, None, b"Subject: first\r\n\r\nx\r\n")
            imap.logout()
        yield home


def session(home, address=ME):
    imap = imaplib.IMAP4("127.0.0.1", home.port("imap"))
    imap.login(address, PASSWORD)
    imap.select("INBOX")
    return imap


def where(home, address=ME):
    directory = Directory(home.path / "directory")
    account = directory.account(address)
    directory.close()
    reader = Reader(home.path / "store")
    assert reader._find(account.number) is not None and reader._home[account.number] == account.partition
    reader.close()
    return account.partition


def once(home, senders):
    """What was acknowledged arrives, and nothing twice. Senders of other tests used the same numbers: theirs go first."""
    until(lambda: senders.acknowledged <= delivered(home.path).keys())
    queue.until_drained(home.path)
    found = delivered(home.path)
    assert {name: count for name, count in found.items() if count != 1} == {}
    for address in (ME, OTHER):
        imap = session(home, address)
        imap.store("1:*", "+FLAGS", "\\Deleted")
        imap.append("INBOX", None, None, b"Subject: stays\r\n\r\nx\r\n")
        imap.expunge()
        imap.logout()


def test_an_account_moves_while_it_is_used(home):
    senders = Senders(home.port("smtp"), [ME, ME, OTHER], count=3, pause_s=0.003)
    imap = session(home)
    try:
        until(lambda: len(senders.acknowledged) > 50)
        idle = session(home)
        idle.send(b"i IDLE\r\n")
        assert idle.readline().startswith(b"+")
        home_at = where(home)
        validity, first = imap.response("UIDVALIDITY")[1], imap.uid("SEARCH", "ALL")[1][0].split()[0]
        for number in range(4):
            wanted = (home_at + 1 + number) % 2
            mover = subprocess.Popen(
                [sys.executable, "-m", "iems.cli.iemsuser", "--home", str(home.path), "move", ME, str(wanted)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            count = 0
            while mover.poll() is None:
                # The session goes on, sees what it writes, and its uids stay.
                assert imap.append("Drafts", "(\\Seen work)", None, b"Subject: d%d\r\n\r\nx\r\n" % number)[0] == "OK"
                assert imap.uid("STORE", first, "+FLAGS", f"(k{number})")[0] == "OK"
                assert b"k%d" % number in imap.uid("FETCH", first, "(FLAGS)")[1][0]
                assert imap.noop()[0] == "OK"
                pop = poplib.POP3("127.0.0.1", home.port("pop3"))
                pop.user(ME)
                pop.pass_(PASSWORD)
                assert pop.stat()[0] > 0 and pop.retr(1)[0].startswith(b"+OK")
                pop.quit()
                count += 1
            assert mover.returncode == 0, mover.stderr.read()
            assert count and where(home) == wanted
        # IDLE hears of mail that comes to the new place.
        idle.sock.settimeout(60)
        seen = len(senders.acknowledged)
        until(lambda: len(senders.acknowledged) > seen + 20)
        while b" EXISTS" not in (line := idle.readline()):
            assert line
        idle.send(b"DONE\r\n")
        while not idle.readline().startswith(b"i OK"):
            pass
        last = int(imap.uid("SEARCH", "ALL")[1][0].split()[-1])
        until(lambda: imap.noop() and int(imap.uid("SEARCH", "ALL")[1][0].split()[-1]) > last)
        assert imap.select("INBOX")[0] == "OK" and imap.response("UIDVALIDITY")[1] == validity
        imap.logout()
    finally:
        senders.stop()
    once(home, senders)
    assert fsck(home) == (0, [], "")


@pytest.mark.parametrize("after", [0.25, 0.45, 0.6])
def test_a_killed_mover_leaves_the_account_whole_and_is_repeated(home, after):
    wanted = str(1 - where(home))
    senders = Senders(home.port("smtp"), [ME], count=2, pause_s=0.003)
    try:
        mover = subprocess.Popen([sys.executable, "-m", "iems.cli.iemsuser", "--home", str(home.path), "move", ME, wanted])
        time.sleep(after)
        mover.kill()
        mover.wait()
        imap = session(home)
        assert imap.select("INBOX")[0] == "OK"
        imap.logout()
        assert wanted in user(home, "move", ME, wanted)
        # The store's writer dies in a move: the mover waits for the next one, or its repetition finishes.
        mover = subprocess.Popen([sys.executable, "-m", "iems.cli.iemsuser", "--home", str(home.path), "move", ME, str(1 - int(wanted))])
        time.sleep(after)
        stores = until(lambda: len(found := home.roles().get("store", ())) == 2 and found)
        os.kill(stores[int(after * 100) % 2], signal.SIGKILL)
        mover.wait(90)
        assert str(1 - int(wanted)) in user(home, "move", ME, str(1 - int(wanted)))
    finally:
        senders.stop()
    once(home, senders)
    assert fsck(home) == (0, [], "")


def test_what_can_not_be_moved_is_said(home):
    assert storage.moved(home.path) == {}, "nothing is left to be finished"
    assert "there is no partition 7" in user(home, "move", ME, "7", fails=True)
    assert "there is no account" in user(home, "move", "nobody@load.test", "1", fails=True)


def test_a_domain_is_full(home):
    imap = session(home, "a3@load.test")
    imap.append("INBOX", None, None, b"Subject: large\r\n\r\n" + b"x" * 120_000 + b"\r\n")
    imap.logout()
    used = sum(json.loads(line)["used_bytes"] for line in home.ctl("report", "storage", "--json", "--top", "0").splitlines() if '"user"' in line)
    assert home.ctl("domain", "quota", "load.test") == "load.test unlimited\n"
    home.ctl("domain", "quota", "load.test", str(used + 4000))
    rows = [json.loads(line) for line in home.ctl("report", "storage", "--json").splitlines()]
    assert [row["quota_bytes"] for row in rows if row["kind"] == "domain"] == [used + 4000]
    for address in (ME, OTHER):  # in different partitions
        imap = session(home, address)
        kind, root = imap.getquotaroot("INBOX")
        assert kind == "OK" and root[0][0] == b'INBOX "" @load.test'
        assert root[1][-1] == b"@load.test (STORAGE %d %d)" % (-(-used // 1024), (used + 4000) // 1024)
        assert imap.getquota("@load.test")[1] == [root[1][-1]]
        assert imap.getquota("@other.test")[0] == "NO"
        done, text = imap.append("INBOX", None, None, b"Subject: x\r\n\r\n" + b"x" * 5000 + b"\r\n")
        assert done == "NO" and b"[OVERQUOTA]" in text[0]
        imap.logout()
    with smtplib.SMTP("127.0.0.1", home.port("smtp")) as smtp:
        smtp.sendmail("s@load.test", [OTHER], b"Subject: waits\r\n\r\n" + b"y" * 5000 + b"\r\n")
    log = home.path / "log/mail.log"
    until(lambda: "No room left for this domain" in log.read_text())
    # Warnings: one mail to all of the domain, once a threshold.
    kept = Kept()
    ctx = SimpleNamespace(home=home.path, config=settings.load(home.path / "conf/iems.toml"), hostname="load.test", log=kept)
    care = storage.StorageCare(ctx, home.path / "store", kept)
    asyncio.run(care.warn())
    asyncio.run(care.warn())
    [message] = kept.messages
    assert [one.address for one in message.envelope.recipients] == [b"a1@load.test", b"a2@load.test", b"a3@load.test"]
    assert b"load.test are more than 95 % full" in b"".join(message.content) and kept.events == [
        ("quota-warning", {"domain": "load.test", "percent": 95, "used": used})
    ]
    home.ctl("domain", "quota", "load.test", "unlimited")
    imap = session(home, OTHER)
    until(lambda: imap.noop() and imap.uid("SEARCH", "SUBJECT", "waits")[1][0])  # what waited is delivered now
    assert imap.getquotaroot("INBOX")[1][0] == [b'INBOX ""']
    imap.logout()
    with pytest.raises(RuntimeError, match="not on the list"):
        home.ctl("domain", "quota", "other.test", "5G")


def test_conversion_back_and_forth_and_a_newer_home(home):
    assert f"p0: format {FORMAT}, nothing to do" in home.ctl("upgrade")
    with pytest.raises(RuntimeError, match="stop the server"):
        home.ctl("upgrade", "--back")
    home.stop()
    before = delivered(home.path)
    told = [json.loads(line) for line in home.ctl("upgrade", "--back", "--dry-run", "--json").splitlines()]
    assert [(one["database"], one["format"], one["target"], one["done"]) for one in told if one["database"] in ("p0", "p1")] == [
        ("p0", FORMAT, FORMAT - 1, False), ("p1", FORMAT, FORMAT - 1, False),
    ]  # fmt: skip
    assert {one["database"] for one in told} >= {"directory", "p0", "p1"}
    assert f"p0: format {FORMAT} -> {FORMAT - 1}" in home.ctl("upgrade", "--back")
    home.start()  # the format before is served
    with smtplib.SMTP("127.0.0.1", home.port("smtp")) as smtp:
        smtp.sendmail("s@load.test", [ME], b"X-Number: old\r\n\r\nx\r\n")
    until(lambda: "old" in delivered(home.path))
    with pytest.raises(RuntimeError, match="iemsctl upgrade"):
        home.ctl("domain", "quota", "load.test", "5G")
    assert fsck(home) == (0, [], "")
    home.stop()
    assert "domains counted" in home.ctl("upgrade")
    assert fsck(home) == (0, [], "")
    assert delivered(home.path) == {**before, "old": 1}
    with lmdb.open(str(home.path / "store/p1/index"), map_size=1 << 38) as env, env.begin(write=True) as txn:
        txn.put(keys.META_KEY, encode(Meta(FORMAT + 1, 1)))
    for command in ("start", "upgrade"):
        with pytest.raises(RuntimeError, match=f"p1 is of format {FORMAT + 1}, this version knows up to {FORMAT}"):
            home.ctl(command)
    with lmdb.open(str(home.path / "store/p1/index"), map_size=1 << 38) as env, env.begin(write=True) as txn:
        txn.put(keys.META_KEY, encode(Meta(FORMAT, 1)))
    home.start()
