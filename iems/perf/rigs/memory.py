"""Memory of idle connections: logged in, a mailbox of 200 messages selected, then nothing."""

from __future__ import annotations

import imaplib
import ssl
import time
from collections.abc import Iterator
from typing import Any

from iems.perf import machine, measure
from iems.perf.filled import filled
from iems.perf.home import PASSWORD, PrivateHome

NAME = "memory"
TITLE = "Memory of an idle selected IMAP connection"
CASES = (("plain", 200), ("tls", 200))
CONNECTIONS = 500
#: One process holds both ends of nothing, but plenty of them: accounts are shared.
ACCOUNTS = 20


def _hold(home: PrivateHome, kind: str, count: int) -> list[imaplib.IMAP4]:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    held: list[imaplib.IMAP4] = []
    for number in range(count):
        if kind == "tls":
            session: imaplib.IMAP4 = imaplib.IMAP4_SSL("127.0.0.1", home.port("imaps"), ssl_context=context)
        else:
            session = imaplib.IMAP4("127.0.0.1", home.port("imap"))
        session.login(home.users()[number % ACCOUNTS].decode(), PASSWORD)
        session.select("INBOX")
        held.append(session)
    return held


def run(options: measure.Options) -> Iterator[dict[str, Any]]:
    """PSS growth of the server for each connection, plain and TLS."""
    count = max(40, int(CONNECTIONS * options.scale))
    for kind, each in CASES:
        with filled(ACCOUNTS, 4_096, each, options.folder) as home:
            for session in _hold(home, kind, 2 * ACCOUNTS):  # code paths and caches come first
                session.shutdown()
            time.sleep(0.5)
            before = machine.memory_octets([home.pid])["pss"]
            held = _hold(home, kind, count)
            time.sleep(0.5)
            grown = machine.memory_octets([home.pid])["pss"] - before
            for session in held:
                session.shutdown()
        per = grown / count
        yield {"rig": NAME, "case": f"{kind} {each}", "connections": count, "messages": each, "octets_each": (per, per, per)} | (
            {"constant": "connection_octets", "value": max(1, round(per))} if kind == "tls" else {}
        )
