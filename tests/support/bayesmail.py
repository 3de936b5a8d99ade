"""Made mail of two kinds that share half of their words; no word of it is anyone's."""

from __future__ import annotations

import random

SHARED = [f"common{n}" for n in range(300)]
GOOD = [f"project{n}" for n in range(200)]
SPAM = [f"offer{n}" for n in range(200)]


def message(rng: random.Random, spam: bool, words: int = 80) -> bytes:
    """One message."""
    own = SPAM if spam else GOOD
    text = [rng.choice(own if rng.random() < 0.25 else SHARED) for _ in range(words)]
    sender = f"{'deals' if spam else 'colleague'}{rng.randrange(30)}"
    body = " ".join(text)
    kind = b"Content-Type: text/html\r\n" if spam and rng.random() < 0.5 else b""
    return (
        f"From: {sender}@example.test\r\nTo: me@example.test\r\nSubject: {text[0]} {text[1]}\r\n".encode()
        + f"Message-Id: <{rng.getrandbits(60)}@example.test>\r\n".encode()
        + kind
        + f"\r\n{body}\r\n".encode()
    )


def messages(count: int, spam: bool, seed: int) -> list[bytes]:
    """`count` of one kind, the same for the same seed."""
    rng = random.Random(seed * 2 + spam)
    return [message(rng, spam) for _ in range(count)]
