"""A ManageSieve session's effects: log-in, scripts read and written beside the loop. The protocol is in engine.py."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from msgspec import Struct

from iems.directory import Account, Authenticator, Directory
from iems.errors import DirectoryUnavailable, LoginHeldBack
from iems.net.stream import Stream
from iems.sieve import ScriptError, compile_script
from iems.sieved.engine import Engine, Login, Request, StartTls, State
from iems.store.scripts import Refused, Scripts, scripts_of

#: Input not yet looked at above which nothing more is read while a command is in work.
BACKLOG_OCTETS = 64 * 1024


class Services(Struct):
    """What sessions need; one a worker.

    store: its folder. pool: threads for scripts. tls: server context or None. plaintext: the setting `auth.plaintext`.
    count(name, n), event(name, **detail), error(text, exc): of the worker. opened(session), closed(session): a session begins and is gone.
    """

    loop: asyncio.AbstractEventLoop
    directory: Directory
    store: Path
    authenticator: Authenticator
    pool: Executor
    tls: ssl.SSLContext | None
    plaintext: str
    timeout_s: float
    login_timeout_s: float
    max_failures: int
    count: Callable[[str, int], Any]
    event: Callable[..., Any]
    error: Callable[[str, BaseException], Any]
    opened: Callable[[Session], None]
    closed: Callable[[Session], None]


def is_loopback(address: str) -> bool:
    """Whether a peer address is this machine's."""
    return address.startswith("127.") or address == "::1" or address.startswith("::ffff:127.")


class Session:
    """One connection: handler of its stream."""

    def __init__(self, services: Services, sock: socket.socket) -> None:
        self.services = services
        self.draining = False
        self._busy = self._pumping = self._paused = self._eof = self._lost = False
        self._task: asyncio.Task[None] | None = None
        self._scripts: Scripts | None = None
        self._account: Account | None = None
        self._started = self._active = services.loop.time()
        self.stream = Stream(services.loop, sock, self)
        self.peer_ip = str(self.stream.peer[0]) if self.stream.peer else ""
        plaintext = services.plaintext == "always" or (
            services.plaintext == "loopback" and is_loopback(self.peer_ip)
        )
        self.engine = Engine(
            tls_offered=services.tls is not None, plaintext=plaintext, max_failures=services.max_failures
        )
        services.opened(self)
        self._timer = services.loop.call_later(services.login_timeout_s, self._look)
        self.engine.greet()
        self.stream.send(self.engine.take_output())

    def _look(self) -> None:
        """Has the session been silent too long, or too long without a login?"""
        services, now = self.services, self.services.loop.time()
        if self._busy or self.stream.pending_out:
            self._active = now
        if self.engine.state is State.GREETED:
            due = self._started + services.login_timeout_s
        else:
            due = self._active + services.timeout_s
        if due <= now:
            self.engine.end("Silent too long")
            self._finish()
            if not self._lost:
                self._timer = services.loop.call_later(10.0, self.stream.abort)
        else:
            self._timer = services.loop.call_later(due - now, self._look)

    # From the stream

    def data_received(self, view: memoryview) -> None:
        """Octets from the peer."""
        self._active = self.services.loop.time()
        self.engine.feed(view)
        self._pump()

    def eof_received(self) -> None:
        """The peer sends no more: what it has asked for is answered."""
        self._eof = True
        self._pump()

    def tls_ready(self) -> None:
        """The handshake is done."""
        self.services.count("tls_total", 1)
        self.engine.secured()
        self._busy = False
        self._pump()

    def connection_lost(self, cause: Exception | None) -> None:
        """The connection is gone; a command under way ends by itself."""
        self._lost = True
        self._timer.cancel()
        self.services.closed(self)

    # Commands

    def drain(self) -> None:
        """The server stops: end when nothing is under way."""
        self.draining = True
        if not self._busy:
            self.engine.end("The server is going down")
            self._finish()

    def _pump(self) -> None:
        """Look at commands until one has to wait."""
        if self._pumping or self._lost:
            return
        self._pumping = True
        engine, stream = self.engine, self.stream
        try:
            while not self._busy:
                event = engine.next_event()
                if event is None:
                    break
                self._busy = True
                if isinstance(event, StartTls):
                    stream.send(engine.take_output())
                    assert self.services.tls is not None
                    stream.start_tls(self.services.tls)
                    return
                work = self._login(event) if isinstance(event, Login) else self._request(event)
                self._task = self.services.loop.create_task(self._guard(work))
            self._finish()
        finally:
            self._pumping = False

    def _finish(self) -> None:
        """Send what the engine has to say; close, or read on, as it stands."""
        engine, stream = self.engine, self.stream
        out = engine.take_output()
        if out:
            stream.send(out)
        if not self._busy and (engine.state is State.CLOSED or self._eof):
            stream.close()
        elif self._busy and engine.buffered > BACKLOG_OCTETS:
            if not self._paused:
                self._paused = True
                stream.pause_reading()
        elif self._paused and not self._busy and not self._eof:
            self._paused = False
            stream.resume_reading()

    async def _guard(self, work: Any) -> None:
        try:
            await work
        except Exception as fault:
            # Ours, not the client's: it learns nothing but that it may try again.
            self.services.count("errors_total", 1)
            self.services.error("ManageSieve command failed", fault)
            self.engine.no("Internal error, try again later", "TRYLATER")
        finally:
            self._task = None
            self._busy = False
        if self._lost:
            return
        if self.draining:
            self.engine.end("The server is going down")
        self._pump()

    async def _login(self, event: Login) -> None:
        services, engine = self.services, self.engine
        try:
            account = await services.authenticator.check(event.login, event.password, self.peer_ip)
        except LoginHeldBack:
            text = "Too many failed logins from your network, try again later"
            engine.refuse_login(text, wrong=True, code="TRYLATER")
            return
        except DirectoryUnavailable as fault:
            services.error("login can't be checked", fault)
            engine.refuse_login("Try again later", code="TRYLATER")
            return
        if account is None:
            services.count("logins_failed_total", 1)
            services.event("login-failed", protocol="sieve", user=event.login[:320], client=self.peer_ip)
            engine.refuse_login("Wrong name or password", wrong=True)
            return
        self._account = account
        self._scripts = scripts_of(services.directory, services.store, account)
        engine.logged_in(account.address)
        services.count("logins_total", 1)
        services.event("login", protocol="sieve", user=account.address, client=self.peer_ip)

    async def _request(self, event: Request) -> None:
        engine = self.engine
        assert self._scripts is not None and self._account is not None
        try:
            found = await self.services.loop.run_in_executor(
                self.services.pool, self._do, self._scripts, event
            )
        except Refused as refusal:
            engine.no(str(refusal), refusal.code)
        except ScriptError as error:
            engine.no(str(error).replace("\n", "\r\n"))
        except (OSError, DirectoryUnavailable) as fault:
            self.services.error("scripts can't be read or written", fault)
            engine.no("Try again later", "TRYLATER")
        else:
            if event.command in ("PUTSCRIPT", "SETACTIVE", "DELETESCRIPT", "RENAMESCRIPT"):
                self.services.event(
                    "script", user=self._account.address, command=event.command.lower(), name=event.name[:128]
                )
            if isinstance(found, str):
                engine.script(found)
            elif found is not None:
                engine.listing(found)
            else:
                engine.ok()

    def _do(self, scripts: Scripts, event: Request) -> str | list[tuple[str, bool]] | None:
        """One command, in a thread. Raises Refused, ScriptError, OSError, DirectoryUnavailable."""
        assert self._account is not None
        now = self.services.directory.account_by_number(self._account.number)
        if now is None or not now.enabled:
            raise Refused("The account is gone or disabled")
        command, name = event.command, event.name
        if command == "LISTSCRIPTS":
            kept = scripts.read()
            return [(each, each == kept.active) for each in kept.scripts]
        if command == "GETSCRIPT":
            return scripts.get(name)
        if command == "CHECKSCRIPT":
            compile_script(event.text)
        elif command == "HAVESPACE":
            scripts.room(name, event.size)
        elif command == "PUTSCRIPT":
            # Looked at as octets first: what is no UTF-8 is an error of the script.
            scripts.room(name, len(event.text))
            compile_script(event.text)
            scripts.put(name, event.text.decode())
        elif command == "SETACTIVE":
            scripts.activate(name)
        elif command == "DELETESCRIPT":
            scripts.delete(name)
        else:
            scripts.rename(name, event.text.decode())
        return None
