"""What the matrices and the directory let happen: mail that leaves unseen by a module, and mail that would go in circles. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from iems.model import Channel
from iems.preprocessor.matrix import Matrices

#: An output channel whose mail may come back on an input channel: rules and forwards, lists, connectors.
RE_ENTRY = {
    Channel.LOCAL: Channel.LOCALOUT,
    Channel.DL: Channel.DLOUT,
    Channel.CCMAIL: Channel.CCOUT,
    Channel.NOTES: Channel.NOTESOUT,
}
#: Input channels that begin with mail from somewhere else; the others only continue what came in.
_ORIGINS = tuple(channel for channel in Channel if channel < 32 and channel not in RE_ENTRY.values())


def unseen(matrices: Matrices, module: str) -> list[tuple[Channel, ...]]:
    """Every way (input, output, input, output ...) on which the module never runs, from where mail begins to where it ends.

    A way that passes a channel twice is left out: it is no shorter way past the module.
    """
    outputs = [channel for channel in Channel if channel >= 32]
    found: list[tuple[Channel, ...]] = []

    def follow(source: Channel, way: tuple[Channel, ...]) -> None:
        for aim in outputs:
            if aim in way or matrices.runs(module, source, aim):
                continue
            here = (*way, aim)
            found.append(here)
            again = RE_ENTRY.get(aim)
            if again is not None and again not in way:
                follow(again, (*here, again))

    for origin in _ORIGINS:
        follow(origin, (origin,))
    return found


def alias_loops(aliases: Iterable[tuple[str, Sequence[str]]]) -> list[list[str]]:
    """Rings of aliases that lead back to themselves, each once, from its smallest address round to it again."""
    targets = {address: [target.lower() for target in given] for address, given in aliases}
    loops: dict[frozenset[str], list[str]] = {}
    done: set[str] = set()
    for start in sorted(targets):
        if start in done:
            continue
        path: list[str] = []
        place: dict[str, int] = {}
        stack: list[tuple[str, int]] = [(start, 0)]
        while stack:
            address, turn = stack.pop()
            if turn == 0:
                place[address] = len(path)
                path.append(address)
            following = targets[address]
            if turn < len(following):
                stack.append((address, turn + 1))
                target = following[turn]
                if target in place:
                    ring = path[place[target] :]
                    least = ring.index(min(ring))
                    loops.setdefault(frozenset(ring), [*ring[least:], *ring[:least], ring[least]])
                elif target in targets and target not in done:
                    stack.append((target, 0))
            else:
                path.pop()
                del place[address]
                done.add(address)
    return sorted(loops.values())


def forward_loops(forwards: Iterable[tuple[str, Channel, str]], ourselves: set[str]) -> list[tuple[str, str]]:
    """(domain, next hop) of forwards by SMTPC that name this host. ourselves: its names, in lower case."""
    return [
        (domain, identifier)
        for domain, channel, identifier in forwards
        if channel == Channel.SMTPC and identifier.partition(":")[0].strip("[]").rstrip(".").lower() in ourselves
    ]
