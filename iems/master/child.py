"""The worker side of the master: the process a role runs in.

A worker opens its files after the fork, runs one uvloop, writes its heartbeat from that loop and obeys the master:

- SIGTERM: `drain(master.drain_s)`, exit.
- SIGUSR1 (after a reload, once the new generation is ready): stop accepting and let open sessions end. A worker that has
  `async def retire(self) -> None` (stop accepting or taking; return when nothing is open) gets that call and up to
  `master.retire_s`, then `drain(master.drain_s)`; one without it is drained at once.
- its master gone (PR_SET_PDEATHSIG, and the end of a pipe): finish what is in work, be gone within 5 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import importlib
import os
import signal
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct

from iems.config import Config
from iems.log import Log
from iems.master.board import COUNTER_INDEX, ROLE_CODE, Board, State, blamed, counters_view
from iems.net.answers import Answers
from iems.net.certificates import Served

#: Seconds a worker may live on without its master.
ORPHAN_S = 5.0
#: Signals the master blocks while it forks.
SIGNALS = frozenset({signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP})
#: Roles that others need to finish their work: drained last.
LAST = ("store", "janitor")

#: The collector of cycles looks when so many more containers were made than went; the default of 700 has it look through every account that the
#: store remembers again and again, 8 us a message with 30,000 accounts.
COLLECT_AT = (10_000, 20, 20)
#: malloc maps larger pieces by themselves, and gives free memory at the end of the heap back above this.
MAPPED_OCTETS = 2 << 20
KEPT_OCTETS = 8 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_PR_SET_PDEATHSIG = 1


class Worker(Protocol):
    """What `iems/<role>/worker.py` provides as `Worker`."""

    def __init__(self, ctx: WorkerContext) -> None: ...

    async def start(self) -> None:
        """Begin to serve; on return the worker reports ready."""

    async def drain(self, deadline_s: float) -> None:
        """Stop accepting and taking, finish, answer 421 or BYE; return when idle or at the deadline."""


class WorkerContext:
    """All a worker gets from the master. See the attributes; nothing here blocks."""

    def __init__(
        self,
        *,
        role: str,
        slot: int,
        index: int,
        generation: int,
        config: Config,
        home: Path,
        loop: asyncio.AbstractEventLoop,
        sockets: dict[str, list[socket.socket]],
        tls: ssl.SSLContext | None,
        client_tls: dict[str, int] | None = None,
        answers: Answers | None = None,
        log: Log,
        board: Board,
        eventfds: list[int],
    ) -> None:
        self.role = role
        self.slot = slot
        #: Number in the pool, 0..workers-1.
        self.index = index
        #: Number of this spawn: (slot, generation) never names two workers.
        self.generation = generation
        self.config = config
        self.home = home
        self.loop = loop
        #: Listener name -> bound, listening, non-blocking sockets.
        self.sockets = sockets
        self.tls = tls
        #: Behind `tls`, looked at with each heartbeat; connections made from then on get what is new.
        self.certificates: Served | None = None
        #: Name -> memfd with the chain and key to show to other hosts; role smtpc alone has them.
        self.client_tls = client_tls or {}
        #: DNS answers shared with all other workers, for `Resolver.of`; None if there are none.
        self.answers = answers
        self.hostname = config.hostname
        self.log = log
        self.board = board
        #: Set before `drain` or `retire` is called.
        self.draining = False
        self._eventfds = eventfds
        self._code = ROLE_CODE[role]
        self._counters = counters_view(board, slot)
        self._row = Board.row_at(slot)
        self._callback: Callable[[], None] | None = None
        self._fence = threading.Lock()

    # --- counters

    def count(self, name: str, n: int = 1) -> None:
        """Adds to a counter of `board.COUNTERS`. Only from the loop's thread."""
        self._counters[COUNTER_INDEX[name]] += n

    def gauge(self, name: str, value: int) -> None:
        """Sets a counter."""
        self._counters[COUNTER_INDEX[name]] = value

    def total(self, name: str, role: str | None = None) -> int:
        """The sum of a counter over the living workers of the role (default: the own one)."""
        return self.board.total(role or self.role, name)

    # --- waking and parking

    def wake(self, role: str) -> None:
        """Wakes one parked worker of the role, if there is one. Call it after the work can be seen (committed)."""
        code = ROLE_CODE.get(role)
        if code is None:
            return  # a channel whose role isn't built: its items wait
        with self._fence:  # a full fence: the commit is visible before the flags are read
            slot = self.board.take_parked(code)
        if slot >= 0:
            try:
                os.eventfd_write(self._eventfds[slot], 1)
            except BlockingIOError:
                pass  # its counter is full: it has been woken

    def on_wake(self, callback: Callable[[], None]) -> None:
        """Sets what is called on the loop after this worker was woken."""
        self._callback = callback

    def park(self) -> None:
        """Says "I am idle: wake me". Look once more into the queue after it; if there is work, `unpark` and go on."""
        with self._fence:
            self.board.set_parked(self.slot, 0 if self.draining else self._code)

    def unpark(self) -> None:
        """Takes `park` back."""
        self.board.set_parked(self.slot, 0)

    def _woken(self) -> None:
        try:
            os.eventfd_read(self._eventfds[self.slot])
        except BlockingIOError:
            return
        self.count("wakeups_total")
        if self.draining:
            self.wake(self.role)  # not for us any more: hand it on
        if self._callback is not None:
            self._callback()

    # --- work

    def working_on(self, id: bytes | None, deadline_s: float | None = None) -> None:
        """Puts the message in work on the board: blamed if this worker dies now. deadline_s: killed when past it."""
        board, at = self.board.map, self._row
        if id is None:
            board[at + 40 : at + 56] = bytes(16)
            struct.pack_into("<Q", board, at + 32, 0)
            return
        board[at + 40 : at + 56] = id
        deadline = time.monotonic_ns() + int(deadline_s * 1e9) if deadline_s else 0
        struct.pack_into("<Q", board, at + 32, deadline)
        struct.pack_into("<Q", board, at + 64, struct.unpack_from("<Q", board, at + 64)[0] + 1)

    def writing(self, held: bool) -> None:
        """Marks that this worker holds a write transaction others wait for: killed first when all are silent."""
        self.board.map[self._row + 6] = held

    def alive(self, slot: int, generation: int) -> bool:
        """Whether the worker that was (slot, generation) still lives."""
        row = self.board.row(slot)
        return row is not None and row.generation == generation

    def blamed(self) -> dict[bytes, int]:
        """Message id -> workers that died with it in work."""
        return blamed(self.home)

    # --- for the process itself

    def _beat(self) -> None:
        struct.pack_into("<Q", self.board.map, self._row + 16, time.monotonic_ns())
        self.log.refresh()
        self.loop.call_later(self.config.master.heartbeat_s, self._beat)
        if self.certificates is not None and self.certificates.refresh():
            self.log.event("certificates-taken-up")

    def _state(self, state: State) -> None:
        self.board.map[self._row + 5] = state


class Inherited(Struct):
    """What the master hands over the fork. Descriptors are the child's own copies."""

    role: str
    slot: int
    index: int
    generation: int
    config: Any
    home: Path
    sockets: dict[str, list[socket.socket]]
    log: Log
    board: Board
    eventfds: list[int]
    master_eventfd: int
    master_pid: int
    alive_fd: int  # end of a pipe whose other end only the master holds
    tls_fd: int  # memory file with all certificates and keys, or -1
    client_tls: dict[str, int]  # memfds with pairs to show to other hosts, by name
    answers: Answers | None  # DNS answers all workers share
    close_fds: list[int]  # what belongs to the master alone


def set_parent_death_signal(number: int) -> None:
    """Asks the kernel for a signal when the parent dies (PR_SET_PDEATHSIG); lost by a change of user."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def keep_capabilities(bits: int) -> None:
    """Gives up all capabilities but `bits` (capset(2), version 3)."""
    header = struct.pack("<Ii", 0x20080522, 0)
    ctypes.CDLL(None, use_errno=True).capset(header, struct.pack("<6I", bits, bits, 0, 0, 0, 0))


def keep_freed_memory() -> None:
    """Let malloc keep what a message of usual size took for the next one.

    By default glibc maps and unmaps each piece above 128 KB, so every page of it is a fault and a cleared page: half of the CPU
    time of delivering 250 KB. Other C libraries have no such call and are left as they are.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, MAPPED_OCTETS)
        mallopt(_M_TRIM_THRESHOLD, KEPT_OCTETS)


def main(inherited: Inherited) -> int:
    """The life of a worker process, from just after the fork; gives the exit code."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    # A terminal's Ctrl-C reaches the whole group: only the master acts on it.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    set_parent_death_signal(signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if os.getppid() != inherited.master_pid:
        return 0
    for fd in inherited.close_fds:
        os.close(fd)
    if os.getuid() != 0:
        keep_capabilities(0)  # binding is the master's duty
    os.environ.setdefault("IEMS_NATIVE", "native")
    keep_freed_memory()
    gc.set_threshold(*COLLECT_AT)
    import setproctitle
    import uvloop

    setproctitle.setproctitle(f"iems: {inherited.role} {inherited.index}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(inherited))


def _load(role: str) -> Callable[[WorkerContext], Worker]:
    module = importlib.import_module(f"iems.{role}.worker")
    found: Callable[[WorkerContext], Worker] = module.Worker
    return found


async def _serve(inherited: Inherited) -> int:
    loop = asyncio.get_running_loop()
    config: Config = inherited.config
    log = inherited.log
    log.forked(inherited.role, loop)
    loop.set_exception_handler(
        lambda _, context: log.error(str(context.get("message", "")), context.get("exception"))
    )
    stopping: asyncio.Event = asyncio.Event()
    reasons: list[str] = []

    def stop(reason: str) -> None:
        if reason == "orphaned" and reason not in reasons:
            # Even a loop that hangs ends: the default action of SIGALRM is death.
            signal.alarm(int(ORPHAN_S))
            loop.remove_reader(inherited.alive_fd)
        reasons.append(reason)
        stopping.set()

    loop.add_signal_handler(signal.SIGTERM, lambda: stop("orphaned" if _orphaned(inherited) else "drain"))
    loop.add_signal_handler(signal.SIGUSR1, stop, "retire")
    loop.add_reader(inherited.alive_fd, stop, "orphaned")

    served = None
    if inherited.tls_fd >= 0:
        served = Served(inherited.tls_fd, config.tls.minimum, log.error)
    ctx = WorkerContext(
        role=inherited.role,
        slot=inherited.slot,
        index=inherited.index,
        generation=inherited.generation,
        config=config,
        home=inherited.home,
        loop=loop,
        sockets=inherited.sockets,
        tls=served.context if served is not None else None,
        client_tls=inherited.client_tls,
        answers=inherited.answers,
        log=log,
        board=inherited.board,
        eventfds=inherited.eventfds,
    )
    ctx.certificates = served
    ctx._beat()
    loop.add_reader(inherited.eventfds[inherited.slot], ctx._woken)
    try:
        worker = _load(inherited.role)(ctx)
        starting = asyncio.ensure_future(worker.start())
        stopped = asyncio.ensure_future(stopping.wait())
        await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait((starting,), timeout=config.master.drain_s)
            return 0
        starting.result()
    except Exception as exc:
        log.error("worker did not start", exc)
        print(f"iems: {inherited.role}: did not start: {type(exc).__name__}: {exc}", file=sys.stderr)
        log.close()
        return 1
    ctx._state(State.READY)
    os.eventfd_write(inherited.master_eventfd, 1)
    await stopping.wait()
    ctx.draining = True
    ctx.unpark()
    retire: Callable[[], Awaitable[None]] | None = getattr(worker, "retire", None)
    # Both signals may have come before this line ran: then there is no time for a gentle end.
    if reasons == ["retire"] and retire is not None:
        ctx._state(State.RETIRING)
        stopping.clear()
        retiring = asyncio.ensure_future(retire())
        again = asyncio.ensure_future(stopping.wait())
        await asyncio.wait(
            (retiring, again), timeout=config.master.retire_s, return_when=asyncio.FIRST_COMPLETED
        )
        if not retiring.done():
            retiring.cancel()
    ctx._state(State.DRAINING)
    limit_s = config.master.drain_s
    if "orphaned" in reasons:
        limit_s = min(limit_s, ORPHAN_S - 1)
        if inherited.role in LAST:
            limit_s = await _last_of_orphans(inherited)
    try:
        await asyncio.wait_for(worker.drain(limit_s), limit_s + 1)
    except TimeoutError:
        log.event("drain-cut", seconds=limit_s)
    except Exception as exc:
        log.error("drain failed", exc)
        return 1
    finally:
        log.close()
    return 0


def _orphaned(inherited: Inherited) -> bool:
    return os.getppid() != inherited.master_pid


def lives(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b") ")[2][:1] not in (b"Z", b"X")


async def _last_of_orphans(inherited: Inherited) -> float:
    """Waits until the orphans that need this role are gone, 3 s at most; gives the seconds left to drain."""
    until = time.monotonic() + 3.0
    others = [row.pid for row in inherited.board.rows() if row.role not in LAST]
    while time.monotonic() < until:
        others = [pid for pid in others if lives(pid)]
        if not others:
            break
        await asyncio.sleep(0.05)
    return 1.0
