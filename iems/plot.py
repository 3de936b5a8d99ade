"""Charts as SVG text: drawn in place in an HTML page, or written to a file of their own. No script, no network, no library."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

#: Told apart by most people with colour blindness too (after Okabe and Ito), dark enough for text on white.
COLOURS = ("#0067a3", "#b3261e", "#1b7f5c", "#8a4fb5", "#b26a00", "#4d6a00", "#00798c", "#555555", "#a3195b", "#3b3b98")
_GRID = "#dddddd"
_LIMIT = "#b3261e"
_STYLE = "<style>text{font:12px system-ui,sans-serif;fill:#333}.t{font-weight:600;font-size:13px}</style>"
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 170, 30, 44


def standalone(svg: str) -> str:
    """The same drawing as a file."""
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def number(value: float) -> str:
    """A number for an axis or a label: `1.5 k`, `20 M`, `0.03`."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == ' k' else size):.3g}{unit}"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _open(width: int, height: int, title: str) -> list[str]:
    label = html.escape(title, quote=True)
    return [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{_STYLE}<text class="t" x="8" y="18">{label}</text>'
    ]


def _ticks(low: float, high: float, log: bool) -> list[float]:
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        step = max(1, (last - first) // 6)
        between = (1, 2, 5) if math.log10(high / low) < 2.2 else (1,)
        places = [factor * 10.0**power for power in range(first, last + 1, step) for factor in between]
        return [place for place in places if low * 0.999 <= place <= high * 1.001] or [low, high]
    span = (high - low) or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    for factor in (1, 2, 5, 10):
        if span / (step * factor) <= 6:
            step *= factor
            break
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


class _Axis:
    """Maps values to places."""

    def __init__(self, values: Sequence[float], log: bool, start: float, end: float, from_zero: bool) -> None:
        usable = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
        self.log = log and bool(usable)
        low, high = (min(usable), max(usable)) if usable else (0.0, 1.0)
        if self.log:
            high = max(high, low * 1.01)
        else:
            low = min(low, 0.0) if from_zero else low
            high = high * 1.05 if from_zero and high > 0 else high
            if high <= low:
                high = low + 1.0
        self.low, self.high, self._start, self._end = low, high, start, end

    def at(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        return _ticks(self.low, self.high, self.log)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    limit: float | None = None,
    width: int = 760,
    height: int = 320,
) -> str:
    """A line for each name through its points; a dashed line at y = limit. Points that can't be drawn are left out."""
    drawn = {n: [(a, b) for a, b in p if math.isfinite(a) and math.isfinite(b) and (a > 0 or not log_x) and (b > 0 or not log_y)]
             for n, p in series.items()}  # fmt: skip
    drawn = {n: p for n, p in drawn.items() if p}
    parts = _open(width, height, title)
    if not drawn:
        return parts[0] + f'<text x="8" y="{height // 2}">nothing to draw</text></svg>'
    right, bottom = width - _RIGHT, height - _BOTTOM
    across = _Axis([a for p in drawn.values() for a, _ in p], log_x, _LEFT, right, False)
    heights = [b for p in drawn.values() for _, b in p] + ([] if limit is None else [limit])
    up = _Axis(heights, log_y, bottom, _TOP, not log_y)
    for tick in up.ticks():
        place = up.at(tick)
        parts.append(
            f'<line x1="{_LEFT}" x2="{right}" y1="{place:.1f}" y2="{place:.1f}" stroke="{_GRID}"/>'
            f'<text x="{_LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    for tick in across.ticks():
        place = across.at(tick)
        parts.append(
            f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{bottom}" y2="{bottom + 4}" stroke="#888"/>'
            f'<text x="{place:.1f}" y="{bottom + 17}" text-anchor="middle">{number(tick)}</text>'
        )
    parts.append(f'<text x="{(_LEFT + right) / 2:.0f}" y="{height - 8}" text-anchor="middle">{html.escape(x)}</text>')
    parts.append(f'<text x="{right + 12}" y="{_TOP + 2}">{html.escape(y)}</text>')
    if limit is not None:
        place = up.at(limit)
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{place:.1f}" y2="{place:.1f}" stroke="{_LIMIT}" stroke-dasharray="5 4"/>')
    for n, (name, points) in enumerate(drawn.items()):
        colour = COLOURS[n % len(COLOURS)]
        places = [(across.at(a), up.at(b)) for a, b in points]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        parts.append(f'<polyline points="{path}" stroke="{colour}" stroke-width="2" fill="none"/>')
        if len(places) <= 15:
            parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in places]
        parts.append(f'<text x="{right + 12}" y="{_TOP + 22 + n * 17}" style="fill:{colour}">{html.escape(name)}</text>')
    return "".join(parts) + "</svg>"


def bars(
    rows: Sequence[tuple[str, float, str]],
    *,
    title: str,
    behind: Sequence[float] = (),
    limit: float | None = None,
    log: bool = False,
    colours: Sequence[str] = (),
    width: int = 760,
) -> str:
    """A bar for each (label, value, text after it). behind: a paler bar under each; limit: a dashed line across."""
    height = _TOP + len(rows) * 26 + 10
    parts = _open(width, height, title)
    usable = [v for _, v, _ in rows] + list(behind) + ([] if limit is None else [limit])
    if not any(v > 0 for v in usable):
        return parts[0] + f'<text x="8" y="{_TOP + 14}">nothing to draw</text></svg>'
    # a letter of a label is at most about 7.4 wide
    start = min(330.0, max(60.0, 16 + 7.4 * max(len(label) for label, _, _ in rows)))
    text = min(260.0, 18 + 7.2 * max(len(after) for _, _, after in rows))
    axis = _Axis([v for v in usable if v > 0] if log else usable, log, start, width - text, not log)
    for n, (label, value, after) in enumerate(rows):
        place = _TOP + n * 26
        under = behind[n] if n < len(behind) else 0.0
        colour = colours[n] if n < len(colours) else COLOURS[0]
        if under > 0:
            parts.append(f'<rect x="{start:.0f}" y="{place}" width="{axis.at(under) - start:.1f}" height="18" fill="{_GRID}"/>')
        if value > 0:
            extent = max(1.0, axis.at(value) - start)
            parts.append(f'<rect x="{start:.0f}" y="{place}" width="{extent:.1f}" height="18" fill="{colour}"/>')
        end = axis.at(max(value, under, axis.low))
        parts.append(
            f'<text x="8" y="{place + 13}">{html.escape(label)}</text><text x="{end + 6:.1f}" y="{place + 13}">{html.escape(after)}</text>'
        )
    if limit is not None:
        place_x = axis.at(limit)
        parts.append(
            f'<line x1="{place_x:.1f}" x2="{place_x:.1f}" y1="{_TOP - 4}" y2="{height - 12}" stroke="{_LIMIT}" stroke-dasharray="5 4"/>'
        )
    return "".join(parts) + "</svg>"


def stacks(rows: Sequence[tuple[str, Mapping[str, float]]], *, title: str, unit: str, width: int = 760) -> str:
    """A bar for each label, made of named parts; the parts' names and colours stand below."""
    names = sorted({name for _, parts in rows for name in parts}, key=lambda name: -sum(p.get(name, 0.0) for _, p in rows))
    height = _TOP + len(rows) * 26 + 30 + 18 * math.ceil(len(names) / 5)
    drawn = _open(width, height, title)
    most = max((sum(parts.values()) for _, parts in rows), default=0.0)
    if most <= 0:
        return drawn[0] + f'<text x="8" y="{_TOP + 14}">nothing to draw</text></svg>'
    start = min(330.0, max(60.0, 16 + 7.4 * max(len(label) for label, _ in rows)))
    scale = (width - start - 110) / most
    for n, (label, parts) in enumerate(rows):
        place, at = _TOP + n * 26, start
        drawn.append(f'<text x="8" y="{place + 13}">{html.escape(label)}</text>')
        for name in names:
            value = parts.get(name, 0.0)
            if value <= 0:
                continue
            colour = COLOURS[names.index(name) % len(COLOURS)]
            drawn.append(
                f'<rect x="{at:.1f}" y="{place}" width="{value * scale:.2f}" height="18" fill="{colour}">'
                f"<title>{html.escape(name)}: {number(value)} {html.escape(unit)}</title></rect>"
            )
            at += value * scale
        drawn.append(f'<text x="{at + 6:.1f}" y="{place + 13}">{number(sum(parts.values()))} {html.escape(unit)}</text>')
    below = _TOP + len(rows) * 26 + 18
    for n, name in enumerate(names):
        across, down = 8 + (n % 5) * (width - 16) / 5, below + n // 5 * 18
        colour = COLOURS[n % len(COLOURS)]
        drawn.append(
            f'<rect x="{across:.0f}" y="{down - 10}" width="11" height="11" fill="{colour}"/>'
            f'<text x="{across + 16:.0f}" y="{down}">{html.escape(name)}</text>'
        )
    return "".join(drawn) + "</svg>"
