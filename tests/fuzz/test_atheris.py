"""Every parser under coverage-guided fuzzing (atheris); IEMS_FUZZ_SECONDS says for how long each (30)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

pytest.importorskip("atheris", reason="no atheris for this machine")

RUN = Path(__file__).with_name("atheris_run.py")


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_atheris(name: str, tmp_path: Path) -> None:
    seconds = int(os.environ.get("IEMS_FUZZ_SECONDS", "30"))
    done = subprocess.run(
        [sys.executable, str(RUN), name, str(tmp_path), str(seconds)], capture_output=True, text=True, timeout=seconds + 300, errors="replace"
    )
    crashes = [(path.name, path.read_bytes()[:2_000]) for path in tmp_path.glob("*-*") if path.name.startswith(("crash", "timeout", "oom"))]
    assert done.returncode == 0 and not crashes, (crashes, done.stderr[-6_000:])
    runs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert runs is not None and int(runs[1]) > 100, done.stderr[-2_000:]
