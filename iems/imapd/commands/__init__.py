"""The command table: one module a command, each with its rows in `SPECS`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.imapd.commands import (
    append,
    authenticate,
    cancelupdate,
    capability,
    close,
    copy,
    create,
    delete,
    enable,
    expunge,
    fetch,
    id,
    idle,
    list,
    login,
    logout,
    lsub,
    move,
    namespace,
    noop,
    rename,
    search,
    select,
    sort,
    starttls,
    status,
    store,
    subscribe,
    thread,
    unselect,
)
from iems.imapd.commands.capability import capabilities

if TYPE_CHECKING:
    from iems.imapd.engine import Shortcut, Spec

_MODULES = (
    append,
    authenticate,
    cancelupdate,
    capability,
    close,
    copy,
    create,
    delete,
    enable,
    expunge,
    fetch,
    id,
    idle,
    list,
    login,
    logout,
    lsub,
    move,
    namespace,
    noop,
    rename,
    search,
    select,
    sort,
    starttls,
    status,
    store,
    subscribe,
    thread,
    unselect,
)

#: Every command by its name in upper case.
COMMANDS: dict[bytes, Spec] = {spec.name: spec for module in _MODULES for spec in module.SPECS}
#: FETCH of one whole message, which is most of what clients ask for.
SHORTCUT: Shortcut = fetch.SHORTCUT

__all__ = ["COMMANDS", "SHORTCUT", "capabilities"]
