"""A store process of its own for the kill test: `python -m tests.unit.store.serve HOME`."""

import asyncio
import sys
from pathlib import Path

from iems.store.partition import Partition
from iems.store.server import Server


async def main(home: Path) -> None:
    partition = Partition(home / "store" / "p0", home / "spool")
    server = Server(asyncio.get_running_loop(), partition, home / "run" / "store-p0.sock", broken=lambda error: sys.exit(1))
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
