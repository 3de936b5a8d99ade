"""IMAP extensions against a real server: COMPRESS, NOTIFY, QRESYNC, METADATA, QUOTA, REPLACE, object ids."""

import hashlib
import imaplib
import json
import re
import socket
import subprocess
import sys
import zlib

import pytest

from iems.perf.home import PrivateHome
from tests.corpus import imap
from tests.corpus import test_mime_corpus as corpus

MESSAGE = b"Subject: %d\r\nMessage-ID: <%d@x>\r\n\r\nbody %d\r\n"


@pytest.fixture(scope="module")
def home():
    with PrivateHome(7) as home:
        yield home


class Client:
    """A connection that tells apart what came untagged and what a tag got; with `deflate` after COMPRESS."""

    def __init__(self, home, user):
        self.sock = socket.create_connection(("127.0.0.1", home.port("imap")), timeout=60)
        self.buffer = b""
        self.inflater = self.deflater = None
        self.number = 0
        self.line()
        assert self.ask(b"LOGIN %b pw" % user)[1].startswith(b"OK")

    def more(self):
        data = self.sock.recv(1 << 16)
        assert data, "closed"
        self.buffer += self.inflater.decompress(data) if self.inflater else data

    def line(self):
        """One response with its literals."""
        at = 0
        while True:
            while (end := self.buffer.find(b"\r\n", at)) < 0:
                self.more()
            literal = re.search(rb"\{(\d+)\}$", self.buffer[at:end])
            if literal is None:
                break
            at = end + 2 + int(literal[1])
            while len(self.buffer) < at:
                self.more()
        found, self.buffer = self.buffer[:end], self.buffer[end + 2 :]
        return found

    def send(self, data):
        if self.deflater:
            data = self.deflater.compress(data) + self.deflater.flush(zlib.Z_SYNC_FLUSH)
        self.sock.sendall(data)

    def ask(self, command):
        self.number += 1
        tag = b"t%d" % self.number
        self.send(tag + b" " + command + b"\r\n")
        untagged = []
        while not (line := self.line()).startswith(tag + b" "):
            untagged.append(line)
        return untagged, line[len(tag) + 1 :]

    def append(self, content, box=b"INBOX", flags=b""):
        return self.ask(b"APPEND %b (%b) {%d+}\r\n%b" % (box, flags, len(content), content))

    def compress(self):
        assert self.ask(b"COMPRESS DEFLATE")[1].startswith(b"OK")
        self.inflater = zlib.decompressobj(-15)
        self.deflater = zlib.compressobj(6, zlib.DEFLATED, -15)

    def close(self):
        self.sock.close()


def test_compress(home):
    client = Client(home, b"a7@load.test")
    client.compress()
    large = b"Subject: large\r\n\r\n" + b"0123456789abcde\n" * 40_000
    assert client.append(large)[1].startswith(b"OK")
    for number in range(3):
        assert client.append(MESSAGE % (number, number, number))[1].startswith(b"OK")
    untagged, _ = client.ask(b"CAPABILITY")
    assert b"COMPRESS" not in untagged[0]
    assert b"COMPRESSIONACTIVE" in client.ask(b"COMPRESS DEFLATE")[1]
    client.ask(b"SELECT INBOX")
    untagged, done = client.ask(b"FETCH 1:* (FLAGS BODY.PEEK[])")
    assert done.startswith(b"OK")
    assert len(untagged) == 4
    assert large in untagged[0]
    # Pipelined, so that a file, what follows it and the next file are in one queue.
    client.send(b"a FETCH 1 BODY.PEEK[]\r\nb FETCH 2 BODY.PEEK[]\r\nc FETCH 1 BODY.PEEK[]\r\nd LOGOUT\r\n")
    lines = []
    while not lines or not lines[-1].startswith(b"d OK"):
        lines.append(client.line())
    assert [line[:1] for line in lines] == [b"*", b"a", b"*", b"b", b"*", b"c", b"*", b"d"]
    client.close()


def test_a_compressed_flood_ends_at_the_limits(home):
    client = Client(home, b"a1@load.test")
    client.compress()
    packed = client.deflater.compress(b"x" * 200_000_000) + client.deflater.flush()
    try:
        client.sock.sendall(packed)
        while client.sock.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    client.close()
    other = Client(home, b"a1@load.test")
    other.compress()
    try:
        other.sock.sendall(b"\xff" * 1000)
        while other.sock.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    other.close()
    Client(home, b"a1@load.test").close()


def test_notify(home):
    watcher, writer = Client(home, b"a2@load.test"), Client(home, b"a2@load.test")
    watcher.ask(b"SELECT INBOX")
    done = watcher.ask(
        b"NOTIFY SET (SELECTED (MessageNew (UID BODY.PEEK[HEADER.FIELDS (SUBJECT)]) MessageExpunge FlagChange)) "
        b"(PERSONAL (MessageNew MessageExpunge FlagChange MailboxName SubscriptionChange))"
    )[1]
    assert done.startswith(b"OK")
    writer.append(MESSAGE % (7, 7, 7))
    assert watcher.line() == b"* 1 EXISTS"
    assert watcher.line() == b"* 1 RECENT"
    assert watcher.line().startswith(b"* 1 FETCH (UID 1 BODY[HEADER.FIELDS (SUBJECT)] {")
    writer.append(MESSAGE % (8, 8, 8), b"Sent")
    assert re.fullmatch(rb"\* STATUS Sent \(UIDVALIDITY \d+ MESSAGES 1 UIDNEXT 2 UNSEEN 1\)", watcher.line())
    writer.ask(b"CREATE fresh")
    assert watcher.line() == b'* LIST () "/" fresh'
    assert watcher.line().startswith(b"* STATUS fresh (")
    writer.ask(b"RENAME fresh stale")
    assert watcher.line() == b'* LIST () "/" stale ("OLDNAME" (fresh))'
    writer.ask(b"SUBSCRIBE stale")
    writer.ask(b"SELECT Sent")
    writer.ask(b"STORE 1 +FLAGS (\\Seen)")
    lines = [watcher.line()]
    while b"UNSEEN 0" not in lines[-1] or b"Sent" not in lines[-1]:
        lines.append(watcher.line())
    writer.ask(b"SELECT INBOX")
    writer.ask(b"STORE 1 +FLAGS (\\Deleted)")
    while b"\\Deleted" not in (line := watcher.line()):
        pass
    assert line.startswith(b"* 1 FETCH (")
    writer.ask(b"EXPUNGE")
    while watcher.line() != b"* 1 EXPUNGE":
        pass
    assert watcher.ask(b"NOTIFY NONE")[1].startswith(b"OK")
    watcher.close()
    writer.close()


def test_resync_after_a_while(home):
    client, other = Client(home, b"a3@load.test"), Client(home, b"a3@load.test")
    for number in range(1, 31):
        client.append(MESSAGE % (number, number, number))
    client.ask(b"ENABLE QRESYNC")
    untagged, _ = client.ask(b"SELECT INBOX")
    text = b"\n".join(untagged)
    validity = re.search(rb"UIDVALIDITY (\d+)", text)[1]
    modseq = re.search(rb"HIGHESTMODSEQ (\d+)", text)[1]
    client.ask(b"CLOSE")
    other.ask(b"SELECT INBOX")
    other.ask(b"STORE 3 +FLAGS (\\Flagged)")
    other.ask(b"STORE 10:12 +FLAGS (\\Deleted)")
    other.ask(b"EXPUNGE")
    other.append(MESSAGE % (31, 31, 31))
    untagged, _ = client.ask(b"SELECT INBOX (QRESYNC (%b %b))" % (validity, modseq))
    assert b"* VANISHED (EARLIER) 10:12" in untagged
    told = [line for line in untagged if b" FETCH " in line]
    assert [re.search(rb"UID (\d+)", line)[1] for line in told] == [b"3", b"31"]
    untagged, _ = client.ask(b"SELECT INBOX (QRESYNC (%b %b 1:9 (1:9 1:9)))" % (validity, modseq))
    assert not [line for line in untagged if b"VANISHED" in line or b"UID 31" in line]
    untagged, _ = client.ask(b"SELECT INBOX (QRESYNC (12345 %b))" % modseq)
    assert not [line for line in untagged if b"VANISHED" in line or b"FETCH" in line]
    # Seen from here, what another session removes has vanished.
    other.ask(b"STORE 1 +FLAGS (\\Deleted)")
    other.ask(b"EXPUNGE")
    assert b"* VANISHED 1" in client.ask(b"NOOP")[0]
    client.close()
    other.close()


def test_ids_stay(home):
    client = Client(home, b"a4@load.test")
    client.append(MESSAGE % (1, 1, 1))
    client.append(b"References: <1@x> <2@x>\r\nMessage-ID: <3@x>\r\n\r\nx\r\n")
    client.append(b"In-Reply-To: <1@x>\r\n\r\nx\r\n")
    box = client.ask(b"CREATE one")[1]
    client.ask(b"RENAME one two")
    status = client.ask(b"STATUS two (MAILBOXID)")[0][0]
    assert re.search(rb"MAILBOXID \(([^)]+)\)", box)[1] == re.search(rb"MAILBOXID \(([^)]+)\)", status)[1]
    client.ask(b"SELECT INBOX")
    untagged, _ = client.ask(b"FETCH 1:3 (EMAILID THREADID SAVEDATE)")
    emails = [re.search(rb"EMAILID \((\w+)\)", line)[1] for line in untagged]
    threads = {re.search(rb"THREADID \((\w+)\)", line)[1] for line in untagged}
    assert len(set(emails)) == 3
    assert len(threads) == 1
    client.ask(b"MOVE 1 two")
    client.ask(b"SELECT two")
    assert emails[0] in client.ask(b"FETCH 1 (EMAILID)")[0][0]
    assert client.ask(b"SEARCH EMAILID " + emails[0])[0] == [b"* SEARCH 1"]
    assert client.ask(b"SEARCH THREADID " + threads.pop())[0] == [b"* SEARCH 1"]
    assert client.ask(b"SEARCH SAVEDSINCE 1-Jan-2020")[0] == [b"* SEARCH 1"]
    assert client.ask(b"SEARCH SAVEDBEFORE 1-Jan-2020")[0] == [b"* SEARCH"]
    assert client.ask(b"SEARCH EMAILID nothing")[0] == [b"* SEARCH"]
    client.close()


def test_replace_is_one_step(home):
    client, other = Client(home, b"a4@load.test"), Client(home, b"a4@load.test")
    client.append(b"Subject: draft\r\n\r\none\r\n", b"Drafts", b"\\Draft")
    client.ask(b"SELECT Drafts")
    other.ask(b"SELECT Drafts")
    new = b"Subject: draft\r\n\r\ntwo\r\n"
    untagged, done = client.ask(b"REPLACE 1 Drafts (\\Draft) {%d+}\r\n%b" % (len(new), new))
    assert done.startswith(b"OK")
    assert untagged[0].startswith(b"* OK [APPENDUID")
    assert b"* 1 EXPUNGE" in untagged
    assert b"* 1 EXPUNGE" in other.ask(b"NOOP")[0]
    assert b"two" in client.ask(b"FETCH 1 BODY.PEEK[]")[0][0]
    assert client.ask(b"REPLACE 2 Drafts {5+}\r\nx\r\n\r\n")[1].startswith(b"NO")
    assert client.ask(b"UID REPLACE 1 Drafts {5+}\r\nx\r\n\r\n")[1].startswith(b"NO")
    assert client.ask(b"REPLACE 1 missing {5+}\r\nx\r\n\r\n")[1].startswith(b"NO [TRYCREATE]")
    assert client.ask(b"STATUS Drafts (MESSAGES)")[0] == [b"* STATUS Drafts (MESSAGES 1)"]
    client.close()
    other.close()


def test_quota_and_annotations_outlast_a_restart():
    with PrivateHome(1) as home:
        subprocess.run(
            [sys.executable, "-m", "iems.cli.iemsuser", "--home", str(home.path), "quota", "a1@load.test", "1M"],
            check=True, capture_output=True,
        )  # fmt: skip
        client = Client(home, b"a1@load.test")
        client.append(b"Subject: x\r\n\r\n" + b"y" * 100_000, flags=b"\\Deleted")
        untagged, _ = client.ask(b"GETQUOTAROOT INBOX")
        assert untagged == [b'* QUOTAROOT INBOX ""', b'* QUOTA "" (STORAGE 98 976)']
        assert client.ask(b"STATUS INBOX (DELETED-STORAGE)")[0] == [b"* STATUS INBOX (DELETED-STORAGE 100014)"]
        assert client.append(b"y" * 1_000_000)[1].startswith(b"NO [OVERQUOTA]")
        assert client.ask(b'SETMETADATA INBOX (/private/comment "kept")')[1].startswith(b"OK")
        assert client.ask(b'SETMETADATA Sent (/private/comment "gone")')[1].startswith(b"OK")
        client.ask(b"DELETE Sent")
        client.ask(b"CREATE Sent")
        entries = b" ".join(b'/private/x%d "v"' % number for number in range(100))
        assert client.ask(b"SETMETADATA INBOX (%b)" % entries)[1].startswith(b"NO [METADATA TOOMANY]")
        assert client.ask(b"SETMETADATA INBOX (/private/x {70000+}\r\n%b)" % (b"v" * 70_000))[1].startswith(
            b"NO [METADATA MAXSIZE 65536]"
        )
        client.close()
        home.stop()
        home.start()
        client = Client(home, b"a1@load.test")
        assert client.ask(b"GETMETADATA INBOX /private/comment")[0] == [b'* METADATA INBOX (/private/comment "kept")']
        assert client.ask(b"GETMETADATA Sent /private/comment")[0] == [b"* METADATA Sent (/private/comment NIL)"]
        client.close()


def test_hard_messages_by_append_and_fetch(home):
    """What two other servers agree on after APPEND, asked for over the wire; the misses are those of the corpus test."""
    client = Client(home, b"a6@load.test")
    client.ask(b"CREATE corpus")
    agreed = json.loads((corpus.MIME / "imap-consensus.json").read_text())
    for name in agreed:
        assert client.append(corpus.sent(name), b"corpus")[1].startswith(b"OK"), name
    client.ask(b"SELECT corpus")
    score = corpus.Score()
    lines, _ = client.ask(b"FETCH 1:* (RFC822.SIZE ENVELOPE BODYSTRUCTURE)")
    bodies, _ = client.ask(b"FETCH 1:* BODY.PEEK[]")
    for number, (name, wanted) in enumerate(agreed.items(), 1):
        size = int(re.search(rb"RFC822\.SIZE (\d+)", lines[number - 1])[1])
        place = lines[number - 1].index(b"ENVELOPE ") + 9
        envelope, at = imap._item(lines[number - 1], place)
        shown, _ = imap._item(lines[number - 1], at + len(b" BODYSTRUCTURE "))
        score.check("size", name, wanted["size"], size)
        if "body_sha1" in wanted:
            content = bodies[number - 1].partition(b"}\r\n")[2][:-1]
            score.check("body", name, wanted["body_sha1"], hashlib.sha1(content).hexdigest())
        if "tree" in wanted:
            score.check("tree", name, wanted["tree"], imap.tree(shown))
        for field, value in zip(corpus.ENVELOPE, envelope, strict=True):
            if field in wanted["env"]:
                got = [list(map(corpus.text, a)) for a in value] if isinstance(value, list) else corpus.text(value)
                score.check("env", f"{name} {field}", wanted["env"][field], got)
        parts = wanted.get("parts", {})
        if parts:
            sections = b" ".join(b"BODY.PEEK[%b]" % part.encode() for part in parts)
            line = client.ask(b"FETCH %d (%b)" % (number, sections))[0][0]
            pos = line.index(b"(") + 1
            for part, digest in parts.items():
                pos += len(b"BODY[%b] " % part.encode())
                got, pos = imap._item(line, pos)
                score.check("parts", name, digest, got is not None and hashlib.sha1(got).hexdigest())
                pos += 1
    assert score.share("tree") >= 0.99
    assert score.share("parts") >= 0.99
    assert score.share("env") >= 0.98
    misses = {(kind, name) for kind, names in score.misses.items() for name in names}
    assert misses == {miss for miss in corpus.KNOWN if miss[0] != "enc"}
    client.close()


def test_a_day_of_a_mail_reader(home):
    """What Thunderbird and its like do: folders, headers of what is new, IDLE, changes since, filing away, sending."""
    reader, sender = Client(home, b"a1@load.test"), Client(home, b"a1@load.test")
    reader.ask(b'ID ("name" "reader" "version" "1")')
    reader.ask(b"ENABLE CONDSTORE UTF8=ACCEPT")
    assert reader.ask(b"NAMESPACE")[1].startswith(b"OK")
    folders = reader.ask(b'LIST (SUBSCRIBED) "" "*" RETURN (SPECIAL-USE STATUS (MESSAGES UNSEEN HIGHESTMODSEQ))')[0]
    assert any(b"\\Trash" in line for line in folders)
    sender.ask(b"SELECT INBOX")
    sender.ask(b"STORE 1:* +FLAGS.SILENT (\\Deleted)")
    sender.ask(b"EXPUNGE")
    for number in range(5):
        sender.append(MESSAGE % (number, number, number))
    untagged, _ = reader.ask(b"SELECT INBOX (CONDSTORE)")
    modseq = int(re.search(rb"HIGHESTMODSEQ (\d+)", b" ".join(untagged))[1])
    lines, _ = reader.ask(b"UID FETCH 1:* (FLAGS)")
    uids = [int(re.search(rb"UID (\d+)", line)[1]) for line in lines]
    assert len(uids) == 5
    lines, _ = reader.ask(
        b"UID FETCH %d:%d (UID RFC822.SIZE FLAGS BODY.PEEK[HEADER.FIELDS (From To Subject Date Message-ID)])" % (uids[0], uids[-1])
    )
    assert len(lines) == 5
    reader.send(b"i IDLE\r\n")
    assert reader.line().startswith(b"+")
    sender.ask(b"STORE 2 +FLAGS (\\Flagged)")
    while b"\\Flagged" not in (line := reader.line()):
        pass
    assert b"MODSEQ" in line
    sender.append(MESSAGE % (5, 5, 5))
    while reader.line() != b"* 6 EXISTS":
        pass
    reader.send(b"DONE\r\n")
    while not reader.line().startswith(b"i OK"):
        pass
    lines, _ = reader.ask(b"UID FETCH 1:* (FLAGS) (CHANGEDSINCE %d)" % modseq)
    assert [int(re.search(rb"UID (\d+)", line)[1]) for line in lines] == [uids[1], uids[-1] + 1]
    reader.ask(b"UID FETCH %d (BODY[])" % uids[0])
    reader.ask(b"UID STORE %d +FLAGS (\\Answered)" % uids[0])
    assert reader.ask(b"UID STORE %d (UNCHANGEDSINCE 1) +FLAGS (\\Flagged)" % uids[0])[1].startswith(b"OK [MODIFIED")
    done = reader.ask(b"UID MOVE %d Trash" % uids[2])
    assert b"* 3 EXPUNGE" in done[0]
    assert reader.append(b"Subject: reply\r\n\r\nx\r\n", b"Sent", b"\\Seen")[1].startswith(b"OK [APPENDUID")
    assert reader.ask(b"UID SEARCH RETURN (COUNT) UNDELETED")[0] == [b'* ESEARCH (TAG "t%d") UID COUNT 5' % reader.number]
    reader.close()
    sender.close()


def test_search_finds_what_envelope_says(home):
    """From the index rows for many, from the message for few: both say the same."""
    client = imaplib.IMAP4("127.0.0.1", home.port("imap"), timeout=60)
    client.login("a5@load.test", "pw")
    for number in range(60):
        client.append(
            "INBOX", "", None,
            b"From: =?utf-8?q?J=C3=BCrgen_%d?= <j%d@x.org>\r\nTo: list: a%d@y.org, b@y.org;\r\nSubject: [x] Re: Zahl %d\r\n\r\nx\r\n"
            % (number, number, number, number),
        )  # fmt: skip
    client.select("INBOX")
    for key, value in (("FROM", b"j\xc3\xbcrgen 7"), ("FROM", b"<j7@"), ("TO", b"a7@y"), ("SUBJECT", b"zahl  7"), ("FROM", b"")):
        found = []
        for narrow in ("", "10:30 "):
            client.literal = value
            assert client._simple_command("SEARCH", "CHARSET", "UTF-8", narrow + key)[0] == "OK"
            found.append(client._untagged_response("OK", [None], "SEARCH")[1][-1].split())
        assert [number for number in found[0] if 10 <= int(number) <= 30] == found[1]
        assert b"8" in found[0]
    client.logout()
