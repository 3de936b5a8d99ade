"""Reports leave once a day for the day before, to those who agreed, and never twice."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

from iems.authres import dmarc as evaluator
from iems.authres import reports
from iems.authres.outcome import Outcome
from iems.config import Authres, Config, Dns
from iems.errors import SpoolError
from iems.janitor import dmarc
from iems.model import Channel
from tests.support.dnsserver import DnsServer

TODAY_S = time.time()
YESTERDAY_S = TODAY_S - 86_400
AGREED = {
    ("_dmarc.d.example", "TXT"): ['"v=DMARC1; p=none"'],
    ("d.example._report._dmarc.other.example", "TXT"): ['"v=DMARC1"'],
}


class Spool:
    def __init__(self):
        self.messages = []
        self.errors = []

    def new_id(self):
        return b"i" * 16

    async def append(self, messages):
        error = self.errors.pop() if self.errors else None
        if error is None:
            self.messages += messages
        return [error]


def fill(home, at_s, rua=("r@d.example", "R@Other.Example", "victim@elsewhere.example"), domain="d.example"):
    record = evaluator.Record(domain, "none", rua=rua)
    found = Outcome("", None, (), evaluator.Dmarc("fail", domain, "none", record=record))
    collector = reports.Collector(home, 1, 1 << 20)
    assert collector.add(reports.row_of(found, int(at_s), "192.0.2.1", "a@d.example", "none", ""), at_s)
    collector.close()


def run(home, scenario, faults=None, on=True):
    async def main():
        events, errors = [], []
        async with DnsServer(AGREED, faults) as dns:
            config = Config(
                hostname="mx.load.test", domain="load.test", authres=Authres(verify=True, reports=on),
                dns=Dns(servers=[f"127.0.0.1:{dns.port}"], attempts=1, timeout_s=2.0),
            )  # fmt: skip
            log = SimpleNamespace(event=lambda name, id, **d: events.append(d), error=lambda what, fault: errors.append(fault))
            ctx = SimpleNamespace(home=home, config=config, hostname=config.hostname, log=log, answers=None)
            spool = Spool()

            async def look():
                one = dmarc.DmarcReports(ctx, spool)
                await one.round()
                if one._task is not None:
                    await one._task
                await one.close()
                return [message.envelope.recipients[0].address for message in spool.messages]

            await scenario(SimpleNamespace(look=look, spool=spool, events=events, errors=errors))

    asyncio.run(main())


def test_yesterday_is_sent_once(tmp_path):
    fill(tmp_path, YESTERDAY_S - 86_400)
    fill(tmp_path, TODAY_S)

    async def scenario(s):
        assert await s.look() == [b"r@d.example", b"R@other.example"]
        (message, _) = s.spool.messages
        assert message.envelope.input_channel == Channel.MTA and message.envelope.reverse_path == b""
        assert b"From: <postmaster@load.test>\r\nTo: <r@d.example>\r\n" in message.content[0]
        assert [event["sent"] for event in s.events] == [True, True, False]
        assert reports.days(tmp_path) == [reports.day_of(TODAY_S)]
        assert len(await s.look()) == 2

    run(tmp_path, scenario)


def test_a_full_spool_and_dns_away_wait_and_nothing_goes_twice(tmp_path):
    fill(tmp_path, YESTERDAY_S - 86_400)
    faults = {"d.example._report._dmarc.other.example": "SERVFAIL"}

    async def scenario(s):
        s.spool.errors = [SpoolError("full")]
        assert await s.look() == [] and len(s.errors) == 1
        assert await s.look() == [b"r@d.example"]
        assert await s.look() == [b"r@d.example"] and reports.days(tmp_path)
        faults.clear()
        assert await s.look() == [b"r@d.example", b"R@other.example"] and not reports.days(tmp_path)

    run(tmp_path, scenario, faults)


def test_off_sends_nothing_unless_asked(tmp_path):
    fill(tmp_path, YESTERDAY_S - 86_400, rua=("r@d.example",))
    fill(tmp_path, TODAY_S - 30 * 86_400)

    async def scenario(s):
        assert await s.look() == []
        assert reports.days(tmp_path) == [reports.day_of(YESTERDAY_S - 86_400)]  # old rows are not kept
        (tmp_path / "dmarc/send").write_text(reports.day_of(YESTERDAY_S - 86_400) + " ../x\n")
        assert await s.look() == [b"r@d.example"] and not (tmp_path / "dmarc/send").exists()

    run(tmp_path, scenario, on=False)


def test_nothing_there(tmp_path):
    async def scenario(s):
        assert await s.look() == []

    run(tmp_path, scenario)
