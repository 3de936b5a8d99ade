"""TLS that is needed: by setting, by profile, by TLSA records, by MTA-STS; what fails waits and never goes in the clear."""

import asyncio
import hashlib

import pytest

from iems.smtpc.dane import matches, usable
from iems.smtpc.security import validating
from iems.smtpc.sts import PolicyStore
from tests.support.certificates import Authority
from tests.support.dnsserver import DnsServer
from tests.support.smtpserver import SmtpServer
from tests.unit.smtpc.test_smtpc_worker import profile, run

TLS = ("PIPELINING", "STARTTLS")
POLICY = b"version: STSv1\nmode: %b\nmx: %b\nmax_age: 86400\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def good(authority):
    return authority.server("mx.x.test", "mta-sts.x.test")


@pytest.fixture(scope="module")
def other(authority):
    return authority.server("elsewhere.test")


class PolicyHost:
    """Serves one text over HTTPS; `asked` counts. None: 404."""

    def __init__(self, context, text):
        self.context, self.text, self.asked, self.port = context, text, 0, 0

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def _serve(self, reader, writer):
        request = await reader.readuntil(b"\r\n\r\n")
        assert request.startswith(b"GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: mta-sts.x.test\r\n")
        self.asked += 1
        if self.text is None:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self.text) + self.text)
        await writer.drain()
        writer.close()


def zone(**more):
    records = {("x.test", "MX"): ["10 mx.x.test."], ("mx.x.test", "A"): ["127.0.0.1"], ("mta-sts.x.test", "A"): ["127.0.0.1"]}
    return DnsServer(records | more.pop("records", {}), **more)


class Port:
    """Puts the port of a started server into the settings."""

    def __init__(self, server, settings, key="port"):
        self.server, self.settings, self.key = server, settings, key

    async def __aenter__(self):
        self.settings[self.key] = self.server.port

    async def __aexit__(self, *_):
        pass


def relay(home, server, names, count=1, **smtpc):
    """Send to x.test over a scripted server; (events, messages that came)."""

    async def scenario(bench, *_):
        await bench.queue(b"bob@x.test", count=count)
        await bench.settled(count)
        return bench.outcomes(), bench.ctx.log.of("error")

    smtpc.setdefault("resolution", "dns")
    servers = [names, server, Port(server, smtpc)]
    events, errors = run(home, scenario, *servers, smtpc=smtpc)
    assert errors == []
    return events, server.messages


def said(events):
    return [(event[0], event[3]["reply"]) for event in events]


def test_no_question_more_while_off(tmp_path, good):
    names = zone()
    events, messages = relay(tmp_path, SmtpServer(extensions=TLS, tls=good.context), names)
    assert len(messages) == 1 and events[0][0] == "relayed"
    assert {(name, kind) for name, kind, _ in names.asked} == {("x.test", "MX"), ("mx.x.test", "A"), ("mx.x.test", "AAAA")}


@pytest.mark.parametrize(("extensions", "code"), [(("PIPELINING",), "4.7.4"), (TLS, "4.7.5")])
def test_encrypt_or_wait(tmp_path, extensions, code):
    server = SmtpServer(extensions=extensions)  # without TLS: the handshake fails
    events, messages = relay(tmp_path, server, zone(), tls="encrypt")
    assert messages == [] and events[0][0] == "deferred" and code in events[0][3]["reply"]
    assert not any(c.startswith(b"MAIL") for connection in server.connections for c in connection.commands)


def test_verify(tmp_path, authority, good, other):
    for number, (server, came) in enumerate(((good, 1), (other, 0))):
        home = tmp_path / str(number)
        home.mkdir()
        made = SmtpServer(extensions=TLS, tls=server.context)
        events, messages = relay(home, made, zone(), tls="verify", tls_ca_file=str(authority.file))
        assert len(messages) == came and (came or "4.7.5" in events[0][3]["reply"])
        assert made.connections[0].secure is bool(came)


def test_a_profile_asks_for_tls(tmp_path):
    profile(tmp_path, "x.test", tls="encrypt")
    events, messages = relay(tmp_path, SmtpServer(extensions=("PIPELINING",)), zone())
    assert messages == [] and "4.7.4" in events[0][3]["reply"]


def tlsa(server, *rows):
    return {(f"_{server.port}._tcp.mx.x.test", "TLSA"): list(rows)}


@pytest.mark.parametrize(
    ("rows", "secure", "outcome"),
    [
        (["3 1 1 {right}"], True, "relayed"),
        (["3 1 1 {wrong}", "3 0 2 {whole}"], True, "relayed"),
        (["3 1 1 {wrong}"], True, "deferred"),
        (["3 1 1 {wrong}"], False, "relayed"),  # not signed: no word of it counts
        (["1 1 1 {wrong}"], True, "relayed"),  # nothing usable: TLS with any certificate
        (["2 1 1 {wrong}"], True, "deferred"),
        ([], True, "relayed"),
    ],
)
def test_dane(tmp_path, good, rows, secure, outcome):
    right = hashlib.sha256(good.spki).hexdigest()
    rows = [row.format(right=right, wrong="00" * 32, whole=hashlib.sha512(good.der).hexdigest()) for row in rows]
    names = zone()
    names.secure = secure
    server = SmtpServer(extensions=TLS, tls=good.context)

    class Late:
        async def __aenter__(self):
            if rows:
                names.records |= tlsa(server, *rows)

        async def __aexit__(self, *_):
            pass

    async def scenario(bench, *_):
        await bench.queue(b"bob@x.test")
        await bench.settled(1)
        return bench.outcomes()

    smtpc = {"resolution": "dns", "dane": True, "tls_ca_file": ""}
    servers = [names, server, Late(), Port(server, smtpc)]
    events = run(tmp_path, scenario, *servers, smtpc=smtpc)
    assert [event[0] for event in events] == [outcome], said(events)
    assert len(server.messages) == (outcome == "relayed")
    asked = any(kind == "TLSA" for _, kind, _ in names.asked)
    assert asked is secure


def test_dane_needs_tls_and_an_answer(tmp_path, good):
    right = hashlib.sha256(good.spki).hexdigest()
    for number, fault in enumerate(("", "SERVFAIL")):
        home = tmp_path / str(number)
        home.mkdir()
        server = SmtpServer(extensions=("PIPELINING",) if not fault else TLS, tls=good.context)
        names = zone()
        names.secure = True

        class Late:
            async def __aenter__(self, server=server, names=names, fault=fault):
                names.records |= tlsa(server, f"3 1 1 {right}")
                if fault:
                    names.faults = {(f"_{server.port}._tcp.mx.x.test", "TLSA"): fault}

            async def __aexit__(self, *_):
                pass

        async def scenario(bench, *_):
            await bench.queue(b"bob@x.test")
            await bench.settled(1)
            return bench.outcomes()

        smtpc = {"resolution": "dns", "dane": True}
        ((event, *_, detail),) = run(home, scenario, names, server, Late(), Port(server, smtpc), smtpc=smtpc)
        assert event == "deferred" and ("TLSA" if fault else "4.7.4") in detail["reply"]
        assert server.messages == []


@pytest.mark.parametrize(
    ("mode", "mx", "who", "outcome"),
    [
        (b"enforce", b"mx.x.test", "good", "relayed"),
        (b"enforce", b"mx.x.test", "other", "deferred"),
        (b"enforce", b"*.y.test", "good", "deferred"),
        (b"testing", b"*.y.test", "other", "relayed"),
        (b"none", b"mx.x.test", "other", "relayed"),
    ],
)
def test_mta_sts(tmp_path, authority, good, other, mode, mx, who, outcome):
    server = SmtpServer(extensions=TLS, tls={"good": good, "other": other}[who].context)
    host = PolicyHost(good.context, POLICY % (mode, mx))
    names = zone(records={("_mta-sts.x.test", "TXT"): ['"v=STSv1; id=1"']})

    async def scenario(bench, *_):
        await bench.queue(b"bob@x.test")
        await bench.settled(1)
        return bench.outcomes()

    smtpc = {"resolution": "dns", "mta_sts": True, "tls_ca_file": str(authority.file)}
    events = run(tmp_path, scenario, names, server, host, Port(server, smtpc), Port(host, smtpc, "mta_sts_port"), smtpc=smtpc)
    assert [event[0] for event in events] == [outcome], said(events)
    assert len(server.messages) == (outcome == "relayed") and host.asked == 1


def test_a_policy_outlives_a_restart_and_its_host(tmp_path, authority, good):
    async def main():
        from iems.net.resolver import Resolver
        from iems.smtpc.security import verifying_tls

        now = [1000.0]
        names = zone(records={("_mta-sts.x.test", "TXT"): ['"v=STSv1; id=1"']}, ttl=0)
        async with names, PolicyHost(good.context, POLICY % (b"enforce", b"mx.x.test")) as host:

            def store():
                return PolicyStore(
                    tmp_path / "sts", Resolver([names.address], timeout_s=0.3, attempts=1), verifying_tls(authority.file),
                    port=host.port, clock=lambda: now[0],
                )  # fmt: skip

            assert (await store().find("x.test")).mode == "enforce"
            host.text = None
            again = store()
            assert (await again.find("x.test")).mode == "enforce" and host.asked == 1  # the same id: not fetched
            names.records["_mta-sts.x.test", "TXT"] = ['"v=STSv1; id=2"']
            assert (await again.find("x.test")).id == "1" and host.asked == 2  # can't be fetched: the old one stands
            assert (await again.find("x.test")).id == "1" and host.asked == 2  # and not asked again at once
            names.faults = {"_mta-sts.x.test": "SERVFAIL"}
            assert (await store().find("x.test")).id == "1"
            now[0] += 90_000
            assert await store().find("x.test") is None  # too old
            assert list((tmp_path / "sts").iterdir()) == []
            assert await store().find("a/b..test") is None

    asyncio.run(asyncio.wait_for(main(), 60))


def test_whose_word_counts():
    assert validating([("127.0.0.1", 53), ("::1", 53)], [])
    assert not validating([("127.0.0.1", 53), ("192.0.2.1", 53)], [])
    assert validating([("192.0.2.1", 53)], ["192.0.2.1"])


def test_certificates_that_are_none():
    assert not matches(b"\x30\x03nonsense", [(1, 1, b"x" * 32)])
    assert not matches(b"", [(0, 0, b"")])
    assert usable([], 3) == ()


@pytest.mark.parametrize(
    ("offer", "who", "vouched", "outcome", "code"),
    [
        (("REQUIRETLS",), "good", True, "relayed", "250"),
        ((), "good", True, "failed", "5.7.30"),
        (("REQUIRETLS",), "other", True, "deferred", "4.7.5"),
        (("REQUIRETLS",), "good", False, "failed", "5.7.30"),
    ],
)
def test_requiretls(tmp_path, authority, good, other, offer, who, vouched, outcome, code):
    server = SmtpServer(extensions=(*TLS, *offer), tls={"good": good, "other": other}[who].context)
    host = PolicyHost(good.context, POLICY % (b"enforce", b"mx.x.test"))
    names = zone(records={("_mta-sts.x.test", "TXT"): ['"v=STSv1; id=1"']})

    async def scenario(bench, *_):
        await bench.queue(b"bob@x.test")  # shares no session with what follows
        await bench.queue(b"eve@x.test", requiretls=True)
        await bench.settled(2)
        return [event for event in bench.outcomes() if event[2] == b"eve@x.test"], bench.notices()

    smtpc = {"resolution": "dns", "mta_sts": vouched, "tls_ca_file": str(authority.file)}
    events, notices = run(tmp_path, scenario, names, server, host, Port(server, smtpc), Port(host, smtpc, "mta_sts_port"), smtpc=smtpc)
    assert [event[0] for event in events] == [outcome] and code in events[0][3]["reply"], said(events)
    came = [mail for mail, rcpt, _ in server.messages if b"eve@" in rcpt[0]]
    assert [mail.endswith(b" REQUIRETLS") for mail in came] == [True] * (outcome == "relayed")
    for item, message in notices:
        assert item.envelope.requiretls and message.get_payload()[2].get_content_type() == "text/rfc822-headers"
