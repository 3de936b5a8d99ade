"""The server with one safeguard taken off: `python -m tests.integration.faults.unsafe NAME <iemsctl's arguments>`.

Workers are forked, so what is changed here is changed in them. Tests run against such a server to show that they would notice.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

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


SAFEGUARDS: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (ignore_flush_errors, trust_failed_commit, full_store_is_final)
}

if __name__ == "__main__":
    SAFEGUARDS[sys.argv[1]]()
    sys.argv = ["iemsctl", *sys.argv[2:]]
    from iems.cli.iemsctl import main

    main()
