"""Peer-domain profiles: set, changed, found by the nearest pattern, refused whole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.directory import Directory, DirectoryRefusal
from iems.directory.peers import Peer, Peers


@pytest.fixture
def directory(tmp_path):
    lines = []
    opened = Directory(tmp_path / "directory", create=True, who="test", audit=lines.append)
    opened.lines = lines
    yield opened
    opened.close()


def test_set_change_remove(directory):
    assert not directory.peers()
    directory.set_peer("Example.NET", accept=False, max_in_octets=1000, run_interval_s=2.5)
    assert directory.peers().list() == [Peer(domain="example.net", accept=False, max_in_octets=1000, run_interval_s=2.5)]
    directory.set_peer("example.net", accept=True, tls="encrypt")
    found = directory.peers().find("EXAMPLE.net")
    assert found == Peer(domain="example.net", max_in_octets=1000, run_interval_s=2.5, tls="encrypt")
    directory.remove_peer("example.net")
    assert not directory.peers()
    assert [line["action"] for line in directory.lines] == ["peer set", "peer set", "peer remove"]


def test_another_process_sees_the_change_at_once(directory):
    before = directory.peers()
    directory.set_peer("x.test")
    after = directory.peers()
    assert not before and len(after) == 1
    assert directory.peers() is after  # not read again


@pytest.mark.parametrize(
    ("domain", "values"),
    [
        ("not a domain", {}),
        ("*.", {}),
        ("x.test", {"max_sessions": -1}),
        ("x.test", {"max_in_octets": 1 << 50}),
        ("x.test", {"run_interval_s": float("nan")}),
        ("x.test", {"tls": "perhaps"}),
    ],
)
def test_refused_whole(directory, domain, values):
    with pytest.raises(DirectoryRefusal):
        directory.set_peer(domain, accept=False, **values)
    assert not directory.peers()
    assert not directory.lines
    with pytest.raises(DirectoryRefusal):
        directory.remove_peer(domain)


def test_nearest_pattern():
    profiles = Peers([Peer(domain=name) for name in ("a.test", "*.a.test", "*.b.a.test")])
    found = {name: getattr(profiles.find(name), "domain", None) for name in ("a.test", "x.a.test", "y.x.b.a.test", "b.a.test", "test")}
    assert found == {
        "a.test": "a.test", "x.a.test": "*.a.test", "y.x.b.a.test": "*.b.a.test", "b.a.test": "*.a.test", "test": None,
    }  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80))
def test_any_name_is_answered(name):
    assert Peers([Peer(domain="*.test")]).find(name) is None or name.lower().endswith("test")
