"""Cost as accounts grow in number: mail for random ones of them, until it is in their mailboxes."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

from iems._native import loadgen
from iems.perf import machine, measure, messages, queue
from iems.perf.home import PrivateHome
from iems.perf.measure import Options

NAME = "grow_mailboxes"
TITLE = "Cost as mailboxes grow in number"
LARGEST = 10_000
SENT = 10_000


def run(options: Options) -> Iterator[dict[str, Any]]:
    """A server for each number of accounts, every one of which has mail before the clock starts."""
    count = options.count(SENT, 1_000)
    for accounts in options.steps(LARGEST):
        with PrivateHome(accounts, folder=options.folder) as home:
            users = home.users()
            random.Random(5321).shuffle(users)

            def send(some: list[bytes], number: int, home: PrivateHome = home) -> None:
                result = loadgen.smtp(
                    home.port("smtp"), messages.pool(4_096), some, b"sender@load.test", sessions=10, count=number,
                    first_id=time.time_ns(),
                )  # fmt: skip
                if result["errors"]:
                    raise RuntimeError(f"to many mailboxes: {result['complaint']}")
                queue.drained(home)

            send(users, len(users))
            chance = random.Random(1)
            readings = []
            for _ in range(options.repeats):
                some = [users[chance.randrange(len(users))] for _ in range(count)]
                readings.append(measure.counted([home], count, 4_096, lambda some=some: send(some, count)))  # type: ignore[misc]
            yield (
                {"rig": NAME, "case": f"{accounts} mailboxes", "accounts": accounts, "octets": 4_096, "also": ["server_mb"]}
                | measure.figures(readings)
                | {"server_mb": (machine.memory_octets([home.pid])["pss"] / 1e6,) * 3}
            )
