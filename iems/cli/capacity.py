"""`iemsctl capacity`: what a site needs, and how many users a machine carries."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from iems import plot
from iems.capacity import report
from iems.capacity.constants import Constants, measured
from iems.capacity.forecast import Forecast, as_json, forecast
from iems.capacity.paper import disagreements
from iems.capacity.simulate import STAGES, Simulation, around, simulate
from iems.capacity.site import Site, SiteError, make, parse, scenario, scenario_names
from iems.capacity.site import fields as describe_fields

_RANGE = re.compile(r"([a-z_]+)=([0-9.]+)\.\.([0-9.]+)")
#: Points of a curve.
POINTS = 25


def _site(name: str | None, file: Path | None, given: dict[str, Any]) -> tuple[Site, dict[str, Any]]:
    """The site the options ask for; options override fields of a scenario or a file."""
    if name and file:
        raise SiteError(["--file: give a scenario or a file, not both"])
    if file:
        site, paper = parse(file.read_text("utf-8"))
    elif name:
        site, paper = scenario(name)
    elif "users" in given:
        site, paper = Site(), {}
    else:
        raise SiteError(["name a scenario, or give --file or --users; scenarios: " + ", ".join(scenario_names())])
    if given:
        site = make(msgspec.structs.asdict(site) | given)
        if any(key in given for key in ("users", "messages_in", "messages_out", "size")):
            paper = {}  # the paper speaks of its own sites, not of a changed one
    return site, paper


@click.command("capacity")
@click.argument("name", required=False, metavar="[SCENARIO]", shell_complete=lambda *_: scenario_names())
@click.option("--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A site in TOML.")
@click.option("--users", type=float, help="Accounts.")
@click.option("--active", type=float, help="Users connected at once.")
@click.option("--messages-in", type=float, help="Messages each user gets a day.")
@click.option("--messages-out", type=float, help="Messages each user sends a day.")
@click.option("--size", help="Mean size of a message, such as 50K.")
@click.option("--set", "fields", multiple=True, metavar="FIELD=VALUE", help="Any field of a site; may be repeated.")
@click.option("--measured", "figures", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="This machine's own rates, as written by `iemsctl perf run`.")  # fmt: skip
@click.option("--simulate", "play", is_flag=True, help="Play the day message by message too.")
@click.option("--what-if", metavar="FIELD=A..B", help="Vary one field and show the loads.")
@click.option("--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with plots.")
@click.option("--svg", "pictures", type=click.Path(file_okay=False, path_type=Path), help="Write the plots as files into this folder.")
@click.option("--json", "as_lines", is_flag=True, help="One JSON object.")
@click.option("--fields", "show_fields", is_flag=True, help="List the fields of a site, in Markdown.")
@click.option("--list", "names", is_flag=True, help="List the scenarios.")
def capacity(
    name: str | None, file: Path | None, fields: tuple[str, ...], figures: Path | None, play: bool, what_if: str | None,
    page: Path | None, pictures: Path | None, as_lines: bool, show_fields: bool,
    names: bool, **given: Any,
) -> None:  # fmt: skip
    """Say what a site needs: load of each module, disk, memory, machines.

    SCENARIO is one of the sites of the Site Planning Guide (--list). A site of your own: --file, or --users and the rest.
    """
    if show_fields:
        click.echo("| field | default | allowed | meaning |\n|---|---|---|---|")
        for row in describe_fields():
            click.echo("| `{}` | {} | {} | {} |".format(*row))
        return
    if names:
        for known in scenario_names():
            click.echo(f"{known:<20}{scenario(known)[0].title}")
        return
    try:
        values = {k: v for k, v in given.items() if v is not None}
        values.update(_field(text) for text in fields)
        site, paper = _site(name, file, values)
        constants = measured(figures.read_text("utf-8").splitlines()) if figures else None
        field, curve_values = _vary(what_if, site)
        curve = report.vary(site, field, curve_values, constants) if what_if or page or pictures else []
        answer = _answer(site, paper, constants, curve if what_if else [], field)
        result = forecast(site, constants)
        days = _simulated(site, constants, result, answer) if play else []
    except SiteError as error:
        for problem in error.problems:
            click.echo(f"capacity: {problem}", err=True)
        sys.exit(2)
    except (ValueError, OSError) as error:
        click.echo(f"capacity: {error}", err=True)
        sys.exit(2)
    if page:
        text = report.page(result, answer["paper_disagreements"], curve, field, answer["paper_hardware"], days)
        page.write_text(text, "utf-8")
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
        for picture, svg in report.charts(result, curve, field, days).items():
            (pictures / f"capacity-{site.name}-{picture}.svg").write_text(plot.standalone(svg), "utf-8")
    if as_lines:
        click.echo(json.dumps(answer))
        return
    click.echo(report.table(result, answer["paper_disagreements"], answer["paper_hardware"]))
    if what_if:
        click.echo(f"\n  {field:<20}" + "".join(f"{module:>10}" for module in result.modules))
        for value, at in curve:
            loads = ("" if m.load_percent is None else f"{m.load_percent:.1f}" for m in at.modules.values())
            click.echo(f"  {value:<20,g}" + "".join(f"{load:>10}" for load in loads))
    if play:
        day = answer["simulation"]
        click.echo(
            f"\n  simulated: {day['messages']:,} messages, busy "
            + ", ".join(f"{k} {v:.1f} %" for k, v in day["busy_percent"].items())
            + f", delay p50 {day['delay_p50_s']:.3g} s, p99 {day['delay_p99_s']:.3g} s, longest queue {day['longest_queue']:,}"
        )
        knee = answer["knee"]
        if knee:
            click.echo(
                f"  the formulas say {knee['users']:,} users use up {knee['part']}; simulated with as many: "
                f"{knee['simulated_percent']:.1f} % ({'they agree' if knee['agrees'] else 'THEY DISAGREE'})"
            )
            for at in knee["days"]:
                click.echo(
                    f"    {at['share'] * 100:>4.0f} % of them: busy {at['busy_percent']:>6.1f} %, delay p50 {at['delay_p50_s']:>9.3g} s, "
                    f"p99 {at['delay_p99_s']:>9.3g} s"
                )


def _field(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise SiteError([f"--set {text}: must be FIELD=VALUE"])
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _vary(what_if: str | None, site: Site) -> tuple[str, list[float]]:
    """The field to vary and its values; users from a tenth to three times when nothing is asked."""
    if what_if is None:
        field, low, high = "users", max(1.0, site.users * 0.1), max(2.0, site.users * 3.0)
    else:
        match = _RANGE.fullmatch(what_if)
        if match is None:
            raise SiteError([f"--what-if {what_if}: must be FIELD=A..B, such as users=100..2000"])
        field, low, high = match[1], float(match[2]), float(match[3])
        if low >= high:
            raise SiteError([f"--what-if {what_if}: {low:g} must be below {high:g}"])
    steps = [low + (high - low) * i / (POINTS - 1) for i in range(POINTS)]
    if field in ("users", "active", "size", "relays", "stores", "cores") or field.endswith(("_sessions", "_members", "_engines")):
        steps = sorted({float(round(step)) for step in steps})
    if field == "users" and site.active is not None and what_if is None:
        steps = [step for step in steps if step >= site.active] or [float(site.users)]
    return field, steps


#: The simulated load at the predicted knee may be this far from 100 %.
AGREES_PERCENT = 3.0


def _simulated(
    site: Site, constants: Constants | None, result: Forecast, answer: dict[str, Any]
) -> list[tuple[float, Simulation]]:
    """Play the day, and days around the knee that the formulas predict; both go into the answer."""
    answer["simulation"] = msgspec.to_builtins(simulate(site, constants))
    one = result.one_machine
    if one is not None:
        users, part = one.users_at_saturation, "disk" if (one.disk_percent or 0.0) > one.cpu_percent else "cpu"
    else:
        # of the modules a simulated day knows, the first to be used up
        loads = {name: result.modules[name].load_percent or 0.0 for name, _ in STAGES}
        part = max(loads, key=lambda name: loads[name])
        users = int(site.users * 100 / loads[part]) if loads[part] else None
    answer["knee"] = None
    if not users:
        return []
    days = around(site, users, constants)
    at_knee = next(day for share, day in days if share == 1.0).busy_percent[part]
    answer["knee"] = {
        "users": users,
        "part": part,
        "simulated_percent": at_knee,
        "agrees": abs(at_knee - 100) <= AGREES_PERCENT,
        "days": [
            {"share": share, "busy_percent": day.busy_percent[part]}
            | {key: getattr(day, key) for key in ("delay_p50_s", "delay_p95_s", "delay_p99_s")}
            for share, day in days
        ],
    }
    return days


def _answer(
    site: Site, paper: dict[str, Any], constants: Constants | None, curve: list[Any], field: str
) -> dict[str, Any]:
    result = forecast(site, constants)
    answer = as_json(result)
    answer["paper_hardware"] = paper.get("paper_hardware")
    answer["paper_disagreements"] = disagreements(result, paper) if constants is None else []
    answer["paper_notes"] = paper.get("notes", [])
    if curve:
        answer["what_if"] = [
            {field: value, "load_percent": {n: m.load_percent for n, m in at.modules.items()}} for value, at in curve
        ]
    return answer
