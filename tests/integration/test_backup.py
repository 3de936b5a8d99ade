"""A home is backed up while mail comes in, and brought back: whole, one account, one mailbox, one message."""

from __future__ import annotations

import imaplib
import json
import subprocess
import sys
import time

import pytest

from iems.backup import snapshot
from iems.model import id_text
from iems.perf.home import PASSWORD, PrivateHome
from iems.perf.ports import free_base
from iems.store.reader import Reader
from tests.integration.test_spam_control import user
from tests.integration.test_transfer import contents
from tests.support.senders import Senders, delivered
from tests.support.waiting import until


def ctl(*arguments, fails=False):
    done = subprocess.run([sys.executable, "-m", "iems.cli.iemsctl", *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stderr + done.stdout if fails else done.stdout


def uidvalidity(home, address):
    with imaplib.IMAP4("127.0.0.1", home.port("imap")) as imap:
        imap.login(address, PASSWORD)
        imap.select("INBOX", readonly=True)
        return int(imap.response("UIDVALIDITY")[1][0])


def test_hot_and_back_again(tmp_path):
    folder = tmp_path / "backup"
    with PrivateHome(3) as home:
        (tmp_path / "one.eml").write_bytes(b"Subject: kept\r\n\r\nwords\r\n")
        user(home, "import", "a1@load.test", str(tmp_path / "one.eml"), "--mailbox", "Deep/Box")
        (tmp_path / "s.sieve").write_text('require "fileinto"; fileinto "Sorted";')
        put = [sys.executable, "-m", "iems.cli.iemsuser", "--home", str(home.path), "sieve", "put", "a3@load.test", "mine"]
        subprocess.run(put, input=(tmp_path / "s.sieve").read_bytes(), check=True, capture_output=True)
        senders = Senders(home.port("smtp"), [f"a{n}@load.test" for n in (1, 2, 3)], body=b"x" * 3000, pause_s=0.005)
        until(lambda: len(delivered(home.path)) > 5)
        first = json.loads(home.ctl("backup", "make", str(folder), "--json"))
        seen, at = len(delivered(home.path)), int(time.time())
        until(lambda: len(delivered(home.path)) > seen + 5 and int(time.time()) > at)  # a snapshot has the name of its second
        second = json.loads(home.ctl("backup", "make", str(folder), "--json"))
        senders.stop()
        assert second["messages"] > first["messages"] > 1 and second["accounts"] == 3
        assert [json.loads(line)["snapshot"] for line in ctl("backup", "list", str(folder), "--json").splitlines()] == [first["snapshot"], second["snapshot"]]
        for name in (first["snapshot"], second["snapshot"]):
            assert ctl("backup", "verify", str(folder), "--snapshot", name) == "sound\n"
        assert not list((home.path / "store").glob("p*/backup-*"))

        # one mailbox, one message, into the running home; again doubles nothing
        assert home.ctl("restore", "mail", str(folder), "a1@load.test", "--mailbox", "Deep/Box") == "restored 1 messages\n"
        assert "1 were there already" in home.ctl("restore", "mail", str(folder), "a1@load.test", "--mailbox", "Deep/Box")
        restored = [entry for entry in contents(home, "a1@load.test") if entry[0] == f"Restored/{second['snapshot']}/Deep/Box"]
        assert [content for _, content, _, _ in restored] == [b"Subject: kept\r\n\r\nwords\r\n"]
        reader = Reader(folder / "snapshots" / first["snapshot"] / "store")
        inbox = next(box for box in reader.mailboxes(1) if box.name == "INBOX")
        row = reader.message(1, inbox.id, 1)
        reader.close()
        arguments = ("restore", "mail", str(folder), "a1@load.test", "--id", id_text(row.origin), "--account", "a3@load.test", "--into", "Found")
        assert home.ctl(*arguments) == "restored 1 messages\n"
        assert sum(name == "Found/INBOX" for name, *_ in contents(home, "a3@load.test")) == 1
        for wrong in (["nobody@load.test"], ["a1@load.test", "--mailbox", "None"], ["a1@load.test", "--snapshot", "x"], ["a1@load.test", "--id", "x"]):
            with pytest.raises(RuntimeError):
                home.ctl("restore", "mail", str(folder), *wrong)
        validity = uidvalidity(home, "a2@load.test")
        conf = (home.path / "conf/iems.toml").read_text()

    # the home is gone; the second snapshot is everything there was at its time
    target = tmp_path / "again" / "home"
    target.parent.mkdir()
    assert f"restored {second['messages']} messages" in ctl("restore", "home", str(folder), str(target))
    assert (target / "conf/iems.toml").read_text() == conf
    assert "not empty" in ctl("restore", "home", str(folder), str(target), fails=True)
    assert list((target / "store/home/a3@load.test").rglob("scripts")), "scripts of users come back"
    back = PrivateHome.over(target, free_base())
    text = conf.replace(f"\nbase = {home.base}", f"\nbase = {back.base}")
    assert text != conf
    (target / "conf/iems.toml").write_text(text)
    try:
        back.start()
        assert sum(delivered(target).values()) >= second["messages"] - 1
        assert uidvalidity(back, "a2@load.test") > validity, "uids that came after the snapshot will be given again"
        more = Senders(back.port("smtp"), ["a2@load.test"], body=b"y", pause_s=0.01)
        until(lambda: more.acknowledged)
        more.stop()
    finally:
        back.stop()


def test_damage_and_pruning(tmp_path):
    folder = tmp_path / "backup"
    with PrivateHome(1) as home:
        (tmp_path / "one.eml").write_bytes(b"Subject: kept\r\n\r\n" + b"words\r\n" * 500)
        user(home, "import", "a1@load.test", str(tmp_path / "one.eml"))
        names = []
        for number in range(3):
            if number:
                time.sleep(1.05)  # a snapshot has the name of its second
            names.append(json.loads(home.ctl("backup", "make", str(folder), "--json")))
        assert names[0]["copied_octets"] > 3000 and names[1]["copied_octets"] == 0, "content is copied once"
        (folder / "snapshots" / "20200101T000000Z").mkdir()
        assert len(snapshot.names(folder)) == 3, "one that was not finished is none"
        assert "removed 2 snapshots" in ctl("backup", "prune", str(folder), "--keep", "1")
        assert snapshot.names(folder) == [names[2]["snapshot"]]
        assert ctl("backup", "verify", str(folder)) == "sound\n"
        [blob] = [path for path in (folder / "blobs/p0").iterdir() if path.suffix == ".blob"]
        octets = bytearray(blob.read_bytes())
        octets[100] ^= 1
        blob.write_bytes(octets)
        assert "not the octets" in ctl("backup", "verify", str(folder), fails=True)
        assert "damaged" in ctl("restore", "home", str(folder), str(tmp_path / "new"), fails=True)
        assert not (tmp_path / "new").exists()
        blob.unlink()
        assert "No such file" in ctl("backup", "verify", str(folder), fails=True)
    assert "no snapshot" in ctl("backup", "verify", str(tmp_path), fails=True)
