"""The SMTP kernel against its Python twin: command lines, plain paths, the end of mail data."""

import random

import pytest

from iems._native import buffer_py, smtp_py

smtp = pytest.importorskip("iems._native.smtp")
buffer = pytest.importorskip("iems._native.buffer")

FACTS = (
    "octets", "longest", "eight_bit", "bare_cr", "bare_lf", "nul", "dot_line", "dot_free", "too_big", "done", "refused",
)  # fmt: skip


def decode(module, buffers, wire, cuts, finish=False, **options):
    """Everything a decoder tells of `wire`, fed in pieces that end at `cuts`."""
    decoder = module.DataDecoder(**options)
    out = buffers.Buffer()
    consumed = 0
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        taken, done = decoder.feed(wire, start, end, out)
        consumed += taken
        if done:
            assert decoder.feed(wire, end, len(wire), out) == (0, True)
            break
    if finish:
        decoder.finish(out)
    facts = {name: getattr(decoder, name) for name in FACTS}
    kept = not (decoder.refused or decoder.too_big)
    return consumed, facts, bytes(out) if kept else None


def both(wire, cuts, **options):
    """The answer of both sides, after checking that it is one and that cuts make no difference."""
    answer = decode(smtp_py, buffer_py, wire, cuts, **options)
    assert decode(smtp, buffer, wire, cuts, **options) == answer, (wire, cuts, options)
    assert decode(smtp, buffer, wire, [], **options) == answer, (wire, options)
    return answer


def cuts_of(rng, length):
    return sorted(rng.randrange(length + 1) for _ in range(rng.randrange(4)))


def test_decoder_dense():
    rng = random.Random(5321)
    for _ in range(20_000):
        raw = bytes(rng.choices(b"\r\n.a\0\xe9", weights=(6, 6, 5, 3, 1, 1), k=rng.randrange(24)))
        options = {"normalise": rng.random() < 0.3, "limit": rng.choice((0, 0, 3, 9))}
        if rng.random() < 0.3:
            options.update(raw=True, binary=rng.random() < 0.5, finish=True)
        both(raw, cuts_of(rng, len(raw)), **options)


def test_decoder_blocks():
    """Inputs longer than the 64 octets looked at together, odd ones rare enough that whole blocks are clean."""
    rng = random.Random(3030)
    pieces = [b"\r\n", b"\r\n", b"x" * 30, b"abc.def " * 7, b"y" * 70]
    rare = [b"\r\n.", b"\r\n..", b"\r", b"\n", b"\0", b"\xc3\xa9", b"\r\n.\r\n", b"\r\n.\r", b"\n.\r\n"]
    for _ in range(3_000):
        raw = b"".join(
            rng.choice(rare) if rng.random() < 0.06 else rng.choice(pieces)
            for _ in range(rng.randrange(1, 24))
        )
        options = {"raw": True, "finish": True} if rng.random() < 0.3 else {}
        both(raw, cuts_of(rng, len(raw)), **options)


def test_command_dense():
    rng = random.Random(2920)
    for _ in range(20_000):
        verb = rng.choice(
            (
                *smtp_py.VERBS,
                b"mAiL",
                b"StartTLS",
                b"STARTTLX",
                b"MAILX",
                b"QUI",
                b"\x0dAIL",
                b"",
                b"XYZZYXYZ",
            )
        )
        raw = verb + bytes(
            rng.choices(b"\r\n \t:a\0\xe9", weights=(5, 5, 3, 1, 2, 3, 1, 1), k=rng.randrange(12))
        )
        start = rng.randrange(3) if rng.random() < 0.2 else 0
        start = min(start, len(raw))
        end = rng.randrange(start, len(raw) + 1)
        for name in ("line", "command"):
            want = getattr(smtp_py, name)(raw, start, end)
            assert getattr(smtp, name)(raw, start, end) == want, (name, raw, start, end)
            assert getattr(smtp, name)(memoryview(bytearray(raw)), start, end) == want


def test_plain_path_dense():
    rng = random.Random(822)
    for _ in range(20_000):
        raw = bytes(rng.choices(b"<a-.@1>\xe9 ", weights=(4, 8, 3, 5, 5, 2, 5, 1, 1), k=rng.randrange(16)))
        raw = rng.choice((b"", b"FROM:", b"<a@", b"<a.b@c")) + raw
        for start in (0, 5):
            assert smtp.plain_path(raw, start) == smtp_py.plain_path(raw, start), (raw, start)


def test_constants_agree():
    assert smtp.VERBS == smtp_py.VERBS
    for verb in smtp_py.VERBS:
        name = verb.decode()
        code = getattr(smtp_py, name)
        assert getattr(smtp, name) == code == smtp.command(verb.lower() + b"\r\n", 0, len(verb) + 2)[0]
    assert (smtp.NEED, smtp.BAD, smtp.UNKNOWN) == (smtp_py.NEED, smtp_py.BAD, smtp_py.UNKNOWN)


def test_bad_spans_are_errors():
    for start, end in ((-1, 1), (2, 1), (0, 9)):
        with pytest.raises(ValueError):
            smtp.command(b"QUIT", start, end)
        with pytest.raises(ValueError):
            smtp.DataDecoder().feed(b"QUIT", start, end, buffer.Buffer())
    out = buffer.Buffer()
    with memoryview(out), pytest.raises(BufferError):
        smtp.DataDecoder().feed(b"a", 0, 1, out)


@pytest.mark.parametrize(
    "end", [b"\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n.\n", b"\r\n.\r", b"\r.\r\n", b"\r\n\0.\r\n", b"\r\n.\0\r\n"]
)  # fmt: skip
def test_smuggled_ends_are_none(end):
    """What other servers took for the end of data (beyond 3.16) is none, alone or before a real end."""
    raw = b"Subject: one\r\n\r\ntext" + end + b"MAIL FROM:<b@b>\r\n"
    consumed, facts, _ = both(raw, [])
    assert consumed == len(raw) and not facts["done"] and facts["refused"]
    consumed, facts, _ = both(raw + b".\r\nQUIT\r\n", [])
    assert consumed == len(raw) + 3 and facts["done"] and facts["refused"]
    consumed, facts, content = both(raw + b".\r\n", [], normalise=True)
    assert facts["done"] and content.replace(b"\r\n", b"").find(b"\n") < 0 and b"\0" not in content
