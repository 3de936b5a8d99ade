"""Prometheus text on the metrics port, read from the board alone: no worker is asked.

Served inside the janitor. One request at a time a connection, HTTP/1.0 and 1.1, GET and HEAD of /metrics; anything else
is 404, 405 or 400. A peer gets five seconds and 8 KiB.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
from typing import TYPE_CHECKING

from iems.master.board import COUNTERS, MODULES, ROLES, Board

if TYPE_CHECKING:
    from iems.master.child import WorkerContext
    from iems.spool.index import Index

REQUEST_OCTETS = 8192
REQUEST_S = 5.0
MAX_CONNECTIONS = 32


#: Gauges of the queue on the board: channel, state.
_QUEUE = re.compile("queue_([a-z]+)_([a-z]+)_now")
#: Counters of a module of the preprocessor: on the board, here, units of the board in one of ours, what it is.
_MODULE_FAMILIES = (
    ("messages", "messages", 1, "Messages a module looked at."),
    ("us", "seconds", 1_000_000, "Time a module took for them; messages are looked at together, so it may exceed the clock."),
    ("cpu_us", "cpu_seconds", 1_000_000, "CPU of the worker's loop while the module ran; its threads and other programs are not in it."),
    ("failures", "failures", 1, "Messages a module could not look at: a scanner did not answer, or a fault."),
)


def publish_queue(ctx: WorkerContext, index: Index) -> None:
    """Puts the queue's counts on the board, where `exposition` finds them. For the janitor, once a round."""
    from iems.model import INPUT, Channel
    from iems.spool import keys

    states = {
        keys.FRESH: "ready",
        keys.RETRY: "deferred",
        keys.HELD: "held",
        keys.QUARANTINED: "quarantined",
        keys.LEASED: "leased",
    }
    counts = index.counts()
    for name, channel in (("input", INPUT), ("local", int(Channel.LOCAL)), ("smtpc", int(Channel.SMTPC))):
        for class_, state in states.items():
            ctx.gauge(f"queue_{name}_{state}_now", counts.get((channel, class_), 0))


def exposition(board: Board) -> bytes:
    """The board in Prometheus' text format, version 0.0.4."""
    out: list[str] = []

    def family(name: str, kind: str, text: str, samples: list[tuple[str, float]]) -> None:
        if samples:
            out.append(f"# HELP {name} {text}")
            out.append(f"# TYPE {name} {kind}")
            out.extend(
                f"{name}{labels} {value!r}" if value % 1 else f"{name}{labels} {int(value)}"
                for labels, value in samples
            )

    header = board.header()
    rows = board.rows()
    roles = [role for role in ROLES if board.workers(role) or any(row.role == role for row in rows)]
    now = time.monotonic_ns()

    family(
        "iems_start_time_seconds",
        "gauge",
        "Start of the master, unix time.",
        [("", header.started_wall_ns / 1e9)],
    )
    family(
        "iems_generation",
        "gauge",
        "Settings in force: 1 at the start, one more with each reload.",
        [("", header.generation)],
    )
    family("iems_reloads_refused_total", "counter", "Reloads with wrong settings.", [("", header.refused)])
    family(
        "iems_workers_wanted",
        "gauge",
        "Workers a role should have.",
        [(f'{{role="{role}"}}', board.workers(role)) for role in roles],
    )
    family(
        "iems_workers_alive",
        "gauge",
        "Workers a role has.",
        [(f'{{role="{role}"}}', sum(row.role == role for row in rows)) for role in roles],
    )
    family(
        "iems_worker_restarts_total",
        "counter",
        "Workers replaced after a death.",
        [(f'{{role="{role}"}}', board.restarts(role)) for role in roles],
    )
    family(
        "iems_worker_heartbeat_age_seconds",
        "gauge",
        "Since a worker's loop last gave a sign of life.",
        [
            (f'{{role="{row.role}",slot="{row.slot}"}}', max(0.0, (now - row.heartbeat_ns) / 1e9))
            for row in rows
        ],
    )
    sums = {role: board.counters(role) for role in roles}
    for name in COUNTERS:
        if name.startswith("module_") or _QUEUE.fullmatch(name):
            continue
        samples = [(f'{{role="{role}"}}', float(sums[role][name])) for role in roles if sums[role][name]]
        kind = "gauge" if name.endswith("_now") else "counter"
        family("iems_" + name, kind, name.replace("_", " ") + ".", samples)
    modules = sums.get("preprocessor", {})
    for what, name, unit, text in _MODULE_FAMILIES:
        family(
            f"iems_module_{name}_total",
            "counter",
            text,
            [
                (f'{{module="{module}"}}', modules[f"module_{module}_{what}_total"] / unit)
                for module in MODULES
                if modules.get(f"module_{module}_messages_total")
            ],
        )
    if "janitor" in sums:
        family(
            "iems_queue_messages",
            "gauge",
            "Messages in the queue, by channel and state.",
            [
                (f'{{channel="{found[1].upper()}",state="{found[2]}"}}', float(sums["janitor"][name]))
                for name in COUNTERS
                if (found := _QUEUE.fullmatch(name))
            ],
        )
    return ("\n".join(out) + "\n").encode()


def answer(request: bytes, board: Board) -> bytes:
    """The whole HTTP response to the head of a request; the connection is closed after it."""
    line = request.partition(b"\r\n")[0].split(b" ")
    status, body = "200 OK", b""
    if len(line) != 3 or not line[2].startswith(b"HTTP/1."):
        status, body = "400 Bad Request", b"bad request\n"
    elif line[0] not in (b"GET", b"HEAD"):
        status, body = "405 Method Not Allowed", b"only GET\n"
    elif line[1].partition(b"?")[0] not in (b"/metrics", b"/"):
        status, body = "404 Not Found", b"see /metrics\n"
    else:
        body = exposition(board)
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode()
    return head if line[0] == b"HEAD" else head + body


async def serve_metrics(ctx: WorkerContext, sock: socket.socket) -> None:
    """Answers on the listening socket until cancelled."""
    loop = asyncio.get_running_loop()
    busy = 0

    async def serve(peer: socket.socket) -> None:
        nonlocal busy
        busy += 1
        try:
            async with asyncio.timeout(REQUEST_S):
                request = b""
                while b"\r\n\r\n" not in request:
                    chunk = await loop.sock_recv(peer, REQUEST_OCTETS)
                    request += chunk
                    if not chunk or len(request) > REQUEST_OCTETS:
                        return
                await loop.sock_sendall(peer, answer(request, ctx.board))
        except (OSError, TimeoutError):
            pass
        finally:
            busy -= 1
            peer.close()

    tasks: set[asyncio.Task[None]] = set()
    try:
        while True:
            try:
                peer, _ = await loop.sock_accept(sock)
            except OSError as exc:
                ctx.log.event("accept-failed", listener="metrics", cause=exc.strerror)
                await asyncio.sleep(1.0)
                continue
            peer.setblocking(False)
            if busy >= MAX_CONNECTIONS:
                peer.close()
                continue
            task = asyncio.ensure_future(serve(peer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    finally:
        for task in list(tasks):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
