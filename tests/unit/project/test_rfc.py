"""docs/rfc.md names nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

TOP = Path(__file__).parents[3]
LINES = (TOP / "docs/rfc.md").read_text("utf-8").splitlines()
SECTIONS = next(number for number, line in enumerate(LINES) if line.startswith("## Mail transfer, section by section"))


def cells(from_line: int, to_line: int | None = None) -> list[list[str]]:
    """Rows of the tables between two lines, headings left out."""
    return [
        [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        for line in LINES[from_line:to_line]
        if line.startswith("| ") and not line.startswith(("| RFC |", "| section |"))
    ]


def test_modules_and_pages_are_there() -> None:
    for row in cells(0, SECTIONS):
        assert len(row) == 5, row
        for path in re.findall(r"`([a-z0-9_/.]+)`", row[3]):
            assert (TOP / "iems" / path).exists() or list((TOP / "iems" / path).parent.glob(Path(path).name + ".pyx")), path
        for page in re.findall(r"\]\(([^)]+)\)", row[4]):
            assert (TOP / "docs" / page).exists(), page


def test_each_section_has_a_state_and_a_proof() -> None:
    found = cells(SECTIONS)
    assert len(found) > 80
    for row in found:
        assert len(row) in (4, 5) and row[-2] != "", row
        proofs = re.findall(r"`([a-z0-9_/.]+)`", row[-1])
        assert proofs or row[-1] == "-", row
        assert all((TOP / "tests" / path).is_file() for path in proofs), row
        if not proofs:
            assert row[-2].startswith(("no", "yes", "read", "-")), row
