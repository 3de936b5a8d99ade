"""iemsctl route, domain, alias, connector, forward, channel: policy in the directory, in force at once.

They work with the server stopped or running; every change leaves an audit line in log/directory.log.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from iems.cli.common import Failed, Group, Home, json_option, note, pass_home, say, say_json, table
from iems.model import Channel

if TYPE_CHECKING:
    from iems.directory import Directory

OUTPUT_CHANNELS = [channel.name for channel in Channel if channel >= 32]
channel_type = click.Choice(OUTPUT_CHANNELS, case_sensitive=False)


@contextmanager
def directory_of(home: Home) -> Iterator[Directory]:
    """The home's directory, open."""
    from iems.directory import Directory

    directory = Directory(home.path / "directory")
    try:
        yield directory
    finally:
        directory.close()


def _list(as_json: bool, names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """A list: an object a line, or a table."""
    if as_json:
        for row in rows:
            say_json(dict(zip(names, row, strict=True)))
    elif rows:
        table(rows, [name.upper() for name in names])


@click.group(cls=Group)
def route() -> None:
    """Where mail goes."""


@route.command()
@click.argument("address")
@click.option("--hosts", is_flag=True, help="Look up the next hosts, too: host table and DNS, as the relay does.")
@json_option
@pass_home
def explain(home: Home, address: str, hosts: bool, as_json: bool) -> None:
    """Show each question asked for ADDRESS, its answer, and where mail to it goes."""
    with directory_of(home) as directory:
        found = directory.resolve(address.encode("utf-8", "surrogateescape"), explain=True)
    result = [
        {
            "channel": Channel(target.channel).name,
            "identifier": target.identifier,
            "address": target.address.decode("utf-8", "backslashreplace"),
        }
        for target in found.targets
    ]
    reply = f"{found.reply.code} {found.reply.status} {found.reply.text}" if found.reply else None
    steps = list(found.steps)
    next_hosts: list[dict[str, Any]] = []
    if hosts:
        from iems.cli.nexthops import next_hops

        ways = [
            (target.identifier or target.address.rpartition(b"@")[2].decode("utf-8", "backslashreplace"), bool(target.identifier))
            for target in found.targets
            if target.channel == Channel.SMTPC
        ]
        looked, next_hosts = next_hops(home.config(), home.path, ways)
        steps += looked
    if as_json:
        told = {
            "address": address,
            "local": found.local,
            "steps": [{"question": question, "answer": answer} for question, answer in steps],
            "result": result,
            "reply": reply,
        }
        say_json(told | ({"hosts": next_hosts} if hosts else {}))
        return
    table(steps, ("QUESTION", "ANSWER"))
    say("")
    if result:
        table([tuple(line.values()) for line in result], ("CHANNEL", "IDENTIFIER", "ADDRESS"))
    if next_hosts:
        say("")
        table([tuple(line.values()) for line in next_hosts], ("DESTINATION", "HOST", "ADDRESS", "PORT"))
    if reply:
        say(f"answered at RCPT: {reply}")


@click.group(cls=Group)
def domain() -> None:
    """Local domains; `*.DOMAIN` covers every sub-domain but not DOMAIN."""


@domain.command("add")
@click.argument("name")
@pass_home
def domain_add(home: Home, name: str) -> None:
    """Make a domain local."""
    with directory_of(home) as directory:
        directory.add_domain(name)


@domain.command("remove")
@click.argument("name")
@click.option("--force", is_flag=True, help="Even if it has accounts or aliases.")
@pass_home
def domain_remove(home: Home, name: str, force: bool) -> None:
    """Take a domain off the list of local ones."""
    with directory_of(home) as directory:
        directory.remove_domain(name, force=force)


@domain.command("quota")
@click.argument("name")
@click.argument("size", required=False)
@pass_home
def domain_quota(home: Home, name: str, size: str | None) -> None:
    """Show how much the users of a domain may keep together, or set it to SIZE (`500G`, `unlimited`)."""
    from iems.cli.iemsuser import octets_of, size_text
    from iems.store import formats

    octets = octets_of(size) if size is not None else None
    with directory_of(home) as directory:
        if size is not None:
            if octets is not None:
                old = [one.name for one in formats.partitions(home.config().store_path(home.path)) if one.version < one.wants]
                if old:
                    raise Failed(f"the mailboxes in {', '.join(old)} are of an older format, which counts no domains: stop the server, then iemsctl upgrade")
            directory.set_domain_quota(name, octets)
        elif name.lower() not in directory.domains():
            raise Failed(f"{name.lower()} is not on the list of local domains")
        say(f"{name.lower()} {size_text(directory.domain_quotas().get(name.lower()))}")


@domain.command("list")
@json_option
@pass_home
def domain_list(home: Home, as_json: bool) -> None:
    """List the local domains."""
    with directory_of(home) as directory:
        names = directory.domains()
    for name in names:
        if as_json:
            say_json({"domain": name})
        else:
            say(name)


@click.group(cls=Group)
def alias() -> None:
    """Addresses that lead to others."""


@alias.command("add")
@click.argument("address")
@click.argument("targets", nargs=-1, required=True)
@pass_home
def alias_add(home: Home, address: str, targets: tuple[str, ...]) -> None:
    """Let ADDRESS lead to TARGETS as well."""
    with directory_of(home) as directory:
        for target in targets:
            directory.add_alias(address, target)


@alias.command("remove")
@click.argument("address")
@click.argument("target", default="")
@pass_home
def alias_remove(home: Home, address: str, target: str) -> None:
    """Remove an alias, or one TARGET of it."""
    with directory_of(home) as directory:
        directory.remove_alias(address, target)


@alias.command("list")
@json_option
@pass_home
def alias_list(home: Home, as_json: bool) -> None:
    """List the aliases."""
    with directory_of(home) as directory:
        found = directory.aliases()
    if as_json:
        for address, targets in found:
            say_json({"address": address, "targets": targets})
    elif found:
        table([(address, " ".join(targets)) for address, targets in found], ("ADDRESS", "TARGETS"))


@click.group(cls=Group)
def connector() -> None:
    """The channels an address is reached by."""


@connector.command("add")
@click.argument("address")
@click.argument("channel", type=channel_type)
@click.argument("identifier", default="")
@click.option(
    "--permission",
    type=click.Choice(["none", "send", "receive", "send+receive"]),
    default="send+receive",
    show_default=True,
)
@pass_home
def connector_add(home: Home, address: str, channel: str, identifier: str, permission: str) -> None:
    """Give ADDRESS a way to be reached; IDENTIFIER is what the channel needs to know (a relay host for SMTPC)."""
    with directory_of(home) as directory:
        directory.add_connector(address, channel, identifier, permission)


@connector.command("remove")
@click.argument("address")
@click.argument("channel", type=channel_type)
@click.argument("identifier", required=False)
@pass_home
def connector_remove(home: Home, address: str, channel: str, identifier: str | None) -> None:
    """Take a connector away."""
    with directory_of(home) as directory:
        directory.remove_connector(address, channel, identifier)


@connector.command("list")
@click.argument("address", default="")
@json_option
@pass_home
def connector_list(home: Home, address: str, as_json: bool) -> None:
    """List all connectors, or those of ADDRESS."""
    with directory_of(home) as directory:
        found = directory.connectors(address)
    _list(
        as_json,
        ("address", "channel", "identifier", "permission"),
        [(name, item.channel.name, item.identifier, item.permission.text) for name, item in found],
    )


@click.group(cls=Group)
def forward() -> None:
    """The domain forwarding table."""


@forward.command("set")
@click.argument("domain")
@click.argument("channel", type=channel_type)
@click.argument("identifier", default="")
@click.option(
    "--check",
    type=click.Choice(["none", "list", "ldap", "callahead"]),
    default="none",
    show_default=True,
    help="How a recipient is looked at before its mail is taken.",
)
@pass_home
def forward_set(home: Home, domain: str, channel: str, identifier: str, check: str) -> None:
    """Send the mail of DOMAIN (or `*.DOMAIN`) to CHANNEL; IDENTIFIER is a relay host for SMTPC."""
    if check == "ldap" and not home.config().ldap.uris:
        raise Failed("--check ldap needs ldap.uris in conf/iems.toml: without a server to ask, nobody would be taken")
    with directory_of(home) as directory:
        directory.set_forward(domain, channel, identifier, check)


@forward.command("allow")
@click.argument("addresses", nargs=-1)
@click.option("--file", "lines", type=click.File("r", encoding="utf-8"), help="One address a line; - is stdin.")
@pass_home
def forward_allow(home: Home, addresses: tuple[str, ...], lines: Any) -> None:
    """Put recipients on the list that `--check list` looks at; all of them or, if one is wrong, none."""
    listed = [line.strip() for line in lines or () if line.strip() and not line.startswith("#")]
    with directory_of(home) as directory:
        directory.add_relayed([*addresses, *listed])


@forward.command("disallow")
@click.argument("addresses", nargs=-1, required=True)
@pass_home
def forward_disallow(home: Home, addresses: tuple[str, ...]) -> None:
    """Take recipients off the list."""
    with directory_of(home) as directory:
        directory.remove_relayed(list(addresses))


@forward.command("allowed")
@click.argument("domain", default="")
@json_option
@pass_home
def forward_allowed(home: Home, domain: str, as_json: bool) -> None:
    """Show the list, or its part for DOMAIN."""
    with directory_of(home) as directory:
        found = directory.relayed(domain)
    _list(as_json, ("address",), [(address,) for address in found])


@forward.command("remove")
@click.argument("domain")
@pass_home
def forward_remove(home: Home, domain: str) -> None:
    """Take DOMAIN off the table."""
    with directory_of(home) as directory:
        directory.remove_forward(domain)


@forward.command("list")
@json_option
@pass_home
def forward_list(home: Home, as_json: bool) -> None:
    """List the table."""
    with directory_of(home) as directory:
        found = directory.forwards()
        checks = directory.relay_domains()
    rows = [
        (name, channel.name, identifier, row.check if (row := checks.find(name)) else "none")
        for name, channel, identifier in found
    ]
    _list(as_json, ("domain", "channel", "identifier", "check"), rows)


@click.group(cls=Group)
def channel() -> None:
    """Default channels."""


@channel.command("default")
@click.argument("which", type=click.Choice(["LOCAL", "INTERNET"], case_sensitive=False), required=False)
@click.argument("name", type=channel_type, required=False)
@json_option
@pass_home
def channel_default(home: Home, which: str | None, name: str | None, as_json: bool) -> None:
    """Set the default channel of LOCAL or INTERNET mail, or show both."""
    with directory_of(home) as directory:
        if which is not None and name is not None:
            directory.set_channel_default(which, name)
            if name.upper() not in ("LOCAL", "SMTPC"):
                note(f"note: no role on this machine takes mail from {name.upper()}; it waits in the queue")
            return
        found = {kind: target.name for kind, target in directory.channel_defaults().items()}
    if which is not None:
        found = {which.upper(): found[which.upper()]}
    if as_json:
        say_json(found)
    else:
        for kind, target in found.items():
            say(f"{kind} {target}")
