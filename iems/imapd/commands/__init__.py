"""The command table: one module a command, each with its rows in `SPECS`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iems.imapd.commands import (
    acl,
    append,
    authenticate,
    cancelupdate,
    capability,
    close,
    compress,
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
    metadata,
    move,
    namespace,
    noop,
    notify,
    quota,
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
from iems.imapd.engine import Spec

if TYPE_CHECKING:
    from iems.imapd.engine import Shortcut

_MODULES = (
    acl,
    append,
    authenticate,
    cancelupdate,
    capability,
    close,
    compress,
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
    metadata,
    move,
    namespace,
    noop,
    notify,
    quota,
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


def _uid_required(session: Any, command: Any) -> bytes:
    return b"BAD [UIDREQUIRED] Only UIDs are used in this session"


def _any_arguments(arguments: Any) -> None:
    arguments.pos = len(arguments.data)


#: The commands after ENABLE UIDONLY (RFC 9586): those that take sequence numbers are refused.
UIDONLY: dict[bytes, Spec] = COMMANDS | {
    name: Spec(name, COMMANDS[name].states, _any_arguments, _uid_required)
    for name in (b"FETCH", b"STORE", b"COPY", b"MOVE", b"SEARCH", b"SORT", b"THREAD", b"REPLACE")
}
#: FETCH of one whole message, which is most of what clients ask for.
SHORTCUT: Shortcut = fetch.SHORTCUT

__all__ = ["COMMANDS", "SHORTCUT", "UIDONLY", "capabilities"]
