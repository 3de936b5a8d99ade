"""The MIME kernel on one message: what delivery spends on ENVELOPE and BODYSTRUCTURE. Beside it fast-mail-parser, where installed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from iems._native import kernel
from iems.perf import messages
from iems.perf.measure import Options

NAME = "mime"
TITLE = "MIME structure pass"
SIZES = (4_096, 250_000)


def run(options: Options) -> Iterator[dict[str, Any]]:
    """Microseconds a message; the whole pass, both results made."""
    ours = kernel("mime").summarize
    try:
        import fast_mail_parser

        rival: Callable[[bytes], object] | None = fast_mail_parser.parse_email
    except ImportError:
        rival = None
    for octets in SIZES:
        raw, _ = messages.pool(octets, 1)[0]
        pairs = []
        for _ in range(options.repeats):
            pairs.append((_time_us(ours, raw, options.run_s / 4), _time_us(rival, raw, options.run_s / 4) if rival else 0.0))
        named = {"rig": NAME, "case": f"{octets}", "octets": octets}
        own = sorted(us for us, _ in pairs)
        yield named | {"cpu_us": (own[len(own) // 2], own[0], own[-1])}
        if rival:
            other = sorted(us for _, us in pairs)
            ratio = sorted(b / a for a, b in pairs)
            yield named | {"peer": "fast-mail-parser", "cpu_us": (other[len(other) // 2], other[0], other[-1])}
            yield named | {"versus": "fast-mail-parser", "ratios": {"cpu_us": (ratio[len(ratio) // 2], ratio[0], ratio[-1])}}


def _time_us(work: Callable[[bytes], object], raw: bytes, seconds: float) -> float:
    """The least of many short trains: what the work takes when nothing comes between."""
    best = float("inf")
    until = time.perf_counter() + seconds
    while True:
        begun = time.perf_counter()
        for _ in range(20):
            work(raw)
        now = time.perf_counter()
        best = min(best, (now - begun) / 20)
        if now > until:
            return best * 1e6
