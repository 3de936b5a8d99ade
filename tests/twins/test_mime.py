"""The MIME kernel against its twin: dense random input, mutated real messages, the corpus."""

import random
from pathlib import Path

import pytest

from iems._native import mime_py

mime = pytest.importorskip("iems._native.mime")

CORPUS = Path(__file__).parent.parent / "corpus" / "mime"
MESSAGES = sorted(p for p in CORPUS.rglob("*") if p.suffix in (".eml", ".raw", ".msg"))

# Pieces in which most edge cases lie within a few steps of each other.
PIECES = [
    b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b" ", b"\t", b"--", b"--", b"-", b"a", b"b", b"ab", b"--a", b"--a--", b"--ab",
    b"--a\r\n", b"--a--\r\n", b"\r\n\r\n", b"\r\n--a\r\n", b"\r\n--a--\r\n", b"\r\n--ab\r\n", b"\r\n--ab--", b"--a-- \r\n",
    b"Content-Type: multipart/mixed; boundary=a\r\n", b'content-type : multipart/x;boundary="ab"\r\n',
    b"Content-Type: multipart/digest; boundary=b\r\n", b"Content-Type: message/rfc822\r\n", b"Content-Type: text/plain",
    b'Content-Type: multipart/mixed;\r\n boundary*0="a"; boundary*1=b\r\n', b"Content-Type: MULTIPART/mixed",
    b'Content-Type: multipart/mixed; boundary="a\\b"\r\n', b"Content-Type: multipart/mixed; boundary=\"a \"\r\n",
    b"Content-Type: text", b"/plain", b"; charset=utf-8", b'; name="x\\"y"', b"; x", b"=", b";", b"; n*0*=u''%41", b"\xe4",
    b"Content-Transfer-Encoding: ", b"base64", b"(c)", b"Content-Disposition: ", b"attachment", b'; filename="a\r\n b"',
    b"Content-Language: ", b"en, de", b"en", b"Content-MD5: ", b"Content-ID: <x>\r\n", b"Content-Description: d d\r\n",
    b"Content-Location: http://x/\r\n", b"From: ", b"To: ", b"Cc: ", b"Bcc: ", b"Sender: ", b"Reply-To: ", b"Subject: ",
    b"Date: ", b"Message-ID: ", b"In-Reply-To: ", b"X-Y: z\r\n", b"<", b">", b"@", b",", b";", b":", b'"', b"\\", b"(", b")", b"[",
    b"]", b".", b"<a@b>", b"a@b", b"<@r,@s:a@b>", b"g:", b'"q r"', b"\0",
]  # fmt: skip

MARKS = [
    b'"',
    b"\\",
    b"(",
    b")",
    b"<",
    b">",
    b"@",
    b",",
    b";",
    b":",
    b"[",
    b"]",
    b" ",
    b"\r\n ",
    b"a",
    b"b.c",
    b"\xff",
    b"=",
]


def same(raw: bytes) -> None:
    """Both sides say the same about `raw`."""
    assert mime.scan(raw).tolist() == mime_py.scan(raw).tolist(), raw
    assert mime.summarize(raw) == mime_py.summarize(raw), raw
    assert mime.body(raw) == mime_py.body(raw), raw


def test_constants_are_the_same():
    names = [
        name
        for name in vars(mime_py)
        if name.isupper() and not name.startswith("_") and isinstance(getattr(mime_py, name), int)
    ]
    assert len(names) > 25
    assert {name: getattr(mime, name) for name in names} == {name: getattr(mime_py, name) for name in names}


@pytest.mark.parametrize("seed", range(4))
def test_random_messages(seed):
    rng = random.Random(2046 + seed)
    for _ in range(4000):
        same(b"".join(rng.choices(PIECES, k=rng.randrange(40))))


def test_random_multiparts():
    rng = random.Random(2047)
    head = b"Content-Type: multipart/mixed; boundary=a\r\n\r\n"
    for _ in range(4000):
        same(head + b"".join(rng.choices(PIECES[:34], k=rng.randrange(40))))


@pytest.mark.parametrize(
    "name", [b"From", b"Content-Type", b"Content-Disposition", b"Content-Language", b"Subject"]
)
def test_random_values(name):
    rng = random.Random(5322)
    for _ in range(2500):
        value = b"".join(rng.choices(MARKS, k=rng.randrange(20)))
        same(name + b": " + (b"text/plain; " if name == b"Content-Type" else b"") + value + b"\r\n\r\nx")


def test_random_lines_around_the_vector_length():
    rng = random.Random(32)
    head = b"Content-Type: multipart/mixed; boundary=a\r\n\r\n"
    for _ in range(2000):
        body = b"".join(
            rng.choices(
                [b"\n", b"\n-", b"\n--", b"\n--a", b"\n--a--", b"x" * 7, b"x" * 31, b"-" * 33],
                k=rng.randrange(12),
            )
        )
        same(head + body)


def test_corpus():
    assert len(MESSAGES) >= 240
    for path in MESSAGES:
        same(path.read_bytes())


def test_mutated_corpus():
    rng = random.Random(822)
    small = [raw for raw in (path.read_bytes() for path in MESSAGES) if len(raw) < 8000]
    for _ in range(1500):
        raw = bytearray(rng.choice(small))
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(raw) + 1)
            raw[at : at + rng.choice((0, 0, 1, 2, 40))] = rng.choice(PIECES)
        same(bytes(raw))


def test_random_selections():
    rng = random.Random(3501)
    pieces = [b"From: ", b"to:", b"T", b"o", b" :", b"\r\n", b"\n", b"\r", b" ", b"\t", b"x", b":"]
    names = [b"from", b"TO", b"t", b"", b"x", b"tx"]
    for _ in range(10_000):
        raw = b"".join(rng.choices(pieces, k=rng.randrange(16)))
        wanted = rng.sample(names, rng.randrange(len(names)))
        start = rng.randrange(len(raw) + 1)
        stop = rng.choice((-1, rng.randrange(start, len(raw) + 1)))
        for invert in (False, True):
            given = (raw, wanted, invert, start, stop)
            assert mime.select(*given) == mime_py.select(*given), given


def test_selections_that_are_refused():
    for side in (mime, mime_py):
        for start, stop in ((-1, 1), (2, 1), (0, 9), (0, -2)):
            with pytest.raises(ValueError):
                side.select(b"a: b", [b"a"], False, start, stop)
        with pytest.raises(TypeError):
            side.select(b"a: b", ["a"], False)
        assert (
            side.select(b"a: b\r\nc: d\r\n\r\n", [b"n%d" % k for k in range(5_000)] + [b"C"])
            == b"c: d\r\n\r\n"
        )


@pytest.mark.parametrize("length", [999, 1000, 1001, 65_535, 65_536, 65_537])
def test_long_strings(length):
    same(b"Subject: " + b"s" * length + b"\r\nFrom: " + b"f" * length + b" <a@b>\r\n\r\n")


def test_limits():
    deep = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%03d\r\n\r\n--b%03d\r\n" % (i, i) for i in range(110)
    )
    same(deep + b"\r\nx\r\n" + b"".join(b"--b%03d--\r\n" % i for i in range(109, -1, -1)))
    same(b"Content-Type: message/rfc822\r\n\r\n" * 110)
    same(
        b"Content-Type: multipart/digest; boundary=b\r\n\r\n"
        + b"--b\r\n\r\nFrom: a@b\r\n\r\nx\r\n" * 5_100
        + b"--b--"
    )
    same(b"To: a@b\r\n" * 10_010 + b"Subject: too late\r\n\r\n")
    same(b"To: " + b"a@b," * 10_010 + b"\r\n\r\n")
    same(b"X: y\r\n" + b" " * (1 << 20) + b"\r\nSubject: too late\r\n\r\n")
    same(b"Content-Type: text/plain" + b";a=b" * 1_010 + b"\r\n\r\n")
    same(b"Content-Type: multipart/mixed; boundary=" + b"b" * 1_001 + b"\r\n\r\n--b")
    same(
        b"Content-Type: multipart/mixed"
        + b"".join(b";boundary*%d=b" % i for i in range(20))
        + b"\r\n\r\n--"
        + b"b" * 16
    )
    same(b"From: " + b"(" * 300 + b")" * 300 + b" a@b\r\n\r\n")


def test_what_can_be_given():
    raw = MESSAGES[0].read_bytes()
    assert (
        mime.summarize(bytearray(raw))
        == mime.summarize(memoryview(raw))
        == mime_py.summarize(memoryview(raw))
    )
    for wrong in ("text", None, 7):
        with pytest.raises(TypeError):
            mime.scan(wrong)
