"""What a session says later than it could: the greeting, in which a client must be silent, and answers in the tarpit."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from iems.model import Reply
from iems.smtpd import handlers

if TYPE_CHECKING:
    from iems.config import Smtpd
    from iems.net.stream import Stream
    from iems.smtpd.door import Door

#: A tarpit delays no answer for longer.
TARPIT_S = 60.0
#: Wait for octets that are there already.
READ_S = 1.0


class Pace:
    """Delays of all sessions of a worker, from its settings."""

    def __init__(self, smtpd: Smtpd, door: Door, loop: asyncio.AbstractEventLoop) -> None:
        self.door = door
        self.loop = loop
        self.greeting_delay_s = smtpd.greeting_delay_s
        self.early_talker = smtpd.early_talker
        self.tarpit_s = smtpd.tarpit_s
        self.tarpit_errors = smtpd.tarpit_errors


class Session(handlers.Session):
    """A session that may have to wait. `late`: until when; `greeted`: whether the greeting is sent.

    Whoever has the sockets gives `stream` and `pace`, feeds nothing while `late` is set, sends in `send_turn`, ends in `finish`.
    """

    __slots__ = ("_errors", "_late_out", "greeted", "late", "pace", "stream")

    stream: Stream
    pace: Pace

    def open(self, sock: socket.socket) -> None:
        """Greet, at once or after the delay."""
        pace = self.pace
        self.late: asyncio.TimerHandle | None = None
        self._late_out = b""
        #: Refusals that were answered so far.
        self._errors = 0
        self.greeted = True
        if self.listener == "submissions":
            return
        if self.strict and self.listener == "smtp" and pace.early_talker != "off":
            wait_s = pace.greeting_delay_s
            if wait_s or _speaks(sock):
                # What is there already is read first, or closing would take the reply from the client.
                self.greeted = False
                self.late = pace.loop.call_later(wait_s or READ_S, self.greet)
                return
        self.greet()

    def greet(self) -> None:
        """Send the greeting."""
        self.greeted = True
        self.late = None
        self.engine.greet()
        self.stream.send(self.engine.take_output())

    def spoke_early(self) -> None:
        """Octets came before the greeting: end the session, or note it and greet."""
        if self.late is not None:
            self.late.cancel()
            self.late = None
        refusal = self.pace.door.early_talker(self, self.pace.early_talker)
        if refusal is not None:
            self.finish(refusal)
        else:
            self.greet()

    # ---------------------------------------------------------------- the tarpit

    def turned(self, out: bytes) -> None:
        """Send what a turn gave, at once or after a while in the tarpit."""
        if self.strict and self.pace.tarpit_s and self._stuck(out):
            return
        self.send_turn(out)

    def _stuck(self, out: bytes) -> bool:
        """Whether answers wait: one delay for each refused command above those that are free."""
        if self.late is not None:
            self._late_out += out
            return True
        pace = self.pace
        errors = self.engine.errors
        fresh = errors - max(self._errors, pace.tarpit_errors)
        self._errors = errors
        if fresh <= 0 or not out:
            return False
        delay_s = min(fresh * pace.tarpit_s, TARPIT_S)
        self._late_out = out
        self.late = pace.loop.call_later(delay_s, self._unstuck)
        self.stuck(delay_s)
        return True

    def _unstuck(self) -> None:
        out, self._late_out = self._late_out, b""
        self.late = None
        self.send_turn(out)
        engine = self.engine
        if engine.backlog and not (engine.waiting or engine.closed):
            self.turned(self.turn())

    def hurry(self) -> bool:
        """Answer at once what waits in the tarpit, as nothing more comes that could be slowed down; whether anything did."""
        if self.late is None or not self._late_out:
            return False
        self.late.cancel()
        self._unstuck()
        return True

    def take_late(self) -> bytes:
        """What was to be sent later, which now is not."""
        if self.late is not None:
            self.late.cancel()
            self.late = None
        late, self._late_out = self._late_out, b""
        return late

    # ---------------------------------------------------------------- of whoever has the sockets

    def send_turn(self, out: bytes) -> None:
        """Send, then close, start TLS or wait on."""
        raise NotImplementedError

    def stuck(self, delay_s: float) -> None:
        """Answers are late by so much."""
        raise NotImplementedError

    def finish(self, reply: Reply) -> None:
        """Say a last reply and close."""
        raise NotImplementedError


def _speaks(sock: socket.socket) -> bool:
    """Whether octets are there already; they stay there."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False
