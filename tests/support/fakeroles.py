"""A master whose roles are tiny: for tests of starting, dying, reloading and draining without mail.

python -m tests.support.fakeroles HOME runs `start --foreground` with the roles smtpd and store. A line sent to the SMTP
port is a command to the worker that took the connection: `pid`, `die`, `hang`, `blame HEX`, `index`, `tls`, `wait`
(answers when it drains), `wake ROLE`, `woken`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable

from iems.master import child, supervisor


class FakeWorker:
    """Serves the commands above."""

    def __init__(self, ctx: child.WorkerContext) -> None:
        self.ctx = ctx
        self.open: set[asyncio.Task[None]] = set()
        self.servers: list[asyncio.Server] = []
        self.waiting: list[asyncio.StreamWriter] = []
        self.woken = 0

    async def start(self) -> None:
        if os.environ.get("FAKE_FAIL") == self.ctx.role:
            raise RuntimeError("told to fail")
        for sock in self.ctx.sockets.get("smtp", ()):
            copy = socket.socket(fileno=os.dup(sock.fileno()))
            self.servers.append(await asyncio.start_server(self.serve, sock=copy, start_serving=True))
        self.ctx.on_wake(self.wake)
        self.ctx.park()

    def wake(self) -> None:
        self.woken += 1
        self.ctx.park()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.open.add(task)
        self.ctx.count("sessions_total")
        try:
            while line := await reader.readline():
                answer = self.command(line.decode().split(), writer)
                if answer is not None:
                    writer.write(answer.encode() + b"\n")
        finally:
            self.open.discard(task)
            writer.close()

    def command(self, words: list[str], writer: asyncio.StreamWriter) -> str | None:
        ctx = self.ctx
        if words[0] == "die":
            os._exit(3)
        if words[0] == "hang":
            time.sleep(3600)
        if words[0] == "wait":
            self.waiting.append(writer)
            return None
        if words[0] == "blame":
            ctx.working_on(bytes.fromhex(words[1]))
            os._exit(4)
        if words[0] == "wake":
            ctx.wake(words[1])
        answers: dict[str, Callable[[], object]] = {
            "pid": os.getpid,
            "index": lambda: ctx.index,
            "tls": lambda: ctx.tls is not None,
            "woken": lambda: self.woken,
            "generation": lambda: ctx.generation,
            "drain_s": lambda: ctx.config.master.drain_s,
        }
        return str(answers.get(words[0], lambda: "ok")())

    async def retire(self) -> None:
        for server in self.servers:
            server.close()
        while self.open:
            await asyncio.sleep(0.01)

    async def drain(self, deadline_s: float) -> None:
        for server in self.servers:
            server.close()
        for writer in self.waiting:
            writer.write(b"bye\n")
            await writer.drain()
        for task in list(self.open):
            task.cancel()


def main() -> None:
    """Runs the master in the foreground."""
    supervisor.is_built = lambda role: role in ("smtpd", "store")
    child._load = lambda role: FakeWorker
    from iems.cli.iemsctl import main as iemsctl

    iemsctl(["--home", sys.argv[1], "start", "--foreground"])


if __name__ == "__main__":
    main()
