"""Real scanners in private instances on loopback: clamd with a signature of its own, spamd with SpamAssassin's rules and no network."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from pathlib import Path

from iems.perf.ports import free_base
from tests.support.waiting import family, freeze, thaw, until

#: The EICAR test file, in two pieces so that this file is none.
EICAR = rb"X5O!P%@AP[4\PZX54(P^)7CC)7}$" + rb"EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
GTUBE = b"XJS*C4JDBQADN1.NSBN3*2IDNEN*" + b"GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
CLAMD = shutil.which("clamd") or shutil.which("clamd", path="/usr/sbin")
SPAMD = shutil.which("spamd") or shutil.which("spamd", path="/usr/sbin")
CICAP = shutil.which("c-icap")
RSPAMD = shutil.which("rspamd")


class Daemon:
    """A process that listens on a port; use it in a `with` block. `pause` and `go_on` freeze and wake it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_base() + 25
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def __enter__(self) -> Daemon:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = open(self.folder / "log", "wb")
        self.process = subprocess.Popen(self.command(), stdout=self.log, stderr=self.log, start_new_session=True)


        def answers() -> bool:
            assert self.process is not None and self.process.poll() is None, (self.folder / "log").read_text()
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True

        until(answers)
        return self

    def signal(self, number: int) -> None:
        """To all its processes."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def pause(self) -> None:
        """Let it answer nothing until `go_on`."""
        assert self.process is not None
        freeze(*family(self.process.pid))

    def go_on(self) -> None:
        """Undo `pause`."""
        assert self.process is not None
        thaw(*family(self.process.pid))

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            for number in (18, 15):
                try:
                    os.killpg(self.process.pid, number)
                except ProcessLookupError:
                    pass
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, 9)
                self.process.wait()
        self.log.close()


class ClamdDaemon(Daemon):
    """clamd that knows one virus: EICAR."""

    def command(self) -> list[str]:
        """Writes its signature and settings."""
        (self.folder / "db").mkdir(exist_ok=True)
        # name:type 0 (any file):offset any:hexadecimal
        (self.folder / "db" / "test.ndb").write_text(f"Test.Eicar:0:*:{EICAR.hex()}\n")
        user = pwd.getpwuid(os.getuid()).pw_name
        (self.folder / "clamd.conf").write_text(
            f"DatabaseDirectory {self.folder}/db\nTCPSocket {self.port}\nTCPAddr 127.0.0.1\nForeground yes\nUser {user}\n"
            f"MaxThreads 4\nStreamMaxLength 25M\nLogFile {self.folder}/clamd.log\n"
        )
        assert CLAMD is not None
        return [CLAMD, "-c", str(self.folder / "clamd.conf")]


class SpamdDaemon(Daemon):
    """spamd without network tests."""

    def command(self) -> list[str]:
        """Local tests only, two children."""
        assert SPAMD is not None
        return [
            SPAMD, "-L", "-i", "127.0.0.1", "-p", str(self.port), "-m", "2", "-x", "-H", str(self.folder),
            f"--pidfile={self.folder}/pid", "-s", "stderr", "--allow-tell",
        ]  # fmt: skip


class CicapDaemon(Daemon):
    """c-icap with its services `echo` and, if a clamd is given, `virus_scan` that asks it; over TLS on a port of its own, if a certificate with its key is."""

    def __init__(self, folder: Path, clamd_port: int | None = None, more: str = "", pem: Path | None = None) -> None:
        super().__init__(folder)
        self.tls_port = free_base() + 26 if pem is not None else 0
        if pem is not None:
            more += f"TlsPort 127.0.0.1:{self.tls_port} cert={pem} key={pem}\n"
        self._clamd_port = clamd_port
        self._more = more

    def command(self) -> list[str]:
        """Writes its settings."""
        assert CICAP is not None
        [modules] = [path for path in ("/usr/lib/x86_64-linux-gnu/c_icap", "/usr/lib/aarch64-linux-gnu/c_icap", "/usr/lib/c_icap") if os.path.isdir(path)][:1]
        user = pwd.getpwuid(os.getuid()).pw_name
        text = (
            f"PidFile {self.folder}/pid\nCommandsSocket {self.folder}/ctl\nPort 127.0.0.1:{self.port}\nUser {user}\nServerName test\nTmpDir {self.folder}\n"
            "StartServers 1\nMaxServers 1\nMinSpareThreads 2\nMaxSpareThreads 10\nThreadsPerChild 10\nDebugLevel 1\nTimeout 60\n"
            f"ModulesDir {modules}\nServicesDir {modules}\nTemplateDir /usr/share/c_icap/templates/\nLoadMagicFile /etc/c-icap/c-icap.magic\n"
            f"ServerLog {self.folder}/server.log\nAccessLog {self.folder}/access.log\nService echo srv_echo.so\n{self._more}"
        )
        if self._clamd_port is not None:
            text += (
                "Service virus_scan virus_scan.so\nModule common clamd_mod.so\nvirus_scan.ScanFileTypes TEXT DATA EXECUTABLE ARCHIVE GIF JPEG MSOFFICE\n"
                "virus_scan.SendPercentData 0\nvirus_scan.Allow204Responces on\nvirus_scan.MaxObjectSize 20M\nvirus_scan.DefaultEngine clamd\n"
                f"clamd_mod.ClamdHost 127.0.0.1\nclamd_mod.ClamdPort {self._clamd_port}\n"
            )
        (self.folder / "c-icap.conf").write_text(text)
        return [CICAP, "-N", "-f", str(self.folder / "c-icap.conf")]


class RspamdDaemon(Daemon):
    """rspamd with one rule of its own (`buy now` in the subject scores 7 of 15, which is its action "add header") and GTUBE; it asks nobody."""

    def command(self) -> list[str]:
        """Writes its settings."""
        assert RSPAMD is not None
        # A short list of top-level domains, and no compiled expressions: it is there in half a second, not in twelve.
        (self.folder / "tld.dat").write_text("test\n")
        (self.folder / "rspamd.conf").write_text(
            f'options {{ filters = "regexp"; pidfile = "{self.folder}/pid"; tempdir = "{self.folder}"; url_tld = "{self.folder}/tld.dat";\n'
            '  disable_hyperscan = true; dns { nameserver = ["127.0.0.1:1:1"]; timeout = 0.1s; retransmits = 1; } }\n'
            'logging { type = "console"; level = "warning"; }\n'
            f'worker "normal" {{ bind_socket = "127.0.0.1:{self.port}"; count = 1; }}\n'
            "actions { reject = 15; add_header = 6; greylist = 4; }\n"
            'group "test" { symbols { BUY_NOW { score = 7.0; } } }\n'
            'regexp { BUY_NOW { re = "Subject=/buy now/i{header}"; score = 7.0; } }\n'
        )
        return [RSPAMD, "-f", "-i", "-c", str(self.folder / "rspamd.conf")]
