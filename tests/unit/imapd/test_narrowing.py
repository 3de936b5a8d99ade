"""SEARCH with a full-text index answers as without: random messages, keys and trees; new mail and expunges between searches."""

import asyncio
import random

import pytest

from iems.fulltext.building import entry_of
from iems.fulltext.finder import Finder
from iems.imap import flags, search
from iems.imapd import narrowing
from iems.imapd.commands.search import find
from iems.message.text import Searchable
from tests.unit.fulltext import mail
from tests.unit.imapd.fakes import World


def tree(rng, texts, depth=0):
    pick = rng.random()
    if depth < 3 and pick < 0.45:
        parts = [tree(rng, texts, depth + 1) for _ in range(2)]
        kind = rng.randrange(3)
        return search.And(parts) if kind == 0 else search.Or(*parts) if kind == 1 else search.Not(parts[0])
    if pick < 0.85:
        return search.Text(mail.keys(rng, texts), rng.random() < 0.5)
    if pick < 0.95:
        return search.Header(rng.choice([b"SUBJECT", b"FROM", b"CONTENT-TYPE"]), mail.keys(rng, texts))
    return search.Flag(flags.SEEN, rng.random() < 0.5)


async def append(client, content):
    reply = await client.ask(b"A APPEND INBOX {%d}\r\n" % len(content) + content + b"\r\n")
    assert b"A OK" in reply, reply


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(narrowing, "FEW", 1)


def test_same_answers(tmp_path, always):
    async def main():
        rng = random.Random(5)
        world = World(fulltext_from=1)
        finder = world.services.finder = Finder(asyncio.get_running_loop(), tmp_path, world.store)
        client = await world.login("INBOX")
        contents = [mail.message(rng) for _ in range(60)]
        texts = [text for content in contents for text in (Searchable(content).header, Searchable(content).body)]
        asked = 0
        for round_ in range(4):
            for content in contents[round_ * 15 : round_ * 15 + 15]:
                await append(client, content)
            await client.ask(b"F STORE %d +FLAGS (\\Seen)\r\n" % rng.randrange(1, 10))
            if round_ % 2:
                await client.ask(b"D STORE 3 +FLAGS (\\Deleted)\r\nE EXPUNGE\r\n")
            view = client.session.view
            for _ in range(60):
                key = tree(rng, texts)
                world.services.finder = finder
                with_index = await find(client.session, view, key)
                world.services.finder = None
                assert with_index == await find(client.session, view, key), key
                if await finder.find(view.account, view.mailbox_id, [("nowhere", True)]):
                    asked += 1
            await finder.settled()
        assert asked > 200 and world.errors == []
        await finder.close()

    asyncio.run(main())


def test_only_candidates_are_read(tmp_path, always, monkeypatch):
    async def main():
        world = World(fulltext_from=1)
        finder = world.services.finder = Finder(asyncio.get_running_loop(), tmp_path, world.store)
        client = await world.login("INBOX")
        for number in range(20):
            await append(client, b"Subject: s\r\n\r\nthe offer number %d of many" % (number + 100))
        assert await client.ask(b"1 SEARCH BODY \"Offer  NUMBER 107\"\r\n") == b"* SEARCH 8\r\n1 OK SEARCH completed\r\n"
        await finder.settled()
        read = []
        original = type(world.store).message
        monkeypatch.setattr(
            type(world.store), "message", lambda self, *key: read.append(key[-1]) or original(self, *key)
        )
        view = client.session.view
        await finder.find(view.account, view.mailbox_id, [("offer", True)])
        for command, uids in (
            (b"BODY \"offer number 107\"", [8]),
            (b"OR BODY 107 TEXT 109", [8, 10]),
            (b"BODY 107 BODY 109", []),
            (b"TEXT nowhere", []),
            (b"SEEN TEXT offer", []),
            (b"HEADER Message-ID 107@", []),
            (b"HEADER Subject 107", [8]),
            (b"NOT TEXT 107 UID 7:8", [7, 8]),
            (b"TEXT 07 UID 7:8", [7, 8]),
        ):
            read.clear()
            await client.ask(b"2 SEARCH " + command + b"\r\n")
            assert read == uids, command
        await finder.close()

    asyncio.run(main())


def test_small_mailboxes_get_none(tmp_path):
    async def main():
        world = World(fulltext_from=100)
        finder = world.services.finder = Finder(asyncio.get_running_loop(), tmp_path / "search", world.store)
        client = await world.login("INBOX")
        for _ in range(60):
            await append(client, b"Subject: s\r\n\r\nbody")
        assert b"* SEARCH\r\n" in await client.ask(b"1 SEARCH TEXT nowhere\r\n")
        await finder.settled()
        assert not (tmp_path / "search").exists()
        await finder.close()

    asyncio.run(main())


def test_values_of_fields_are_in_the_header():
    """What HEADER finds in a field the index finds in the header."""
    for seed in range(1500):
        rng = random.Random(seed)
        content = mail.message(rng)
        entry = entry_of(content, 1, b"")
        assert entry.header is not None
        for value in Searchable(content).field(b"subject"):
            assert value in entry.header, (seed, value)
