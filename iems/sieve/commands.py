"""The commands of scripts: RFC 5228 3 and 4, copy (3894), reject (5429), variables (5229), imap4flags (5232), vacation (5230, 6131), mailbox (5490)."""

from __future__ import annotations

from typing import Any, Final

from iems.message.address import parse_addresses
from iems.message.build import mailbox
from iems.sieve.actions import FileInto, Keep, Redirect, Reject, Vacation
from iems.sieve.compiler import Compiler, Given, Spec, Step, Tag
from iems.sieve.errors import RunError
from iems.sieve.flags import flag_list, flags_of
from iems.sieve.parser import Node
from iems.sieve.run import Run
from iems.sieve.variables import MODIFIERS, NAME, assign

DAY_S: Final = 86_400
#: An answer goes to one sender at most this often, and at least (RFC 5230 4.1, 6131 2).
VACATION_DAYS: Final = 7
VACATION_MIN_S: Final = 60
VACATION_MAX_S: Final = 365 * DAY_S
#: Characters of a reason or a subject.
REASON_MAX: Final = 16_384
SUBJECT_MAX: Final = 500


def address_problem(text: str) -> str:
    """What is wrong with an address to send to; "" if nothing."""
    try:
        mailbox(text)
    except ValueError:
        return f"{text[:60]!a} is no address"
    return ""


def _sender_problem(text: str) -> str:
    found = parse_addresses(text.encode("utf-8", "replace"))
    if len(found) != 1 or not found[0].domain or any(char in text for char in "\r\n\0"):
        return f"{text[:60]!a} is no address"
    return address_problem(found[0].addr_spec)


def _stop(c: Compiler, node: Node, given: Given) -> Step:
    return lambda run: True


def _discard(c: Compiler, node: Node, given: Given) -> Step:
    def step(run: Run) -> bool:
        run.implicit_keep = False
        return False

    return step


def _flags(c: Compiler, given: Given) -> Any:
    """What gives the flags of keep and fileinto."""
    if "flags" in given.tags:
        wanted = c.texts(given.tags["flags"])
        return lambda run: tuple(flag_list(wanted(run)))
    return lambda run: tuple(run.flags)


def _keep(c: Compiler, node: Node, given: Given) -> Step:
    flags = _flags(c, given)

    def step(run: Run) -> bool:
        run.add(Keep(flags(run)))
        return False

    return step


def _fileinto(c: Compiler, node: Node, given: Given) -> Step:
    flags = _flags(c, given)
    copy, create = "copy" in given.tags, "create" in given.tags
    name = c.text(given.positional[0], lambda text: "" if text.strip() else "the mailbox has no name")
    use = c.text(given.tags["specialuse"]) if "specialuse" in given.tags else None

    def step(run: Run) -> bool:
        where = (use is not None and run.environment.special_use(use(run))) or name(run)
        run.add(FileInto(where, flags(run), create), copy)
        return False

    return step


def _redirect(c: Compiler, node: Node, given: Given) -> Step:
    address, copy = c.text(given.positional[0], address_problem), "copy" in given.tags

    def step(run: Run) -> bool:
        to = address(run)
        if wrong := address_problem(to):
            raise RunError(f"redirect: {wrong}")
        run.add(Redirect(to), copy)
        return False

    return step


def _reject(c: Compiler, node: Node, given: Given) -> Step:
    reason, ereject = c.text(given.positional[0]), node.name == "ereject"

    def step(run: Run) -> bool:
        run.add(Reject(reason(run)[:REASON_MAX], ereject))
        return False

    return step


def _set(c: Compiler, node: Node, given: Given) -> Step:
    name = c.constant(given.positional[0])  # type: ignore[arg-type]
    if not NAME.match(name):
        raise c.fail(node.at, f"{name[:40]!a} is no name of a variable")
    name = name.lower()
    value = c.text(given.positional[1])
    chosen = sorted((MODIFIERS[tag] for tag in given.tags), key=lambda row: -row[0])

    def step(run: Run) -> bool:
        text = value(run)
        for _, change in chosen:
            run.spend(10 + len(text) // 4)
            text = change(text)
        assign(run, name, text)
        return False

    return step


def _set_flags(c: Compiler, node: Node, given: Given) -> Step:
    name = ""
    if given.positional[0] is not None:
        if "variables" not in c.required:
            raise c.fail(node.at, 'flags in a variable need require "variables"')
        name = c.constant(given.positional[0]).lower()
        if not NAME.match(name):
            raise c.fail(node.at, f"{name[:40]!a} is no name of a variable")
    flags, how = c.texts(given.positional[1]), node.name

    def step(run: Run) -> bool:
        given_now = flag_list(flags(run))
        run.spend(10 + len(given_now))
        old = flags_of(run, name) if name else run.flags
        if how == "addflag":
            new = flag_list([*old, *given_now])
        elif how == "removeflag":
            gone = {flag.lower() for flag in given_now}
            new = [flag for flag in old if flag.lower() not in gone]
        else:
            new = given_now
        if name:
            assign(run, name, " ".join(new))
        else:
            run.flags = new
        return False

    return step


def _vacation(c: Compiler, node: Node, given: Given) -> Step:
    tags = given.tags
    interval = VACATION_DAYS * DAY_S
    if "days" in tags:
        interval = max(tags["days"].number or 0, 1) * DAY_S
    elif "seconds" in tags:
        interval = tags["seconds"].number or 0
    interval = min(max(interval, VACATION_MIN_S), VACATION_MAX_S)
    reason = c.text(given.positional[0])
    subject = c.text(tags["subject"]) if "subject" in tags else None
    sender = c.text(tags["from"], _sender_problem) if "from" in tags else None
    addresses = c.texts(tags["addresses"]) if "addresses" in tags else None
    handle = c.text(tags["handle"]) if "handle" in tags else None
    mime = "mime" in tags

    def step(run: Run) -> bool:
        own = sender(run) if sender is not None else ""
        if own and (wrong := _sender_problem(own)):
            raise RunError(f"vacation: {wrong}")
        run.add(
            Vacation(
                reason(run)[:REASON_MAX],
                interval,
                # One line, whatever a variable holds: what comes from a message can't begin a field of ours.
                " ".join(subject(run)[:SUBJECT_MAX].split()) if subject is not None else "",
                own,
                tuple(addresses(run)) if addresses is not None else (),
                mime,
                handle(run)[:200] if handle is not None else "",
            ),
            copy=True,
        )
        return False

    return step


def _spec(make: Any, *positional: str, **rest: Any) -> Spec:
    return Spec(make, positional, **rest)


_FLAG_TAG = {"flags": Tag("list", "imap4flags")}
_COPY_TAG = {"copy": Tag(extension="copy")}
_MODIFIER_TAGS = {
    name: Tag(extension="regex" if name == "quoteregex" else "", group=f"precedence {row[0]}")
    for name, row in MODIFIERS.items()
}

COMMANDS: Final[dict[str, Spec]] = {
    "stop": _spec(_stop),
    "keep": _spec(_keep, tags=_FLAG_TAG),
    "discard": _spec(_discard),
    "fileinto": _spec(
        _fileinto,
        "string",
        tags=_FLAG_TAG | _COPY_TAG | {"create": Tag(extension="mailbox"), "specialuse": Tag("string", "special-use")},
        extension=("fileinto",),
    ),
    "redirect": _spec(_redirect, "string", tags=_COPY_TAG),
    "reject": _spec(_reject, "string", extension=("reject",)),
    "ereject": _spec(_reject, "string", extension=("ereject",)),
    "set": _spec(_set, "string", "string", tags=_MODIFIER_TAGS, extension=("variables",)),
    "setflag": _spec(_set_flags, "?string", "list", extension=("imap4flags",)),
    "addflag": _spec(_set_flags, "?string", "list", extension=("imap4flags",)),
    "removeflag": _spec(_set_flags, "?string", "list", extension=("imap4flags",)),
    "vacation": _spec(
        _vacation,
        "string",
        tags={
            "days": Tag("number", group="interval"),
            "seconds": Tag("number", "vacation-seconds", "interval"),
            "subject": Tag("string"),
            "from": Tag("string"),
            "addresses": Tag("list"),
            "mime": Tag(),
            "handle": Tag("string"),
        },
        extension=("vacation", "vacation-seconds"),
    ),
}
