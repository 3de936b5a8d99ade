"""Every cell of loop detection and of the modules that check, sign and seal mail: on and off, by messages from every input channel."""

from __future__ import annotations

import asyncio
import random
import time

import dkim as dkimpy
import pytest

from iems.authres import sign
from iems.authres.mail import Mail as AuthMail
from iems.config import Authres as Settings
from iems.config import Dkim as DkimSettings
from iems.directory.entries import Resolution, Target
from iems.model import INPUT, Channel, Envelope, Recipient
from iems.preprocessor.batch import Plan, Planner
from iems.preprocessor.matrix import Matrices
from iems.preprocessor.modules import NAMES
from iems.preprocessor.modules.arc import Seal
from iems.preprocessor.modules.authres import Authres
from iems.preprocessor.modules.autotext import AutoText, AutoTextInsertion
from iems.preprocessor.modules.dkim import Sign
from iems.preprocessor.pipeline import examine
from iems.preprocessor.route import Part
from iems.spool import Item
from tests.support.zones import Zones
from tests.unit.preprocessor.test_cells import CELLS, MODULES
from tests.unit.preprocessor.test_mail_authentication import KEY, MAIL, ZONE, Context, ring

#: As `authres` writes it; from outside it is a forgery.
TOLD = b"Authentication-Results: mx.load.test; spf=pass smtp.mailfrom=a@d.example; dmarc=pass header.from=d.example\r\n"
OUTSIDE = {Channel.SMTPD, Channel.BSMTPIN}
CHECKED = {Channel.SMTPD, Channel.LOCALOUT, Channel.DLOUT, Channel.TNEF}


def ticked(name: str) -> set[tuple[int, int]]:
    return set(random.Random(name).sample(CELLS, len(CELLS) // 2))


def through(modules, grids, source, target, auth=""):
    """The content of one message behind the modules."""
    recipient = Recipient(b"b@load.test")
    envelope = Envelope(source, b"a@d.example", [recipient], 1, client_ip="192.0.2.1", helo=b"h.example", auth=auth)
    content = TOLD + MAIL
    plan = Plan(Item(bytes(16), INPUT, "", envelope, [content]), [Part(target, "", [recipient], [recipient])], [])

    def read(rope, start, length):
        return b"".join(rope)[start : start + length]

    async def write(octets):
        return octets

    matrices = Matrices(tuple(modules), {name: frozenset(cells) for name, cells in grids.items()})
    asyncio.run(examine(plan, matrices, modules, read, write))
    return b"".join(plan.parts[0].rope or [content])


@pytest.fixture
def modules(tmp_path):
    zone = ZONE | ring(tmp_path)
    ctx = Context(tmp_path, authres=Settings(verify=True), dkim=DkimSettings(seal=True, seal_domain="d.example"))
    return {"authres": Authres(ctx, Zones(zone)), "arc": Seal(ctx), "dkim": Sign(ctx), "zone": zone}


def test_checked_in_each_cell(modules):
    on = ticked("authres")
    for source, target in CELLS:
        found = through({"authres": modules["authres"]}, {"authres": on}, source, target)
        assert (TOLD not in found) == ((source, target) in on and source in OUTSIDE), (source, target)
        assert (found.count(b"Authentication-Results") == 1) == (TOLD in found or source == Channel.SMTPD)


def test_signed_in_each_cell(modules):
    on = ticked("dkim")
    for source, target in CELLS:
        found = through({"dkim": modules["dkim"]}, {"dkim": on}, source, target, auth="a@d.example")
        assert found.count(b"DKIM-Signature:") == (2 if (source, target) in on and target == Channel.SMTPC else 0), (source, target)


def test_sealed_in_each_cell(modules):
    on = ticked("arc")
    both = {name: modules[name] for name in ("authres", "arc")}
    for source, target in CELLS:
        found = through(both, {"arc": on}, source, target)
        assert found.count(b"ARC-Seal:") == int((source, target) in on and target == Channel.SMTPC and source in CHECKED), (source, target)


@pytest.mark.parametrize("into_signed", [False, True])
def test_a_text_in_mail_that_came_in_signed(modules, tmp_path, into_signed):
    """Left alone; or, where that is set, the text breaks its signature, and our seal says what was found before."""
    signed = asyncio.run(sign.Signer("d.example", "s", KEY).sign(AuthMail.of(MAIL), int(time.time()))) + MAIL
    recipient = Recipient(b"b@load.test")
    envelope = Envelope(Channel.SMTPD, b"a@d.example", [recipient], 1, client_ip="192.0.2.1", helo=b"h.example")
    plan = Plan(Item(bytes(16), INPUT, "", envelope, [signed]), [Part(Channel.SMTPC, "", [recipient], [recipient])], [])
    on_the_way = {
        "authres": modules["authres"], "autotext": AutoTextInsertion(lambda: {Channel.SMTPD: AutoText("Small print.\n")}, into_signed), "arc": modules["arc"],
    }  # fmt: skip

    async def write(octets):
        return octets

    asyncio.run(examine(plan, Matrices(tuple(on_the_way), {}), on_the_way, lambda rope, start, length: b"".join(rope)[start : start + length], write))
    content = b"".join(plan.parts[0].rope)
    zone = {name: records["TXT"][0] for name, records in (ZONE | modules["zone"]).items() if "TXT" in records}

    def dns(name, timeout=5):
        return zone.get(name.decode().rstrip("."))

    assert (b"Small print." in content) == into_signed
    assert dkimpy.verify(content, dnsfunc=dns) == (not into_signed)
    assert dkimpy.arc_verify(content, dnsfunc=dns)[0] == b"pass"
    assert b"dkim=pass" in content.partition(b"ARC-Authentication-Results:")[2].partition(b"ARC-")[0]


def test_loops_end_in_each_cell():
    on = ticked("loopdetection")
    matrices = Matrices(("loopdetection",), {"loopdetection": frozenset(on)})
    content = b"Received: from x by mx.test with ESMTP id 1;\r\n\tMon\r\n" * 25 + b"Subject: s\r\n\r\n"
    for source, target in CELLS:
        planner = Planner(
            lambda address, target=target: Resolution(True, True, [Target(target, "", address)]),
            lambda rope, start, length: b"".join(rope)[start : start + length],
            "mx.test", 25, ends_loops=lambda i, o: matrices.runs("loopdetection", i, o),
        )  # fmt: skip
        [plan] = planner.plan([Item(bytes(16), INPUT, "", Envelope(source, b"s@t", [Recipient(b"u@x")], 0), [content])]).plans
        # What is made on this machine has no Received lines to count.
        assert plan.loop == ((source, target) in on and source not in (Channel.MTA, Channel.WEBCLIENT)), (source, target)


def test_no_module_is_left_out():
    assert {*MODULES, "antispam", "authres", "arc", "dkim", "loopdetection"} == set(NAMES)
