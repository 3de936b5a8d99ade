"""The master's loop: binds every listening socket, forks the pools, reaps, reloads, drains.

It reads no byte from a peer and imports neither numpy nor uvloop: it forks, and a fork must not find threads or a loop.
Signal handlers only wake the loop. What to do is decided in `pool.decide`; here it is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import importlib
import importlib.util
import os
import pwd
import resource
import select
import selectors
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import Struct

from iems import config as settings
from iems.config import Config
from iems.errors import ConfigError, IemsError
from iems.log import Log
from iems.master import child, client_pairs
from iems.master.board import MAX_SLOTS, Board, State, blame_path
from iems.master.certificates import LOOK_S, Certificates, PairRefused
from iems.master.notify import notify
from iems.master.pool import SECOND, Farm, Kill, Member, Policy, Pool, Retire, Spawn, Wait, decide, died
from iems.model import id_text
from iems.net.answers import Answers
from iems.net.listen import ListenError, activated, has_ipv6, listen, probe

#: Deaths with one message in work after which it is blamed for good (and quarantined by the janitor).
BLAME_DEATHS = 3


class Role(Struct, frozen=True):
    """A role the master can run. listeners: names in the section [ports]; local: on loopback only."""

    listeners: tuple[str, ...] = ()
    local: frozenset[str] = frozenset()
    exclusive: bool = False
    last: bool = False

    @property
    def serves_tls(self) -> bool:
        """Whether its workers need the certificates: those who listen on more than loopback."""
        return not self.local.issuperset(self.listeners)


#: The roles, in the order they are started. One whose package has no worker.py is not started.
ROLES: dict[str, Role] = {
    "store": Role(exclusive=True, last=True),
    "janitor": Role(listeners=("metrics",), local=frozenset({"metrics"}), exclusive=True, last=True),
    "lmda": Role(),
    "smtpc": Role(),
    "bsmtp": Role(exclusive=True),
    "api": Role(exclusive=True),
    "preprocessor": Role(),
    "imapd": Role(listeners=("imap", "imaps")),
    "pop3d": Role(listeners=("pop3", "pop3s")),
    "sieved": Role(listeners=("sieve",)),
    "smtpd": Role(listeners=("smtp", "submission", "submissions", "lmtp", "odmr"), local=frozenset({"lmtp"})),
}


#: A role whose workers die this often before the server was ever ready makes the start fail.
MOST_FAILED_STARTS = 5


class StartError(IemsError):
    """The server can't start; the text is for the operator."""


def is_built(role: str) -> bool:
    """Whether the role's package has a worker."""
    return importlib.util.find_spec(f"iems.{role}") is not None and (
        importlib.util.find_spec(f"iems.{role}.worker") is not None
    )


def active_roles(config: Config) -> dict[str, int]:
    """Role -> workers, of the roles this configuration runs."""
    return {
        role: getattr(config, role).workers
        for role in ROLES
        if getattr(config, role).enabled and is_built(role)
    }


def listen_addresses(config: Config, local: bool) -> list[str]:
    """The addresses to bind: [ports].bind, or loopback for a non-zero base, or all; `local`: loopback only."""
    if local:
        return ["127.0.0.1", *(["::1"] if config.ports.base == 0 and has_ipv6() else [])]
    if config.ports.bind:
        return config.ports.bind
    if config.ports.base:
        return ["127.0.0.1"]
    return ["0.0.0.0", *(["::"] if has_ipv6() else [])]


def listeners(config: Config) -> Iterator[tuple[str, str, str, int]]:
    """(role, listener, address, port) of everything this configuration listens on."""
    for role in active_roles(config):
        for name in ROLES[role].listeners:
            number = getattr(config.ports, name)
            if number:
                for address in listen_addresses(config, name in ROLES[role].local):
                    yield role, name, address, config.ports.base + number


def named(passed: dict[str, list[socket.socket]], config: Config) -> dict[str, list[socket.socket]]:
    """Sockets of the service manager by listener: FileDescriptorName if it is a listener's, else the port's.

    Raises StartError for a socket that no listener of this configuration wants.
    """
    known = {name for _, name, _, _ in listeners(config)}
    ports = {port: name for _, name, _, port in listeners(config)}
    found: dict[str, list[socket.socket]] = {}
    for name, sockets in passed.items():
        for sock in sockets:
            where = sock.getsockname()
            listener = name if name in known else ports.get(where[1] if isinstance(where, tuple) else 0)
            if listener is None:
                raise StartError(f"the service manager passed {name} ({where}), which no listener wants")
            found.setdefault(listener, []).append(sock)
    return found


def policy_of(config: Config) -> Policy:
    """The times of the section [master] in ns."""
    own = config.master
    return Policy(
        ready_ns=int(own.ready_s * SECOND),
        heartbeat_limit_ns=int(own.heartbeat_limit_s * SECOND),
        respawn_min_ns=int(own.respawn_min_s * SECOND),
        respawn_max_ns=int(own.respawn_max_s * SECOND),
        drain_ns=int(own.drain_s * SECOND),
        retire_ns=int(own.retire_s * SECOND),
    )


class PidFile:
    """run/master.pid: held by flock as long as the master lives, whatever it says inside."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for _ in range(20):
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.01)  # who asks whether a master runs has the lock for a moment
        pid = os.read(self.fd, 32).decode("ascii", "replace").strip()
        os.close(self.fd)
        raise StartError(f"already running (pid {pid or '?'})")

    def write(self) -> None:
        """Notes our pid."""
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0)


def _preload() -> None:
    """Import what workers need, once: they start sooner and share its pages. Nothing of it opens a file or starts a thread."""
    os.environ.setdefault("IEMS_NATIVE", "native")
    # numpy's algebra, which nobody here uses, would start threads; a process with threads can't be forked safely
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for name in ("uvloop", "iems.spool.recovery", "iems.spool.dsn"):
        importlib.import_module(name)
    for role in ("smtpd", "preprocessor", "lmda", "store", "smtpc", "imapd", "pop3d", "sieved", "janitor"):
        importlib.import_module(f"iems.{role}.worker")


def running_pid(home: Path) -> int | None:
    """The pid of the home's master, or None if none runs."""
    try:
        fd = os.open(home / "run" / "master.pid", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.read(fd, 32).strip()
            return int(text) if text.isdigit() else -1
        return None
    finally:
        os.close(fd)


def holders(path: Path) -> list[int]:
    """Pids of the processes (of this user) that have `path` open."""
    target = str(path)
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{name}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{name}/fd/{fd}") == target:
                        found.append(int(name))
                        break
    return found


def take_run_lock(path: Path, limit_s: float = 8.0) -> int:
    """run/lock alone, then shared with the workers forked later; gives the descriptor they inherit.

    Workers of a master that was killed leave within 5 s; one that does not is killed here. So no old worker lives
    beside the new ones.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + limit_s
    ended = False
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            left = until - time.monotonic()
            if left <= 2 and not ended:
                ended = True
                for pid in holders(path.resolve()):
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL)
            if left <= 0:
                os.close(fd)
                raise StartError("workers of an earlier master are still there and can't be ended") from None
            time.sleep(0.02)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


@contextlib.contextmanager
def acting_as(user: pwd.struct_passwd) -> Iterator[None]:
    """For a while the rights of `user`: files get the right owner, and no link in the home leads root astray."""
    if os.getuid() != 0 or user.pw_uid == 0:
        yield
        return
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def drop_privileges(user: pwd.struct_passwd) -> None:
    """Becomes `user` for good, with its groups; keeps the right to bind ports below 1024 for a later reload."""
    if os.getuid() != 0 or user.pw_uid == 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
    os.initgroups(user.pw_name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    child.keep_capabilities(1 << 10)  # CAP_NET_BIND_SERVICE
    libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self stays ours after the change of user
    if not os.access(os.__file__, os.R_OK):
        raise StartError(f"user {user.pw_name} can't read Python's library ({os.path.dirname(os.__file__)})")


def home_user(home: Path, config: Config) -> pwd.struct_passwd:
    """Whom the server runs as: [master].user or the owner of the home. Raises StartError."""
    try:
        if config.master.user:
            return pwd.getpwnam(config.master.user)
        return pwd.getpwuid(home.stat().st_uid)
    except KeyError:
        raise StartError(f"no such user: {config.master.user or home.stat().st_uid}") from None


def raise_descriptor_limit() -> None:
    """As many descriptors as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if os.getuid() == 0:
        with contextlib.suppress(OSError, ValueError):
            most = int(Path("/proc/sys/fs/nr_open").read_text())
            wanted = max(hard, min(most, 1_048_576))
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def trim_blame(home: Path, limit_octets: int = 65_536) -> None:
    """Keeps the younger half of a long run/blame; what is older is about messages long gone."""
    path = blame_path(home)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    if len(data) > limit_octets:
        fresh = path.with_name(path.name + ".new")
        fresh.write_bytes(data[data.index(b"\n", len(data) // 2) + 1 :])
        os.replace(fresh, path)


class Supervisor:
    """One run of the master. `on_ready` is called once, when all ports listen and all workers have reported."""

    def __init__(
        self, home: Path, config_path: Path, config: Config, on_ready: Callable[[], None], echo: bool
    ) -> None:
        self.home = home.resolve()
        self.config_path = config_path
        self.config = config
        self.on_ready = on_ready
        self.policy = policy_of(config)
        self.farm = Farm(generation=1, pools=[])
        self.sockets: dict[tuple[str, str, int], list[socket.socket]] = {}
        self.activated: dict[str, list[socket.socket]] = {}
        self.client_pairs: dict[str, int] = {}
        self.answers: Answers | None = None
        self._answers_mb = 0
        self._turned_ns = time.monotonic_ns()
        self._awake_ns = 0
        self.is_ready = False
        self.refused = 0
        self.echo = echo
        self.selector = selectors.DefaultSelector()
        self.wanted_signals: set[int] = set()
        self.deaths: dict[bytes, int] = {}
        #: Deaths of a role's workers before the server has ever been ready; None from then on.
        self.failed_starts: dict[str, int] | None = {}
        self.hopeless = ""

    # --- start

    def prepare(self) -> None:
        """Everything that may fail for a reason the operator must read: locks, ports, the TLS pair, the user."""
        run = self.home / "run"
        user = home_user(self.home, self.config)
        with acting_as(user):
            run.mkdir(mode=0o700, exist_ok=True)
            self.pid_file = PidFile(run / "master.pid")
            self.lock_fd = take_run_lock(run / "lock")
        raise_descriptor_limit()
        self.activated = named(activated(), self.config)
        self.bind(self.config, first=True)
        self.certificates = Certificates(self.home)
        try:
            wrong = self.certificates.take(self.config.tls)
        except PairRefused as refused:
            raise StartError(str(refused)) from None
        try:
            self.client_pairs = client_pairs.read_client_pairs(self.home, self.config)
        except client_pairs.PairError as exc:
            raise StartError(str(exc)) from None
        drop_privileges(user)
        self.pid_file.write()
        (self.home / "log").mkdir(mode=0o700, exist_ok=True)
        own = self.config.log
        self.log = Log(
            self.home / "log" / "mail.log", "master", form=own.format, echo=self.echo, level=own.level
        )
        self.alarm_of_pairs(wrong)
        trim_blame(self.home)
        self.board = Board.create(run / "board")
        self.share_answers()
        header = self.board.header()
        self.last_spawn = header.last_spawn
        self.started_ns, self.started_wall_ns = header.started_ns, header.started_wall_ns
        self.write_header()
        self.eventfds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(MAX_SLOTS)]
        self.worker_eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.alive_read, self.alive_write = os.pipe2(os.O_CLOEXEC)
        self.signal_read, self.signal_write = socket.socketpair()
        self.signal_read.setblocking(False)
        self.signal_write.setblocking(False)

    def bind(self, config: Config, first: bool) -> None:
        """Opens what `config` needs and is not open yet: one socket per worker, listener and address."""
        fresh: dict[tuple[str, str, int], list[socket.socket]] = {}
        roles = active_roles(config)
        try:
            for role, name, address, port in listeners(config):
                if name in self.activated:
                    continue
                key = (name, address, port)
                have = self.sockets.get(key, [])
                if not have:
                    probe(address, port)
                fresh[key] = [
                    listen(address, port, config.ports.backlog) for _ in range(roles[role] - len(have))
                ]
        except ListenError:
            for sockets in fresh.values():
                for sock in sockets:
                    sock.close()
            raise
        for key, sockets in fresh.items():
            self.sockets.setdefault(key, []).extend(sockets)

    def close_unused(self) -> None:
        """Closes the sockets of listeners that are no longer configured."""
        wanted = {(name, address, port) for _, name, address, port in listeners(self.config)}
        for key in [key for key in self.sockets if key not in wanted]:
            for sock in self.sockets.pop(key):
                sock.close()

    def share_answers(self) -> None:
        """Maps the DNS answers that workers forked from now on share; those that run keep theirs."""
        wanted = self.config.dns.shared_mb
        if wanted != self._answers_mb:
            self._answers_mb = wanted
            self.answers = Answers(wanted << 20) if wanted else None

    def alarm_of_pairs(self, problems: list[str]) -> None:
        """Says which TLS pairs can't be used; those before them stay."""
        for text in problems:
            self.log.event("alarm", what="the old TLS pair stays in use", cause=text)
            print(f"iems: alarm: the old TLS pair stays in use: {text}", file=sys.stderr, flush=True)

    def watch_certificates(self) -> None:
        """Takes up certificates whose files have changed."""
        problems = self.certificates.look()
        if problems is not None:
            self.log.event("certificates-changed", refused=len(problems))
            self.alarm_of_pairs(problems)

    def in_child(self, work: Callable[[], str]) -> tuple[int, str]:
        """(exit code, what `work` gives: a few lines) of a child that ends with it: the master opens no environment."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.set_wakeup_fd(-1)
                os.close(self.pid_file.fd)
                os.environ.setdefault("IEMS_NATIVE", "native")
                os.write(write_end, work().encode("utf-8", "replace")[: select.PIPE_BUF])
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(write_end)
        with open(read_end, "rb") as pipe:
            said = pipe.read().decode("utf-8", "replace")
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status), said

    def short_lived(self, function: str) -> None:
        """Runs `iems.spool.recovery.FUNCTION(spool path)` in a child that exits."""
        if importlib.util.find_spec("iems.spool.recovery") is None:
            return

        def work() -> str:
            call = getattr(importlib.import_module("iems.spool.recovery"), function, None)
            if call is not None:
                call(self.config.spool_path(self.home))
            return ""

        code, _ = self.in_child(work)
        if code:
            self.log.event("spool-" + function + "-failed", code=code)
            if function == "prepare":
                raise StartError("the spool can't be prepared; see the lines above")

    def require_defaults(self, fresh: Config) -> None:
        """Raises StartError if settings tag mail and a channel that can't act on tags has no default in the directory, or none can be read."""
        tagging = settings.tagging_settings(fresh)
        if tagging:
            code, problem = self.in_child(lambda: str(importlib.import_module("iems.directory.tagging").refusal(self.home, tagging)))
            if code or problem:
                raise StartError(problem or f"{tagging[0]} tags mail, and the directory can't be asked what becomes of it; see the lines above")

    # --- the loop

    def run(self) -> int:
        """Serves until told to stop; gives the exit code. `prepare` came before."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.set_wakeup_fd(self.signal_write.fileno(), warn_on_full_buffer=False)
        self.selector.register(self.signal_read, selectors.EVENT_READ)
        self.selector.register(self.worker_eventfd, selectors.EVENT_READ)
        _preload()
        self.short_lived("prepare")
        self.log.event("started", pid=os.getpid(), home=str(self.home))
        self.apply(self.config)
        gc.collect()
        gc.freeze()  # what exists now is never touched by a child's collector: its pages stay shared
        while True:
            try:
                if self.turn():
                    break
            except Exception as exc:
                # The workers serve on without us; a master that gives up would end them all.
                traceback.print_exc()
                self.log.error("master", exc)
                self.wait(time.monotonic_ns() + SECOND)
        self.short_lived("seal")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # The interpreter puts handlers back to their default as it ends: a late signal would make a clean stop look like a death.
            signal.signal(number, signal.SIG_IGN)
        self.log.event("stopped", pid=os.getpid())
        self.log.close()
        if self.hopeless:
            raise StartError(self.hopeless)
        return 0

    def turn(self) -> bool:
        """Looks, decides, acts, sleeps; True when the last worker has left after a stop."""
        self.read_board()
        now_ns = time.monotonic_ns()
        limit_ns = self.policy.heartbeat_limit_ns
        if now_ns - self._turned_ns > LOOK_S * SECOND + limit_ns // 2:
            # The machine stood still, a virtual one while it was moved: the workers had no time either, and have theirs now.
            self._awake_ns = now_ns + limit_ns
        self._turned_ns = now_ns
        until_ns = now_ns + SECOND
        for action in decide(now_ns, self.farm, self.policy):
            if isinstance(action, Spawn):
                self.spawn(action)
            elif isinstance(action, Retire):
                self.retire(action)
            elif isinstance(action, Kill):
                if now_ns >= self._awake_ns:
                    self.kill(action)
            elif isinstance(action, Wait):
                until_ns = action.until_ns
        if self.farm.stop_ns and not any(pool.members for pool in self.farm.pools):
            return True
        self.report_ready()
        self.watch_certificates()
        self.wait(until_ns)
        return False

    def wait(self, until_ns: int) -> None:
        """Sleeps until something happens; then acts on signals and deaths."""
        left_s = max(0.0, (until_ns - time.monotonic_ns()) / SECOND)
        for key, _ in self.selector.select(min(left_s, LOOK_S)):
            if key.fileobj is self.signal_read:
                with contextlib.suppress(BlockingIOError):
                    while self.signal_read.recv(512):
                        pass
            else:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self.worker_eventfd)
        wanted, self.wanted_signals = self.wanted_signals, set()
        if wanted & {signal.SIGTERM, signal.SIGINT}:
            self.stop()
        elif signal.SIGHUP in wanted:
            self.reload()
        if signal.SIGUSR1 in wanted:
            self.wake_all()  # an administrator's command changed the queue
        self.reap()
        if self.log.rotate(self.config.log.rotate_octets, self.config.log.keep):
            self.log.event("log-rotated")

    def _on_signal(self, number: int, frame: object) -> None:
        self.wanted_signals.add(number)

    def write_header(self) -> None:
        """The header as things stand."""
        self.board.set_header(
            os.getpid(),
            self.last_spawn,
            self.farm.generation,
            self.started_ns,
            self.refused,
            self.started_wall_ns,
            int(self.is_ready),
        )

    def read_board(self) -> None:
        """Takes the workers' own words (state, heartbeat, job) from the board."""
        for pool in self.farm.pools:
            for member in pool.members:
                row = self.board.row(member.slot)
                if row is None or row.generation == 0:
                    continue
                member.state = row.state
                member.heartbeat_ns = row.heartbeat_ns
                member.job_deadline_ns = row.job_deadline_ns
                member.writing = row.writing
                member.jobs = row.jobs

    def report_ready(self) -> None:
        """Says so once, when every worker of every pool is ready."""
        if self.is_ready or self.farm.stop_ns:
            return
        for pool in self.farm.pools:
            if sum(member.state is State.READY for member in pool.members) < pool.workers:
                return
        self.is_ready = True
        self.failed_starts = None
        self.write_header()
        self.log.event("ready", roles={pool.role: pool.workers for pool in self.farm.pools})
        notify("READY=1\nSTATUS=serving")
        self.on_ready()

    # --- actions

    def apply(self, config: Config) -> None:
        """Makes `config` the settings in force; `decide` then starts the new workers and retires the old."""
        self.config = config
        self.policy = policy_of(config)
        pools = {pool.role: pool for pool in self.farm.pools}
        wanted = active_roles(config)
        for role in ROLES:
            if role in pools:
                pools[role].workers = wanted.get(role, 0)
                pools[role].failures.clear()
                pools[role].retry_ns.clear()
            elif role in wanted:
                spec = ROLES[role]
                pools[role] = Pool(role, wanted[role], exclusive=spec.exclusive, last=spec.last)
            if role in pools:
                self.board.set_workers(role, wanted.get(role, 0))
        self.farm.pools = [pools[role] for role in ROLES if role in pools]

    def sockets_for(self, role: str, index: int, workers: int) -> dict[str, list[socket.socket]]:
        """Listener -> the sockets of worker `index`; sockets beyond the number of workers are shared out among them."""
        found: dict[str, list[socket.socket]] = {}
        for name in ROLES[role].listeners:
            found[name] = list(self.activated.get(name, ()))
            for (listener, _, _), sockets in self.sockets.items():
                if listener == name:
                    found[name].extend(sockets[index::workers])
        return {name: sockets for name, sockets in found.items() if sockets}

    def spawn(self, action: Spawn) -> None:
        """Forks one worker."""
        pool = next(pool for pool in self.farm.pools if pool.role == action.role)
        taken = {member.slot for each in self.farm.pools for member in each.members}
        slot = next((number for number in range(MAX_SLOTS) if number not in taken), None)
        now = time.monotonic_ns()
        if slot is None:
            pool.retry_ns[action.index] = now + SECOND
            self.log.event("spawn-failed", what="all slots are taken", worker=action.role)
            return
        self.last_spawn += 1
        self.write_header()
        self.board.begin(slot, os.getpid(), action.role, action.index, self.last_spawn, self.farm.generation)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.eventfds[slot])
        self.log.flush()
        sys.stdout.flush()
        sys.stderr.flush()
        inherited = child.Inherited(
            role=action.role,
            slot=slot,
            index=action.index,
            generation=self.last_spawn,
            config=self.config,
            home=self.home,
            sockets=self.sockets_for(action.role, action.index, pool.workers),
            log=self.log,
            board=self.board,
            eventfds=self.eventfds,
            master_eventfd=self.worker_eventfd,
            master_pid=os.getpid(),
            alive_fd=self.alive_read,
            tls_fd=self.certificates.fd if ROLES[action.role].serves_tls else -1,
            client_tls=self.client_pairs if action.role == "smtpc" else {},
            answers=self.answers,
            close_fds=[],
        )
        # Until the child has handlers of its own, a signal for it must wait: the master's would swallow it.
        signal.pthread_sigmask(signal.SIG_BLOCK, child.SIGNALS)
        try:
            pid = os.fork()
        except OSError as exc:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, child.SIGNALS)
            self.board.clear(slot)
            pool.retry_ns[action.index] = now + 5 * SECOND
            self.log.event("spawn-failed", what=os.strerror(exc.errno or 0), worker=action.role)
            return
        if pid == 0:
            self._in_child(inherited)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, child.SIGNALS)
        struct.pack_into("<I", self.board.map, Board.row_at(slot), pid)
        pool.members.append(
            Member(
                role=action.role,
                index=action.index,
                slot=slot,
                pid=pid,
                generation=self.farm.generation,
                state=State.STARTING,
                started_ns=now,
                heartbeat_ns=now,
            )
        )

    def _in_child(self, inherited: child.Inherited) -> None:
        """The forked process: never returns."""
        code = 1
        try:
            own = {sock.fileno() for sockets in inherited.sockets.values() for sock in sockets}
            inherited.close_fds = [
                self.pid_file.fd,
                self.alive_write,
                self.signal_read.detach(),
                self.signal_write.detach(),
                *(fd for name, fd in self.client_pairs.items() if name not in inherited.client_tls),
            ]
            # Descriptors are dear to a worker with 10,000 sessions: those of other workers are closed.
            for sockets in [*self.sockets.values(), *self.activated.values()]:
                for sock in sockets:
                    if sock.fileno() not in own:
                        sock.close()
            if inherited.tls_fd < 0:
                os.close(self.certificates.fd)
            self.selector.close()
            struct.pack_into("<I", self.board.map, Board.row_at(inherited.slot), os.getpid())
            code = child.main(inherited)
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def retire(self, action: Retire) -> None:
        """Asks a worker to leave."""
        action.member.deadline_ns = action.deadline_ns
        with contextlib.suppress(ProcessLookupError):
            os.kill(action.member.pid, signal.SIGUSR1 if action.gentle else signal.SIGTERM)

    def kill(self, action: Kill) -> None:
        """Ends a worker and says why."""
        member = action.member
        member.killed = True
        if action.grace:
            self.farm.grace_ns = time.monotonic_ns() + self.policy.heartbeat_limit_ns
        self.log.event(
            "worker-killed", worker=member.role, index=member.index, worker_pid=member.pid, why=action.why
        )
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.pid, signal.SIGKILL)

    def reap(self) -> None:
        """Buries the dead; replaces of them come from `decide`."""
        any_died = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            for pool in self.farm.pools:
                for member in [member for member in pool.members if member.pid == pid]:
                    any_died |= self.bury(pool, member, os.waitstatus_to_exitcode(status))
        if any_died:
            self.wake_all()

    def wake_all(self) -> None:
        """Lets every worker look for work: after a death (its leases go back to the queue), the janitor first."""
        for pool in sorted(self.farm.pools, key=lambda pool: pool.role != "janitor"):
            for member in pool.members:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_write(self.eventfds[member.slot], 1)

    def bury(self, pool: Pool, member: Member, code: int) -> bool:
        """Takes a dead worker off the board; True if its death was not asked for."""
        row = self.board.row(member.slot)
        if row is not None:
            member.jobs = row.jobs + self.board.worked(member.slot)
            member.state = row.state
        # A worker asked to leave before it had set its handlers dies of the asking.
        left = code in (0, -signal.SIGTERM, -signal.SIGUSR1)
        expected = left and bool(member.deadline_ns or self.farm.stop_ns)
        if not expected:
            message = row.message_id if row is not None else bytes(16)
            if message != bytes(16):
                self.blame(message, member)
            self.board.add_restart(member.role)
            self.log.event(
                "worker-died",
                worker=member.role,
                index=member.index,
                worker_pid=member.pid,
                code=code,
                message=id_text(message) if message != bytes(16) else "",
            )
            self.count_failed_start(member)
        self.board.clear(member.slot)
        died(pool, member, time.monotonic_ns(), self.policy, expected)
        return not expected

    def count_failed_start(self, member: Member) -> None:
        """Gives up a start that can't succeed, so that whoever waits for it hears why."""
        if self.failed_starts is None or self.hopeless or member.state is State.READY:
            return
        self.failed_starts[member.role] = self.failed_starts.get(member.role, 0) + 1
        if self.failed_starts[member.role] >= MOST_FAILED_STARTS:
            self.hopeless = (
                f"{member.role} does not start ({MOST_FAILED_STARTS} times in a row); "
                f"{self.home}/log/mail.log says why"
            )
            self.log.event("start-failed", worker=member.role)
            self.stop()

    def blame(self, message: bytes, member: Member) -> None:
        """Notes that a worker died with this message in work."""
        self.deaths[message] = self.deaths.get(message, 0) + 1
        line = f"{message.hex()} {member.role} {time.time_ns()}\n".encode()
        with contextlib.suppress(OSError):
            fd = os.open(blame_path(self.home), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, line)
            finally:
                os.close(fd)
        self.log.event("blamed", message, worker=member.role, deaths=self.deaths[message])

    # --- operator

    def stop(self) -> None:
        """Begins to drain; asked again a second or more later: ends everything now."""
        now = time.monotonic_ns()
        if self.farm.stop_ns:
            if now - self.farm.stop_ns > SECOND:
                for pool in self.farm.pools:
                    for member in pool.members:
                        self.kill(Kill(member, "asked to stop a second time"))
            return
        self.farm.stop_ns = now
        self.is_ready = False
        self.write_header()
        self.log.event("stopping", drain_s=self.config.master.drain_s)
        notify("STOPPING=1")

    def reload(self) -> None:
        """Takes the file up anew; if anything about it is wrong, the old settings stay in force."""
        if self.farm.stop_ns:
            return
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            fresh = settings.load(self.config_path)
            fixed = [
                key
                for key in ("spool.path", "store.path", "store.partitions")
                if _at(fresh, key) != _at(self.config, key)
            ]
            if fixed:
                raise StartError(", ".join(fixed) + " can't change while the server runs")
            self.require_defaults(fresh)
            self.bind(fresh, first=False)
        except (ConfigError, StartError, ListenError) as exc:
            self.refused += 1
            self.log.event("reload-refused", problems=str(exc).splitlines())
            print(f"iems: reload refused, the old settings stay:\n{exc}", file=sys.stderr, flush=True)
            self.write_header()
            notify("READY=1\nSTATUS=reload refused, old settings in force")
            return
        self.alarm_of_pairs(self.certificates.take(fresh.tls))
        try:
            pairs = client_pairs.read_client_pairs(self.home, fresh)
            client_pairs.close(self.client_pairs)
            self.client_pairs = pairs
        except client_pairs.PairError as exc:
            self.log.event("alarm", what="the old client certificates stay in use", cause=str(exc))
            print(f"iems: alarm: the old client certificates stay in use: {exc}", file=sys.stderr, flush=True)
        self.farm.generation += 1
        self.log.form = fresh.log.format
        self.log.set_level(fresh.log.level)
        self.apply(fresh)
        self.share_answers()
        self.close_unused()
        self.write_header()
        self.log.event("reloaded", generation=self.farm.generation)
        notify("READY=1\nSTATUS=serving")


def _at(config: Config, key: str) -> object:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)
