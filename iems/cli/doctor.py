"""iemsctl doctor: what stands in the way of this server, each finding with its mend.

Every check looks and changes nothing. Checks take what they look at as arguments where that makes them testable.
"""

from __future__ import annotations

import os
import resource
import shutil
import smtplib
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from msgspec import Struct

from iems.cli import relaytest
from iems.cli.common import Home, json_option, pass_home_unchanged, say, say_json
from iems.config import Config, host_port
from iems.errors import ConfigError
from iems.log import printable
from iems.master.supervisor import active_roles, listeners, raise_descriptor_limit, running_pid
from iems.net.certificates import normal_name
from iems.smtpd.policy import Policy

LEVELS = ("ok", "note", "warning", "problem")


class Finding(Struct, frozen=True):
    """What a check found. level: ok, note, warning or problem. mend: what to do; '' if nothing."""

    check: str
    level: str
    finding: str
    mend: str = ""


Check = Callable[[Home, Config], Iterator[Finding]]


def descriptors(home: Home, config: Config) -> Iterator[Finding]:
    """Descriptors a worker can have against what sessions need."""
    raise_descriptor_limit()  # as the master does: what it gets, workers get
    yield from judge_descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def judge_descriptors(hard: int) -> Iterator[Finding]:
    """`hard`: the limit a worker would run with."""
    if hard == resource.RLIM_INFINITY or hard >= 65_536:
        yield Finding("descriptors", "ok", f"{hard} descriptors a worker")
    elif hard >= 4096:
        yield Finding(
            "descriptors",
            "note",
            f"{hard} descriptors a worker: about {max(hard - 600, 0)} sessions each",
            "raise it: LimitNOFILE=1048576 in the unit, or `ulimit -Hn 1048576` before the start",
        )
    else:
        yield Finding(
            "descriptors",
            "problem",
            f"only {hard} descriptors a worker",
            "raise it: LimitNOFILE=1048576 in the unit, or `ulimit -Hn 1048576` before the start",
        )


def kernel_limits(home: Home, config: Config) -> Iterator[Finding]:
    """Settings of the kernel that bound the server."""

    def read(path: str) -> int | None:
        try:
            return int(Path("/proc/sys", path).read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return None

    somaxconn = read("net/core/somaxconn")
    if somaxconn is not None and somaxconn < config.ports.backlog:
        yield Finding(
            "kernel",
            "warning",
            f"net.core.somaxconn is {somaxconn}, below ports.backlog {config.ports.backlog}: bursts are refused",
            f"sysctl -w net.core.somaxconn={config.ports.backlog}",
        )
    maps = read("vm/max_map_count")
    if maps is not None and maps < 65_530:
        yield Finding("kernel", "warning", f"vm.max_map_count is {maps}", "sysctl -w vm.max_map_count=65530")
    files = read("fs/file-max")
    if files is not None and files < 100_000:
        yield Finding("kernel", "warning", f"fs.file-max is {files}", "sysctl -w fs.file-max=1000000")
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space not in (resource.RLIM_INFINITY, -1) and address_space < 3 * config.spool.map_octets:
        yield Finding(
            "kernel",
            "problem",
            f"address space is limited to {address_space} octets; the LMDB maps need more",
            "ulimit -v unlimited, or lower spool.map_octets",
        )
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            file.read(1)
    except OSError:
        yield Finding(
            "kernel",
            "warning",
            "no /proc/sys/kernel/random/boot_id: each start rebuilds the queue index",
            "mount /proc",
        )
    yield Finding("kernel", "ok", f"Linux {os.uname().release}")


def ports(home: Home, config: Config) -> Iterator[Finding]:
    """Whether the ports are ours or free."""
    running = running_pid(home.path) is not None
    taken = 0
    wanted = 0
    for _, name, address, port in listeners(config):
        wanted += 1
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind((address, port))
                sock.listen(1)
                free = True
            except PermissionError:
                free = True
                if not running:
                    yield Finding(
                        "ports",
                        "problem",
                        f"{name}: port {port} needs root",
                        "start as root (the server becomes the home's user), or use the systemd socket units",
                    )
            except OSError as exc:
                free = False
                if not running:
                    yield Finding(
                        "ports",
                        "problem",
                        f"{name}: {address}:{port}: {exc.strerror}{listening_process(port)}",
                        "stop that process, or set another ports.base",
                    )
        taken += not free
        if running and free:
            yield Finding(
                "ports",
                "problem",
                f"{name}: the server runs and nobody listens on {address}:{port}",
                "iemsctl reload, then look into log/mail.log",
            )
    if running:
        yield Finding("ports", "ok", f"the server listens on {taken} of {wanted}")
    elif not taken:
        yield Finding("ports", "ok", f"all {wanted} are free")


def listening_process(port: int) -> str:
    """` (NAME, pid N)` of who listens on the port, as far as we may see."""
    import psutil

    try:
        for found in psutil.net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and found.laddr and found.laddr.port == port and found.pid:
                return f" ({psutil.Process(found.pid).name()}, pid {found.pid})"
    except (psutil.Error, OSError):
        pass
    return ""


def disk(home: Home, config: Config) -> Iterator[Finding]:
    """Room, inodes, and whether the file system fits."""
    for what, path in (("spool", config.spool_path(home.path)), ("store", config.store_path(home.path))):
        if not path.exists():
            yield Finding("disk", "problem", f"{path} is missing", f"mkdir -m 0700 {path}")
            continue
        usage = shutil.disk_usage(path)
        inodes = os.statvfs(path)
        free_inodes = inodes.f_favail / inodes.f_files if inodes.f_files else 1.0
        yield from judge_disk(what, usage.free, usage.total, free_inodes)
        if inodes.f_flag & os.ST_RDONLY:
            yield Finding(
                "disk", "problem", f"{what}: the file system is mounted read-only", f"remount it: {path}"
            )
        kind = file_system(path)
        if kind in ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p"):
            yield Finding(
                "disk",
                "problem",
                f"{what}: {kind} can't hold LMDB safely",
                f"put {what} on a local file system ({what}.path)",
            )
        elif kind == "tmpfs":
            yield Finding(
                "disk", "warning", f"{what} is on tmpfs: mail is gone after a reboot", f"set {what}.path"
            )
    spool, store = config.spool_path(home.path), config.store_path(home.path)
    if spool.exists() and store.exists() and spool.stat().st_dev != store.stat().st_dev:
        yield Finding(
            "disk",
            "note",
            "spool and store are on different volumes: each delivery copies its content instead of linking it",
            "put both on one volume if deliveries are the bottleneck",
        )


def judge_disk(what: str, free: int, total: int, free_inodes: float) -> Iterator[Finding]:
    """`free`, `total` in octets; `free_inodes` as a fraction."""
    share = free / total if total else 0
    if free < 256 << 20:
        level, mend = "problem", "make room: mail is refused (452) or waits when the volume is full"
    elif share < 0.05:
        level, mend = "warning", "make room, or move it to a larger volume"
    else:
        level, mend = "ok", ""
    yield Finding("disk", level, f"{what}: {free / 1e9:.1f} GB free ({share:.0%})", mend)
    if free_inodes < 0.05:
        yield Finding(
            "disk", "problem", f"{what}: {free_inodes:.0%} of the inodes are free", "remove small files"
        )


def file_system(path: Path) -> str:
    """The type of the file system `path` is on, or ''."""
    best, kind = "", ""
    try:
        for line in Path("/proc/self/mounts").read_text().splitlines():
            fields = line.split()
            point = fields[1].encode().decode("unicode_escape")
            if (str(path) + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best):
                best, kind = point, fields[2]
    except (OSError, IndexError):
        pass
    return kind


def clock(home: Home, config: Config) -> Iterator[Finding]:
    """Whether the clock is plausible and kept."""
    now = time.time()
    yield from judge_clock(now, newest_file(home.path), synchronised())


def judge_clock(now_s: float, newest_s: float, synced: bool | None) -> Iterator[Finding]:
    """`newest_s`: the latest change of a file of the home. synced: what the kernel says, None if it doesn't."""
    if now_s < 1_735_689_600:
        yield Finding("clock", "problem", "the clock stands before 2025", "set it: timedatectl set-ntp true")
    elif newest_s > now_s + 60:
        yield Finding(
            "clock",
            "problem",
            f"files of the home are {newest_s - now_s:.0f} s in the future: the clock went back",
            "set it: timedatectl set-ntp true",
        )
    elif synced is False:
        yield Finding(
            "clock",
            "note",
            "the kernel's clock is not synchronised: Received and Date lines drift",
            "run chrony or systemd-timesyncd",
        )
    else:
        yield Finding("clock", "ok", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s)))


def newest_file(home: Path) -> float:
    """The latest change under run/ and log/."""
    times = [0.0]
    for folder in (home / "run", home / "log"):
        if folder.is_dir():
            times.extend(entry.stat().st_mtime for entry in os.scandir(folder) if entry.is_file())
    return max(times)


def synchronised() -> bool | None:
    """Whether adjtimex says the clock is synchronised; None if it can't be asked."""
    import ctypes

    buffer = ctypes.create_string_buffer(256)
    try:
        state = ctypes.CDLL(None).adjtimex(buffer)
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != 5  # TIME_ERROR


def dns(home: Home, config: Config) -> Iterator[Finding]:
    """Whether a server answers, if relaying needs DNS."""
    if "smtpc" not in active_roles(config) or config.smtpc.resolution in ("hosts", "relay"):
        yield Finding("dns", "ok", "not needed: smtpc does not use it")
        return
    servers = [host_port(text, 53) for text in config.dns.servers] or [
        (address, 53) for address in resolv_conf(Path("/etc/resolv.conf"))
    ]
    if not servers:
        yield Finding("dns", "problem", "no DNS server is known", "set dns.servers, or mend /etc/resolv.conf")
    for address, port in servers:
        took = ask(address, port, 2.0)
        shown = f"{address}:{port}"
        if took is None:
            yield Finding(
                "dns",
                "warning",
                f"{shown} does not answer: mail to other hosts waits",
                "set dns.servers to a server that does, or use smtpc.resolution = relay",
            )
        elif took > 0.5:
            yield Finding("dns", "warning", f"{shown} took {took:.1f} s", "use a nearer server: dns.servers")
        else:
            yield Finding("dns", "ok", f"{shown} answers in {took * 1000:.0f} ms")


def resolv_conf(path: Path) -> list[str]:
    """Server addresses of a resolv.conf."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return []
    return [
        words[1] for words in (line.split() for line in lines) if len(words) > 1 and words[0] == "nameserver"
    ]


def ask(address: str, port: int, limit_s: float) -> float | None:
    """Seconds a DNS server takes to answer a question for the root's servers, or None."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    query = struct.pack(">6H", 0x4945, 0x0100, 1, 0, 0, 0) + b"\x00" + struct.pack(">2H", 2, 1)
    started = time.monotonic()
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(limit_s)
            sock.connect((address, port))
            sock.send(query)
            if sock.recv(2048)[:2] == query[:2]:
                return time.monotonic() - started
    except OSError:
        pass
    return None


def permissions(home: Home, config: Config) -> Iterator[Finding]:
    """Owner and mode of what the home holds."""
    owner = home.path.stat().st_uid
    bad = 0
    for path in [
        home.path,
        *(home.path / name for name in ("conf", "spool", "store", "directory", "log", "run")),
    ]:
        try:
            status = path.stat()
        except OSError:
            yield Finding("permissions", "problem", f"{path} is missing", f"mkdir -m 0700 {path}")
            bad += 1
            continue
        if stat.S_IMODE(status.st_mode) & 0o077:
            bad += 1
            yield Finding("permissions", "warning", f"{path} is open to others", f"chmod 0700 {path}")
        if status.st_uid != owner:
            bad += 1
            yield Finding(
                "permissions",
                "problem",
                f"{path} belongs to uid {status.st_uid}, the home to uid {owner}",
                f"chown -R {owner} {path}",
            )
    key = home.path / config.tls.key
    if key.exists() and stat.S_IMODE(key.stat().st_mode) & 0o077:
        bad += 1
        yield Finding("permissions", "problem", f"{key} can be read by others", f"chmod 0600 {key}")
    if owner == 0:
        yield Finding(
            "permissions",
            "note",
            "the home belongs to root, so the server runs as root",
            "useradd --system iems; chown -R iems HOME",
        )
    if not bad:
        yield Finding("permissions", "ok", "owner and modes are right")


def certificate(home: Home, config: Config) -> Iterator[Finding]:
    """How long the certificates are good, and for which names: the server's own, and those of further domains."""
    yield from _one_certificate(home.path / config.tls.certificate, config.hostname, "", "conf/tls")
    if not config.tls.domains:
        return
    for path in sorted((home.path / config.tls.domains).glob("*/cert.pem")):
        domain = normal_name(path.parent.name)
        for finding in _one_certificate(path, domain, f"{domain}: ", str(path.parent)):
            if finding.level != "ok":
                yield finding


def _one_certificate(path: Path, host: str, whose: str, folder: str) -> Iterator[Finding]:
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as exc:
        yield Finding("certificate", "problem", f"{path}: {exc}", "put a certificate there")
        return
    left_days = (found.not_valid_after_utc.timestamp() - time.time()) / 86400
    names: list[str] = []
    try:
        names = found.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        ).value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        pass
    mend = f"get a new one, put it in {folder}"
    # The pair of a domain may be for names in it alone.
    fits = any(
        name in (host, f"*.{host.partition('.')[2]}") or (whose and name.endswith("." + host))
        for name in names
    )
    if left_days < 0:
        yield Finding("certificate", "problem", f"{whose}expired {-left_days:.0f} days ago", mend)
    elif left_days < 14:
        yield Finding("certificate", "warning", f"{whose}expires in {left_days:.0f} days", mend)
    elif not fits:
        yield Finding("certificate", "warning", f"{whose}not for {host} but for {', '.join(names)}", mend)
    elif found.issuer == found.subject:
        yield Finding(
            "certificate",
            "note",
            f"{whose}self-signed: mail programs will ask",
            f"put one of a public authority in {folder}",
        )
    else:
        yield Finding("certificate", "ok", f"{whose}good for {left_days:.0f} more days")


def natives(home: Home, config: Config) -> Iterator[Finding]:
    """Whether the compiled kernels are there."""
    import importlib
    import importlib.util

    import iems._native as native

    folder = Path(next(iter(native.__path__)))
    missing = []
    for twin in sorted(folder.glob("*_py.py")):
        name = twin.name.removesuffix("_py.py")
        try:
            importlib.import_module(f"iems._native.{name}")
        except ImportError as exc:
            missing.append(f"{name} ({exc})")
    if missing:
        yield Finding(
            "natives",
            "problem",
            "compiled parts are missing: " + ", ".join(missing),
            "install a C compiler and Python's headers, then pip install again",
        )
    else:
        yield Finding("natives", "ok", "compiled parts load")


def open_relay(home: Home, config: Config) -> Iterator[Finding]:
    """Whether the running server takes mail from strangers for strangers."""
    mend = "name only networks of yours in smtpd.trusted_networks, then iemsctl reload"
    for network in relaytest.wide(config.smtpd.trusted_networks):
        yield Finding("relay", "problem", f"smtpd.trusted_networks has {network}: strangers may relay", mend)
    if running_pid(home.path) is None:
        yield Finding("relay", "note", "not tried: the server does not run")
        return
    policy = Policy(config)
    tried = 0
    for _, name, address, port in listeners(config):
        if name not in ("smtp", "submission") or port == 0:
            continue
        ip = relaytest.outside_address(address)
        if policy.peer(ip).trusted:
            yield Finding("relay", "note", f"{name}: not tried as a stranger, {ip} may relay (smtpd.trusted_networks)")
            continue
        tried += 1
        try:
            taken = relaytest.accepted(ip, port, relaytest.attempts(config.domain or config.hostname, config.hostname, ip))
        except (OSError, smtplib.SMTPException) as error:
            yield Finding("relay", "warning", f"{name}: could not be tried at {ip}:{port}: {error}")
            continue
        for what, recipient in taken:
            if recipient.endswith(f"@{config.domain}"):
                # Ours to pass on; whether that opens a way is up to the host behind.
                yield Finding(
                    "relay",
                    "warning",
                    f"{name}: {what} is passed on: {recipient}",
                    "let `iemsctl channel default LOCAL` be LOCAL, or see that the host behind refuses such addresses",
                )
            else:
                yield Finding("relay", "problem", f"{name}: an open relay by {what}: {recipient}", mend)
    if tried:
        yield Finding("relay", "ok", f"{len(relaytest.attempts('', '', ''))} ways to relay tried on {tried} port(s)")


def door(home: Home, config: Config) -> Iterator[Finding]:
    """Whether mail is put off now, and whose is put on hold."""
    from iems.master.board import Board
    from iems.smtpd.outbound import Held

    if running_pid(home.path) is not None:
        board = Board.open(home.path / "run" / "board")
        for level in ("queue", "disk", "memory"):
            if board.total("smtpd", f"flow_{level}_now"):
                yield Finding(
                    "door",
                    "problem",
                    f"mail is put off: {level} is above smtpd.flow_{level}_high",
                    "see what waits: iemsctl queue destinations" if level == "queue" else "make room",
                )
    for sender, (why, since) in sorted(Held(config.spool_path(home.path) / "senders" / "held").read().items()):
        day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(since))
        yield Finding(
            "door",
            "warning",
            f"mail of {sender} is on hold since {day}: {why}",
            f"look at it and at the account, then iemsctl sender clear {sender}",
        )


def on_demand(home: Home, config: Config) -> Iterator[Finding]:
    """Whether mail for domains that sites fetch by ATRN is taken from anyone, and kept for them."""
    from iems.directory import Directory
    from iems.model import Channel

    accounts = {domain.lower(): entry.account for entry in config.smtpd.odmr for domain in entry.domains}
    if not accounts:
        return
    if not config.ports.odmr:
        yield Finding("odmr", "warning", "smtpd.odmr names sites, but nobody can fetch: ports.odmr is 0", "set ports.odmr = 366")
    kept = 0
    directory = Directory(home.path / "directory")
    try:
        for domain, account in sorted(accounts.items()):
            mend = f"iemsctl forward set {domain} SMTPC"
            found = directory.resolve(f"no-such-box@{domain}".encode())
            if found.local:
                yield Finding(
                    "odmr", "warning", f"{domain} is a domain of this server's own: its mail is delivered here, {account} gets none", f"if it is not: {mend}"
                )
            elif not found.ours:
                yield Finding("odmr", "warning", f"{domain} is not in the forwarding table: mail that {account} should fetch is refused (550 5.7.1)", mend)
            elif any(target.channel != Channel.SMTPC or target.identifier for target in found.targets):
                ways = ", ".join(f"{Channel(target.channel).name} {target.identifier}".rstrip() for target in found.targets)
                yield Finding("odmr", "warning", f"{domain} is forwarded to {ways}: {account} gets none of its mail", mend)
            else:
                kept += 1
    finally:
        directory.close()
    yield Finding("odmr", "ok", f"mail for {kept} of {len(accounts)} domains is kept until their sites fetch it")


CHECKS: list[Check] = [
    descriptors,
    kernel_limits,
    ports,
    disk,
    clock,
    dns,
    permissions,
    certificate,
    natives,
    open_relay,
    door,
    on_demand,
]


def examine(home: Home) -> Iterator[Finding]:
    """All findings of a home. A check that fails itself is a finding too."""
    try:
        config = home.config()
    except ConfigError as exc:
        for line in exc.problems:
            yield Finding("config", "problem", line, "mend the file; iemsctl config check")
        config = Config()
    else:
        yield Finding("config", "ok", str(home.config_path))
    for check in CHECKS:
        try:
            yield from check(home, config)
        except Exception as exc:
            yield Finding(check.__name__, "warning", f"could not be checked: {type(exc).__name__}: {exc}")


@click.command()
@json_option
@pass_home_unchanged
def doctor(home: Home, as_json: bool) -> None:
    """Look for what stands in the server's way; each finding with its mend. Exit code 1 if there is a problem."""
    worst = 0
    for finding in examine(home):
        worst = max(worst, LEVELS.index(finding.level))
        if as_json:
            say_json(finding)
            continue
        say(f"{finding.level:8} {finding.check}: {printable(finding.finding)}")
        if finding.mend:
            say(f"{'':8} -> {printable(finding.mend)}")
    if worst == LEVELS.index("problem"):
        raise SystemExit(1)
