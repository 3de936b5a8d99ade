"""A virus scanner that is a command: the message and its decoded attachments in a folder of their own, exit codes as set."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import tempfile
from collections.abc import AsyncIterator, Collection
from pathlib import Path

from iems._native import kernel
from iems.message.structure import Structure
from iems.message.text import part_octets
from iems.net.breaker import Breaker, Guard, NoAnswer

_mime = kernel("mime")

MAX_FILES = 1_000
_OUTPUT = 4_096


class Command:
    """line: the command; `%F` stands for the message's file, `%D` for the folder with it and its attachments. infected, clean: exit codes."""

    def __init__(
        self, line: str, *, timeout_s: float, at_once: int, breaker: Breaker, infected: Collection[int], clean: Collection[int]
    ) -> None:
        self._words = shlex.split(line)
        self.name = f"command:{self._words[0]}"
        self._guard = Guard(self.name, timeout_s=timeout_s, at_once=at_once, breaker=breaker)
        self._infected = infected
        self._clean = clean

    async def scan(self, content: AsyncIterator[bytes]) -> str:
        """What the command says of a virus, "" if it finds none. Raises NoAnswer."""
        async with self._guard.asking():
            folder = Path(tempfile.mkdtemp(prefix="iems-scan-"))
            try:
                return await self._run(folder, content)
            finally:
                await asyncio.to_thread(shutil.rmtree, folder, True)

    async def _run(self, folder: Path, content: AsyncIterator[bytes]) -> str:
        message = folder / "message.eml"
        with open(message, "wb") as file:
            async for octets in content:
                await asyncio.to_thread(file.write, octets)
        if any("%D" in word for word in self._words):
            await asyncio.to_thread(_unpack, message, folder)
        words = [word.replace("%F", str(message)).replace("%D", str(folder)) for word in self._words]
        process = await asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True
        )
        try:
            assert process.stdout is not None
            output = await process.stdout.read(_OUTPUT)
            while await process.stdout.read(65_536):
                pass
            code = await process.wait()
        except BaseException:
            try:
                os.killpg(process.pid, 9)
            except ProcessLookupError:
                pass
            await process.wait()
            raise
        said = " ".join(output.decode("utf-8", "replace").split())[:200]
        if code in self._infected:
            return said or "infected"
        if code not in self._clean:
            raise NoAnswer(f"exit code {code}: {said}")
        return ""


def _unpack(message: Path, folder: Path) -> None:
    content = message.read_bytes()
    structure = Structure.parse(content)
    for row in range(min(len(structure), MAX_FILES)):
        part = structure.at(row)
        if part.kind == _mime.LEAF:
            # Names of our own: those of the sender are not for a file system.
            (folder / f"part-{row:04d}").write_bytes(part_octets(content, part))
