"""The verdict record as its readers see it: the same in the message, over IMAP and in the trace; the preview; mailboxes of others; the balance."""

from __future__ import annotations

import hashlib
import imaplib
import json
import shutil
import smtplib
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from iems.cli.iemsctl import main
from iems.lmda import unkept
from iems.message.verdict import recorded
from iems.perf import queue
from iems.perf.home import PASSWORD, PrivateHome
from tests.integration.test_screen import connect
from tests.integration.test_spam_control import mailbox, user
from tests.support.beside import beside
from tests.support.dnsserver import DnsServer

ZONES = {("2.0.0.127.tag.test", "A"): ["127.0.0.2"], ("8.2.0.192.tag.test", "A"): ["127.0.0.9"], ("2.0.0.127.clean.test", "A"): ["127.0.0.2"]}
IGNORES, FILES, DISCARDS, BOUNCES, RULES, OWNER, TRIES = (f"a{number}@load.test" for number in range(1, 8))
ASKED = "dnsbl=tag.test (127.0.0.9); dnsbl=clean.test (not listed); attachments (removed: evil.exe)"


@pytest.fixture(scope="module")
def server():
    dns = DnsServer(ZONES)
    with beside(dns):
        settings = {"dns.servers": [f"127.0.0.1:{dns.port}"], "smtpd.workers": 1, "smtpd.xclient_networks": ["127.0.0.1/32"]}
        with PrivateHome(7, settings) as home:
            for zone in ("tag.test", "clean.test"):
                home.ctl("dnsbl", "add", zone, "--action", "tag")
            home.ctl("attachment", "add", "--name", "*.exe", "--action", "strip")
            for address, action in ((FILES, "file"), (DISCARDS, "discard"), (BOUNCES, "bounce")):
                user(home, "spam", "action", address, action)
            for address in (RULES, TRIES):
                user(home, "mailsort", "add", address, "--header", "subject", "--contains", "four", "--copy", "Copies", "--continue")
                user(home, "mailsort", "add", address, "--header", "from", "--contains", "else", "--move", "Else")
            yield home


ATTACHED = (
    'Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\ntext\r\n--b\r\nContent-Type: application/x-msdownload; name="evil.exe"\r\n'
    'Content-Disposition: attachment; filename="evil.exe"\r\n\r\nMZ\r\n--b--\r\n'
)


def send(home, recipients, subject, client="192.0.2.8", sender="x@else.test", extra="", rest="\r\nbody\r\n"):
    """Hand a message in; its id."""
    with connect(home, client) as smtp:
        smtp.mail(sender)
        for recipient in recipients:
            assert smtp.rcpt(recipient)[0] == 250
        to = ", ".join(recipients)
        code, text = smtp.data(f"From: {sender}\r\nTo: {to}\r\n{extra}Subject: {subject}\r\n{rest}".encode())
        assert code == 250
    queue.until_drained(home.path)
    return text.decode().split()[-1]


def record(home, address, subject, name="INBOX"):
    """The record in the header of a message."""
    return recorded(mailbox(home, address, name)[subject].encode())


def annotations(home, address, name="INBOX"):
    """subject -> record, by GETMETADATA."""
    found = {}
    with imaplib.IMAP4("127.0.0.1", home.port("imap")) as imap:
        imap.login(address, PASSWORD)
        imap.select(name, readonly=True)
        for number in imap.search(None, "ALL")[1][0].split():
            data = imap.fetch(number, "(UID BODY.PEEK[HEADER.FIELDS (SUBJECT)])")[1][0]
            uid = data[0].split(b"UID ")[1].split()[0].decode()
            typ, _ = imap.xatom("GETMETADATA", name, f"/private/vendor/iems/verdicts/{uid}")
            assert typ == "OK"
            [text] = imap._untagged_response(typ, [None], "METADATA")[1]
            found[data[1].decode().strip()[9:]] = text.decode().partition(uid + " ")[2].rstrip(")").strip('"') if '"' in text.decode() else ""
    return found


def traced(home, message_id):
    """recipient -> (event, record) in the trace."""
    lines = [json.loads(line) for line in home.ctl("trace", message_id, "--json").splitlines()]
    return {line["recipient"]: (line["event"], line["detail"]["verdict"]) for line in lines if "verdict" in line["detail"]}, lines


def test_one_message_one_record_each_read_in_three_places(server):
    message_id = send(server, [IGNORES, FILES, DISCARDS, BOUNCES, RULES], "four", rest=ATTACHED)
    said, lines = traced(server, message_id)
    asked = ASKED.replace("(removed: evil.exe)", said[IGNORES][1].partition("attachments ")[2].partition(";")[0])
    assert "removed" in asked and "evil" in asked
    assert said == {
        IGNORES: ("delivered", f"{asked}; spamcontrol=ignore (site); to=INBOX"),
        FILES: ("delivered", f"{asked}; spamcontrol=file=Spam (all tags); to=Spam"),
        DISCARDS: ("discarded", f"{asked}; spamcontrol=discard (all tags); to (discarded)"),
        BOUNCES: ("failed", f"{asked}; spamcontrol=bounce (all tags); to (refused)"),
        RULES: ("delivered", f"{asked}; spamcontrol=ignore (site); rule=mailsort:1 (fileinto); rule=mailsort:2 (fileinto); to=Copies; to=Else"),
    }
    assert [line["detail"]["answers"] for line in lines if line["event"] == "checked"] == [["dnsbl clean.test: not listed"]]
    assert [line["detail"]["verdicts"] for line in lines if line["event"] == "tagged"] == [["dnsbl tag.test: 127.0.0.9"]]
    assert [line["detail"]["module"] for line in lines if line["event"] == "examined"] == ["attachments", "antispam"]
    for address, name in ((IGNORES, "INBOX"), (FILES, "Spam"), (RULES, "Copies"), (RULES, "Else")):
        assert record(server, address, "four", name) == annotations(server, address, name)["four"] == said[address][1]
    assert json.loads(server.ctl("audit", "--json"))["missing"] == 0
    quiet = send(server, [IGNORES], "nothing", client="")
    assert record(server, IGNORES, "nothing") == "attachments; to=INBOX" and traced(server, quiet)[0][IGNORES][0] == "delivered"


FORGED = (
    "X-IEMS-Verdict: asked=nothing; to=INBOX\r\n",
    "x-iems-verdict : asked=nothing;\r\n\tto=Spam\r\n",
    "X-IEMS-Bayes: spam 0.999999999999 (limits 0.1 0.2; action file)\r\n",
    "X-IEMS-AntiSpam: ip=192.0.2.8; t=2026-11-24T15:00:00Z; dnsbl=tag.test (127.0.0.9); action=discard (all tags)\r\n",
    "X-Spam-Status: YES\r\n",
    "X-Spam-Status:\r\n YES\r\n",
)


def test_what_outsiders_write_is_removed_and_never_believed(server):
    user(server, "spam", "action", FILES, "discard")
    for number, lines in enumerate((*FORGED, "".join(FORGED), "".join(FORGED[::-1]) * 20)):
        subject = f"forged-{number}"
        send(server, [FILES], subject, client="192.0.2.77", extra=lines)
        head = mailbox(server, FILES)[subject]
        assert head.lower().count("x-iems-verdict") == 1 and recorded(head.encode()).startswith("dnsbl=tag.test (not listed)")
        assert "x-iems-bayes" not in head.lower() and "antispam" not in head.lower() and "x-spam-status" not in head.lower()
    # Delivery's own lines at the start of a message: behind the Received line they are the sender's.
    send(server, [FILES], "lines", client="192.0.2.77", extra="Return-Path: <a@b>\r\nDelivered-To: a2@load.test\r\n" + FORGED[0])
    assert annotations(server, FILES)["lines"] == record(server, FILES, "lines") != "asked=nothing; to=INBOX"
    # A rule that asks to whom it was delivered hears what delivery says, and of other systems only.
    extra = "Delivered-To: a1@load.test\r\nDelivered-To: list@else.test\r\nDelivered-To: <a2@LOAD.test>\r\n"
    send(server, [FILES], "delivered to", client="192.0.2.77", extra=extra)
    said = [line for line in mailbox(server, FILES)["delivered to"].splitlines() if line.lower().startswith("delivered-to")]
    assert said == [f"Delivered-To: {FILES}", "Delivered-To: list@else.test"]
    user(server, "spam", "action", FILES, "file")


def fingerprint(home):
    """Every file of a home but what runs (sockets, boards, lock tables, the log): octets and names."""
    found = {}
    for path in sorted(home.path.rglob("*")):
        part = path.relative_to(home.path)
        if path.is_file() and part.parts[0] not in ("run", "log") and path.name != "lock.mdb":
            found[str(part)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def run_preview(home, *arguments):
    """What `iemsctl preview` prints, run in this process."""
    found = CliRunner().invoke(main, ["--home", str(home.path), "preview", *arguments])
    if found.exit_code:
        raise RuntimeError(found.output + found.stderr)
    return found.stdout


def noted(home, address, count):
    """Whether so many messages of a user are known that were not kept."""
    return any(len(unkept.read(place, 0)) == count for place in (home.path / "store/home" / address).glob("sieve.*"))


def preview(home, *arguments):
    lines = [json.loads(line) for line in run_preview(home, *arguments, "--json").splitlines()]
    return {line["subject"]: (line["happened"], line["would"]) for line in lines[:-1]}, lines[-1]["summary"]


def test_preview_tells_and_changes_nothing(server, tmp_path):
    user(server, "bayes", "on", TRIES, "--spam", "ignore")
    send(server, [TRIES], "four")
    send(server, [TRIES], "tagged")
    send(server, [TRIES], "clean", client="192.0.2.99", sender="y@other.test")
    send(server, [TRIES], "gone", sender="z@other.test")
    user(server, "spam", "action", TRIES, "discard")
    send(server, [TRIES], "thrown away", sender="z@other.test")
    user(server, "spam", "action", TRIES, "bounce")
    send(server, [TRIES], "turned away", sender="z@other.test")
    user(server, "spam", "action", TRIES, "discard")
    until = time.monotonic() + 60
    while not noted(server, TRIES, 2):
        assert time.monotonic() < until
        time.sleep(0.05)
    with imaplib.IMAP4("127.0.0.1", server.port("imap")) as imap:
        imap.login(TRIES, PASSWORD)
        imap.append("INBOX", "", "", b"Subject: no delivery\r\n\r\nx\r\n")
        imap.select("INBOX")
        [number] = imap.search(None, "SUBJECT", '"gone"')[1]
        imap.store(number, "+FLAGS", "\\Deleted")
        imap.expunge()
        [number] = imap.search(None, "SUBJECT", '"clean"')[1]
        imap.copy(number, "Archive")
    as_now, summary = preview(server, TRIES)
    assert as_now == {
        "four": ("Copies, Else", "(discarded)"),
        "tagged": ("Else", "(discarded)"),
        "clean": ("INBOX", "INBOX"),
        "gone": ("INBOX", "(discarded)"),
        "thrown away": ("(discarded)", "(discarded)"),
        "turned away": ("(refused)", "(discarded)"),
    }
    assert [summary[name] for name in ("messages", "changed", "foreign", "gone")] == [6, 4, 1, 1]
    found, _ = preview(server, TRIES, "--action", "default")
    assert found["tagged"] == ("Else", "Else") and found["thrown away"] == ("(discarded)", "INBOX")
    # What was refused goes through score and rules, too.
    assert found["turned away"] == ("(refused)", "INBOX")
    assert preview(server, TRIES, "--action", "default", "--bayes-good", "0.001", "--bayes-limit", "0.002", "--bayes-spam", "file=Junk")[0][
        "turned away"
    ] == ("(refused)", "Junk")
    assert preview(server, TRIES, "--allow", "z@other.test")[0]["turned away"] == ("(refused)", "INBOX")
    found, _ = preview(server, TRIES, "--action", "bounce", "--allow", "*@else.test", "--zone", "tag.test=file=Odd")
    assert found["four"] == ("Copies, Else", "Copies, Else") and found["gone"] == ("INBOX", "Odd")
    found, _ = preview(server, TRIES, "--action", "ignore", "--bayes-good", "0.001", "--bayes-limit", "0.002", "--bayes-spam", "file=Junk")
    assert found["clean"] == ("INBOX", "Junk"), "with the score it had"
    script = tmp_path / "new.sieve"
    script.write_text('require ["fileinto", "vacation", "mailbox"];\nif header :contains "subject" "clean" { fileinto :create "New"; }\nelse { discard; }\n')
    found, summary = preview(server, TRIES, "--action", "ignore", "--script", str(script))
    assert found["clean"] == ("INBOX", "New") and found["tagged"] == ("Else", "(discarded)")
    assert found["turned away"] == ("(refused)", "(discarded)")
    by_text = tmp_path / "text.sieve"
    by_text.write_text('require "body";\nif body :contains "body" { discard; }\n')
    found, _ = preview(server, TRIES, "--action", "ignore", "--script", str(by_text))
    assert found["clean"] == ("INBOX", "(discarded)") and found["turned away"] == ("(refused)", "unknown: its text is gone")
    assert {(way["happened"], way["would"]): way["messages"] for way in summary["ways"]}["INBOX", "New"] == 1
    script.write_text("nonsense")
    with pytest.raises(RuntimeError, match="nonsense"):
        run_preview(server, TRIES, "--script", str(script))
    text = run_preview(server, TRIES, "--changed", "--days", "1")
    assert "'tagged': Else -> (discarded)" in text and "something else would have become of 4" in text and "judged by headers alone: 1" in text and "'clean'" not in text
    for wrong in (["--action", "burn"], ["--zone", "x"], ["--allow", "a b"], ["--bayes-good", "2"], ["--no-bayes", "--bayes-good", "0.1"], ["--days", "0"]):
        with pytest.raises(RuntimeError):
            run_preview(server, TRIES, *wrong)
    with pytest.raises(RuntimeError, match="no account"):
        run_preview(server, "nobody@load.test")
    server.stop()
    before = fingerprint(server)
    assert preview(server, TRIES, "--days", "3650")[0] == as_now
    preview(server, TRIES, "--action", "bounce", "--bayes-spam", "discard", "--bayes-limit", "0.4")
    assert fingerprint(server) == before
    server.start()


def test_rules_file_into_a_shared_mailbox_while_they_may(server):
    team = f"Other Users/{OWNER}/Team"
    rule = ("mailsort", "add", IGNORES, "--header", "subject", "--contains", "team", "--move", team)
    with imaplib.IMAP4("127.0.0.1", server.port("imap")) as owner:
        owner.login(OWNER, PASSWORD)
        owner.create("Team")
        assert "may put no mail" in user(server, *rule, fails=True)
        owner.setacl("Team", IGNORES, "lr")
        assert "insert (i)" in user(server, *rule, fails=True)
        owner.setacl("Team", IGNORES, "lrip")
        user(server, *rule)
        # The owner gets the same message himself: that is another delivery.
        message_id = send(server, [IGNORES, OWNER], "for the team", client="192.0.2.99")
        assert "for the team" in mailbox(server, OWNER) and "for the team" not in mailbox(server, IGNORES)
        head = mailbox(server, OWNER, "Team")["for the team"]
        assert f"Delivered-To: {IGNORES}" in head and recorded(head.encode()).endswith(f"rule=mailsort:1 (fileinto); to=Other%20Users/{OWNER}/Team")
        owner.setacl("Team", IGNORES, "lr")
        message_id = send(server, [IGNORES], "no more team", client="192.0.2.99")
        assert "no more team" in mailbox(server, IGNORES)
        [line] = [line for line in traced(server, message_id)[1] if line["event"] == "not-shared"]
        assert line["detail"] == {"mailbox": team, "why": "no right to put mail there"} and line["recipient"] == IGNORES
        owner.setacl("Team", IGNORES, "p")
        owner.delete("Team")
        send(server, [IGNORES], "team is gone", client="192.0.2.99")
        assert "team is gone" in mailbox(server, IGNORES)
    assert json.loads(server.ctl("audit", "--json"))["missing"] == 0


def test_every_250_balances(server):
    """Mail that is split by matrices, discarded for a while, bounced, forwarded and answered."""
    before = json.loads(server.ctl("audit", "--json"))
    server.ctl("cam", "set", "attachments", "SMTPD", "SMTPC", "off")
    server.ctl("forward", "set", "away.test", "SMTPC", "127.0.0.1:1")
    user(server, "mailsort", "add", OWNER, "--header", "subject", "--contains", "pass on", "--forward", f"{IGNORES}", "--continue")
    subprocess.run(
        [sys.executable, "-m", "iems.cli.iemsuser", "--home", str(server.path), "vacation", "set", OWNER, "--body-stdin"],
        input="I am away", text=True, check=True, capture_output=True,
    )  # fmt: skip
    everybody = [IGNORES, FILES, DISCARDS, BOUNCES, RULES, OWNER]
    with smtplib.SMTP("127.0.0.1", server.port("smtp")) as smtp:
        smtp.sendmail(FILES, everybody, b"From: a2@load.test\r\nTo: a6@load.test\r\nSubject: pass on\r\n\r\nx\r\n")
    send(server, everybody, "pass on tagged", sender=FILES)
    queue.until_drained(server.path)
    after = json.loads(server.ctl("audit", "--json"))
    grown = {name: after[name] - before[name] for name in after}
    # Each of the six has one end, and what they caused (report, forwards, answer) is nobody's 250 but is looked for, too.
    assert grown["accepted"] == 12 == grown["delivered"] + grown["relayed"] + grown["dsn"] + grown["discarded"] + grown["queued"]
    assert (grown["discarded"], grown["dsn"], grown["missing"], grown["queued"], after["quarantined"]) == (1, 1, 0, 0, 0)
    # Ten deliveries, two forwards, an answer and a report, each in a mailbox or let go of by its user.
    assert (grown["held"] + grown["removed"], after["lost"]) == (10 + 2 + 1 + 1, 0)
    assert sum(subject.startswith("Auto: pass on") for subject in mailbox(server, FILES)) == 1
    assert "Undelivered mail returned to sender" in mailbox(server, FILES)
    # Nothing of ours leaves with a report, and a forward has the lines of its last recipient alone.
    with imaplib.IMAP4("127.0.0.1", server.port("imap")) as imap:
        imap.login(FILES, PASSWORD)
        imap.select("INBOX", readonly=True)
        [number] = imap.search(None, "SUBJECT", '"Undelivered"')[1][0].split()
        [report] = [part[1] for part in imap.fetch(number, "(BODY.PEEK[TEXT])")[1] if isinstance(part, tuple)]
    assert b"pass on tagged" in report and not any(name in report.lower() for name in (b"x-iems-", b"x-spam-status"))
    with imaplib.IMAP4("127.0.0.1", server.port("imap")) as imap:
        imap.login(IGNORES, PASSWORD)
        imap.select("INBOX", readonly=True)
        found = [imap.fetch(number, "(BODY.PEEK[HEADER])")[1][0][1].lower() for number in imap.search(None, "ALL")[1][0].split()]
    heads = [head for head in found if b"x-loop: " + OWNER.encode() in head and b"pass on tagged" in head]
    assert [[head.count(name) for name in (b"x-iems-verdict", b"x-iems-antispam", b"\ndelivered-to")] for head in heads] == [[1, 1, 1]]


def test_an_older_copy_of_the_mailboxes_is_told(server, tmp_path):
    """The spool knows of a delivery that the mailboxes don't have: the audit names it, by id and recipient."""
    send(server, [OWNER], "in both", client="192.0.2.99")
    server.stop()
    store = server.path / "store"
    shutil.copytree(store, tmp_path / "older")
    server.start()
    message_id = send(server, [OWNER], "only in the newer", client="192.0.2.99")
    assert json.loads(server.ctl("audit", "--json"))["lost"] == 0
    server.stop()
    store.rename(tmp_path / "newer")
    (tmp_path / "older").rename(store)
    with pytest.raises(RuntimeError, match=f"{message_id} was delivered to {OWNER}, and is not in the store"):
        server.ctl("audit")
    store.rename(tmp_path / "older")
    (tmp_path / "newer").rename(store)
    assert json.loads(server.ctl("audit", "--json"))["lost"] == 0
    server.start()
