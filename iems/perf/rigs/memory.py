"""Memory of idle connections: logged in, a mailbox selected, then nothing.

Of three lots of connections, all held, the last is measured: by then logins have left their buffers behind (a password hash works in 19
MiB), and what the allocator had at hand is used up. A server is fresh for each case; the accounts of all lots are the same. `octets_each`: growth of the memory of the whole server that belongs to no file, a page shared by n
processes counted as one nth (PSS). `pss_each`: the same with pages of files (programs, the store's map). `worker_each`: growth of
the IMAP workers alone. What the kernel holds for a socket is in none of them.
"""

from __future__ import annotations

import contextlib
import imaplib
import re
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from iems._native import loadgen
from iems.perf import machine, peers
from iems.perf.filled import filled, filled_dovecot
from iems.perf.home import PASSWORD, PrivateHome
from iems.perf.measure import Options, Server

NAME = "memory"
TITLE = "Memory of an idle selected IMAP connection"
PEERS = {"dovecot sdbox": ("dovecot",)}
#: Messages in the mailbox, accounts, connections of a lot plain and TLS, of a peer's lot (each costs it a process): 5,000 at last.
CASES = ((200, 20, 1_667, 400, 60), (10_000, 4, 200, 100, 60))
#: Lots of connections that warm the server up before the measured one.
WARM = 2
#: Seconds between two looks at the memory, which count when they agree within STEADY octets; and how often it is looked at.
SETTLE_S, STEADY, LOOKS = 0.6, 256 << 10, 20


class Held:
    """Idle sessions, open until `close`."""

    def __init__(self, server: Server, tls: bool, count: int) -> None:
        self._over = loadgen.Over()
        self._sessions: list[imaplib.IMAP4] = []
        self._thread: threading.Thread | None = None
        users = server.users()
        if tls:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE

            def connect(number: int) -> imaplib.IMAP4:
                session = imaplib.IMAP4_SSL("127.0.0.1", server.port("imaps"), ssl_context=context)
                session.login(users[number % len(users)].decode(), PASSWORD)
                session.select("INBOX")
                return session

            with ThreadPoolExecutor(4) as pool:
                self._sessions = list(pool.map(connect, range(count)))
            return
        there = threading.Event()
        self._failed = ""

        def hold() -> None:
            try:
                result = loadgen.fetch(
                    server.port("imap"), users, PASSWORD.encode(), None, 1, 1, sessions=count, idle_s=3600, over=self._over,
                    on_mark=lambda which: there.set(),
                )  # fmt: skip
                if result["done"] < count:
                    self._failed = f"{count - result['done']} sessions of {count} were refused: {result['complaint']}"
            except OSError as error:
                self._failed = str(error)
            there.set()

        self._thread = threading.Thread(target=hold)
        self._thread.start()
        there.wait(300)
        if self._failed:
            raise RuntimeError(self._failed)

    def close(self) -> None:
        """End them. Raises RuntimeError if they were not all there."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(30)
            if self._failed:
                raise RuntimeError(self._failed)
        for session in self._sessions:
            session.shutdown()


def memory(server: Any) -> dict[str, int]:
    """Memory of all processes of a server: `own` (PSS of pages of no file), `pss`, and `worker`, what IMAP workers of ours hold."""
    pids = [pid for of in server.roles().values() for pid in of] if isinstance(server, PrivateHome) else server.pids()
    total = {"own": 0, "pss": 0, "worker": 0}
    workers = set(server.roles().get("imapd", [])) if isinstance(server, PrivateHome) else set()
    for pid in pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        values = {k: int(v) * 1024 for k, v in re.findall(r"^(\w+):\s+(\d+) kB", rollup, re.MULTILINE)}
        total["own"] += values.get("Pss_Anon", 0)
        total["pss"] += values.get("Pss", 0)
        if pid in workers:
            total["worker"] += values.get("Anonymous", 0)
    return total


def steady(server: Any) -> dict[str, int]:
    """The memory once it changes no more: logins and deliveries give back what they worked in a little later."""
    found = memory(server)
    for _ in range(LOOKS):
        time.sleep(SETTLE_S)
        last, found = found, memory(server)
        if abs(found["own"] - last["own"]) <= STEADY:
            break
    return found


def growth(server: Any, tls: bool, count: int) -> dict[str, float]:
    """Octets for each of `count` connections after the server has had as many twice over."""
    with contextlib.ExitStack() as stack:
        for _ in range(WARM):
            stack.callback(Held(server, tls, count).close)
        before = steady(server)
        stack.callback(Held(server, tls, count).close)
        after = steady(server)
    return {key: (after[key] - before[key]) / count for key in before}


def run(options: Options) -> Iterator[dict[str, Any]]:
    """Plain and TLS, a small mailbox and a large one; then what they say of a connection and of a message, for the calculator."""
    found: dict[tuple[bool, int], float] = {}
    base = 0
    for messages, accounts, plain, secure, few in CASES:
        held = messages if messages <= 1_000 else options.count(messages, 2_000)
        for tls in (False, True):
            count = options.count(secure if tls else plain, 50 if messages > 1_000 else 150 if tls else 300)
            with machine.descriptors(), filled(accounts, 1_000, held, options.folder) as home:
                base = base or memory(home)["pss"]
                grown = growth(home, tls, count)
            found[tls, held] = grown["worker"]
            ours = _record(held, tls, count, grown)
            yield ours | {"worker_each": (grown["worker"],) * 3, "also": ["connections", "pss_each", "worker_each"]}
            if "dovecot" in options.peers:
                count = options.count(few, 10)
                with filled_dovecot(accounts, 1_000, held, options.folder, peers.started("dovecot", options), "sdbox") as peer:
                    theirs = _record(held, tls, count, growth(peer, tls, count))
                yield theirs | {"peer": "dovecot sdbox", "also": ["connections", "pss_each"]}
                ratio = theirs["octets_each"][0] / max(1.0, ours["octets_each"][0])
                yield {"rig": NAME, "case": ours["case"], "versus": "dovecot sdbox", "ratios": {"octets_each": (ratio,) * 3}}
    small, large = sorted({held for _, held in found})
    for tls in (False, True):
        message = max(0.0, (found[tls, large] - found[tls, small]) / (large - small))
        connection = max(1.0, found[tls, small] - message * small)
        what = "tls" if tls else "plain"
        yield {"rig": NAME, "case": f"{what}, a connection", "octets_each": (connection,) * 3} | (
            {"constant": "connection_octets", "value": round(connection)} if tls else {}
        )
        yield {"rig": NAME, "case": f"{what}, a message in it", "octets_each": (message,) * 3} | (
            {"constant": "selected_message_octets", "value": max(1, round(message))} if tls else {}
        )
    yield {"rig": NAME, "case": "the server alone", "octets_each": (float(base),) * 3, "constant": "component_octets", "value": base}


def _record(messages: int, tls: bool, count: int, grown: dict[str, float]) -> dict[str, Any]:
    return {
        "rig": NAME,
        "case": f"{'tls' if tls else 'plain'} {messages}",
        "messages": messages,
        "connections": count,
        "octets_each": (grown["own"],) * 3,
        "pss_each": (grown["pss"],) * 3,
    }
