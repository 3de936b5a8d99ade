"""The tests of scripts: RFC 5228 5, envelope, body (5173), string (5229), hasflag (5232), date and index (5260), mailbox (5490), special-use (8579)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Final, TypeVar

from iems.message.address import Address
from iems.message.date import parse_date
from iems.message.words import decode
from iems.sieve.compiler import ADDRESS_TAGS, INDEX_TAGS, MATCH_TAGS, Check, Compiler, Given, Spec, Tag, Texts
from iems.sieve.flags import flag_list, flags_of
from iems.sieve.parser import Node
from iems.sieve.run import Run

T = TypeVar("T")

#: Fields with addresses; `address` takes no others (RFC 5228 5.1).
ADDRESS_FIELDS: Final = frozenset((
    "from", "to", "cc", "bcc", "sender", "reply-to", "resent-from", "resent-to", "resent-cc", "resent-bcc", "resent-sender",
    "resent-reply-to", "return-path", "delivered-to", "x-original-to", "envelope-to", "errors-to", "disposition-notification-to",
    "mail-followup-to", "mail-reply-to", "return-receipt-to", "apparently-to",
))  # fmt: skip


def _field_name(name: str) -> str:
    """What is wrong with the name of a field."""
    if not name or len(name) > 200 or not all(32 < ord(char) < 127 and char != ":" for char in name):
        return f"{name[:40]!a} is no name of a header field"
    return ""


def _address_field(name: str) -> str:
    return _field_name(name) or ("" if name.lower() in ADDRESS_FIELDS else f"{name[:40]} is no field with addresses")


def _size(c: Compiler, node: Node, given: Given) -> Check:
    over, under = "over" in given.tags, "under" in given.tags
    if over == under:
        raise c.fail(node.at, "size takes either :over or :under")
    limit = given.tags["over" if over else "under"].number or 0
    return (lambda run: run.message.size > limit) if over else (lambda run: run.message.size < limit)


def _indexed(c: Compiler, node: Node, given: Given) -> Callable[[Sequence[T]], Sequence[T]] | None:
    """What picks one field by :index and :last (RFC 5260 6); None for all."""
    if "index" not in given.tags:
        if "last" in given.tags:
            raise c.fail(node.at, ":last needs :index")
        return None
    number = given.tags["index"].number or 0
    if not number:
        raise c.fail(given.tags["index"].at, ":index counts from 1")
    if "last" in given.tags:
        return lambda found: found[len(found) - number :][:1] if number <= len(found) else found[:0]
    return lambda found: found[number - 1 : number]


def _header(c: Compiler, node: Node, given: Given) -> Check:
    matcher, pick = c.matcher(given), _indexed(c, node, given)
    names, keys = c.texts(given.positional[0], _field_name), c.keys(given.positional[1], matcher)

    def check(run: Run) -> bool:
        values: list[str] = []
        for name in names(run):
            run.spend(10)
            found = run.message.texts(name)
            values += pick(found) if pick is not None else found
        return matcher(run, values, keys(run))

    return check


def _part(given: Given) -> str:
    return next((name for name in ADDRESS_TAGS if name in given.tags), "all")


def _taken(part: str, local: str, domain: str, separator: str) -> str | None:
    """A part of an address; None if it has none (`:detail` of one without, RFC 5233 4)."""
    if part == "all":
        return f"{local}@{domain}" if domain else local
    if part == "localpart":
        return local
    if part == "domain":
        return domain
    user, found, detail = local.partition(separator) if separator else (local, "", "")
    if part == "user":
        return user
    return detail if found else None


def _address(c: Compiler, node: Node, given: Given) -> Check:
    matcher, part, pick = c.matcher(given), _part(given), _indexed(c, node, given)
    names, keys = c.texts(given.positional[0], _address_field), c.keys(given.positional[1], matcher)

    def check(run: Run) -> bool:
        values: list[str] = []
        for name in names(run):
            found: Sequence[Sequence[Address]] = run.message.addresses(name)
            run.spend(10)
            for line in pick(found) if pick is not None else found:
                run.spend(5 * len(line))
                for one in line:
                    if not one.local or not one.domain:
                        continue  # no address by RFC 5322, so it matches nothing (RFC 5228 2.7.4)
                    value = _taken(part, decode(one.local), decode(one.domain), run.environment.separator)
                    if value is not None:
                        values.append(value)
        return matcher(run, values, keys(run))

    return check


def _envelope(c: Compiler, node: Node, given: Given) -> Check:
    matcher, part = c.matcher(given), _part(given)

    def known(name: str) -> str:
        return "" if name.lower() in ("from", "to") else f"the envelope has no part {name[:40]!a} here"

    names, keys = c.texts(given.positional[0], known), c.keys(given.positional[1], matcher)

    def check(run: Run) -> bool:
        values = []
        for name in names(run):
            name = name.lower()
            if name not in ("from", "to"):
                continue
            address = run.message.reverse_path if name == "from" else run.message.recipient
            if not address:
                values.append("")  # the null path (RFC 5228 5.4): every part of it is empty
                continue
            local, at, domain = address.rpartition("@")
            value = _taken(part, local if at else address, domain if at else "", run.environment.separator)
            if value is not None:
                values.append(value)
        return matcher(run, values, keys(run))

    return check


def _exists(c: Compiler, node: Node, given: Given) -> Check:
    names = c.texts(given.positional[0], _field_name)
    return lambda run: all(run.message.raw(name) for name in names(run))


def _not(c: Compiler, node: Node, given: Given) -> Check:
    inner = given.tests[0]
    return lambda run: not inner(run)


def _allof(c: Compiler, node: Node, given: Given) -> Check:
    tests = tuple(given.tests)
    return lambda run: all(test(run) for test in tests)


def _anyof(c: Compiler, node: Node, given: Given) -> Check:
    tests = tuple(given.tests)
    return lambda run: any(test(run) for test in tests)


def _string(c: Compiler, node: Node, given: Given) -> Check:
    matcher = c.matcher(given)
    source, keys = c.texts(given.positional[0]), c.keys(given.positional[1], matcher)

    def check(run: Run) -> bool:
        values = source(run)
        if matcher.kind == "count":
            # An empty string is none (RFC 5229 5).
            values = [value for value in values if value]
        return matcher(run, values, keys(run))

    return check


def _body(c: Compiler, node: Node, given: Given) -> Check:
    # A wildcard in a body sets no variables (RFC 5173 6).
    matcher = c.matcher(given, capture=False)
    keys = c.keys(given.positional[0], matcher)
    if "raw" in given.tags:

        def raw(run: Run) -> bool:
            text = run.message.raw_body()
            run.spend(len(text) // 8)
            return matcher(run, [text], keys(run))

        return raw
    kinds = c.texts(given.tags["content"]) if "content" in given.tags else None

    def check(run: Run) -> bool:
        wanted = [kind.lower() for kind in kinds(run)] if kinds is not None else ["text"]
        values = []
        run.spend(run.message.size // 64)
        for part in run.message.parts():
            run.spend(20)
            if _of_kind(part.kind, wanted):
                text = part.text
                run.spend(len(text) // 4)
                values.append(text)
        return matcher(run, values, keys(run))

    return check


def _of_kind(kind: str, wanted: list[str]) -> bool:
    """Whether a type is meant by one of the strings of :content (RFC 5173 5.2)."""
    for want in wanted:
        if not want or (want == kind if "/" in want else kind.partition("/")[0] == want):
            if want.startswith("/") or want.endswith("/") or want.count("/") > 1:
                continue
            return True
    return False


def _mailboxexists(c: Compiler, node: Node, given: Given) -> Check:
    names: Texts = c.texts(given.positional[0])
    return lambda run: all(run.environment.exists(name) for name in names(run))


def _specialuse_exists(c: Compiler, node: Node, given: Given) -> Check:
    where = c.text(given.positional[0]) if given.positional[0] is not None else None
    uses = c.texts(given.positional[1])

    def check(run: Run) -> bool:
        found = [run.environment.special_use(use) for use in uses(run)]
        return all(found) and (where is None or all(name == where(run) for name in found))

    return check


def _hasflag(c: Compiler, node: Node, given: Given) -> Check:
    matcher = c.matcher(given)
    if given.positional[0] is not None and "variables" not in c.required:
        raise c.fail(node.at, 'flags in a variable need require "variables"')
    names = c.texts(given.positional[0]) if given.positional[0] is not None else None
    keys = c.keys(given.positional[1], matcher)

    def check(run: Run) -> bool:
        values = run.flags if names is None else [flag for name in names(run) for flag in flags_of(run, name)]
        wanted = keys(run) if matcher.kind in ("count", "value") else flag_list(keys(run), False)
        return matcher(run, values, wanted)

    return check


# Dates


def _zone(text: str) -> str:
    """What is wrong with a zone such as +0100."""
    if (
        len(text) == 5
        and text[0] in "+-"
        and text[1:].isascii()
        and text[1:].isdigit()
        and int(text[3:]) < 60
        and int(text[1:3]) < 24
    ):
        return ""
    return "a zone is written as +hhmm or -hhmm"


def _shift(moment: datetime, zone: str) -> datetime:
    if _zone(zone):
        return moment
    minutes = int(zone[1:3]) * 60 + int(zone[3:])
    return moment.astimezone(timezone(timedelta(minutes=-minutes if zone[0] == "-" else minutes)))


def _offset(moment: datetime) -> str:
    minutes = int((moment.utcoffset() or timedelta()).total_seconds()) // 60
    sign, minutes = ("-", -minutes) if minutes < 0 else ("+", minutes)
    return f"{sign}{minutes // 60:02}{minutes % 60:02}"


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _iso(m: datetime) -> str:
    zone = _offset(m)
    return f"{m:%Y-%m-%dT%H:%M:%S}" + ("Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}")


#: date-part -> its text (RFC 5260 4.2).
DATE_PARTS: Final[dict[str, Callable[[datetime], str]]] = {
    "year": lambda m: f"{m.year:04}",
    "month": lambda m: f"{m.month:02}",
    "day": lambda m: f"{m.day:02}",
    "date": lambda m: f"{m:%Y-%m-%d}",
    "julian": lambda m: str(m.toordinal() - 678_576),
    "hour": lambda m: f"{m.hour:02}",
    "minute": lambda m: f"{m.minute:02}",
    "second": lambda m: f"{m.second:02}",
    "time": lambda m: f"{m:%H:%M:%S}",
    "iso8601": _iso,
    "std11": lambda m: f"{_DAYS[m.weekday()]}, {m.day:02} {_MONTHS[m.month - 1]} {m.year:04} {m:%H:%M:%S} {_offset(m)}",
    "zone": _offset,
    "weekday": lambda m: str((m.weekday() + 1) % 7),
}


def _date_part(name: str) -> str:
    return "" if name.lower() in DATE_PARTS else f"there is no date part {name[:40]!a}"


def _dates(c: Compiler, node: Node, given: Given, part_at: int) -> Callable[[Run, list[datetime]], bool]:
    matcher = c.matcher(given)
    zone = c.text(given.tags["zone"], _zone) if "zone" in given.tags else None
    original = "originalzone" in given.tags
    part, keys = c.text(given.positional[part_at], _date_part), c.keys(given.positional[part_at + 1], matcher)

    def check(run: Run, moments: list[datetime]) -> bool:
        shown = DATE_PARTS.get(part(run).lower())
        if shown is None:
            return False
        local = _offset(run.environment.now)
        values = []
        for moment in moments:
            try:
                values.append(shown(moment if original else _shift(moment, zone(run) if zone is not None else local)))
            except OverflowError:
                continue  # at the very end of the calendar
        return matcher(run, values, keys(run))

    return check


def _date(c: Compiler, node: Node, given: Given) -> Check:
    pick = _indexed(c, node, given)
    name = c.text(given.positional[0], _field_name)
    compare = _dates(c, node, given, 1)

    def check(run: Run) -> bool:
        values = run.message.raw(name(run))
        # A trace field ends with its date (RFC 5260 4).
        texts = [value.rpartition(b";")[2] for value in (pick(values) if pick is not None else values)]
        run.spend(20 * len(texts))
        return compare(run, [moment for moment in map(parse_date, texts) if moment is not None])

    return check


def _currentdate(c: Compiler, node: Node, given: Given) -> Check:
    compare = _dates(c, node, given, 0)
    return lambda run: compare(run, [run.environment.now])


_ZONE_TAGS = {"zone": Tag("string", group="zone"), "originalzone": Tag(group="zone")}


def _constant(value: bool) -> Callable[[Compiler, Node, Given], Check]:
    return lambda c, node, given: lambda run: value


def _spec(make: Any, *positional: str, **rest: Any) -> Spec:
    return Spec(make, positional, **rest)


TESTS: Final[dict[str, Spec]] = {
    "true": _spec(_constant(True)),
    "false": _spec(_constant(False)),
    "not": _spec(_not, tests=1),
    "allof": _spec(_allof, tests=-1),
    "anyof": _spec(_anyof, tests=-1),
    "exists": _spec(_exists, "list"),
    "size": _spec(_size, tags={"over": Tag("number"), "under": Tag("number")}),
    "header": _spec(_header, "list", "list", tags=MATCH_TAGS | INDEX_TAGS),
    "address": _spec(_address, "list", "list", tags=MATCH_TAGS | ADDRESS_TAGS | INDEX_TAGS),
    "envelope": _spec(_envelope, "list", "list", tags=MATCH_TAGS | ADDRESS_TAGS, extension=("envelope",)),
    "string": _spec(_string, "list", "list", tags=MATCH_TAGS, extension=("variables",)),
    "body": _spec(
        _body,
        "list",
        tags=MATCH_TAGS | {"raw": Tag(group="body"), "text": Tag(group="body"), "content": Tag("list", group="body")},
        extension=("body",),
    ),
    "mailboxexists": _spec(_mailboxexists, "list", extension=("mailbox",)),
    "specialuse_exists": _spec(_specialuse_exists, "?string", "list", extension=("special-use",)),
    "hasflag": _spec(_hasflag, "?list", "list", tags=MATCH_TAGS, extension=("imap4flags",)),
    "date": _spec(_date, "string", "string", "list", tags=MATCH_TAGS | INDEX_TAGS | _ZONE_TAGS, extension=("date",)),
    "currentdate": _spec(
        _currentdate, "string", "list", tags=MATCH_TAGS | {"zone": _ZONE_TAGS["zone"]}, extension=("date",)
    ),
}
