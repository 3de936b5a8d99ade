"""Routing answers, against a directory in a temporary home."""

import pytest

from iems.directory import Directory, DirectoryRefusal
from iems.directory.resolve import ALIAS_LOOP, BAD_ADDRESS, DISABLED, NO_SUCH_ADDRESS, NO_SUCH_USER, TOO_MANY
from iems.errors import DirectoryUnavailable
from iems.model import Channel


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setattr("iems.directory.passwords.hash_password", lambda password: "hash")
    found = Directory(tmp_path / "directory", create=True)
    found.add_domain("example.test")
    found.create_account("john@example.test", "pw")
    found.create_account("mary@example.test", "pw")
    yield found
    found.close()


def pairs(resolution):
    return [(Channel(t.channel).name, t.identifier, t.address.decode()) for t in resolution.targets]


def test_local_account(directory):
    found = directory.resolve(b"JOHN@Example.Test")
    assert (found.local, found.ours, found.exists, found.reply) == (True, True, True, None)
    assert pairs(found) == [("LOCAL", "", "john@example.test")]
    assert directory.resolve(b"JOHN@Example.Test") is found


def test_unknown(directory):
    found = directory.resolve(b"nobody@example.test")
    assert (found.local, found.exists, found.reply, found.targets) == (True, False, NO_SUCH_USER, [])


def test_detail(directory):
    assert pairs(directory.resolve(b"john+lists@example.test")) == [("LOCAL", "", "john@example.test")]
    directory.create_account("john+own@example.test", "pw")
    assert pairs(directory.resolve(b"john+own@example.test")) == [("LOCAL", "", "john+own@example.test")]
    directory.set_detail_separator("-")
    assert not directory.resolve(b"john+lists@example.test").exists
    assert directory.resolve(b"john-lists@example.test").exists
    directory.set_detail_separator("")
    assert not directory.resolve(b"john-lists@example.test").exists
    for wrong in ("@", "aa", "+++", " ", "\0"):
        with pytest.raises(DirectoryRefusal):
            directory.set_detail_separator(wrong)


def test_sub_domains_are_not_the_domain(directory):
    directory.add_domain("*.abc.com")
    assert directory.is_local("x.abc.com")
    assert directory.is_local("y.x.abc.com")
    assert not directory.is_local("abc.com")
    assert not directory.is_local("xabc.com")
    assert not directory.resolve(b"a@abc.com").local
    directory.create_account("a@x.abc.com", "pw")
    assert pairs(directory.resolve(b"a@x.abc.com")) == [("LOCAL", "", "a@x.abc.com")]


def test_not_local_goes_to_the_internet_channel(directory):
    found = directory.resolve(b"Bob@Other.Test")
    assert (found.local, found.ours, found.exists) == (False, False, True)
    assert pairs(found) == [("SMTPC", "", "Bob@other.test")]
    directory.set_channel_default("INTERNET", "BSMTPOUT")
    assert pairs(directory.resolve(b"Bob@Other.Test")) == [("BSMTPOUT", "", "Bob@other.test")]


def test_default_local_channel(directory):
    directory.set_channel_default("local", "smtpc")
    found = directory.resolve(b"Nobody@example.test")
    assert (found.local, found.exists) == (True, True)
    assert pairs(found) == [("SMTPC", "", "Nobody@example.test")]
    assert pairs(directory.resolve(b"john@example.test")) == [("LOCAL", "", "john@example.test")]


def test_account_without_connectors_follows_the_default(directory):
    directory.remove_connector("john@example.test", "LOCAL")
    assert pairs(directory.resolve(b"john@example.test")) == [("LOCAL", "", "john@example.test")]
    directory.set_channel_default("LOCAL", "SMTPC")
    assert pairs(directory.resolve(b"john@example.test")) == [("SMTPC", "", "john@example.test")]


def test_forwarding_table(directory):
    directory.set_forward("partner.test", "SMTPC", "Relay.Partner.Test")
    directory.set_forward("*.partner.test", "BSMTPOUT", "batch@partner.test")
    found = directory.resolve(b"x@partner.test")
    assert (found.local, found.ours, found.exists) == (False, True, True)
    assert pairs(found) == [("SMTPC", "relay.partner.test", "x@partner.test")]
    assert pairs(directory.resolve(b"x@a.b.partner.test")) == [
        ("BSMTPOUT", "batch@partner.test", "x@a.b.partner.test")
    ]
    with pytest.raises(DirectoryRefusal, match="identifier"):
        directory.set_forward("other.test", "BSMTPOUT")
    directory.set_forward("partner.test", "LOCAL")
    assert directory.resolve(b"x@partner.test").reply == NO_SUCH_USER
    directory.remove_forward("partner.test")
    assert pairs(directory.resolve(b"x@partner.test")) == [("SMTPC", "", "x@partner.test")]


def test_forwarding_table_takes_a_local_domains_unknown_users(directory):
    directory.set_forward("example.test", "SMTPC", "inner.example.test")
    assert pairs(directory.resolve(b"nobody@example.test")) == [
        ("SMTPC", "inner.example.test", "nobody@example.test")
    ]
    assert pairs(directory.resolve(b"john@example.test")) == [("LOCAL", "", "john@example.test")]


def test_connectors(directory):
    directory.add_connector("list@example.test", "DL", "list")
    assert pairs(directory.resolve(b"list@example.test")) == [("DL", "list", "list@example.test")]
    directory.add_connector("john@example.test", "SMTPC", "old.test")
    assert pairs(directory.resolve(b"john@example.test")) == [
        ("LOCAL", "", "john@example.test"),
        ("SMTPC", "old.test", "john@example.test"),
    ]
    directory.remove_connector("john@example.test", "LOCAL")
    assert pairs(directory.resolve(b"john@example.test")) == [("SMTPC", "old.test", "john@example.test")]
    directory.add_connector("fax@example.test", "NOTES", "fax", "send")
    assert not directory.resolve(b"fax@example.test").exists
    with pytest.raises(DirectoryRefusal):
        directory.add_connector("fax@example.test", "SMTPC", "", "send")
    with pytest.raises(DirectoryRefusal):
        directory.add_connector("fax@example.test", "LOCAL")
    with pytest.raises(DirectoryRefusal):
        directory.add_connector("fax@example.test", "SMTPD")
    directory.remove_connector("fax@example.test", "NOTES")
    assert directory.connectors("fax@example.test") == []


def test_send_only_mailbox(directory):
    directory.add_connector("john@example.test", "LOCAL", "", "send")
    found = directory.resolve(b"john@example.test")
    assert (found.exists, found.reply.code) == (False, 550)
    assert not directory.account("john@example.test").may_receive


def test_alias_chain(directory):
    directory.add_alias("info@example.test", "sales@example.test")
    directory.add_alias("sales@example.test", "john@example.test")
    directory.add_alias("sales@example.test", "Mary@example.test")
    directory.add_alias("sales@example.test", "Out@Other.Test")
    expected = [
        ("LOCAL", "", "john@example.test"),
        ("LOCAL", "", "mary@example.test"),
        ("SMTPC", "", "Out@other.test"),
    ]
    assert pairs(directory.resolve(b"info+x@example.test")) == expected
    steps = directory.resolve(b"info@example.test", explain=True).steps
    assert steps[0] == ("Is example.test a local domain?", "yes, listed as example.test")
    assert steps[-1][1].startswith("LOCAL as john@example.test, LOCAL as mary")
    directory.remove_alias("sales@example.test", "MARY@example.test")
    assert pairs(directory.resolve(b"sales@example.test")) == [expected[0], expected[2]]
    directory.remove_alias("sales@example.test")
    assert directory.resolve(b"info@example.test").reply == NO_SUCH_ADDRESS


def test_alias_loops_end(directory):
    directory.add_alias("a@example.test", "b@example.test")
    directory.add_alias("b@example.test", "a@example.test")
    assert directory.resolve(b"a@example.test").reply == ALIAS_LOOP
    directory.add_alias("b@example.test", "john@example.test")
    assert pairs(directory.resolve(b"a@example.test")) == [("LOCAL", "", "john@example.test")]
    for i in range(40):
        directory.add_alias(f"c{i}@example.test", f"c{i + 1}@example.test")
    assert directory.resolve(b"c0@example.test").reply == ALIAS_LOOP
    with pytest.raises(DirectoryRefusal):
        directory.add_alias("x@example.test", "X@example.test")


def test_alias_fan_out_is_bounded(directory, monkeypatch):
    monkeypatch.setattr("iems.directory.resolve.MAX_TARGETS", 5)
    for i in range(6):
        directory.add_alias("all@example.test", f"u{i}@other.test")
    found = directory.resolve(b"all@example.test")
    assert (found.reply, found.targets) == (TOO_MANY, [])


def test_postmaster(directory):
    assert pairs(directory.resolve(b"Postmaster")) == [("LOCAL", "", "john@example.test")]
    directory.add_domain("empty.test")
    assert pairs(directory.resolve(b"postmaster@empty.test")) == [("LOCAL", "", "john@example.test")]
    directory.add_alias("postmaster@example.test", "mary@example.test")
    assert pairs(directory.resolve(b"Postmaster")) == [("LOCAL", "", "mary@example.test")]


def test_disabled(directory):
    directory.set_enabled("john@example.test", False)
    assert directory.resolve(b"john@example.test").reply == DISABLED


@pytest.mark.parametrize("octets", [b"", b"a\0@example.test", b"\xff@example.test", b"x" * 65536])
def test_no_address(directory, octets):
    found = directory.resolve(octets)
    assert (found.exists, found.reply) == (False, BAD_ADDRESS)


@pytest.mark.parametrize("local", [b"../../passwd", b"*)(uid=*", b"$(id)", b"john'--", b"%2e", b"*"])
def test_hostile_names_are_just_names(directory, local):
    assert directory.resolve(local + b"@example.test").reply == NO_SUCH_USER


def test_directory_away(directory):
    known = directory.resolve(b"john@example.test")
    directory._env.close()
    assert directory.resolve(b"john@example.test") is known
    with pytest.raises(DirectoryUnavailable):
        directory.resolve(b"mary@example.test")
