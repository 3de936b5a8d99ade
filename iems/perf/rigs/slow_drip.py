"""Many senders that drip an octet a second, beside ordinary mail: what a patient attacker or a bad line costs everybody else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from iems._native import loadgen
from iems.perf import measure, messages
from iems.perf.home import PrivateHome
from iems.perf.measure import Options

NAME = "slow_drip"
TITLE = "Slow senders beside ordinary mail"
SESSIONS = 2_000
INTERVAL_S = 1.0


def run(options: Options) -> Iterator[dict[str, Any]]:
    """Reception with and without them, in turn; then what they cost by themselves, an octet."""
    count = options.count(SESSIONS, 200)
    pool = messages.pool(4_096)
    with PrivateHome(50, folder=options.folder, held=("LOCAL",)) as home:

        def load(mark: Callable[[str], None]) -> loadgen.Load:
            return loadgen.smtp(
                home.port("smtp"), pool, home.users(), b"sender@load.test", sessions=10, first_id=time.time_ns(),
                warmup_s=options.warmup_s, run_s=options.run_s, on_mark=mark,
            )  # fmt: skip

        alone, beside, drips = [], [], []
        for _ in range(options.repeats):
            alone.append(measure.repetition([home], load))
            with _Drip(home, count) as drip:
                meter = measure.Meter([home])
                meter.mark("start")
                time.sleep(options.run_s)
                meter.mark("end")
                drips.append(meter.spent(max(1, round(count * options.run_s / INTERVAL_S))) | {"closed": float(drip.closed)})
                beside.append(measure.repetition([home], load))
    for case, readings in ((f"without {count} drips", alone), (f"with {count} drips", beside)):
        yield {"rig": NAME, "case": case, "octets": 4_096, "sessions": 10, "drips": count} | measure.figures(readings)
    ratios = [b["per_s"] / a["per_s"] for a, b in zip(alone, beside, strict=True)]
    yield (
        {"rig": NAME, "case": "an octet of a drip", "drips": count, "also": ["kept_share", "closed"]}
        | measure.figures(drips)
        | {"kept_share": measure.figures([{"r": ratio} for ratio in ratios])["r"]}
    )


class _Drip:
    """The slow senders, for as long as the block lasts."""

    def __init__(self, home: PrivateHome, count: int) -> None:
        self._over = loadgen.Over()
        self._ready = threading.Event()
        self._result: loadgen.Load | None = None
        self._failed = ""

        def drip() -> None:
            try:
                self._result = loadgen.drip(
                    home.port("smtp"), home.users()[0], sessions=count, interval_s=INTERVAL_S, run_s=600, over=self._over,
                    on_mark=lambda which: self._ready.set(),
                )  # fmt: skip
            except OSError as error:
                self._failed = str(error)
            self._ready.set()

        self._thread = threading.Thread(target=drip)

    @property
    def closed(self) -> int:
        """Sessions the server ended."""
        return self._result["errors"] if self._result else 0

    def __enter__(self) -> _Drip:
        self._thread.start()
        self._ready.wait(60)
        if self._failed:
            raise RuntimeError(f"slow senders: {self._failed}")
        return self

    def __exit__(self, *of: object) -> None:
        self._over.set()
        self._thread.join(30)
