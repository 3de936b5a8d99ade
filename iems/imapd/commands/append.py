"""APPEND (RFC 3501 6.3.11) with several messages at once (RFC 3502) and APPENDUID (RFC 4315).

Content does not pass through the parser: the engine hands each piece to a sink. `Services.content` is

    new() -> body           body.write(view) raises SpoolFull; len(body); body.abandon()
    await keep(body)        -> (rope, envelope, bodystructure, dot_free), durable
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from iems.errors import SpoolFull
from iems.imap import flags, names, sequence
from iems.imap.grammar import Arguments, Bad, Refused
from iems.imapd.engine import LOGGED_IN, Command, Content, Spec
from iems.store.wire import NewMessage

if TYPE_CHECKING:
    from iems.imapd.session import Session

MAX_MESSAGES = 1000
MAX_FLAGS = 100


class Prefix(Struct, frozen=True):
    """What stands before one content. name: b"" for the second and later messages."""

    name: bytes
    flags: list[bytes]
    date_s: int | None


class Appending:
    """The messages of one APPEND as they come in."""

    __slots__ = ("mailbox", "messages", "octets")

    def __init__(self, mailbox: Any) -> None:
        self.mailbox = mailbox
        self.messages: list[tuple[Prefix, Any]] = []
        self.octets = 0

    def abandon(self) -> None:
        """Give the contents back."""
        for _prefix, body in self.messages:
            body.abandon()
        self.messages.clear()


def stream(arguments: Arguments, first: bool) -> Prefix | None:
    """What stands before a literal if that literal is content; None if it is the mailbox name."""
    name = b""
    if first:
        arguments.space()
        if arguments.at_end():
            return None
        name = arguments.astring()
    arguments.space()
    found: list[bytes] = []
    date_s = None
    if arguments.looking_at(b"("):
        found = arguments.flag_list()
        if len(found) > MAX_FLAGS:
            raise Bad("Too many flags")
        flags.settable(found)
        arguments.space()
    if arguments.looking_at(b'"'):
        date_s = arguments.date_time()
        arguments.space()
    arguments.end()
    return Prefix(name, found, date_s)


def parse(arguments: Arguments) -> None:
    """An APPEND that is complete without content is none."""
    raise Bad("Message literal expected")


def offered(session: Session, offer: Content) -> None:
    """Take the content, or say why not before it is sent."""
    engine = session.engine
    services = session.services
    if offer.first:
        if session.appending is not None:
            session.appending.abandon()
        session.appending = None
    try:
        limit = services.limits.content
        if limit and offer.size > limit:
            raise Refused("[TOOBIG] Message too large")
        if offer.size == 0:
            raise Refused("[CANNOT] Empty message")
        if offer.first:
            name = names.mailbox(offer.prefix.name)
            mailbox = services.reader.mailbox(session.number, name) if name else None
            if mailbox is None or mailbox.noselect:
                raise Refused("[TRYCREATE] No such mailbox")
            session.appending = Appending(mailbox)
        appending = session.appending
        if appending is None:
            raise Refused("[CANNOT] An earlier message of this command was refused")
        if len(appending.messages) >= MAX_MESSAGES:
            raise Refused("[LIMIT] Too many messages in one command")
        appending.octets += offer.size
        if limit and appending.octets > limit:
            raise Refused("[TOOBIG] Too much in one command")
        quota = session.account.quota_octets
        if quota is not None and services.reader.usage(session.number)[0] + appending.octets > quota:
            raise Refused("[OVERQUOTA] Quota exceeded")
        body = services.content.new(offer.size)
        appending.messages.append((offer.prefix, body))
    except (Refused, Bad, SpoolFull) as fault:
        text = "[UNAVAILABLE] No room at the moment" if isinstance(fault, SpoolFull) else str(fault)
        if session.appending is not None:
            session.appending.abandon()
            session.appending = None
        if engine.refuse(text) is not None:
            session.send(engine.take_output())
            session.close()
        return

    def sink(view: memoryview) -> None:
        try:
            body.write(view)
        except SpoolFull:
            if session.appending is not None:
                session.appending.abandon()
                session.appending = None
            engine.abandon("[UNAVAILABLE] No room at the moment")

    engine.accept(sink)


async def run(session: Session, command: Command) -> bytes:
    appending, session.appending = session.appending, None
    if appending is None:
        raise Refused("[CANNOT] No message came")
    services = session.services
    now_s = int(services.clock())
    try:
        new = []
        for prefix, body in appending.messages:
            size = len(body)
            rope, envelope, bodystructure, dot_free = await services.content.keep(body)
            new.append(
                NewMessage(
                    rope=rope,
                    size=size,
                    internaldate_s=now_s if prefix.date_s is None else max(prefix.date_s, 0),
                    envelope=envelope,
                    bodystructure=bodystructure,
                    flags=flags.settable(prefix.flags),
                    dot_free=dot_free,
                )
            )
        uidvalidity, uids = await services.store.append(
            session.number, appending.mailbox.name, new, session.account.quota_octets
        )
    finally:
        appending.abandon()
    services.count("appended_messages_total", len(uids))
    return b"OK [APPENDUID %d %b] APPEND completed" % (uidvalidity, sequence.render(uids))


SPECS = [Spec(b"APPEND", LOGGED_IN, parse, run, stream=stream)]
