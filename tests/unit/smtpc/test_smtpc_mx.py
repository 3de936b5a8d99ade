"""Where mail goes: exchangers, host table, relays, loops; the resolver is a table of answers."""

import asyncio
import random

import pytest

from iems.net.resolver import DnsFailure, Exchanges, ip_literal
from iems.smtpc import mx
from iems.smtpc.mx import Host, HostTable, Router, parse_host, parse_table


class Names:
    """A resolver of fixed answers. domains: name -> Exchanges or an exception; hosts: name -> addresses."""

    def __init__(self, domains, hosts):
        self.domains, self.hosts, self.asked = domains, hosts, []

    async def exchanges(self, domain):
        self.asked.append(domain)
        answer = self.domains.get(domain, Exchanges((), exists=False))
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def addresses(self, host, families="46"):
        literal = ip_literal(host)
        if literal:
            return [literal]
        self.asked.append(host)
        answer = self.hosts.get(host, [])
        if isinstance(answer, Exception):
            raise answer
        return answer


DOMAINS = {
    "two.test": Exchanges(((10, "mx1.test"), (20, "mx2.test"))),
    "equal.test": Exchanges(((10, "mx1.test"), (10, "mx2.test"), (10, "mx3.test"))),
    "plain.test": Exchanges(((0, "plain.test"),), implicit=True),
    "empty.test": Exchanges(((0, "empty.test"),), implicit=True),
    "null.test": Exchanges((), null=True),
    "dead.test": DnsFailure("SERVFAIL"),
    "noaddress.test": Exchanges(((10, "nowhere.test"),)),
    "half.test": Exchanges(((10, "sick.test"), (20, "mx2.test"))),
    "sick-only.test": Exchanges(((10, "sick.test"), (20, "nowhere.test"))),
    "ours.test": Exchanges(((10, "me.test"), (20, "mx2.test"))),
    "behind.test": Exchanges(((5, "mx1.test"), (10, "me.test"), (20, "mx2.test"))),
    "alias-of-us.test": Exchanges(((10, "us.test"),)),
    "same-as-us.test": Exchanges(((10, "mx1.test"), (10, "us.test"))),
}
HOSTS = {
    "mx1.test": ["2001:db8::1", "192.0.2.1", "192.0.2.11"],
    "mx2.test": ["192.0.2.2"],
    "mx3.test": ["192.0.2.3"],
    "plain.test": ["192.0.2.9"],
    "sick.test": DnsFailure("timeout"),
    "us.test": ["127.0.0.1"],
}


def find(destination, resolution="dns", *, direct=False, relays=(), table=None, own=frozenset({25}), names=None, seed=1):
    names = names or Names(DOMAINS, HOSTS)
    router = Router(
        names, resolution=resolution, relay_hosts=list(relays), table=table, port=25, hostname="Me.test", own_ports=own,
        local=lambda address: address == "127.0.0.1", rng=random.Random(seed),
    )
    return asyncio.run(router.find(destination, direct))


def addresses(route):
    return [host.address for host in route.hosts]


def test_exchangers_in_order_with_both_families():
    route = find("two.test")
    assert addresses(route) == ["2001:db8::1", "192.0.2.1", "192.0.2.11", "192.0.2.2"] and route.reply is None
    assert route.hosts[0] == Host("mx1.test", "2001:db8::1", 25, 10)
    assert str(route.hosts[0]) == "mx1.test[2001:db8::1]:25"


def test_equal_preference_is_shuffled():
    assert len({find("equal.test", seed=seed).hosts[0].name for seed in range(20)}) == 3


@pytest.mark.parametrize(
    ("domain", "reply"),
    [("null.test", mx.NULL_MX), ("nowhere.test", mx.NO_SUCH_DOMAIN), ("empty.test", mx.NO_ADDRESS), ("ours.test", mx.LOOP),
     ("alias-of-us.test", mx.LOOP), ("bad domain", mx.BAD_DOMAIN), ("", mx.BAD_DOMAIN)],
)
def test_certain_refusals(domain, reply):
    route = find(domain)
    assert route.hosts == () and route.reply == reply and not reply.transient


@pytest.mark.parametrize("domain", ["dead.test", "noaddress.test", "sick-only.test"])
def test_unsure_is_transient(domain):
    route = find(domain)
    assert route.hosts == () and route.reply.transient and route.reply.subject == 4


def test_one_sick_exchanger_leaves_the_others():
    assert addresses(find("half.test")) == ["192.0.2.2"]


def test_hosts_at_or_behind_ourselves_are_left_out():
    assert addresses(find("behind.test")) == ["2001:db8::1", "192.0.2.1", "192.0.2.11"]
    for seed in range(10):
        assert find("same-as-us.test", seed=seed).reply == mx.LOOP
    assert addresses(find("alias-of-us.test", own=frozenset({10025}))) == ["127.0.0.1"]  # another port is not us


def test_address_literals_need_no_dns():
    names = Names({}, {})
    assert addresses(find("[192.0.2.7]", names=names)) == ["192.0.2.7"]
    assert addresses(find("[IPv6:2001:db8::7]", names=names)) == ["2001:db8::7"]
    assert find("[nonsense]", names=names).reply == mx.BAD_DOMAIN and names.asked == []


def test_relay_only():
    names = Names({}, HOSTS)
    route = find("two.test", "relay", relays=[("mx2.test", 2525), ("192.0.2.8", 25)], names=names)
    assert [(h.address, h.port) for h in route.hosts] == [("192.0.2.2", 2525), ("192.0.2.8", 25)]
    assert names.asked == ["mx2.test"]
    assert find("two.test", "relay").reply == mx.NO_RELAY


def test_relay_as_last_resort():
    assert addresses(find("nowhere.test", relays=[("192.0.2.8", 25)])) == ["192.0.2.8"]
    assert addresses(find("plain.test", relays=[("192.0.2.8", 25)])) == ["192.0.2.9"]
    assert find("null.test", relays=[("192.0.2.8", 25)]).reply == mx.NULL_MX


def test_direct():
    assert addresses(find("mx2.test", direct=True)) == ["192.0.2.2"]
    assert find("[192.0.2.5]:2525", direct=True).hosts[0].port == 2525
    assert find("127.0.0.1:2525", direct=True).hosts[0].port == 2525
    assert find("127.0.0.1", direct=True).reply == mx.LOOP
    assert find("host:port", direct=True).reply == mx.BAD_DOMAIN


TABLE = """# our partners
two.test    192.0.2.70  mx3.test:2525
*.corp.test 192.0.2.71
192.0.2.72:26 named.test Other.Test   # as hosts(5)
nonsense
x.test  a:b
"""


def test_host_table(tmp_path):
    path = tmp_path / "hosts"
    path.write_text(TABLE)
    table = HostTable(path, 25)
    names = Names(DOMAINS, HOSTS)
    route = find("two.test", "hosts", table=table, names=names)
    assert [(h.address, h.port) for h in route.hosts] == [("192.0.2.70", 25), ("192.0.2.3", 2525)]
    assert names.asked == ["mx3.test"]
    assert addresses(find("a.b.corp.test", "hosts", table=table)) == ["192.0.2.71"]
    assert find("corp.test", "hosts", table=table).reply == mx.NOT_IN_TABLE
    assert find("other.test", "hosts", table=table).hosts[0].port == 26
    # order of the sources
    assert addresses(find("two.test", "dns-hosts", table=table))[0] == "2001:db8::1"
    assert addresses(find("named.test", "dns-hosts", table=table)) == ["192.0.2.72"]
    assert addresses(find("two.test", "hosts-dns", table=table))[0] == "192.0.2.70"
    assert addresses(find("plain.test", "hosts-dns", table=table)) == ["192.0.2.9"]
    assert find("dead.test", "hosts-dns", table=table).reply.transient
    assert find("nowhere.test", "dns-hosts", table=table).reply == mx.NO_SUCH_DOMAIN
    path.write_text("* 192.0.2.99\n")
    assert addresses(find("anything.test", "hosts", table=table)) == ["192.0.2.99"]
    path.unlink()
    assert find("two.test", "hosts", table=table).reply == mx.NO_TABLE
    assert find("nowhere.test", "dns-hosts", table=table).reply == mx.NO_TABLE
    assert find("two.test", "hosts").reply == mx.NO_TABLE


def test_parse():
    assert parse_host("h", 25) == ("h", 25) and parse_host("h:26", 25) == ("h", 26)
    assert parse_host("[2001:db8::1]:26", 25) == ("2001:db8::1", 26) and parse_host("2001:db8::1", 25) == ("2001:db8::1", 25)
    for text in ("", ":25", "h:", "h:0", "h:99999", "[::1", "[::1]x", "h:²"):
        with pytest.raises(ValueError):
            parse_host(text, 25)
    assert parse_table("", 25) == {}


def test_listening_addresses():
    assert mx.listening_addresses(["127.0.0.1"])("127.0.0.1") and not mx.listening_addresses(["127.0.0.1"])("127.0.0.2")
    everywhere = mx.listening_addresses([])
    assert everywhere("127.0.0.9") and everywhere("::1") and not everywhere("192.0.2.1")


def test_destinations_with_the_same_hosts_share_a_key():
    router = Router(Names({}, {}), resolution="relay", relay_hosts=[], table=None, port=25, hostname="h", own_ports=frozenset(), local=bool)
    assert router.key("a.test", False) == router.key("b.test", False) != router.key("b.test", True)
