"""iemsctl headerrule: what becomes of mail by its header fields, in force at once; every change leaves an audit line."""

from __future__ import annotations

import time
from collections.abc import Iterator

import click
from msgspec import structs

from iems.cli.common import Failed, Group, Home, json_option, pass_home, say, say_json, table
from iems.cli.policy import directory_of
from iems.directory import Directory
from iems.message.headerrules import ACTIONS, HEAD_OCTETS, Rules, Trial

#: Messages a test looks at, newest of each mailbox first, and hits it shows.
MAX_MESSAGES = 20_000
MAX_SHOWN = 100


@click.group(cls=Group)
def headerrule() -> None:
    """Rules about header fields; the first that fits counts."""


@headerrule.command("add")
@click.argument("name")
@click.option("--field", required=True, help="Header field, as Subject.")
@click.option("--matches", required=True, metavar="REGEX", help="RE2 expression, found anywhere in the decoded value; (?i) for any case.")
@click.option("--action", type=click.Choice(ACTIONS), required=True, help="tag: left to users and lists; ignore: no later rule counts.")
@click.option("--draft", is_flag=True, help="Keep it without effect, for a test; add it again without this to let it act.")
@click.option("--untested", is_flag=True, help="Let it act though it was never tested.")
@pass_home
def headerrule_add(home: Home, name: str, field: str, matches: str, action: str, draft: bool, untested: bool) -> None:
    """Add a rule, last, or change the one of this name in its place.

    One that discards, bounces or quarantines must have been tested with this field and expression: add it with --draft, `headerrule test` it,
    and add it again without.
    """
    with directory_of(home) as directory:
        directory.add_header_rule(name, field, matches, action, draft, untested)
        rule = next(rule for rule in directory.header_rules() if rule.name == name.lower())
    if rule.tested is not None:
        say(f"tested {_told(rule.tested)}")


@headerrule.command("remove")
@click.argument("name")
@pass_home
def headerrule_remove(home: Home, name: str) -> None:
    """Remove a rule."""
    with directory_of(home) as directory:
        directory.remove_header_rule(name)


@headerrule.command("list")
@json_option
@pass_home
def headerrule_list(home: Home, as_json: bool) -> None:
    """List the rules in the order they count."""
    with directory_of(home) as directory:
        found = directory.header_rules()
    if as_json:
        for rule in found:
            say_json(structs.asdict(rule))
    elif found:
        rows = [
            (rule.name, rule.field, rule.pattern, rule.action + " (draft)" * rule.draft, _told(rule.tested) if rule.tested else "never")
            for rule in found
        ]
        table(rows, ("NAME", "FIELD", "MATCHES", "ACTION", "TESTED"))


def _told(tested: Trial) -> str:
    day = time.strftime("%Y-%m-%d", time.localtime(tested.time_s))
    return f"{day}: {tested.hits} of {tested.messages} messages of {tested.days} days"


@headerrule.command("test")
@click.argument("name")
@click.option("--days", type=click.IntRange(1, 3650), default=7, show_default=True, help="How far back.")
@json_option
@pass_home
def headerrule_test(home: Home, name: str, days: int, as_json: bool) -> None:
    """Tell what a rule, draft or not, would have hit of the mail that came into the mailboxes of late. It acts no more than before."""
    with directory_of(home) as directory:
        known = directory.header_rules()
        names = [rule.name for rule in known]
        if name.lower() not in names:
            raise Failed(f"there is no rule {name!r}")
        place = names.index(name.lower())
        # Those before it count first; a rule under test counts whether it acts or not.
        chain = Rules([*known[:place], structs.replace(known[place], draft=False)])
        looked = earlier = 0
        hits: list[tuple[str, str, str, str]] = []
        number = 0
        for account, mailbox, day, head in _recent(home, directory, time.time() - days * 86_400):
            looked += 1
            found = chain.first(head)
            if found is None:
                continue
            if found[0].name != name.lower():
                earlier += 1
                continue
            number += 1
            if len(hits) < MAX_SHOWN:
                hits.append((account, mailbox, day, "".join(c if c.isprintable() else "?" for c in found[1][:120])))
        directory.note_header_rule_test(known[place], Trial(int(time.time()), days, looked, number))
    bounded = looked >= MAX_MESSAGES
    if as_json:
        rows = [dict(zip(("account", "mailbox", "date", "value"), hit, strict=True)) for hit in hits]
        say_json({"rule": name.lower(), "days": days, "messages": looked, "hits": number, "earlier": earlier, "bounded": bounded, "shown": rows})
        return
    if hits:
        table(hits, ("ACCOUNT", "MAILBOX", "DATE", "VALUE"))
    say(f"{number} of {looked} messages of the last {days} days; {earlier} more are for rules before it")
    if bounded:
        say(f"stopped after {MAX_MESSAGES} messages")


def _recent(home: Home, directory: Directory, since_s: float) -> Iterator[tuple[str, str, str, bytes]]:
    """(account, mailbox, day, beginning) of mail in the store."""
    from iems.store.reader import Reader

    path = home.config().store_path(home.path)
    if not path.is_dir():
        return
    reader = Reader(path)
    left = MAX_MESSAGES
    try:
        for account in directory.list_accounts():
            for box in reader.mailboxes(account.number):
                selected = None if box.noselect else reader.select(account.number, box.id)
                for uid in reversed(selected.uids.tolist() if selected is not None else []):
                    row = reader.message(account.number, box.id, uid)
                    if row is None:
                        continue
                    # Uids ascend with the time of arrival.
                    if row.saved_s < since_s:
                        break
                    try:
                        head = reader.blobs.read_range(row.rope, 0, min(HEAD_OCTETS, row.size))
                    except (OSError, EOFError):
                        continue  # expunged meanwhile
                    yield account.address, box.name, time.strftime("%Y-%m-%d", time.localtime(row.saved_s)), head
                    left -= 1
                    if not left:
                        return
    finally:
        reader.close()
