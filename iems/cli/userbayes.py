"""iemsuser bayes: a user's Bayesian filter; in force at once."""

from __future__ import annotations

import shutil
from typing import Any

import click

from iems.cli.common import Group, json_option, say, say_json
from iems.cli.spam import account_of, own_mailbox
from iems.store.homes import bayes_folder


@click.group(cls=Group)
def bayes() -> None:
    """A user's Bayesian filter: it learns from mail the user moves to Spam and Good, and judges what comes."""


def _folder(home: Any, address: str) -> Any:
    return bayes_folder(home.config().store_path(home.place()), address)


@bayes.command("on")
@click.argument("address")
@click.option("--spam", default="file=Spam", show_default=True, help="What becomes of spam: file, file=MAILBOX, discard, ignore.")
@click.option("--unsure", default="ignore", show_default=True, help="What becomes of mail it is not sure of, as file=Suspicious.")
@click.option("--good", default=0.35, show_default=True, help="Score up to which mail is good.")
@click.option("--limit", default=0.65, show_default=True, help="Score from which it is spam.")
@click.pass_obj
def bayes_on(home: Any, address: str, spam: str, unsure: str, good: float, limit: float) -> None:
    """Switch the filter of ADDRESS on, or change what it does."""
    from iems.directory.bayeschoice import choice_of

    directory = home.directory()
    account_of(directory, address)
    choice = choice_of(spam, unsure, good, limit)
    for action in (choice.spam, choice.unsure):
        if action.mailbox:
            own_mailbox(action.mailbox)
    directory.set_bayes(address, choice)


@bayes.command("off")
@click.argument("address")
@click.option("--forget", is_flag=True, help="Remove what it has learnt, too.")
@click.pass_obj
def bayes_off(home: Any, address: str, forget: bool) -> None:
    """Switch the filter of ADDRESS off; what it has learnt stays."""
    directory = home.directory()
    account = account_of(directory, address)
    directory.set_bayes(address, None)
    if forget:
        shutil.rmtree(_folder(home, account.address), ignore_errors=True)


@bayes.command("show")
@click.argument("address")
@json_option
@click.pass_obj
def bayes_show(home: Any, address: str, as_json: bool) -> None:
    """Show what the filter of ADDRESS does, and what it has learnt; `iemsctl bayes` works on its folder."""
    from iems.bayes.statistics import statistics

    account = account_of(home.directory(), address)
    folder = _folder(home, account.address)
    choice = account.bayes
    figures = statistics(folder)
    if as_json:
        shown = None
        if choice is not None:
            shown = {"spam": choice.spam.text, "unsure": choice.unsure.text, "good": choice.good, "limit": choice.limit}
        say_json({"address": account.address, "on": choice is not None, "choice": shown, "folder": str(folder), "learnt": figures})
        return
    if choice is None:
        say("off")
    else:
        say(f"on: spam (from {choice.limit:g}): {choice.spam.text}; unsure (above {choice.good:g}): {choice.unsure.text}")
    say(f"folder: {folder}")
    say(f"learnt: {figures['good_learnt']} good, {figures['spam_learnt']} spam; {figures['state']}")
