from array import array
from collections.abc import Callable
from typing import Any, TypedDict

class Over:
    def set(self) -> None: ...

class Load(TypedDict):
    done: int
    errors: int
    connections: int
    waiting: int
    octets: float
    seconds: float
    latency_s: array[float]
    complaint: str

def smtp(
    port: int,
    messages: list[tuple[bytes, int]],
    recipients: list[bytes],
    sender: bytes,
    *,
    sessions: int = 1,
    count: int = 0,
    warmup_s: float = 1.0,
    run_s: float = 3.0,
    lmtp: bool = False,
    pipeline: bool = False,
    per_connection: int = 0,
    first_id: int = 0,
    rate: float = 0.0,
    settled: array[float] | None = None,
    on_mark: Callable[[str], None] | None = None,
) -> Load: ...
def fetch(
    port: int,
    users: list[bytes],
    password: bytes,
    command: bytes | None,
    first: int,
    last: int,
    *,
    sessions: int = 18,
    pop3: bool = False,
    mailbox: bytes = b"INBOX",
    warmup_s: float = 1.0,
    run_s: float = 3.0,
    idle_s: float = 1.0,
    rate: float = 0.0,
    shuffle: bool = False,
    seed: int = 0,
    over: Over | None = None,
    on_mark: Callable[[str], None] | None = None,
) -> Load: ...
def drip(
    port: int,
    recipient: bytes,
    sender: bytes = b"drip@load.test",
    *,
    sessions: int = 100,
    interval_s: float = 1.0,
    run_s: float = 3.0,
    over: Over | None = None,
    on_mark: Callable[[str], None] | None = None,
) -> Load: ...
def sink(listener: int, came: Any | None = None, first_id: int = 0) -> int: ...
