"""The MIME kernel, its twin and fast-mail-parser on one message of 4, 50 and 250 KB.

    pytest perf/kernels/test_mime.py --benchmark-only --benchmark-group-by=param:size

Half of the text is HTML, the rest of the message one base64 attachment, as in everyday mail. fast-mail-parser decodes bodies as
well, so it does more than `scan`; it is the yardstick of issue 2, not a race.
"""

import base64
import random

import pytest

from iems._native import kernel, mime_py

fast_mail_parser = pytest.importorskip("fast_mail_parser")
mime = kernel("mime")
SIZES = (4_096, 51_200, 256_000)
FIELDS = [
    b"From",
    b"To",
    b"Cc",
    b"Subject",
    b"Date",
    b"Message-ID",
    b"References",
    b"In-Reply-To",
    b"Content-Type",
    b"Reply-To",
]


def message(size: int) -> bytes:
    """Always the same message of about `size` octets: three Received, text, HTML and an attachment."""
    rng = random.Random(2046)
    words = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 9))) for _ in range(500)]

    def text(octets: int) -> bytes:
        return b"\r\n".join(b" ".join(rng.choices(words, k=11)) for _ in range(octets // 70)) + b"\r\n"

    received = b"".join(
        b"Received: from mx%d.example.org (mx%d.example.org [192.0.2.%d])\r\n\tby mail.example.net with ESMTPS id ABC%d\r\n"
        b"\tfor <john@jade.example>; Mon, 02 Mar 2026 10:00:0%d +0100\r\n" % (i, i, i, i, i)
        for i in range(3)
    )
    outer = b"----=_NextPart_000_0001_01DA6C"
    share = size * 3 // 10
    attachment = base64.encodebytes(rng.randbytes(max(size - share - 2_000, 40) * 57 // 78)).replace(
        b"\n", b"\r\n"
    )
    return (
        received + b'From: "Doe, Jane" <jane.doe@example.org>\r\nTo: John <john@jade.example>, Mary <mary@jade.example>\r\n'
        b"Cc: list@example.com\r\nSubject: =?utf-8?q?Quarterly_report?= for the\r\n third quarter\r\n"
        b"Date: Mon, 02 Mar 2026 10:00:00 +0100\r\nMessage-ID: <20260302100000.12345@example.org>\r\n"
        b"In-Reply-To: <abc@example.net>\r\nMIME-Version: 1.0\r\nX-Mailer: Test 1.0\r\n"
        b'Content-Type: multipart/mixed; boundary="' + outer + b'"\r\n\r\nThis is a multi-part message in MIME format.\r\n--'
        + outer + b"\r\nContent-Type: multipart/alternative; boundary=alt1\r\n\r\n--alt1\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + text(share // 2)
        + b"\r\n--alt1\r\nContent-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
        + text(share // 2) + b"\r\n--alt1--\r\n\r\n--" + outer
        + b'\r\nContent-Type: application/pdf; name="report.pdf"\r\nContent-Transfer-Encoding: base64\r\n'
        b'Content-Disposition: attachment; filename="report.pdf"\r\n\r\n' + attachment + b"--" + outer + b"--\r\n"
    )  # fmt: skip


MESSAGES = {size: message(size) for size in SIZES}
CASES = {
    "native scan": mime.scan,
    "native summarize": mime.summarize,
    "native body": mime.body,
    "native select": lambda raw: mime.select(raw, FIELDS),
    "twin scan": mime_py.scan,
    "twin summarize": mime_py.summarize,
    "fast-mail-parser": fast_mail_parser.parse_email,
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_mime(benchmark, case, size):
    assert abs(len(MESSAGES[size]) - size) < size // 5
    benchmark(CASES[case], MESSAGES[size])
