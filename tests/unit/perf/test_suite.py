"""Tables and comparisons over lines that were written by hand."""

import contextlib
import json
import types

import pytest
from click.testing import CliRunner

from iems.capacity.constants import measured
from iems.cli.perf import perf
from iems.perf import measure, peers, rigs, suite

HEADER = {
    "run": "2026-11-24T08:00:00Z", "version": "0.1.0", "flushes_per_s": 4000.0, "loopback_mb_per_s": 3000.0, "write_mb_per_s": 300.0, "repeats": 3,
    "machine": {"cpu": "X", "cores": 2, "memory_octets": 24e9, "kernel": "6.18", "filesystem": "ext4"},
}  # fmt: skip


def record(cpu, module=None):
    made = {"rig": "smtp_accept", "case": "4096x50", "cpu_us": [cpu, cpu * 0.95, cpu * 1.05], "per_s": [1e6 / cpu] * 3}
    if module:
        made |= {"module": module, "mb_per_min": 100.0, "spread_mb_per_min": [100.0, 90.0, 110.0]}
    return made


@pytest.fixture
def runs(tmp_path):
    def write(name, *records):
        file = tmp_path / name
        file.write_text("".join(json.dumps(r) + "\n" for r in (HEADER, *records)))
        return file

    return write


def test_table_and_compare(runs):
    old, new = runs("old", record(100), {"rig": "relay", "failed": "no"}), runs("new", record(60))
    shown = CliRunner().invoke(perf, ["show", str(old)])
    assert "4096x50" in shown.output and "failed: no" in shown.output and "100.0" in shown.output
    changes = suite.compare(suite.read(old), suite.read(new))
    cpu = next(c for c in changes if c["figure"] == "cpu_us")
    assert cpu["ratio"] == pytest.approx(0.6) and cpu["beyond_noise"]
    same = suite.compare(suite.read(old), suite.read(runs("again", record(104))))
    assert not any(c["beyond_noise"] for c in same)
    assert "CHANGED" in CliRunner().invoke(perf, ["compare", str(old), str(new)]).output


def test_lines_feed_the_calculator(runs):
    own = measured(runs("run", record(100, "smtpd")).read_text().splitlines())
    assert own.smtpd_mb_per_min == 100.0


def test_bad_files_are_refused(tmp_path):
    wrong = tmp_path / "x"
    wrong.write_text('{"a": 1}\n')
    assert CliRunner().invoke(perf, ["show", str(wrong)]).exit_code == 2
    assert CliRunner().invoke(perf, ["run", "nonsense"]).exit_code == 2


def test_figures_are_median_and_range():
    assert measure.figures([{"a": 3.0}, {"a": 1.0}, {"a": 2.0}]) == {"a": (2.0, 1.0, 3.0)}
    with pytest.raises(RuntimeError, match="no message"):
        measure.repetition([], lambda mark: {"done": 0, "seconds": 1, "complaint": "", "latency_s": [], "octets": 0, "errors": 0})


class FakeServer:
    """Spends a second of CPU for each look at it."""

    def __init__(self):
        self.seconds = 0.0

    def port(self, name):
        return 1

    def users(self):
        return []

    def cpu_s(self):
        self.seconds += 1
        return self.seconds

    def cpu_by_role(self):
        return {"smtpd": self.seconds * 0.5}

    def waiting(self):
        return 0


def test_cpu_is_told_by_role_and_what_has_ended_is_named():
    reading = measure.counted([FakeServer()], 1000, 4096, lambda: None)
    assert reading["cpu_us"] == pytest.approx(1000)
    assert reading["cpu_us_by_role"] == {"smtpd": pytest.approx(500), "ended processes": pytest.approx(500)}
    assert reading["mb_per_min"] == pytest.approx(reading["per_s"] * 4096 * 60 / 1e6)


def test_latencies_are_pooled_and_roles_are_medians():
    made = measure.figures(
        [measure.latencies([0.001, 0.003]) | {"cpu_us_by_role": {"a": v, "b": 1.0}} for v in (1.0, 5.0, 3.0)]
    )
    assert made["latency_ms"][0] == 1 and made["latency_ms"][-1] == 3 and len(made["latency_ms"]) == len(measure.PERCENTILES)
    assert made["cpu_us_by_role"] == {"a": 3.0, "b": 1.0}
    assert made["p50_ms"] == pytest.approx((2, 2, 2))
    assert measure.latencies([]) == {}


def rig_of(sides, calls):
    @contextlib.contextmanager
    def side(options, case, who):
        if sides[who] is None:
            raise RuntimeError("no such luck")

        def once():
            calls.append(who)
            return {"per_s": float(next(sides[who])), "cpu_us": 10.0}

        yield once

    return types.SimpleNamespace(
        NAME="smtp_accept", PEERS={"postfix": ("postfix",), "exim": ("exim",), "x": ("dovecot",)}, side=side,
        cases=lambda options: [measure.Case("one", {"octets": 5}, "smtpd")],
    )  # fmt: skip


def test_sides_take_turns_and_ratios_are_of_pairs():
    calls = []
    module = rig_of({"iems": iter((20, 90, 60)), "postfix": iter((10, 30, 60)), "exim": None}, calls)
    records = list(rigs.run(module, measure.Options(peers={"postfix": None, "exim": None})))
    assert calls == ["iems", "postfix", "postfix", "iems", "iems", "postfix"]
    ours, theirs, versus, failed = records
    assert ours["module"] == "smtpd" and ours["per_s"] == (60, 20, 90) and ours["octets"] == 5
    assert theirs["peer"] == "postfix" and "module" not in theirs
    assert versus["ratios"] == {"per_s": (2, 1, 3), "cpu_us": (1, 1, 1)}
    assert failed == {"rig": "smtp_accept", "case": "one", "peer": "exim", "failed": "RuntimeError: no such luck"}
    shown = suite.table([HEADER, *records])
    assert "per_s 2.00x (1.00-3.00)" in shown and "no such luck" in shown


def test_without_peers_we_play_alone():
    calls = []
    records = list(rigs.run(rig_of({"iems": iter((1, 2, 3))}, calls), measure.Options()))
    assert calls == ["iems"] * 3 and len(records) == 1


def test_ours_may_not_fail():
    with pytest.raises(RuntimeError):
        list(rigs.run(rig_of({"iems": None}, []), measure.Options()))


def test_every_rig_has_its_form():
    for name in rigs.NAMES:
        module = rigs.rig(name)
        assert name == module.NAME and module.TITLE and module.__doc__
        assert hasattr(module, "side") == hasattr(module, "cases") != hasattr(module, "run")
        for needs in getattr(module, "PEERS", {}).values():
            assert set(needs) <= set(peers.KNOWN)
    with pytest.raises(KeyError):
        rigs.rig("nonsense")
