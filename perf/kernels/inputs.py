"""Inputs of the kernels: the same mail at 4, 50 and 250 KB, as it comes over the wire and as it is stored."""

from __future__ import annotations

import random

from iems.perf import messages

SIZES = (4_096, 51_200, 256_000)


def content(size: int) -> bytes:
    """A message of about `size` octets with a few lines that begin with a dot."""
    whole, _mark = messages.message(random.Random(2046), size)
    head, body = whole.split(b"\r\n\r\n", 1)
    lines = body.split(b"\r\n")
    for number in range(20, len(lines) - 5, 400):
        if b"=" not in lines[number] and not lines[number].startswith(b"--"):
            lines[number] = b"." + lines[number][1:]
    return head + b"\r\n\r\n" + b"\r\n".join(lines)


def wire(stored: bytes) -> bytes:
    """The same as DATA carries it: dots stuffed, the final dot at the end."""
    return stored.replace(b"\r\n.", b"\r\n..") + b".\r\n"


CONTENT = {size: content(size) for size in SIZES}
WIRE = {size: wire(stored) for size, stored in CONTENT.items()}
