"""Each look-up of the next hosts with its answer, and the hosts in their order."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from iems.cli.nexthops import next_hops
from iems.config import Config, Dns, OdmrAccount, Ports, Smtpc, Smtpd
from tests.support.beside import beside
from tests.support.dnsserver import DnsServer

NAMES = {
    ("two.test", "MX"): ["20 b.two.test.", "10 a.two.test."], ("a.two.test", "A"): ["192.0.2.1"], ("b.two.test", "A"): ["192.0.2.2"],
    ("b.two.test", "AAAA"): ["2001:db8::2"], ("null.test", "MX"): ["0 ."], ("host.test", "A"): ["192.0.2.3"], ("relay.test", "A"): ["192.0.2.4"],
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A DNS server in a thread of its own, as the command has a loop of its own."""
    names = DnsServer(NAMES, faults={"sick.test": "SERVFAIL"})
    with beside(names):
        yield "{}:{}".format(*names.address)


def looked(server, tmp_path, *ways, **smtpc):
    smtpd = Smtpd(odmr=[OdmrAccount(account="a@me.test", domains=["Branch.test"])])
    config = Config(hostname="me.test", ports=Ports(base=20_000), dns=Dns(servers=[server], timeout_s=0.5, attempts=1), smtpc=Smtpc(**smtpc), smtpd=smtpd)
    steps, hosts = next_hops(config, tmp_path, ways)
    return steps, [(host["host"], host["address"], host["port"]) for host in hosts]


def test_exchangers(server, tmp_path):
    steps, hosts = looked(server, tmp_path, ("two.test", False))
    assert steps[0] == ("DNS: MX of two.test", "10 a.two.test, 20 b.two.test")
    assert ("DNS: addresses of a.two.test", "192.0.2.1") in steps
    assert hosts == [("a.two.test", "192.0.2.1", 25), ("b.two.test", "2001:db8::2", 25), ("b.two.test", "192.0.2.2", 25)]


@pytest.mark.parametrize(
    ("domain", "answers"),
    [
        ("null.test", ["it takes no mail (null MX)", "556 5.1.10"]),
        ("gone.test", ["no such domain", "550 5.1.2"]),
        ("host.test", ["none: the domain itself is its mail host", "192.0.2.3", "host.test[192.0.2.3]:25"]),
        ("sick.test", ["no answer: ", "451 4.4.3"]),
        ("branch.test", ["none is tried: its site fetches its mail by ATRN"]),
    ],
)
def test_answers(server, tmp_path, domain, answers):
    steps, _ = looked(server, tmp_path, (domain, False))
    assert len(steps) == len(answers) and all(step[1].startswith(start) for step, start in zip(steps, answers, strict=True)), steps


def test_relays_and_a_host_table(server, tmp_path):
    assert looked(server, tmp_path, ("relay.test:2525", True))[1] == [("relay.test", "192.0.2.4", 2525)]
    relays = looked(server, tmp_path, ("two.test", False), ("null.test", False), resolution="relay", relay_hosts=["relay.test", "192.0.2.9:26"])
    assert relays[1] == [("relay.test", "192.0.2.4", 25), ("192.0.2.9", "192.0.2.9", 26)] * 2
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/hosts").write_text("table.test 192.0.2.7\n")
    assert looked(server, tmp_path, ("table.test", False), resolution="hosts", host_table="hosts")[1] == [("192.0.2.7", "192.0.2.7", 25)]


def test_the_command(server, tmp_path):
    from tests.unit.cli.test_iemsctl import ctl, run

    home = tmp_path / "home"
    run("init", str(home), "--domain", "example.test", "--port-base", "20000")
    file = home / "conf/iems.toml"
    file.write_text(file.read_text().replace("[dns]\n", f"[dns]\nservers = {json.dumps([server])}\n", 1))
    found = json.loads(ctl(home, "route", "explain", "x@two.test", "--hosts", "--json").stdout)
    assert [host["address"] for host in found["hosts"]] == ["192.0.2.1", "2001:db8::2", "192.0.2.2"]
    assert {"question": "DNS: MX of two.test", "answer": "10 a.two.test, 20 b.two.test"} in found["steps"]
    assert "hosts" not in json.loads(ctl(home, "route", "explain", "x@two.test", "--json").stdout)
    assert "b.two.test" in ctl(home, "route", "explain", "x@two.test", "--hosts").stdout
