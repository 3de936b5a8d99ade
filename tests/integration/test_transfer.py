"""Mail out of one account and into another, by each format, with the server running and stopped; repeated runs double nothing."""

from __future__ import annotations

import json
import mailbox as stdlib
import os
import signal
import subprocess
import sys

import pytest

from iems.directory import Directory
from iems.perf.home import PrivateHome
from iems.store.reader import Reader
from iems.transfer.names import from_file, to_file
from iems.transfer.sources import crlf
from tests.integration.test_roundtrip import corpus, for_smtp
from tests.integration.test_spam_control import user
from tests.support.waiting import until


@pytest.fixture(scope="module")
def server():
    with PrivateHome(8) as home:
        yield home


def contents(home, address):
    """(mailbox, content, flags) of everything, sorted."""
    directory = Directory(home.path / "directory")
    number = directory.account(address).number
    directory.close()
    reader = Reader(home.path / "store")
    found = []
    for box in reader.mailboxes(number):
        for uid in reader.select(number, box.id).uids.tolist():
            row = reader.message(number, box.id, uid)
            found.append((box.name, reader.blobs.read(row.rope), tuple(sorted(box.flag_names(row.flags))), row.internaldate_s))
    reader.close()
    return sorted(found)


def sources(folder):
    """A Maildir++ with the corpus in INBOX and some in folders, with flags and dates."""
    made = stdlib.Maildir(folder, create=True)
    sub = made.add_folder("Lists.2026%2E1")
    for number, raw in enumerate(corpus()):
        message = stdlib.MaildirMessage(for_smtp(raw))
        message.set_flags("SRF"[: number % 4])
        if number % 4:
            message.set_subdir("cur")
        message.set_date(1_000_000_000 + number)
        key = (sub if number % 5 == 0 else made).add(message)
        path = next((folder / ("." + "Lists.2026%2E1" if number % 5 == 0 else "")).rglob(f"*{key}*"))
        path.write_bytes(for_smtp(raw))
        os.utime(path, (1_000_000_000 + number,) * 2)
    return len(made) + len(sub)


def test_there_and_back_by_every_format(server, tmp_path):
    total = sources(tmp_path / "in")
    assert user(server, "import", "a1@load.test", str(tmp_path / "in"), "--dry-run") == f"would bring in {total} messages of maildir\n"
    done = json.loads(user(server, "import", "a1@load.test", str(tmp_path / "in"), "--json"))
    assert done["brought"] == total and done["known"] == done["refused"] == done["skipped"] == 0
    before = contents(server, "a1@load.test")
    assert len(before) == total and {name for name, *_ in before} == {"INBOX", "Lists/2026.1"}
    assert {content for _, content, _, _ in before} == {for_smtp(raw) for raw in corpus()}
    assert {flags for *_, flags, _ in before} == {(), ("\\Seen",), ("\\Answered", "\\Seen"), ("\\Answered", "\\Flagged", "\\Seen")}
    assert min(date for *_, date in before) == 1_000_000_000
    # again: nothing new
    assert json.loads(user(server, "import", "a1@load.test", str(tmp_path / "in"), "--json"))["known"] == total
    assert contents(server, "a1@load.test") == before
    for turn, kind in enumerate(("maildir", "mbox", "eml")):
        out = tmp_path / kind
        address = f"a{turn + 2}@load.test"
        assert user(server, "export", "a1@load.test", str(out), "--format", kind) == f"wrote {total} messages\n"
        again = user(server, "export", "a1@load.test", str(out), "--format", kind)
        assert again == (f"wrote {total} messages\n" if kind == "mbox" else f"wrote 0 messages, {total} were there already\n")
        if kind == "mbox":
            assert len(stdlib.mbox(out / "INBOX.mbox")) == sum(name == "INBOX" for name, *_ in before)
        assert json.loads(user(server, "import", address, str(out), "--json"))["brought"] == total
        after = contents(server, address)
        if kind == "mbox":
            # a bare LF or CR has no place in a file of lines
            assert sorted(c for _, c, _, _ in after) == sorted(crlf(c if c.endswith(b"\n") else c + b"\r\n") for _, c, _, _ in before)
            assert sorted(flags for *_, flags, _ in after) == sorted(flags for *_, flags, _ in before)
        elif kind == "maildir":
            assert after == before
        else:
            assert [entry[:2] for entry in after] == [entry[:2] for entry in before]


def test_a_run_that_was_killed_is_repeated(server, tmp_path):
    folder = tmp_path / "eml"
    folder.mkdir()
    for number in range(2500):
        (folder / f"{number}.eml").write_bytes(b"Subject: %d\n\nbody of %d\n" % (number, number) * 3)
    command = [sys.executable, "-m", "iems.cli.iemsuser", "--home", str(server.path), "import", "a6@load.test", str(folder), "--mailbox", "Old/Mail"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    until(lambda: process.poll() is not None or any(name == "Old/Mail" for name, *_ in contents(server, "a6@load.test")))
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    part = len(contents(server, "a6@load.test"))
    done = json.loads(user(server, "import", "a6@load.test", str(folder), "--mailbox", "Old/Mail", "--json"))
    assert 0 < part <= done["known"] and done["known"] + done["brought"] == 2500
    found = contents(server, "a6@load.test")
    assert len(found) == 2500 == len({content for _, content, _, _ in found})


def test_bad_input_and_quota(server, tmp_path):
    (tmp_path / "nothing").mkdir()
    assert "neither mbox" in user(server, "import", "a7@load.test", str(tmp_path / "nothing"), fails=True)
    assert "no account" in user(server, "import", "nobody@load.test", str(tmp_path / "nothing"), fails=True)
    (tmp_path / "m").write_bytes(
        b"From a@b Mon Jan  2 03:04:05 2006\nSubject: one\n\n>From quoted\n>>From twice\nFrom the middle of a text\n\nFrom me to you\nend\n\n"
        b"From c Tue Jan  3 03:04:05 2006\n\n\nFrom d@e Tue Jan  3 03:04:05 2006\nStatus: RO\nX-Status: F\nSubject: two\n\nlast, without a line end"
    )
    done = json.loads(user(server, "import", "a7@load.test", str(tmp_path / "m"), "--json"))
    assert done == {"found": 2, "brought": 2, "known": 0, "skipped": 1, "refused": 0}
    one, two = contents(server, "a7@load.test")
    assert one[1] == b"Subject: one\r\n\r\nFrom quoted\r\n>From twice\r\nFrom the middle of a text\r\n\r\nFrom me to you\r\nend\r\n"
    assert two[1:3] == (b"Subject: two\r\n\r\nlast, without a line end", ("\\Flagged", "\\Seen")) and one[3] == 1_136_171_045
    user(server, "quota", "a7@load.test", "1000")
    (tmp_path / "big.eml").write_bytes(b"Subject: big\r\n\r\n" + b"x" * 3000)
    assert "overquota" in user(server, "import", "a7@load.test", str(tmp_path / "big.eml"), fails=True)
    assert len(contents(server, "a7@load.test")) == 2


def test_with_the_server_stopped(server, tmp_path):
    (tmp_path / "x.eml").write_bytes(b"Subject: offline\r\n\r\nx\r\n")
    server.stop()
    assert user(server, "import", "a8@load.test", str(tmp_path / "x.eml")) == "brought in 1 messages\n"
    assert user(server, "export", "a8@load.test", str(tmp_path / "out"), "--format", "eml") == "wrote 1 messages\n"
    [file] = (tmp_path / "out").rglob("*.eml")
    assert file.read_bytes() == b"Subject: offline\r\n\r\nx\r\n"
    server.start()
    assert [content for _, content, _, _ in contents(server, "a8@load.test")] == [b"Subject: offline\r\n\r\nx\r\n"]
    assert json.loads(user(server, "import", "a8@load.test", str(tmp_path / "x.eml"), "--json"))["known"] == 1


@pytest.mark.parametrize("level", ["Plain", "Ünï cödé", "a.b", "100%", "..", ".hidden", "a:b*c?", "x" * 300, "CON", "tab\there", "日本語"])
def test_names_of_mailboxes_on_disk(level):
    name = to_file(level)
    assert "/" not in name and not name.startswith(".") and len(name.encode()) <= 255 and "." not in name
    if len(level) < 100 and level.isprintable():
        assert from_file(name) == level.replace("*", "").replace("%", "") or from_file(name) == level
    assert from_file("&ZeVnLIqe-") == "日本語"
