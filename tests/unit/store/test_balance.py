"""The other half of the audit: what was delivered is held, or was removed, or is told to be lost."""

from __future__ import annotations

import lmdb

from iems.model import child_id
from iems.store import keys, wire
from iems.store.balance import Balance, balance
from iems.store.partition import GONE_S
from tests.unit.store.home import Home, delivery, pack

NUMBERS = {b"a@x": 1, b"b@x": 2, b"c@x": 3, b"plus+a@x": 1}


def origin_of(home: Home, number: int, age_s: float = 0) -> bytes:
    return int((home.clock.now - age_s) * 1000).to_bytes(6, "big") + number.to_bytes(10, "big")


def deliver(home: Home, origin: bytes, account: int, **fields: object) -> None:
    made = delivery(0, account, **fields)
    made.origin = origin
    [answer] = home.deliver(made)
    assert answer.status == "ok", answer


def look(home: Home, *delivered: tuple[bytes, bytes]) -> Balance:
    """The balance as another process sees it."""
    home.close()
    try:
        return balance(home.path / "store", delivered, lambda address: NUMBERS.get(address, 0), lambda number: number < 4)
    finally:
        home.open()


def empty_trash(home: Home) -> None:
    home.clock.now += 90_000
    home.ask(wire.Ensure(1))
    while home.partition.housekeep():
        pass


def test_nothing_to_balance(home: Home) -> None:
    assert look(home) == Balance(0, 0, [])


def test_held_wherever_it_is_now(home: Home) -> None:
    one, two, three = (origin_of(home, number) for number in range(3))
    for account in (1, 2):
        deliver(home, one, account)
    deliver(home, two, 1, discard=True)
    deliver(home, three, 1, mailbox="New", create=True)
    sent = ((one, b"a@x"), (one, b"b@x"), (one, b"plus+a@x"), (two, b"a@x"), (three, b"a@x"))
    assert look(home, *sent) == Balance(5, 0, [])
    home.ask(wire.Copy(1, 1, pack(1), "Archive", True))
    home.ask(wire.Delete(1, "New"))
    assert look(home, *sent) == Balance(5, 0, [])
    assert look(home, (one, b"c@x"), (origin_of(home, 9), b"a@x")).lost == [(one, b"c@x"), (origin_of(home, 9), b"a@x")]


def test_what_was_let_go_of_is_not_lost(home: Home) -> None:
    kept, expunged, dropped = (origin_of(home, number) for number in range(3))
    for account in (1, 2):
        deliver(home, expunged, account)
    deliver(home, kept, 1)
    deliver(home, dropped, 1, mailbox="New", create=True)
    home.ask(wire.StoreFlags(1, 1, pack(1), "+", ["\\Deleted"]))
    home.ask(wire.Expunge(1, 1, None))
    home.ask(wire.Delete(1, "New"))
    sent = ((kept, b"a@x"), (expunged, b"a@x"), (expunged, b"b@x"), (dropped, b"a@x"))
    assert look(home, *sent) == Balance(4, 0, []), "it can still be brought back"
    empty_trash(home)
    assert look(home, *sent) == Balance(2, 2, [])
    home.clock.now += GONE_S
    empty_trash(home)
    with home.partition.env.begin() as txn:
        cursor = txn.cursor()
        assert not (cursor.set_range(keys.head(0, keys.GONE)) and cursor.key().startswith(keys.head(0, keys.GONE))), "notes go, too"


def test_an_old_message_leaves_no_note(home: Home) -> None:
    old = origin_of(home, 1, GONE_S + 100_000)
    deliver(home, old, 1)
    home.ask(wire.StoreFlags(1, 1, pack(1), "+", ["\\Deleted"]))
    home.ask(wire.Expunge(1, 1, None))
    empty_trash(home)
    assert look(home, (old, b"a@x")).lost == [(old, b"a@x")]


def test_a_row_that_is_gone_is_lost(home: Home) -> None:
    """As after a power cut with a disk that lies, or an older copy of the mailboxes put in the place of the new."""
    one, two = origin_of(home, 1), origin_of(home, 2)
    deliver(home, one, 1)
    deliver(home, two, 1)
    home.close()
    env = lmdb.open(str(home.path / "store/p0/index"), map_size=1 << 30)
    with env.begin(write=True) as txn:
        assert txn.delete(keys.message(1, 1, 1))
    env.close()
    home.open()
    assert look(home, (one, b"a@x"), (two, b"a@x")) == Balance(1, 0, [(one, b"a@x")])


def test_mail_of_deleted_accounts_is_not_lost(home: Home) -> None:
    one = origin_of(home, 1)
    deliver(home, one, 9)
    assert look(home, (one, b"nobody@x")) == Balance(0, 1, [])


def test_under_the_id_of_a_rule_s_delivery(home: Home) -> None:
    """Account 1 has mail put into a mailbox of account 2, and keeps none itself."""
    one = origin_of(home, 1)
    deliver(home, child_id(one, b"shared\0%d\0%d" % (1, 1)), 2)
    assert look(home, (one, b"a@x")) == Balance(1, 0, [])
    assert look(home, (one, b"c@x")).lost == [(one, b"c@x")]


def test_rows_of_a_time_when_the_clock_was_wrong(home: Home) -> None:
    one = origin_of(home, 1)
    home.clock.now -= 1_000_000
    deliver(home, one, 1)
    home.clock.now += 1_000_000
    assert look(home, (one, b"a@x")) == Balance(1, 0, [])
