"""Who is who: domains, accounts, aliases, connectors, the domain forwarding table, and log-ins."""

from iems.directory.authenticator import Authenticator
from iems.directory.directory import Directory
from iems.directory.entries import (
    Account,
    Connector,
    DirectoryRefusal,
    Permission,
    Resolution,
    Retired,
    Target,
)

__all__ = [
    "Account",
    "Authenticator",
    "Connector",
    "Directory",
    "DirectoryRefusal",
    "Permission",
    "Resolution",
    "Retired",
    "Target",
]
