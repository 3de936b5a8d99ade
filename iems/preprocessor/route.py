"""From a message's recipients to its parts: one per (output channel, destination). Pure; the directory is handed in.

Routing is repeatable: the same envelope under the same directory gives the same parts, so a crash before the queue's
transaction only means that it is done again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct

from iems.model import Channel, Recipient, Reply, Rope, Verdict

if TYPE_CHECKING:
    from iems.directory.entries import Resolution, Target

_LOCAL = int(Channel.LOCAL)
_SMTPC = int(Channel.SMTPC)

UNROUTABLE = Reply(550, 1, 1, "No such user here")


class Part(Struct):
    """The recipients of one message that leave by the same way. destination: as in `spool.Item`.

    sources: the recipient of the envelope each of them comes from. rope: content a module has rewritten, None if none has.
    reverse_path: another than the message's, None for that one. tags: verdicts of modules, beside those of the envelope.
    asked: what the modules that ran answered, for the record.
    """

    channel: int
    destination: str
    recipients: list[Recipient]
    sources: list[Recipient]
    rope: Rope | None = None
    reverse_path: bytes | None = None
    tags: tuple[Verdict, ...] = ()
    asked: tuple[Verdict, ...] = ()


class Routed(Struct):
    """parts: what goes on. failed: recipients that can't be routed, with the reply for the sender's report."""

    parts: list[Part]
    failed: list[tuple[Recipient, Reply]]


def destination(target: Target) -> str:
    """The queue row a target belongs to: "" for LOCAL, next-hop domain or relay for SMTPC, else the identifier."""
    channel = target.channel
    if channel == _LOCAL:
        return ""
    if channel == _SMTPC and not target.identifier:
        return target.address.rpartition(b"@")[2].decode("utf-8", "replace").lower()
    return target.identifier


def route(resolve: Callable[[bytes], Resolution], recipients: list[Recipient]) -> Routed:
    """Route every recipient.

    resolve: `Directory.resolve`; its DirectoryUnavailable passes through. A final address reached twice by the same way
    (alias and person, say) is kept once, with the wishes for notices (RFC 3461) of both.
    """
    if len(recipients) == 1:
        # Nearly all mail has one recipient and one target: no tables.
        recipient = recipients[0]
        resolution = resolve(recipient.address)
        targets = resolution.targets
        if len(targets) == 1:
            target = targets[0]
            only = Part(target.channel, destination(target), [_aimed(recipient, target)], recipients)
            return Routed([only], [])
    parts: dict[tuple[int, str], Part] = {}
    known: dict[tuple[int, str, bytes], Recipient] = {}
    failed: list[tuple[Recipient, Reply]] = []
    for recipient in recipients:
        resolution = resolve(recipient.address)
        if not resolution.targets:
            failed.append((recipient, resolution.reply or UNROUTABLE))
            continue
        for target in resolution.targets:
            identity = (target.channel, target.identifier, target.address)
            same = known.get(identity)
            if same is not None:
                same.notify |= recipient.notify
                continue
            aimed = known[identity] = _aimed(recipient, target)
            way = (target.channel, destination(target))
            part = parts.get(way)
            if part is None:
                parts[way] = Part(*way, [aimed], [recipient])
            else:
                part.recipients.append(aimed)
                part.sources.append(recipient)
    return Routed(list(parts.values()), failed)


def _aimed(recipient: Recipient, target: Target) -> Recipient:
    """The recipient with its way out; what the client wrote stays in `original`."""
    return Recipient(
        target.address,
        recipient.original or recipient.address,
        recipient.orcpt,
        recipient.notify,
        target.channel,
        target.identifier,
        delay_noticed=recipient.delay_noticed,
    )
