"""How much the log says: six levels, each with all of those before it.

`message` is the usual one: the life of every message, and what an operator must see. Below it `iemsctl trace` finds nothing. What the levels
above it add is made only when they are set, so it costs nothing else: `sessions` every SMTP command and reply, both ways, without
secrets; `informational` each connection; `diagnostic` each read.
"""

from __future__ import annotations

LEVELS = ("errors", "warning", "message", "sessions", "informational", "diagnostic")
ERRORS, WARNING, MESSAGE, SESSIONS, INFORMATIONAL, DIAGNOSTIC = range(1, 7)
LEVEL = {name: number for number, name in enumerate(LEVELS, 1)}

#: Faults of ours and of the machine.
_ERRORS = frozenset(
    {
        "error", "alarm", "worker-died", "worker-killed", "blamed", "log-lost", "accept-failed", "start-failed", "spawn-failed",
        "metrics-failed", "spool_index_damaged", "spool_index_fails", "spool_refuses", "dnsbl-sick",
    }
)  # fmt: skip
#: What went wrong for somebody, and what happens to the server as a whole.
_WARNINGS = frozenset(
    {
        "refused", "login-failed", "tls-failed", "sts-fetch-failed", "quarantined", "failed", "discarded", "duplicate-possible",
        "batch_refused", "proxy-header-missing", "lease-expired", "reload-refused", "drain-cut", "dnsbl-well", "recovered", "rebuilt",
        "repaired", "spool_index_replaced", "started", "ready", "reloaded", "stopping", "stopped", "log-rotated", "log-mailed", "notice-mailed",
    }
)  # fmt: skip


def is_wanted(event: str, level: int) -> bool:
    """Whether an event is written at a level below `message`; from `message` on all are."""
    if level >= MESSAGE:
        return True
    found = event in _ERRORS or event.startswith("spool-")
    return found or (level >= WARNING and event in _WARNINGS)
