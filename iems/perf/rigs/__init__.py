"""Measurements, one a file: `NAME`, `TITLE`, `measure(options)` yielding a record for each case.

A record holds `rig`, `case`, what the case was (`octets`, `sessions`), and figures (median, min, max). Where it is the rate of a module
of the capacity calculator, `module` and `mb_per_min` stand beside them.
"""

from __future__ import annotations

import importlib
from types import ModuleType

#: In the order of a message's path.
NAMES = (
    "smtp_accept",
    "local_delivery",
    "end_to_end",
    "relay",
    "imap_fetch",
    "imap_list",
    "pop3_retr",
    "memory",
    "idle",
)


def rig(name: str) -> ModuleType:
    """The module of a rig. Raises KeyError for an unknown name."""
    if name not in NAMES:
        raise KeyError(name)
    return importlib.import_module(f"iems.perf.rigs.{name}")
