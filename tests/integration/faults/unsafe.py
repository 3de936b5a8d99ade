"""The server with one safeguard taken off: `python -m tests.integration.faults.unsafe NAME[,NAME] <iemsctl's arguments>`.

Workers are forked, so what is changed here is changed in them. Tests run against such a server to show that they would notice.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("IEMS_NATIVE", "native")


def ignore_flush_errors() -> None:
    """The spool goes on with a segment whose flush failed, as if it had gone well."""
    from iems.spool import segments

    native = segments.Committer

    class Deaf(native):  # type: ignore[misc, valid-type]
        def reap(self) -> tuple[list[object], list[object], int]:
            good, bad, _ = super().reap()
            return good + bad, [], 0

    segments.Committer = Deaf


def trust_failed_commit() -> None:
    """The store takes a commit that failed for done."""
    import lmdb

    from iems.store.partition import Partition

    def commit(self: Partition, txn: lmdb.Transaction) -> None:
        try:
            txn.commit()
        except lmdb.Error:
            pass

    Partition._commit = commit  # type: ignore[method-assign]


def full_store_is_final() -> None:
    """The store refuses for good what a full disk keeps it from doing."""
    from iems.store import partition
    from iems.store.partition import Delivered, Outcome, encode, wire

    def apply(self: partition.Partition, jobs: list[partition.Job]) -> list[Outcome]:
        self.touched = {}
        try:
            return self._transaction(jobs)
        except Exception:
            return [
                Outcome(wire.DONE, encode([Delivered("duplicate") for _ in job.body.batch]))
                if isinstance(job.body, wire.Deliver)
                else partition.refused("SERVERBUG", "full")
                for job in jobs
            ]

    partition.Partition.apply = apply  # type: ignore[method-assign]


def no_look_at_contents() -> None:
    """Contents are delivered as they are read."""
    from iems.spool.verify import Verifier

    Verifier.read = lambda self, item: self._blobs.read(item.rope)  # type: ignore[method-assign]


def any_nonce() -> None:
    """A header counts wherever it stands and whatever nonce it has; a search for records looks for their magic."""
    from iems.spool import rebuild, records, recovery

    def unpack_head(data: bytes, nonce: bytes, offset: int) -> records.Record | None:
        if len(data) != records.HEAD_OCTETS or records.crc32c(data) != records.CRC_RESIDUE:
            return None
        _, kind, flags, generation, _, _, id, queue_ms, payload, content, _ = records.HEAD.unpack_from(data)
        return records.Record(kind, flags, generation, offset, id, queue_ms, payload, content)

    def scan(fd: int, start: int, end: int, nonce: bytes) -> Iterator[records.Record]:
        data = os.pread(fd, end, 0)
        at = start
        while (at := data.find(records.HEAD_MAGIC, at)) >= 0:
            record = unpack_head(data[at : at + records.HEAD_OCTETS], nonce, at)
            if record is not None and records.intact(fd, record):
                yield record
            at += 4

    records.unpack_head = unpack_head  # type: ignore[assignment]
    records.scan = records.walk = scan  # type: ignore[assignment]
    assert rebuild.records is records and recovery.records is records


def no_spare_descriptors() -> None:
    """Sessions may take every descriptor."""
    from iems.imapd import worker as imapd
    from iems.net import stream
    from iems.pop3d import worker as pop3d
    from iems.smtpd import worker as smtpd

    for module in (imapd, pop3d, smtpd, stream):
        module.last_descriptor = lambda: 1 << 30  # type: ignore[attr-defined]


def report_each_recipient() -> None:
    """A report names every recipient of the message as failed."""
    from iems.model import Outcome, Result
    from iems.spool import dsn

    make = dsn.make

    def all_failed(item: Any, results: Any, kind: Any, **more: Any) -> Any:
        return make(item, [Result(r.recipient, Outcome.FAILED, r.reply) for r in results], kind, **more)

    dsn.make = all_failed


def report_on_reports() -> None:
    """Reports have a sender, so that reports are made of their failures."""
    from iems.spool import dsn

    make = dsn.make

    def with_sender(*arguments: Any, **more: Any) -> Any:
        message = make(*arguments, **more)
        if message is not None:
            message.envelope.reverse_path = b"postmaster@load.test"
        return message

    dsn.make = with_sender


def pass_line_ends_on() -> None:
    """Bare CR, LF and NUL in content are taken as they come, and passed on."""
    from iems.smtpc import worker
    from iems.smtpd import engine

    worker.stuffed = lambda content, dot_free: content.replace(b"\r\n.", b"\r\n..")

    native = engine.DataDecoder
    engine.DataDecoder = lambda limit=0, normalise=False, raw=False, binary=False: native(limit, False, raw, True)  # type: ignore[assignment, misc]


def keep_input_over_tls() -> None:
    """What came in clear behind STARTTLS stays in the engine's buffer and is read after the handshake."""
    from iems.smtpd import worker

    ready = worker.Session.tls_ready

    def tls_ready(self: Any) -> None:
        kept = getattr(self.worker, "_kept", b"")
        ready(self)
        if kept:
            self.data_received(memoryview(kept))

    received = worker.Session.data_received

    def data_received(self: Any, view: memoryview) -> None:
        data = bytes(view)
        if data.startswith(b"STARTTLS\r\n"):
            self.worker._kept = data[10:]
        received(self, view)

    worker.Session.tls_ready = tls_ready  # type: ignore[method-assign]
    worker.Session.data_received = data_received  # type: ignore[method-assign]


def no_imap_limits() -> None:
    """Lines, literals, commands and nesting of any size."""
    from iems.imap import grammar
    from iems.imapd import engine, worker

    endless = 1 << 40
    limits = engine.Limits(endless, endless, endless, 104_857_600, 20, 5)
    worker.Limits = lambda **_: limits  # type: ignore[misc, assignment]
    grammar.MAX_NESTING = endless


def any_depth() -> None:
    """MIME is read to any depth (by the twin: the kernel's table has no room for it)."""
    import iems._native
    from iems._native import mime_py

    native = iems._native.kernel
    mime_py.MAX_DEPTH = 1 << 30  # type: ignore[misc]
    iems._native.kernel = lambda name: mime_py if name == "mime" else native(name)  # type: ignore[assignment]


def age_by_wall_clock() -> None:
    """Queue time is the wall clock."""
    import time

    from iems.spool.clock import QueueClock

    QueueClock.now_ms = lambda self: time.time_ns() // 1_000_000  # type: ignore[method-assign]


def reload_at_once() -> None:
    """After a reload the old workers are drained at once, whatever sessions they have."""
    from iems.imapd import worker as imapd
    from iems.smtpd import worker as smtpd

    async def retire(self: Any) -> None:
        return

    imapd.Worker.retire = smtpd.Worker.retire = retire  # type: ignore[method-assign, assignment]


def hasty() -> None:
    """No safeguard, but shorter waits: the janitor repairs and reclaims every other second, not each half minute."""
    from iems.janitor import worker

    worker.RECLAIM_S = 2.0


def own_limits() -> None:
    """No safeguard: the limit of descriptors stays as it was inherited, for root too."""
    from iems.master import supervisor

    supervisor.raise_descriptor_limit = lambda: None


SAFEGUARDS: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        ignore_flush_errors,
        trust_failed_commit,
        full_store_is_final,
        no_look_at_contents,
        any_nonce,
        no_spare_descriptors,
        report_each_recipient,
        report_on_reports,
        pass_line_ends_on,
        keep_input_over_tls,
        no_imap_limits,
        any_depth,
        age_by_wall_clock,
        reload_at_once,
        hasty,
        own_limits,
    )
}

if __name__ == "__main__":
    for name in sys.argv[1].split(","):
        SAFEGUARDS[name]()
    sys.argv = ["iemsctl", *sys.argv[2:]]
    from iems.cli.iemsctl import main

    main()
