"""A private slapd on loopback with an address book of its own."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

from iems.perf.ports import free_base
from tests.support.waiting import freeze, thaw, until

PATH = "/usr/sbin:/usr/bin:/usr/libexec:/usr/lib/openldap"
SLAPD = shutil.which("slapd", path=PATH)
SLAPADD = shutil.which("slapadd", path=PATH)
SCHEMA = Path("/etc/ldap/schema")
REASON = "" if SLAPD and SLAPADD and (SCHEMA / "inetorgperson.schema").exists() else "slapd is not installed"
BASE = "dc=relay,dc=test"
BIND_DN = f"cn=reader,{BASE}"
PASSWORD = "read only"


class Slapd:
    """Started by `with`. people: addresses in the book. certificate: PEM of chain and key for ldaps and StartTLS, authority: its ca.pem.

    Only `BIND_DN` may read.
    """

    def __init__(self, folder: Path, people: list[str], certificate: Path | None = None, authority: Path | None = None) -> None:
        self.folder = folder
        base = free_base()
        self.port, self.tls_port = base + 389, base + 636
        self._process: subprocess.Popen[bytes] | None = None
        self._certificate = certificate
        (folder / "data").mkdir(parents=True)
        config = [f"include {SCHEMA}/{name}.schema" for name in ("core", "cosine", "inetorgperson")]
        modules = [path for path in ("/usr/lib/ldap", "/usr/libexec/openldap", "/usr/lib/openldap") if Path(path).exists()]
        if modules:
            config += [f"modulepath {modules[0]}", "moduleload back_mdb"]
        if certificate is not None:
            config += [f"TLSCertificateFile {certificate}", f"TLSCertificateKeyFile {certificate}", f"TLSCACertificateFile {authority}"]
        config += [
            f"pidfile {folder}/slapd.pid", "database mdb", f"suffix {BASE}", f"rootdn cn=admin,{BASE}", f"directory {folder}/data",
            "access to attrs=userPassword by anonymous auth", f'access to * by dn.exact="{BIND_DN}" read',
        ]  # fmt: skip
        (folder / "slapd.conf").write_text("\n".join(config) + "\n")
        entries = [
            f"dn: {BASE}\nobjectClass: dcObject\nobjectClass: organization\ndc: relay\no: relay\n",
            f"dn: {BIND_DN}\nobjectClass: organizationalRole\nobjectClass: simpleSecurityObject\ncn: reader\nuserPassword: {PASSWORD}\n",
        ]
        for number, address in enumerate(people):
            entries.append(
                f"dn: uid=u{number},{BASE}\nobjectClass: inetOrgPerson\nuid: u{number}\ncn: {number}\nsn: {number}\nmail: {address}\n"
            )
        (folder / "book.ldif").write_text("\n".join(entries))
        subprocess.run([str(SLAPADD), "-f", str(folder / "slapd.conf"), "-l", str(folder / "book.ldif")], check=True, capture_output=True)

    @property
    def uri(self) -> str:
        """Where it listens in the clear."""
        return f"ldap://localhost:{self.port}"

    @property
    def tls_uri(self) -> str:
        """Where it listens over TLS."""
        return f"ldaps://localhost:{self.tls_port}"

    def __enter__(self) -> Slapd:
        self.start()
        return self

    def start(self) -> None:
        """Start it and wait until it listens."""
        listeners = f"ldap://127.0.0.1:{self.port}" + (f" ldaps://127.0.0.1:{self.tls_port}" if self._certificate else "")
        self._process = subprocess.Popen(
            [str(SLAPD), "-f", str(self.folder / "slapd.conf"), "-h", listeners, "-d", "0"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

        def answers() -> bool:
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError("slapd did not start")
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True

        until(answers)

    def pause(self) -> None:
        """Let it answer nothing until `go_on`."""
        assert self._process is not None
        freeze(self._process.pid)

    def go_on(self) -> None:
        """Undo `pause`."""
        assert self._process is not None
        thaw(self._process.pid)

    def kill(self) -> None:
        """End it at once."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def __exit__(self, *_: object) -> None:
        self.kill()
