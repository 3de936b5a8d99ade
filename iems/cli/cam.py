"""iemsctl cam, tagkey: which module runs for which flow, what becomes of tagged mail, and whether mail can slip past."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from iems.cli.common import Failed, Group, Home, json_option, note, pass_home, say, say_json, table
from iems.cli.policy import directory_of
from iems.config import tagging_settings
from iems.directory.tagging import BLIND, DEFAULTS
from iems.directory.tagkeys import TagKeys
from iems.model import Channel
from iems.preprocessor.matrix import Matrices
from iems.preprocessor.modules import NAMES
from iems.preprocessor.proof import alias_loops, forward_loops, unseen

if TYPE_CHECKING:
    from iems.directory import Directory

INPUTS = [channel for channel in Channel if channel < 32]
OUTPUTS = [channel for channel in Channel if channel >= 32]
_module = click.Choice(NAMES, case_sensitive=False)


@click.group(cls=Group)
def cam() -> None:
    """Channel Action Matrices: the flows, input to output channel, in which a module runs; in force at once."""


def _matrices(home: Home) -> Matrices:
    with directory_of(home) as directory:
        return Matrices(NAMES, directory.matrices())


@cam.command("show")
@click.argument("module", type=_module, required=False)
@json_option
@pass_home
def cam_show(home: Home, module: str | None, as_json: bool) -> None:
    """Show the matrix of MODULE, or of all: rows are input channels, columns output channels."""
    matrices = _matrices(home)
    for name in (module,) if module else NAMES:
        if as_json:
            for source in INPUTS:
                for aim in OUTPUTS:
                    runs = matrices.runs(name, source, aim)
                    say_json({"module": name, "input": source.name, "output": aim.name, "runs": runs})
            continue
        say(name)
        rows = [
            (source.name, *("x" if matrices.runs(name, source, aim) else "." for aim in OUTPUTS))
            for source in INPUTS
        ]
        table(rows, ["", *(aim.name for aim in OUTPUTS)])


@cam.command("set")
@click.argument("module", type=_module)
@click.argument("input_channel")
@click.argument("output_channel")
@click.argument("switch", type=click.Choice(["on", "off"], case_sensitive=False))
@pass_home
def cam_set(home: Home, module: str, input_channel: str, output_channel: str, switch: str) -> None:
    """Let MODULE run, or not, for mail from INPUT_CHANNEL to OUTPUT_CHANNEL; `*` stands for all of them."""
    sources = _channels(input_channel, INPUTS, "input")
    aims = _channels(output_channel, OUTPUTS, "output")
    with directory_of(home) as directory:
        matrices = Matrices(NAMES, directory.matrices())
        cells = {(int(s), int(a)) for s in INPUTS for a in OUTPUTS if matrices.runs(module, s, a)}
        named = {(int(s), int(a)) for s in sources for a in aims}
        directory.set_matrix(module, cells | named if switch.lower() == "on" else cells - named)


def _channels(text: str, known: list[Channel], kind: str) -> list[Channel]:
    if text == "*":
        return known
    for channel in known:
        if channel.name == text.upper():
            return [channel]
    raise click.UsageError(f"{text} is no {kind} channel: {', '.join(channel.name for channel in known)}")


@cam.command("default")
@click.argument("channel", type=click.Choice([channel.name for channel in BLIND], case_sensitive=False), required=False)
@click.argument("default", type=click.Choice(DEFAULTS, case_sensitive=False), required=False)
@json_option
@pass_home
def cam_default(home: Home, channel: str | None, default: str | None, as_json: bool) -> None:
    """Show, or set, what becomes of tagged mail on channels that can't act on tags themselves."""
    if channel is not None and default is None:
        raise click.UsageError(f"say what: {', '.join(DEFAULTS)}")
    with directory_of(home) as directory:
        if channel is not None and default is not None:
            directory.set_tag_default(channel, default.lower(), tagging_settings(home.config()))
            return
        found = directory.tag_defaults()
    if as_json:
        for each, kept in found.items():
            say_json({"channel": each.name, "default": kept})
    else:
        table([(each.name, kept) for each, kept in found.items()], ("CHANNEL", "DEFAULT"))


@cam.command("prove")
@json_option
@pass_home
def cam_prove(home: Home, as_json: bool) -> None:
    """List the ways by which mail leaves unseen by a module, and forwarding loops; exit code 1 if there are any.

    Loops are rings of aliases, of users' rules and both, and forwards to this very host.
    """
    config = home.config()
    with directory_of(home) as directory:
        matrices = Matrices(NAMES, directory.matrices())
        aliases = directory.aliases()
        rules = _rules(directory, config.store_path(home.path))
        findings = [
            ("unseen", name, " -> ".join(channel.name for channel in way))
            for name in NAMES
            for way in unseen(matrices, name)
        ]
        findings += [("loop", "alias", " -> ".join(loop)) for loop in alias_loops(aliases)]
        rings = alias_loops([*aliases, *rules])
        senders = {address for address, _ in rules}
        findings += [("loop", "rule", " -> ".join(loop)) for loop in rings if not senders.isdisjoint(loop)]
        findings += [
            ("loop", "forward", f"{domain} -> {identifier}")
            for domain, identifier in forward_loops(
                [(domain, channel, text) for domain, channel, text in directory.forwards()],
                {config.hostname.lower()},
            )
        ]
    for kind, what, way in findings:
        if as_json:
            say_json({"finding": kind, "what": what, "way": way})
        else:
            say(f"{kind}: {what}: {way}")
    if findings:
        sys.exit(1)
    if not as_json:
        say("no way past a module, no loop")


def _rules(directory: Directory, store: Path) -> list[tuple[str, list[str]]]:
    """(account, addresses its active script sends mail on to), both as the directory writes them."""
    from iems.sieve.redirects import redirects
    from iems.store.scripts import Refused, scripts_of

    found = []
    for account in directory.list_accounts():
        if not account.filtered:
            continue
        try:
            kept = scripts_of(directory, store, account).read()
        except (Refused, OSError) as error:
            note(f"iemsctl: {account.address}: {error}")
            continue
        targets = []
        for target in redirects(kept.scripts.get(kept.active, "")):
            owner = directory.account(target)
            targets.append(owner.address if owner is not None else target.lower())
        if targets:
            found.append((account.address, targets))
    return found


@click.group(cls=Group)
def tagkey() -> None:
    """Keys with which MTAs that trust each other sign the tags of suspect mail."""


@tagkey.command("add")
@click.argument("key")
@click.option("--secret-stdin", is_flag=True, help="Read the secret (hexadecimal) from standard input, as the other side shows it.")
@pass_home
def tagkey_add(home: Home, key: str, secret_stdin: bool) -> None:
    """Add a key called KEY, the same on both sides. The first one signs; without --secret-stdin the new secret is printed once."""
    secret = b""
    if secret_stdin:
        try:
            secret = bytes.fromhex(sys.stdin.readline().strip())
        except ValueError:
            raise Failed("a secret is hexadecimal, as `tagkey add` prints it") from None
        if not secret:
            raise Failed("there is no secret on standard input")
    made = TagKeys(home.path).add(key, secret)
    if not secret:
        say(made.hex())


@tagkey.command("use")
@click.argument("key")
@pass_home
def tagkey_use(home: Home, key: str) -> None:
    """Sign with KEY from now on; the others still check what comes in."""
    TagKeys(home.path).use(key)


@tagkey.command("remove")
@click.argument("key")
@pass_home
def tagkey_remove(home: Home, key: str) -> None:
    """Forget KEY: tags it signed are believed no more."""
    TagKeys(home.path).remove(key)


@tagkey.command("list")
@json_option
@pass_home
def tagkey_list(home: Home, as_json: bool) -> None:
    """List the keys, without their secrets."""
    keys = TagKeys(home.path)
    signing = keys.signing
    rows = [(name, signing is not None and signing[0] == name) for name in keys.all]
    if as_json:
        for name, signs in rows:
            say_json({"key": name, "signs": signs})
    elif rows:
        table([(name, "signs" if signs else "checks") for name, signs in rows], ("KEY", "USE"))
