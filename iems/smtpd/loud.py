"""The engine of a session whose commands and replies are logged; used while `log.level` is `sessions` or above.

What may hold a secret is never handed on: of AUTH only the mechanism, of an answer within it nothing, and nothing of a line that is no
command (it may be a password sent out of turn). Of content only its size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from iems.model import Reply
from iems.smtpd.engine import COMMANDS, Command, Engine, Settings

#: Octets of a line that are shown.
SHOWN = 512
HIDDEN = b"***"


class LoudEngine(Engine):
    """See the module. heard: called with "<" for what came and ">" for what is sent, and the line. reads: each read is told of too."""

    __slots__ = ("_heard", "_reads")

    def __init__(self, settings: Settings, heard: Callable[[str, bytes], Any], reads: bool = False) -> None:
        super().__init__(settings)
        self._heard = heard
        self._reads = reads

    def feed(self, view: memoryview | bytes) -> None:
        """As the engine's."""
        if self._reads:
            self._heard("<", b"(%d octets read in state %d)" % (len(view), self.state))
        super().feed(view)

    def take_output(self) -> bytes:
        """As the engine's."""
        out = super().take_output()
        for line in out.split(b"\r\n"):
            if line:
                self._heard(">", b"334 " + HIDDEN if line[:4] == b"334 " else line[:SHOWN])
        return out

    def command(self, row: Command, argument: bytes) -> None:
        """A command line that was read."""
        if not row.name:
            shown = b"(no command, %d octets)" % len(argument)
        elif row.name == b"AUTH":
            mechanism, blank, rest = argument.partition(b" ")
            shown = b"AUTH " + mechanism[:SHOWN] + (b" " + HIDDEN if rest else blank)
        else:
            shown = row.name + (b" " + argument[:SHOWN] if argument else b"")
        self._heard("<", shown)

    def _out_of_order(self, verb: int, state: int) -> Reply:
        self._heard("<", COMMANDS[verb].name + b" (out of order)")
        return super()._out_of_order(verb, state)

    def _broken(self, verb: int, limit: int, too_long: Reply) -> bool:
        broken = super()._broken(verb, limit, too_long)
        if broken:
            self._heard("<", b"(no line)")
        return broken

    def _take_response(self) -> Any:
        found = super()._take_response()
        if found is not False:
            self._heard("<", HIDDEN)
        return found

    def _complete(self) -> Any:
        transaction = self.transaction
        if transaction is not None and transaction.decoder is not None:
            self._heard("<", b"(content, %d octets)" % transaction.decoder.octets)
        return super()._complete()


def _telling(row: Command) -> Callable[[Any, bytes], Any]:
    def begin(engine: LoudEngine, argument: bytes) -> Any:
        engine.command(row, argument)
        return row.begin(engine, argument)

    return begin


LoudEngine.begin_of = [_telling(row) for row in COMMANDS]
