"""Mail for load: MIME messages of a wanted size, made before the clock starts."""

from __future__ import annotations

import base64
import random

_WORDS = ["meeting", "budget", "server", "report", "invoice", "project", "offer", "question", "answer", "travel", "schedule", "draft", "review", "number", "account", "delivery", "summer", "winter", "contract", "design", "market", "office", "school", "garden", "letter", "picture", "table", "window", "morning", "evening", "coffee", "paper"]


def text(rng: random.Random, octets: int) -> bytes:
    """About `octets` of English-looking lines of at most 72 octets, ending in CRLF."""
    lines: list[bytes] = []
    made = 0
    while made < octets:
        line: list[str] = []
        length = 0
        while length < 62:
            word = rng.choice(_WORDS)
            line.append(word)
            length += len(word) + 1
        lines.append(" ".join(line).encode() + b"\r\n")
        made += len(lines[-1])
    return b"".join(lines)


def message(rng: random.Random, octets: int, recipient: bytes = b"user@load.test") -> tuple[bytes, int]:
    """(message, mark): a message of about `octets` with 16 digits at `mark` in its Message-ID, already dot-stuffed.

    Small ones are one text part with a short attachment, large ones mostly base64, as real mail is.
    """
    boundary = b"=_%032x" % rng.getrandbits(128)
    head = (
        b"Received: from relay.load.test (relay.load.test [192.0.2.%d])\r\n\tby mx.load.test with ESMTPS id %08x\r\n"
        b"\tfor <%b>; Tue, 24 Nov 2026 08:%02d:00 +0000\r\n"
        b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=load.test; s=k1;\r\n\th=from:to:subject:date;"
        b" bh=%b;\r\n\tb=%b\r\n"
        b"Date: Tue, 24 Nov 2026 08:00:00 +0000\r\nFrom: \"Sender, A.\" <sender@load.test>\r\nTo: <%b>\r\n"
        b"Subject: %b\r\nMessage-ID: <0000000000000000.%08x@load.test>\r\nMIME-Version: 1.0\r\n"
        b"Content-Type: multipart/mixed;\r\n\tboundary=\"%b\"\r\n\r\n"
    ) % (
        rng.randrange(1, 255), rng.getrandbits(32), recipient, rng.randrange(60), base64.b64encode(rng.randbytes(32)),
        base64.b64encode(rng.randbytes(190)).replace(b"\n", b""), recipient, " ".join(rng.sample(_WORDS, 5)).encode(),
        rng.getrandbits(32), boundary,
    )  # fmt: skip
    fixed = len(head) + 420
    body_octets = max(200, octets - fixed)
    text_octets = min(body_octets, 600 + body_octets // 12)
    encoded = max(57, (body_octets - text_octets) * 57 // 78)
    attachment = base64.encodebytes(rng.randbytes(encoded)).replace(b"\n", b"\r\n")
    parts = (
        b"--%b\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 7bit\r\n\r\n%b\r\n"
        b"--%b\r\nContent-Type: application/octet-stream; name=\"data.bin\"\r\nContent-Transfer-Encoding: base64\r\n"
        b"Content-Disposition: attachment; filename=\"data.bin\"\r\n\r\n%b--%b--\r\n"
    ) % (boundary, text(rng, text_octets), boundary, attachment, boundary)
    whole = head + parts
    return whole, whole.index(b"<0000000000000000.") + 1


def pool(octets: int, count: int = 64, seed: int = 2003) -> list[tuple[bytes, int]]:
    """`count` different messages of about `octets`, the same ones for the same seed."""
    rng = random.Random(seed)
    return [message(rng, octets) for _ in range(count)]
