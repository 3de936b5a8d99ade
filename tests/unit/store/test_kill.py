"""SIGKILL of the store at random moments under load: every delivery, append and copy happens exactly once."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from iems.store.client import StoreClient
from iems.store.reader import Reader
from iems.store.rows import SEEN
from tests.unit.store.home import SEGMENT, delivery, message

ACCOUNTS = 3
#: Of a shared mailbox: what it appends it has seen, the others not.
MEMBER = 9


async def play(home: Path, kills: int, seed: int) -> tuple[int, int, int]:
    rng = random.Random(seed)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}

    def spawn() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "tests.unit.store.serve", str(home)], env=environment)

    process = spawn()
    stopping = False
    delivered = appended = copied = 0
    client = StoreClient(asyncio.get_running_loop(), home / "run", patience_s=30)

    async def deliveries(first: int) -> None:
        nonlocal delivered
        number = first
        while not stopping:
            batch = [delivery(number + i, account=1 + (number + i) % ACCOUNTS) for i in range(rng.randrange(1, 30))]
            number += len(batch)
            answers = await client.deliver(batch)
            assert {answer.status for answer in answers} <= {"ok", "duplicate"}
            delivered += len(batch)

    async def sessions(account: int) -> None:
        nonlocal appended, copied
        while not stopping:
            _, uids = await client.append(account, "Drafts", [message(appended % 900, ["\\Seen"])], member=MEMBER)
            appended += 1
            _, sources, _ = await client.copy(account, 3, uids, "Archive")
            copied += 1
            assert sources == uids

    try:
        async with asyncio.TaskGroup() as group:
            for first in (1_000, 1_000_000):
                group.create_task(deliveries(first))
            for account in range(1, ACCOUNTS + 1):
                group.create_task(sessions(account))
            for _ in range(kills):
                await asyncio.sleep(0.15 + rng.random() * 0.25)
                process.kill()
                process.wait()
                process = spawn()
            await asyncio.sleep(0.3)
            stopping = True
    finally:
        client.close()
        process.kill()
        process.wait()
    return delivered, appended, copied


def check(home: Path, kills: int, seed: int) -> None:
    for folder in ("spool/segments", "spool/large", "run"):
        (home / folder).mkdir(parents=True)
    (home / "spool/segments" / f"{SEGMENT:016x}.seg").write_bytes(bytes(1 << 20))
    delivered, appended, copied = asyncio.run(play(home, kills, seed))
    reader = Reader(home / "store")
    origins: Counter[tuple[int, bytes]] = Counter()
    counts: Counter[str] = Counter()
    for account in range(1, ACCOUNTS + 1):
        for box in reader.mailboxes(account):
            selected = reader.select(account, box.id)
            assert selected is not None and box.messages == len(selected.uids)
            assert selected.uids.tolist() == list(range(1, box.uidnext)), "no uid is skipped or given twice"
            counts[box.name] += box.messages
            if box.name in ("Drafts", "Archive"):
                seen = reader.select(account, box.id, MEMBER)
                assert seen is not None and (seen.flags & SEEN).all() and reader.unseen(account, box, MEMBER) == 0
                assert not (selected.flags & SEEN).any()
            if box.name == "INBOX":
                for row in reader.messages(account, box.id, selected.uids.tolist()):
                    assert row is not None
                    origins[account, row.origin] += 1
    reader.close()
    assert max(origins.values()) == 1
    assert len(origins) == delivered and counts["Drafts"] == appended and counts["Archive"] == copied
    assert delivered and copied, "work went on between the kills"


def test_each_operation_takes_effect_once(tmp_path: Path) -> None:
    check(tmp_path, 12, 3)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_each_operation_takes_effect_once_in_200_kills(tmp_path: Path, seed: int) -> None:
    check(tmp_path, 40, seed)
