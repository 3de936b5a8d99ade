"""iemsctl check: what SPF, DKIM, DMARC and ARC say, asked from the command line.

The result word comes first on standard output; what there is to know beside it follows on lines of its own. Exit code 0
whatever the result: a `fail` is an answer. Works without a home; with one, its DNS servers are asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec import structs

from iems import config as settings
from iems.cli.common import Failed, Group, json_option, say, say_json
from iems.log import printable

if TYPE_CHECKING:
    from iems.net.resolver import Resolver

#: Seconds for one check.
DEADLINE_S = 60.0
#: Octets of a message that are read; larger ones are refused.
MAX_OCTETS = 256 << 20


@click.group(cls=Group)
def check() -> None:
    """Ask what SPF, DKIM, DMARC or ARC say; the result word comes first."""


def dns_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--dns`."""
    return click.option(
        "--dns",
        "server",
        metavar="HOST:PORT",
        help="The DNS server to ask; else those of the home's settings, or the system's.",
    )(function)


def resolver(ctx: click.Context, server: str | None) -> Resolver:
    """The resolver a check asks. Usage error if `server` is no HOST:PORT."""
    from iems.net.resolver import Resolver

    if server is not None:
        try:
            return Resolver([settings.host_port(server, 53)])
        except ValueError as exc:
            raise click.BadParameter(str(exc), param_hint="--dns") from None
    home: Path | None = ctx.find_root().obj
    if home is not None and (home / "conf/iems.toml").exists():
        return Resolver.of(settings.load(home / "conf/iems.toml").dns)
    return Resolver()


def run(work: Any) -> Any:
    """The result of a coroutine. Fails behind the deadline."""

    async def bounded() -> Any:
        async with asyncio.timeout(DEADLINE_S):
            return await work

    try:
        return asyncio.run(bounded())
    except TimeoutError:
        raise Failed(f"no result within {DEADLINE_S:g} s") from None


def content(file: Path) -> bytes:
    """The message in a file (`-`: standard input), line ends made CRLF. Fails if it is too large."""
    import re

    with click.open_file(str(file), "rb") as stream:
        octets: bytes = stream.read(MAX_OCTETS + 1)
    if len(octets) > MAX_OCTETS:
        raise Failed(f"{file}: larger than {MAX_OCTETS >> 20} MiB")
    return octets if b"\r\n" in octets[:65_536] else re.sub(rb"\r?\n", b"\r\n", octets)


def tell(word: str, facts: dict[str, Any], as_json: bool) -> None:
    """The result word, then what is known beside it."""
    if as_json:
        say_json({"result": word} | facts)
        return
    say(word)
    for name, value in facts.items():
        if value not in ("", None):
            say(f"  {name}: {printable(str(value))}")


@check.command()
@dns_option
@json_option
@click.argument("ip")
@click.argument("helo")
@click.argument("mailfrom")
@click.pass_context
def spf(ctx: click.Context, server: str | None, as_json: bool, ip: str, helo: str, mailfrom: str) -> None:
    """Whether the host IP that says HELO may send mail from MAILFROM (`""` or `<>`: the null path)."""
    from iems.authres import spf as evaluator

    asked = resolver(ctx, server)
    try:
        found = run(
            evaluator.check(asked, ip, helo, mailfrom.strip("<>"), receiver="localhost", now_s=int(time.time()))
        )
    except ValueError:
        raise click.BadParameter(f"{ip!r} is no IP address", param_hint="IP") from None
    facts = {name: getattr(found, name) for name in ("domain", "scope", "mechanism", "explanation", "problem")}
    tell(found.result, facts | {"queries": asked.queries}, as_json)


#: Of several signatures the word that counts: one that is valid is enough.
_ORDER = ("pass", "temperror", "fail", "policy", "permerror")


@check.command()
@dns_option
@json_option
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_context
def dkim(ctx: click.Context, server: str | None, as_json: bool, file: Path) -> None:
    """Whether a DKIM signature of the message in FILE is valid (`-`: standard input)."""
    from iems.authres import dkim as evaluator
    from iems.authres.mail import Mail

    asked = resolver(ctx, server)
    found = run(evaluator.verify(asked, Mail.of(content(file)), int(time.time())))
    word = min((one.result for one in found), key=_ORDER.index, default="none")
    if as_json:
        say_json({"result": word, "signatures": [structs.asdict(one) for one in found], "queries": asked.queries})
        return
    say(word)
    for one in found:
        origin = f"{one.selector}._domainkey.{one.domain} {one.algorithm}".strip()
        say(f"  {printable(f'{one.result} {origin} {one.problem}'.rstrip())}")


@check.command()
@dns_option
@json_option
@click.option("--ip", default="", help="The client the message came from; without it SPF is not asked.")
@click.option("--helo", default="unknown.invalid", help="What the client said in EHLO.")
@click.option("--mail-from", default="", help="The reverse-path of the message.")
@click.option("--domain", default="", help="Show the policy of a domain instead of checking a message.")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.pass_context
def dmarc(
    ctx: click.Context, server: str | None, as_json: bool, ip: str, helo: str, mail_from: str, domain: str, file: Path | None
) -> None:
    """Whether the domain in From of the message in FILE vouches for it (`-`: standard input), and what it asks for."""
    from iems.authres import dmarc as evaluator
    from iems.authres import outcome
    from iems.authres.mail import Mail

    asked = resolver(ctx, server)
    if bool(domain) == (file is not None):
        raise click.UsageError("name a FILE, or a domain with --domain")
    if domain:
        policy = run(evaluator.evaluate(asked, domain, None, ()))
    else:
        assert file is not None
        try:
            policy = run(
                outcome.evaluate(
                    asked, Mail.of(content(file)), ip=ip, helo=helo, mail_from=mail_from.strip("<>"), receiver="localhost",
                    now_s=int(time.time()),
                )
            ).dmarc  # fmt: skip
        except ValueError:
            raise click.BadParameter(f"{ip!r} is no IP address", param_hint="--ip") from None
    record = policy.record
    facts = {
        "domain": policy.domain, "policy": policy.policy, "disposition": policy.disposition, "spf": policy.spf, "dkim": policy.dkim,
        "record": f"_dmarc.{record.domain}" if record is not None else "", "problem": policy.problem,
    }  # fmt: skip
    word = policy.result
    if domain:
        word = policy.policy or (policy.result if policy.result != "fail" else "none")
        facts = {name: facts[name] for name in ("domain", "record", "problem")}
        if record is not None:
            facts |= {"reports": ", ".join(record.rua), "pct": record.pct}
    tell(word, facts, as_json)


@check.command()
@dns_option
@json_option
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_context
def arc(ctx: click.Context, server: str | None, as_json: bool, file: Path) -> None:
    """Whether the ARC chain of the message in FILE is whole (`-`: standard input)."""
    from iems.authres import arc as evaluator
    from iems.authres.mail import Mail

    found = run(evaluator.verify(resolver(ctx, server), Mail.of(content(file)), int(time.time())))
    facts = {"sets": found.instance, "sealer": found.sealer, "problem": found.problem}
    tell(found.result, facts | {f"reported {method}": word for method, word in found.reported.items()}, as_json)
