"""Mutated dialogues: whatever a client says, sessions answer in whole lines, stay small and have no fault of their own."""

import asyncio
import random
import re
from pathlib import Path

import pytest

from iems.imapd.engine import Limits
from tests.unit.imapd import fakes

FILES = sorted((Path(__file__).parents[1] / "transcripts" / "imap").glob("*.txt"))
SPICE = (
    b"\r\n", b"\n", b"\r", b"\0", b"(", b")", b'"', b"{5}\r\n", b"{5+}\r\n", b"{0}\r\n", b"\\", b"*", b":", b"[", b"]", b"a NOOP\r\n",
    b"b SELECT INBOX\r\n", b"c IDLE\r\n", b"DONE\r\n", b"d EXPUNGE\r\n", b"e STORE 1:* +FLAGS (\\Deleted)\r\n", b"f LOGOUT\r\n",
    b"g AUTHENTICATE PLAIN\r\n", b"h APPEND INBOX {3+}\r\nabc\r\n", b"i UID FETCH 1:* (BODY[] ENVELOPE)\r\n", b"j CLOSE\r\n",
    b"k SEARCH OR TEXT x BODY y\r\n", b"l FETCH 1 BODY[]\r\n", b"m DELETE INBOX/x\r\n", b"n RENAME INBOX y\r\n", b"\xff", b"&", b" ",
)  # fmt: skip


def said(path):
    """What the client says in a transcript."""
    lines = re.findall(r"^C\d?: ?(.*)$", path.read_text(), re.MULTILINE)
    return "".join(line + "\r\n" for line in lines).encode()


def mutate(rng, data):
    data = bytearray(data)
    for _ in range(rng.randrange(1, 10)):
        at = rng.randrange(len(data) + 1)
        what = rng.randrange(5)
        if what == 0:
            data[at:at] = rng.choice(SPICE)
        elif what == 1:
            del data[at : at + rng.randrange(1, 20)]
        elif what == 2 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif what == 3:
            end = min(len(data), at + rng.randrange(1, 60))
            to = rng.randrange(len(data) + 1)
            data[to:to] = data[at:end]
        else:
            data[at:at] = rng.choice(SPICE)
    return bytes(data)


async def fuzz(seed, rounds):
    rng = random.Random(seed)
    for number in range(rounds):
        world = fakes.World(
            Limits(bad=1_000_000, login_bad=1_000_000)
        )  # so that dialogues go on after a mistake
        await world.store.ensure(1)
        for _ in range(3):
            world.store.put(
                "INBOX",
                b"Subject: x\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b--\r\n",
            )
        client = (world.connect(), await world.login(), await world.login("INBOX"))[number % 3]
        watcher = await world.login("INBOX")
        data = mutate(rng, said(rng.choice(FILES)))
        out = b""
        while data and not client.stream.closed:
            count = rng.choice((1, 5, 40, 1000))
            out += await client.ask(data[:count])
            data = data[count:]
        assert not world.errors
        assert out.endswith(b"\r\n") or not out
        assert client.session.engine.buffered <= client.session.engine.limits.command
        await watcher.ask(b"z NOOP\r\n")
        view = watcher.session.view
        if view is not None and not watcher.stream.closed:
            assert list(view.uids) == sorted(world.store.boxes[view.mailbox_id].rows)


def test_fuzz():
    asyncio.run(fuzz(3501, 150))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_fuzz_long(seed):
    asyncio.run(fuzz(seed, 2000))
