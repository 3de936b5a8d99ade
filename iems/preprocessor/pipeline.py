"""Runs the modules of one message, group by group, as the Channel Action Matrices say."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from iems.model import Extent, Rope
from iems.preprocessor.batch import Plan
from iems.preprocessor.matrix import Matrices
from iems.preprocessor.modules import Module, Work


async def examine(
    plan: Plan,
    matrices: Matrices,
    modules: Mapping[str, Module],
    read: Callable[[Rope, int, int], bytes],
    write: Callable[[bytes], Awaitable[Extent]],
) -> list[tuple[str, str]]:
    """Let the modules look at a message; what they want goes into the plan. (module, note) of each that ran.

    A recipient refused or discarded by one module is not shown to the next, and a group without recipients to none.
    """
    ran: list[tuple[str, str]] = []
    item = plan.item
    gone: set[int] = set()
    for names, parts in matrices.split(item.envelope.input_channel, plan.parts):
        work = Work(item.id, item.envelope, parts, item.rope, read, write)
        for name in names:
            work.parts = [part for part in parts if any(id(source) not in gone for source in part.sources)]
            if not work.parts:
                break
            verdict = await modules[name].examine(work)
            ran.append((name, verdict.note))
            if verdict.rope is not None:
                work.rope = verdict.rope
                for part in parts:
                    part.rope = verdict.rope
            for recipient, reply in verdict.failed:
                if id(recipient) not in gone:
                    gone.add(id(recipient))
                    plan.failed.append((recipient, reply))
            for recipient, reason in verdict.discarded:
                if id(recipient) not in gone:
                    gone.add(id(recipient))
                    plan.discarded = [*plan.discarded, (recipient, reason)]
    return ran
