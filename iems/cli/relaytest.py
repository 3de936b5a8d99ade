"""The open relay test of `iemsctl doctor`: asks the running server, as a stranger would, to take mail for others.

Each way that servers have been talked into relaying is tried with MAIL, RCPT and RSET; no content is ever sent, so nothing is
delivered. RFC 5321 7.9 and 3.6.1; the ways are those the public relay testers of the field use.
"""

from __future__ import annotations

import contextlib
import ipaddress
import smtplib
import socket
from collections.abc import Iterable

#: A domain that is nobody's (RFC 2606).
OUTSIDE = "relay-test.invalid"
#: Wait for a connection or a reply.
TIMEOUT_S = 10.0
#: Networks with so few fixed bits hold strangers.
WIDE = {4: 8, 6: 16}


def attempts(local_domain: str, hostname: str, ip: str) -> list[tuple[str, str, str]]:
    """(what is tried, reverse-path, forward-path); local_domain: one of ours, ip: an address of the server."""
    outside = f"victim@{OUTSIDE}"
    there = f"[IPv6:{ip}]" if ":" in ip else f"[{ip}]"
    return [
        ("a stranger to a stranger", f"stranger@{OUTSIDE}", outside),
        ("the null path to a stranger", "", outside),
        ("our own domain as sender", f"postmaster@{local_domain}", outside),
        ("our host name as sender", f"postmaster@{hostname}", outside),
        ("our address as sender", f"postmaster@{there}", outside),
        ("a sender without domain", "postmaster", outside),
        ("percent", f"stranger@{OUTSIDE}", f"victim%{OUTSIDE}@{local_domain}"),
        ("percent at our address", f"stranger@{OUTSIDE}", f"victim%{OUTSIDE}@{there}"),
        ("a quoted address", f"stranger@{OUTSIDE}", f'"{outside}"@{local_domain}'),
        ("a quoted address alone", f"stranger@{OUTSIDE}", f'"{outside}"'),
        ("a source route", f"stranger@{OUTSIDE}", f"@{local_domain}:{outside}"),
        ("a UUCP path", f"stranger@{OUTSIDE}", f"{OUTSIDE}!victim@{local_domain}"),
    ]


def wide(networks: Iterable[str]) -> list[str]:
    """Those of `smtpd.trusted_networks` that hold strangers too."""
    found = []
    for text in networks:
        network = ipaddress.ip_network(text, strict=False)
        if network.prefixlen < WIDE[network.version] and not network.is_private:
            found.append(text)
    return found


def outside_address(listening: str) -> str:
    """Where to ask from so as to look like a stranger: an address of this machine that is not loopback, if one is listened on."""
    if listening not in ("0.0.0.0", "::"):
        return listening
    family = socket.AF_INET6 if listening == "::" else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        # No packet leaves: connecting a datagram socket only asks the kernel which address it would use.
        sock.connect(("2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1", 9))
        return str(sock.getsockname()[0])
    return "::1" if listening == "::" else "127.0.0.1"


def accepted(address: str, port: int, ways: Iterable[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """(what, forward-path) of the ways that the server would take. Raises OSError, smtplib.SMTPException."""
    taken = []
    for what, sender, recipient in ways:
        # A connection each: a server that counts errors would end one that tries them all.
        with smtplib.SMTP(timeout=TIMEOUT_S) as client:
            code, greeting = client.connect(address, port)
            if code != 220:
                raise smtplib.SMTPConnectError(code, greeting)
            client.ehlo(OUTSIDE)
            if client.docmd("MAIL", f"FROM:<{sender}>")[0] == 250:
                if 200 <= client.docmd("RCPT", f"TO:<{recipient}>")[0] < 300:
                    taken.append((what, recipient))
                client.docmd("RSET")
    return taken
