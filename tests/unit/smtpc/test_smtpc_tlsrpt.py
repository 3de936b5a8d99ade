"""Reports on TLS: what is counted on the way, what is kept, and who gets it."""

import asyncio
import gzip
import hashlib
import json
import ssl
from types import SimpleNamespace

import msgspec
import pytest

from iems.config import Config, Smtpc
from iems.model import Reply
from iems.net.resolver import Resolver
from iems.smtp.tlsrpt import Day, Failure
from iems.smtpc import tlsrpt
from iems.smtpc.mx import Host
from iems.smtpc.security import NEEDS, Need, verifying_tls
from iems.smtpc.tallies import Tallies, fetch_result, today
from iems.smtpc.tlsrpt import Reporter, days, merged
from tests.support.certificates import Authority
from tests.support.dnsserver import DnsServer
from tests.support.smtpserver import SmtpServer
from tests.unit.smtpc.test_smtpc_security import POLICY, TLS, PolicyHost, Port, tlsa, zone
from tests.unit.smtpc.test_smtpc_worker import run

NOW = 1_795_000_000.0  # 2026-11-17
HOST = Host("mx.x.test", "127.0.0.1", 25)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


def counted(home):
    """(policy, good, bad, {result: number}, reasons) by domain, of the only day kept."""
    (day,) = days(home / "tls-rpt")
    found = merged(home / "tls-rpt", day)
    rows = {}
    for tally in found.tallies.values():
        kinds = {msgspec.json.decode(key, type=Failure).result: number for key, number in tally.failures.items()}
        rows[tally.domain, tally.kind] = (tally.good, tally.bad, kinds)
    return rows, found


def relayed(home, server, names, *servers, **smtpc):
    async def scenario(bench, *_):
        await bench.queue(b"bob@x.test")
        await bench.settled(1)

    smtpc = {"resolution": "dns", "tls_reports": True} | smtpc
    run(home, scenario, names, server, Port(server, smtpc), *[s(server, smtpc) for s in servers], smtpc=smtpc)
    return counted(home)


def test_nothing_is_counted_while_off(tmp_path, authority):
    async def scenario(bench, *_):
        await bench.queue(b"bob@x.test")
        await bench.settled(1)

    names, server = zone(), SmtpServer(extensions=TLS, tls=authority.server("mx.x.test").context)
    smtpc = {"resolution": "dns"}
    run(tmp_path, scenario, names, server, Port(server, smtpc), smtpc=smtpc)
    assert not (tmp_path / "tls-rpt").exists()
    assert not any("_smtp._tls" in name for name, _, _ in names.asked)


def test_without_a_policy(tmp_path, authority):
    good = authority.server("mx.x.test").context
    broken = SmtpServer(extensions=TLS)  # promises TLS, does not keep it; the mail goes in the clear
    cases = ((SmtpServer(extensions=TLS, tls=good), (1, 0, {})), (SmtpServer(extensions=("PIPELINING",)), (0, 1, {"starttls-not-supported": 1})),
             (broken, (0, 1, {"validation-failure": 1})))
    for number, (server, expected) in enumerate(cases):
        home = tmp_path / str(number)
        home.mkdir()
        names = zone()
        rows, _ = relayed(home, server, names)
        assert rows == {("x.test", "no-policy-found"): expected}
        assert len(server.messages) == 1
        assert not any("_smtp._tls" in name for name, _, _ in names.asked)  # asked for when the report is due


def test_certificates_that_do_not_verify(tmp_path, authority):
    rows, day = relayed(tmp_path, SmtpServer(extensions=TLS, tls=authority.server("y.test").context), zone(), tls="verify",
                        tls_ca_file=str(authority.file))
    assert rows == {("x.test", "no-policy-found"): (0, 1, {"certificate-host-mismatch": 1})}
    (key,) = day.of("x.test")[0].failures
    failure = msgspec.json.decode(key, type=Failure)
    assert (failure.host, failure.address, failure.own) == ("mx.x.test", "127.0.0.1", "127.0.0.1")
    home = tmp_path / "2"
    home.mkdir()
    rows, _ = relayed(home, SmtpServer(extensions=TLS, tls=authority.server("mx.x.test").context), zone(), tls="verify")
    assert rows == {("x.test", "no-policy-found"): (0, 1, {"certificate-not-trusted": 1})}


def test_dane(tmp_path, authority):
    server = authority.server("mx.x.test")
    right = hashlib.sha256(server.spki).hexdigest()
    for number, (digest, fault, expected) in enumerate(((right, "", (1, 0, {})), ("00" * 32, "", (0, 1, {"validation-failure": 1})),
                                                        (right, "SERVFAIL", (0, 1, {"dnssec-invalid": 1})))):
        home = tmp_path / str(number)
        home.mkdir()
        names = zone()
        names.secure = True

        class Late:
            def __init__(self, server, smtpc, names=names, digest=digest, fault=fault):
                self.server, self.names, self.digest, self.fault = server, names, digest, fault

            async def __aenter__(self):
                self.names.records |= tlsa(self.server, f"3 1 1 {self.digest}")
                if self.fault:
                    self.names.faults[f"_{self.server.port}._tcp.mx.x.test"] = self.fault

            async def __aexit__(self, *_):
                pass

        rows, day = relayed(home, SmtpServer(extensions=TLS, tls=server.context), names, Late, dane=True)
        assert rows == {("x.test", "tlsa"): expected}
        assert day.of("x.test")[0].text == ([] if fault else [f"3 1 1 {digest}"])


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (POLICY % (b"enforce", b"mx.x.test"), {("x.test", "sts"): (1, 0, {})}),
        (POLICY % (b"enforce", b"other.test"), {("x.test", "sts"): (0, 1, {"validation-failure": 1})}),
        (POLICY % (b"testing", b"other.test"), {("x.test", "sts"): (1, 1, {"validation-failure": 1})}),
        (b"nonsense", {("x.test", "sts"): (0, 1, {"sts-policy-invalid": 1}), ("x.test", "no-policy-found"): (1, 0, {})}),
        (None, {("x.test", "sts"): (0, 1, {"sts-policy-fetch-error": 1}), ("x.test", "no-policy-found"): (1, 0, {})}),
    ],
)
def test_mta_sts(tmp_path, authority, text, rows):
    good = authority.server("mx.x.test", "mta-sts.x.test").context
    policy = PolicyHost(good, text)

    class Https:
        def __init__(self, server, smtpc):
            self.port = Port(policy, smtpc, "mta_sts_port")

        async def __aenter__(self):
            await policy.__aenter__()
            await self.port.__aenter__()

        async def __aexit__(self, *_):
            await policy.__aexit__()

    names = zone(records={("_mta-sts.x.test", "TXT"): ['"v=STSv1; id=1;"']})
    found, day = relayed(tmp_path, SmtpServer(extensions=TLS, tls=good), names, Https, mta_sts=True, tls_ca_file=str(authority.file))
    assert found == rows
    if text and b"enforce" in text:
        (tally,) = day.of("x.test")
        assert tally.text[:2] == ["version: STSv1", "mode: enforce"] and tally.hosts == [text.split(b"mx: ")[1].split(b"\n")[0].decode()]


def test_what_a_failed_fetch_is_called():
    untrusted = ssl.SSLCertVerificationError("x")
    assert fetch_result(untrusted) == "sts-webpki-invalid"
    assert fetch_result(ValueError("a policy has no mode")) == "sts-policy-invalid"
    assert fetch_result(ValueError("the policy host answers 404")) == fetch_result(TimeoutError()) == "sts-policy-fetch-error"


def test_a_day_ends_and_a_restart_goes_on(tmp_path):
    now = [NOW]
    tallies = Tallies(tmp_path, "smtpc-0", clock=lambda: now[0])

    def seen():
        tallies.connected("x.test", NEEDS["may"], HOST, "127.0.0.1", secure=True, reply=None, cause=None)

    tallies.write()
    assert days(tmp_path) == []
    seen()
    tallies.write()
    tallies = Tallies(tmp_path, "smtpc-0", clock=lambda: now[0])
    seen()
    now[0] += 86_400
    seen()
    tallies.write()
    first, second = days(tmp_path)
    assert (first, second) == (today(NOW), today(NOW + 86_400))
    assert [merged(tmp_path, day).of("x.test")[0].good for day in (first, second)] == [2, 1]
    (tmp_path / first / "smtpc-1.json").write_text("{broken")
    assert merged(tmp_path, first).of("x.test")[0].good == 2
    # What never came to the question of TLS does not count; a full disk costs no more than the report.
    tallies.connected("x.test", NEEDS["may"], HOST, "", secure=False, reply=Reply(451, 4, 1, "x"), cause=None)
    tallies.connected("y.test", Need("dane", ((1, 1, b"a" * 32),)), HOST, "", secure=False, reply=Reply(451, 7, 5, "x"), cause=None)
    errors = []
    (tmp_path / second / "smtpc-0.json").unlink()
    (tmp_path / second / "smtpc-0.json").mkdir()
    tallies._log = SimpleNamespace(error=lambda *what: errors.append(what))
    tallies.write()
    assert len(errors) == 1


class Poster:
    """Takes reports by HTTPS; answers with a status."""

    def __init__(self, context, status=200):
        self.context, self.status, self.got = context, status, []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def _serve(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        self.got.append((head, await reader.readexactly(length)))
        writer.write(b"HTTP/1.1 %d x\r\nConnection: close\r\n\r\n" % self.status)
        await writer.drain()
        writer.close()


def keep(home, *domains, day="2026-11-16"):
    for worker in range(2):
        found = Day(day)
        for domain in domains:
            found.tally(domain, "no-policy-found").good += 1
        path = home / "tls-rpt" / day / f"smtpc-{worker}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(found))


def test_who_gets_reports(tmp_path, authority):
    async def main():
        records = {
            ("_smtp._tls.mail.test", "TXT"): ['"v=TLSRPTv1; rua=mailto:tls@Mail.test"'],
            ("_smtp._tls.post.test", "TXT"): [f'"v=TLSRPTv1; rua=https://r.post.test:{poster.port}/in"'],
            ("_smtp._tls.refuse.test", "TXT"): [f'"v=TLSRPTv1; rua=https://r.post.test:{poster.port}/in"'],
            ("r.post.test", "A"): ["127.0.0.1"], ("plain.test", "A"): ["127.0.0.1"],
        }
        async with DnsServer(records, {"_smtp._tls.sick.test": "SERVFAIL"}) as names:
            sent = []

            async def submit(messages):
                sent.extend(messages)

            def reporter(now=NOW, **more):
                config = Config(hostname="mx.me.test", domain="me.test", smtpc=Smtpc(**more))
                resolver = Resolver([names.address], timeout_s=0.3, attempts=1, cache_records=0)
                return Reporter(tmp_path, config, resolver, submit, lambda: verifying_tls(authority.file), clock=lambda: now)

            keep(tmp_path, "mail.test", "post.test", "plain.test", "sick.test", "[192.0.2.1]")
            keep(tmp_path, "today.test", day=today(NOW))
            dry = {s.domain: s for s in await reporter(tls_reports_post=True).run(dry=True)}
            assert sent == [] and poster.got == [] and len(days(tmp_path / "tls-rpt")) == 2
            assert {d: s.state for d, s in dry.items()} == {"mail.test": "dry-run", "post.test": "dry-run", "plain.test": "not-wanted",
                                                           "sick.test": "later", "[192.0.2.1]": "not-wanted"}
            (policy,) = json.loads(dry["mail.test"].content)["policies"]
            assert policy["summary"]["total-successful-session-count"] == 2  # of both workers
            with tlsrpt.alone(tmp_path / "tls-rpt") as first:
                assert first and await reporter().run() == []  # somebody else is at it

            poster.status = 503
            states = {s.domain: s.state for s in await reporter(tls_reports_post=True).run()}
            assert states == {"mail.test": "sent", "post.test": "later", "plain.test": "not-wanted", "sick.test": "later",
                              "[192.0.2.1]": "not-wanted"}
            (message,) = sent
            assert message.envelope.recipients[0].address == b"tls@mail.test" and message.envelope.reverse_path == b"postmaster@me.test"
            assert b"report-type=\"tlsrpt\"" in b"".join(message.content)

            poster.status = 200
            names.faults.clear()
            names.records["_smtp._tls.sick.test", "TXT"] = ['"v=TLSRPTv1; rua=https://r.post.test:1/"']
            states = {s.domain: s.state for s in await reporter(tls_reports_post=True).run()}
            assert states == {"post.test": "sent", "sick.test": "later"} and len(sent) == 1  # nobody has it twice
            head, octets = poster.got[-1]
            assert head.startswith(b"POST /in HTTP/1.1\r\n") and b"Content-Type: application/tlsrpt+gzip" in head
            assert json.loads(gzip.decompress(octets))["policies"][0]["policy"]["policy-domain"] == "post.test"

            names.records["_smtp._tls.sick.test", "TXT"] = ['"v=TLSRPTv1; rua=https://r.post.test/"']
            assert [s.state for s in await reporter().run()] == ["not-wanted"]  # POST is off
            assert days(tmp_path / "tls-rpt") == [today(NOW)]
            keep(tmp_path, "sick.test", day="2026-11-01")
            names.faults["_smtp._tls.sick.test"] = "SERVFAIL"
            assert [s.state for s in await reporter().run()] == ["later"]
            assert days(tmp_path / "tls-rpt") == [today(NOW)]  # too old to try again

    poster = Poster(authority.server("r.post.test").context)

    async def around():
        async with poster:
            await main()

    asyncio.run(asyncio.wait_for(around(), 60))
