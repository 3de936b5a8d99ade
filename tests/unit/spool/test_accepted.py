"""Which messages of a role count, as its next worker finds them after a death."""

from __future__ import annotations

from typing import Any

from iems.spool import Spool, recovery
from iems.spool.accepted import accepted_ids
from tests.support.spool import Harness
from tests.unit.spool.test_recovery import nobody, rewind


def found(spool: Spool) -> set[bytes]:
    return accepted_ids(spool.params.path, spool.index, "bsmtp")


def test_what_a_dead_worker_handed_in_is_known(harness: Harness, run: Any, tmp_path: Any) -> None:
    async def first(spool: Spool) -> None:
        await harness.accept(spool, b"one", b"two")
        mark = spool.writer.current.committer.offset  # type: ignore[union-attr]
        ids = await harness.accept(spool, b"written, but not in the index")
        blob = spool.writer.current.blob  # type: ignore[union-attr]
        rewind(spool, blob, mark)
        (tmp_path / "lost").write_bytes(ids[0])

    async def other(spool: Spool) -> None:
        await harness.accept(spool, b"of another role")

    async def body() -> None:
        spool = harness.open(slot=9)
        lost = (tmp_path / "lost").read_bytes()
        before = found(spool)
        assert len(before) == 2 and lost not in before
        await recovery.recover(spool, nobody, {})
        # Now the segment is sealed, and a record elsewhere says that its end does not count.
        assert found(spool) == before
        spool.close()

    harness.die_after(first, slot=1, role="bsmtp")
    harness.die_after(other, slot=2, role="smtpd")
    run(body())


def test_no_segments(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open()
        assert found(spool) == set()
        spool.close()

    run(body())
