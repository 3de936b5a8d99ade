"""APPEND (RFC 3501 6.3.11) with several messages at once (RFC 3502), CATENATE (4469), UTF8 (6855) and APPENDUID (4315).

Content does not pass through the parser: the engine hands each piece to a sink. `Services.content` is

    new() -> body           body.write(view) raises SpoolFull; len(body); body.abandon()
    await keep(body)        -> (rope, envelope, bodystructure, dot_free), durable
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from iems.errors import SpoolFull
from iems.imap import appending as grammar
from iems.imap import sequence
from iems.imap.appending import Begin, Complete, Link, Prefix, Step
from iems.imap.grammar import Bad, Refused
from iems.imap.response import string
from iems.imapd import places
from iems.imapd.commands.common import existing, permitted
from iems.imapd.content import read_pieces
from iems.imapd.engine import LOGGED_IN, Command, Content, Spec, State
from iems.imapd.places import Place
from iems.store.wire import NewMessage

if TYPE_CHECKING:
    from iems.imapd.session import Session

MAX_MESSAGES = 1000
#: Octets of another message read at once for CATENATE.
COPY_OCTETS = 256 * 1024


class Message:
    """One message as it is put together. body: None until its first octet."""

    __slots__ = ("begin", "body")

    def __init__(self, begin: Begin) -> None:
        self.begin = begin
        self.body: Any = None


class Appending:
    """The messages of one APPEND as they come in. url: one that comes as a literal. replaces: (mailbox id, uid) or None."""

    __slots__ = ("messages", "octets", "place", "replaces", "url")

    def __init__(self, place: Place, replaces: tuple[int, int] | None = None) -> None:
        self.place = place
        self.messages: list[Message] = []
        self.octets = 0
        self.url: bytearray | None = None
        self.replaces = replaces

    def abandon(self) -> None:
        """Give the contents back."""
        for message in self.messages:
            if message.body is not None:
                message.body.abandon()
        self.messages.clear()


def _open(session: Session, name: str, replaced: int, uid_form: bool) -> Appending:
    """Begin a command. Raises `Refused`, `Bad`."""
    place = existing(session, name, trycreate=True, right="i")
    if not replaced:
        return Appending(place)
    view = session.view
    if view is None or view.read_only:
        raise Refused("[READ-ONLY] Mailbox was opened read-only")
    permitted(view, "te")
    if place.account != view.account:
        raise Refused("[CANNOT] A message is replaced within its account")
    if uid_form:
        uid = replaced
        if view.position(uid) < 0:
            raise Refused("[NONEXISTENT] No such message")
    else:
        if replaced > view.told:
            raise Bad("Message sequence number beyond the mailbox")
        uid = view.uids[replaced - 1]
    return Appending(place, (view.mailbox_id, uid))


def _grow(session: Session, appending: Appending, octets: int) -> None:
    """Count octets to come against limit and quota. Raises `Refused`."""
    services = session.services
    limit = services.limits.content
    appending.octets += octets
    if limit and appending.octets > limit:
        raise Refused("[TOOBIG] Too much in one command")
    quota = appending.place.quota_octets
    if quota is not None and services.reader.usage(appending.place.account)[0] + appending.octets > quota:
        raise Refused("[OVERQUOTA] Quota exceeded")


def _body(session: Session, appending: Appending) -> Any:
    message = appending.messages[-1]
    if message.body is None:
        message.body = session.services.content.new(0)
    return message.body


async def _do(session: Session, appending: Appending, steps: list[Step]) -> None:
    """Steps that need no content of the client."""
    if appending.url is not None:
        url, appending.url = bytes(appending.url), None
        await _link(session, appending, url)
    for step in steps:
        if isinstance(step, Begin):
            _begin(appending, step)
        else:
            await _link(session, appending, step.url)


def _begin(appending: Appending, step: Begin) -> None:
    if len(appending.messages) >= MAX_MESSAGES:
        raise Refused("[LIMIT] Too many messages in one command")
    appending.messages.append(Message(step))


async def _link(session: Session, appending: Appending, url: bytes) -> None:
    """Put what a URL names at the end of the message. Raises `Refused`."""
    services = session.services
    target = grammar.url(url)
    bad = Refused("[BADURL " + string(url[:200]).decode("latin-1") + "] No such content")
    place = places.find(session, target.name) if target is not None else None
    if target is None or place is None or place.box.noselect or not place.may("r"):
        raise bad
    box = place.box
    if target.uidvalidity not in (0, box.uidvalidity):
        raise bad
    row = services.reader.message(place.account, box.id, target.uid)
    if row is None:
        raise bad
    source = services.source((place.account, box.id, row.uid), row)
    found = await source.section(target.section)
    if found is None:
        raise bad
    length, pieces = found
    _grow(session, appending, length)
    body = _body(session, appending)
    async for octets in read_pieces(services, pieces, COPY_OCTETS):
        body.write(memoryview(octets))


def offered(session: Session, offer: Content) -> None:
    """Take the content, or say why not before it is sent."""
    if offer.first:
        if session.appending is not None:
            session.appending.abandon()
        session.appending = None
    prefix: Prefix = offer.prefix
    if session.appending is not None and session.appending.url is None:
        if not any(isinstance(step, Link) for step in prefix.steps):
            _accept(session, offer, None)
            return
    elif offer.first and not any(isinstance(step, Link) for step in prefix.steps):
        _accept(session, offer, None)
        return
    session.running = session.services.loop.create_task(_accept_later(session, offer))


async def _accept_later(session: Session, offer: Content) -> None:
    """As `_accept`, with other messages to read first."""
    fault: Exception | None = None
    try:
        appending = _opened(session, offer)
        await _do(session, appending, offer.prefix.steps)
    except (Refused, Bad, SpoolFull) as found:
        fault = found
    except Exception as found:
        session.services.error("APPEND failed", found)
        fault = Refused("[SERVERBUG] Internal error")
    session.running = None
    if session.closing:
        return
    _accept(session, offer, fault, done=True)
    session.send(session.engine.take_output())
    session.resume()


def _opened(session: Session, offer: Content) -> Appending:
    """The command the content belongs to. Raises `Refused`, `Bad`."""
    prefix: Prefix = offer.prefix
    if offer.first:
        uid_form = offer.spec.name.startswith(b"UID")
        session.appending = _open(session, prefix.name, prefix.replaces, uid_form)
    appending: Appending | None = session.appending
    if appending is None:
        raise Refused("[CANNOT] An earlier message of this command was refused")
    return appending


def _accept(session: Session, offer: Content, fault: Exception | None, done: bool = False) -> None:
    """Take the content with a sink for it, or refuse it. done: its steps were done."""
    engine = session.engine
    limit = session.services.limits.content
    prefix: Prefix = offer.prefix
    sink: Callable[[memoryview], None] | None = None
    try:
        if fault is not None:
            raise fault
        if limit and offer.size > limit:
            raise Refused("[TOOBIG] Message too large")
        if offer.size == 0 and prefix.what == grammar.MESSAGE:
            raise Refused("[CANNOT] Empty message")
        if done:
            appending = session.appending
        else:
            appending = _opened(session, offer)
            for step in prefix.steps:
                assert isinstance(step, Begin)
                _begin(appending, step)
        if prefix.what == grammar.URL:
            if offer.size > grammar.MAX_URL:
                raise Refused("[BADURL] URL too long")
            appending.url = bytearray()
            sink = appending.url.extend
        else:
            _grow(session, appending, offer.size)
            sink = _sink(session, _body(session, appending))
    except (Refused, Bad, SpoolFull) as found:
        text = "[UNAVAILABLE] No room at the moment" if isinstance(found, SpoolFull) else str(found)
        if session.appending is not None:
            session.appending.abandon()
            session.appending = None
        if engine.refuse(text) is not None:
            session.send(engine.take_output())
            session.close()
        return
    engine.accept(sink)


def _sink(session: Session, body: Any) -> Callable[[memoryview], None]:
    def sink(view: memoryview) -> None:
        try:
            body.write(view)
        except SpoolFull:
            if session.appending is not None:
                session.appending.abandon()
                session.appending = None
            session.engine.abandon("[UNAVAILABLE] No room at the moment")

    return sink


async def stored(session: Session, command: Command) -> tuple[int, list[int]]:
    """Finish the command: (uidvalidity of the target, uids of the new messages). Raises `Refused`, StoreError."""
    appending, session.appending = session.appending, None
    arguments = command.arguments
    steps: list[Step] = arguments if isinstance(arguments, list) else []
    if isinstance(arguments, Complete):
        if appending is not None:
            appending.abandon()  # of a command that BAD cut off
        uid_form = command.spec.name.startswith(b"UID")
        appending, steps = _open(session, arguments.name, arguments.replaces, uid_form), arguments.steps
    if appending is None:
        raise Refused("[CANNOT] No message came")
    services = session.services
    now_s = int(services.clock())
    try:
        await _do(session, appending, steps)
        new = []
        for message in appending.messages:
            size = 0 if message.body is None else len(message.body)
            if not size:
                raise Refused("[CANNOT] Empty message")
            rope, envelope, bodystructure, dot_free = await services.content.keep(message.body)
            date_s = message.begin.date_s
            new.append(
                NewMessage(
                    rope=rope,
                    size=size,
                    internaldate_s=now_s if date_s is None else max(date_s, 0),
                    envelope=envelope,
                    bodystructure=bodystructure,
                    flags=appending.place.allowed(message.begin.flags),
                    dot_free=dot_free,
                )
            )
        if appending.place.rights is not None:
            # The content took its time: the right may be gone.
            appending.place = existing(session, appending.place.name, right="i")
        uidvalidity, uids = await services.store.append(
            appending.place.account,
            appending.place.box.name,
            new,
            appending.place.quota_octets,
            replaces=appending.replaces,
            domain=appending.place.owner.domain,
            domain_octets=services.domain_room(appending.place.owner),
            member=appending.place.member,
        )
    finally:
        appending.abandon()
    services.count("appended_messages_total", len(uids))
    if appending.replaces is not None and session.view is not None:
        session.view.expunged_here([appending.replaces[1]])
    return uidvalidity, uids


async def run(session: Session, command: Command) -> bytes:
    """Carry out APPEND; the text of the tagged answer. Raises Refused, StoreError."""
    uidvalidity, uids = await stored(session, command)
    return b"OK [APPENDUID %d %b] APPEND completed" % (uidvalidity, sequence.render(uids))


async def run_replace(session: Session, command: Command) -> bytes:
    """REPLACE and UID REPLACE (RFC 8508): the new message comes and the old one goes in one step."""
    uidvalidity, uids = await stored(session, command)
    session.send(b"* OK [APPENDUID %d %b] Replacement kept\r\n" % (uidvalidity, sequence.render(uids)))
    if session.view is not None:
        session.refresh()
        if session.view is not None:
            session.send(session.view.updates(True))
    return b"OK REPLACE completed"


def _numbered_stream(arguments: Any, previous: Any) -> Prefix | None:
    return grammar.stream(arguments, previous, True)


def _numbered_parse(arguments: Any) -> Complete:
    return grammar.parse(arguments, True)


SPECS = [
    Spec(b"APPEND", LOGGED_IN, grammar.parse, run, stream=grammar.stream, tail=grammar.tail),
    Spec(b"REPLACE", State.SELECTED, _numbered_parse, run_replace, stream=_numbered_stream, tail=grammar.tail),
    Spec(b"UID REPLACE", State.SELECTED, _numbered_parse, run_replace, stream=_numbered_stream, tail=grammar.tail),
]
