"""iemsctl dkim: keys that outgoing mail is signed with, and the records that belong into DNS.

They work with the server stopped or running and are in force at once; every change leaves an audit line in log/directory.log.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iems.cli.common import Failed, Group, Home, json_option, note, pass_home, say, say_json, table

if TYPE_CHECKING:
    from iems.authres.keyring import Key, Keyring

#: Characters of one string of a TXT record (RFC 1035 3.3).
STRING = 255


@click.group(cls=Group)
def dkim() -> None:
    """Keys that sign outgoing mail."""


@dkim.group(cls=Group)
def key() -> None:
    """Make a key, let it sign, retire it.

    To change keys: create a new one, publish what `dkim record` prints, activate it when the record can be seen, retire the
    old one (activating does that), and remove it a week later.
    """


def _ring(home: Home) -> Keyring:
    from iems.authres.keyring import Keyring

    return Keyring(home.path)


@key.command("create")
@click.argument("domain")
@click.option("--algorithm", type=click.Choice(["rsa", "ed25519"]), default="rsa", show_default=True)
@click.option("--selector", default="", help="By default made of the date.")
@click.option(
    "--import", "file", type=click.Path(path_type=Path), help="Take the private key in this PEM file (-: standard input)."
)
@pass_home
def create(home: Home, domain: str, algorithm: str, selector: str, file: Path | None) -> None:
    """Make a key for DOMAIN and print its selector. The first one of its algorithm signs at once."""
    pem = b""
    if file is not None:
        with click.open_file(str(file), "rb") as stream:
            pem = stream.read(65_536)
        if not pem.strip():
            raise Failed(f"{file}: empty")
    made = _ring(home).create(domain, algorithm, selector, pem)
    say(made.selector)
    note(f"{made.name} is {made.state}; publish what `iemsctl dkim record {made.domain}` prints")


@key.command("list")
@click.argument("domain", default="")
@json_option
@pass_home
def list_(home: Home, domain: str, as_json: bool) -> None:
    """List the keys of DOMAIN, or all."""
    found = _ring(home).find(domain)
    if as_json:
        for one in found:
            say_json(_row(one))
    elif found:
        table(
            [(one.domain, one.selector, one.algorithm, one.state, _day(one.created_s), _day(one.changed_s)) for one in found],
            ("DOMAIN", "SELECTOR", "ALGORITHM", "STATE", "CREATED", "SINCE"),
        )  # fmt: skip


@key.command("activate")
@click.argument("domain")
@click.argument("selector")
@pass_home
def activate(home: Home, domain: str, selector: str) -> None:
    """Sign with a key from now on; the one of its algorithm that signed until now retires."""
    for changed in _ring(home).activate(domain, selector):
        note(f"{changed.name} is {changed.state}")


@key.command("retire")
@click.argument("domain")
@click.argument("selector")
@pass_home
def retire(home: Home, domain: str, selector: str) -> None:
    """Sign with a key no more. Leave its record in DNS for a week: mail on its way needs it."""
    _ring(home).retire(domain, selector)


@key.command("remove")
@click.argument("domain")
@click.argument("selector")
@pass_home
def remove(home: Home, domain: str, selector: str) -> None:
    """Remove a key that does not sign; then its record can go from DNS."""
    _ring(home).remove(domain, selector)


@dkim.command("record")
@click.argument("domain")
@click.option("--check", is_flag=True, help="Ask DNS whether they are there; exit code 1 if one that is needed is not.")
@click.option("--dns", "server", metavar="HOST:PORT", help="With --check, the DNS server to ask.")
@json_option
@pass_home
def record(home: Home, domain: str, check: bool, server: str | None, as_json: bool) -> None:
    """Print the TXT records for the keys of DOMAIN, as lines of a zone file."""
    found = _ring(home).find(domain)
    if not found:
        raise Failed(f"{domain} has no key: make one with `iemsctl dkim key create {domain}`")
    seen = _seen(found, server) if check else {}
    for one in found:
        text = one.record
        if as_json:
            row = {"name": one.name, "type": "TXT", "text": text, "selector": one.selector, "state": one.state}
            say_json(row | ({"dns": seen[one.name]} if check else {}))
        elif check:
            say(f"{seen[one.name]} {one.name} ({one.state})")
        else:
            strings = " ".join(f'"{text[at : at + STRING]}"' for at in range(0, len(text), STRING))
            say(f"{one.name}. IN TXT ( {strings} )")
    missing = [one.name for one in found if one.state != "retired" and seen.get(one.name, "right") != "right"]
    if missing:
        raise Failed(f"not in DNS as it should be: {', '.join(missing)}")


def _seen(found: list[Key], server: str | None) -> dict[str, str]:
    """What DNS says of each key's record: right, other, missing or unknown (DNS failed)."""
    from iems.authres.asking import DnsFailure, texts
    from iems.authres.publickeys import BadKey, read_key
    from iems.cli.check import resolver, run

    asked = resolver(click.get_current_context(), server)

    async def one(key: Key) -> str:
        try:
            records = await texts(asked, key.name)
        except DnsFailure:
            return "unknown"
        wanted = read_key(key.record.encode()).key
        for text in records:
            try:
                if read_key(text).key == wanted:
                    return "right"
            except BadKey:
                continue
        return "other" if records else "missing"

    async def all_of_them() -> dict[str, str]:
        return {key.name: await one(key) for key in found}

    states: dict[str, str] = run(all_of_them())
    return states


def _row(one: Key) -> dict[str, Any]:
    return {
        "domain": one.domain, "selector": one.selector, "algorithm": one.algorithm, "state": one.state,
        "created": one.created_s, "since": one.changed_s,
    }  # fmt: skip


def _day(seconds: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
