"""The resolver against a scripted DNS server on loopback."""

import asyncio
import random

import dns.flags
import dns.message
import dns.name
import dns.rdatatype
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.net import resolver
from iems.net.resolver import Answer, DnsFailure, Exchanges, Resolver, ascii_name, ip_literal
from tests.support.dnsserver import DnsServer

RECORDS = {
    ("example.test", "MX"): ["20 mx2.example.test.", "10 mx1.example.test.", "10 MX3.example.test."],
    ("mx1.example.test", "A"): ["192.0.2.1", "192.0.2.2"],
    ("mx1.example.test", "AAAA"): ["2001:db8::1"],
    ("plain.test", "A"): ["192.0.2.9"],
    ("null.test", "MX"): ["0 ."],
    ("text.test", "TXT"): ['"v=spf1 " "-all"'],
    ("alias.test", "CNAME"): ["plain.test."],
    ("alias2.test", "CNAME"): ["alias.test."],
    ("loop.test", "CNAME"): ["loop2.test."],
    ("loop2.test", "CNAME"): ["loop.test."],
    ("xn--e1afmkfd.test", "MX"): ["5 mx1.example.test."],
}


def run(scenario, *, faults=None, records=RECORDS, ttl=300, **options):
    """Runs `scenario(resolver, server)` with a resolver that asks the server only; fast to give up."""

    async def main():
        async with DnsServer(records, faults, ttl) as server:
            options.setdefault("timeout_s", 0.15)
            options.setdefault("attempts", 2)
            asker = Resolver([server.address], rng=random.Random(1), **options)
            return await scenario(asker, server)

    return asyncio.run(main())


def test_exchanges_best_first():
    async def scenario(asker, server):
        return await asker.exchanges("Example.TEST.")

    hosts = run(scenario).hosts
    assert sorted(hosts) == [(10, "mx1.example.test"), (10, "mx3.example.test"), (20, "mx2.example.test")]
    assert hosts[2][0] == 20


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("plain.test", Exchanges(((0, "plain.test"),), implicit=True)),
        ("null.test", Exchanges((), null=True)),
        ("nowhere.test", Exchanges((), exists=False)),
        ("пример.test", Exchanges(((5, "mx1.example.test"),))),
        ("alias2.test", Exchanges(((0, "plain.test"),), implicit=True)),
    ],
)
def test_exchanges(domain, expected):
    async def scenario(asker, server):
        return await asker.exchanges(domain)

    assert run(scenario) == expected


def test_addresses_of_both_families():
    async def scenario(asker, server):
        return [
            await asker.addresses("mx1.example.test"),
            await asker.addresses("mx1.example.test", "4"),
            await asker.addresses("alias2.test"),
            await asker.addresses("example.test"),
        ]

    both, four, alias, none = run(scenario)
    assert both[0] == "2001:db8::1" and sorted(both[1:]) == sorted(four) == ["192.0.2.1", "192.0.2.2"]
    assert (alias, none) == (["192.0.2.9"], [])


def test_nothing_is_asked_for_what_is_known():
    async def scenario(asker, server):
        found = [await asker.addresses(host) for host in ("192.0.2.7", "[192.0.2.7]", "[IPv6:2001:db8::7]", "localhost")]
        return found, server.asked

    assert run(scenario) == ([["192.0.2.7"], ["192.0.2.7"], ["2001:db8::7"], ["127.0.0.1", "::1"]], [])


@pytest.mark.parametrize("fault", ["SERVFAIL", "REFUSED", "FORMERR", "NOTIMP", "silent", "garbage", "wrong-id", "wrong-question"])
def test_anything_unsure_is_transient(fault):
    async def scenario(asker, server):
        with pytest.raises(DnsFailure):
            await asker.exchanges("example.test")
        with pytest.raises(DnsFailure):  # remembered for a moment: asks nothing
            await asker.exchanges("example.test")
        return len(server.asked)

    assert run(scenario, faults={"example.test": fault}) == 2


def test_alias_loop_is_transient():
    async def scenario(asker, server):
        with pytest.raises(DnsFailure):
            await asker.query("loop.test", "A")

    run(scenario)
    run(scenario, faults={"loop.test": "no-chase", "loop2.test": "no-chase"})


def test_aliases_the_server_does_not_follow():
    async def scenario(asker, server):
        return await asker.query("alias2.test", "A")

    answer = run(scenario, faults={"alias2.test": "no-chase", "alias.test": "no-chase"})
    assert answer.records == ("192.0.2.9",) and answer.name == "plain.test"


def test_a_lost_packet_is_asked_again():
    async def scenario(asker, server):
        return (await asker.query("plain.test", "A")).records, len(server.asked)

    assert run(scenario, faults={"plain.test": "first-silent"}) == (("192.0.2.9",), 2)


def test_truncated_goes_over_tcp():
    many = {("many.test", "TXT"): [f'"{"x" * 200}{n}"' for n in range(100)]}

    async def scenario(asker, server):
        return len((await asker.query("many.test", "TXT")).records), server.asked

    count, asked = run(scenario, faults={"many.test": "truncated"}, records=many)
    assert count == 100 and asked == [("many.test", "TXT", "udp"), ("many.test", "TXT", "tcp")]


def test_equal_questions_are_asked_once_and_kept():
    async def scenario(asker, server):
        answers = await asyncio.gather(*(asker.query("plain.test", "A") for _ in range(50)))
        answers += [await asker.query("PLAIN.test", "A"), await asker.query("text.test", "TXT")]
        missing = [await asker.query("nowhere.test", "A") for _ in range(3)]
        return answers, missing, len(server.asked)

    answers, missing, asked = run(scenario)
    assert {a.records for a in answers} == {("192.0.2.9",), (b"v=spf1 -all",)}
    assert missing[0] == Answer((), False, "nowhere.test", 60) and asked == 3


def test_a_caller_that_gives_up_does_not_spoil_the_answer_for_others():
    async def scenario(asker, server):
        first = asyncio.create_task(asker.query("plain.test", "A"))
        second = asyncio.create_task(asker.query("plain.test", "A"))
        await asyncio.sleep(0)
        first.cancel()
        return (await second).records

    assert run(scenario) == ("192.0.2.9",)


def test_cache_is_bounded_and_honours_ttl():
    records = {(f"h{n}.test", "A"): ["192.0.2.1"] for n in range(20)}

    async def scenario(asker, server):
        for n in range(20):
            await asker.query(f"h{n}.test", "A")
        kept = len(asker._cache)
        await asker.query("h0.test", "A")
        return kept, len(server.asked)

    assert run(scenario, records=records, cache_records=5) == (5, 21)
    assert run(scenario, records=records, cache_records=0) == (0, 21)
    assert run(scenario, records=records, ttl=0) == (20, 21)  # expired at once, so asked again


def test_one_family_failing_leaves_the_other():
    async def scenario(asker, server):
        found = await asker.addresses("mx1.example.test")
        with pytest.raises(DnsFailure):
            await asker.addresses("plain.test")
        return found

    faults = {("mx1.example.test", "AAAA"): "SERVFAIL", ("plain.test", "A"): "SERVFAIL"}
    assert sorted(run(scenario, faults=faults)) == ["192.0.2.1", "192.0.2.2"]


def test_no_server_is_transient():
    async def main():
        asker = Resolver([("127.0.0.1", 1)], timeout_s=0.2, attempts=2)
        with pytest.raises(DnsFailure):
            await asker.query("plain.test", "A")

    asyncio.run(main())


@pytest.mark.parametrize("name", ["", ".", "a..b", "x" * 64 + ".test", "a b.test", "a\\046b.test", "a\r\nb", "a" + ".b" * 130, "\ud800.test"])
def test_no_domain_name(name):
    with pytest.raises(ValueError):
        ascii_name(name)


@pytest.mark.parametrize(
    ("text", "address"),
    [("192.0.2.1", "192.0.2.1"), ("[192.0.2.1]", "192.0.2.1"), ("[IPv6:2001:DB8::1]", "2001:db8::1"), ("2001:db8::1", "2001:db8::1"),
     ("1.2.3", None), ("256.1.1.1", None), ("example.test", None), ("[example]", None)],
)
def test_ip_literal(text, address):
    assert ip_literal(text) == address


def test_system_servers(tmp_path):
    path = tmp_path / "resolv.conf"
    path.write_text("# x\nnameserver 192.0.2.53\nsearch test\nnameserver 2001:db8::53\nnameserver nonsense\n")
    assert resolver.system_servers(path) == [("192.0.2.53", 53), ("2001:db8::53", 53)]
    assert resolver.system_servers(tmp_path / "none") == [("127.0.0.1", 53)]


@given(st.lists(st.from_regex(r"[a-z0-9_*-]{1,63}", fullmatch=True), min_size=0, max_size=4), st.integers(0, 65535), st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_query_is_what_the_library_would_send(labels, number, edns):
    name = ".".join(labels)
    made = dns.message.from_wire(resolver._question(number, name, "TXT", edns))
    assert made.id == number and made.edns == (0 if edns else -1)
    assert made.question[0].name == dns.name.from_text(name) and made.question[0].rdtype == dns.rdatatype.TXT
    assert made.flags == dns.flags.RD | dns.flags.AD and (not edns or made.payload == resolver.UDP_OCTETS)


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".test"])
def test_a_query_for_no_name(name):
    with pytest.raises(ValueError, match="no domain name"):
        resolver._question(1, name, "A", True)


@given(st.binary(max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_reply(octets):
    query = resolver._question(7, "x.test", "A", True)
    for wire in (octets, b"\0\7\x81\x80" + octets, b"\0\7\x81\x80\0\1\0\1\0\0\0\0" + query[12:-11] + octets):
        reply = resolver._is_reply(query, wire)
        assert reply is None or reply.id == 7
