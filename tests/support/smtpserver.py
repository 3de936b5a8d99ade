"""A scripted SMTP server on loopback: takes mail, and misbehaves where the script says."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

Script = Callable[["Connection", str, bytes], Any]


class Connection:
    """One connection, as a script sees it. number: from 0 in order of arrival; commands: the lines received."""

    def __init__(self, server: SmtpServer, number: int) -> None:
        self.server = server
        self.number = number
        self.commands: list[bytes] = []
        self.secure = False
        self.mail = b""
        self.rcpt: list[bytes] = []


class SmtpServer:
    """script(connection, verb, line) gives the reply to a command, None for the usual one, or a word:

    "drop" closes at once, "silent" never answers, "drop-after" answers 354 (DATA) and closes amid the content.
    Verbs: CONNECT EHLO HELO STARTTLS MAIL RCPT DATA END (the final dot; line is the content) RSET QUIT.
    `messages` holds (reverse-path line, recipient lines, content still stuffed) of each message answered 2xx.
    delay_s: before each reply.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        extensions: tuple[str, ...] = ("PIPELINING", "SIZE 0", "8BITMIME", "DSN", "SMTPUTF8"),
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
        delay_s: float = 0.0,
    ) -> None:
        self.script = script
        self.extensions = extensions
        self.tls = tls
        self.host = host
        self.delay_s = delay_s
        self.port = 0
        self.connections: list[Connection] = []
        self.messages: list[tuple[bytes, list[bytes], bytes]] = []
        self.open = 0
        self.most_open = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> SmtpServer:
        self._server = await asyncio.start_server(self._serve, self.host, self.port, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        connection = Connection(self, len(self.connections))
        self.connections.append(connection)
        try:
            await self._talk(connection, reader, writer)
        except (EOFError, OSError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()

    async def _say(self, writer: asyncio.StreamWriter, reply: str | bytes) -> int:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        data = reply if isinstance(reply, bytes) else reply.encode() + b"\r\n"
        writer.write(data)
        await writer.drain()
        return int(data[:3]) if data[:3].isdigit() else 0

    async def _talk(self, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def answer(verb: str, line: bytes, usual: str) -> int:
            reply = self.script(connection, verb, line) if self.script else None
            if reply == "drop":
                raise EOFError
            if reply == "silent":
                await asyncio.sleep(3600)
            return await self._say(writer, usual if reply is None else reply)

        if await answer("CONNECT", b"", "220 fake ESMTP") >= 400:
            return
        while True:
            line = (await reader.readuntil(b"\r\n"))[:-2]
            connection.commands.append(line)
            verb = line.split(b" ")[0].split(b":")[0].upper().decode()
            match verb:
                case "EHLO":
                    offer = [e for e in self.extensions if e != "STARTTLS" or not connection.secure]
                    lines = ["fake", *offer]
                    usual = "\r\n".join(f"250{'-' if n < len(lines) - 1 else ' '}{text}" for n, text in enumerate(lines))
                    code = await answer(verb, line, usual)
                case "STARTTLS":
                    code = await answer(verb, line, "220 go")
                    if code == 220:
                        if self.tls is None:
                            raise EOFError  # promised, not kept
                        await writer.start_tls(self.tls)
                        connection.secure = True
                case "MAIL":
                    code = await answer(verb, line, "250 2.1.0 ok")
                    if code == 250:
                        connection.mail, connection.rcpt = line, []
                case "RCPT":
                    code = await answer(verb, line, "250 2.1.5 ok" if connection.mail else "503 5.5.1 no MAIL")
                    if code == 250:
                        connection.rcpt.append(line)
                case "DATA":
                    reply = self.script(connection, verb, line) if self.script else None
                    if reply == "drop-after":
                        await self._say(writer, "354 go")
                        await reader.readexactly(10)
                        raise EOFError
                    if reply is None and not connection.rcpt:
                        reply = "554 5.5.1 no valid recipients"
                    code = 0
                    if reply is not None:
                        if reply == "drop":
                            raise EOFError
                        if reply == "silent":
                            await asyncio.sleep(3600)
                        code = await self._say(writer, reply)
                    if code in (0, 354):
                        if code == 0:
                            await self._say(writer, "354 go")
                        content = await self._content(reader)
                        mail, rcpt, connection.mail, connection.rcpt = connection.mail, connection.rcpt, b"", []
                        code = await answer("END", content, f"250 2.0.0 queued as {len(self.messages)}")
                        if 200 <= code < 300:
                            self.messages.append((mail, rcpt, content))
                case "BDAT":
                    words = line.split()
                    content = await reader.readexactly(int(words[1]))
                    mail, rcpt, connection.mail, connection.rcpt = connection.mail, connection.rcpt, b"", []
                    code = await answer("END", content, f"250 2.0.0 queued as {len(self.messages)}" if rcpt else "503 no")
                    if 200 <= code < 300:
                        self.messages.append((mail, rcpt, content))
                case "QUIT":
                    await answer(verb, line, "221 bye")
                    return
                case _:
                    code = await answer(verb, line, "250 ok")
                    if verb == "RSET":
                        connection.mail, connection.rcpt = b"", []
            if code == 421:
                return

    async def _content(self, reader: asyncio.StreamReader) -> bytes:
        """Up to the final dot; CRLF is the only line end."""
        lines = []
        while True:
            line = await reader.readuntil(b"\r\n")
            if line == b".\r\n":
                return b"".join(lines)
            lines.append(line)
