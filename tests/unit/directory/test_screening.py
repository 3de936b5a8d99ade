"""Bans and DNS-BL zones in the directory: normal forms, refusals, versions, audit."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.directory import Directory, DirectoryRefusal, screening
from iems.directory.screening import BAN_KINDS, Ban, Zone, ban_of, zone_of


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "log").mkdir()
    found = Directory(tmp_path / "directory", create=True, who="test")
    yield found
    found.close()


@pytest.mark.parametrize(
    ("kind", "value", "normal"),
    [
        ("address", '"John"@Example.Test', "john@example.test"), ("ADDRESS", "a@bücher.test", "a@xn--bcher-kva.test"),
        ("address", "a@[192.0.2.1]", "a@[192.0.2.1]"), ("domain", "Spam.Test", "spam.test"), ("domain", "*.Spam.test", "*.spam.test"),
        ("domain", "[192.0.2.1]", "[192.0.2.1]"), ("ip", "2001:DB8:0::1", "2001:db8::1"), ("ip", "::ffff:192.0.2.1", "192.0.2.1"),
        ("range", "10.0.0.1 - 10.0.0.9", "10.0.0.1-10.0.0.9"), ("range", "::1-::f", "::1-::f"), ("cidr", "10.0.0.0/8", "10.0.0.0/8"),
        ("cidr", "2001:db8::/32", "2001:db8::/32"), ("cidr", "192.0.2.1", "192.0.2.1/32"),
    ],
)  # fmt: skip
def test_normal_forms(kind, value, normal):
    made = ban_of(kind, value)
    assert made == Ban(kind.lower(), normal, 553)
    assert ban_of(made.kind, made.value) == made


BAD = [
    ("address", "john"), ("address", "@x.test"), ("address", ""), ("address", "a b@"), ("domain", "a@b"), ("domain", "*.*.x"),
    ("domain", ""), ("domain", "[x"), ("ip", "1.2.3"), ("ip", "10.0.0.0/8"), ("ip", "fe80::1%eth0"), ("range", "10.0.0.9-10.0.0.1"),
    ("range", "10.0.0.1"), ("range", "10.0.0.1-::1"), ("range", "-"), ("cidr", "10.0.0.1/8"), ("cidr", "10.0.0.0/33"), ("cidr", "x\ny"),
    ("colour", "red"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), BAD)
def test_what_is_no_ban(directory, kind, value):
    before = directory.refresh()
    with pytest.raises(DirectoryRefusal):
        directory.add_ban(kind, value)
    assert directory.screen_lists() == (0, [], []) and directory.refresh() == before


@given(st.sampled_from(BAN_KINDS), st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_ban_or_refused(kind, value):
    try:
        made = ban_of(kind, value)
    except DirectoryRefusal:
        return
    assert ban_of(made.kind, made.value) == made
    if kind not in ("address", "domain"):
        _, first, last = made.span()
        assert first <= last


@pytest.mark.parametrize(
    ("name", "action", "codes"),
    [
        ("", "tag", ""), ("test", "tag", ""), ("a b.test", "tag", ""), ("bl.test", "drop", ""), ("bl.test", "tag", "128.0.0.1"),
        ("bl.test", "tag", "127.0.0.2,"), ("bl.test", "tag", "127.0.0.9-2"), ("bl.test", "tag", "127.0.0.2-"), ("bl.test", "tag", "2"),
        ("bl.test", "tag", "127.255.255.254"), ("bl.test", "tag", "127.0.0.1-127.255.255.255"), ("bl.test", "tag", "127.0.0.2-300"),
        ("[192.0.2.1]", "tag", ""), ("x." * 91 + "test", "tag", ""),
    ],
)  # fmt: skip
def test_what_is_no_zone(name, action, codes):
    with pytest.raises(DirectoryRefusal):
        zone_of(name, action, codes)


@given(st.text(alphabet="0123456789.-,x ", max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_codes_are_read_or_refused(codes):
    try:
        made = zone_of("bl.test", "tag", codes)
    except DirectoryRefusal:
        return
    assert all(0x7F000000 <= first <= last <= 0x7FFFFFFF for first, last in made.spans())


def test_life(directory, tmp_path):
    directory.add_domain("example.test")
    assert directory.screen_lists() == (0, [], [])
    directory.add_ban("domain", "*.spam.test")
    directory.add_ban("ip", "192.0.2.1", 451)
    directory.add_dnsbl("BL.test.", "reject", "127.0.0.2, 127.0.0.4-11")
    state, bans, zones = directory.screen_lists()
    assert bans == [Ban("domain", "*.spam.test"), Ban("ip", "192.0.2.1", 451)]
    assert zones == [Zone("bl.test", "reject", ("127.0.0.2", "127.0.0.4-11"))]
    assert zones[0].spans() == ((0x7F000002, 0x7F000002), (0x7F000004, 0x7F00000B))
    # Other writes leave the state alone, so workers need not read the lists again.
    directory.add_domain("other.test")
    assert directory.screen_lists(state) is None
    with pytest.raises(DirectoryRefusal, match="banned already"):
        directory.add_ban("domain", "*.SPAM.test")
    directory.add_ban("domain", "*.spam.test", 451)
    directory.add_dnsbl("bl.test", "tag")
    assert directory.screen_lists(state)[1:] == (
        [Ban("domain", "*.spam.test", 451), Ban("ip", "192.0.2.1", 451)],
        [Zone("bl.test", "tag")],
    )
    directory.remove_ban("ip", "::ffff:192.0.2.1")
    directory.remove_dnsbl("bl.test")
    for again in (lambda: directory.remove_ban("ip", "192.0.2.1"), lambda: directory.remove_dnsbl("bl.test")):
        with pytest.raises(DirectoryRefusal):
            again()
    assert directory.screen_lists(state)[1:] == ([Ban("domain", "*.spam.test", 451)], [])
    actions = [json.loads(line)["action"] for line in (tmp_path / "log/directory.log").read_text().splitlines()]
    assert actions.count("ban add") == 3 and "ban remove" in actions and actions.count("dnsbl add") == 2


def test_there_is_a_limit(directory, monkeypatch):
    monkeypatch.setattr(screening, "MAX_BANS", 1)
    directory.add_ban("ip", "192.0.2.1")
    with pytest.raises(DirectoryRefusal, match="no more are kept"):
        directory.add_ban("ip", "192.0.2.2")

