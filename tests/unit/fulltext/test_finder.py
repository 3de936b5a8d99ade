"""Questions and builds from the loop: what is damaged is made anew, what is bad for now is left alone, one process builds."""

import asyncio
import os
import random

import pytest

from iems.fulltext import finder as finder_module
from iems.fulltext.building import Lock
from iems.fulltext.finder import Finder, forget, lock_path
from tests.unit.fulltext import mail

WANTED = [("offer", False), ("nowhere", True)]


@pytest.fixture
def world(tmp_path):
    class World:
        def __init__(self):
            self.reader = mail.FakeReader().box()
            for number in range(30):
                self.reader.put(b"Subject: s%d\r\n\r\nan offer %d" % (number, number))
            self.events, self.errors = [], []
            self.folder = tmp_path / "search"

        def finder(self):
            return Finder(
                asyncio.get_running_loop(), self.folder, self.reader,
                lambda name, **detail: self.events.append((name, detail)), lambda text, fault: self.errors.append(fault),
            )  # fmt: skip

        async def built(self, finder):
            finder.want(1, 1)
            finder.want(1, 1)
            await finder.settled()

    return World()


def run(main):
    asyncio.run(asyncio.wait_for(main(), 60))


async def all_found(finder):
    found = await finder.find(1, 1, WANTED)
    return (
        found is not None
        and found.uids[WANTED[0]].tolist() == list(range(1, 31))
        and found.uids[WANTED[1]].tolist() == []
    )


def test_built_once_and_kept_up(world):
    async def main():
        finder = world.finder()
        assert await finder.find(1, 1, WANTED) is None
        await world.built(finder)
        assert await all_found(finder) and len(world.events) == 1
        uid = world.reader.put(b"Subject: new\r\n\r\nanother offer")
        found = await finder.find(1, 1, WANTED)
        assert found.upto == 30
        await world.built(finder)
        found = await finder.find(1, 1, WANTED)
        assert found.upto == uid and uid in found.uids[WANTED[0]]
        assert await finder.find(1, 2, WANTED) is None and await finder.find(2, 1, WANTED) is None
        await finder.close()
        assert await finder.find(1, 1, WANTED) is None
        finder.want(1, 1)
        assert world.errors == []

    run(main)


@pytest.mark.parametrize("open_before", [False, True])
@pytest.mark.parametrize("harm", ["deleted", "emptied", "cut", "noise", "replaced"])
def test_harm(world, harm, open_before):
    async def main():
        finder = world.finder()
        await world.built(finder)
        if not open_before:
            await finder.close()
            finder = world.finder()
        path = finder.path(1)
        size = path.stat().st_size
        match harm:
            case "deleted":
                path.unlink()
            case "emptied":
                os.truncate(path, 0)
            case "cut":
                os.truncate(path, size // 2)
            case "noise":
                path.write_bytes(random.Random(1).randbytes(size))
            case "replaced":
                aside = path.with_name("aside")
                aside.write_bytes(b"no index at all" * 1000)
                aside.rename(path)
        # Whatever is said, nothing is left out; after it all is well again.
        found = await finder.find(1, 1, WANTED)
        assert found is None or found.uids[WANTED[0]].tolist() == list(range(1, 31))
        await world.built(finder)
        for _ in range(2):
            if not await all_found(finder):
                await world.built(finder)
        assert await all_found(finder)
        await finder.close()

    run(main)


def test_another_process_builds(world):
    async def main():
        finder = world.finder()
        lock = Lock(lock_path(world.folder, 1))
        await world.built(finder)
        assert not finder.path(1).exists() and world.errors == []
        lock.close()
        await world.built(finder)
        other = world.finder()
        assert await all_found(finder) and await all_found(other)
        await finder.close()
        await other.close()

    run(main)


def test_another_mailbox_of_that_number(world):
    async def main():
        finder = world.finder()
        await world.built(finder)
        assert await all_found(finder)
        world.reader.boxes[1][0].uidvalidity += 1
        assert await finder.find(1, 1, WANTED) is None
        await world.built(finder)
        assert await all_found(finder)
        # Uids given back by a commit that was undone: the index goes.
        world.reader.boxes[1][0].uidnext = 20
        assert await finder.find(1, 1, WANTED) is None
        assert not finder.path(1).exists()
        await finder.close()

    run(main)


def test_a_fault_pauses(world, monkeypatch):
    async def main():
        finder = world.finder()
        world.folder.parent.mkdir(exist_ok=True)
        world.folder.write_bytes(b"in the way")
        await world.built(finder)
        assert len(world.errors) == 1
        await world.built(finder)
        assert len(world.errors) == 1 and await finder.find(1, 1, WANTED) is None
        await finder.close()

    run(main)


def test_mostly_about_messages_long_gone(world, monkeypatch):
    monkeypatch.setattr(finder_module, "SPARE", 0)

    async def main():
        finder = world.finder()
        await world.built(finder)
        rows = world.reader.boxes[1][1]
        for uid in range(1, 20):
            del rows[uid]
        await world.built(finder)
        assert finder.path(1).stat().st_size and len(world.events) == 2
        assert world.events[1][1]["messages"] == len(rows)
        found = await finder.find(1, 1, WANTED)
        assert found.uids[WANTED[0]].tolist() == sorted(rows)
        await finder.close()
        forget(world.folder, 1)
        assert list(world.folder.iterdir()) == []

    run(main)


def test_few_are_kept_open(world, monkeypatch):
    monkeypatch.setattr(finder_module, "MAX_OPEN", 2)

    async def main():
        finder = world.finder()
        for account in range(1, 5):
            finder.want(account, 1)
        await finder.settled()
        for account in range(1, 5):
            assert (await finder.find(account, 1, WANTED)).upto == 30
        assert len(finder._open) == 2
        await finder.close()

    run(main)


def test_a_build_waits_for_quiet_but_not_with_the_end(world):
    """What is asked for is begun a while later; a worker that ends doesn't wait for that."""

    async def main():
        finder = Finder(asyncio.get_running_loop(), world.folder, world.reader, quiet_s=3_600)
        finder.want(1, 1)
        await asyncio.sleep(0)
        assert await finder.find(1, 1, WANTED) is None
        await finder.close()
        assert not world.folder.exists() or not list(world.folder.glob("*.sqlite"))
        finder = Finder(asyncio.get_running_loop(), world.folder, world.reader, quiet_s=0.01)
        finder.want(1, 1)
        await finder.settled()
        assert await finder.find(1, 1, WANTED) is not None
        await finder.close()

    run(main)
