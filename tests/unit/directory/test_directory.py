"""Accounts, domains, audit lines, versions, other processes."""

import json
import multiprocessing
import random
import subprocess
import sys

import pytest

from iems.directory import Directory, DirectoryRefusal, keys
from iems.errors import DirectoryUnavailable
from iems.model import Channel


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setattr("iems.directory.passwords.hash_password", lambda password: f"hash of {password}")
    (tmp_path / "log").mkdir()
    found = Directory(tmp_path / "directory", create=True, who="test")
    found.add_domain("example.test")
    yield found
    found.close()


def test_account_life(directory):
    made = directory.create_account("John@example.test", "pw", quota_octets=500)
    assert (made.number, made.address, made.enabled, made.quota_octets, made.partition) == (
        1,
        "john@example.test",
        True,
        500,
        0,
    )
    assert directory.account("JOHN@EXAMPLE.TEST") == made
    assert directory.account_by_number(1) == made
    directory.set_quota("john@example.test", None)
    directory.set_password("john@example.test", "new")
    directory.set_enabled("john@example.test", False)
    now = directory.account("john@example.test")
    assert (now.quota_octets, now.password, now.enabled) == (None, "hash of new", False)
    assert directory.dn("john@example.test") == "mail=john@example.test,dc=example,dc=test"
    assert directory.entry_by_dn("MAIL=john@example.test, dc=example,dc=test").lookup == "john@example.test"
    assert directory.entry_by_dn("mail=x,dc=example,dc=test") is None


def test_numbers_are_never_used_twice(directory):
    assert directory.create_account("a@example.test", "pw").number == 1
    directory.delete_account("a@example.test")
    assert directory.account("a@example.test") is None
    assert directory.account_by_number(1) is None
    assert directory.create_account("a@example.test", "pw").number == 2
    assert [(gone.number, gone.partition) for gone in directory.retired()] == [(1, 0)]
    directory.forget_retired(1)
    assert directory.retired() == []


def test_refusals(directory):
    directory.create_account("a@example.test", "pw")
    directory.add_alias("b@example.test", "a@example.test")
    for address in ("a@example.test", "B@example.test", "x@other.test", "../x@example.test", "a/b@example.test", "x",
                    "*)(uid=*@example.test", "a\0@example.test", "x" * 65536 + "@example.test"):  # fmt: skip
        with pytest.raises(DirectoryRefusal):
            directory.create_account(address, "pw")
    version = directory.version
    for change in (
        lambda: directory.delete_account("b@example.test"),
        lambda: directory.set_password("nobody@example.test", "pw"),
        lambda: directory.set_quota("a@example.test", 0),
        lambda: directory.add_domain("example.test"),
        lambda: directory.add_domain("../etc"),
        lambda: directory.remove_domain("other.test"),
        lambda: directory.remove_domain("example.test"),
        lambda: directory.remove_alias("a@example.test"),
        lambda: directory.add_alias("a@example.test", "x@other.test"),
        lambda: directory.add_alias("c@example.test", "not an address"),
        lambda: directory.remove_forward("x.test"),
        lambda: directory.remove_connector("a@example.test", "DL"),
        lambda: directory.set_channel_default("LOCAL", "DL"),
        lambda: directory.set_channel_default("BOTH", "SMTPC"),
    ):
        with pytest.raises(DirectoryRefusal):
            change()
    assert directory.version == version


def test_a_recipient_becomes_an_account(directory):
    directory.add_connector("x@example.test", "SMTPC", "relay.test")
    directory.create_account("x@example.test", "pw")
    assert [c.channel for _, c in directory.connectors("x@example.test")] == [Channel.LOCAL, Channel.SMTPC]


def test_domain_goes_and_returns_with_its_entries(directory):
    directory.create_account("a@example.test", "pw")
    directory.remove_domain("example.test", force=True)
    assert directory.domains() == []
    assert directory.account("a@example.test")
    directory.add_domain("example.test")
    assert directory.domains() == ["example.test"]
    assert directory.resolve(b"a@example.test").exists


def test_login_names(directory):
    assert directory.login_address(" JOHN@Example.test") == "john@example.test"
    assert directory.login_address("John") == "john@example.test"
    directory.add_domain("second.test")
    assert directory.login_address("John") == ""
    directory.remove_domain("second.test")
    assert directory.login_address("John") == "john@example.test"
    for login in ("", "a\0b", "x" * 70000, "*)(uid=*\r\n"):
        assert directory.login_address(login) in ("", "*)(uid=*@example.test")


def test_audit(directory, tmp_path):
    directory.create_account("a@example.test", "secret")
    directory.set_quota("a@example.test", 5)
    directory.set_password("a@example.test", "other")
    lines = [json.loads(line) for line in (tmp_path / "log" / "directory.log").read_text().splitlines()]
    assert [line["action"] for line in lines] == [
        "domain add",
        "account create",
        "account quota",
        "account password",
    ]
    assert lines[2]["who"] == "test"
    assert lines[2]["entry"] == "mail=a@example.test,dc=example,dc=test"
    assert (lines[2]["old"], lines[2]["new"]) == ({"iemsQuotaOctets": []}, {"iemsQuotaOctets": ["5"]})
    assert "hash" not in (tmp_path / "log" / "directory.log").read_text()
    assert lines[3]["new"] == {"userPassword": ["(hidden)"]}


def test_lists(directory):
    directory.add_domain("*.second.test")
    directory.create_account("b@example.test", "pw")
    directory.create_account("a@x.second.test", "pw")
    directory.create_account("a@example.test", "pw")
    assert [a.address for a in directory.list_accounts()] == [
        "a@example.test",
        "b@example.test",
        "a@x.second.test",
    ]
    assert [a.address for a in directory.list_accounts("x.second.test")] == ["a@x.second.test"]
    directory.add_alias("z@example.test", "a@example.test")
    directory.set_forward("f.test", "SMTPC")
    directory.set_matrix("antivirus", {(1, 32), (1, 33)})
    assert directory.aliases() == [("z@example.test", ["a@example.test"])]
    assert directory.forwards() == [("f.test", Channel.SMTPC, "")]
    assert directory.channel_defaults() == {"LOCAL": Channel.LOCAL, "INTERNET": Channel.SMTPC}
    assert directory.matrices() == {"antivirus": frozenset({(1, 32), (1, 33)})}


def test_names_whose_hashes_meet(directory, monkeypatch):
    monkeypatch.setattr(keys, "_hash", lambda text: b"sameHash")
    directory.add_domain("meet.test")
    for name in ("a", "b", "c"):
        directory.create_account(f"{name}@meet.test", "pw")
    directory.add_alias("d@meet.test", "b@meet.test")
    assert directory.account("c@meet.test").address == "c@meet.test"
    directory.delete_account("a@meet.test")
    assert directory.account("b@meet.test").address == "b@meet.test"
    assert directory.account("a@meet.test") is None
    assert directory.resolve(b"d@meet.test").targets[0].address == b"b@meet.test"


def _create(path, start):
    found = Directory(path)
    for i in range(20):
        found.create_account(f"u{start + i}@example.test", "p")
    found.close()


def test_many_processes(tmp_path):
    path = tmp_path / "directory"
    first = Directory(path, create=True)
    first.add_domain("example.test")
    first.close()
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_create_fast, args=(path, 100 * i)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    found = Directory(path)
    accounts = found.list_accounts()
    assert len({account.number for account in accounts}) == len(accounts) == 60
    assert found.version == 62
    found.close()


def _create_fast(path, start):
    from iems.directory import passwords

    passwords.hash_password = lambda password: "hash"
    _create(path, start)


def test_a_write_elsewhere_is_seen(directory):
    assert not directory.resolve(b"u1@example.test").exists
    assert directory.account("u1@example.test") is None
    # A process of its own: LMDB refuses to open an environment that was open before a fork.
    code = "import sys; from iems.directory import Directory; Directory(sys.argv[1]).create_account('u1@example.test', 'pw')"
    subprocess.run([sys.executable, "-c", code, str(directory.path)], check=True, timeout=30)
    assert directory.resolve(b"u1@example.test").exists
    assert directory.account("u1@example.test")


def test_missing_or_newer(tmp_path):
    with pytest.raises(DirectoryUnavailable, match="no directory"):
        Directory(tmp_path / "directory")
    found = Directory(tmp_path / "directory", create=True)
    with found._env.begin(write=True) as txn:
        txn.put(b"format", keys.u64(9), db=found._db[b"meta"])
    found.close()
    with pytest.raises(DirectoryUnavailable, match="format 9"):
        Directory(tmp_path / "directory")


def test_random_policy_against_a_model(directory):
    """Accounts and aliases against a plain dict, 300 random changes."""
    rng = random.Random(2377)
    model = {}
    names = [f"{c}@example.test" for c in "abcdefgh"]
    for _ in range(300):
        name = rng.choice(names)
        target = rng.choice(names)
        what = rng.randrange(4)
        try:
            if what == 0:
                directory.create_account(name, "pw")
                assert name not in model
                model[name] = None
            elif what == 1:
                directory.delete_account(name)
                assert model.pop(name) is None
            elif what == 2:
                directory.add_alias(name, target)
                assert name != target and model.get(name, ()) is not None
                model[name] = (*model.get(name, ()), target)
            else:
                directory.remove_alias(name)
                assert model.pop(name)
        except DirectoryRefusal:
            pass
        assert {a.address for a in directory.list_accounts()} == {n for n, v in model.items() if v is None}
        assert dict(directory.aliases()) == {n: list(v) for n, v in model.items() if v}
