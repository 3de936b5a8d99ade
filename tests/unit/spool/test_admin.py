"""The queue for people, with the server stopped and running."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
from collections.abc import Callable
from typing import Any

import pytest

from iems.model import INPUT, Channel, Outcome, Reply, Result, id_octets
from iems.spool import Message, Settlement, Spool, admin, recovery
from iems.spool.admin import Selection
from tests.support.spool import Harness, envelope, routed


async def fill(harness: Harness, spool: Spool) -> list[bytes]:
    """Three messages: one local, one remote and deferred, one still in the input queue."""
    messages = [
        Message(spool.new_id(), envelope("Ann@here.test", sender=b"x@one.test"), [b"Subject: 1\r\n\r\none"]),
        Message(
            spool.new_id(),
            envelope("bob@far.test", "cid@far.test", sender=b"y@two.test"),
            [b"Subject: 2\r\n\r\ntwo"],
        ),
        Message(spool.new_id(), envelope("dan@here.test", sender=b""), [b"Subject: 3\r\n\r\nthree"]),
    ]
    assert await spool.append(messages) == [None] * 3
    items, _ = spool.take(INPUT, 2)
    spool.move([(items[0], [routed(items[0])]), (items[1], [routed(items[1], Channel.SMTPC, "far.test")])])
    [item], _ = spool.take(Channel.SMTPC, 1)
    reply = Reply(451, 4, 2, "try later")
    await spool.settle(
        [Settlement(item, [Result(r, Outcome.DEFERRED, reply, 3600) for r in item.envelope.recipients])]
    )
    spool.back_off(Channel.SMTPC, {"far.test": (7200, "mute")})
    return [message.id for message in messages]


@pytest.fixture(params=["stopped", "running"])
def queue(request: pytest.FixtureRequest, harness: Harness) -> Any:
    """(path, ids) of a filled spool, whose server is stopped or running."""
    (harness.path / "run").mkdir()
    lock = os.open(harness.path / "run" / "lock", os.O_RDWR | os.O_CREAT)
    recovery.prepare(harness.path / "spool", map_octets=1 << 30)
    ids: list[bytes] = []

    async def filling() -> None:
        spool = harness.open()
        ids.extend(await fill(harness, spool))
        spool.close()

    asyncio.run(filling())
    pid = 0
    if request.param == "running":
        ready, tell = os.pipe()
        pid = os.fork()
        if pid == 0:

            async def life() -> None:
                harness.open(slot=1)
                os.write(tell, b"x")
                await asyncio.sleep(60)

            fcntl.flock(lock, fcntl.LOCK_SH)
            asyncio.run(life())
            os._exit(1)
        os.close(lock)
        assert os.read(ready, 1) == b"x"
    else:
        recovery.seal(harness.path / "spool", map_octets=1 << 30)
    yield harness.path, ids
    if pid:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    elif (harness.path / "spool" / "index").exists():
        assert (harness.path / "spool" / "index" / "clean").exists(), (
            "a command leaves a stopped spool marked clean"
        )


def test_list_and_counts(queue: Any) -> None:
    path, ids = queue
    entries = admin.list_items(path)
    assert [id_octets(e["id"]) for e in entries] == ids
    assert [e["state"] for e in entries] == ["ready", "deferred", "ready"]
    local, remote, waiting = entries
    assert local["reverse_path"] == "x@one.test" and local["input_channel"] == "SMTPD" and local["size"] == 17
    assert [r["address"] for r in remote["recipients"]] == ["bob@far.test", "cid@far.test"]
    recipient = remote["recipients"][0]
    assert recipient["identifier"] == "far.test" and recipient["attempts"] == 1
    assert recipient["reply"] == "451 4.4.2 try later"
    assert recipient["next_attempt"] > remote["received"]
    assert waiting["recipients"][0]["channel"] == "INPUT"
    for chosen, expected in (
        (Selection(channel=Channel.LOCAL), [0]),
        (Selection(sender="X@ONE.test"), [0]),
        (Selection(sender="<>"), [2]),
        (Selection(recipient="ann@here.test"), [0]),
        (Selection(domain="FAR.test"), [1]),
        (Selection(ids=[ids[2], ids[0]]), [0, 2]),
        (Selection(ids=[ids[2]], domain="far.test"), []),
    ):
        assert [id_octets(e["id"]) for e in admin.list_items(path, chosen)] == [ids[n] for n in expected]
    assert len(admin.list_items(path, limit=1)) == 1
    counts = admin.counts(path)
    assert {name: row["ready"] + row["deferred"] for name, row in counts.items()} == {
        "INPUT": 1,
        "LOCAL": 1,
        "SMTPC": 1,
    }
    found = admin.show(path, ids[1])
    assert found is not None and found[1] == b"Subject: 2\r\n\r\ntwo" and found[0]["id"] == remote["id"]
    assert admin.show(path, b"?" * 16) is None


def test_hold_release_retry(queue: Any) -> None:
    path, ids = queue
    assert admin.hold(path, Selection(ids=[ids[0], ids[1]])) == 2
    assert admin.hold(path, Selection(ids=[ids[0]])) == 0
    assert [e["state"] for e in admin.list_items(path)] == ["held", "held", "ready"]
    assert admin.counts(path)["LOCAL"]["held"] == 1
    assert admin.retry(path, Selection(ids=[ids[1]])) == 0
    assert admin.release(path, Selection(domain="far.test")) == 1
    assert admin.release(path, Selection(domain="far.test")) == 0
    [entry] = admin.list_items(path, Selection(ids=[ids[1]]))
    assert entry["state"] == "deferred"
    assert admin.retry(path, Selection(channel=Channel.SMTPC)) == 1
    assert admin.audit(path)["queued"] == 4


def test_retry_forgets_the_backoff(queue: Any, harness: Harness) -> None:
    path, ids = queue
    assert admin.retry(path, Selection(ids=[ids[1]])) == 1

    async def body() -> None:
        spool = harness.open(slot=3)
        [item], _ = spool.take(Channel.SMTPC, 5)
        assert item.id == ids[1]
        spool.give_back([item])
        spool.close()

    if (path / "spool" / "index" / "clean").exists():
        recovery.prepare(path / "spool", map_octets=1 << 30)
        asyncio.run(body())
        recovery.seal(path / "spool", map_octets=1 << 30)
    else:
        asyncio.run(body())


def test_channel_on_hold(queue: Any) -> None:
    path, _ = queue
    admin.hold_channel(path, Channel.LOCAL, True)
    row = admin.counts(path)["LOCAL"]
    assert row["on_hold"] and row["held"] == 1 and row["ready"] == 0
    assert admin.list_items(path)[0]["state"] == "held"
    admin.hold_channel(path, Channel.LOCAL, False)
    assert admin.counts(path)["LOCAL"]["ready"] == 1


@pytest.mark.parametrize("queue", ["stopped"], indirect=True)
def test_channel_on_hold_without_its_index(queue: Any) -> None:
    """The index may be lost (a power cut is enough): what an administrator stopped must not go on by itself."""
    path, _ = queue
    admin.hold_channel(path, Channel.LOCAL, True)
    admin.hold_channel(path, Channel.SMTPC, True)
    admin.hold_channel(path, Channel.SMTPC, False)
    shutil.rmtree(path / "spool/index")
    assert admin.audit(path)["missing"] == 0  # builds the index
    counts = admin.counts(path)
    assert counts["LOCAL"]["on_hold"] and not counts["SMTPC"]["on_hold"]


@pytest.mark.parametrize(
    ("action", "outcome"),
    [
        (admin.delete, "discarded"),
        (
            lambda path, chosen: admin.bounce(
                path, chosen, hostname="mx.test", postmaster="postmaster@here.test"
            ),
            "dsn",
        ),
    ],
    ids=["delete", "bounce"],
)
def test_delete_and_bounce_survive_the_index(
    queue: Any, action: Callable[[Any, Selection], int], outcome: str, request: pytest.FixtureRequest
) -> None:
    path, ids = queue
    assert action(path, Selection(ids=ids[1:])) == 2
    left = admin.list_items(path)
    notices = [e for e in left if e["input_channel"] == "MTA"]
    assert [id_octets(e["id"]) for e in left if e["input_channel"] != "MTA"] == ids[:1]
    # the null reverse-path gets no notice
    assert [e["recipients"][0]["address"] for e in notices] == (["y@two.test"] if outcome == "dsn" else [])
    assert admin.audit(path) | {"queued": 0} == {
        "accepted": 4, "delivered": 0, "relayed": 0, "dsn": 0, "discarded": 0, "queued": 0, "quarantined": 0, "missing": 0,
    } | {outcome: 3}  # fmt: skip
    if "running" in request.node.name:
        return
    shutil.rmtree(path / "spool" / "index")
    # a stopped server's lost index is built by the command that needs it
    after = admin.list_items(path)
    assert {e["id"] for e in after} == {e["id"] for e in left}


def test_leased_items_are_left_alone(harness: Harness) -> None:
    (harness.path / "run").mkdir()
    lock = os.open(harness.path / "run" / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_SH)

    async def first(spool: Spool) -> None:
        await harness.accept(spool, b"x", b"y")
        spool.take(INPUT, 1)

    harness.die_after(first)
    assert admin.delete(harness.path, Selection(channel=INPUT)) == 1
    assert [e["state"] for e in admin.list_items(harness.path)] == ["leased"]
    os.close(lock)
    # once the server is stopped, nobody works on it any more
    assert admin.delete(harness.path, Selection(channel=INPUT)) == 1
    assert admin.list_items(harness.path) == []


def test_no_spool(harness: Harness) -> None:
    for call in (admin.counts, admin.list_items, admin.audit, admin.fsck):
        with pytest.raises(FileNotFoundError):
            call(harness.path)
