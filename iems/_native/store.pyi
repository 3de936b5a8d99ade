from collections.abc import Callable, Iterable

import numpy as np

FLAGS: int
UID: int
ENVELOPE: int
BODYSTRUCTURE: int
INTERNALDATE: int
RFC822_SIZE: int
MODSEQ: int

def internal_date(seconds: int) -> bytes: ...
def fetch(
    items: bytes,
    names: list[bytes],
    seqs: np.ndarray,
    uids: np.ndarray,
    start: int,
    small: Iterable[tuple[bytes, bytes]],
    small_prefix: bytes,
    large: Iterable[tuple[bytes, bytes]],
    large_prefix: bytes,
    load: Callable[[int, int, int], bytes],
    max_octets: int,
    recent_from: int,
) -> tuple[bytes, int]: ...
