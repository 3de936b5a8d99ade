"""Shared mailboxes in the directory: members, rights, no log-in, and that both sides of a membership agree."""

import asyncio
import multiprocessing
import os
import signal

import pytest

from iems.directory import Authenticator, Directory, DirectoryRefusal
from iems.directory.sharing import MEMBERS_MAX, SHARED_MAX, rights_of

INFO, JOHN, MARY = "info@example.test", "john@example.test", "mary@example.test"


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setattr("iems.directory.passwords.hash_password", lambda password: f"hash of {password}")
    (tmp_path / "log").mkdir()
    found = Directory(tmp_path / "directory", create=True, who="test")
    found.add_domain("example.test")
    for address in (JOHN, MARY):
        found.create_account(address, "pw")
    yield found
    found.close()


def agreed(directory):
    """Each membership stands in both entries."""
    accounts = {account.number: account for account in directory.list_accounts()}
    one = {(account.number, member.number) for account in accounts.values() for member in account.members}
    other = {(owner, account.number) for account in accounts.values() for owner in account.member_of}
    assert one == other
    return one


def test_life_of_a_shared_mailbox(directory, tmp_path):
    made = directory.create_shared(INFO, quota_octets=500, members=[(JOHN, "manage", False)])
    assert made.shared and made.quota_octets == 500 and made.password == "" and [one.address for one in made.members] == [JOHN]
    assert directory.resolve(INFO.encode()).targets[0].address == INFO.encode()
    assert agreed(directory) == {(made.number, 1)}
    assert directory.set_member(INFO, "MARY@example.test", "lrp", True).named == "lrp"
    assert directory.set_member(INFO, JOHN, "read", False).rights == "lrs"
    assert agreed(directory) == {(made.number, 1), (made.number, 2)}
    found = directory.account(INFO)
    assert [(one.address, one.named, one.send_as) for one in found.members] == [(JOHN, "read", False), (MARY, "lrp", True)]
    assert found.member(2).send_as and found.member(99) is None
    assert directory.account(MARY).member_of == (made.number,)
    directory.remove_member(INFO, MARY)
    assert agreed(directory) == {(made.number, 1)}
    directory.delete_account(INFO, shared=True)
    assert agreed(directory) == set() and directory.account(JOHN).member_of == ()
    assert [gone.number for gone in directory.retired()] == [made.number]
    log = (tmp_path / "log" / "directory.log").read_text()
    assert '"shared create"' in log and '"shared member"' in log and '"shared leave"' in log


def test_a_member_that_is_deleted_is_a_member_no_more(directory):
    made = directory.create_shared(INFO, members=[(JOHN, "read", False), (MARY, "write", False)])
    directory.delete_account(JOHN)
    assert agreed(directory) == {(made.number, 2)}
    # A new account of the old address is not a member.
    again = directory.create_account(JOHN, "pw")
    assert again.member_of == () and directory.account(INFO).member(again.number) is None


def test_refusals(directory):
    directory.create_shared(INFO)
    directory.create_shared("other@example.test")
    for attempt in (
        lambda: directory.create_shared(INFO),
        lambda: directory.create_shared(JOHN),
        lambda: directory.create_shared("x@else.test"),
        lambda: directory.create_shared("a/b@example.test"),
        lambda: directory.create_shared("no address"),
        lambda: directory.create_shared("new@example.test", quota_octets=0),
        lambda: directory.create_shared("new@example.test", members=[(JOHN, "manage", False), ("nobody@example.test", "read", False)]),
        lambda: directory.create_shared("new@example.test", members=[(JOHN, "every", False)]),
        lambda: directory.create_account(INFO, "pw"),
        lambda: directory.set_member(INFO, "nobody@example.test", "read", False),
        lambda: directory.set_member(INFO, "other@example.test", "read", False),
        lambda: directory.set_member(JOHN, MARY, "read", False),
        lambda: directory.set_member(INFO, JOHN, "", False),
        lambda: directory.set_member(INFO, JOHN, "lr\u00e9", False),
        lambda: directory.set_member(INFO, JOHN, "lrz", False),
        lambda: directory.remove_member(INFO, JOHN),
        lambda: directory.remove_member(JOHN, MARY),
        lambda: directory.delete_account(INFO),
        lambda: directory.delete_account(JOHN, shared=True),
        lambda: directory.set_password(INFO, "pw"),
    ):
        with pytest.raises(DirectoryRefusal):
            attempt()
    assert agreed(directory) == set()
    assert directory.account("new@example.test") is None, "all or nothing"


def test_rights_of_an_administrator():
    assert rights_of("Read") == "lrs" and rights_of("manage") == "lrswipkxtea" and rights_of("prl") == "lrp" and rights_of("lrd") == "lrte"


def test_bounds(directory, monkeypatch):
    assert MEMBERS_MAX >= 100 and SHARED_MAX >= 100
    monkeypatch.setattr("iems.directory.sharing.MEMBERS_MAX", 1)
    directory.create_shared(INFO, members=[(JOHN, "read", False)])
    directory.set_member(INFO, JOHN, "write", False)
    with pytest.raises(DirectoryRefusal, match="members already"):
        directory.set_member(INFO, MARY, "read", False)
    monkeypatch.setattr("iems.directory.sharing.SHARED_MAX", 1)
    directory.create_shared("two@example.test")
    with pytest.raises(DirectoryRefusal, match="shared mailboxes already"):
        directory.set_member("two@example.test", JOHN, "read", False)
    assert len(agreed(directory)) == 1


def test_nobody_logs_in_to_it(directory):
    made = directory.create_shared(INFO)

    async def attempt():
        found = Authenticator(directory)
        try:
            assert await found.check(INFO, "", "127.0.0.1") is None
            assert await found.check(INFO, "pw", "127.0.0.1") is None
            keys = found.keys(INFO, "SCRAM-SHA-256", "127.0.0.1")
            assert await found.proven(INFO, keys, "SCRAM-SHA-256", "127.0.0.1") is None
            assert await found.proven(INFO, None, "SCRAM-SHA-256", "127.0.0.1") is None
            # Whoever vouches for it: a token that names it is none of a user.
            assert found._account(INFO) is None and found._account(JOHN) is not None
        finally:
            found.close()

    asyncio.run(attempt())
    assert made.password == ""


def test_postmaster_is_no_shared_mailbox(tmp_path, monkeypatch):
    monkeypatch.setattr("iems.directory.passwords.hash_password", lambda password: "x")
    directory = Directory(tmp_path / "directory", create=True)
    directory.add_domain("example.test")
    directory.create_shared(INFO)
    directory.create_account(MARY, "pw")
    assert directory.resolve(b"postmaster@example.test").targets[0].address == MARY.encode()
    directory.close()


def _churn(path, started):
    directory = Directory(path, audit=lambda record: None)
    for number in range(10_000):
        address = f"s{number % 3}@example.test"
        if directory.account(address) is None:
            directory.create_shared(address, members=[(JOHN, "manage", False), (MARY, "read", True)])
        elif number % 2:
            directory.remove_member(address, MARY)
            directory.set_member(address, MARY, "write", False)
        else:
            directory.delete_account(address, shared=True)
        started.set()


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.05, 0.1])
def test_killed_at_any_point_nothing_is_half_made(directory, after_s):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    child = context.Process(target=_churn, args=(directory.path, started))
    child.start()
    assert started.wait(60)
    child.join(after_s)
    os.kill(child.pid, signal.SIGKILL)
    child.join(60)
    agreed(directory)
    for account in directory.list_accounts():
        if account.shared:
            assert {one.address for one in account.members} >= {JOHN}
            assert directory.resolve(account.address.encode()).exists
