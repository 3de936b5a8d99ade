"""The look at what a flush costs runs and says something of every way."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "perf" / "flush.py"


def test_every_way_is_shown(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, tmp_path, "10"], capture_output=True, text=True, check=True, timeout=300)
    lines = done.stdout.splitlines()
    assert len(lines) == 6 and all(" median " in line for line in lines)
    assert not list(tmp_path.iterdir()), "nothing is left behind"
