"""Drives one target under atheris, in a process of its own (it ends the process): atheris_run.py TARGET FOLDER SECONDS.

FOLDER keeps the inputs that led to new branches, and one that failed (`crash-...`); `atheris_run.py TARGET FILE` runs a single input.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["iems"]):
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.fuzz.targets import TARGETS

    target = TARGETS[sys.argv[1]]()


def main() -> None:
    place = Path(sys.argv[2])
    if place.is_file():
        target.run(place.read_bytes())
        return
    for at, seed in enumerate(target.seeds()):
        (place / f"seed-{at}").write_bytes(bytes(seed))
    # An input that takes longer than ten seconds, or two gigabytes, is a fault.
    options = [f"-max_total_time={sys.argv[3]}", "-timeout=10", "-rss_limit_mb=2048", "-max_len=8192", f"-artifact_prefix={place}/", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(place)], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
