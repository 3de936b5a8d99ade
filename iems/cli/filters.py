"""iemsuser mailsort, vacation, sieve: what becomes of a user's mail by his own rules, in force at once.

MailSort rules and the vacation answer are kept as the script `mailsort`; the other commands work on scripts as such.
"""

from __future__ import annotations

import sys
from typing import Any

import click
import msgspec

from iems.cli.common import Failed, json_option, say, say_json, table
from iems.cli.iemsuser import Home, _home_option
from iems.directory import Account, Directory
from iems.errors import IemsError
from iems.sieve import ScriptError
from iems.sieve import mailsort as ms
from iems.store.scripts import Scripts, scripts_of


def _account(home: Home, address: str, directory: Directory | None = None) -> tuple[Account, Scripts]:
    directory = directory or home.directory()
    account = directory.account(address)
    if account is None:
        raise Failed(f"there is no account {address}")
    return account, scripts_of(directory, home.config().store_path(home.place()), account)


class FilterGroup(click.Group):
    """A group whose refusals (scripts with errors, too) end as lines on standard error and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except ScriptError as error:
            raise Failed(str(error)) from error
        except IemsError as error:
            raise Failed(str(error)) from error


def _load(scripts: Scripts) -> tuple[ms.MailSort | None, bool]:
    """The rules, and whether there is a script of that name at all."""
    text = scripts.read().scripts.get(ms.NAME)
    return (ms.read(text), True) if text is not None else (ms.MailSort([]), False)


def _sort(scripts: Scripts, force: bool = False) -> ms.MailSort:
    """The rules, to change them. Raises Failed if the script was edited by hand, unless forced."""
    sort, _ = _load(scripts)
    if sort is None:
        if not force:
            raise Failed(
                f"the script {ms.NAME!r} was written by hand and holds no rules; --force writes a new one in its place"
            )
        return ms.MailSort([])
    if sort.edited and not force:
        raise Failed(
            f"the script {ms.NAME!r} was edited by hand; --force writes it anew from its rules, without the changes"
        )
    return sort


def _keep(scripts: Scripts, sort: ms.MailSort) -> None:
    """Write the rules down; they count at once unless another script is active."""
    kept = scripts.read()
    if not sort.rules and sort.answer is None:
        if ms.NAME in kept.scripts:
            scripts.delete(ms.NAME, even_active=True)
        return
    other = kept.active if kept.active != ms.NAME else ""
    scripts.put(ms.NAME, ms.write(sort), activate=not other)
    if other:
        click.echo(
            f"the script {other!r} is active, so these rules are kept but not used; `iemsuser sieve activate` changes that",
            err=True,
        )


def _check_right(home: Home, directory: Directory, account: Account, mailbox: str) -> None:
    """Refuse a mailbox of somebody else where the account may put no mail; delivery looks again. Raises Failed."""
    from iems.store import shared
    from iems.store.reader import Reader

    if not mailbox.startswith(shared.ROOTS):
        return
    store = home.config().store_path(home.place())
    found = None
    if store.is_dir():
        reader = Reader(store)
        try:
            found = shared.find(reader, directory.account, account.number, mailbox)
        finally:
            reader.close()
    if found is None or not found.may_insert:
        raise Failed(f"{account.address} may put no mail into {mailbox!r}: its owner, or who manages it, gives the right to insert (i) or post (p)")


_force = click.option("--force", is_flag=True, help="Write the script anew although it was edited by hand.")


@click.group(cls=FilterGroup)
def mailsort() -> None:
    """Rules: a header contains a pattern, so the mail is moved, copied, forwarded, answered or rejected."""


@mailsort.command("list")
@click.argument("address")
@json_option
@_home_option
@click.pass_obj
def mailsort_list(home: Home, address: str, as_json: bool) -> None:
    """Show the rules of ADDRESS in their order."""
    _, scripts = _account(home, address)
    sort, _ = _load(scripts)
    active = scripts.read().active == ms.NAME
    rules = sort.rules if sort is not None else []
    if as_json:
        for number, rule in enumerate(rules, 1):
            say_json(
                {
                    "number": number,
                    "header": rule.header,
                    "contains": rule.contains,
                    "action": rule.action,
                    "target": rule.target,
                    "continue": rule.proceed,
                    "active": active,
                    "edited": bool(sort and sort.edited),
                }
            )
    elif rules:
        rows = [
            (n, r.header, r.contains, r.action, r.target, "continue" if r.proceed else "stop")
            for n, r in enumerate(rules, 1)
        ]
        table(rows, ("NO", "HEADER", "CONTAINS", "ACTION", "TARGET", "THEN"))
    if sort is None or sort.edited:
        click.echo(f"the script {ms.NAME!r} was edited by hand: it may do other things than these rules", err=True)
    elif rules and not active:
        click.echo("another script is active, or none: these rules are not used", err=True)


@mailsort.command("show")
@click.argument("address")
@_home_option
@click.pass_obj
def mailsort_show(home: Home, address: str) -> None:
    """Print the Sieve script that the rules of ADDRESS are kept as."""
    _, scripts = _account(home, address)
    click.echo(scripts.get(ms.NAME).replace("\r\n", "\n"), nl=False)


@mailsort.command("add")
@click.argument("address")
@click.option("--header", type=click.Choice(ms.HEADERS, case_sensitive=False), required=True, help="Where to look.")
@click.option("--contains", required=True, help="What must stand there, in any case of letters.")
@click.option("--move", metavar="MAILBOX", help="File it in a mailbox of the user, or one that others share with him.")
@click.option("--copy", metavar="MAILBOX", help="File a copy in a mailbox; the mail itself goes on.")
@click.option("--forward", metavar="ADDRESS", help="Send it on to an address; the mail itself is kept.")
@click.option("--vacation", is_flag=True, help="Send the vacation answer.")
@click.option("--reject", metavar="REASON", help="Refuse it; the sender is told the reason.")
@click.option(
    "--continue", "proceed", is_flag=True, help="Go on to later rules; otherwise this one is the last that counts."
)
@click.option("--at", type=click.IntRange(1, ms.RULES_MAX), help="Its place in the order; default: the last.")
@_force
@_home_option
@click.pass_obj
def mailsort_add(
    home: Home, address: str, header: str, contains: str, move: str | None, copy: str | None, forward: str | None,
    vacation: bool, reject: str | None, proceed: bool, at: int | None, force: bool,
) -> None:  # fmt: skip
    """Add a rule for the mail of ADDRESS."""
    chosen = [
        (name, value)
        for name, value in (("move", move), ("copy", copy), ("forward", forward), ("reject", reject))
        if value is not None
    ]
    if vacation:
        chosen.append(("vacation", ""))
    if len(chosen) != 1:
        raise click.UsageError("give one of --move, --copy, --forward, --vacation, --reject")
    action, target = chosen[0]
    directory = home.directory()
    account, scripts = _account(home, address, directory)
    rule = ms.check_rule(ms.Rule(header.lower(), contains, action, target, proceed))  # type: ignore[arg-type]
    if action in ("move", "copy"):
        _check_right(home, directory, account, target)
    sort = _sort(scripts, force)
    sort.rules.insert(at - 1 if at else len(sort.rules), rule)
    _keep(scripts, sort)


def _place(sort: ms.MailSort, number: int) -> int:
    if not 1 <= number <= len(sort.rules):
        raise Failed(f"there is no rule {number}; there are {len(sort.rules)}")
    return number - 1


@mailsort.command("move")
@click.argument("address")
@click.argument("number", type=int)
@click.argument("to", type=int)
@_force
@_home_option
@click.pass_obj
def mailsort_move(home: Home, address: str, number: int, to: int, force: bool) -> None:
    """Put rule NUMBER of ADDRESS in the place TO."""
    _, scripts = _account(home, address)
    sort = _sort(scripts, force)
    old, new = _place(sort, number), _place(sort, to)
    sort.rules.insert(new, sort.rules.pop(old))
    _keep(scripts, sort)


@mailsort.command("remove")
@click.argument("address")
@click.argument("number", type=int)
@_force
@_home_option
@click.pass_obj
def mailsort_remove(home: Home, address: str, number: int, force: bool) -> None:
    """Remove rule NUMBER of ADDRESS."""
    _, scripts = _account(home, address)
    sort = _sort(scripts, force)
    del sort.rules[_place(sort, number)]
    _keep(scripts, sort)


@click.group(cls=FilterGroup)
def vacation() -> None:
    """The answer that goes to who writes while a user is away, once in seven days to each."""


def _stdin() -> str:
    octets = sys.stdin.buffer.read(1 << 20)
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        raise Failed("standard input is not UTF-8") from None


@vacation.command("set")
@click.argument("address")
@click.option("--subject", default="", help="Its subject; default: Auto: and the subject of the mail.")
@click.option("--body-stdin", is_flag=True, required=True, help="Read the text from standard input.")
@click.option("--from", "first", default="", metavar="DAY", help="The first day it is given, as 2026-12-24.")
@click.option("--until", "last", default="", metavar="DAY", help="The last day it is given.")
@click.option(
    "--days",
    type=click.IntRange(1, ms.DAYS_MAX),
    default=ms.VACATION_DAYS,
    show_default=True,
    help="Once a sender in so many days.",
)
@click.option("--by-rules", is_flag=True, help="Only where a MailSort rule says so, not to all mail.")
@_force
@_home_option
@click.pass_obj
def vacation_set(
    home: Home,
    address: str,
    subject: str,
    body_stdin: bool,
    first: str,
    last: str,
    days: int,
    by_rules: bool,
    force: bool,
) -> None:
    """Set the answer for ADDRESS, in force at once."""
    _, scripts = _account(home, address)
    answer = ms.check_answer(ms.Answer(subject, _stdin().rstrip("\r\n"), first, last, not by_rules, days))
    sort = _sort(scripts, force)
    sort.answer = answer
    _keep(scripts, sort)


@vacation.command("show")
@click.argument("address")
@json_option
@_home_option
@click.pass_obj
def vacation_show(home: Home, address: str, as_json: bool) -> None:
    """Show the answer of ADDRESS."""
    _, scripts = _account(home, address)
    sort, _ = _load(scripts)
    answer = sort.answer if sort is not None else None
    if as_json:
        say_json({"set": answer is not None, **(msgspec.to_builtins(answer) if answer is not None else {})})
    elif answer is None:
        say(f"{address.lower()} has no vacation answer")
    else:
        when = " ".join(
            filter(
                None, (f"from {answer.first}" if answer.first else "", f"until {answer.last}" if answer.last else "")
            )
        )
        say(f"Subject: {answer.subject or '(Auto: and the subject of the mail)'}")
        say(f"When: {when or 'always'}, {'to all mail' if answer.all else 'by rules'}, once in {answer.days} days\n")
        say(answer.body)


@vacation.command("clear")
@click.argument("address")
@_force
@_home_option
@click.pass_obj
def vacation_clear(home: Home, address: str, force: bool) -> None:
    """Give no answer for ADDRESS any more; rules that send it go with it."""
    _, scripts = _account(home, address)
    sort = _sort(scripts, force)
    sort.answer = None
    sort.rules = [rule for rule in sort.rules if rule.action != "vacation"]
    _keep(scripts, sort)


@click.group(cls=FilterGroup)
def sieve() -> None:
    """Sieve scripts (RFC 5228) of a user; one of them is active."""


@sieve.command("put")
@click.argument("address")
@click.argument("name")
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--activate", is_flag=True, help="Make it the active one.")
@_home_option
@click.pass_obj
def sieve_put(home: Home, address: str, name: str, file: Any, activate: bool) -> None:
    """Keep a script of ADDRESS, from FILE or standard input; one with errors is not kept and every error is shown."""
    _, scripts = _account(home, address)
    octets = file.read(1 << 20)
    try:
        text = octets.decode("utf-8")
    except UnicodeDecodeError:
        raise Failed("the script is not UTF-8") from None
    scripts.put(name, text, activate)


@sieve.command("get")
@click.argument("address")
@click.argument("name")
@_home_option
@click.pass_obj
def sieve_get(home: Home, address: str, name: str) -> None:
    """Print a script of ADDRESS."""
    _, scripts = _account(home, address)
    click.echo(scripts.get(name).replace("\r\n", "\n"), nl=False)


@sieve.command("activate")
@click.argument("address")
@click.argument("name", required=False)
@click.option("--none", is_flag=True, help="No script at all.")
@_home_option
@click.pass_obj
def sieve_activate(home: Home, address: str, name: str | None, none: bool) -> None:
    """Make script NAME of ADDRESS the one its mail goes through."""
    if (name is None) != none:
        raise click.UsageError("give the name of a script, or --none")
    _, scripts = _account(home, address)
    scripts.activate(name or "")


@sieve.command("list")
@click.argument("address")
@json_option
@_home_option
@click.pass_obj
def sieve_list(home: Home, address: str, as_json: bool) -> None:
    """Show the scripts of ADDRESS."""
    _, scripts = _account(home, address)
    kept = scripts.read()
    for name, text in kept.scripts.items():
        octets, active = len(text.encode()), name == kept.active
        if as_json:
            say_json({"name": name, "active": active, "octets": octets})
        else:
            say(f"{name} {octets}{' active' if active else ''}")


@sieve.command("delete")
@click.argument("address")
@click.argument("name")
@_home_option
@click.pass_obj
def sieve_delete(home: Home, address: str, name: str) -> None:
    """Remove a script of ADDRESS that is not active."""
    _, scripts = _account(home, address)
    scripts.delete(name)
