from collections.abc import Sequence

import numpy as np
from typing_extensions import Buffer as Octets

NO: int
YES: int
UNSURE: int
MAX_OCTETS: int
MAX_KEYS: int

def learn(folds: Sequence[bytes], charsets: Sequence[tuple[bytes, bytes]]) -> None: ...
def judge(content: Octets, keys: Sequence[tuple[bytes, bool]]) -> bytes: ...
def sift(
    places: np.ndarray, heads: Octets, fds: np.ndarray, keys: Sequence[tuple[bytes, bool]], start: int, octets: int, out: np.ndarray
) -> int: ...
