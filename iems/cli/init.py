"""iemsctl init: a new home with folders, settings, certificate and directory."""

from __future__ import annotations

import datetime
import os
import pwd
import shutil
from pathlib import Path

import click

from iems import config as settings
from iems.cli.common import Failed, become, note, readable_for, say

FOLDERS = (
    "conf",
    "conf/tls",
    "spool",
    "spool/segments",
    "spool/large",
    "store",
    "store/home",
    "directory",
    "log",
    "run",
)
SYSTEM_USER = "iems"


def self_signed(hostname: str, names: list[str]) -> tuple[bytes, bytes]:
    """(certificate, key) in PEM for `hostname` and further names, good for ten years, P-256."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    # A common name holds 64 characters at most; the names that count are the alternative ones.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname[:64])])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=3650))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def write(path: Path, content: bytes, mode: int = 0o600) -> None:
    """A new file, on disk when this returns."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def owner_for(user: str, base: int) -> pwd.struct_passwd:
    """Whom the home shall belong to: `--user`, the system user `iems` for port-base 0, else the caller."""
    own = pwd.getpwuid(os.getuid())
    if user:
        try:
            wanted = pwd.getpwnam(user)
        except KeyError:
            raise Failed(f"no such user: {user}") from None
        if os.getuid() not in (0, wanted.pw_uid):
            raise Failed(f"only root can make a home for {user}")
        return wanted
    if os.getuid() != 0:
        return own
    if base == 0:
        try:
            return pwd.getpwnam(SYSTEM_USER)
        except KeyError:
            raise Failed(
                f"there is no system user `{SYSTEM_USER}`: make it (useradd --system {SYSTEM_USER}) or name another with --user"
            ) from None
    note("warning: the server of this home will run as root; name another user with --user")
    return own


@click.command()
@click.argument("home", type=click.Path(path_type=Path))
@click.option("--domain", required=True, help="The first local domain.")
@click.option("--hostname", default="", help="Full name of this host; by default mail.DOMAIN.")
@click.option(
    "--port-base", default=0, type=click.IntRange(0, 55000), help="Added to every port; 0 is production."
)
@click.option(
    "--user", default="", help="User the server runs as (as root; by default `iems` with port-base 0)."
)
def init(home: Path, domain: str, hostname: str, port_base: int, user: str) -> None:
    """Make a new home: folders, settings, a self-signed certificate, the directory. HOME must be missing or empty."""
    domain = domain.strip().rstrip(".").lower()
    try:
        domain = domain.encode("idna").decode() if not domain.isascii() else domain
        settings._host_name(domain)
        if not domain or domain.startswith("-"):
            raise ValueError(f"{domain!r} is no domain")
        hostname = (hostname or f"mail.{domain}").lower()
        settings._host_name(hostname)
    except (ValueError, UnicodeError) as exc:
        raise click.BadParameter(str(exc), param_hint="--domain") from None
    home = home.absolute()
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise Failed(f"{home} exists and is not empty; nothing was changed")
    owner = owner_for(user, port_base)
    if owner.pw_uid != os.getuid() and not readable_for(owner.pw_uid, owner.pw_gid):
        become(owner.pw_uid, owner.pw_gid)  # says why it can't, before anything is made
    made = not home.exists()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.chmod(0o700)
    if owner.pw_uid != os.getuid():
        os.chown(home, owner.pw_uid, owner.pw_gid)
        become(owner.pw_uid, owner.pw_gid)
    try:
        _fill(home, domain, hostname, port_base)
    except BaseException:
        # A half-made home would refuse the next try.
        for entry in home.iterdir():
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink()
        if made:
            try:
                home.rmdir()
            except OSError:
                pass
        raise
    say(str(home))


def _fill(home: Path, domain: str, hostname: str, base: int) -> None:
    os.umask(0o077)
    for folder in FOLDERS:
        (home / folder).mkdir(mode=0o700)
    certificate, key = self_signed(hostname, sorted({hostname, domain, "localhost"}))
    write(home / "conf/tls/cert.pem", certificate, 0o644)
    write(home / "conf/tls/key.pem", key)
    text = settings.sample({"hostname": hostname, "domain": domain, "ports.base": base})
    settings.parse(text.encode(), "conf/iems.toml")
    from iems.directory.directory import Directory

    directory = Directory(home / "directory", create=True)
    try:
        directory.add_domain(domain)
    finally:
        directory.close()
    # Last: its presence makes the folder a home.
    write(home / "conf/iems.toml", text.encode())
