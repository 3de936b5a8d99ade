"""A private Postfix for tests: as a next hop that speaks TLS and holds what it gets, or as a sender into a server of ours."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from iems.perf.peers import missing, program
from iems.perf.peers.postfix import Postfix
from tests.support.certificates import Server

#: Why it can't be used here; empty if it can.
REASON = missing({"postfix": None}).get("postfix", "")
needs_postfix = pytest.mark.skipif(bool(REASON), reason=f"postfix: {REASON}")


class TestPostfix(Postfix):
    """certificate: what it shows. more: further lines of main.cf. Its second port, `old`, offers neither SMTPUTF8 nor DSN."""

    __test__ = False
    listeners = ("smtp", "old")

    def __init__(
        self, *, hold: bool = False, next_hop: tuple[str, int] | None = None, certificate: Server | None = None, more: str = ""
    ) -> None:
        found = program("postfix")
        assert found is not None
        super().__init__(1, None, found, hold=hold, next_hop=next_hop)
        self._certificate = certificate
        self._more = more

    def _configure(self) -> None:
        super()._configure()
        lines = "smtputf8_enable = yes\n" + self._more
        if self._certificate is not None:
            file = self.path / "etc/cert.pem"
            file.write_bytes(self._certificate.file.read_bytes())
            file.chmod(0o600)
            lines += f"smtpd_tls_security_level = may\nsmtpd_tls_loglevel = 1\nsmtpd_tls_chain_files = {file}\n"
        with open(self.path / "etc/main.cf", "a") as main:
            main.write(lines)
        with open(self.path / "etc/master.cf", "a") as master:
            master.write(
                "tlsmgr unix - - n 1000? 1 tlsmgr\n"
                f"127.0.0.1:{self.port('old')} inet n - n - - smtpd\n"
                "  -o smtpd_discard_ehlo_keywords=smtputf8,dsn\n"
            )

    def held(self) -> list[str]:
        """Envelope and content of what it took and holds, as postcat shows them."""
        names = [name for _, _, files in os.walk(self.path / "spool/hold") for name in files]
        return [self.postcat(name) for name in sorted(names)]

    def postcat(self, name: str) -> str:
        """One message in its queue."""
        command = ["/usr/sbin/postcat", "-c", str(self.path / "etc"), "-q", name]
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=60).stdout

    def log(self) -> str:
        """Its log."""
        file: Path = self.path / "mail.log"
        return file.read_text(errors="replace") if file.exists() else ""
