"""SMTPD reception with every check on, beside the same without: bans, DNS-BLs, checks of sender, client and HELO, limits, SPF, DKIM, DMARC, ARC.

DNS is a process on loopback. Mail is signed, and its sender's domain vouches for it, so each message costs a verified signature. What checks change
is the CPU a message and the rate; after the first messages DNS answers from the caches.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from typing import Any

from iems._native import loadgen
from iems.perf import measure, messages
from iems.perf.dns import PrivateDns
from iems.perf.home import DOMAIN, PrivateHome
from iems.perf.measure import Options, Reading

NAME = "smtp_checked"
TITLE = "SMTP accept with all checks on"
CASES = ((4_096, 1), (4_096, 50), (250_000, 10))
SENDER = "sender.test"
LISTS = ("one.bl.test", "two.bl.test", "three.bl.test")
ACCOUNTS = 50
#: Addresses and domains that are banned, none of them the sender's.
BANS = 20


def run(options: Options) -> Iterator[dict[str, Any]]:
    """Each case without and with checks, repetition by repetition in turn; `times` is the median ratio of what it costs and reaches."""
    from iems.authres import sign

    key = sign.new_key("rsa")
    record = sign.record(key)
    zone = {
        (SENDER, "MX"): [f"10 mx.{SENDER}."],
        (SENDER, "TXT"): ['"v=spf1 ip4:127.0.0.1 -all"'],
        (f"mx.{SENDER}", "A"): ["127.0.0.1"],
        (f"_dmarc.{SENDER}", "TXT"): ['"v=DMARC1; p=reject"'],
        (f"s._domainkey.{SENDER}", "TXT"): [" ".join(f'"{record[at : at + 255]}"' for at in range(0, len(record), 255))],
        ("1.0.0.127.in-addr.arpa", "PTR"): [f"mx.{SENDER}."],
        (DOMAIN, "A"): ["127.0.0.1"],
    } | {(f"2.0.0.127.{name}", "A"): ["127.0.0.2"] for name in LISTS}
    with PrivateDns(zone) as dns:
        off = {"smtpd.max_sessions_per_ip": 0}
        on = {
            "dns.servers": [f"127.0.0.1:{dns.port}"], "smtpd.limit_loopback": True, "smtpd.max_sessions_per_ip": 1000,
            "smtpd.max_sessions_per_network": 2000, "smtpd.session_rate": 100_000, "smtpd.message_rate": 10_000_000,
            "smtpd.recipient_rate": 10_000_000, "smtpd.greeting_delay_s": 0.1, "smtpd.check_sender_domain": "reject",
            "smtpd.check_client_name": "reject", "smtpd.check_helo": "tag", "smtpd.check_unqualified": "reject",
            "authres.verify": True, "authres.dmarc": "reject",
        }  # fmt: skip
        with (
            PrivateHome(ACCOUNTS, off, options.folder, held=("LOCAL",)) as plain,
            PrivateHome(ACCOUNTS, on, options.folder, held=("LOCAL",)) as checked,
        ):
            for name in LISTS:
                checked.ctl("dnsbl", "add", name, "--action", "tag")
            for number in range(BANS):
                checked.ctl("ban", "add", "domain", f"banned{number}.test")
            for octets, sessions in CASES:
                pool = [_signed(message, key) for message in messages.pool(octets, 16)]
                sides: dict[str, list[Reading]] = {"plain": [], "checked": []}
                for _ in range(options.repeats):
                    for name, home in (("plain", plain), ("checked", checked)):
                        sides[name].append(_repetition(options, home, pool, sessions))
                values = {"octets": octets, "sessions": sessions}
                yield {"rig": NAME, "case": f"{octets}x{sessions} plain"} | values | measure.figures(sides["plain"])
                _vouched(checked)
                pairs = list(zip(sides["plain"], sides["checked"], strict=True))
                ratios = {
                    f"{key}_times": measure.figures([{"r": b[key] / a[key]} for a, b in pairs])["r"]
                    for key in ("per_s", "cpu_us")
                }
                yield (
                    {"rig": NAME, "case": f"{octets}x{sessions} checked", "also": list(ratios)} | values
                    | measure.figures(sides["checked"]) | ratios
                )  # fmt: skip


def _vouched(home: PrivateHome) -> None:
    """Raises RuntimeError unless the checks were made and the sender's domain was found to vouch for its mail."""
    end = time.monotonic() + 60.0
    missing: str | None = "anything"
    while missing is not None and time.monotonic() < end:
        with open(home.path / "log/mail.log", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 1_000_000))
            log = file.read()
        missing = next((said for said in ("spf=pass", "dkim=pass", "dmarc=pass") if said.encode() not in log), None)
        time.sleep(0.0 if missing is None else 0.2)
    if missing is not None:
        raise RuntimeError(f"the checks did not say {missing}")


def _signed(message: tuple[bytes, int], key: Any) -> tuple[bytes, int]:
    """The message from the domain that vouches for it, signed; the digits that make each one unique stand outside of what is signed."""
    from iems.authres.mail import Mail
    from iems.authres.sign import Signer

    octets, _ = message
    head, _, body = octets.partition(b"\r\n\r\n")
    fields = [line for line in head.replace(b"\r\n\t", b"\t").split(b"\r\n") if not line.startswith((b"DKIM", b"Message-ID", b"From"))]
    rest = b"\r\n".join([*fields, b"From: <sender@" + SENDER.encode() + b">"]) + b"\r\n\r\n" + body
    content = rest.replace(b"\r\n..", b"\r\n.")  # as it is after the dots are taken out
    mail = Mail(len(content), lambda start, length: content[start : start + length])
    signature = asyncio.run(Signer(SENDER, "s", key).sign(mail, int(time.time())))
    unique = b"X-Number: 0000000000000000\r\n"
    return unique + signature + rest, len(b"X-Number: ")


def _repetition(options: Options, home: PrivateHome, pool: list[tuple[bytes, int]], sessions: int) -> Reading:
    def load(mark: Any) -> loadgen.Load:
        return loadgen.smtp(
            home.port("smtp"), pool, home.users(), b"sender@" + SENDER.encode(), sessions=sessions, first_id=time.time_ns(),
            warmup_s=options.warmup_s, run_s=options.run_s, on_mark=mark,
        )  # fmt: skip

    return measure.repetition([home], load)
