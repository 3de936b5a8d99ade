"""Plays tests/transcripts/imap/*.txt against sessions with a store in memory.

Lines: `C: text` the client sends text and CRLF; `C- text` without CRLF (`\\xNN` and the like are escapes); `S: text` the
server answers this line (`...` stands for anything); `C2:`, `S2:` the same on a second connection; `M: MAILBOX (FLAGS)` with
`| lines` puts a message; `P: IP` makes later connections come from there; `END` the server has closed. Each is played
whole, octet by octet, and at random cuts.
"""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path

import pytest

from tests.unit.imapd import fakes

FOLDER = Path(__file__).parent / "imap"
_STEP = re.compile(r"(?P<what>C|S|M|P|END)(?P<number>\d?)(?P<mark>[:-]?) ?(?P<text>.*)")


def _octets(text: str) -> bytes:
    return re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), text.encode())


async def play(path: Path, cuts: str) -> None:
    world = fakes.World(tls=None)
    await world.store.ensure(1)
    world.store.names.clear()
    rng = random.Random(path.name)
    clients: dict[str, fakes.Client] = {}
    got: dict[str, list[bytes]] = {}
    peer = "127.0.0.1"
    pending = {"number": "", "data": b""}

    def client(number: str) -> fakes.Client:
        if number not in clients:
            clients[number] = world.connect(peer)
            got[number] = clients[number].greeting.splitlines(keepends=True)
        return clients[number]

    async def flush() -> None:
        data, pending["data"] = pending["data"], b""
        if not data:
            return
        target = client(pending["number"])
        out = b""
        if cuts == "whole":
            out = await target.ask(data)
        else:
            while data:
                count = 1 if cuts == "octets" else rng.randint(1, len(data))
                out += await target.ask(data[:count])
                data = data[count:]
        for number, other in clients.items():
            got[number] += (out if other is target else other.stream.take()).splitlines(keepends=True)

    lines = path.read_text().splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        if not line.strip() or line.startswith("#"):
            continue
        match = _STEP.fullmatch(line)
        assert match, f"{path.name}:{at}: {line}"
        what, number, text = match["what"], match["number"], match["text"]
        if what == "C":
            if pending["number"] != number:
                await flush()
            pending["number"] = number
            pending["data"] += _octets(text) + (b"" if match["mark"] == "-" else b"\r\n")
            continue
        await flush()
        if what == "S":
            client(number)
            while not got[number] and clients[number].stream.out:
                got[number] = clients[number].stream.take().splitlines(keepends=True)
            assert got[number], f"{path.name}:{at}: nothing came, expected {text!r}"
            answer = got[number].pop(0)
            wanted = b".*".join(re.escape(part) for part in _octets(text).split(b"..."))
            assert re.fullmatch(wanted, answer.rstrip(b"\r\n"), re.DOTALL), (
                f"{path.name}:{at}: {answer!r}, expected {text!r}"
            )
        elif what == "M":
            mailbox, _, flags = text.partition(" ")
            content = []
            while at < len(lines) and lines[at].startswith("|"):
                content.append(lines[at][2:])
                at += 1
            world.store.put(
                mailbox,
                "".join(part + "\r\n" for part in content).encode(),
                flags.strip("()").split(),
                1_000_000_000,
            )
        elif what == "P":
            peer = text
        else:
            assert client(number).stream.closed, f"{path.name}:{at}: still open"
    await flush()
    for number, left in got.items():
        left += clients[number].stream.take().splitlines(keepends=True)
        assert not left, f"{path.name}: more came: {left}"


@pytest.mark.parametrize("cuts", ["whole", "octets", "random"])
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_transcript(path: Path, cuts: str) -> None:
    asyncio.run(play(path, cuts))
