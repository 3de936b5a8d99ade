"""Another way for messages that wait, and that it outlives the index and every crash."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from iems.model import INPUT, Channel, Outcome, Result
from iems.spool import Message, Settlement, admin, reclaim, recovery, reroute
from iems.spool.admin import Selection
from iems.spool.export import Exists, export
from tests.support.spool import Harness, envelope, routed

FIRST = b"Subject: 1\r\n\r\none\r\n"
LARGE = b"Subject: 2\r\n\r\n" + b"0123456789abcdef\r\n" * 100_000


@pytest.fixture
def stopped(harness: Harness) -> Any:
    """(path, ids): one remote message with two recipients, one large local one, one in INPUT; the server is stopped."""
    recovery.prepare(harness.path / "spool", map_octets=1 << 30)
    ids: list[bytes] = []

    async def fill() -> None:
        spool = harness.open()
        messages = [
            Message(spool.new_id(), envelope("a@far.test", "b@far.test", sender=b"x@one.test"), [FIRST]),
            Message(spool.new_id(), envelope("c@here.test"), [LARGE]),
            Message(spool.new_id(), envelope("d@here.test"), [b"Subject: 3\r\n\r\nthree"]),
        ]
        ids.extend(m.id for m in messages)
        assert await spool.append(messages) == [None] * 3
        items = sorted(spool.take(INPUT, 3)[0], key=lambda item: item.id)  # a large content takes its time
        spool.give_back([items[2]])
        spool.move([(items[0], [routed(items[0], Channel.SMTPC, "far.test")]), (items[1], [routed(items[1])])])
        spool.close()

    asyncio.run(fill())
    recovery.seal(harness.path / "spool", map_octets=1 << 30)
    return harness.path, ids


def ways(path: Any) -> dict[str, tuple[str, str]]:
    """address -> (channel, identifier) of all that waits."""
    return {r["address"]: (r["channel"], r["identifier"]) for m in admin.list_items(path) for r in m["recipients"]}


def lose_index(path: Any) -> None:
    shutil.rmtree(path / "spool/index")


def test_one_recipient_goes_another_way(stopped: Any) -> None:
    path, ids = stopped
    to = reroute.way(Channel.CCMAIL, "PO1", "B.new@Office.test")
    chosen = Selection(ids=[ids[0]], recipient="B@far.test")
    would = reroute.would_reroute(path, chosen, to)
    assert [[r.address for r in one.recipients] for one in would.changed] == [[b"b@far.test"]]
    assert ways(path)["b@far.test"] == ("SMTPC", "far.test")
    done = reroute.reroute(path, chosen, to)
    assert len(done.changed) == 1 and not done.left
    expected = {
        "a@far.test": ("SMTPC", "far.test"), "B.new@office.test": ("CCMAIL", "PO1"),
        "c@here.test": ("LOCAL", ""), "d@here.test": ("INPUT", ""),
    }  # fmt: skip
    assert ways(path) == expected
    lose_index(path)
    # what was only routed is routed again; what was sent another way by hand stays there
    assert ways(path) == expected | {"c@here.test": ("INPUT", "")}
    found = admin.show(path, ids[0])
    assert found is not None and found[1] == FIRST
    assert admin.audit(path)["missing"] == 0 and admin.audit(path)["queued"] == 4
    assert reroute.reroute(path, Selection(ids=[ids[0]], domain="far.test"), reroute.way(Channel.SMTPC)).changed == []


def test_all_the_ways(stopped: Any, harness: Harness) -> None:
    path, ids = stopped
    for selection, to, expected in (
        (Selection(ids=[ids[1]]), reroute.way(Channel.SMTPC, "Relay.test:2525"), {"c@here.test": ("SMTPC", "relay.test:2525")}),
        (Selection(channel=INPUT), reroute.way(Channel.LOCAL), {"d@here.test": ("LOCAL", "")}),
        (Selection(sender="x@one.test"), reroute.way(INPUT), {"a@far.test": ("INPUT", ""), "b@far.test": ("INPUT", "")}),
        (Selection(ids=[ids[1]]), reroute.way(Channel.SMTPC), {"c@here.test": ("SMTPC", "here.test")}),
    ):  # fmt: skip
        assert reroute.reroute(path, selection, to).changed
        assert ways(path) | expected == ways(path)
    recovery.prepare(path / "spool", map_octets=1 << 30)

    async def deliver() -> None:
        spool = harness.open()
        [item] = spool.take(Channel.SMTPC, 9)[0]
        assert spool.blobs.read(item.rope) == LARGE and item.generation == 2 and item.envelope.recipients[0].identifier == ""
        done = [item, *spool.take(Channel.LOCAL, 9)[0], *spool.take(INPUT, 9)[0]]
        await spool.settle(
            [Settlement(i, [Result(r, Outcome.DELIVERED) for r in i.envelope.recipients]) for i in done], flush=True
        )
        spool.close()

    asyncio.run(deliver())
    recovery.seal(path / "spool", map_octets=1 << 30)
    lose_index(path)
    assert admin.list_items(path) == []
    assert admin.audit(path)["delivered"] == 4 and admin.audit(path)["missing"] == 0


def test_what_stays_as_it_is(stopped: Any, harness: Harness) -> None:
    path, ids = stopped
    to_one = reroute.reroute(path, Selection(ids=[ids[0]], recipient="b@far.test"), reroute.way(Channel.SMTPC, "", "a@far.test"))
    assert to_one.changed == [] and to_one.left[0].left == "two of its recipients would have one address"
    part = reroute.reroute(path, Selection(recipient="b@far.test"), reroute.way(INPUT))
    assert part.left[0].left == "only a whole message can be routed again"
    assert admin.hold(path, Selection(ids=[ids[0]])) == 1
    assert len(reroute.reroute(path, Selection(ids=[ids[0]]), reroute.way(Channel.SMTPC, "other.test")).changed) == 1
    assert admin.list_items(path)[0]["state"] == "held"  # held is held, wherever it goes
    (path / "run").mkdir()
    recovery.prepare(path / "spool", map_octets=1 << 30)

    lock = os.open(path / "run/lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_SH)  # as if a server ran
    taken, tell = os.pipe()
    worker = os.fork()
    if worker == 0:

        async def work() -> None:
            spool = harness.open()
            spool.take(Channel.LOCAL, 1)
            os.write(tell, b"x")
            await asyncio.sleep(60)

        asyncio.run(work())
    assert os.read(taken, 1) == b"x"
    found = reroute.reroute(path, Selection(channel=Channel.LOCAL), reroute.way(Channel.CCMAIL, "PO"))
    os.kill(worker, 9)
    os.waitpid(worker, 0)
    os.close(lock)
    assert found.changed == [] and found.left[0].left == "somebody works on it"


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("at", ["before the record", "after the record"])
def test_a_death_in_between(stopped: Any, monkeypatch: pytest.MonkeyPatch, at: str, lost: bool) -> None:
    """The old way or the new one, never both and never none."""
    path, ids = stopped
    pid = os.fork()
    if pid == 0:
        if at == "before the record":
            monkeypatch.setattr(reclaim._MovedPost, "__init__", lambda *_: os.kill(os.getpid(), 9))
        else:
            # the record is on the disk, the index learns nothing of it
            monkeypatch.setattr(reclaim._MovedPost, "apply", lambda *_: os.kill(os.getpid(), 9))
        reroute.reroute(path, Selection(ids=[ids[0]]), reroute.way(Channel.CCMAIL, "PO1"))
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)
    if lost:
        lose_index(path)
    found = [ways(path)[address] for address in ("a@far.test", "b@far.test")]
    # an index that is whole keeps the old way, as it voids the copy it doesn't know; one that is lost sees what is on the disk
    new = at == "after the record" and lost
    assert found == [("CCMAIL", "PO1") if new else ("INPUT", "") if lost else ("SMTPC", "far.test")] * 2
    audit = admin.audit(path)
    assert (audit["queued"], audit["missing"]) == (4, 0)
    lose_index(path)
    assert set(ways(path)) == {"a@far.test", "b@far.test", "c@here.test", "d@here.test"}


@pytest.mark.parametrize(
    ("channel", "destination", "address"),
    [
        (Channel.LOCAL, "x", None), (Channel.CCMAIL, "", None), (Channel.BSMTPOUT, "", None), (Channel.SMTPC, "a b", None),
        (Channel.SMTPC, "a\n", None), (Channel.SMTPC, "x" * 300, None), (Channel.LOCAL, "", "no address"),
        (Channel.LOCAL, "", "a@b\r\nX: y"), (Channel.LOCAL, "", "a@b> NOTIFY=NEVER"), (Channel.LOCAL, "", "<a@b>"),
    ],
)  # fmt: skip
def test_no_such_way(channel: int, destination: str, address: str | None) -> None:
    with pytest.raises(ValueError):
        reroute.way(channel, destination, address)


def test_export(stopped: Any, tmp_path: Any) -> None:
    path, ids = stopped
    out = tmp_path / "new" / "out"
    found = list(export(path, Selection(sender="x@one.test"), out)) + list(export(path, Selection(ids=[ids[1]]), out))
    assert [Path(f["file"]).read_bytes() for f in found] == [FIRST, LARGE]
    assert all(f["damaged"] == "" for f in found)
    envelope_ = json.loads(Path(found[0]["envelope"]).read_text())
    assert envelope_["reverse_path"] == "x@one.test" and [r["address"] for r in envelope_["recipients"]] == ["a@far.test", "b@far.test"]
    assert envelope_["recipients"][0]["channel"] == "SMTPC" and envelope_["recipients"][0]["notify"] == []
    with pytest.raises(Exists):
        list(export(path, Selection(ids=[ids[0]]), out))
    os.unlink(found[0]["file"])
    with pytest.raises(Exists):  # the envelope alone is in the way: nothing is written
        list(export(path, Selection(ids=[ids[0]]), out))
    assert len(list(out.iterdir())) == 3


def test_export_of_damage(stopped: Any, tmp_path: Any) -> None:
    path, ids = stopped
    [segment] = [s for s in (path / "spool/segments").iterdir() if FIRST in s.read_bytes()]
    data = bytearray(segment.read_bytes())
    data[data.index(FIRST) + 3] ^= 1
    segment.write_bytes(data)
    [found] = export(path, Selection(ids=[ids[0]]), tmp_path / "out")
    assert "checksum" in found["damaged"] and Path(found["file"]).read_bytes()[4:] == FIRST[4:]
