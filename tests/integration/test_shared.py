"""Shared mailboxes on a real server: mail comes once, members work in it by their rights, and a lost right counts at once."""

import base64
import contextlib
import json
import poplib
import re
import smtplib
import time

import pytest
from click.testing import CliRunner

from iems.cli.iemsctl import main
from iems.directory import Directory
from iems.perf import queue
from iems.perf.home import PrivateHome
from iems.store.reader import Reader
from tests.integration.test_imap_extensions import MESSAGE, Client
from tests.integration.test_spam_control import user

INFO = b"info@load.test"
BOX = b'"Shared Folders/info@load.test/INBOX"'
TOP = b'"Shared Folders/info@load.test/%b"'
WAIT_S = 60


@pytest.fixture(scope="module")
def home():
    with PrivateHome(5, {"smtpd.sender_login": "reject", "store.partitions": 2}) as home:
        yield home


@pytest.fixture
def shared(home):
    """info@load.test: a1 manages, a2 writes, a3 reads; a4 and a5 are strangers. Three messages came."""
    ctl(home, "create", INFO.decode(), "--member", "a1@load.test=manage", "--member", "a2@load.test", "--member", "a3@load.test=read")
    send(home, INFO.decode(), *range(3))
    yield home
    ctl(home, "delete", INFO.decode())


@pytest.fixture
def clients(shared):
    opened = []

    def open_(number):
        opened.append(Client(shared, b"a%d@load.test" % number))
        return opened[-1]

    yield open_
    for client in opened:
        client.close()


def ctl(home, *words):
    """What `iemsctl shared WORDS` prints, in this process: a test does it dozens of times. Raises RuntimeError."""
    done = CliRunner().invoke(main, ["--home", str(home.path), "shared", *words])
    if done.exit_code:
        raise RuntimeError(done.output)
    return done.stdout


def send(home, to, *numbers):
    with smtplib.SMTP("127.0.0.1", home.port("smtp")) as smtp:
        for number in numbers:
            smtp.sendmail("s@else.test", [to], (MESSAGE % (number, number, number)).decode())
    queue.until_drained(home.path)


def rule(home, address, word, mailbox, fails=False):
    return user(home, "mailsort", "add", address, "--header", "subject", "--contains", word, "--move", mailbox, fails=fails)


def ok(client, command):
    untagged, done = client.ask(command)
    assert done.startswith(b"OK"), (command, done)
    return untagged


def no(client, command, code=b"NO ["):
    untagged, done = client.ask(command)
    assert done.startswith(code), (command, done)
    assert not untagged


def listed(client, command=b'LIST "" "Shared Folders/*"'):
    return [line for line in ok(client, command) if line.startswith((b"* LIST", b"* LSUB"))]


def closed(client):
    """Read on to the end of the connection; what came."""
    data = client.buffer
    client.sock.settimeout(WAIT_S)
    try:
        while piece := client.sock.recv(1 << 16):
            data += piece
    except ConnectionResetError:
        # It was closed before our last command came: what had not been read is gone with it.
        data = data or b"* BYE"
    return data


def unseen(client, box=BOX):
    return int(re.search(rb"UNSEEN (\d+)", ok(client, b"STATUS %b (UNSEEN)" % box)[0])[1])


def test_mail_comes_once_and_all_members_read_it(shared, clients):
    shared.ctl("alias", "add", "help@load.test", INFO.decode())
    send(shared, "help@load.test", 3)
    send(shared, "info+detail@load.test", 4)
    one, two, three, four = (clients(number) for number in (1, 2, 3, 4))
    for client in (one, two, three):
        assert ok(client, b"NAMESPACE") == [b'* NAMESPACE (("" "/")) (("Other Users/" "/")) (("Shared Folders/" "/"))']
        assert ok(client, b"STATUS %b (MESSAGES UNSEEN)" % BOX) == [b"* STATUS %b (MESSAGES 5 UNSEEN 5)" % BOX]
        assert ok(client, b"STATUS INBOX (MESSAGES)") == [b"* STATUS INBOX (MESSAGES 0)"], "not copied to members"
    assert not listed(four)
    no(four, b"STATUS %b (MESSAGES)" % BOX, b"NO [NONEXISTENT]")
    no(four, b"SELECT " + BOX, b"NO [NONEXISTENT]")
    no(four, b"MYRIGHTS " + BOX, b"NO [NONEXISTENT]")
    no(four, b"SUBSCRIBE " + BOX, b"NO [NONEXISTENT]")
    no(four, b"APPEND %b {5+}\r\nx\r\n\r\n" % BOX, b"NO [TRYCREATE]")
    no(one, b'STATUS "Other Users/info@load.test/INBOX" (MESSAGES)', b"NO [NONEXISTENT]")
    no(one, b'STATUS "Shared Folders/a2@load.test/INBOX" (MESSAGES)', b"NO [NONEXISTENT]")
    no(one, b'STATUS "Shared Folders/info@load.test" (MESSAGES)', b"NO [NONEXISTENT]")
    no(one, b'STATUS "Shared Folders/../INBOX" (MESSAGES)', b"NO [NONEXISTENT]")
    shared.ctl("alias", "remove", "help@load.test")


def test_each_member_has_its_own_seen(shared, clients):
    one, two = clients(1), clients(2)
    ok(one, b"SELECT " + BOX)
    ok(two, b"ENABLE CONDSTORE")
    ok(two, b"SELECT " + BOX)
    assert b"body 1" in ok(one, b"FETCH 2 (UID BODY[])")[0]
    ok(one, b"STORE 3 +FLAGS (\\Seen \\Flagged $Work)")
    told = ok(two, b"NOOP")
    assert any(b"* 3 FETCH" in line and b"\\Flagged" in line and b"$Work" in line and b"\\Seen" not in line for line in told)
    assert unseen(one) == 1 and unseen(two) == 3
    ok(two, b"STORE 1 +FLAGS (\\Seen)")
    assert b"\\Seen" not in ok(one, b"FETCH 1 FLAGS")[-1]
    assert ok(one, b"SEARCH UNSEEN") == [b"* SEARCH 1"] and ok(two, b"SEARCH SEEN")[-1].startswith(b"* SEARCH 1")
    # The way that builds long lists, and the list with its counts.
    lines = ok(one, b"FETCH 1:* (UID FLAGS RFC822.SIZE)")
    assert [b"\\Seen" in line for line in lines] == [False, True, True]
    assert b"* STATUS %b (UNSEEN 2)" % BOX in ok(two, b'LIST "" "Shared Folders/*" RETURN (STATUS (UNSEEN))')
    # It is there after a new login, and goes along with COPY, MOVE, APPEND.
    ok(one, b"COPY 2 " + TOP % b"Archive")
    ok(one, b"MOVE 3 INBOX")
    ok(one, b"APPEND %b (\\Seen) {%d+}\r\n%b" % (TOP % b"Archive", 5, b"x\r\n\r\n"))
    again, other = clients(1), clients(2)
    assert unseen(again) == 1 and unseen(again, TOP % b"Archive") == 0 and unseen(other, TOP % b"Archive") == 2
    ok(again, b"SELECT INBOX")
    assert b"\\Seen" in ok(again, b"FETCH 1 FLAGS")[-1]
    ok(again, b"STORE 1 +FLAGS (\\Deleted)")
    ok(again, b"EXPUNGE")
    assert json.loads(shared.ctl("fsck", "--json") or "{}") == {}


def test_what_rights_open(shared, clients):
    one, two, three = (clients(number) for number in (1, 2, 3))
    # Read: look, and one's own \Seen.
    assert ok(three, b"MYRIGHTS " + BOX) == [b"* MYRIGHTS %b lrs" % BOX]
    untagged = ok(three, b"SELECT " + BOX)
    assert any(b"[PERMANENTFLAGS (\\Seen)]" in line for line in untagged)
    assert b"body 0" in ok(three, b"FETCH 1 BODY[]")[0] and unseen(three) == 2
    for command in (
        b"APPEND %b {5+}\r\nx\r\n\r\n" % BOX, b"STORE 1 +FLAGS (\\Flagged)", b"EXPUNGE", b"MOVE 1 INBOX", b"COPY 1 " + BOX,
        b"CREATE " + TOP % b"New", b"DELETE " + TOP % b"Archive", b"GETACL " + BOX, b"SETACL %b a3@load.test lrswipkxtea" % BOX,
        b"RENAME %b %b" % (TOP % b"Archive", TOP % b"Old"), b'SETMETADATA %b (/shared/comment "x")' % BOX,
    ):  # fmt: skip
        no(three, command, b"NO [NOPERM]")
    ok(three, b"COPY 1 INBOX")
    # Write: keep flags, post, delete messages, no folders.
    assert ok(two, b"MYRIGHTS " + BOX) == [b"* MYRIGHTS %b lrswipted" % BOX]
    ok(two, b"SELECT " + BOX)
    ok(two, b"APPEND %b (\\Seen) {5+}\r\nx\r\n\r\n" % BOX)
    ok(two, b"STORE 4 +FLAGS (\\Deleted)")
    ok(two, b"EXPUNGE")
    no(two, b"CREATE " + TOP % b"New", b"NO [NOPERM]")
    # Manage: folders, too.
    ok(one, b"CREATE " + TOP % b"New")
    ok(one, b"CREATE " + TOP % b"New/Below")
    ok(one, b"RENAME %b %b" % (TOP % b"New", TOP % b"Team"))
    assert any(b"Team/Below" in line for line in listed(three))
    for command in (
        b"DELETE " + BOX, b"RENAME %b %b" % (BOX, TOP % b"X"), b"RENAME %b Mine" % (TOP % b"Team"), b"RENAME INBOX " + TOP % b"Mine",
        b'CREATE "Shared Folders/info@load.test"', b'CREATE "Shared Folders/new@load.test/x"', b'CREATE "Shared Folders"',
        b'CREATE "Shared Folders/a2@load.test/x"', b"CREATE %b (USE (\\Sent))" % (TOP % b"Y"),
    ):  # fmt: skip
        no(one, command)
    ok(one, b"DELETE " + TOP % b"Team/Below")
    ok(one, b"DELETE " + TOP % b"Team")
    assert ok(one, b"GETQUOTAROOT " + BOX)[0] == b"* QUOTAROOT %b info@load.test" % BOX


def test_managers_change_rights_of_members_in_a_folder(shared, clients):
    one, two, three = (clients(number) for number in (1, 2, 3))
    ok(one, b"CREATE " + TOP % b"Staff")
    staff = TOP % b"Staff"
    acl = b"* ACL %b a1@load.test lrswipkxteacd a2@load.test lrswipted a3@load.test lrs" % staff
    assert ok(one, b"GETACL " + staff) == [acl], "no owner, members by what they may"
    assert b'a3@load.test "" l r s' in ok(one, b"LISTRIGHTS %b a3@load.test" % staff)[0]
    ok(one, b"DELETEACL %b a3@load.test" % staff)
    assert b"a3@load.test" not in ok(one, b"GETACL " + staff)[0]
    no(three, b"STATUS %b (MESSAGES)" % staff, b"NO [NONEXISTENT]")
    assert unseen(three) == 3, "in the others nothing changed"
    ok(one, b"SETACL %b a3@load.test lrip" % staff)
    assert ok(three, b"MYRIGHTS " + staff) == [b"* MYRIGHTS %b lrip" % staff]
    ok(three, b"APPEND %b {5+}\r\nx\r\n\r\n" % staff)
    # What is made below begins so; who is no member is made one by nobody but the administrator.
    ok(one, b"CREATE " + TOP % b"Staff/Below")
    assert ok(three, b"MYRIGHTS " + TOP % b"Staff/Below") == [b"* MYRIGHTS %b lrip" % (TOP % b"Staff/Below")]
    ok(one, b"CREATE " + TOP % b"Staff/Missing/Deep")
    for name in (b"Staff/Missing", b"Staff/Missing/Deep"):
        assert ok(three, b"MYRIGHTS " + TOP % name) == [b"* MYRIGHTS %b lrip" % (TOP % name)]
    ctl(shared, "member", "add", INFO.decode(), "a3@load.test", "--rights", "lrk")
    no(three, b"CREATE " + TOP % b"Staff/Missing/Own", b"NO [NOPERM]")
    ok(one, b"DELETEACL %b a3@load.test" % staff)
    no(three, b"CREATE " + TOP % b"Staff/Own")
    ok(three, b"CREATE " + TOP % b"Own/Deep")
    ok(one, b"SETACL %b a3@load.test lrip" % staff)
    no(one, b"SETACL %b a4@load.test lr" % staff, b"NO [CANNOT]")
    no(one, b"SETACL %b info@load.test lr" % staff, b"NO [CANNOT]")
    no(one, b"SETACL %b nobody@load.test lr" % staff, b"NO [NONEXISTENT]")
    # One gives only what he has.
    ok(one, b"SETACL %b a2@load.test lra" % staff)
    no(two, b"SETACL %b a2@load.test lraw" % staff, b"NO [NOPERM]")
    ok(two, b"SETACL %b a3@load.test l" % staff)
    # Rights in a folder don't outlive the membership.
    ctl(shared, "member", "remove", INFO.decode(), "a2@load.test")
    no(two, b"STATUS %b (MESSAGES)" % staff, b"NO [NONEXISTENT]")
    ctl(shared, "member", "add", INFO.decode(), "a2@load.test", "--rights", "read")
    assert ok(two, b"MYRIGHTS " + staff) == [b"* MYRIGHTS %b lrs" % staff]


def test_lists_and_subscriptions_are_each_members_own(shared, clients):
    one, two = clients(1), clients(2)
    names = {line.rpartition(b'"/" ')[2] for line in listed(one)}
    assert {TOP % name for name in (b"INBOX", b"Sent", b"Drafts", b"Trash", b"Archive", b"Spam")} <= names
    assert b'* LIST (\\Noselect \\HasChildren) "/" "Shared Folders"' in listed(one, b'LIST "" "Shared Folders"')
    # Special uses are told to who asks about this mailbox, not in the list of everything: there they say where one's own mail goes.
    assert sum(b"\\Sent" in line for line in listed(one, b'LIST "" *')) == 1
    assert [line for line in listed(one, b'LIST (SPECIAL-USE) "" *') if b"Shared" in line] == []
    uses = listed(one, b'LIST (SPECIAL-USE) "" "Shared Folders/info@load.test/%" RETURN (SPECIAL-USE)')
    assert len(uses) == 5 and any(b"\\Junk" in line and b"/Spam" in line for line in uses)
    ok(one, b"SUBSCRIBE " + BOX)
    assert any(BOX in line for line in listed(one, b'LSUB "" *')) and not any(BOX in line for line in listed(two, b'LSUB "" *'))
    assert any(BOX in line and b"\\Subscribed" in line for line in listed(one, b'LIST (SUBSCRIBED) "" *'))
    assert not any(BOX in line for line in listed(two, b'LIST (SUBSCRIBED) "" *'))
    ok(one, b"UNSUBSCRIBE " + BOX)
    assert not any(BOX in line for line in listed(one, b'LSUB "" *'))


def test_idle_and_notify(shared, clients):
    one, two = clients(1), clients(2)
    ok(one, b"SELECT " + BOX)
    one.send(b"i IDLE\r\n")
    assert one.line().startswith(b"+")
    ok(two, b'NOTIFY SET STATUS (subtree "Shared Folders" (MessageNew MessageExpunge FlagChange MailboxName))')
    send(shared, INFO.decode(), 3)
    assert one.line() == b"* 4 EXISTS"
    while not (line := two.line()).startswith(b"* STATUS " + BOX):
        pass
    assert b"MESSAGES 4" in line and b"UNSEEN 4" in line
    assert one.line() == b"* 4 RECENT"
    one.send(b"DONE\r\n")
    assert one.line().startswith(b"i OK")
    ok(one, b"CREATE " + TOP % b"Fresh")
    while not (line := two.line()).startswith(b"* LIST"):
        pass
    assert line.endswith(TOP % b"Fresh")
    ok(two, b"NOTIFY NONE")


def test_a_lost_membership_closes_open_sessions(shared, clients):
    idle, selected, other = clients(2), clients(2), clients(2)
    for client in (idle, selected):
        ok(client, b"SELECT " + BOX)
    ok(other, b"SELECT INBOX")
    idle.send(b"i IDLE\r\n")
    assert idle.line().startswith(b"+")
    ctl(shared, "member", "remove", INFO.decode(), "a2@load.test")
    with contextlib.suppress(ConnectionError):
        selected.send(b"f FETCH 1:* BODY[]\r\n")
    for client in (idle, selected):
        came = closed(client)
        assert came.startswith(b"* BYE") and b"body" not in came
    # A session that has something else selected goes on, without it.
    assert not listed(other)
    no(other, b"COPY 1:* " + BOX)
    no(other, b"APPEND %b {5+}\r\nx\r\n\r\n" % BOX, b"NO [TRYCREATE]")
    ok(other, b"NOOP")
    # Less rights count at once, too.
    ctl(shared, "member", "add", INFO.decode(), "a2@load.test", "--rights", "write")
    writer = clients(2)
    ok(writer, b"SELECT " + BOX)
    ctl(shared, "member", "add", INFO.decode(), "a2@load.test", "--rights", "read")
    no(writer, b"STORE 1 +FLAGS (\\Flagged)", b"NO [NOPERM]")
    ok(writer, b"STORE 1 +FLAGS (\\Seen)")


def test_a_right_taken_by_setacl_closes_a_delegated_folder_at_once(home):
    owner, guest = Client(home, b"a1@load.test"), Client(home, b"a2@load.test")
    ok(owner, b"CREATE lent")
    owner.append(MESSAGE % (1, 1, 1), b"lent")
    ok(owner, b"SETACL lent a2@load.test lr")
    ok(guest, b'SELECT "Other Users/a1@load.test/lent"')
    guest.send(b"i IDLE\r\n")
    assert guest.line().startswith(b"+")
    ok(owner, b"DELETEACL lent a2@load.test")
    assert closed(guest).startswith(b"* BYE")
    ok(owner, b"DELETE lent")
    owner.close()
    guest.close()


def test_delegated_folders_from_both_sides(home):
    """What a guest changes the owner sees, and it counts for the owner."""
    owner, guest = Client(home, b"a4@load.test"), Client(home, b"a5@load.test")
    ok(owner, b"CREATE desk")
    ok(owner, b"SETACL desk a5@load.test lrswite")
    desk = b'"Other Users/a4@load.test/desk"'
    assert any(desk in line for line in ok(guest, b'LIST "" *')) and any(b" desk" in line for line in ok(owner, b'LIST "" *'))
    user(home, "quota", "a4@load.test", "3000")
    ok(guest, b"APPEND %b {1000+}\r\n%b" % (desk, b"Subject: a\r\n\r\n" + b"x" * 986))
    ok(owner, b"SELECT desk")
    ok(guest, b"SELECT " + desk)
    ok(guest, b"STORE 1 +FLAGS (\\Seen \\Flagged)")
    assert any(b"\\Seen \\Flagged" in line or b"\\Flagged \\Seen" in line for line in ok(owner, b"NOOP")), "in a user's folder \\Seen is one for all"
    assert ok(owner, b'GETQUOTA ""') == [b'* QUOTA "" (STORAGE 1 2)']
    assert b"a4@load.test" in ok(guest, b"GETQUOTAROOT " + desk)[0]
    no(guest, b"APPEND %b {2500+}\r\n%b" % (desk, b"Subject: a\r\n\r\n" + b"x" * 2486), b"NO [OVERQUOTA]")
    assert json.loads(user(home, "list", "a5@load.test", "--json"))["used_bytes"] == 0
    # A rule of the guest puts mail there; it counts for the owner, too.
    rule(home, "a5@load.test", "7", desk.decode().strip('"'))
    send(home, "a5@load.test", 7)
    assert any(line.endswith(b"EXISTS") and line.startswith(b"* 2") for line in ok(owner, b"NOOP"))
    ok(guest, b"NOOP")
    ok(guest, b"STORE 1:* +FLAGS (\\Deleted)")
    ok(guest, b"EXPUNGE")
    assert b"* 1 EXPUNGE" in ok(owner, b"NOOP")
    assert json.loads(user(home, "list", "a4@load.test", "--json"))["used_bytes"] == 0
    ok(guest, b"UNSELECT")
    ok(owner, b"DELETE desk")
    assert not any(desk in line for line in ok(guest, b'LIST "" *'))
    owner.close()
    guest.close()


def submission(home, login):
    smtp = smtplib.SMTP("127.0.0.1", home.port("submission"))
    smtp.ehlo()
    smtp.login(login, "pw")
    return smtp


def test_members_send_from_it_if_they_may(shared):
    shared.ctl("alias", "add", "help@load.test", INFO.decode())
    with submission(shared, "a2@load.test") as smtp:
        for sender in (INFO.decode(), "help@load.test"):
            assert smtp.mail(sender)[0] == 553
        ctl(shared, "member", "add", INFO.decode(), "a2@load.test", "--rights", "write", "--send-as")
        for sender in (INFO.decode(), "help@load.test", "info+x@load.test"):
            assert smtp.mail(sender)[0] == 250
            smtp.rset()
        ctl(shared, "member", "remove", INFO.decode(), "a2@load.test")
        assert smtp.mail(INFO.decode())[0] == 553
    shared.ctl("alias", "remove", "help@load.test")


def test_nobody_logs_in_to_it(shared):
    with pytest.raises(AssertionError):
        Client(shared, INFO)
    pop = poplib.POP3("127.0.0.1", shared.port("pop3"))
    pop.user(INFO.decode())
    with pytest.raises(poplib.error_proto):
        pop.pass_("pw")
    with smtplib.SMTP("127.0.0.1", shared.port("submission")) as smtp:
        smtp.ehlo()
        plain = base64.b64encode(b"\0%b\0" % INFO).decode()
        assert smtp.docmd("AUTH", f"PLAIN {plain}")[0] in (501, 535)
        assert smtp.docmd("AUTH", "PLAIN " + base64.b64encode(b"\0%b\0pw" % INFO).decode())[0] == 535
    assert "nobody logs in" in user(shared, "passwd", INFO.decode(), "--password-stdin", fails=True)
    assert "iemsctl shared" in user(shared, "delete", INFO.decode(), fails=True)


def test_rules_of_members_and_of_the_mailbox(shared, clients):
    rule(shared, "a2@load.test", "8", "Shared Folders/info@load.test/Archive")
    assert "may put no mail" in rule(shared, "a3@load.test", "8", "Shared Folders/info@load.test/Archive", fails=True)
    send(shared, "a2@load.test", 8)
    one = clients(1)
    archive = TOP % b"Archive"
    assert ok(one, b"STATUS %b (MESSAGES UNSEEN)" % archive) == [b"* STATUS %b (MESSAGES 1 UNSEEN 1)" % archive]
    ctl(shared, "member", "remove", INFO.decode(), "a2@load.test")
    send(shared, "a2@load.test", 8)
    assert ok(one, b"STATUS %b (MESSAGES)" % archive) == [b"* STATUS %b (MESSAGES 1)" % archive], "without a right it goes to his INBOX"
    # It has rules of its own.
    rule(shared, INFO.decode(), "9", "Trash")
    send(shared, INFO.decode(), 9)
    assert ok(one, b"STATUS %b (MESSAGES)" % (TOP % b"Trash")) == [b"* STATUS %b (MESSAGES 1)" % (TOP % b"Trash")]
    user(shared, "mailsort", "remove", "a2@load.test", "1")


def test_it_is_an_account_to_the_administrator(shared, clients, tmp_path):
    one, two = clients(1), clients(2)
    ok(one, b"SELECT " + BOX)
    ok(one, b"STORE 1:2 +FLAGS (\\Seen)")
    info = INFO.decode()
    assert [json.loads(line)["address"] for line in ctl(shared, "list", "--json").splitlines()] == [info]
    assert info in ctl(shared, "list") and ctl(shared, "list", "x*") == ""
    shown = json.loads(ctl(shared, "show", info, "--json"))
    assert shown["messages"] == 3 and [one["rights"] for one in shown["members"]] == ["manage", "write", "read"]
    assert "a3@load.test" in ctl(shared, "show", info)
    assert not any(info in line for line in user(shared, "list").splitlines()), "it is no user"
    assert any(info in line for line in shared.ctl("report", "storage", "--top", "0").splitlines())
    # Quota.
    user(shared, "quota", info, "1000")
    two.ask(b"SELECT " + BOX)
    no(two, b"APPEND %b {990+}\r\n%b" % (BOX, b"Subject: a\r\n\r\n" + b"x" * 976), b"NO [OVERQUOTA]")
    user(shared, "quota", info, "unlimited")
    # Out, in, backup, single restore.
    user(shared, "export", info, str(tmp_path / "out"), "--format", "eml")
    assert len(list((tmp_path / "out").rglob("*.eml"))) == 3
    user(shared, "import", info, str(tmp_path / "out"), "--mailbox", "Again")
    assert any(b"info@load.test/Again" in line for line in listed(two))
    shared.ctl("backup", "make", str(tmp_path / "backup"))
    shared.ctl("backup", "verify", str(tmp_path / "backup"))
    shared.ctl("restore", "mail", str(tmp_path / "backup"), info, "--mailbox", "INBOX")
    assert any(b"info@load.test/Restored/" in line for line in listed(two))
    # Another partition, while a member has it open; what was seen goes along.
    ok(two, b"SELECT " + BOX)
    partition = _partition(shared, info)
    for target in (1 - partition, partition):
        user(shared, "move", info, str(target))
        assert unseen(one) == 1 and unseen(two) == 3
    send(shared, info, 5)
    assert any(b"4 EXISTS" in line for line in ok(two, b"NOOP"))
    assert shared.ctl("fsck", "--json") == ""
    restored = tmp_path / "restored"
    shared.ctl("restore", "home", str(tmp_path / "backup"), str(restored))
    directory = Directory(restored / "directory")
    assert [one.address for one in directory.account(info).members] == [f"a{n}@load.test" for n in (1, 2, 3)]
    directory.close()
    trace = json.loads(shared.ctl("audit", "--json"))
    assert trace["missing"] == 0


def _partition(home, address):
    directory = Directory(home.path / "directory")
    try:
        return directory.account(address).partition
    finally:
        directory.close()


def test_bad_input_is_told(home):
    for words, text in (
        (("create", "x@nowhere.test"), "not a local domain"),
        (("create", "a1@load.test"), "exists already"),
        (("create", "new@load.test", "--member", "nobody@load.test"), "no account nobody@load.test"),
        (("create", "new@load.test", "--member", "a1@load.test=lots"), "rights are"),
        (("create", "new@load.test", "--quota", "-5"), "no size"),
        (("delete", "a1@load.test"), "no shared mailbox"),
        (("show", "a1@load.test"), "no shared mailbox"),
        (("member", "add", "no@load.test", "a1@load.test"), "no shared mailbox"),
    ):
        with pytest.raises(RuntimeError, match=text):
            ctl(home, *words)
    assert ctl(home, "list") == ""


def test_deleting_it_waits_for_the_queue_and_takes_all(home):
    ctl(home, "create", "temp@load.test", "--member", "a1@load.test")
    send(home, "temp@load.test", 1)
    member = Client(home, b"a1@load.test")
    ok(member, b'SELECT "Shared Folders/temp@load.test/INBOX"')
    member.send(b"i IDLE\r\n")
    assert member.line().startswith(b"+")
    home.ctl("queue", "hold", "--channel", "LOCAL")
    with smtplib.SMTP("127.0.0.1", home.port("smtp")) as smtp:
        smtp.sendmail("s@else.test", ["temp@load.test"], "Subject: x\r\n\r\nx\r\n")
    until = time.monotonic() + WAIT_S
    while "temp@load.test" not in home.ctl("queue", "list", "--channel", "LOCAL"):
        assert time.monotonic() < until
    with pytest.raises(RuntimeError, match="still in the queue"):
        ctl(home, "delete", "temp@load.test")
    home.ctl("queue", "release", "--channel", "LOCAL")
    queue.until_drained(home.path)
    ctl(home, "delete", "temp@load.test")
    assert closed(member).endswith(b"BYE You may no longer read the selected mailbox\r\n")
    again = Client(home, b"a1@load.test")
    assert not listed(again)
    again.close()
    # A new one of the old name has none of the old mail.
    ctl(home, "create", "temp@load.test", "--member", "a1@load.test")
    again = Client(home, b"a1@load.test")
    listed(again)
    assert ok(again, b'STATUS "Shared Folders/temp@load.test/INBOX" (MESSAGES)')[0].endswith(b"(MESSAGES 0)")
    again.close()
    ctl(home, "delete", "temp@load.test", "--force")


def test_what_a_killed_command_leaves_is_whole(home):
    """Made in the directory, and nothing in the store yet: who lists his mailboxes sees it whole."""
    directory = Directory(home.path / "directory")
    directory.create_shared("bare@load.test", members=[("a1@load.test", "write", False)])
    directory.close()
    member = Client(home, b"a1@load.test")
    assert len(listed(member)) == 7, "its folders, and the name above"
    assert ok(member, b'STATUS "Shared Folders/bare@load.test/INBOX" (MESSAGES)')[0].endswith(b"(MESSAGES 0)")
    member.close()
    ctl(home, "delete", "bare@load.test")


def test_a_user_who_is_deleted_leaves_nothing_in_it(shared):
    directory = Directory(shared.path / "directory")
    number = directory.create_account("a9@load.test", "pw").number
    owner = directory.account(INFO.decode())
    directory.close()
    ctl(shared, "member", "add", INFO.decode(), "a9@load.test", "--rights", "read")
    gone = Client(shared, b"a9@load.test")
    ok(gone, b"SELECT " + BOX)
    ok(gone, b"FETCH 1 BODY[]")
    reader = Reader(shared.path / "store")
    box = reader.mailbox(owner.number, "INBOX")
    assert reader.unseen(owner.number, box, number) == 2
    gone.send(b"i IDLE\r\n")
    assert gone.line().startswith(b"+")
    user(shared, "delete", "a9@load.test")
    assert closed(gone).startswith(b"* BYE")
    assert reader.unseen(owner.number, box, number) == 3
    reader.close()
    assert "a9@load.test" not in ctl(shared, "show", INFO.decode())
