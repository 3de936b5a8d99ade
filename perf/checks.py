"""What the checks at the door cost: `python perf/checks.py [REPETITIONS]` from the top of the tree.

Three homes take the same load in turn: none of the checks; all that ask DNS, and the lists of bans; these and SPF, DKIM, DMARC and ARC
of each message. Loopback is limited as strangers are, with limits so high that none is met. The DNS server is a process of its own on
loopback. LOCAL is on hold: reception, routing and the modules are what runs.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import sys
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from iems._native import loadgen
from iems.perf import measure, messages
from iems.perf.home import PrivateHome
from tests.support.dnsserver import DnsServer

CASES = ((4_096, 50), (250_000, 10))
ACCOUNTS = 50
ZONES = ("one.bl.test", "two.bl.test", "three.bl.test")
#: Of the generator, which greets as `load.test` from 127.0.0.1 and sends as sender@load.test.
RECORDS = {
    ("load.test", "MX"): ["10 mx.load.test."], ("mx.load.test", "A"): ["127.0.0.1"], ("load.test", "A"): ["127.0.0.1"],
    ("load.test", "TXT"): ['"v=spf1 ip4:127.0.0.1 -all"'], ("_dmarc.load.test", "TXT"): ['"v=DMARC1; p=none"'],
    ("1.0.0.127.in-addr.arpa", "PTR"): ["load.test."], ("localhost", "A"): ["127.0.0.1"],
}  # fmt: skip
NONE = {
    "smtpd.max_sessions_per_ip": 0, "smtpd.max_sessions_per_network": 0, "smtpd.greeting_delay_s": 0.0, "smtpd.tarpit_s": 0.0,
    "smtpd.early_pipelining": "off",
}  # fmt: skip
DOOR = {
    "smtpd.limit_loopback": True, "smtpd.check_sender_domain": "tag", "smtpd.check_client_name": "tag", "smtpd.check_helo": "tag",
    "smtpd.check_unqualified": "tag", "smtpd.message_rate": 1_000_000_000, "smtpd.session_rate": 1_000_000_000, "smtpd.recipient_rate": 1_000_000_000,
}  # fmt: skip
MAIL = {"authres.verify": True}


def serve(end: Connection) -> None:
    """The DNS server's process."""

    async def main() -> None:
        async with DnsServer(RECORDS) as server:
            end.send(server.port)
            await asyncio.sleep(3600)

    uvloop.run(main())


def main() -> None:
    """Measure and print a line for each case and set of checks."""
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    dns = {"dns.servers": [f"127.0.0.1:{ours.recv()}"]}
    sets = {"no checks": NONE, "door": NONE | DOOR | dns, "door and mail": NONE | DOOR | MAIL | dns}
    found: dict[tuple[str, tuple[int, int]], list[measure.Reading]] = {}
    with ExitStack() as stack:
        homes = {name: stack.enter_context(PrivateHome(ACCOUNTS, settings, held=("LOCAL",))) for name, settings in sets.items()}
        for name, home in homes.items():
            if name != "no checks":
                for zone in ZONES:
                    home.ctl("dnsbl", "add", zone, "--action", "tag")
                for kind, value in (("domain", "*.spam.test"), ("address", "a@spam.test"), ("cidr", "198.51.100.0/24")):
                    home.ctl("ban", "add", kind, value)
        for _ in range(repetitions):
            for case in CASES:
                for name, home in homes.items():
                    pool = messages.pool(case[0])

                    def load(mark, home=home, pool=pool, case=case):  # type: ignore[no-untyped-def]
                        return loadgen.smtp(
                            home.port("smtp"), pool, home.users(), b"sender@load.test", sessions=case[1], first_id=time.time_ns(),
                            warmup_s=0.5, run_s=2.0, on_mark=mark,
                        )  # fmt: skip

                    found.setdefault((name, case), []).append(measure.repetition([home], load))
    server.terminate()
    print("| case | checks | messages/s | CPU us a message | of none |\n|---|---|---|---|---|")
    for case in CASES:
        for name in sets:
            readings, none = found[name, case], found["no checks", case]
            ratio = statistics.median(one["per_s"] / other["per_s"] for one, other in zip(readings, none, strict=True))
            rate, cpu = (statistics.median(reading[key] for reading in readings) for key in ("per_s", "cpu_us"))
            print(f"| {case[0]:,} octets, {case[1]} sessions | {name} | {rate:,.0f} | {cpu:,.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
