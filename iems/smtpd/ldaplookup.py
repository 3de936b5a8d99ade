"""Whether a recipient of a relay domain stands in an external LDAP directory; answers are kept, questions about the same address joined.

A yes and a no are what a search says; everything else (no server, a refusal, a reference elsewhere, a time-out) is no answer.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from iems.net.breaker import Breaker, Guard, NoAnswer
from iems.net.ldap import Connection, Filter, LdapError, Server
from iems.secretfile import SecretError, read_secret

if TYPE_CHECKING:
    from iems.config import Ldap

#: The word that there was no answer is kept for so long.
UNSURE_S: Final = 10.0
MAX_KEPT: Final = 100_000
#: Questions under way at once, and those that may wait for their turn.
MAX_ASKED: Final = 50
MAX_WAITING: Final = 500


class LdapLookup:
    """Asks and remembers. settings: [ldap]. home: for files of the settings. told: hears when the servers stop answering (True) or answer again."""

    def __init__(self, settings: Ldap, home: Path, told: Callable[[bool, str], None] = lambda is_open, reason: None) -> None:
        self._settings = settings
        self._home = home
        self._servers = [Server.of(uri) for uri in settings.uris]
        self._filter = Filter(settings.filter)
        # each connection and each search has its own limit
        self._guard = Guard("ldap", timeout_s=None, at_once=MAX_ASKED, breaker=Breaker(told))
        self._kept: OrderedDict[bytes, tuple[float, bool | None]] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[bool | None]] = {}
        self._connecting = asyncio.Lock()
        self._connection: Connection | None = None

    async def exists(self, address: bytes) -> bool | None:
        """Whether an entry is found for an address (domain in lower case); None if that can't be found out now."""
        loop = asyncio.get_running_loop()
        kept = self._kept.get(address)
        if kept is not None:
            if kept[0] > loop.time():
                self._kept.move_to_end(address)
                return kept[1]
            del self._kept[address]
        task = self._asking.get(address)
        if task is None:
            if len(self._asking) >= MAX_WAITING:
                return None
            task = self._asking[address] = loop.create_task(self._ask(address))
            task.add_done_callback(lambda done: self._answered(address, done, loop.time()))
        return await asyncio.shield(task)

    def _answered(self, address: bytes, task: asyncio.Task[bool | None], now_s: float) -> None:
        self._asking.pop(address, None)
        if task.cancelled() or task.exception() is not None:
            return
        answer = task.result()
        settings = self._settings
        keep_s = UNSURE_S if answer is None else settings.known_s if answer else settings.unknown_s
        self._kept[address] = now_s + keep_s, answer
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)

    def close(self) -> None:
        """Give up what is under way."""
        for task in list(self._asking.values()):
            task.cancel()
        if self._connection is not None:
            self._connection.close()

    async def _ask(self, address: bytes) -> bool | None:
        if not self._servers:
            return None
        if any(octet < 32 or octet == 127 for octet in address):
            return False  # no address has such, and servers that end text at a NUL would find another
        local, _, domain = address.rpartition(b"@")
        wanted = self._filter.encode({"s": address, "u": local, "d": domain})
        try:
            async with self._guard.asking(LdapError, SecretError):
                return await self._search(wanted)
        except NoAnswer:
            return None

    async def _search(self, wanted: bytes) -> bool:
        """Ask over the connection there is; over a new one if that one had ended unseen. Raises LdapError, OSError, SecretError, TimeoutError."""
        settings = self._settings
        fresh = False
        while True:
            connection = self._connection
            if connection is None or connection.closed:
                connection, fresh = await self._connect(), True
            try:
                async with asyncio.timeout(settings.timeout_s):
                    return await connection.exists(settings.base, settings.scope, wanted, max(1, int(settings.timeout_s)))
            except TimeoutError:
                # A server that answers nothing is left; the next question may find another.
                connection.close()
                raise LdapError(f"no answer within {settings.timeout_s:g} s") from None
            except LdapError:
                if fresh or not connection.closed:
                    raise

    async def _connect(self) -> Connection:
        """A connection to the first server that takes us. Raises LdapError, SecretError."""
        async with self._connecting:
            if self._connection is not None and not self._connection.closed:
                return self._connection
            settings = self._settings
            password, context = await asyncio.to_thread(self._prepare)
            trouble = []
            for server in self._servers:
                try:
                    async with asyncio.timeout(settings.timeout_s):
                        self._connection = await Connection.open(
                            server, context=context, starttls=settings.starttls, name=settings.bind_dn, password=password
                        )
                    return self._connection
                except (LdapError, OSError, TimeoutError) as error:
                    trouble.append(f"{server}: {error or type(error).__name__}")
            raise LdapError("; ".join(trouble))

    def _prepare(self) -> tuple[bytes, ssl.SSLContext | None]:
        """In a thread: password and TLS as the files have them now. Raises SecretError, OSError."""
        settings = self._settings
        password = read_secret(self._home / settings.password_file) if settings.password_file else b""
        context = None
        if settings.starttls or any(server.tls for server in self._servers):
            context = ssl.create_default_context(cafile=str(self._home / settings.ca_file) if settings.ca_file else None)
        return password, context


def lookup_of(settings: Ldap, home: Path, log: Any) -> LdapLookup:
    """The look-up of a home, its troubles told in the log."""

    def told(is_open: bool, reason: str) -> None:
        if is_open:
            log.error("the LDAP servers of [ldap] are not asked for a while", LdapError(reason))
        else:
            log.event("ldap-answers")

    return LdapLookup(settings, home, told)


__all__ = ["LdapLookup", "lookup_of"]
