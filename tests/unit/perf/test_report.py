"""The page of a run: complete, self-contained, honest about noise and bends."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from iems.cli.perf import perf
from iems.perf import measure, report

HEADER = {
    "run": "2026-11-24T08:00:00Z", "version": "0.1.0", "flushes_per_s": 4000.0, "loopback_mb_per_s": 3000.0, "write_mb_per_s": 300.0,
    "repeats": 3, "run_s": 3.0, "peers": {"postfix": "3.7.11"},
    "machine": {"cpu": "X", "cores": 2, "memory_octets": 24e9, "kernel": "6.18", "filesystem": "ext4", "python": "3.11"},
}  # fmt: skip


def figure(value):
    return [value, value * 0.9, value * 1.1]


def accept(octets, sessions, rate, **more):
    return {
        "rig": "smtp_accept", "case": f"{octets}x{sessions}", "octets": octets, "sessions": sessions, "per_s": figure(rate),
        "mb_per_min": figure(rate * octets * 60 / 1e6), "cpu_us": figure(1e6 / rate), "other_cores": figure(0.1),
        "cpu_us_by_role": {"smtpd": 90.0, "preprocessor": 30.0, "janitor": 0.1},
        "latency_ms": [0.1 * (n + 1) for n in range(len(measure.PERCENTILES))],
    } | more  # fmt: skip


RECORDS = [
    HEADER,
    accept(4096, 1, 1000.0),
    accept(4096, 50, 9000.0),
    accept(4096, 50, 1000.0, peer="postfix"),
    {"rig": "smtp_accept", "case": "4096x50", "versus": "postfix", "ratios": {"per_s": [9.0, 8.0, 10.0], "cpu_us": [8.0, 7.0, 9.0]}},
    accept(250_000, 10, 600.0, other_cores=figure(1.2)),
    {"rig": "relay", "case": "4096", "failed": "RuntimeError: <no>"},
    {"rig": "memory", "case": "plain 200", "connections": 500, "octets_each": figure(7300.0)},
    *({"rig": "grow_mailbox", "case": f"{n} messages", "messages": n, "cpu_us": figure(50.0), "select_ms": figure(n / 1000)}
      for n in (100, 1000, 10_000)),
    *({"rig": "mixed_day", "case": f"at {rate}", "site": "large-office", "offered_per_s": rate, "p50_ms": figure(rate / 100),
       "p99_ms": figure(rate / 10)} for rate in (500.0, 900.0)),
]  # fmt: skip


def test_page_holds_pictures_table_and_notes():
    text = report.page(RECORDS)
    assert "http" not in text and "<script" not in text and "src=" not in text
    assert text.count("<svg") == len(report.charts(RECORDS)) == 10
    assert "&lt;no&gt;" in text and "1 of 10 records" in text
    assert "grow_mailbox: select_ms goes from 0.1 to 10" in text and "cpu_us goes" not in text
    assert "postfix" in text


def test_distance_to_the_limits():
    found = {case: (percent, what) for case, percent, what in report.limits(RECORDS)}
    assert found["smtp_accept 4096x1"] == (pytest.approx(25), "of 4,000 flushes/s")
    assert found["smtp_accept 250000x10"] == (pytest.approx(50), "of 300 MB/s written")
    assert len(found) == 2


def test_a_run_of_nothing_has_a_page():
    assert "All figures" in report.page([HEADER]) and report.charts([HEADER]) == {}
    assert list(report.limits([])) == []


def test_command_writes_page_and_pictures(tmp_path: Path):
    file = tmp_path / "perf.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    result = CliRunner().invoke(perf, ["report", str(file), "--svg", str(tmp_path / "img"), "--html", str(tmp_path / "p.html")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "p.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "img/perf-concurrency.svg").read_text().startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert CliRunner().invoke(perf, ["report", str(file)]).exit_code == 0 and (tmp_path / "perf.html").exists()
