"""Waking a role that isn't there is nothing; its items wait."""

from __future__ import annotations

import threading
from types import SimpleNamespace

from iems.master.child import WorkerContext
from iems.spool.spool import ROLES


def test_channels_without_a_role_wake_nobody():
    WorkerContext.wake(SimpleNamespace(), "no such role")  # touches neither board nor descriptors


def test_every_channel_has_a_name_to_wake():
    asked: list[int] = []
    context = SimpleNamespace(
        _fence=threading.Lock(), board=SimpleNamespace(take_parked=lambda code: asked.append(code) or -1)
    )
    for role in ROLES.values():
        WorkerContext.wake(context, role)
    assert asked
