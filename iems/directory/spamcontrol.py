"""User Spam Control as the directory keeps it: what a mailbox owner wants done with mail that a check has tagged (product.md 6).

One action for all tags, one per DNS-BL zone where the user chose another, and a white list whose mail is always delivered. Values and
their rules only; lmda applies them. What makes no sense is refused with DirectoryRefusal before anything is written.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from msgspec import Struct

from iems.directory.entries import DirectoryRefusal
from iems.directory.names import address_of, domain_of, shown
from iems.directory.screening import ban_of

#: What can become of tagged mail, the mildest first; of several tags the strictest action counts.
ACTIONS = ("ignore", "file", "bounce", "discard")
#: Where `file` puts mail unless told otherwise.
SPAM_MAILBOX = "Spam"
MAX_ALLOWED = 1_000
MAX_ZONES = 64
MAX_MAILBOX_OCTETS = 1_000

_ACTION, _ZONE, _ALLOW = "iemsSpamAction", "iemsSpamZoneAction", "iemsSpamAllow"


class Action(Struct, frozen=True):
    """kind: of ACTIONS. mailbox: of `file`, else ""."""

    kind: str
    mailbox: str = ""

    @property
    def text(self) -> str:
        """As `action_of` takes it."""
        return f"{self.kind}={self.mailbox}" if self.mailbox else self.kind


IGNORE = Action("ignore")


class Allowed(Struct, frozen=True):
    """One entry of a white list. kind: `address`, `domain`, `ip`, `range` or `cidr`, as of a ban. value: in normal form."""

    kind: str
    value: str

    def covers(self, addresses: Mapping[str, str], client: tuple[int, int] | None) -> bool:
        """Whether mail is meant. addresses: address -> its domain, both in lower case. client: (IP version, number) of the sending server."""
        if self.kind == "address":
            return self.value in addresses
        if self.kind == "domain":
            if self.value.startswith("*."):
                return any(domain.endswith(self.value[1:]) for domain in addresses.values())
            return self.value in addresses.values()
        if client is None:
            return False
        version, first, last = ban_of(self.kind, self.value).span()
        return version == client[0] and first <= client[1] <= last


class SpamControl(Struct, frozen=True):
    """One user's choice. action: for all tags, None for the site's. zones: DNS-BL zone -> another action. allow: the white list."""

    action: Action | None = None
    zones: dict[str, Action] = {}
    allow: tuple[Allowed, ...] = ()


def action_of(text: str) -> Action:
    """`ignore`, `discard`, `bounce`, `file` or `file=MAILBOX`. Raises DirectoryRefusal."""
    kind, equals, mailbox = text.partition("=")
    kind = kind.strip().lower()
    if kind not in ACTIONS or (equals and kind != "file"):
        raise DirectoryRefusal(f"an action is ignore, discard, bounce, file or file=MAILBOX, not {shown(text)}")
    if kind != "file":
        return Action(kind)
    mailbox = mailbox.strip(" ") or SPAM_MAILBOX
    if len(mailbox.encode("utf-8", "surrogatepass")) > MAX_MAILBOX_OCTETS or not mailbox.isprintable():
        raise DirectoryRefusal(f"not the name of a mailbox: {shown(mailbox)}")
    return Action("file", mailbox)


def allowed_of(text: str) -> Allowed:
    """`a@b.test`, `*@b.test`, `b.test`, `*.b.test`, an IP address, FIRST-LAST or a network as `192.0.2.0/24`. Raises DirectoryRefusal."""
    value = text.strip()
    if value.startswith("*@"):
        kind, value = "domain", value[2:]
    elif "@" in value:
        kind = "address"
    elif "/" in value:
        kind = "cidr"
    elif _is_ip(value):
        kind = "ip"
    elif "-" in value and _is_ip(value.partition("-")[0].strip()):
        kind = "range"
    else:
        kind = "domain"
    found = ban_of(kind, value)
    return Allowed(found.kind, found.value)


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def zone_name(text: str) -> str:
    """The name of a DNS-BL zone in normal form. Raises DirectoryRefusal."""
    name = domain_of(text.rstrip("."))
    if name is None:
        raise DirectoryRefusal(f"not the name of a zone: {shown(text)}")
    return name


def identities(*paths: bytes) -> dict[str, str]:
    """address -> domain of what can be read as addresses, in lower case."""
    found = {}
    for path in paths:
        parts = address_of(path)
        if parts is not None and parts[1]:
            found["@".join(parts)] = parts[1]
    return found


# --- attributes of an entry


def read(attributes: Mapping[str, list[str]]) -> SpamControl | None:
    """The choice kept in an entry's attributes, None if there is none."""
    action, zones, allow = (attributes.get(name) for name in (_ACTION, _ZONE, _ALLOW))
    if not (action or zones or allow):
        return None
    pairs = (text.split(" ", 1) for text in zones or ())
    entries = (text.split(" ", 1) for text in allow or ())
    return SpamControl(
        action_of(action[0]) if action else None,
        {zone: action_of(chosen) for zone, chosen in pairs},
        tuple(Allowed(kind, value) for kind, value in entries),
    )


def written(control: SpamControl) -> dict[str, list[str]]:
    """The attributes that keep a choice. Raises DirectoryRefusal if there is too much of it."""
    if len(control.allow) > MAX_ALLOWED:
        raise DirectoryRefusal(f"a white list has at most {MAX_ALLOWED} entries")
    if len(control.zones) > MAX_ZONES:
        raise DirectoryRefusal(f"at most {MAX_ZONES} zones have an action of their own")
    return {
        _ACTION: [control.action.text] if control.action is not None else [],
        _ZONE: [f"{zone} {action.text}" for zone, action in sorted(control.zones.items())],
        _ALLOW: [f"{entry.kind} {entry.value}" for entry in control.allow],
    }
