"""What a fresh machine lacks is said in one line, before pip says it in a hundred."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def machine(*settings: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        ["make", "-s", "machine", *settings],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    return done.returncode, [line for line in done.stderr.splitlines() if "Error" not in line]


def test_nothing_is_missing_here() -> None:
    assert machine(f"PYTHON={sys.executable}") == (0, [])


def test_an_old_python() -> None:
    code, lines = machine("PYTHON=false")
    assert code and lines == [
        "make: python3 of at least 3.11 is needed (Debian: apt install python3; or make PYTHON=/path/to/python3)"
    ]


def test_no_compiler() -> None:
    code, lines = machine(f"PYTHON={sys.executable}", "CC=/nonexistent/cc")
    assert code and lines == ["make: a C compiler is missing (Debian: apt install gcc libc6-dev)"]


@pytest.mark.parametrize(("lacks", "says"), [("ensurepip", "venv module"), ("Python.h", "Python.h")])
def test_half_a_python(tmp_path: Path, lacks: str, says: str) -> None:
    half = tmp_path / "python"
    half.write_text(f'#!/bin/sh\ncase "$2" in *{lacks}*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    half.chmod(0o755)
    code, lines = machine(f"PYTHON={half}")
    assert code and len(lines) == 1 and says in lines[0]
