"""A milter on loopback, by hand, and a real one (OpenDKIM)."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
from pathlib import Path

from tests.support.scanners import Daemon

OPENDKIM = shutil.which("opendkim") or shutil.which("opendkim", path="/usr/sbin")


def packet(command, data=b""):
    return (len(data) + 1).to_bytes(4, "big") + command + data


def u32(*numbers):
    return b"".join(number.to_bytes(4, "big") for number in numbers)


class FakeMilter:
    """answers: command letter -> octets sent for it (default: continue), or None: it says nothing. seen: (letter, data) of all it got."""

    def __init__(self, answers=None, actions=0x13B, steps=0, version=6):
        self.answers = {b"O": packet(b"O", u32(version, actions, steps)), b"D": b""} | (answers or {})
        self.seen = []
        self.closed = asyncio.Event()

    async def handle(self, reader, writer):
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(4), "big")
                command = await reader.readexactly(1)
                self.seen.append((command, await reader.readexactly(length - 1)))
                if command == b"Q":
                    break
                answer = self.answers.get(command, b"" if command == b"A" else packet(b"c"))
                if callable(answer):
                    answer = answer(self.seen[-1][1])
                if answer is not None:
                    writer.write(answer)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self.closed.set()

    def all(self, command):
        """The data of all packets with this letter."""
        return [data for letter, data in self.seen if letter == command]

    async def start(self, path=None):
        """Listens; where, as a setting has it."""
        if path is not None:
            self.server = await asyncio.start_unix_server(self.handle, path)
            return f"unix:{path}"
        self.server = await asyncio.start_server(self.handle, "127.0.0.1", 0)
        return f"inet:127.0.0.1:{self.server.sockets[0].getsockname()[1]}"


class OpendkimDaemon(Daemon):
    """OpenDKIM that signs for one domain. It looks at nothing that needs DNS."""

    domain = "load.test"

    def command(self) -> list[str]:
        """Makes its key."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        key = rsa.generate_private_key(65537, 2048)
        path = Path(self.folder / "key.pem")
        path.write_bytes(key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()))  # fmt: skip
        path.chmod(0o600)
        assert OPENDKIM is not None
        # It would mind that anyone may write into the folder of all temporary files.
        (self.folder / "opendkim.conf").write_text("RequireSafeKeys no\n")
        user = pwd.getpwuid(os.getuid()).pw_name
        return [
            OPENDKIM, "-f", "-x", str(self.folder / "opendkim.conf"), "-b", "s", "-d", self.domain, "-k", str(path), "-s", "sel", "-p", f"inet:{self.port}@127.0.0.1",
            "-u", user, "-P", str(self.folder / "pid"),
        ]  # fmt: skip
