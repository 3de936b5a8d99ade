"""`iemsctl bayes` as scripts use it, and learners that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from iems.bayes import Filter
from iems.bayes.side import Side
from tests.support.bayesmail import messages

TOP = Path(__file__).parents[2]


def ctl(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "iems.cli.iemsctl", "bayes", *map(str, words)], capture_output=True, text=True,
                          check=False, timeout=60, cwd=TOP)  # fmt: skip
    assert done.returncode == code, (words, done.stdout, done.stderr)
    return done


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    for name, spam, seed, count in (("good", False, 1, 60), ("spam", True, 1, 60), ("more", True, 2, 30)):
        paths = []
        for number, content in enumerate(messages(count, spam, seed)):
            path = tmp_path / f"{name}-{number}.eml"
            path.write_bytes(content)
            paths.append(f"{path}\n")
        (tmp_path / name).write_text("".join(paths))
    return tmp_path


def test_learn_score_and_the_rest(lists: Path) -> None:
    folder = lists / "deep" / "filter"
    assert ctl("score", folder, f"@{lists / 'good'}").stdout.startswith("0.500000000000 unsure ")
    assert "until both" in ctl("learn", folder, "--good", f"@{lists / 'good'}").stdout
    said = json.loads(ctl("learn", folder, "--spam", f"@{lists / 'spam'}", "--json").stdout)
    assert said["given"] == 60 and said["now"]["spam"] >= 50
    rows = [line.split(" ", 2) for line in ctl("score", folder, f"@{lists / 'more'}").stdout.splitlines()]
    assert len(rows) == 30 and all(0.5 < float(score) < 1 and len(score) == 14 for score, _, _ in rows)
    assert {verdict for _, verdict, _ in rows} <= {"spam", "unsure"}
    assert [path for _, _, path in rows] == (lists / "more").read_text().splitlines()
    assert "subject:" in ctl("score", folder, f"@{lists / 'more'}", "--explain", 40).stdout
    assert "60 known already" in ctl("learn", folder, "--good", f"@{lists / 'good'}").stdout or json.loads(
        ctl("stats", folder, "--json").stdout)["good_learnt"] > 0  # fmt: skip
    (lists / "dump").write_text(ctl("export", folder).stdout)
    ctl("import", lists / "copy", lists / "dump")
    assert "--replace" in ctl("import", lists / "copy", lists / "dump", code=1).stderr
    assert ctl("score", lists / "copy", f"@{lists / 'more'}").stdout == ctl("score", folder, f"@{lists / 'more'}").stdout
    ctl("reset", folder)
    assert json.loads(ctl("stats", folder, "--json").stdout)["spam_learnt"] == 0
    assert "nothing to undo" in ctl("undo", folder, code=1).stderr
    ctl("prior", "build", lists / "prior", "--good", f"@{lists / 'good'}", "--spam", f"@{lists / 'spam'}")
    row = ctl("score", folder, f"@{lists / 'more'}", "--prior", lists / "prior").stdout.split()
    assert float(row[0]) > 0.5
    assert "no whole prior" in ctl("score", folder, f"@{lists / 'more'}", "--prior", lists / "dump", code=1).stderr


def test_a_file_that_is_missing_is_one_line_and_the_rest_is_done(lists: Path) -> None:
    (lists / "holed").write_text("/nonexistent/mail\n\n" + (lists / "good").read_text())
    folder = lists / "filter"
    for words in (("learn", folder, "--good", f"@{lists / 'holed'}"), ("score", folder, f"@{lists / 'holed'}")):
        done = ctl(*words, code=1)
        assert done.stderr.count("/nonexistent/mail") == 1 and "1 of 61" in done.stderr
        assert "60" in done.stdout or done.stdout.count("\n") == 60
    assert "nolist" in ctl("score", folder, f"@{lists / 'nolist'}", code=1).stderr


KILLED = """
import os, signal, sys
from iems.bayes import side, trainer
from tests.support.bayesmail import messages
stop, seen = int(sys.argv[2]), 0
def counted(function):
    def wrapper(*arguments, **named):
        global seen
        seen += 1
        if seen == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return wrapper
os.replace, os.fsync = counted(os.replace), counted(os.fsync)
trainer.Record.octets = counted(trainer.Record.octets)
with trainer.Trainer(sys.argv[1]) as t:
    for spam in (False, True):
        given = messages(20, spam, 1)
        list(t.learn_each(given, spam, 20))
"""


def test_a_learner_killed_at_any_step_leaves_whole_tables_and_learning_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "filter"
    killed = 0
    for stop in range(1, 90, 16):
        done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(stop)], cwd=TOP, check=False, capture_output=True,
                              env=os.environ | {"PYTHONPATH": str(TOP)}, timeout=60)  # fmt: skip
        killed += done.returncode == -signal.SIGKILL
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        assert 0 < Filter(folder).score(messages(1, True, 2)[0]).score < 1
    assert killed
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), "0"], cwd=TOP, check=False, env=os.environ | {"PYTHONPATH": str(TOP)},
                          timeout=60)  # fmt: skip
    assert done.returncode == 0
    for name, spam in (("good", False), ("spam", True)):
        side = Side.read((folder / name).read_bytes(), writable=True)
        assert side.messages == len(side.digests) > 0
        assert all((Filter(folder).score(one).score > 0.5) == spam for one in messages(20, spam, 2))


def test_two_learners_at_once_lose_nothing(lists: Path) -> None:
    folder = lists / "filter"
    ctl("learn", folder, "--good", f"@{lists / 'good'}", "--spam", f"@{lists / 'spam'}")
    before = json.loads(ctl("stats", folder, "--json").stdout)
    running = []
    for number in range(3):
        path = lists / f"new-{number}"
        path.write_bytes(f"Subject: novel{number} thing{number}\n\n{' '.join(f'unheard{number}x{n}' for n in range(50))}\n".encode())
        running.append(subprocess.Popen([sys.executable, "-m", "iems.cli.iemsctl", "bayes", "learn", str(folder), "--spam", str(path)], cwd=TOP,
                                        stdout=subprocess.DEVNULL))  # fmt: skip
    assert [one.wait(60) for one in running] == [0, 0, 0]
    after = json.loads(ctl("stats", folder, "--json").stdout)
    assert after["spam_learnt"] == before["spam_learnt"] + 3
