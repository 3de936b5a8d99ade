"""A store process of its own for the kill tests: `python -m tests.unit.store.serve HOME [NUMBER]`."""

import asyncio
import fcntl
import sys
from pathlib import Path

from iems.store.partition import Partition
from iems.store.server import Server


async def main(home: Path, number: int) -> None:
    folder = home / "store" / f"p{number}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "owner", "a+b") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        partition = Partition(folder, home / "spool", number=number)
        server = Server(asyncio.get_running_loop(), partition, home / "run" / f"store-p{number}.sock", broken=lambda error: sys.exit(1))
        await server.start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
