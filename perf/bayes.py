"""How well and how fast the Bayesian filter tells a corpus apart, beside bogofilter if it is installed.

    python perf/bayes.py CORPUS [--seeds 1,2,3,4,5] [--train 0.5] [--prior 0.5] [--no-bogofilter] [--growth FILE.svg]

CORPUS has the folders `ham` and `spam`, a file for each message. For each seed the corpus is split at random; both
filters learn the one part (good first, then spam, by their commands) and score the other:

- 1-AUC: the chance that a good message scores above a spam one.
- FN at FP 0.1 %: spam passed if the threshold lets one good message of a thousand above it.
- accuracy: on the right side of 0.5. unsure: between our two thresholds. database: octets of the folder over octets learnt.
- CPU a message: user and system time of the scoring command over its messages; start: the same of a command that scores none.

Then the stream: all messages in the order of their Date field, each judged, then learnt, from nothing. And once more on a site's prior: the
oldest part of the corpus (--prior) is what the site knows, made by `bayes prior build`; a user who has taught nothing gets the rest.
--growth draws the size of the database by the mail given, beside the paper's rule (half of the good mail, a quarter of the spam).
"""

from __future__ import annotations

import argparse
import email.utils
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

IEMSCTL = [sys.executable, "-m", "iems.cli.iemsctl", "bayes"]


def auc(scores: np.ndarray, spam: np.ndarray) -> float:
    """Area under the ROC curve; equal scores count half."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m = int(spam.sum()), int((~spam).sum())
    return float((ranks[spam].sum() - n * (n + 1) / 2) / (n * m))


def passed(scores: np.ndarray, spam: np.ndarray, rate: float = 0.001) -> float:
    """Share of spam that is not above the threshold at which `rate` of the good messages are."""
    good = np.sort(scores[~spam])[::-1]
    return float((scores[spam] <= good[int(rate * len(good))]).mean())


def run(command: list[str], text: str = "") -> tuple[str, float, float]:
    """Output, CPU seconds and seconds of a command."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout.decode("utf-8", "replace"), cpu, time.monotonic() - began


def size(folder: Path) -> int:
    """Octets of the files in a folder."""
    return sum(entry.stat().st_size for entry in folder.iterdir())


def ours(folder: Path, good: list[Path], spam: list[Path], test: list[Path]) -> dict[str, float | np.ndarray]:
    """Learn and score with iemsctl."""
    lists = folder.parent
    for name, paths in (("good", good), ("spam", spam), ("test", test), ("none", [])):
        (lists / name).write_text("".join(f"{path}\n" for path in paths))
    cpu = wall = 0.0
    for name in ("good", "spam"):
        _, c, w = run([*IEMSCTL, "learn", str(folder), f"--{name}", f"@{lists / name}"])
        cpu, wall = cpu + c, wall + w
    _, start, _ = run([*IEMSCTL, "score", str(folder), f"@{lists / 'none'}"])
    out, scored, _ = run([*IEMSCTL, "score", str(folder), f"@{lists / 'test'}"])
    rows = [line.split(" ", 2) for line in out.splitlines()]
    return {
        "scores": np.array([float(row[0]) for row in rows]),
        "unsure": sum(row[1] == "unsure" for row in rows) / len(rows),
        "learn_us": cpu / (len(good) + len(spam)) * 1e6,
        "score_us": (scored - start) / len(test) * 1e6,
        "start_ms": start * 1e3,
        "octets": size(folder),
    }


def theirs(folder: Path, good: list[Path], spam: list[Path], test: list[Path]) -> dict[str, float | np.ndarray]:
    """Learn and score with bogofilter, many files a process."""
    folder.mkdir()
    cpu = 0.0
    for flag, paths in (("-n", good), ("-s", spam)):
        cpu += run(["bogofilter", "-d", str(folder), flag, "-b"], "".join(f"{path}\n" for path in paths))[1]
    _, start, _ = run(["bogofilter", "-d", str(folder), "-b", "-T"])
    out, scored, _ = run(["bogofilter", "-d", str(folder), "-b", "-T"], "".join(f"{path}\n" for path in test))
    return {
        "scores": np.array([float(line.split()[-1]) for line in out.splitlines()]),
        "unsure": 0.0,
        "learn_us": cpu / (len(good) + len(spam)) * 1e6,
        "score_us": (scored - start) / len(test) * 1e6,
        "start_ms": start * 1e3,
        "octets": size(folder),
    }


def dated(path: Path) -> float:
    """The moment of the Date field, 0 if it can't be read."""
    found = re.search(rb"^Date:[ \t]*(.*)$", path.read_bytes()[:20_000], re.M)
    try:
        return email.utils.parsedate_to_datetime(found[1].decode("latin-1").strip()).timestamp() if found else 0.0
    except (ValueError, TypeError, OverflowError):
        return 0.0


def stream(folder: Path, order: list[tuple[Path, bool]], growth: str | None, prior: Path | None = None) -> None:
    """Judge, then learn, in the order given."""
    from iems import plot
    from iems.bayes import Prior, Trainer
    from iems.bayes.filter import squeezed
    from iems.bayes.parts import sections
    from iems.bayes.trainer import _bayes

    wrong: list[tuple[int, bool]] = []
    curves: dict[str, list[tuple[float, float]]] = {"paper's rule": [], "both tables": [], "good": [], "spam": []}
    octets = [0, 0]
    with Trainer(folder, Prior(prior) if prior else None) as trainer:
        for number, (path, spam) in enumerate(order):
            content = path.read_bytes()
            odds = trainer.odds(_bayes.features(sections(content)))
            if (squeezed(odds) > 0.5) != spam:
                wrong.append((number, spam))
            trainer.learn(content, spam)
            octets[spam] += len(content)
            if growth and number % 50 == 49:
                sizes = [len(side.octets()) for side in trainer.sides]
                rule = octets[0] / 2 + octets[1] / 4
                for curve, value in zip(curves.values(), (rule, sum(sizes), *sizes), strict=True):
                    curve.append((sum(octets) / 1e6, value / 1e6))
    late = sum(number >= len(order) // 2 for number, _ in wrong)
    passed_on = sum(spam for _, spam in wrong)
    print(f"{len(order)} messages, {100 - 100 * len(wrong) / len(order):.2f} % right, "
          f"second half {100 - 100 * late / (len(order) - len(order) // 2):.2f} % "
          f"({len(wrong)} wrong: {len(wrong) - passed_on} good, {passed_on} spam)", flush=True)  # fmt: skip
    if growth:
        drawn = plot.lines(curves, title="Database by mail given", x="mail given, MB", y="MB", log_y=True)
        Path(growth).write_text(plot.standalone(drawn))


def streams(corpus: list[tuple[Path, bool]], share: float, growth: str | None) -> None:
    """The stream from nothing, and the younger part of it on a prior of the older."""
    order = sorted(corpus, key=lambda one: (dated(one[0]), one[0]))
    with tempfile.TemporaryDirectory() as folder:
        print("stream from nothing: ", end="")
        stream(Path(folder) / "db", order, growth)
    cut = int(len(order) * share)
    if not cut:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in (False, True):
            (folder / f"{kind}").write_text("".join(f"{path}\n" for path, spam in order[:cut] if spam == kind))
        run([*IEMSCTL, "prior", "build", str(folder / "prior"), "--good", f"@{folder / 'False'}", "--spam", f"@{folder / 'True'}"])
        print(f"stream on a prior of the oldest {cut}: ", end="")
        stream(folder / "db", order[cut:], None, folder / "prior")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--train", type=float, default=0.5)
    parser.add_argument("--prior", type=float, default=0.5)
    parser.add_argument("--no-bogofilter", action="store_true")
    parser.add_argument("--growth")
    options = parser.parse_args()
    corpus = sorted((path, kind == "spam") for kind in ("ham", "spam") for path in (options.corpus / kind).iterdir())
    rivals = [("iems", ours)]
    if shutil.which("bogofilter") and not options.no_bogofilter:
        rivals.append(("bogofilter", theirs))
    figures: dict[str, list[list[float]]] = {name: [] for name, _ in rivals}
    head = ("1-AUC %", "FN % at FP 0.1 %", "accuracy %", "unsure %", "database %", "score us", "learn us", "start ms")
    print("seed filter      " + "  ".join(head))
    for seed in map(int, filter(None, options.seeds.split(","))):
        order = np.random.default_rng(seed).permutation(len(corpus))
        cut = int(len(corpus) * options.train)
        train, test = [corpus[i] for i in order[:cut]], [corpus[i] for i in order[cut:]]
        good, spam = [path for path, is_spam in train if not is_spam], [path for path, is_spam in train if is_spam]
        learnt = sum(os.path.getsize(path) for path, _ in train)
        truth = np.array([is_spam for _, is_spam in test])
        for name, rival in rivals:
            with tempfile.TemporaryDirectory() as folder:
                got = rival(Path(folder) / "db", good, spam, [path for path, _ in test])
            scores = np.asarray(got["scores"])
            row = [100 - 100 * auc(scores, truth), 100 * passed(scores, truth), 100 * float(((scores > 0.5) == truth).mean()),
                   100 * float(got["unsure"]), 100 * float(got["octets"]) / learnt, float(got["score_us"]), float(got["learn_us"]),
                   float(got["start_ms"])]  # fmt: skip
            figures[name].append(row)
            show(str(seed), name, row)
    means = {name: [statistics.mean(column) for column in zip(*rows, strict=True)] for name, rows in figures.items() if rows}
    for name, row in means.items():
        show("mean", name, row)
    if len(means) == 2:
        print("ratio            " + "  ".join(f"{a / b:.2f}" if b else "-" for a, b in zip(*means.values(), strict=True)))
    streams(corpus, options.prior, options.growth)


def show(seed: str, name: str, row: list[float]) -> None:
    """A line of the table."""
    print(f"{seed:4} {name:11} " + "  ".join(f"{value:.3f}" if at < 3 else f"{value:.1f}" for at, value in enumerate(row)), flush=True)


if __name__ == "__main__":
    main()
