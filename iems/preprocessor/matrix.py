"""Channel Action Matrices: whether a module runs for mail from an input channel to an output channel.

Each module has a grid in the directory (`Directory.matrices`); a ticked cell means run. A module without a grid runs in
every cell: forgetting one must not let mail pass unexamined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from iems.preprocessor.route import Part

Cells = frozenset[tuple[int, int]]


class Matrices:
    """The grids of the installed modules. modules: names in the order they run."""

    def __init__(self, modules: Sequence[str], grids: Mapping[str, Cells]) -> None:
        self.modules = tuple(modules)
        self._grids = {name: grids[name] for name in modules if name in grids}
        self._known: dict[tuple[int, int], tuple[str, ...]] = {}

    def runs(self, module: str, input_channel: int, output_channel: int) -> bool:
        """Whether the module's cell is ticked."""
        grid = self._grids.get(module)
        return grid is None or (input_channel, output_channel) in grid

    def modules_for(self, input_channel: int, output_channel: int) -> tuple[str, ...]:
        """The modules that run for this flow, in order."""
        cell = (input_channel, output_channel)
        found = self._known.get(cell)
        if found is None:
            found = self._known[cell] = tuple(name for name in self.modules if self.runs(name, *cell))
        return found

    def split(self, input_channel: int, parts: Sequence[Part]) -> list[tuple[tuple[str, ...], list[Part]]]:
        """The parts grouped by the modules that examine them: each group is examined, and rewritten, on its own."""
        if not self.modules:
            return [((), list(parts))]
        groups: dict[tuple[str, ...], list[Part]] = {}
        for part in parts:
            groups.setdefault(self.modules_for(input_channel, part.channel), []).append(part)
        return list(groups.items())
