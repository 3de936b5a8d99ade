"""Tables and comparisons over lines that were written by hand."""

import json

import pytest
from click.testing import CliRunner

from iems.capacity.constants import measured
from iems.cli.perf import perf
from iems.perf import measure, suite

HEADER = {
    "run": "2026-11-24T08:00:00Z", "version": "0.1.0", "flushes_per_s": 4000.0, "loopback_mb_per_s": 3000.0, "repeats": 3,
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
