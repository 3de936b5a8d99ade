"""Every module on and off in every cell of its matrix: generated messages see exactly the modules that their cells name."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from iems.directory.directory import Directory
from iems.model import Channel, Envelope, Recipient
from iems.preprocessor.batch import Plan, parts_items
from iems.preprocessor.matrix import Cells, Matrices
from iems.preprocessor.modules import NAMES, Verdict, Work
from iems.preprocessor.pipeline import examine
from iems.preprocessor.route import Part
from iems.spool.items import Item

MODULES = tuple(name for name in NAMES if name != "loopdetection")
INPUTS = [channel for channel in Channel if channel < 32]
OUTPUTS = [channel for channel in Channel if channel >= 32]
CELLS = [(source, aim) for source in INPUTS for aim in OUTPUTS]


class Stamp:
    """Stands in a module's place: writes its name into the content of whom it is asked about."""

    on_tags = False

    def __init__(self, name: str, seen: list[tuple[str, bytes]]) -> None:
        self.name = name
        self._seen = seen

    def wants(self, envelope: Envelope) -> bool:
        return True

    async def examine(self, work: Work) -> Verdict:
        self._seen += [(self.name, recipient.address) for part in work.parts for recipient in part.recipients]
        return Verdict(rope=[*work.rope, self.name.encode() + b"\r\n"], note="stamped")


def kept(path: Path, grids: dict[str, set[tuple[int, int]]]) -> dict[str, Cells]:
    """Grids as the directory gives them back."""
    directory = Directory(path, create=True)
    try:
        for name, cells in grids.items():
            directory.set_matrix(name, cells)
        return directory.matrices()
    finally:
        directory.close()


def pass_through(matrices: Matrices, source: int, parts: list[Part]) -> tuple[list[Item], list[tuple[str, bytes]], list[tuple[str, str, list[bytes]]]]:
    seen: list[tuple[str, bytes]] = []
    modules = {name: Stamp(name, seen) for name in matrices.modules}
    recipients = [recipient for part in parts for recipient in part.sources]
    item = Item(b"i" * 16, 0, "", Envelope(source, b"s@t", recipients, 0), [b"\r\n"])
    plan = Plan(item, parts, [])
    ran = asyncio.run(examine(plan, matrices, modules, None, None))  # type: ignore[arg-type]
    return parts_items(item, plan.parts, Item), seen, ran


def part(channel: int, *addresses: bytes) -> Part:
    recipients = [Recipient(address, channel=channel) for address in addresses]
    return Part(channel, "", list(recipients), list(recipients))


@pytest.mark.parametrize("seed", range(4))
def test_every_module_in_every_cell(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed // 2)
    grids = {name: {cell for cell in CELLS if rng.random() < 0.5} for name in MODULES}
    if seed % 2:  # the opposite of the one before: so each has been on and off in each cell
        grids = {name: set(CELLS) - cells for name, cells in grids.items()}
    matrices = Matrices(MODULES, kept(tmp_path, grids))
    for source, aim in CELLS:
        wanted = [name for name in MODULES if (source, aim) in grids[name]]
        [item], seen, ran = pass_through(matrices, source, [part(aim, b"a@x")])
        assert [name for name, _ in seen] == wanted, (source, aim)
        assert item.rope == [b"\r\n", *(name.encode() + b"\r\n" for name in wanted)]
        assert [verdict.check for verdict in item.envelope.asked] == [name for name in wanted if name != "antispam"]
        assert [name for name, _, _ in ran] == wanted


def test_one_message_to_many_channels_is_split_as_the_cells_say(tmp_path: Path) -> None:
    rng = random.Random(77)
    for turn in range(60):
        grids = {name: {cell for cell in CELLS if rng.random() < 0.7} for name in rng.sample(MODULES, rng.randrange(1, len(MODULES)))}
        matrices = Matrices(MODULES, {name: frozenset(cells) for name, cells in grids.items()} if turn else kept(tmp_path, grids))
        source = rng.choice(INPUTS)
        aims = rng.sample(OUTPUTS, rng.randrange(1, len(OUTPUTS) + 1))
        parts = [part(aim, *(b"u%d@%d" % (number, aim) for number in range(rng.randrange(1, 4)))) for aim in aims]
        items, seen, ran = pass_through(matrices, source, parts)
        assert sorted(item.channel for item in items) == sorted(aims)
        for item in items:
            wanted = [name for name in MODULES if name not in grids or (source, item.channel) in grids[name]]
            assert item.rope == [b"\r\n", *(name.encode() + b"\r\n" for name in wanted)]
            for recipient in item.envelope.recipients:
                assert [name for name, address in seen if address == recipient.address] == wanted
            assert [verdict.check for verdict in item.envelope.asked] == [name for name in wanted if name != "antispam"]
        groups = {tuple(name for name in MODULES if name not in grids or (source, aim) in grids[name]) for aim in aims}
        # The log names recipients as soon as not all of them are examined alike.
        assert all(bool(whose) == (len(groups) > 1) for _, _, whose in ran)
