"""Folders of accounts beside their mailboxes: STORE/home/ADDRESS."""

from __future__ import annotations

import re
from pathlib import Path


def home_of(store: Path, address: str) -> Path:
    """The folder of an account. store: HOME/store. An address can't lead out of it, whatever is in it."""
    name = re.sub(r"[^A-Za-z0-9@._+=-]", lambda m: "".join(f"%{octet:02X}" for octet in m[0].encode()), address)
    return store / "home" / (("%2E" + name[1:]) if name.startswith(".") else name)[:250]


def bayes_folder(store: Path, address: str) -> Path:
    """Where the Bayesian filter of an account keeps what it has learnt; not part of its quota."""
    return home_of(store, address) / ".Bayesian"
