"""DNS-BL and sender checks in whole sessions, against a DNS server with zones and faults."""

import asyncio

import pytest

from iems.model import Verdict
from iems.net.resolver import Exchanges
from iems.smtpd.screen.dnsbl import question
from iems.smtpd.screen.sender import Checks
from tests.support.dnsserver import DnsServer
from tests.transcripts.smtp_server import SmtpServer
from tests.unit.smtpd.screen_rig import codes, say, screened

CLIENT = "192.0.2.1"
HIT, TEST, NEVER = "1.2.0.192", "2.0.0.127", "1.0.0.127"
REJECT, TAG = ("bl.test", "reject"), ("bl.test", "tag")
TRANSACTION = b"MAIL FROM:<a@b.test>\r\nRCPT TO:<john@mx.test>\r\nDATA\r\nSubject: x\r\n\r\n.\r\n"


def zone(name="bl.test", **answers):
    """Records of a list in order; answers: of the client (`hit`), as a list."""
    records = {(f"{TEST}.{name}", "A"): ["127.0.0.2"]}
    if "hit" in answers:
        records[f"{HIT}.{name}", "A"] = answers["hit"]
    return records


def session(records, zones=(REJECT,), faults=None, octets=b"EHLO c.test\r\n" + TRANSACTION, server=None, then=None, **smtpd):
    """(codes of the replies, the server, the DNS server) of one session; then(server, dns): coroutine that goes on."""

    async def go():
        async with DnsServer(records, faults) as dns:
            one = screened(server or SmtpServer(), zones=zones, dns=dns.address, **smtpd)
            one.connect()
            out = await say(one, octets)
            if then is not None:
                out += await then(one, dns)
            return codes(out), one, dns

    return asyncio.run(go())


def alarms(server):
    return [detail["why"] for event, *_, detail in server.log.events if event == "alarm"]


def test_questions():
    assert question("192.0.2.1", "z.test") == "1.2.0.192.z.test"
    assert question("2001:db8::2", "z.test") == "2" + ".0" * 23 + ".8.b.d.0.1.0.0.2.z.test"


def test_a_listed_client_is_refused_with_the_lists_words():
    records = zone(hit=["127.0.0.4"]) | {(f"{HIT}.bl.test", "TXT"): ['"see http://bl.test/?ip=192.0.2.1\\013\\010250 ok \\255"']}

    async def again(server, dns):
        return await say(server, b"MAIL FROM:<c@d.test>\r\n")

    found, server, dns = session(records, octets=b"EHLO c\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<john@mx.test>\r\n", then=again)
    assert found == ["250", "550", "503", "550"]
    refusals = [detail for event, *_, detail in server.log.events if event == "refused"]
    assert refusals[0]["what"] == "dnsbl" and refusals[0]["subject"] == "bl.test 127.0.0.4"
    assert refusals[0]["reply"] == "550 5.7.1 Your address is listed by bl.test: see http://bl.test/?ip=192.0.2.1  250 ok ?"
    # Asked once a connection: the client, the two points of the test, the text.
    assert len(dns.asked) == 4


def test_without_text():
    found, _server, _ = session(zone(hit=["127.0.0.2"]), octets=b"EHLO c\r\nMAIL FROM:<a@b.test>\r\n")
    assert found == ["250", "550"]


def test_not_listed():
    found, server, dns = session(zone())
    assert found == ["250", "250", "250", "354", "250"] and server.spool.messages[0][0].verdicts == ()
    assert (f"{HIT}.bl.test", "A", "udp") in dns.asked and not alarms(server)


@pytest.mark.parametrize(
    ("codes_set", "answer", "hit"),
    [
        ("", "127.0.0.2", True), ("", "127.9.9.9", True), ("", "127.0.0.1", False), ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.2", "127.0.0.3", False), ("127.0.0.2,127.0.0.4-11", "127.0.0.11", True), ("127.0.0.4-11", "127.0.0.12", False),
        ("127.0.0.250-127.0.1.3", "127.0.1.2", True),
    ],
)  # fmt: skip
def test_codes(codes_set, answer, hit):
    found, server, _ = session(zone(hit=[answer]), [(*TAG, codes_set)])
    assert found[-1] == "250"
    assert server.spool.messages[0][0].verdicts == ((Verdict("dnsbl", "bl.test", answer),) if hit else ())
    tagged = [(id, detail) for event, id, _, detail in server.log.events if event == "tagged"]
    assert tagged == ([(bytes(16), {"verdicts": [f"dnsbl bl.test: {answer}"]})] if hit else [])


def test_several_lists_are_asked_at_once_and_tags_are_of_one_message():
    records = zone("one.test", hit=["127.0.0.2"]) | zone("two.test", hit=["127.0.0.3"]) | zone("three.test")

    async def banned_by_none(server, dns):
        return await say(server, TRANSACTION)

    found, server, _ = session(records, [(name, "tag") for name in ("one.test", "two.test", "three.test")], then=banned_by_none)
    assert found.count("250") == 7
    for envelope, *_ in server.spool.messages:
        assert [verdict.subject for verdict in envelope.verdicts] == ["one.test", "two.test"]


def test_ipv6_client():
    name = question("2001:db8::7", "bl.test")
    found, *_ = session(
        {(f"{TEST}.bl.test", "A"): ["127.0.0.2"], (name, "A"): ["127.0.0.2"]}, server=SmtpServer({"ip": "2001:db8::7"}),
        octets=b"EHLO c\r\nMAIL FROM:<>\r\n",
    )  # fmt: skip
    assert found == ["250", "550"]


def test_a_list_of_ipv6_only_is_in_order():
    test = question("::ffff:127.0.0.2", "bl.test")
    found, server, _ = session({(test, "A"): ["127.0.0.2"], (f"{HIT}.bl.test", "A"): ["127.0.0.2"]})
    assert found[1] == "550" and not alarms(server)


SICK = [
    (zone(hit=["127.255.255.254"]), None, "127.255.255.254"),
    (zone(hit=["127.0.0.2", "127.255.255.252"]), None, "127.255.255.252"),
    (zone(hit=["203.0.113.1"]), None, "which no list does"),
    (zone(hit=["127.0.0.2"]) | {(f"{NEVER}.bl.test", "A"): ["127.0.0.2"]}, None, "lists everybody"),
    ({(f"{HIT}.bl.test", "A"): ["127.0.0.2"]}, None, "lists nobody"),
    (zone(hit=["127.0.0.2"]), {f"{HIT}.bl.test": "silent"}, "no answer in time"),
    (zone(hit=["127.0.0.2"]), {f"{TEST}.bl.test": "silent"}, "no answer in time"),
    (zone(hit=["127.0.0.2"]), {f"{HIT}.bl.test": "SERVFAIL"}, "SERVFAIL"),
    (zone(hit=["127.0.0.2"]), {f"{NEVER}.bl.test": "REFUSED"}, "REFUSED"),
    (zone(hit=["127.0.0.2"]), {f"{HIT}.bl.test": "garbage"}, "no answer"),
]  # fmt: skip


@pytest.mark.parametrize(("records", "faults", "why"), SICK)
def test_a_sick_list_refuses_nobody_and_has_one_alarm(records, faults, why):
    now = [1000.0]

    async def next_client(server, dns):
        asked = len(dns.asked)
        server.screening = None  # another connection
        out = await say(server, TRANSACTION)
        assert len(dns.asked) == asked  # left alone meanwhile
        return out

    found, server, _ = session(records, faults=faults, then=next_client, clock=lambda: now[0], screen_timeout_s=0.3)
    assert found == ["250", "250", "250", "354", "250", "250", "250", "354", "250"]
    assert len(alarms(server)) == 1 and why in alarms(server)[0]
    assert not any(envelope.verdicts for envelope, *_ in server.spool.messages)


def test_a_list_that_is_well_again_counts():
    now = [1000.0]

    async def later(server, dns):
        dns.records[f"{HIT}.bl.test", "A"] = ["127.0.0.2"]
        now[0] += 601
        server.screening = None
        server.handlers.screen.lists._resolver._cache.clear()
        return await say(server, b"MAIL FROM:<>\r\n")

    found, server, _ = session(zone(hit=["127.255.255.255"]), then=later, clock=lambda: now[0])
    assert found[-1] == "550" and len(alarms(server)) == 1
    assert [event for event, *_ in server.log.events if event == "dnsbl-well"]


def test_who_is_spared():
    listed = zone(hit=["127.0.0.2"])
    for server, extra in (
        (SmtpServer({"trusted_networks": "192.0.2.0/24"}), {}),
        (SmtpServer({"ip": "127.0.0.1"}), {}),
        (SmtpServer(), {"dnsbl_allow": ["192.0.2.0/30"]}),
    ):
        found, _, dns = session(listed, server=server, **extra)
        assert found[-1] == "250" and dns.asked == []
    login = b"EHLO c\r\nSTARTTLS\r\n"

    async def logged_in(server, dns):
        server.happen("tls")
        out = await say(server, b"EHLO c\r\nAUTH PLAIN AGpvaG5AbXgudGVzdABwdw==\r\n")
        return out + await say(server, TRANSACTION)

    found, _, dns = session(listed, octets=login, then=logged_in)
    assert found[-1] == "250" and dns.asked == []


def test_loopback_where_limits_act_on_it():
    records = {(f"{TEST}.bl.test", "A"): ["127.0.0.2"], (question("127.0.0.9", "bl.test"), "A"): ["127.0.0.2"]}
    found, *_ = session(records, server=SmtpServer({"ip": "127.0.0.9", "limit_loopback": "true"}))
    assert found[1] == "550"


def test_mail_waits_and_what_is_pipelined_behind_it_does_too():
    async def go():
        async with DnsServer(zone(), {f"{HIT}.bl.test": "silent"}) as dns:
            server = screened(SmtpServer(), zones=[REJECT], dns=dns.address, screen_timeout_s=0.1)
            server.connect()
            out = server.feed(b"EHLO c\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<john@mx.test>\r\nRCPT TO:<no@mx.test>\r\n")
            assert codes(out) == ["250"] and server.engine.waiting and server.handlers.pending == 1
            assert server.feed(b"DATA\r\n") == b""
            await asyncio.wait(set(server.handlers._tasks))
            assert codes(server.output) == ["250", "250", "550", "354"] and server.handlers.pending == 0
            # A client that goes while DNS is asked leaves nothing behind.
            gone = screened(SmtpServer(), zones=[REJECT], dns=dns.address, screen_timeout_s=0.1)
            gone.connect()
            gone.feed(b"EHLO c\r\nMAIL FROM:<a@b.test>\r\n")
            gone.engine.end()
            await asyncio.wait(set(gone.handlers._tasks))
            assert gone.output == b"" or codes(gone.output) == ["250"]
            assert gone.handlers.pending == 0 and gone.closed

    asyncio.run(go())


SENDER = {
    ("mx.example", "MX"): ["10 m.example."], ("a.example", "A"): ["192.0.2.9"], ("six.example", "AAAA"): ["2001:db8::9"],
    ("null.example", "MX"): ["0 ."], ("empty.example", "TXT"): ['"x"'], ("name.example", "A"): ["192.0.2.1"],
    ("1.2.0.192.in-addr.arpa", "PTR"): ["name.example."],
}  # fmt: skip


def check(octets, setting, action, faults=None, records=SENDER, **more):
    found, server, dns = session(records, (), faults, octets, **{setting: action}, screen_timeout_s=0.3, **more)
    return found, server, dns


@pytest.mark.parametrize(
    ("path", "reply"),
    [
        (b"a@mx.example", ""), (b"a@a.example", ""), (b"a@six.example", ""), (b"", ""), (b"a@[192.0.2.1]", ""),
        (b"a@null.example", "550 5.7.27"), (b"a@empty.example", "550 5.1.8"), (b"a@no.example", "550 5.1.8"),
        (b"a@fail.example", "451 4.1.8"), (b"a@silent.example", "451 4.1.8"), (b"a@x_y.example", "550 5.1.8"),
    ],
)  # fmt: skip
def test_sender_domain(path, reply):
    faults = {"fail.example": "SERVFAIL", "silent.example": "silent"}
    octets = b"EHLO c\r\nMAIL FROM:<%b>\r\n" % path
    found, server, _ = check(octets, "check_sender_domain", "reject", faults)
    assert found[1] == (reply[:3] or "250")
    if reply:
        assert server.log.events[-1][3]["reply"].startswith(reply) and server.log.events[-1][3]["what"] == "sender-domain"
    found, server, _ = check(octets + b"RCPT TO:<john@mx.test>\r\nDATA\r\n.\r\n", "check_sender_domain", "tag", faults)
    assert found[-1] == "250"
    verdicts = server.spool.messages[0][0].verdicts
    assert [verdict.check for verdict in verdicts] == (["sender-domain"] if reply.startswith("5") else [])


def test_a_domain_that_is_well_is_not_asked_about_at_each_message():
    """Believed for a minute, whoever sends; one that is not well is looked up every time, and may have been mended."""
    asked, now = [], [0.0]
    records = {"well.example": True, "bad.example": False}

    class Resolver:
        async def exchanges(self, name):
            asked.append(name)
            return Exchanges(((10, "mx"),), exists=True) if records[name] else Exchanges((), exists=False)

    checks = Checks(Resolver(), timeout_s=1.0, domain="reject", clock=lambda: now[0])

    def found(path):
        return [asyncio.run(work).refusal for work in checks.sender(path)]

    assert [found(path) for path in (b"a@well.example", b"b@well.example")] == [[None], []] and asked == ["well.example"]
    now[0] = 59.0
    assert checks.is_well(b"c@well.example") and checks.is_well(b"") and checks.is_well(b"a@[192.0.2.1]")
    now[0] = 61.0
    assert found(b"a@well.example") == [None] and len(asked) == 2
    assert found(b"a@bad.example")[0] is not None and found(b"a@bad.example")[0] is not None and len(asked) == 4
    records["bad.example"] = True
    assert found(b"a@bad.example") == [None] and found(b"a@bad.example") == []
    assert Checks(Resolver(), timeout_s=1.0).is_well(b"a@bad.example")  # the check is off


@pytest.mark.parametrize(
    ("records", "faults", "reply"),
    [
        ({}, {}, ""), ({("1.2.0.192.in-addr.arpa", "PTR"): ["no.example.", "a.example."]}, {}, "550 5.7.25"),
        ({}, {"name.example": "SERVFAIL"}, "451 4.7.25"), ({}, {"1.2.0.192.in-addr.arpa": "SERVFAIL"}, "451 4.7.25"),
        ({("1.2.0.192.in-addr.arpa", "PTR"): ["no.example.", "name.example."]}, {}, ""),
    ],
)  # fmt: skip
def test_client_name(records, faults, reply):
    found, server, _ = check(b"EHLO c\r\nMAIL FROM:<>\r\n", "check_client_name", "reject", faults, SENDER | records)
    assert found[1] == (reply[:3] or "250")
    assert not reply or server.log.events[-1][3]["reply"].startswith(reply)
    found, server, _ = check(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<john@mx.test>\r\nDATA\r\n.\r\n", "check_client_name", "tag", faults, SENDER | records)
    assert [v.check for v in server.spool.messages[0][0].verdicts] == (["client-name"] if reply.startswith("5") else [])


@pytest.mark.parametrize(
    ("helo", "code"),
    [
        (b"a.example", 250), (b"six.example", 250), (b"mx.example", 250), (b"A.Example.", 250), (b"[192.0.2.1]", 250),
        (b"[IPv6:2001:db8::1]", 250), (b"[300.1.1.1]", 550), (b"pc", 550), (b"192.0.2.1", 550), (b"a..example", 550),
        (b"no.example", 550), (b"fail.example", 451), (b"a,b.example", 550),
    ],
)  # fmt: skip
def test_helo(helo, code):
    found, *_ = check(b"EHLO %b\r\nMAIL FROM:<>\r\n" % helo, "check_helo", "reject", {"fail.example": "SERVFAIL"})
    assert found[1] == str(code)


def test_another_helo_is_looked_at_anew_and_for_now_is_not_kept():
    octets = b"EHLO no.example\r\nMAIL FROM:<>\r\nEHLO a.example\r\nMAIL FROM:<>\r\n"
    assert check(octets, "check_helo", "reject")[0] == ["250", "550", "250", "250"]

    async def go():
        async with DnsServer(SENDER, {"a.example": "SERVFAIL"}) as dns:
            server = screened(SmtpServer(), dns=dns.address, check_helo="reject")
            server.connect()
            assert codes(await say(server, b"EHLO a.example\r\nMAIL FROM:<>\r\n"))[1] == "451"
            dns.faults.clear()
            server.handlers.screen.checks._resolver._cache.clear()
            assert codes(await say(server, b"MAIL FROM:<>\r\n")) == ["250"]

    asyncio.run(go())


def test_unqualified():
    octets = b"EHLO c\r\nMAIL FROM:<bob>\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<john>\r\nRCPT TO:<postmaster>\r\n"
    found, _, dns = check(octets, "check_unqualified", "reject")
    assert found == ["250", "553", "250", "553", "250"] and dns.asked == []
    octets = b"EHLO c\r\nMAIL FROM:<bob>\r\nRCPT TO:<john>\r\nRCPT TO:<mary>\r\nDATA\r\n.\r\nRSET\r\n" + TRANSACTION
    found, server, _ = check(octets, "check_unqualified", "tag")
    assert [[v.subject for v in envelope.verdicts] for envelope, *_ in server.spool.messages] == [["bob", "john", "mary"], []]


def test_off_asks_nothing():
    found, server, dns = session(SENDER, ())
    assert found[-1] == "250" and dns.asked == [] and server.screening is None
