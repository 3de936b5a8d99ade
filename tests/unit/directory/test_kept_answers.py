"""Answers of the directory that are kept: so many and no more, the oldest gone first."""

import pytest

from iems.directory import directory as directory_module
from iems.directory.directory import Directory


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setattr(directory_module, "MAX_CACHED", 3)
    made = Directory(tmp_path, create=True)
    made.add_domain("example.test")
    for name in "abcd":
        made.create_account(f"{name}@example.test", "secret-enough")
    yield made
    made.close()


def test_the_oldest_goes(directory):
    for name in "abcdab":
        assert directory.resolve(f"{name}@example.test".encode()).targets
        assert directory.account(f"{name}@example.test").address == f"{name}@example.test"
    assert [key[:1] for key in directory._resolutions] == [b"d", b"a", b"b"]
    assert [key[:1] for key in directory._accounts] == ["d", "a", "b"]
    assert directory.account_by_number(directory.account("b@example.test").number).address == "b@example.test"
    assert len(directory._accounts) == 3
