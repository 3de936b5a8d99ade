"""Keys beside the hash: made with the password, gone with it, made up for a login, shown to nobody."""

import asyncio
import json
import threading

import pytest

from iems.directory import Authenticator, Directory
from iems.directory.login import settle
from iems.directory.stored import NO_FORMS, Forms, keys_of, stored
from iems.errors import DirectoryUnavailable
from iems.sasl import WRONG, Challenge, Keys, Offer, Refused, begin
from iems.sasl.cram import make_key
from iems.sasl.scram import make_keys
from tests.support.scram import Client

FORMS = Forms(4096, True)
OFFER = Offer("mx.test", scram=True, cram_md5=True)


@pytest.fixture
def directory(tmp_path):
    found = Directory(tmp_path / "directory", create=True)
    (tmp_path / "log").mkdir()
    found.add_domain("example.test")
    yield found
    found.close()


async def talk(auth, client, mechanism=b"SCRAM-SHA-256", ip=""):
    """A client against the exchange and the directory; the account or the refusal."""
    exchange = begin(mechanism, OFFER)
    outcome = exchange.start(client.first())
    while isinstance(found := await settle(auth, exchange, outcome, ip), Challenge):
        outcome = exchange.step(client.answer(found.octets))
    return found


def test_values_hold_what_the_password_gives():
    values = tuple(stored("pw", FORMS))
    keys = keys_of(values, "SCRAM-SHA-256")
    assert keys == make_keys("pw", keys.salt, 4096)
    assert keys_of(values, "CRAM-MD5") == make_key("pw")
    assert stored("pw", NO_FORMS) == []
    for broken in ("SCRAM-SHA-256", "SCRAM-SHA-256$x:AA==$AA==:AA==", "SCRAM-SHA-256$4096:!$a:b", "CRAM-MD5$$!", ""):
        assert keys_of((broken,), "SCRAM-SHA-256") is None
        assert keys_of((broken,), "CRAM-MD5") in (None, Keys(b""))


def test_a_password_takes_its_keys_along(directory, tmp_path):
    made = directory.create_account("john@example.test", "pw", forms=FORMS)
    assert {value.partition("$")[0] for value in made.keys} == {"SCRAM-SHA-256", "CRAM-MD5"}
    directory.set_password("john@example.test", "new", FORMS)
    changed = directory.account("john@example.test")
    assert changed.keys and set(changed.keys).isdisjoint(made.keys)
    directory.set_password("john@example.test", "third")
    assert directory.account("john@example.test").keys == ()
    other = directory.create_account("mary@example.test", "pw", hashed=made.password, keys_as=made)
    assert other.keys == made.keys
    audit = (tmp_path / "log/directory.log").read_text()
    assert "(hidden)" in audit and made.keys[0] not in audit and changed.keys[0] not in audit
    assert all(json.loads(line)["who"] for line in audit.splitlines())


def test_keys_are_not_added_for_a_password_that_was_changed(directory):
    old = directory.create_account("john@example.test", "pw")
    directory.set_password("john@example.test", "new")
    directory.add_keys(old, "pw", FORMS)
    assert directory.account("john@example.test").keys == ()
    directory.delete_account("john@example.test")
    directory.add_keys(old, "pw", FORMS)


def test_scram_and_cram_against_the_directory(directory):
    directory.create_account("john@example.test", "pw", forms=FORMS)
    directory.create_account("old@example.test", "pw")

    async def main():
        auth = Authenticator(directory, offer=OFFER, forms=FORMS)
        assert (await talk(auth, Client("john@example.test", "pw"))).number == 1
        assert (await talk(auth, Client("JOHN", "pw"))).number == 1
        for name, password in (("john", "no"), ("old", "pw"), ("nobody", "pw"), ("x" * 2000, "pw")):
            assert await talk(auth, Client(name, password)) == Refused(WRONG)
        # Without keys and unknown look alike: the same iterations, a salt that stays.
        salts = []
        for name in ("old", "old@example.test", "nobody", "nobody"):
            client = Client(name, "pw")
            await talk(auth, client)
            salts.append(client.salt)
            assert client.iterations == 4096
        assert salts[0] == salts[1] and salts[2] == salts[3] and len(set(salts)) == 2
        # Disabled between the two messages.
        exchange = begin(b"SCRAM-SHA-256", OFFER)
        client = Client("john", "pw")
        found = await settle(auth, exchange, exchange.start(client.first()), "")
        challenge = exchange.step(client.answer(found.octets))
        directory.set_enabled("john@example.test", False)
        assert await settle(auth, exchange, exchange.step(client.answer(challenge.octets)), "") == Refused(WRONG)
        assert await talk(auth, Client("john", "pw")) == Refused(WRONG)
        auth.close()

    asyncio.run(main())


def test_two_exchanges_through_one_authenticator_never_swap(directory):
    """Each step of john's and mary's logins alternates; the same password, so only the identity tells them apart."""
    for name in ("john", "mary"):
        directory.create_account(f"{name}@example.test", "pw", forms=FORMS)

    async def main():
        auth = Authenticator(directory, offer=OFFER, forms=FORMS)
        clients = [Client(name, "pw") for name in ("john", "mary", "john")]
        exchanges = [begin(b"SCRAM-SHA-256", OFFER) for _ in clients]
        outcomes = [exchange.start(client.first()) for exchange, client in zip(exchanges, clients, strict=True)]
        for _ in range(2):
            for number, exchange in enumerate(exchanges):
                found = await settle(auth, exchange, outcomes[number], "")
                outcomes[number] = exchange.step(clients[number].answer(found.octets))
        found = [await settle(auth, exchange, outcome, "") for exchange, outcome in zip(exchanges, outcomes, strict=True)]
        assert [account.address for account in found] == [f"{name}@example.test" for name in ("john", "mary", "john")]
        # John's proof in mary's exchange is none.
        john, mary = Client("john", "pw"), Client("mary", "pw")
        theirs = [begin(b"SCRAM-SHA-256", OFFER) for _ in range(2)]
        challenges = [
            await settle(auth, exchange, exchange.start(client.first()), "")
            for exchange, client in zip(theirs, (john, mary), strict=True)
        ]
        assert await settle(auth, theirs[1], theirs[1].step(john.answer(challenges[0].octets)), "") == Refused(WRONG)
        auth.close()

    asyncio.run(main())


def test_a_changed_password_ends_an_exchange_under_way(directory):
    directory.create_account("john@example.test", "pw", forms=FORMS)

    async def main():
        auth = Authenticator(directory, offer=OFFER, forms=FORMS)
        exchange = begin(b"SCRAM-SHA-256", OFFER)
        client = Client("john", "pw")
        found = await settle(auth, exchange, exchange.start(client.first()), "")
        challenge = exchange.step(client.answer(found.octets))
        directory.set_password("john@example.test", "new", FORMS)
        assert await settle(auth, exchange, exchange.step(client.answer(challenge.octets)), "") == Refused(WRONG)
        auth.close()

    asyncio.run(main())


def test_a_login_that_shows_the_password_makes_the_keys(directory):
    now = [0.0]
    directory.create_account("john@example.test", "pw")
    directory.create_account("mary@example.test", "pw")
    made = threading.Event()
    add_keys = directory.add_keys

    def noted(*args):
        add_keys(*args)
        made.set()

    directory.add_keys = noted

    async def main():
        auth = Authenticator(directory, offer=OFFER, forms=FORMS, clock=lambda: now[0])
        assert await talk(auth, Client("john", "pw")) == Refused(WRONG)
        assert await auth.check("john", "wrong", "") is None
        assert not made.is_set()
        assert await auth.check("john", "pw", "")
        assert await auth.check("mary", "pw", "")  # too soon after john
        assert made.wait(60)
        assert (await talk(auth, Client("john", "pw"))).number == 1
        assert directory.account("mary@example.test").keys == ()
        # What is there already is not made again; the rest is remembered until the memory's time is over.
        made.clear()
        now[0] = 400
        assert await auth.check("john", "pw", "")
        assert await auth.check("mary", "pw", "")
        assert made.wait(60)
        assert directory.account("mary@example.test").keys
        auth.close()

    asyncio.run(main())


def test_the_secret_is_made_once(directory, tmp_path):
    first = directory.secret()
    assert len(first) == 32 and directory.secret() == first
    assert (tmp_path / "directory/secret").stat().st_mode & 0o777 == 0o600
    directory.close()
    again = Directory(tmp_path / "directory")
    assert again.secret() == first


def test_without_a_secret_nobody_is_kept_out(directory, monkeypatch):
    def refuse():
        raise DirectoryUnavailable("read-only")

    faults = []
    monkeypatch.setattr(directory, "secret", refuse)
    auth = Authenticator(directory, offer=OFFER, forms=FORMS, error=lambda text, fault: faults.append(text))
    assert auth.keys("x", "SCRAM-SHA-256", "").iterations == 4096 and faults
    auth.close()
