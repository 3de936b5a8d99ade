"""`iemsctl bayes`: teach and ask a filter in a folder. No home and no server is needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from iems.cli.common import Failed, Group, json_option, note, say, say_json
from iems.log import printable

if TYPE_CHECKING:
    from iems.bayes import Prior

folder_argument = click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
prior_option = click.option(
    "--prior", "prior_path", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="A site's prior (`bayes prior build`)."
)


class Messages:
    """The messages that arguments name: `@LIST` a file that names files, one a line; else a message. missing: of them."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.paths: list[str] = []
        self.missing = 0
        for name in names:
            if name.startswith("@"):
                with open(name[1:], encoding="utf-8", errors="surrogateescape") as lines:
                    self.paths += [path for line in lines if (path := line.rstrip("\r\n"))]
            else:
                self.paths.append(name)

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        for path in self.paths:
            try:
                with open(path, "rb") as file:
                    content = file.read()
            except (OSError, ValueError) as exc:
                self.missing += 1
                note(f"iemsctl: {printable(path)}: {getattr(exc, 'strerror', None) or exc}")
                continue
            yield path, content


def _prior(path: Path | None) -> Prior | None:
    from iems.bayes import Prior

    return Prior(path) if path else None


def _done(messages: Messages) -> None:
    if messages.missing:
        raise Failed(f"{messages.missing} of {len(messages.paths)} files could not be read")


@click.group("bayes", cls=Group)
def bayes() -> None:
    """Learn good mail and spam, and tell them apart."""


@bayes.command()
@folder_argument
@click.option("--good", multiple=True, metavar="@LIST", help="Messages that are good: @LIST names files, one a line.")
@click.option("--spam", multiple=True, metavar="@LIST", help="Messages that are spam.")
@prior_option
@json_option
def learn(folder: Path, good: tuple[str, ...], spam: tuple[str, ...], prior_path: Path | None, as_json: bool) -> None:
    """Learn messages into the filter in DIR, which is made if it isn't there.

    What the filter knows well enough is not learnt; what was learnt as the other kind is taken back first.
    """
    from iems.bayes import Trainer

    if not good and not spam:
        raise click.UsageError("give --good @LIST or --spam @LIST")
    given = [(Messages(good), False), (Messages(spam), True)]
    counts: dict[str, int] = {}
    with Trainer(folder, _prior(prior_path)) as trainer:
        for damaged in trainer.damaged:
            note(f"iemsctl: {damaged}: put aside; the filter starts anew")
        for messages, is_spam in given:
            for outcome in trainer.learn_each((content for _, content in messages), is_spam, len(messages.paths)):
                counts[outcome.value] = counts.get(outcome.value, 0) + 1
        now = trainer.now()
    if as_json:
        say_json({"given": sum(counts.values()), **counts, "now": now})
    else:
        did = ", ".join(f"{number} {_SAID[outcome]}" for outcome, number in sorted(counts.items()))
        say(f"{sum(counts.values())} given: {did or 'none'}")
        if counts.get("waits"):
            say("Nothing is told apart until both good mail and spam have been given.")
        else:
            say("They would now be: " + ", ".join(f"{number} {verdict}" for verdict, number in now.items()))
    for messages, _ in given:
        _done(messages)


_SAID = {
    "learnt": "learnt",
    "clear": "clear already",
    "known": "known already",
    "moved": "taken back from the other kind and learnt",
    "waits": "kept until there is mail of the other kind",
}


@bayes.command()
@folder_argument
@click.argument("names", metavar="@LIST", nargs=-1, required=True)
@prior_option
@click.option("--explain", type=click.IntRange(0, 150), default=0, metavar="N", help="Show the N strongest features of each message too.")
def score(folder: Path, names: tuple[str, ...], prior_path: Path | None, explain: int) -> None:
    """Print SCORE VERDICT PATH for each message; SCORE is between 0 (good) and 1 (spam), 0.5 undecided."""
    from iems.bayes import Filter

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    judge = Filter(folder, _prior(prior_path))
    messages = Messages(names)
    write = sys.stdout.write
    sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    for path, content in messages:
        found = judge.score(content, explain)
        write(f"{found.score:.12f} {found.verdict} {path}\n")
        for text, odds in found.evidence:
            write(f"  {odds:+.2f} {printable(text)}\n")
    sys.stdout.flush()
    _done(messages)


@bayes.command()
@folder_argument
@json_option
def stats(folder: Path, as_json: bool) -> None:
    """Show what the filter in DIR has learnt, and what it takes."""
    from iems.bayes.statistics import statistics

    figures = statistics(folder)
    if as_json:
        say_json(figures)
        return
    for key, value in figures.items():
        say(f"{key}: {value}")


@bayes.command("export")
@folder_argument
@click.argument("file", type=click.File("wb"), default="-")
def export_command(folder: Path, file: BinaryIO) -> None:
    """Write the filter in DIR to FILE as text."""
    from iems.bayes.exchange import export

    for line in export(folder):
        file.write(line + b"\n")


@bayes.command("import")
@folder_argument
@click.argument("file", type=click.File("rb"))
@click.option("--replace", is_flag=True, help="In the place of what DIR has learnt.")
def import_command(folder: Path, file: BinaryIO, replace: bool) -> None:
    """Read into DIR what `export` wrote."""
    from iems.bayes.exchange import load

    load(folder, file, replace)


@bayes.command("reset")
@folder_argument
def reset_command(folder: Path) -> None:
    """Forget all that the filter in DIR has learnt."""
    from iems.bayes.trainer import reset

    reset(folder)


@bayes.command()
@folder_argument
def undo(folder: Path) -> None:
    """Take back what the last command learnt into DIR; once more brings it back."""
    from iems.bayes import Trainer

    with Trainer(folder) as trainer:
        count = trainer.undo()
    say(f"{count} messages taken back")


@bayes.group(cls=Group)
def prior() -> None:
    """What a site knows before a user has taught his filter anything."""


@prior.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--good", multiple=True, required=True, metavar="@LIST", help="Messages that are good.")
@click.option("--spam", multiple=True, required=True, metavar="@LIST", help="Messages that are spam.")
def build(file: Path, good: tuple[str, ...], spam: tuple[str, ...]) -> None:
    """Make the prior FILE of good mail and spam."""
    import tempfile

    from iems.bayes import Trainer
    from iems.bayes.prior import write

    given = [(Messages(good), False), (Messages(spam), True)]
    with tempfile.TemporaryDirectory(dir=file.absolute().parent) as folder, Trainer(Path(folder)) as trainer:
        for messages, is_spam in given:
            for _ in trainer.learn_each((content for _, content in messages), is_spam, len(messages.paths)):
                pass
        learnt = [side.messages for side in trainer.sides]
        if not all(learnt):
            raise Failed("a prior needs good mail and spam")
        write(file, *trainer.sides)
    say(f"{file}: {learnt[0]} good and {learnt[1]} spam messages learnt, {file.stat().st_size} octets")
    for messages, _ in given:
        _done(messages)
