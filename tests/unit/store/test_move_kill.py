"""SIGKILL of mover and stores at random moments while an account moves to and fro under load: nothing lost, nothing doubled."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from iems.errors import StoreUnavailable
from iems.store.client import StoreClient
from iems.store.fsck import look
from iems.store.move import Side
from iems.store.reader import Reader
from tests.unit.store.home import SEGMENT, delivery, message

ACCOUNT, NEIGHBOUR = 1, 2


class Play:
    """The processes, the load, and what must be there at the end."""

    def __init__(self, home: Path, seed: int, pause_s: float) -> None:
        self.home = home
        self.rng = random.Random(seed)
        self.entry = home / "entry"
        self.stopping = False
        self.pause_s = pause_s
        self.delivered: Counter[tuple[int, bytes]] = Counter()
        self.appended = self.expunged = self.moves = self.killed_moves = 0
        self.stores = [self.spawn("serve", str(number)) for number in (0, 1)]

    def spawn(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        return subprocess.Popen([sys.executable, "-m", f"tests.unit.store.{module}", str(self.home), *arguments], env=environment)

    def partition_of(self, account: int) -> int:
        return int(self.entry.read_text()) if account == ACCOUNT else 0

    async def deliveries(self, client: StoreClient, first: int) -> None:
        """As the LMDA: what was moved or not answered is delivered again."""
        number = first
        while not self.stopping:
            wanted = []
            for _ in range(self.rng.randrange(1, 12)):
                number += 1
                wanted.append(delivery(number, self.rng.choice([ACCOUNT, ACCOUNT, NEIGHBOUR]), domain="x.test"))
            while wanted:
                for one in wanted:
                    one.partition = self.partition_of(one.account)
                try:
                    answers = await client.deliver(wanted)
                except StoreUnavailable:
                    await asyncio.sleep(0.02)
                    continue
                again = []
                for one, answer in zip(wanted, answers, strict=True):
                    if answer.status == "moved":
                        again.append(one)
                    else:
                        assert answer.status in ("ok", "duplicate"), answer
                        self.delivered[one.account, one.origin] += 1
                if again:
                    await asyncio.sleep(0.01)
                wanted = again
            await asyncio.sleep(self.pause_s)

    async def sessions(self, client: StoreClient) -> None:
        """A session that writes; each answered change must be there at the end, and be seen at once."""
        reader = Reader(self.home / "store")
        while not self.stopping:
            _, [uid] = await client.append(ACCOUNT, "Drafts", [message(self.appended % 900, ["$Key"])])
            self.appended += 1
            assert reader.message(ACCOUNT, 3, uid) is not None, "a session sees its own writes"
            if self.rng.random() < 0.3:
                await client.store_flags(ACCOUNT, 3, [uid], "+", ["\\Deleted"])
                assert await client.expunge(ACCOUNT, 3, [uid]) == [uid]
                self.expunged += 1
                assert reader.message(ACCOUNT, 3, uid) is None
            await asyncio.sleep(0.002)
        reader.close()

    async def killer(self, moves: int) -> None:
        for _ in range(moves):
            wanted = str(self.rng.choice([0, 1]))
            mover = self.spawn("mover", wanted)
            victim = self.rng.choice(["mover", "mover", "source", "target", "none"])
            # Starting takes most of this; the move itself a tenth of a second.
            await asyncio.sleep(0.25 + self.rng.random() * 0.6)
            if victim == "mover":
                self.killed_moves += mover.poll() is None
                mover.kill()
            elif victim != "none":
                number = self.partition_of(ACCOUNT) ^ (victim == "target")
                self.stores[number].kill()
                self.stores[number].wait()
                self.stores[number] = self.spawn("serve", str(number))
            await asyncio.to_thread(mover.wait)
            self.moves += 1

    async def run(self, moves: int) -> None:
        client = StoreClient(asyncio.get_running_loop(), self.home / "run", partition_of=self.partition_of, patience_s=60)
        try:
            async with asyncio.TaskGroup() as group:
                for first in (1_000, 1_000_000):
                    group.create_task(self.deliveries(client, first))
                group.create_task(self.sessions(client))
                await self.killer(moves)
                # Whatever the last one left: writes that wait now are let through by finishing it.
                last = self.spawn("mover", "1")
                assert await asyncio.to_thread(last.wait) == 0
                self.stopping = True
        finally:
            client.close()
            for process in self.stores:
                process.kill()
                process.wait()

    def check(self) -> None:
        reader = Reader(self.home / "store")
        found: Counter[tuple[int, bytes]] = Counter()
        for account in (ACCOUNT, NEIGHBOUR):
            table = reader.table(account, 1)
            assert table is not None
            for uid in table[1]["uid"].tolist():
                row = reader.message(account, 1, uid)
                assert row is not None and len(reader.blobs.read(row.rope)) == row.size
                found[account, row.origin] += 1
        assert found == self.delivered
        drafts = reader.mailbox_by_id(ACCOUNT, 3)
        assert drafts is not None and (drafts.messages, drafts.uidnext) == (self.appended - self.expunged, self.appended + 1)
        assert len(reader.trash(ACCOUNT)) == self.expunged
        reader.close()
        assert self.partition_of(ACCOUNT) == 1
        side = Side(self.home, self.home / "store", self.home / "spool", 0)
        assert side.row(ACCOUNT) is None
        side.close()
        for number in (0, 1):
            assert [finding.what for finding in look(self.home / "store" / f"p{number}", number).findings] == []


def play(home: Path, moves: int, seed: int, pause_s: float = 0.001) -> Play:
    for folder in ("spool/segments", "spool/large", "run", "store"):
        (home / folder).mkdir(parents=True)
    (home / "spool/segments" / f"{SEGMENT:016x}.seg").write_bytes(bytes(1 << 20))
    (home / "entry").write_text("0")
    made = Play(home, seed, pause_s)
    asyncio.run(made.run(moves))
    made.check()
    return made


def test_an_account_moves_under_load_and_nothing_is_lost(tmp_path: Path) -> None:
    assert play(tmp_path, 5, seed=9208).moves == 5


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_an_account_moves_under_load_for_long(tmp_path: Path, seed: int) -> None:
    assert play(tmp_path, 40, seed, 0.02).killed_moves > 3
