"""The engine of a session to another host whose commands and replies are logged; used while `log.level` is `sessions` or above.

What may hold a secret (AUTH and what follows it until its end) is not handed on; content is none of the engine's output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from iems.smtpc.engine import Engine

SHOWN = 512
HIDDEN = b"***"


class LoudEngine(Engine):
    """See the module. heard: called with ">" for what is sent and "<" for what came, and the line."""

    def __init__(self, heard: Callable[[str, bytes], Any], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._heard = heard
        self._cut = b""
        self._secret = False

    def take_output(self) -> bytes:
        """As the engine's."""
        out = super().take_output()
        for line in out.split(b"\r\n"):
            if not line:
                continue
            if line[:5].upper() == b"AUTH ":
                self._secret = True
                self._heard(">", b" ".join(line.split(b" ")[:2]) + b" " + HIDDEN)
            else:
                self._heard(">", HIDDEN if self._secret else line[:SHOWN])
        return out

    def feed(self, data: bytes | memoryview) -> None:
        """As the engine's."""
        *lines, rest = (self._cut + bytes(data)).split(b"\n")
        self._cut = rest[:SHOWN]
        for line in lines:
            if line[:3] != b"334":
                self._secret = False
            self._heard("<", HIDDEN if self._secret else line[:SHOWN].rstrip(b"\r"))
        super().feed(data)
