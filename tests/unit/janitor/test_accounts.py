"""Mail of deleted accounts: removed after a while, kept for later while the store is away."""

import asyncio
from types import SimpleNamespace

import pytest

from iems.config import Config
from iems.directory import Directory
from iems.errors import StoreUnavailable
from iems.janitor import accounts
from iems.janitor.accounts import DeletedAccounts


@pytest.fixture
def dropped(monkeypatch):
    found = []

    class Store:
        away = False

        def __init__(self, loop, run_path, *, partition_of, patience_s):
            self.partition_of = partition_of

        async def drop(self, number):
            if Store.away:
                raise StoreUnavailable("gone")
            found.append((number, self.partition_of(number)))

        def close(self):
            pass

    monkeypatch.setattr(accounts, "StoreClient", Store)
    monkeypatch.setattr(accounts, "LOOK_S", 0.0)
    monkeypatch.setattr("iems.directory.passwords.hash_password", lambda password: "hash")
    found.append(Store)
    return found


def test_removed_once(tmp_path, dropped):
    Store = dropped.pop()
    directory = Directory(tmp_path / "directory", create=True)
    directory.add_domain("example.test")
    for name in "abc":
        directory.create_account(f"{name}@example.test", "pw", partitions=2)
    directory.delete_account("a@example.test")
    directory.delete_account("b@example.test")
    index = tmp_path / "store" / "search" / "1.sqlite"
    index.parent.mkdir(parents=True)
    index.write_bytes(b"")
    errors = []
    ctx = SimpleNamespace(
        home=tmp_path,
        config=Config(),
        loop=None,
        log=SimpleNamespace(event=lambda *a, **d: None, error=lambda *a, **d: errors.append(a)),
    )
    early = DeletedAccounts(ctx)
    early._directory = directory
    work = DeletedAccounts(ctx, grace_s=0.0)
    work._directory = directory

    async def main():
        await early.round()
        assert dropped == []
        Store.away = True
        await work.round()
        assert dropped == [] and errors and len(directory.retired()) == 2
        Store.away = False
        await work.round()
        await work.round()
        assert dropped == [(1, 1), (2, 0)]
        assert directory.retired() == []
        assert not index.exists()
        directory.delete_account("c@example.test")
        await work.round()
        assert dropped[2:] == [(3, 1)]

    asyncio.run(main())
    directory.close()


def test_no_directory_yet(tmp_path):
    asyncio.run(DeletedAccounts(SimpleNamespace(home=tmp_path)).round())
