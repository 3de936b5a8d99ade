"""iemsctl preview: what other settings of a user would have made of his mail of the last days."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec import structs

from iems.cli.common import Failed, Home, json_option, pass_home, say, say_json
from iems.cli.policy import directory_of
from iems.log import printable

if TYPE_CHECKING:
    from iems.sieve.compiler import Script

#: A script's file may have so many octets.
SCRIPT_OCTETS = 1 << 20


@click.command()
@click.argument("user")
@click.option("--days", type=click.IntRange(1, 3650), default=30, show_default=True, help="How far back.")
@click.option("--action", "action", metavar="ACTION", help="For all tags: ignore, discard, bounce, file or file=MAILBOX; default: the site's.")
@click.option("--zone", "zones", multiple=True, metavar="ZONE=ACTION", help="For mail that this DNS-BL tagged; ACTION default: none of its own.")
@click.option("--allow", multiple=True, metavar="VALUE", help="Also on the white list: an address, *@DOMAIN, an IP address, a range or network.")
@click.option("--disallow", multiple=True, metavar="VALUE", help="Not on the white list.")
@click.option("--bayes-spam", metavar="ACTION", help="What becomes of what the Bayesian filter takes for spam.")
@click.option("--bayes-unsure", metavar="ACTION", help="What becomes of mail it is not sure of.")
@click.option("--bayes-good", type=float, help="Score up to which mail is good.")
@click.option("--bayes-limit", type=float, help="Score from which it is spam.")
@click.option("--no-bayes", is_flag=True, help="The filter is off.")
@click.option("--script", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A Sieve script, or one of `iemsuser mailsort show`.")
@click.option("--no-script", is_flag=True, help="No rules at all.")
@click.option("--changed", is_flag=True, help="Show only mail of which something else would have become.")
@json_option
@pass_home
def preview(home: Home, user: str, days: int, script: Path | None, no_script: bool, changed: bool, as_json: bool, **given: Any) -> None:
    """Tell what other settings of USER would have made of the mail of the last days. Changes nothing; the server may run.

    What is not given counts as it is now. Of mail that was refused, or discarded longer ago than it can be brought back, only the header is
    there: it is judged by that and by how it came.
    """
    from iems.bayes.filter import Filter
    from iems.bayes.prior import Prior
    from iems.directory.spamcontrol import action_of
    from iems.lmda import unkept
    from iems.lmda.preview import Preview, Settings, Skipped, since
    from iems.sieve.errors import ScriptError
    from iems.store.homes import bayes_folder
    from iems.store.reader import Reader
    from iems.store.scripts import Active, folder

    if script is not None and no_script:
        raise click.UsageError("--script and --no-script exclude each other")
    config = home.config()
    store = config.store_path(home.path)
    with directory_of(home) as directory:
        account = directory.account(user)
        if account is None:
            raise Failed(f"there is no account {user}")
        try:
            if script is not None:
                rules: Script | None = _script(script)
            else:
                rules = Active(store).script(account.address, account.number) if account.filtered and not no_script else None
        except ScriptError as error:
            raise Failed(str(error)) from error
        settings = Settings(
            _spam(account.spam, given), _bayes(account.bayes, given), rules, action_of(config.lmda.spam_action), directory.detail_separator()
        )
        if not store.is_dir():
            raise Failed("there is no mail yet")
        prior = Prior(home.path / config.lmda.bayes_prior) if config.lmda.bayes_prior else None
        judge = Filter(bayes_folder(store, account.address), prior)
        skipped = Skipped()
        looked = 0
        ways: Counter[tuple[str, str]] = Counter()
        reader = Reader(store)
        try:
            noted = unkept.read(folder(store, account.address, account.number), since(days))
            for seen in Preview(reader, account, directory.account, settings, judge, skipped, noted).run(since(days)):
                looked += 1
                if seen.changed:
                    ways[seen.happened, seen.would] += 1
                if seen.changed or not changed:
                    _show(seen, as_json)
        finally:
            reader.close()
    total = sum(ways.values())
    if as_json:
        found = [{"happened": happened, "would": would, "messages": count} for (happened, would), count in ways.most_common()]
        say_json({"summary": {"days": days, "messages": looked, "changed": total, "ways": found, **structs.asdict(skipped)}})
        return
    say(f"{looked} messages of the last {days} days; something else would have become of {total}")
    for (happened, would), count in ways.most_common():
        say(f"{count:7} {printable(happened)} -> {printable(would)}")
    if skipped.gone:
        say(f"judged by headers alone: {skipped.gone} that were refused or discarded")
    if skipped.long or skipped.damaged:
        say(f"not tried: {skipped.long} too long, {skipped.damaged} can't be read")


def _show(seen: Any, as_json: bool) -> None:
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seen.time_s))
    if as_json:
        say_json(structs.asdict(seen) | {"time_s": seen.time_s, "time": moment, "changed": seen.changed})
        return
    mark = "*" if seen.changed else " "
    way = seen.happened if not seen.changed and seen.happened == seen.would else f"{seen.happened} -> {seen.would}"
    say(f"{mark} {moment} {printable(seen.sender or '<>')} {printable(seen.subject[:60])!r}: {printable(way)}")


def _script(path: Path) -> Script:
    from iems.sieve import mailsort
    from iems.store.scripts import named_script

    with path.open("rb") as file:
        data = file.read(SCRIPT_OCTETS + 1)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise Failed(f"{path} is not UTF-8") from None
    # As `mailsort show` prints it: with the line ends of files.
    text = text.replace("\r\n", "\n").replace("\n", "\r\n")
    return named_script(mailsort.NAME if mailsort.read(text) is not None else path.stem[:100], text)


def _spam(now: Any, given: dict[str, Any]) -> Any:
    """The user's spam control with what was given in place."""
    from iems.directory.spamcontrol import SpamControl, action_of, allowed_of, zone_name

    control = now or SpamControl()
    if given["action"] is not None:
        control = structs.replace(control, action=None if given["action"].lower() == "default" else action_of(given["action"]))
    for text in given["zones"]:
        zone, equals, action = text.partition("=")
        if not equals:
            raise click.UsageError(f"--zone wants ZONE=ACTION, not {text!r}")
        zones = {name: kept for name, kept in control.zones.items() if name != zone_name(zone)}
        if action.lower() != "default":
            zones[zone_name(zone)] = action_of(action)
        control = structs.replace(control, zones=zones)
    gone = {allowed_of(text) for text in given["disallow"]}
    allow = [entry for entry in control.allow if entry not in gone] + [allowed_of(text) for text in given["allow"]]
    return structs.replace(control, allow=tuple(dict.fromkeys(allow)))


def _bayes(now: Any, given: dict[str, Any]) -> Any:
    """The user's Bayesian filter with what was given in place; None if it is off."""
    from iems.directory.bayeschoice import BayesChoice, choice_of

    names = ("bayes_spam", "bayes_unsure", "bayes_good", "bayes_limit")
    if given["no_bayes"]:
        if any(given[name] is not None for name in names):
            raise click.UsageError("--no-bayes goes with no other setting of the filter")
        return None
    if all(given[name] is None for name in names):
        return now
    choice = now or BayesChoice()
    now_set: tuple[Any, ...] = (choice.spam.text, choice.unsure.text, choice.good, choice.limit)
    spam, unsure, good, limit = (kept if given[name] is None else given[name] for name, kept in zip(names, now_set, strict=True))
    return choice_of(spam, unsure, good, limit)
