"""What the paper says of its own sites, beside what the formulas give; where it errs, the formulas stand and say why."""

from __future__ import annotations

from typing import Any

from iems.capacity.forecast import Forecast

#: The paper rounds to two digits; a figure further off than this is another figure.
ROUNDING = 0.05


def disagreements(result: Forecast, paper: dict[str, Any]) -> list[dict[str, Any]]:
    """Figures of the paper that the formulas don't give: `figure`, `paper`, `ours`, `why`."""
    why = paper.get("why", {})
    found = []
    for figure, stated in paper.items():
        ours = getattr(result, figure, None)
        if isinstance(stated, int | float) and isinstance(ours, int | float) and abs(ours - stated) > ROUNDING * abs(stated):
            found.append({"figure": figure, "paper": stated, "ours": ours, "why": why.get(figure, "not explained")})
    return found


def confirmed(result: Forecast, paper: dict[str, Any]) -> list[dict[str, Any]]:
    """Figures of the paper that the formulas give too, within its rounding: `figure`, `paper`, `ours`."""
    wrong = {row["figure"] for row in disagreements(result, paper)}
    return [
        {"figure": figure, "paper": stated, "ours": getattr(result, figure)}
        for figure, stated in paper.items()
        if isinstance(stated, int | float) and hasattr(result, figure) and figure not in wrong
    ]
