"""What peer-domain profiles (`iems.directory.peers`) mean for mail that leaves: refusals, retries, and reading them in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from msgspec import structs

from iems.directory import Directory
from iems.directory.peers import NONE, Peer, Peers
from iems.errors import DirectoryUnavailable
from iems.model import Reply
from iems.smtpc.backoff import Policy

NOT_TRANSMITTED: Final = Reply(550, 7, 1, "mail for the recipient's domain is not transmitted")
TOO_BIG: Final = Reply(552, 3, 4, "message is larger than may be sent to the recipient's domain")
NEXT_RUN: Final = Reply(451, 4, 0, "mail for the recipient's domain waits for the next run of its queue")


class Profiles:
    """The profiles of a home. path: its directory; a home without one has none. log: hears of a directory that fails."""

    def __init__(self, path: Path, log: Any) -> None:
        self._log = log
        self._known = NONE
        self._failed = False
        self._directory: Directory | None = None
        if (path / "data.mdb").exists():
            self._directory = Directory(path)

    def now(self) -> Peers:
        """The profiles as they are; while the directory can't be read, as they were."""
        if self._directory is not None:
            try:
                self._known = self._directory.peers()
                self._failed = False
            except DirectoryUnavailable as error:
                if not self._failed:
                    self._failed = True
                    self._log.error("peer profiles can't be read; the last ones stand", error)
        return self._known

    def close(self) -> None:
        """Give up the directory."""
        if self._directory is not None:
            self._directory.close()
            self._directory = None


def refusal_of(profile: Peer, size: int) -> Reply | None:
    """Why a message of `size` octets may not go to a profile's domain at all."""
    if not profile.transmit:
        return NOT_TRANSMITTED
    if 0 < profile.max_out_octets < size:
        return TOO_BIG
    return None


def policy_of(policy: Policy, profile: Peer) -> Policy:
    """The retries of a profile's domain: a fixed pause if it has a run interval, its own end if it has a retry period."""
    changes: dict[str, float] = {}
    if profile.run_interval_s:
        changes = {"retry_s": profile.run_interval_s, "retry_max_s": profile.run_interval_s}
    elif profile.queue_first:
        changes = {"retry_s": 900.0}
    if profile.retry_period_h:
        changes["lifetime_s"] = profile.retry_period_h * 3600.0
    return structs.replace(policy, **changes)
