"""The tagged reply for a command that went wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.errors import DirectoryUnavailable, SpoolError, SpoolFull, StoreError, StoreUnavailable
from iems.imap.grammar import Bad, Refused

if TYPE_CHECKING:
    from iems.imapd.engine import Command
    from iems.imapd.services import Services

_CODES = {
    "": "",
    "OVERQUOTA": "[OVERQUOTA] ",
    "TRYCREATE": "[TRYCREATE] ",
    "ALREADYEXISTS": "[ALREADYEXISTS] ",
    "NONEXISTENT": "[NONEXISTENT] ",
    "CANNOT": "[CANNOT] ",
    "LIMIT": "[LIMIT] ",
    "INUSE": "[INUSE] ",
    "NOPERM": "[NOPERM] ",
    "READ-ONLY": "[READ-ONLY] ",
    "METADATA TOOMANY": "[METADATA TOOMANY] ",
}


def reply_to(services: Services, command: Command, fault: Exception) -> bytes:
    """The tagged reply for what went wrong; only refusals meant for the client say more than that it did."""
    if isinstance(fault, Bad):
        return b"BAD " + str(fault).encode("ascii", "replace")
    if isinstance(fault, Refused):
        return b"NO " + str(fault).encode("ascii", "replace")
    if isinstance(fault, StoreUnavailable | DirectoryUnavailable):
        services.log("imap-unavailable", command=command.spec.name, cause=str(fault))
        return b"NO [UNAVAILABLE] Not possible at the moment; try again later"
    if isinstance(fault, StoreError):
        code = _CODES.get(fault.code, "[CANNOT] ")
        return b"NO " + (code + str(fault)).encode("ascii", "replace")
    if isinstance(fault, SpoolFull):
        return b"NO [UNAVAILABLE] No room at the moment; try again later"
    if isinstance(fault, SpoolError):
        services.log("imap-unavailable", command=command.spec.name, cause=str(fault))
        return b"NO [UNAVAILABLE] Could not be stored; try again later"
    services.error(f"{command.spec.name.decode()} failed", fault)
    return b"NO [SERVERBUG] Internal error"
