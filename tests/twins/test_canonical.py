"""The relaxed form of bodies: native against the twin, in any pieces, on input dense in white space and line ends."""

import random

import pytest

from iems._native import canonical_py

native = pytest.importorskip("iems._native.canonical")


def form(side, pieces):
    out = []
    one = side.Relaxed()
    for piece in pieces:
        one.feed(piece, lambda octets: out.append(bytes(octets)))
    one.finish(lambda octets: out.append(bytes(octets)))
    text = b"".join(out)
    assert one.length == len(text)
    return text


def cut(rng, octets):
    at, pieces = 0, []
    while at < len(octets):
        end = min(len(octets), at + rng.choice((1, 2, 3, 17, 40, 1000)))
        pieces.append(octets[at:end])
        at = end
    return pieces


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", b""),
        (b"\r\n\r\n", b""),
        (b" \t \r\n", b""),
        (b" C \r\nD \t E\r\n\r\n\r\n", b" C\r\nD E\r\n"),  # RFC 6376 3.4.5
        (b"no end", b"no end\r\n"),
        (b"a \r", b"a \r\r\n"),
        (b"a\r\r\nb \nc\n", b"a\r\r\nb \nc\n\r\n"),
        (b"\r\r\r", b"\r\r\r\r\n"),
        (b"\r \r\n", b"\r\r\n"),
        (b" ", b""),
        (b"x\t", b"x\r\n"),
    ],
)
def test_cases(body, expected):
    assert form(canonical_py, [body]) == form(native, [body]) == expected


@pytest.mark.parametrize("alphabet", [b"\r\n \ta", b"\r\nab", b" \tab\r", b"abcdefgh  \r\n"])
def test_random(alphabet):
    rng = random.Random(6376 + len(alphabet))
    for _ in range(4000):
        body = bytes(rng.choices(alphabet, k=rng.choice((rng.randrange(12), rng.randrange(90), rng.randrange(300)))))
        if rng.random() < 0.5:
            body = body.replace(b"\n", b"\r\n")
        expected = form(canonical_py, [body])
        assert form(native, [body]) == expected, body
        assert form(native, cut(rng, body)) == form(canonical_py, cut(rng, body)) == expected, body


def test_pieces_larger_than_what_is_given_at_once():
    rng = random.Random(2)
    line = bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz", k=76)) + b"\r\n"
    for body in (line * 3000, b"word " * 40_000, (b"two  words\t\r\n") * 9000, b"\r\n" * 50_000 + b"x", b" " * 100_000 + b"\r\nx \r\n" * 3):
        assert form(native, [body]) == form(native, cut(rng, body)) == form(canonical_py, [body])
        for at in (32_766, 32_767, 32_768, 32_769, 65_535):
            assert form(native, [body[:at], body[at:]]) == form(canonical_py, [body])


def test_fields():
    rng = random.Random(342)
    for raw in (b"", b":", b"A:", b"A: X\r\n\tY ", b"no colon", b"B \t:  a \t b\r\r\n\n", b"x: " + b"y" * 5000 + b"  z", b"x:" + b" " * 9000):
        assert native.relaxed_field(b"a", raw) == canonical_py.relaxed_field(b"a", raw)
    assert native.relaxed_field(b"subject", b"Subject:  a\r\n\t b \r\n") == b"subject:a b"  # RFC 6376 3.4.2
    for _ in range(20_000):
        raw = bytes(rng.choices(b"\r\n \ta:", k=rng.randrange(30)))
        name = bytes(rng.choices(b"ab", k=rng.randrange(4)))
        assert native.relaxed_field(name, raw) == canonical_py.relaxed_field(name, raw), raw
