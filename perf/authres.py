"""CPU of the module authres for one message: `python perf/authres.py [ROUNDS]` from the top of the tree.

Signed mail of the rig `smtp_checked`, answers of DNS in the cache, content in a file as the spool has it; the least of ROUNDS (60) means of 25
messages, as other work on the machine only ever adds.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from iems.authres import sign
from iems.blobs import Blobs, segment_name
from iems.config import Authres as Settings
from iems.config import Config, Smtpd
from iems.model import Channel, Envelope, Extent, Recipient
from iems.net.resolver import Answer, Resolver
from iems.perf import messages
from iems.perf.rigs.smtp_checked import SENDER, _signed
from iems.preprocessor.batch import Plan
from iems.preprocessor.matrix import Matrices
from iems.preprocessor.modules.authres import Authres
from iems.preprocessor.pipeline import examine
from iems.preprocessor.route import Part
from iems.spool.items import Item

SIZES = (4_096, 250_000)
MESSAGES = 25
TO = b"a1@load.test"


def resolver(record: str) -> Resolver:
    """One that knows the sender's records already."""
    found = Resolver([("127.0.0.1", 1)])
    until_s = asyncio.get_running_loop().time() + 1e6
    for name, text in ((SENDER, "v=spf1 ip4:127.0.0.1 -all"), (f"_dmarc.{SENDER}", "v=DMARC1; p=reject"), (f"s._domainkey.{SENDER}", record)):
        found._keep((name, "TXT"), until_s, Answer((text.encode(),), True, name, 1e6))
    return found


async def measure(folder: Path, rounds: int) -> None:
    """Prints the cost for each size."""
    key = sign.new_key("rsa")
    config = Config(hostname="mx.load.test", domain="load.test", authres=Settings(verify=True, dmarc="reject"), smtpd=Smtpd(limit_loopback=True))
    ctx: Any = SimpleNamespace(home=folder, config=config, hostname=config.hostname, slot=1, answers=None)
    module = Authres(ctx, resolver(sign.record(key)))
    matrices = Matrices((module.name,), {})
    blobs = Blobs([folder])
    for blob, size in enumerate(SIZES, 1):
        message, _ = await asyncio.to_thread(_signed, messages.pool(size, 1)[0], key)
        (folder / segment_name(blob)).write_bytes(message.replace(b"\r\n..", b"\r\n."))
        octets = (folder / segment_name(blob)).stat().st_size

        async def one(blob: int = blob, octets: int = octets) -> str:
            people = [Recipient(TO, TO)]
            envelope = Envelope(Channel.SMTPD, b"sender@" + SENDER.encode(), people, time.time_ns(), helo=b"load.test", client_ip="127.0.0.1")
            item = Item(b"i" * 16, 0, "", envelope, [Extent(blob, 0, octets)])
            plan = Plan(item, [Part(Channel.LOCAL, "", people, people)], [])
            ((_, note, _),) = await examine(plan, matrices, {module.name: module}, blobs.read_range, None)  # type: ignore[arg-type]
            return note

        note = await one()
        if any(word not in note for word in ("spf=pass", "dkim=pass", "dmarc=pass")):
            raise SystemExit(f"the checks say {note}")
        least_s = float("inf")
        for _ in range(rounds):
            begun = time.process_time()
            for _ in range(MESSAGES):
                await one()
            least_s = min(least_s, (time.process_time() - begun) / MESSAGES)
        print(f"{size} octets: {least_s * 1e6:.0f} us")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        uvloop.run(measure(Path(place), int(sys.argv[1]) if len(sys.argv) > 1 else 60))
