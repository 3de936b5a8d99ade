"""`iemsctl perf`: measure this machine, show and compare what was measured."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from pathlib import Path
from types import FrameType

import click

from iems import plot
from iems.perf import peers, report, rigs, spine, suite
from iems.perf.measure import Options


@click.group("perf")
def perf() -> None:
    """Measure how fast IEMS is on this machine.

    Each rig starts a private server on loopback, loads it, and stops it; no home of yours is touched.
    """


@perf.command("list")
def list_rigs() -> None:
    """List the rigs."""
    for name in rigs.NAMES:
        click.echo(f"{name:<18}{rigs.rig(name).TITLE}")


@perf.command("run")
@click.argument("names", nargs=-1, metavar="[RIG]...")
@click.option("--quick", "depth", flag_value="quick", help="One short repetition: shows that all runs.")
@click.option("--full", "depth", flag_value="full", help="Five long repetitions, growth up to a million messages.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Write perf.jsonl and perf.html into this folder too.")
@click.option("--disk", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder on the disk to measure.")
@click.option("--repeats", type=click.IntRange(1, 100), help="Repetitions of each case.")
@click.option("--compare", "against", metavar="PEER[=PROGRAM],...", help="Run postfix, dovecot, exim beside ours, in turn.")
@click.option("--json", "lines", is_flag=True, help="JSON lines instead of a table.")
def run_rigs(
    names: tuple[str, ...], depth: str | None, out: Path | None, disk: Path | None, repeats: int | None, against: str | None,
    lines: bool,
) -> None:  # fmt: skip
    """Run rigs (all by default) and print what they measured.

    perf.jsonl can be given to `iemsctl capacity --measured`, perf.html opens in a browser. With --compare, rigs that a peer can play are
    run against private instances of the mail servers installed here, repetition by repetition in turn; ratios above 1 are in our favour.
    """
    unknown = [name for name in names if name not in rigs.NAMES]
    if unknown:
        click.echo(f"perf: no rig is named {unknown[0]} (iemsctl perf list)", err=True)
        sys.exit(2)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)  # also where a shell that put us into the background had the first ignored
    options = Options(disk)
    if depth == "quick":
        options = Options.quick(disk)
    elif depth == "full":
        options = Options.full(disk)
    if repeats is not None:
        options = dataclasses.replace(options, repeats=repeats)
    if against is not None:
        options = dataclasses.replace(options, peers=_peers(against))
        names = names or tuple(name for name in rigs.NAMES if hasattr(rigs.rig(name), "PEERS") or name == "mime")
    file = None
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / "perf.jsonl").open("w", encoding="utf-8")
    records = []
    for record in suite.run(names or rigs.NAMES, options, lambda text: click.echo(text, err=True)):
        records.append(record)
        if file is not None:
            file.write(json.dumps(record) + "\n")
            file.flush()
        if lines:
            click.echo(json.dumps(record))
    if file is not None:
        file.close()
    if out is not None:
        (out / "perf.html").write_text(report.page(records), "utf-8")
    if not lines:
        click.echo(suite.table(records))
    if any("failed" in record for record in records):
        sys.exit(1)


def _leave(number: int, frame: FrameType | None) -> None:
    """The end was asked for: on the way out the servers that were started are stopped, and their homes go."""
    sys.exit(128 + number)


def _peers(against: str) -> dict[str, str | None]:
    """The peers that can be run; those that can't are named, and none at all is an error."""
    try:
        wanted = peers.parse(against)
    except ValueError as error:
        click.echo(f"perf: {error}", err=True)
        sys.exit(2)
    missing = peers.missing(wanted)
    for name, why in missing.items():
        click.echo(f"perf: without {name}: {why}", err=True)
    found = {name: program for name, program in wanted.items() if name not in missing}
    if not found:
        sys.exit(1)
    return found


@perf.command("report")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Where the page goes (FILE with .html).")
@click.option("--svg", "pictures", type=click.Path(file_okay=False, path_type=Path), help="Write the pictures into this folder.")
@click.option("--spine", "table", is_flag=True, help="Print the table of aims, in Markdown.")
def report_run(file: Path, page: Path | None, pictures: Path | None, table: bool) -> None:
    """Make the page, the pictures or the table of aims of a run that is there."""
    records = _read(file)
    if table:
        click.echo(spine.table(records))
    if page is not None or (pictures is None and not table):
        place = page or file.with_suffix(".html")
        place.write_text(report.page(records), "utf-8")
        click.echo(str(place))
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        for name, svg in report.charts(records).items():
            place = pictures / f"perf-{name}.svg"
            place.write_text(plot.standalone(svg), "utf-8")
            click.echo(str(place))


@perf.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def show(file: Path) -> None:
    """Show a run as a table."""
    click.echo(suite.table(_read(file)))


@perf.command()
@click.argument("before", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("after", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "lines", is_flag=True, help="JSON lines instead of a table.")
def compare(before: Path, after: Path, lines: bool) -> None:
    """Tell what changed between two runs, and whether it is beyond the noise."""
    for change in suite.compare(_read(before), _read(after)):
        if lines:
            click.echo(json.dumps(change))
        else:
            click.echo(
                f"{change['rig']:<17}{change['case']:<28}{change['who']:<16}{change['figure']:<16}{change['before']:>14,.1f}{change['after']:>14,.1f}"
                f"{change['ratio']:>8.2f}x  {'CHANGED' if change['beyond_noise'] else 'noise'}"
            )


def _read(file: Path) -> list[dict[str, object]]:
    try:
        return suite.read(file)
    except ValueError as error:
        click.echo(f"perf: {error}", err=True)
        sys.exit(2)
