"""One IMAP connection: joins the engine to a stream, runs commands, sends untagged updates when they are allowed.

Commands run one after the other (RFC 3501 5.5). Those that need not wait run in the callback that received them; the
others are a task, and what arrives meanwhile waits in the engine, bounded. Idle, a session is this object, an engine
without a buffer and a stream; no task, no timer of its own.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from iems.imap import response
from iems.imapd import commands, places, telling
from iems.imapd.engine import NEED_DATA, Close, Command, Content, Engine, Line, State, Updates
from iems.imapd.faults import reply_to
from iems.imapd.kept import KEPT_FROM
from iems.imapd.notify import Notifier
from iems.imapd.resumed import Resumed
from iems.imapd.services import Services
from iems.imapd.view import REV2, UIDONLY, VANISHED, View
from iems.net.deflate import Deflated
from iems.net.stream import Stream
from iems.net.tls import bindings
from iems.sasl import NO_BINDINGS

#: Received and not yet consumed while a command runs: above this, the peer waits.
INPUT_HIGH = 256 * 1024
#: Sent and not yet taken by the kernel: above this, FETCH waits.
OUTPUT_HIGH = 256 * 1024

#: A command that takes longer tells its progress this often (RFC 9585 4: no more often than every 10 s).
PROGRESS_S = 10.0


class Session:
    """See the module. `services` is what all sessions of a worker share."""

    __slots__ = (
        "_drained",
        "_paused",
        "_pushing",
        "_waiting",
        "account",
        "active_s",
        "appending",
        "bindings",
        "closing",
        "corked",
        "enabled",
        "engine",
        "expecting",
        "failures",
        "greeted",
        "idling",
        "leaving",
        "notifier",
        "number",
        "running",
        "services",
        "stream",
        "view",
    )

    def __init__(self, services: Services) -> None:
        self.services = services
        self.engine = Engine(commands.COMMANDS, services.limits, commands.SHORTCUT)
        self.stream: Stream | Deflated = None  # type: ignore[assignment]
        self.account: Any = None
        self.number = 0  # of the account; 0 before login
        self.view: View | None = None
        self.running: asyncio.Task[None] | None = None
        self.expecting: Callable[[bytes], None] | None = None
        self.idling = False
        self.appending: Any = None
        self.enabled: frozenset[bytes] = frozenset()
        self.bindings: Mapping[bytes, bytes] = NO_BINDINGS  # channel bindings of this TLS connection, until login
        self.notifier: Notifier | None = None
        self.failures = 0
        self.greeted = False
        self.closing = False
        self.leaving: bytes | None = None  # the BYE to send once the running command is done
        self.active_s = services.now()
        self._drained: asyncio.Future[None] | None = None
        self.corked = False
        self._paused = False
        self._pushing = False
        self._waiting = False  # for the peer to take output, before the next command

    # ------------------------------------------------------------------ life

    def connect(self, sock: socket.socket, implicit_tls: bool) -> None:
        """Start on an accepted socket; the greeting follows, after the handshake with implicit TLS."""
        tls = self.services.tls if implicit_tls else None
        self.stream = Stream(self.services.loop, sock, self, tls=tls)
        if tls is None:
            self.greet()

    def greet(self) -> None:
        """The greeting, with the capabilities of this state."""
        text = b"* OK [CAPABILITY %b] %b IEMS ready\r\n" % (
            commands.capabilities(self),
            self.services.hostname.encode("ascii", "replace"),
        )
        self.greeted = True
        self.stream.send(text)

    def tls_ready(self) -> None:
        """A handshake ended: implicit TLS still owes the greeting, after STARTTLS there is none (RFC 3501 6.2.1)."""
        self.active_s = self.services.now()
        self.services.count("tls_total")
        tls = self.stream.sslobj
        if tls is not None and self.services.authenticator.offer.scram:
            self.bindings = bindings(tls)
        if not self.greeted:
            self.greet()

    @property
    def peer_ip(self) -> str:
        """The client's address, "" if unknown."""
        return self.stream.peer[0] if self.stream.peer else ""

    @property
    def may_login(self) -> bool:
        """Whether a password may come over this connection as it is (config `auth.plaintext`)."""
        if self.stream.secure:
            return True
        plaintext = self.services.plaintext
        if plaintext == "loopback":
            ip = self.peer_ip
            return ip.startswith("127.") or ip in ("::1", "::ffff:127.0.0.1")
        return plaintext == "always"

    def connection_lost(self, cause: Exception | None) -> None:
        """The stream is gone."""
        self.closing = True
        self.notify(None)
        self.deselect()
        if self.running is not None:
            self.running.cancel()
        if self._drained is not None and not self._drained.done():
            self._drained.cancel()
        if self.appending is not None:
            self.appending.abandon()
            self.appending = None
        self.services.gone(self)

    def resume(self) -> None:
        """Go on with what came while something ran."""
        self.pump()
        self._take_input()

    def eof_received(self) -> None:
        """The peer sends no more: what it asked is still answered, then we close."""
        if self.running is None:
            self.close()
        else:
            self.leaving = b""

    def close(self) -> None:
        """Close when all output is flushed."""
        self.closing = True
        self.engine.state = State.LOGOUT
        self._uncork()
        self.stream.close()

    @property
    def compressed(self) -> bool:
        """Whether COMPRESS is on (RFC 4978)."""
        return isinstance(self.stream, Deflated)

    def compress(self) -> None:
        """All octets from now on are compressed, both ways; what the client sent before our answer is dropped."""
        self._uncork()
        self.engine.discard_input()
        self.stream = Deflated(self.services.loop, self.stream)  # type: ignore[arg-type]

    def bye(self, reason: str) -> None:
        """End the session with BYE: at once if nothing runs, else after the running command."""
        line = b"* BYE " + reason.encode("ascii", "replace") + b"\r\n"
        if self.running is not None or self.closing:
            self.leaving = line
        else:
            self.stream.send(line)
            self.close()

    def expire(self, reason: str) -> None:
        """The peer was silent too long: BYE, or the end at once if it does not even take what was sent."""
        if self.running is not None or self._waiting or self.closing:
            self.stream.abort()
        else:
            self.bye(reason)

    # ------------------------------------------------------------------ input

    def data_received(self, data: memoryview) -> None:
        """Octets from the peer."""
        if self.number:  # before login the clock runs from the start, whatever the peer sends
            self.active_s = self.services.now()
        engine = self.engine
        engine.feed(data)
        if self.running is None and not self._waiting:
            self.pump()
        elif engine.buffered > INPUT_HIGH and not self._paused:
            self._paused = True
            self.stream.pause_reading()

    def pump(self) -> None:
        """Run what the engine has, until a command has to wait or the input ends."""
        engine = self.engine
        while self.running is None and not self.closing:
            if self.stream.pending_out > OUTPUT_HIGH and self._must_wait():
                return
            event = engine.next_event()
            if event is NEED_DATA:
                if engine.has_output:
                    self.stream.send(engine.take_output())
                break
            if not self.corked and (engine.pipelined or not engine.shortened):
                # One packet for untagged responses and reply; the shortcut makes one by itself.
                self.corked = True
                self.stream.cork()
            if engine.has_output:
                self.stream.send(engine.take_output())
            kind = type(event)
            if kind is Command:
                self._run(event)  # type: ignore[arg-type]
            elif kind is Content:
                self._offer(event)  # type: ignore[arg-type]
            elif kind is Line:
                expecting, self.expecting = self.expecting, None
                if expecting is not None:
                    expecting(event.text)  # type: ignore[union-attr]
            else:
                assert isinstance(event, Close)
                self.services.log("imap-closed", peer=self.peer_ip, reason=event.reason)
                self.close()
            if engine.has_output:
                self.stream.send(engine.take_output())
        self._uncork()

    def _must_wait(self) -> bool:
        """Whether the peer takes its responses so slowly that its next command has to wait."""
        self._uncork()
        self._waiting = self.stream.pending_out > OUTPUT_HIGH
        return self._waiting

    def _uncork(self) -> None:
        if self.corked:
            self.corked = False
            self.stream.uncork()

    def expect(self, handler: Callable[[bytes], None], prompt: bytes | None) -> None:
        """The next line goes to `handler` instead of being a command; `prompt` is sent as a continuation request."""
        self.expecting = handler
        self.engine.expect_line(prompt)

    # ------------------------------------------------------------------ commands

    def _run(self, command: Command) -> None:
        view = self.view
        if view is not None and view.rights is not None and not self.may_go_on():
            return
        if self.appending is not None and command.spec.stream is None:
            self.appending.abandon()  # the command it came with was cut off by BAD
            self.appending = None
        try:
            result = command.spec.run(self, command)
        except Exception as fault:
            result = reply_to(self.services, command, fault)
        if result is None:
            return
        if isinstance(result, bytes):
            self.finish(command, result)
        else:
            self.start(command, result)

    def start(self, command: Command, coroutine: Coroutine[Any, Any, bytes | None]) -> None:
        """Run the rest of a command, as a task if it has to wait; its result is the tagged reply."""
        try:
            pending = coroutine.send(None)
        except StopIteration as end:
            self.done(command, end.value)
        except Exception as fault:
            self.done(command, reply_to(self.services, command, fault))
        else:
            self.running = self.services.loop.create_task(self._drive(command, Resumed(coroutine, pending)))

    def done(self, command: Command, result: bytes | None) -> None:
        """A command came to its end."""
        if result is not None and not self.closing:
            self.finish(command, result)
        if self.leaving is not None and not self.closing:
            self.stream.send(self.leaving)
            self.close()

    async def _drive(self, command: Command, rest: Resumed) -> None:
        try:
            result = await rest
        except asyncio.CancelledError:
            self.running = None
            return
        except Exception as fault:
            result = reply_to(self.services, command, fault)
        self.running = None
        if self.number:
            self.active_s = self.services.now()
        try:
            self.done(command, result)
            self.pump()
            self._take_input()
        except Exception as fault:
            # Between a command and its reply nothing may fail: without it the client would wait for ever.
            self.services.error("session failed", fault)
            self.stream.abort()

    def _take_input(self) -> None:
        """Read on after `INPUT_HIGH`, once what was there is done."""
        if self._paused and self.running is None and not self._waiting and not self.closing:
            self._paused = False
            self.stream.resume_reading()

    def finish(self, command: Command, reply: bytes) -> None:
        """Send the updates allowed now, then the tagged reply."""
        view = self.view
        updates = command.spec.updates
        if view is not None and updates:
            # Sequence numbers in commands already on their way count by what their sender knew.
            expunges = bool(updates & Updates.EXPUNGES) and not self.engine.pipelined
            self.refresh(bool(updates & Updates.CHECK))
            if self.closing:
                return
            told = view.updates(expunges)
            if view.contexts is not None and not self.engine.pipelined:
                self.stream.send(told)
                self.running = self.services.loop.create_task(telling.finish_contexts(self, command, reply))
                return
            self.stream.send(told + command.tag + b" " + reply + b"\r\n")
        else:
            self.stream.send(command.tag + b" " + reply + b"\r\n")

    def refresh(self, check: bool = True) -> None:
        """Bring the view up to date. check: ask the store's index even if nothing was pushed."""
        view = self.view
        if view is None:
            return
        if not (view.stale or check):
            return
        reader = self.services.reader
        view.stale = False
        vanished: list[int] = []
        mailbox = reader.mailbox_by_id(view.account, view.mailbox_id)
        if mailbox is not None:
            if mailbox.highestmodseq == view.modseq and mailbox.keywords == view.keywords:
                return
            if view.only_new(mailbox):
                changed = reader.arrivals(view.account, view.mailbox_id, view.uidnext, view.member)
            else:
                changed, vanished, mailbox = reader.changes(
                    view.account, view.mailbox_id, view.modseq, view.uidnext, view.member
                )
        if mailbox is None:
            self.deselect()
            self.stream.send(b"* BYE The selected mailbox was deleted\r\n")
            self.close()
            return
        view.absorb(changed, vanished, mailbox)

    def send(self, data: bytes) -> None:
        """Send octets of a response."""
        self.stream.send(data)

    def writable(self) -> None:
        """The stream's output is with the kernel."""
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
            self._drained = None
        if self._waiting:
            self._waiting = False
            if self.running is None:
                self.pump()
                self._take_input()

    def progress(self, tag: bytes, started_s: float, done: int, total: int) -> float:
        """Tell, every few seconds of a long command, how far it is (RFC 9585); since when to count from now on."""
        now = self.services.now()
        if now - started_s < PROGRESS_S or not tag:
            return started_s
        self.send(b"* OK [INPROGRESS (%b %d %d)] Still at it\r\n" % (response.string(tag), done, total))
        return now

    async def room(self) -> None:
        """Wait while the peer takes its responses slowly; gives other sessions a turn in any case."""
        if self.stream.pending_out > OUTPUT_HIGH:
            self._uncork()
            if self.stream.pending_out > OUTPUT_HIGH:
                self._drained = self.services.loop.create_future()
                await self._drained
                self.active_s = self.services.now()
                return
        await asyncio.sleep(0)

    def may_go_on(self) -> bool:
        """Whether the selected mailbox may still be read; if not, the session has been ended."""
        view = self.view
        if view is None or view.rights is None or places.renew(self):
            return True
        self.deselect()
        self.bye("You may no longer read the selected mailbox")
        return False

    # ------------------------------------------------------------------ states

    def logged_in(self, account: Any) -> None:
        """Authentication succeeded."""
        self.account = account
        self.number = account.number
        self.bindings = NO_BINDINGS
        self.engine.state = State.AUTHENTICATED
        self.services.know(account)

    def select(self, view: View) -> None:
        """`view` becomes the selected mailbox."""
        self.view = view
        self.engine.state = State.SELECTED
        view.condstore = b"CONDSTORE" in self.enabled
        view.mode = self._mode()
        self.services.store.watch(view.account, view.mailbox_id, self._changed)

    def deselect(self) -> None:
        """No mailbox is selected any more."""
        view, self.view = self.view, None
        if view is not None:
            self.services.store.unwatch(view.account, view.mailbox_id, self._changed)
            if len(view) >= KEPT_FROM and not view.member:
                self.services.views.keep(view)
        if self.engine.state == State.SELECTED:
            self.engine.state = State.AUTHENTICATED

    def _mode(self) -> int:
        """How views of this session speak."""
        enabled = self.enabled
        if not enabled:
            return 0
        return (
            VANISHED * bool(enabled & {b"QRESYNC", b"UIDONLY"})
            | UIDONLY * (b"UIDONLY" in enabled)
            | REV2 * (b"IMAP4REV2" in enabled)
        )

    def enable(self, words: list[bytes]) -> None:
        """The client enabled these (in upper case)."""
        self.enabled |= set(words)
        if self.enabled & {b"UTF8=ACCEPT", b"IMAP4REV2"}:
            self.engine.utf8 = True
        if b"UIDONLY" in self.enabled:
            self.engine.use(commands.UIDONLY, None)
        view = self.view
        if view is not None:
            view.mode = self._mode()
            if view.mode & REV2:
                view.forget_recent()

    def mailbox_text(self, name: str) -> bytes:
        """The name of a mailbox as this client reads it."""
        return response.utf8_string(name) if self.engine.utf8 and not name.isascii() else response.mailbox(name)

    def want_modseq(self) -> None:
        """The client used CONDSTORE (RFC 7162 3.1): it is told of mod-sequences from now on."""
        if b"CONDSTORE" in self.enabled:
            return
        self.enabled |= {b"CONDSTORE"}
        if self.view is not None:
            self.view.condstore = True
            self.send(b"* OK [HIGHESTMODSEQ %d] Highest\r\n" % self.view.modseq)

    def _changed(self, modseq: int) -> None:
        """The store pushed a change of the selected mailbox."""
        view = self.view
        if view is None:
            return
        if modseq and modseq <= view.modseq:
            return
        view.stale = True
        if self.idling and not self._pushing:
            self._pushing = True
            self.services.loop.call_soon(self._push)

    def notify(self, notifier: Notifier | None) -> None:
        """From now on this tells the client what it did not ask for; None: nobody does."""
        if self.notifier is not None:
            self.notifier.close()
        self.notifier = notifier

    def _push(self) -> None:
        """Tell an idling client what is new (RFC 2177)."""
        self._pushing = False
        if self.idling and self.view is not None and not self.closing and self.may_go_on():
            self.refresh(False)
            if self.view is not None:
                text = self.view.updates(True)
                if text:
                    self.stream.send(text)
                if self.view.contexts is not None:
                    self.services.keep_task(self.services.loop.create_task(telling.push_contexts(self)))

    def _offer(self, offer: Content) -> None:
        """A command wants to send content (APPEND)."""
        from iems.imapd.commands import append

        append.offered(self, offer)
