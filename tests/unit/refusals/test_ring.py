"""An id leads to its refusal; what is kept is bounded; nothing here waits or raises."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iems.model import Reply
from iems.refusals import ring as rings
from iems.refusals.causes import explain, rule_of
from iems.refusals.reader import Selection, find, matching
from iems.refusals.ring import Ring, chunks, id_of, place_of
from iems.smtp import replies


def noted(ring: Ring, number: int, reply: Reply = replies.NO_SUCH_USER, **more: str) -> str:
    end = ring.note("smtp", f"192.0.2.{number % 250}", b"c.test", b"s@x.test", b"r%d@load.test" % number, 0, "", reply, **more)
    assert end.startswith(b" [") and end.endswith(b"]\r\n")
    return end[2:-3].decode()


def run(folder: Path, body, octets=1 << 20):
    async def main():
        ring = Ring(folder, octets, asyncio.get_running_loop(), failures.append)
        await ring.start()
        await body(ring)
        ring.close()

    failures: list[BaseException] = []
    asyncio.run(main())
    return failures


def test_each_id_leads_to_its_refusal(tmp_path):
    ids: list[str] = []

    async def body(ring):
        ids.extend([noted(ring, n) for n in range(100)])
        ids.append(noted(ring, 100, Reply(550, 7, 1, "Your address is listed by bl.test"), check="dnsbl", subject="bl.test"))

    assert run(tmp_path / "r", body) == []
    assert len(set(ids)) == 101 and all(len(id) == 8 for id in ids)
    for number, id in enumerate(ids):
        found = find(tmp_path / "r", id.lower() if number % 2 else f"[{id}]")
        assert found is not None and found.recipient == b"r%d@load.test" % number
    assert (found.check, found.subject, found.reply.text) == ("dnsbl", "bl.test", "Your address is listed by bl.test")
    assert [id for id, _ in matching(tmp_path / "r", Selection())] == ids
    assert [r.recipient for _, r in matching(tmp_path / "r", Selection(client="192.0.2.7", recipient="R7@load.test"))] == [b"r7@load.test"]
    assert list(matching(tmp_path / "r", Selection(sender="<>"))) == []
    assert list(matching(tmp_path / "r", Selection(since_ns=1 << 62))) == []


def test_a_wrong_character_is_noticed(tmp_path):
    ids: list[str] = []

    async def body(ring):
        ids.extend([noted(ring, n) for n in range(50)])

    run(tmp_path, body)
    wrong = 0
    for at in range(8):
        for char in rings._ALPHABET:
            text = ids[7][:at] + char + ids[7][at + 1 :]
            if text == ids[7]:
                continue
            try:
                found = find(tmp_path, text)
            except ValueError:
                wrong += 1
                continue
            assert found is None or at < 2  # another chunk: gone
    assert wrong >= 31 * 6
    for text in ("", "short", "O" * 8, "U" * 8, "1" * 13, "\x00" * 8, "ÄÄÄÄÄÄÄÄ"):
        with pytest.raises(ValueError):
            find(tmp_path, text)


@given(st.integers(1, 1 << 27), st.integers(0, rings.PLACES - 1), st.integers(0, 2**32 - 1))
def test_ids_are_read_back(chunk, place, nonce):
    assert place_of(id_of(chunk, place, nonce)) == (chunk, place, nonce & 1023)


def test_the_oldest_go(tmp_path, monkeypatch):
    monkeypatch.setattr(rings, "PLACES", 16)
    ids: list[str] = []

    async def body(ring):
        for n in range(400):
            if n % 16 == 0:
                await asyncio.get_running_loop().run_in_executor(ring._thread, lambda: None)
            ids.append(noted(ring, n))

    run(tmp_path, body, octets=5000)
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) < 5000 + 3 * 16 * 120
    assert find(tmp_path, ids[0]) is None and find(tmp_path, ids[-1]) is not None


def test_workers_share_a_folder(tmp_path):
    """Each has chunks of its own, and nobody takes away what another writes."""
    ids: list[str] = []

    async def body(ring):
        other = Ring(tmp_path, 1, asyncio.get_running_loop())
        await other.start()
        ids.append(noted(ring, 1))
        ids.append(noted(other, 2))
        other._trim()
        ring.flush()
        other.close()

    run(tmp_path, body)
    assert [find(tmp_path, id).recipient for id in ids] == [b"r1@load.test", b"r2@load.test"]
    assert len(chunks(tmp_path)) == 2  # spares that held nothing are gone


def test_without_room_or_turned_off(tmp_path, monkeypatch):
    async def full(ring):
        real = os.write
        monkeypatch.setattr(rings.os, "write", lambda fd, data: real(fd, data[:5]) if len(data) > 20 else real(fd, data))
        noted(ring, 1)
        ring.flush()
        await asyncio.get_running_loop().run_in_executor(ring._thread, lambda: None)
        monkeypatch.setattr(rings.os, "write", real)
        ids.append(noted(ring, 2))
        await asyncio.sleep(0)
        assert ring.lost == 1

    ids: list[str] = []
    assert len(run(tmp_path / "a", full)) == 1
    assert find(tmp_path / "a", ids[0]).recipient == b"r2@load.test"  # what was cut short is not in its way

    async def nothing(ring):
        assert ring.note("smtp", "", b"", None, b"", 0, "", replies.NO_SUCH_USER) == b""

    run(tmp_path / "b", nothing, octets=0)
    assert not (tmp_path / "b").exists()
    (tmp_path / "c").write_text("no folder")

    async def flood(ring):
        for _ in range(1000):
            await nothing(ring)
            await asyncio.sleep(0)
        assert ring.lost == 1000

    assert len(run(tmp_path / "c", flood)) == 1  # told once, not a thousand times


def test_damage_is_passed_over(tmp_path):
    ids: list[str] = []

    async def body(ring):
        for n in range(3):
            ids.append(noted(ring, n))
            ring.flush()
            await asyncio.get_running_loop().run_in_executor(ring._thread, lambda: None)

    run(tmp_path, body)
    [file] = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    at = data.index(b"r1@load.test") - 30
    data[at - 20 : at] = b"\xff" * 20
    file.write_bytes(data[:-3])
    found = [find(tmp_path, id) for id in ids]
    assert found[0] is not None and found[2] is None
    file.write_bytes(b"IEMS")
    assert find(tmp_path, ids[0]) is None


def test_every_refusal_is_explained():
    for name, reply in vars(replies).items():
        if isinstance(reply, Reply) and reply.code >= 400:
            cause = explain(reply, rule_of(reply))
            assert cause.why and cause.sender and cause.administrator, name
    assert explain(Reply(550, 2, 1, "Mailbox disabled"), "").why.startswith("The recipient's mailbox is disabled")
    assert explain(Reply(451, 9, 9, "odd"), "new-check").sender.startswith("Nothing")


def test_wire_of_refusals_made_elsewhere():
    """Their octets are remembered, each under its own, however many there are."""
    for number in range(600):
        reply = Reply(550, 7, 1, f"listed {number}")
        assert replies.wire(reply) == b"550 5.7.1 listed %d\r\n" % number
        assert replies.wire(reply) == b"550 5.7.1 listed %d\r\n" % number
        assert replies.said(reply) == f"550 5.7.1 listed {number}"
    assert len(replies._LATELY) <= 256
