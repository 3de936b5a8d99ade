"""Failed log-ins: who is held back, who is not, and that nobody can be locked out by others."""

import asyncio

import pytest

from iems.config import Auth, Config, Smtpd
from iems.directory import Authenticator, Directory
from iems.directory.guard import BUCKETS, Guard, is_loopback, network_of
from iems.errors import DirectoryUnavailable, LoginHeldBack

HOME, ATTACKER = "198.51.100.7", "203.0.113.9"


class Clock:
    now = 1_700_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def guard(clock):
    return Guard(None, b"secret", failures=3, network_failures=10, longest_s=60, clock=clock)


def test_waits_double_and_end(guard, clock):
    begun = []
    guard._begun = lambda *args: begun.append(args)
    for _ in range(2):
        guard.failed("john", ATTACKER)
        assert guard.held_s("john", ATTACKER) == 0
    guard.failed("john", ATTACKER)
    assert 2 <= guard.held_s("john", ATTACKER) <= 3
    assert begun == [("account", "john", ATTACKER, 2.0)]
    clock.now += 4
    assert guard.held_s("john", ATTACKER) == 0
    guard.failed("john", ATTACKER)
    assert 4 <= guard.held_s("john", ATTACKER) <= 5
    for _ in range(100):
        guard.failed("john", ATTACKER)
    assert guard.held_s("john", ATTACKER) == 60
    clock.now += 200
    guard.failed("john", ATTACKER)
    assert guard.held_s("john", ATTACKER) == 0


def test_an_attacker_locks_nobody_out(guard, clock):
    for _ in range(1000):
        guard.failed("john", ATTACKER)
    # From elsewhere the account is free, known there or not.
    assert guard.held_s("john", HOME) == 0
    assert guard.held_s("john", "2001:db8::1") == 0
    # Behind the same address, the one who is known there is free; another's login is held back with the attacker's.
    guard.succeeded("mary", HOME)
    for _ in range(1000):
        guard.failed("john", HOME)
    assert guard.held_s("mary", HOME) == 0
    assert guard.held_s("ben", HOME) > 0
    # A device of hers with an old password locks nothing.
    for _ in range(1000):
        guard.failed("mary", HOME)
    assert guard.held_s("mary", HOME) == 0
    clock.now += 31 * 86_400
    for _ in range(3):
        guard.failed("mary", HOME)
    assert guard.held_s("mary", HOME) > 0


def test_spraying_over_accounts_counts_for_the_address(guard):
    for number in range(9):
        guard.failed(f"user{number}", ATTACKER)
    assert guard.held_s("another", ATTACKER) == 0
    # An own account does not wash the rest away.
    guard.succeeded("own", ATTACKER)
    guard.failed("user9", ATTACKER)
    assert guard.held_s("another", ATTACKER) > 0
    assert guard.held_s("own", ATTACKER) == 0


def test_ipv6_counts_by_64(guard):
    for number in range(3):
        guard.failed("john", f"2001:db8:1:2::{number:x}")
    assert guard.held_s("john", "2001:db8:1:2:ffff::1") > 0
    assert guard.held_s("john", "2001:db8:1:3::1") == 0
    assert network_of("::ffff:192.0.2.1") == "192.0.2.1" == network_of("192.0.2.1")
    assert network_of("fe80::1%eth0") == "fe80::/64" and network_of("?") == "?"


def test_loopback_is_spared_unless_set(guard, clock):
    for ip in ("127.0.0.1", "::1", "", "::ffff:127.0.0.1"):
        assert is_loopback(ip)
        for _ in range(50):
            guard.failed("john", ip)
        assert guard.held_s("john", ip) == 0
    strict = Guard(None, b"s", failures=1, loopback=True, clock=clock)
    strict.failed("john", "127.0.0.1")
    assert strict.held_s("john", "127.0.0.1") > 0


def test_the_table_is_shared_bounded_and_outlives_its_makers(tmp_path, clock):
    path = tmp_path / "logins.1"
    one, two = (Guard(path, b"s", failures=3, clock=clock) for _ in range(2))
    size = path.stat().st_size
    one.failed("john", ATTACKER)
    two.failed("john", ATTACKER)
    one.failed("john", ATTACKER)
    assert two.held_s("john", ATTACKER) > 0
    two.succeeded("mary", HOME)
    for number in range(20_000):
        one.failed(f"user{number}", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert path.stat().st_size == size < 4 << 20 and BUCKETS == 8192
    one.close()
    two.close()
    again = Guard(path, b"s", failures=3, clock=clock)
    for _ in range(5):
        again.failed("mary", HOME)
    assert again.held_s("mary", HOME) == 0
    # The table names nobody: with another key it says nothing.
    assert Guard(path, b"t", failures=3, clock=clock).held_s("john", ATTACKER) == 0
    assert b"john" not in path.read_bytes()


def test_a_clock_set_back_and_a_damaged_table(tmp_path, clock):
    guard = Guard(tmp_path / "t", b"s", failures=1, longest_s=60, clock=clock)
    guard.failed("john", ATTACKER)
    clock.now -= 2 * 365 * 86_400
    assert guard.held_s("john", ATTACKER) <= 60
    (tmp_path / "u").write_bytes(b"\xff" * 1000)
    damaged = Guard(tmp_path / "u", b"s", clock=clock)
    assert damaged.held_s("john", ATTACKER) == 0
    damaged.failed("john", ATTACKER)


@pytest.fixture
def directory(tmp_path):
    found = Directory(tmp_path / "directory", create=True)
    found.add_domain("example.test")
    found.create_account("john@example.test", "pw")
    yield found
    found.close()


class Log:
    def __init__(self):
        self.events = []

    def event(self, event, *args, **detail):
        self.events.append((event, detail))

    def error(self, what, exc=None):
        self.events.append(("error", {"what": what}))


def test_held_back_costs_no_hash_no_thread_and_no_place(directory, tmp_path):
    (tmp_path / "run").mkdir()
    log = Log()
    config = Config(auth=Auth(lockout_failures=2, failure_delay_s=0, scram=False))
    hashes = []
    verify = directory.authenticate
    directory.authenticate = lambda *args: hashes.append(1) or verify(*args)

    async def main():
        auth = Authenticator.of(directory, config, tmp_path, log)
        for _ in range(2):
            assert await auth.check("john", "wrong", ATTACKER) is None
        # Also under the account's other name, and with the right password.
        for name in ("john", "JOHN@example.test"):
            with pytest.raises(LoginHeldBack):
                await auth.check(name, "pw", ATTACKER)
            with pytest.raises(DirectoryUnavailable):
                auth.keys(name, "SCRAM-SHA-256", ATTACKER)
        assert len(hashes) == 2
        assert await auth.check("john", "pw", HOME)
        assert await auth.check("john", "pw", "127.0.0.1")
        # Unknown names are counted in the same way: there is nothing to learn.
        for _ in range(2):
            assert await auth.check("nobody", "wrong", ATTACKER) is None
        with pytest.raises(LoginHeldBack):
            await auth.check("nobody", "wrong", ATTACKER)
        auth.close()

    asyncio.run(main())
    assert [event for event, _ in log.events] == ["login-held-back", "login-held-back"]
    assert "pw" not in str(log.events) and "wrong" not in str(log.events)


def test_the_wait_before_an_answer_holds_nobody_up(directory):
    async def main():
        auth = Authenticator(directory, threads=1, per_peer=1, delay_s=30, spared=True)
        guessers = []
        for number in range(20):
            guessers.append(asyncio.ensure_future(auth.check("john", f"wrong{number}", f"203.0.113.{number}")))
            await asyncio.sleep(0)
        assert await auth.check("john", "pw", HOME)
        assert not any(guesser.done() for guesser in guessers)
        # Loopback hears at once.
        assert await auth.check("john", "wrong", "127.0.0.1") is None
        for guesser in guessers:
            guesser.cancel()
        auth.close()

    asyncio.run(main())


def test_settings(directory, tmp_path):
    off = Config(auth=Auth(lockout_failures=0, lockout_network_failures=0))
    auth = Authenticator.of(directory, off, tmp_path, Log())
    assert auth._guard is None
    auth.close()
    log = Log()
    auth = Authenticator.of(directory, Config(smtpd=Smtpd(limit_loopback=True)), tmp_path / "none", log)
    assert log.events[0][0] == "error" and not auth._guard.spares("127.0.0.1")
    auth.close()
