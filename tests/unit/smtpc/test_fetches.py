"""Mail that sites fetch: put off until they do, noticed and given up in its time, each item once over a connection that we did not make."""

import asyncio
from dataclasses import dataclass, field

from iems.config import OdmrAccount, Smtpd
from iems.model import Channel, Recipient
from iems.net import handover
from iems.spool import keys
from tests.support.smtpserver import SmtpServer
from tests.unit.smtpc.test_smtpc_worker import profile, run, status_of

ODMR = Smtpd(odmr=[OdmrAccount(account="a@me.test", domains=["branch.test", "second.test"])])


@dataclass
class Site:
    """A site that is the server on a connection that it made. refuse: reply by recipient; drop: closes amid the message of this number."""

    refuse: dict = field(default_factory=dict)
    drop: int = -1
    subjects: list = field(default_factory=list)
    lines: list = field(default_factory=list)
    offers: bytes = b"250-site.test\r\n250-PIPELINING\r\n250 REQUIRETLS\r\n"

    async def fetch(self, bench, *domains, secure=False):
        given = handover.Given("192.0.2.7", 4711, "a@me.test", domains or ("branch.test", "second.test"), secure)
        sock = await handover.give(bench.ctx.home / "run", "smtpc", given)
        reader, writer = await asyncio.open_connection(sock=sock)
        writer.write(b"220 site.test\r\n")
        number, known = 0, False
        while line := await reader.readline():
            self.lines.append(line)
            verb = line[:4].upper()
            if verb == b"EHLO":
                writer.write(self.offers)
            elif verb == b"RCPT":
                answer = next((reply for part, reply in self.refuse.items() if part in line), b"250 ok")
                known = answer[:1] == b"2"
                writer.write(answer + b"\r\n")
            elif verb == b"DATA" and not known:
                writer.write(b"554 nobody\r\n")
            elif verb == b"DATA":
                writer.write(b"354 go\r\n")
                if number == self.drop:
                    await reader.readline()
                    break
                number += 1
                content = []
                while (part := await reader.readline()) not in (b".\r\n", b""):
                    content.append(part)
                if part:
                    self.subjects.append(next(p for p in content if p.startswith(b"Message-ID"))[14:-16])
                    writer.write(b"250 ok\r\n")
            elif verb == b"QUIT":
                writer.write(b"221 bye\r\n")
            else:
                writer.write(b"250 ok\r\n")
        writer.close()
        await bench.until(lambda: not bench.worker._in_hand)


def bench_of(tmp_path, scenario, **smtpc):
    """The relay host is a server that must never hear of such mail."""

    async def whole(bench, server):
        (bench.ctx.home / "run").mkdir(exist_ok=True)
        found = await scenario(bench)
        return found, server

    (tmp_path / "run").mkdir()
    found, server = run(tmp_path, whole, SmtpServer(), smtpc=smtpc, smtpd=ODMR)
    assert server.messages == [] or all(b"@else.test" in rcpt[0] for _, rcpt, _ in server.messages)
    return found


def test_it_waits_and_is_fetched_once(tmp_path):
    async def scenario(bench):
        await bench.queue(b"u@branch.test", count=70)
        await bench.queue(b"u@second.test", b"v@else.test", count=3)
        await bench.until(lambda: len(bench.ctx.log.of("deferred")) == 73 and not bench.worker._in_hand)
        reasons = {item.reason for item in bench.waiting()}
        due = [(due - bench.spool.index.clock.now_ms()) / 1000 for class_, due, item, _ in bench.spool.index.queued() if class_ == keys.RETRY]
        site, again = Site(), Site()
        await site.fetch(bench)
        await again.fetch(bench)
        return site, again, reasons, due, bench.waiting(), bench.ctx.log.of("relayed")

    site, again, reasons, due, waiting, relayed = bench_of(tmp_path, scenario)
    assert reasons == {"450 4.4.1 waits until its site fetches it by ATRN"}
    assert all(14_000 < each <= 14_400 for each in due) and len(due) == 73  # the next thing to do is the notice of delay
    assert len(site.subjects) == len(set(site.subjects)) == 73 and site.lines[-1] == b"QUIT\r\n"
    assert again.subjects == [] and waiting == [] and len(relayed) == 76


def test_only_the_domains_that_were_asked_for(tmp_path):
    async def scenario(bench):
        await bench.queue(b"u@branch.test")
        await bench.queue(b"u@second.test")
        await bench.until(lambda: len(bench.ctx.log.of("deferred")) == 2 and not bench.worker._in_hand)
        site = Site()
        await site.fetch(bench, "second.test")
        return site, bench.waiting()

    site, waiting = bench_of(tmp_path, scenario)
    assert len(site.subjects) == 1 and [item.destination for item in waiting] == ["branch.test"]


def test_what_the_site_refuses(tmp_path):
    """5xx is a report to the sender; 4xx waits for the next fetch and is not offered again in this one."""

    async def scenario(bench):
        await bench.queue(b"busy@branch.test")
        await bench.queue(b"bad@branch.test")
        await bench.queue(b"u@branch.test", count=150)  # of several takes: what was put off is in the queue again before the last
        await bench.until(lambda: len(bench.ctx.log.of("deferred")) == 152 and not bench.worker._in_hand)
        site = Site(refuse={b"bad@": b"550 5.1.1 nobody", b"busy@": b"450 4.2.0 later"})
        await site.fetch(bench)
        return site, bench.waiting(), bench.notices()

    site, waiting, notices = bench_of(tmp_path, scenario)
    assert len(site.subjects) == 150
    assert [item.reason for item in waiting] == ["450 4.2.0 later"]
    assert sum(b"busy@" in line for line in site.lines) == 1
    [(_, report)] = notices
    assert status_of(report)[0]["Status"] == "5.1.1"


def test_a_site_that_leaves_amid_a_message(tmp_path):
    async def scenario(bench):
        await bench.queue(b"u@branch.test", count=5)
        await bench.until(lambda: len(bench.ctx.log.of("deferred")) == 5 and not bench.worker._in_hand)
        first, second = Site(drop=2), Site()
        await first.fetch(bench)
        left = bench.waiting()
        await second.fetch(bench)
        return first, second, left, bench.waiting()

    first, second, left, waiting = bench_of(tmp_path, scenario)
    assert len(first.subjects) == 2 and len(left) == 3 and waiting == []
    assert len(set(first.subjects + second.subjects)) == 5 == len(first.subjects + second.subjects)


def test_notice_of_delay_and_the_end(tmp_path):
    """Nobody fetches: told once of the delay, given up at the end of the lifetime, no other try in between."""

    async def scenario(bench):
        await bench.queue(b"u@branch.test")
        await bench.until(lambda: bench.ctx.log.of("failed") and not bench.worker._in_hand)
        return bench, bench.waiting(), bench.notices()

    bench, waiting, notices = bench_of(tmp_path, scenario, retry_s=0.01, lifetime_s=0.6, delay_notice_s=0.3)
    assert waiting == [] and len(bench.ctx.log.of("deferred")) == 2  # at first and for the notice
    assert sorted(status_of(message)[0]["Action"] for _, message in notices) == ["delayed", "failed"]
    failed = next(m for _, m in notices if status_of(m)[0]["Action"] == "failed")
    assert status_of(failed)[0]["Status"] == "5.4.7"


def test_requiretls_waits_for_tls(tmp_path):
    async def scenario(bench):
        await bench.queue(b"u@branch.test", requiretls=True)
        await bench.until(lambda: bench.ctx.log.of("deferred") and not bench.worker._in_hand)
        clear, secure = Site(), Site()
        await clear.fetch(bench)
        left = bench.waiting()
        await secure.fetch(bench, secure=True)
        return clear, secure, left, bench.waiting()

    clear, secure, left, waiting = bench_of(tmp_path, scenario)
    assert clear.subjects == [] and len(left) == 1 and left[0].reason.startswith("450 4.7.30 REQUIRETLS")
    assert len(secure.subjects) == 1 and waiting == [] and any(b"REQUIRETLS" in line for line in secure.lines)


def test_what_is_on_hold_stays(tmp_path):
    async def scenario(bench):
        await bench.queue(b"u@branch.test")
        await bench.until(lambda: bench.ctx.log.of("deferred") and not bench.worker._in_hand)
        with bench.spool.index.change() as change:
            [(_, _, item, key)] = [row for row in bench.spool.index.queued() if row[2].channel == Channel.SMTPC]
            change.remove(key, item)
            change.put(item, keys.HELD)
        site = Site()
        await site.fetch(bench)
        return site, bench.waiting()

    site, waiting = bench_of(tmp_path, scenario)
    assert site.subjects == [] and len(waiting) == 1


def test_a_worker_that_ends_gives_all_back(tmp_path):
    """Drained while a site is slow: nothing is lost, what was not answered waits."""

    async def scenario(bench):
        await bench.queue(Recipient(b"u@branch.test"), count=4)
        await bench.until(lambda: len(bench.ctx.log.of("deferred")) == 4 and not bench.worker._in_hand)
        sock = await handover.give(bench.ctx.home / "run", "smtpc", handover.Given("192.0.2.7", 1, "a", ("branch.test",)))
        reader, writer = await asyncio.open_connection(sock=sock)
        writer.write(b"220 slow\r\n")
        assert (await reader.readline()).startswith(b"EHLO")
        writer.write(b"250 slow\r\n")
        assert (await reader.readline()).startswith(b"MAIL")
        await bench.stop(0.3)
        writer.close()
        return bench.waiting()

    assert len(bench_of(tmp_path, scenario)) == 4


def test_a_profile_that_sends_nothing_bars_mail_that_sites_fetch(tmp_path):
    """Refused at once, as for any other domain, and what waited from before at the fetch; others of the message go on."""
    profile(tmp_path, "small.test", max_out_octets=20)
    profile(tmp_path, "second.test", transmit=False)

    async def scenario(bench):
        await bench.queue(b"u@second.test")
        await bench.until(lambda: bench.ctx.log.of("failed") and not bench.worker._in_hand)
        await bench.queue(b"u@branch.test", count=2)
        await bench.until(lambda: len(bench.ctx.log.of("deferred")) == 2 and not bench.worker._in_hand)
        bench.worker._profiles._directory.set_peer("branch.test", max_out_octets=20)
        first, second = Site(), Site()
        await first.fetch(bench)
        await second.fetch(bench)
        return first, second, bench.waiting(), bench.notices()

    first, second, waiting, notices = bench_of(tmp_path, scenario)
    assert first.subjects == [] == second.subjects and waiting == [] and first.lines[-1] == b"QUIT\r\n"
    said = sorted((status_of(m)[0]["Final-Recipient"], status_of(m)[0]["Status"]) for _, m in notices)
    assert said == [("rfc822; u@branch.test", "5.3.4")] * 2 + [("rfc822; u@second.test", "5.7.1")]


def test_a_size_limit_of_a_profile_lets_smaller_mail_be_fetched(tmp_path):
    profile(tmp_path, "branch.test", max_out_octets=4000)

    async def scenario(bench):
        await bench.queue(b"u@branch.test")
        await bench.until(lambda: len(bench.ctx.log.of("deferred")) == 1 and not bench.worker._in_hand)
        await bench.queue(b"u@branch.test", content=b"Message-ID: <big@example.test>\r\n\r\n" + b"x" * 5000 + b"\r\n")
        await bench.until(lambda: bench.ctx.log.of("failed") and not bench.worker._in_hand)
        site = Site()
        await site.fetch(bench)
        return site, bench.waiting(), bench.notices()

    site, waiting, notices = bench_of(tmp_path, scenario)
    assert len(site.subjects) == 1 and waiting == [] and [status_of(m)[0]["Status"] for _, m in notices] == ["5.3.4"]
