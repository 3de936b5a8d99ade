"""Mailboxes shared between accounts (RFC 4314): what each right opens, and that nothing opens without it."""

import pytest

from iems.perf.home import PrivateHome
from tests.integration.test_imap_extensions import MESSAGE, Client

BOX = b'"Other Users/a1@load.test/team"'


@pytest.fixture(scope="module")
def home():
    with PrivateHome(3) as home:
        owner = Client(home, b"a1@load.test")
        owner.ask(b"CREATE team")
        for number in range(3):
            owner.append(MESSAGE % (number, number, number), b"team")
        owner.close()
        yield home


@pytest.fixture
def both(home):
    owner, guest = Client(home, b"a1@load.test"), Client(home, b"a2@load.test")
    yield owner, guest
    owner.ask(b"DELETEACL team a2@load.test")
    owner.close()
    guest.close()


def grant(owner, rights, box=b"team"):
    assert owner.ask(b"SETACL %b a2@load.test %b" % (box, rights))[1].startswith(b"OK")


REFUSED = {
    b"SELECT " + BOX: "r",
    b"EXAMINE " + BOX: "r",
    b"STATUS %b (MESSAGES)" % BOX: "r",
    b"GETACL " + BOX: "a",
    b"SETACL %b a3@load.test lr" % BOX: "a",
    b"DELETEACL %b a3@load.test" % BOX: "a",
    b"LISTRIGHTS %b a3@load.test" % BOX: "a",
    b"APPEND %b {5+}\r\nx\r\n\r\n" % BOX: "i",
    b'CREATE "Other Users/a1@load.test/team/new"': "k",
    b"DELETE " + BOX: "x",
    b"GETMETADATA %b /shared/comment" % BOX: "r",
    b'SETMETADATA %b (/shared/comment "x")' % BOX: "w",
    b"GETQUOTAROOT " + BOX: "r",
    b'APPEND INBOX CATENATE (URL "/Other%%20Users/a1%%40load.test/team/;UID=1")': "r",
}


@pytest.mark.parametrize("command", REFUSED)
def test_nothing_opens_without_its_right(both, command):
    command_ = command.replace(b"%%", b"%")
    owner, guest = both
    # Nothing granted: the mailbox does not exist.
    untagged, done = guest.ask(command_)
    assert done.startswith(b"NO [") and not any(b"NOPERM" in line for line in [done]), done
    assert not untagged
    # All but the one right, or only lookup: refused.
    grant(owner, "lrswipkxtea".replace(REFUSED[command], "").encode())
    untagged, done = guest.ask(command_)
    assert done.startswith((b"NO [NOPERM]", b"NO [BADURL")), done
    assert not untagged
    grant(owner, b"l")
    assert guest.ask(command_)[1].startswith((b"NO [NOPERM]", b"NO [BADURL"))
    assert owner.ask(b"STATUS team (MESSAGES)")[0] == [b"* STATUS team (MESSAGES 3)"]


def test_without_lookup_it_is_not_there(both):
    owner, guest = both
    grant(owner, b"rswi")
    assert guest.ask(b"SELECT " + BOX)[1].startswith(b"NO [NONEXISTENT]")
    assert guest.ask(b"MYRIGHTS " + BOX)[1].startswith(b"NO [NONEXISTENT]")
    assert not any(b"team" in line for line in guest.ask(b'LIST "" *')[0])


def test_reading_and_flags(both):
    owner, guest = both
    grant(owner, b"lr")
    listed = guest.ask(b'LIST "" "Other Users/*" RETURN (STATUS (MESSAGES))')[0]
    assert any(line.endswith(BOX) and line.startswith(b"* LIST") for line in listed)
    assert b"* STATUS %b (MESSAGES 3)" % BOX in listed
    assert guest.ask(b"MYRIGHTS " + BOX)[0] == [b"* MYRIGHTS %b lr" % BOX]
    assert guest.ask(b"SUBSCRIBE " + BOX)[1].startswith(b"OK")
    untagged, done = guest.ask(b"SELECT " + BOX)
    assert done.startswith(b"OK [READ-ONLY]")
    assert b"body 1" in guest.ask(b"FETCH 2 BODY[]")[0][0]
    assert b"Seen" not in guest.ask(b"FETCH 2 FLAGS")[0][0]
    assert guest.ask(b"STORE 1 +FLAGS (\\Seen)")[1].startswith(b"NO [READ-ONLY]")
    grant(owner, b"+s")
    untagged, done = guest.ask(b"SELECT " + BOX)
    assert done.startswith(b"OK [READ-WRITE]")
    assert any(b"[PERMANENTFLAGS (\\Seen)]" in line for line in untagged)
    guest.ask(b"STORE 1 FLAGS (\\Seen \\Deleted $Label)")
    assert guest.ask(b"FETCH 1 FLAGS")[0][0].replace(b" \\Recent", b"").endswith(b"FETCH (FLAGS (\\Seen))")
    assert guest.ask(b"STORE 1 +FLAGS (\\Deleted)")[1].startswith(b"NO [NOPERM]")
    assert guest.ask(b"EXPUNGE")[1].startswith(b"NO [NOPERM]")
    assert guest.ask(b"MOVE 1 INBOX")[1].startswith(b"NO [NOPERM]")
    assert guest.ask(b"UID REPLACE 1 INBOX {5+}\r\nx\r\n\r\n")[1].startswith(b"NO [NOPERM]")
    owner.ask(b"SELECT team")
    owner.ask(b"STORE 1 FLAGS (\\Flagged \\Seen)")
    guest.ask(b"NOOP")
    guest.ask(b"STORE 1 FLAGS ()")
    assert b"(\\Flagged)" in owner.ask(b"FETCH 1 FLAGS")[0][-1]
    owner.ask(b"STORE 1 FLAGS ()")


def test_copy_and_move_between_accounts(both):
    owner, guest = both
    grant(owner, b"lrswite")
    guest.append(b"Subject: from guest\r\n\r\n" + b"y" * 200_000, flags=b"\\Flagged $Mine")
    guest.ask(b"SELECT INBOX")
    done = guest.ask(b"COPY 1 " + BOX)[1]
    assert done.startswith(b"OK [COPYUID")
    guest.ask(b"SELECT " + BOX)
    line = guest.ask(b"FETCH 4 (FLAGS RFC822.SIZE)")[0][0].replace(b" \\Recent", b"")
    assert b"\\Flagged $Mine" in line and b"RFC822.SIZE 200023" in line
    untagged, done = guest.ask(b"MOVE 4 INBOX")
    assert done.startswith(b"OK") and b"* 4 EXPUNGE" in untagged
    assert guest.ask(b"STATUS INBOX (MESSAGES)")[0] == [b"* STATUS INBOX (MESSAGES 2)"]
    assert owner.ask(b"STATUS team (MESSAGES)")[0] == [b"* STATUS team (MESSAGES 3)"]


def test_children_and_lists(both):
    owner, guest = both
    grant(owner, b"lrkxi")
    assert guest.ask(b'CREATE "Other Users/a1@load.test/team/sub"')[1].startswith(b"OK")
    assert guest.ask(b'MYRIGHTS "Other Users/a1@load.test/team/sub"')[0][0].endswith(b" lrikxc")
    assert any(b"team/sub" in line for line in owner.ask(b'LIST "" team/*')[0])
    assert guest.ask(b'DELETE "Other Users/a1@load.test/team/sub"')[1].startswith(b"OK")
    assert guest.ask(b'CREATE "Other Users/x"')[1].startswith(b"NO [CANNOT]")
    assert guest.ask(b'RENAME INBOX "Other Users/x"')[1].startswith(b"NO [CANNOT]")
    acl = owner.ask(b"GETACL team")[0]
    assert acl == [b"* ACL team a1@load.test lrswipkxteacd a2@load.test lrikxc"]
    assert owner.ask(b"MYRIGHTS team")[0] == [b"* MYRIGHTS team lrswipkxteacd"]
    assert owner.ask(b"SETACL team a9@load.test lr")[1].startswith(b"NO [NONEXISTENT]")
    assert owner.ask(b"SETACL team a1@load.test lr")[1].startswith(b"NO [CANNOT]")
    assert owner.ask(b"SETACL team a2@load.test lz")[1].startswith(b"BAD")
    assert owner.ask(b"SETACL team anyone lr")[1].startswith(b"NO")
    assert b'"" l r s' in owner.ask(b"LISTRIGHTS team a2@load.test")[0][0]
    grant(owner, b"-kxi")
    assert owner.ask(b"GETACL team")[0] == [b"* ACL team a1@load.test lrswipkxteacd a2@load.test lr"]
    # A renamed mailbox keeps its list, a mailbox made anew under the name has none.
    owner.ask(b"RENAME team crew")
    assert guest.ask(b'STATUS "Other Users/a1@load.test/crew" (MESSAGES)')[1].startswith(b"OK")
    owner.ask(b"CREATE team")
    assert guest.ask(b"STATUS %b (MESSAGES)" % BOX)[1].startswith(b"NO [NONEXISTENT]")
    owner.ask(b"DELETEACL crew a2@load.test")
    assert not guest.ask(b'LIST "" "Other Users/*"')[0]
    owner.ask(b"DELETE team")
    owner.ask(b"RENAME crew team")


def test_private_annotations_stay_private(both):
    owner, guest = both
    grant(owner, b"lrw")
    owner.ask(b'SETMETADATA team (/private/comment "mine" /shared/comment "ours")')
    assert guest.ask(b"GETMETADATA %b /shared/comment" % BOX)[0] == [b'* METADATA %b (/shared/comment "ours")' % BOX]
    assert guest.ask(b"GETMETADATA %b (/private/comment)" % BOX)[1].startswith(b"NO [METADATA NOPRIVATE]")
    assert guest.ask(b"GETMETADATA (DEPTH infinity) %b /private" % BOX)[1].startswith(b"NO [METADATA NOPRIVATE]")
    assert guest.ask(b'SETMETADATA %b (/private/comment "x")' % BOX)[1].startswith(b"NO [METADATA NOPRIVATE]")
