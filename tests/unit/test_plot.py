"""Charts: well formed, complete, and safe with whatever text and numbers come in."""

import math
import xml.etree.ElementTree as ElementTree

import pytest

from iems import plot


def parse(svg):
    return ElementTree.fromstring(plot.standalone(svg))


def texts(svg):
    return ["".join(e.itertext()) for e in parse(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_lines_show_every_series_and_both_axes():
    svg = plot.lines({"a<b": [(1, 10), (100, 1000)], "c": [(10, 100)]}, title="T & U", x="sessions", y="per s", log_x=True, log_y=True)
    shown = texts(svg)
    assert {"T & U", "a<b", "c", "sessions", "per s"} <= set(shown)
    assert svg.count("<polyline") == 2 and "http" not in svg


def test_points_that_cannot_be_drawn_are_left_out():
    svg = plot.lines({"a": [(0, 1), (1, math.nan), (2, 5)], "b": [(0, 0)]}, title="t", x="x", y="y", log_x=True, log_y=True)
    assert svg.count("<polyline") == 1 and "nan" not in svg
    assert "nothing to draw" in plot.lines({}, title="t", x="x", y="y")
    assert "nothing to draw" in plot.lines({"a": [(math.inf, 1)]}, title="t", x="x", y="y")


@pytest.mark.parametrize("points", [[(5, 7)], [(5, 7), (5, 7)], [(0, 0), (1, 0)], [(1e-9, 1e12), (1e9, 1e-12)]])
@pytest.mark.parametrize("log", [True, False])
def test_degenerate_ranges_stay_on_the_canvas(points, log):
    svg = plot.lines({"a": points}, title="t", x="x", y="y", log_x=log, log_y=log, limit=3)
    for line in parse(svg).iter("{http://www.w3.org/2000/svg}polyline"):
        for pair in line.attrib["points"].split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= 760 and 0 <= y <= 320


def test_bars_and_stacks():
    svg = plot.bars([("one", 5, "five"), ("none", 0, "zero")], title="t", behind=[9, 0], limit=4)
    assert svg.count("<rect") == 2 and {"one", "five", "zero"} <= set(texts(svg))
    assert "nothing to draw" in plot.bars([("a", 0, "")], title="t")
    assert "nothing to draw" in plot.bars([], title="t")
    stacked = plot.stacks([("x", {"smtpd": 3.0, "lmda": 1.0}), ("y", {"smtpd": 2.0})], title="t", unit="us")
    assert stacked.count("<rect") == 3 + 2 and "4 us" in texts(stacked)
    assert "nothing to draw" in plot.stacks([("x", {})], title="t", unit="us")
    parse(plot.bars([("a", 1, "1"), ("b", 1000, "k")], title="t", log=True, limit=1.0))


def test_numbers():
    assert [plot.number(v) for v in (0, 0.0312, 7, 150, 2_500, 12_000, 3.2e6, 5e9)] == [
        "0", "0.0312", "7", "150", "2,500", "12 k", "3.2 M", "5 G",
    ]  # fmt: skip
