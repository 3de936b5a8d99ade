"""The answers that workers share: found by all, for their time, whoever is killed while writing; damage is no answer."""

import asyncio
import os
import random
import signal
import struct
import time

import dns.rdatatype
import pytest

from iems.net import answers as module
from iems.net.answers import MOST, SLOT, SPAN, Answers
from iems.net.resolver import DnsFailure, Resolver
from tests.support.dnsserver import DnsServer


def test_found_until_its_time_is_over():
    table = Answers(1 << 16)
    assert table.get(b"a", 0.0) is None
    assert table.put(b"a", 10.0, b"first", 0.0) and table.put(b"b", 20.0, b"", 0.0)
    assert table.get(b"a", 9.9) == (10.0, b"first") and table.get(b"b", 9.9) == (20.0, b"")
    assert table.get(b"a", 10.0) is None and table.get(b"c", 0.0) is None
    table.put(b"a", 30.0, b"second", 11.0)
    assert table.get(b"a", 11.0) == (30.0, b"second")


def test_it_never_grows_and_what_ends_first_goes():
    table = Answers(64 * SLOT)
    size = len(table._map)
    for number in range(5000):
        table.put(b"%d" % number, 1e6 + number, b"x" * 100, 0.0)
    assert len(table._map) == size == 64 * SLOT
    kept = [number for number in range(5000) if table.get(b"%d" % number, 0.0) is not None]
    assert 20 < len(kept) <= 64 and min(kept) > 2000


def test_long_records_run_over_slots_and_too_long_ones_stay_out():
    table = Answers(200 * SLOT)
    rng = random.Random(1)
    held = {}
    for _ in range(2000):
        key, octets = b"%d" % rng.randrange(100), rng.randbytes(rng.choice((3, 200, 700, MOST)))
        assert table.put(key, 1e6, octets, 0.0)
        held[key] = octets
        other = b"%d" % rng.randrange(100)
        found = table.get(other, 0.0)
        assert found is None or found[1] == held[other]
    assert not table.put(b"big", 1e6, b"x" * (MOST + 1), 0.0) and table.get(b"big", 0.0) is None
    assert len(table._map) == 200 * SLOT


def test_the_smallest_table():
    table = Answers(0)
    assert table.put(b"k", 1e6, b"x" * MOST, 0.0) and table.get(b"k", 0.0) == (1e6, b"x" * MOST)
    assert len(table._map) == 2 * SPAN * SLOT


def test_damage_is_no_answer():
    """Any octets anywhere: what is found is what was put, or nothing; and the table works on."""
    rng = random.Random(5)
    for _ in range(300):
        table = Answers(2 * SPAN * SLOT)
        held = {b"%d" % n: rng.randbytes(rng.randrange(600)) for n in range(20)}
        for key, octets in held.items():
            table.put(key, 1e6, octets, 0.0)
        for _ in range(rng.randrange(1, 60)):
            at = rng.randrange(len(table._map) - 40)
            count = rng.randrange(1, 40)
            table._map[at : at + count] = rng.choice((rng.randbytes(count), b"\xff" * count, b"\0" * count, struct.pack("<d", float("nan")) * 5)[:4])[:count]
        for key, octets in held.items():
            found = table.get(key, 0.0)
            assert found is None or found[1] == octets
        table.put(b"new", 1e6, b"well", 0.0)
        assert table.get(b"new", 0.0) == (1e6, b"well")


def test_without_the_checksum_damage_would_be_an_answer(monkeypatch):
    table = Answers(2 * SPAN * SLOT)
    table.put(b"k", 1e6, b"A" * 50, 0.0)
    at = bytes(table._map).index(b"A" * 50)
    table._map[at] = ord("B")
    assert table.get(b"k", 0.0) is None
    monkeypatch.setattr(module.zlib, "crc32", lambda octets: int.from_bytes(table._map[at - 32 : at - 28], "little"))
    assert table.get(b"k", 0.0) == (1e6, b"B" + b"A" * 49)


def writer(table, seed):
    """A process that writes the same few keys for ever, each content naming its key."""
    rng = random.Random(seed)
    while True:
        key = b"%d" % rng.randrange(12)
        table.put(key, 1e9, key * rng.randrange(1, 2000), 0.0)


def test_writers_at_once_and_killed():
    """Four processes write over each other and are killed one by one; a reader never sees what nobody put, and nobody waits."""
    table = Answers(2 * SPAN * SLOT)
    pids = []
    for seed in range(4):
        pid = os.fork()
        if pid == 0:
            try:
                writer(table, seed)
            finally:
                os._exit(1)
        pids.append(pid)
    seen = 0
    try:
        while pids or seen < 100:
            for _ in range(4000):
                key = b"%d" % random.randrange(12)
                found = table.get(key, 0.0)
                if found is not None:
                    seen += 1
                    assert found[0] == 1e9 and found[1] and not found[1].replace(key, b"")
            if pids:
                pid = pids.pop()
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            elif seen < 100:
                table.put(b"1", 1e9, b"1", 0.0)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    for number in range(12):
        key = b"%d" % number
        table.put(key, 1e9, key, 0.0)
        assert table.get(key, 0.0) == (1e9, key)


# --- resolvers that share

RECORDS = {
    ("example.test", "MX"): ["20 mx2.example.test.", "10 mx1.example.test."],
    ("mx1.example.test", "A"): ["192.0.2.1", "192.0.2.2"],
    ("mx1.example.test", "AAAA"): ["2001:db8::1"],
    ("text.test", "TXT"): ['"v=spf1 " "-all"', '"\\255\\000"'],
    ("1.2.0.192.in-addr.arpa", "PTR"): ["mx1.example.test."],
    ("_25._tcp.mx1.example.test", "TLSA"): ["3 1 1 " + "ab" * 32, "2 0 1 " + "cd" * 32],
    ("alias.test", "CNAME"): ["mx1.example.test."],
}
ASKED = [
    ("example.test", "MX"), ("mx1.example.test", "A"), ("mx1.example.test", "AAAA"), ("text.test", "TXT"), ("1.2.0.192.in-addr.arpa", "PTR"),
    ("_25._tcp.mx1.example.test", "TLSA"), ("alias.test", "A"), ("nowhere.test", "A"), ("example.test", "TXT"), ("alias.test", "CNAME"),
]  # fmt: skip


def run(scenario, faults=None, ttl=300, secure=False):
    async def main():
        async with DnsServer(RECORDS, faults, ttl) as server:
            server.secure = secure
            table = Answers(1 << 20)

            def make(**options):
                return Resolver([server.address], timeout_s=0.5, attempts=1, **({"answers": table} | options))

            return await scenario(make, server)

    return asyncio.run(main())


@pytest.mark.parametrize("secure", [False, True])
def test_what_one_worker_learnt_the_others_know(secure):
    async def scenario(make, server):
        first, second = make(), make()
        asked = [await first.query(*question) for question in ASKED]
        count = len(server.asked)
        found = [await second.query(*question) for question in ASKED]
        again = [await second.query(*question) for question in ASKED]
        return asked, found, again, (count, len(server.asked)), second.queries, second.found

    asked, found, again, (before, after), queries, number = run(scenario, secure=secure)
    assert before == after and queries == 0 and number == len(ASKED)
    for one, other, third in zip(asked, found, again, strict=True):
        assert (one.records, one.exists, one.name, one.secure) == (other.records, other.exists, other.name, other.secure)
        assert one.secure is secure and 0 < other.ttl_s <= one.ttl_s and third is other
    assert [record.to_text() for record in found[5].records] == [record.to_text() for record in asked[5].records]


def test_no_answer_outlives_its_ttl(monkeypatch):
    """Whichever worker finds it last: the time is that of the one who asked."""

    async def scenario(make, server):
        first = make()
        await first.query("mx1.example.test", "A")
        offset = 290.0
        real = time.monotonic
        monkeypatch.setattr("iems.net.resolver.time.monotonic", lambda: real() + offset)
        second = make()
        late = await second.query("mx1.example.test", "A")
        offset = 301.0
        third = make()
        await third.query("mx1.example.test", "A")
        return late.ttl_s, third.queries, second._cache["mx1.example.test", "A"][0] - asyncio.get_running_loop().time()

    left_s, queries, kept_s = run(scenario)
    assert left_s <= 10.0 and kept_s <= 10.0 and queries == 1


def test_answers_of_other_servers_are_not_taken():
    """A server that validates and one that does not: the AD bit of one says nothing of the other."""

    async def scenario(make, server):
        server.secure = False
        await make().query("mx1.example.test", "A")
        async with DnsServer(RECORDS) as other:
            other.secure = True
            validating = Resolver([other.address], answers=make()._answers)
            return (await validating.query("mx1.example.test", "A")).secure, (await make().query("mx1.example.test", "A")).secure

    assert run(scenario) == (True, False)


def test_failures_and_what_has_no_ttl_are_not_shared():
    async def scenario(make, server):
        first, second = make(), make()
        for resolver in (first, second):
            with pytest.raises(DnsFailure):
                await resolver.query("broken.test", "A")
        return len(server.asked), second.found

    assert run(scenario, faults={"broken.test": "SERVFAIL"}) == (2, 0)

    async def short(make, server):
        await make().query("mx1.example.test", "A")
        await make().query("mx1.example.test", "A")
        return len(server.asked)

    assert run(short, ttl=0) == 2


def test_no_cache_is_no_shared_one_either():
    async def scenario(make, server):
        for _ in range(2):
            await make(cache_records=0).query("mx1.example.test", "A")
        return len(server.asked)

    assert run(scenario) == 2


def test_a_record_that_makes_no_sense_is_asked_anew():
    async def scenario(make, server):
        resolver = make()
        kinds = ("A", "MX", "TLSA")
        for kind, octets in zip(kinds, (b"\xc1", b"\x94\xa1x\xc3\xc3\x91\xa1x", b"\x94\xa1x\xc3\xc3\x91\xc4\x01\x00"), strict=True):
            resolver._answers.put(resolver._place(("mx1.example.test", kind)), time.monotonic() + 100, octets, 0.0)
        return [tuple(sorted((await resolver.query("mx1.example.test", kind)).records)) for kind in kinds], resolver.found

    records, found = run(scenario)
    assert records == [("192.0.2.1", "192.0.2.2"), (), ()] and found == 0
    assert dns.rdatatype.from_text("TLSA") == 52
