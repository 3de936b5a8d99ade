"""Runs the modules of one message, group by group, as the Channel Action Matrices say."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from iems.master.board import MODULES
from iems.model import Envelope, Extent, Recipient, Rope
from iems.model import Verdict as Tag
from iems.preprocessor.batch import Plan
from iems.preprocessor.matrix import Matrices
from iems.preprocessor.meter import Metered
from iems.preprocessor.modules import Module, Verdict, Work
from iems.preprocessor.route import Part

#: Characters of a module's note that go into the record of a message.
NOTE_MAX = 200
#: Modules whose note is about all recipients together, which none of them may read; for LOCAL they do nothing.
_UNSAID = frozenset({"antispam"})


async def examine(
    plan: Plan,
    matrices: Matrices,
    modules: Mapping[str, Module],
    read: Callable[[Rope, int, int], bytes],
    write: Callable[[bytes], Awaitable[Extent]],
    count: Callable[[str, int], None] = lambda name, number: None,
    age_s: float = 0.0,
    ways: Callable[[Envelope, bytes], list[Part]] = lambda envelope, address: [],
) -> list[tuple[str, str, list[bytes]]]:
    """Let the modules look at a message; what they want goes into the plan. (module, note, whose) of each that ran.

    count: adds to a counter of the board. age_s: how long the message has been here. ways: parts for an address that gets the
    message in the place of others (`Planner.ways`). whose: the addresses of the recipients it ran for, empty if for all of the message.

    A recipient refused or discarded by one module is not shown to the next, and a group without recipients to none.
    """
    ran: list[tuple[str, str, list[bytes]]] = []
    item = plan.item
    gone: set[int] = set()
    shared: dict[str, Any] = {}
    groups = matrices.split(item.envelope.input_channel, plan.parts)
    for names, parts in groups:
        work = Work(item.id, item.envelope, parts, parts[0].rope or item.rope, read, write, item.deaths < 0, shared, age_s)
        for name in names:
            module = modules[name]
            if not module.wants(item.envelope) and not (module.on_tags and any(part.tags for part in parts)):
                continue
            work.parts = [part for part in parts if any(id(source) not in gone for source in part.sources)]
            if not work.parts:
                break
            verdict = await _measured(module, work, count)
            whose = [recipient.address for part in work.parts for recipient in part.recipients] if len(groups) > 1 else []
            ran.append((name, verdict.note, whose))
            if name not in _UNSAID:
                answer = (Tag(name, "", verdict.note[:NOTE_MAX]),)
                for part in work.parts:
                    part.asked += answer
            if verdict.notice:
                plan.notices = [*plan.notices, verdict.notice]
            if verdict.quarantine:
                plan.quarantine = verdict.quarantine
                return ran
            if verdict.tags:
                for part in parts:
                    part.tags += verdict.tags
            if verdict.rope is not None:
                work.rope = verdict.rope
                # What was known of the old content: the new one may have lines that begin with a dot.
                item.envelope.dot_free = False
                if verdict.reenter and len(groups) == 1:
                    plan.again = (verdict.reenter, verdict.rope)
                    return ran
                # Where only some of the recipients are this module's, a message can't begin anew: they get the content here.
                for part in parts:
                    part.rope = verdict.rope
            for part, rope in verdict.ropes:
                part.rope = rope
            for part, address, reason in verdict.redirected:
                if not _redirect(plan, part, work.rope, address, reason, ways):
                    plan.quarantine = f"nobody to forward to: {address.decode('utf-8', 'replace')}"
                    return ran
            for recipient, reason in verdict.dropped:
                source = _drop(plan, recipient)
                if source is not None and id(source) not in gone:
                    gone.add(id(source))
                    plan.discarded = [*plan.discarded, (source, reason)]
                elif source is None:
                    plan.dropped = [*plan.dropped, (recipient, reason)]
            for recipient, reply in verdict.failed:
                if id(recipient) not in gone:
                    gone.add(id(recipient))
                    plan.failed.append((recipient, reply))
            for recipient, reason in verdict.discarded:
                if id(recipient) not in gone:
                    gone.add(id(recipient))
                    plan.discarded = [*plan.discarded, (recipient, reason)]
    return ran


async def _measured(module: Module, work: Work, count: Callable[[str, int], None]) -> Verdict:
    """What the module says; what it cost is counted, however it ends."""
    metered = Metered(module.examine(work))
    failures = 1
    try:
        verdict = await metered
        failures = verdict.failures
        return verdict
    finally:
        name = module.name
        if name in MODULES:
            count(f"module_{name}_messages_total", 1)
            count(f"module_{name}_us_total", metered.took_ns // 1000)
            count(f"module_{name}_cpu_us_total", metered.cpu_ns // 1000)
            if failures:
                count(f"module_{name}_failures_total", failures)


def _drop(plan: Plan, recipient: Recipient) -> Recipient | None:
    """Take one recipient out of its part; the recipient it came from, if no other way is left to that one."""
    source = None
    for part in plan.parts:
        for place, aimed in enumerate(part.recipients):
            if aimed is recipient:
                source = part.sources[place]
                # New lists: a part may share them with the envelope.
                part.recipients = part.recipients[:place] + part.recipients[place + 1 :]
                part.sources = part.sources[:place] + part.sources[place + 1 :]
                break
    if source is None or any(source is other for part in plan.parts for other in part.sources):
        return None
    return source


def _redirect(
    plan: Plan, part: Part, rope: Rope, address: bytes, reason: str, ways: Callable[[Envelope, bytes], list[Part]]
) -> bool:
    """Put ways to an address in the place of a part; whether there are any. The address gets a message once."""
    if not any(there == address for there, *_ in plan.redirected):
        found = ways(plan.item.envelope, address)
        if not found:
            return False
        for way in found:
            way.sources = [part.sources[0]] * len(way.recipients)
            way.rope = part.rope or (rope if rope is not plan.item.rope else None)
        plan.parts += found
    plan.redirected = [*plan.redirected, *((address, recipient, reason) for recipient in part.recipients)]
    plan.parts = [other for other in plan.parts if other is not part]
    part.recipients, part.sources = [], []
    return True
