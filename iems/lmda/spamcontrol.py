"""User Spam Control at delivery: what becomes of a tagged message in one mailbox. Pure; only tagged mail gets here.

A check that tags has let the message in; its recipient decides. The verdicts come with the envelope (`Envelope.verdicts`), never from
a header field, so nobody outside can forge or hide one.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from iems.directory.spamcontrol import ACTIONS, IGNORE, Action, SpamControl, identities
from iems.message.address import author
from iems.model import Envelope, Reply

REFUSED = Reply(550, 7, 1, "The recipient does not accept mail that was marked as spam")
WHITE_LIST = "white list"
_STRICTNESS = {kind: rank for rank, kind in enumerate(ACTIONS)}


class Decision(NamedTuple):
    """action: what to do. rule: whose rule it was, for people: `white list`, `zone ZONE`, `all tags` or `site`."""

    action: Action
    rule: str


def decide(envelope: Envelope, head: bytes, control: SpamControl | None, site: Action) -> Decision:
    """What a mailbox owner wants done with a tagged message.

    head: the start of the content, for the From field. control: the owner's choice. site: for owners who made none.
    """
    if control is None:
        return Decision(site, "site")
    if control.allow:
        known = identities(envelope.reverse_path, *_author(head))
        client = _client(envelope.client_ip)
        if any(entry.covers(known, client) for entry in control.allow):
            return Decision(IGNORE, WHITE_LIST)
    general = Decision(control.action, "all tags") if control.action is not None else Decision(site, "site")
    chosen: Decision | None = None
    for verdict in envelope.verdicts:
        own = control.zones.get(verdict.subject) if verdict.check == "dnsbl" else None
        found = Decision(own, f"zone {verdict.subject}") if own is not None else general
        if chosen is None or _STRICTNESS[found.action.kind] > _STRICTNESS[chosen.action.kind]:
            chosen = found
    return chosen or general


def _author(head: bytes) -> list[bytes]:
    found = author(head)
    return [found.local + b"@" + found.domain] if found is not None and found.domain else []


def _client(ip: str) -> tuple[int, int] | None:
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return None
    return address.version, int(address)
