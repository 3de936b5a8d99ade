"""The client of milters against one that behaves, and against ones that lie, hang and vanish."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.model import Extent
from iems.net.breaker import FAILURES, Breaker, NoAnswer
from iems.scan import milterwire as wire
from iems.scan.milter import Mail, Milter
from tests.support.milter import FakeMilter, packet, u32


def client(place, timeout_s=5.0, deadline_s=10.0, body_max=1 << 20, breaker=None):
    return Milter(place, hostname="mx.test", timeout_s=timeout_s, deadline_s=deadline_s, at_once=4, body_max=body_max, breaker=breaker or Breaker())


def mail(kept=None, body=b"text\r\n", recipients=(b"a@x.test", b"b@x.test"), **more):
    async def pieces():
        yield body

    async def keep(octets):
        kept.append(octets)
        return Extent(1, 0, len(octets))

    fields = [(b"Subject", b" hello\r\n\tyou"), (b"X", b"no space\0")]
    given = {"client_ip": "2001:db8::1", "helo": b"c.test", "auth": "", "reverse_path": b"s@t.test"} | more
    return Mail("ID1", given["client_ip"], given["helo"], given["auth"], given["reverse_path"], (b"SIZE=9",), recipients, fields, pieces, keep)


def ask(fake, path=None, message=None, **settings):
    async def main():
        place = await fake.start(path)
        try:
            return await client(place, **settings).examine(message or mail())
        finally:
            await asyncio.wait_for(fake.closed.wait(), 60)
            fake.server.close()

    return asyncio.run(main())


def test_what_it_is_told(tmp_path):
    fake = FakeMilter()
    answer = ask(fake, str(tmp_path / "socket"), mail(body=b"x" * 70_000, auth="anna"))
    assert answer.text == "accept" and answer.reply is None
    assert fake.all(b"O") == [wire.offer()]
    assert fake.all(b"C") == [b"[2001:db8::1]\0006\0\0002001:db8::1\0"]
    assert fake.all(b"H") == [b"c.test\0"] and fake.all(b"M") == [b"<s@t.test>\0SIZE=9\0"]
    assert fake.all(b"R") == [b"<a@x.test>\0", b"<b@x.test>\0"]
    assert fake.all(b"L") == [b"Subject\0hello\n\tyou\0", b"X\0no space \0"]
    assert [len(data) for data in fake.all(b"B")] == [65_535, 4_465]
    assert [letter for letter, _ in fake.seen if letter != b"D"][-4:] == [b"B", b"B", b"E", b"Q"]
    macros = {data[:1]: data[1:].split(b"\0") for data in fake.all(b"D")}
    assert b"mx.test" in macros[b"C"] and b"ID1" in macros[b"M"] and b"anna" in macros[b"M"] and b"b@x.test" in macros[b"R"] and b"ID1" in macros[b"E"]


def test_steps_it_leaves_out_or_unanswered():
    silent = {letter: b"" for letter in (b"C", b"H", b"L", b"N", b"B")}
    fake = FakeMilter(silent, steps=0x1000 | 0x2000 | 0x80 | 0x40000 | 0x80000 | 0x04 | 0x200 | 0x100000)
    assert ask(fake).text == "accept"
    assert fake.all(b"L")[0] == b"Subject\0 hello\n\tyou\0" and not fake.all(b"M") and not fake.all(b"T") and fake.all(b"B")
    fake = FakeMilter({b"B": packet(b"s")}, steps=0x400)
    assert ask(fake, message=mail(body=b"x" * 200_000)).text == "accept" and len(fake.all(b"B")) == 1
    assert ask(FakeMilter(steps=0x10)).text == "accept"


@pytest.mark.parametrize(
    ("letter", "said", "text"),
    [
        (b"C", packet(b"r"), "550 5.7.1 Refused by a check of the content"),
        (b"H", packet(b"4"), "451 4.7.1 Put off by a check of the content"),
        (b"M", packet(b"y", b"554 5.2.3 no, 100%% sure\0"), "554 5.2.3 no, 100% sure"),
        (b"R", packet(b"y", b"450 later\r\n450 more\0"), "450 4.7.1 later 450 more"),
        (b"R", packet(b"r"), "2 recipients refused"),
        (b"T", packet(b"t"), "451 4.7.1 Put off by a check of the content"),
        (b"L", packet(b"d"), "discard"),
        (b"N", packet(b"a"), "accept"),
        (b"B", packet(b"r"), "550 5.7.1 Refused by a check of the content"),
        (b"E", packet(b"y", b"550 5.7.1 " + b"\xff\r\nX: y" * 200 + b"\0"), None),
    ],
)
def test_what_it_says_at_each_stage(letter, said, text):
    fake = FakeMilter({letter: said})
    answer = ask(fake)
    if text is None:
        assert answer.reply.code == 550 and len(answer.reply.text) <= 400 and answer.reply.text.isprintable()
    else:
        assert answer.text == text
    assert letter == b"E" or not fake.all(b"E"), "decided: told no more"
    assert fake.seen[-1][0] == b"Q"


def test_one_recipient_refused():
    fake = FakeMilter({b"R": lambda data: packet(b"r") if data.startswith(b"<a@") else packet(b"c")})
    answer = ask(fake)
    assert [address for address, _ in answer.refused] == [b"a@x.test"] and fake.all(b"E")


def test_changes():
    wishes = b"".join([
        packet(b"p"), packet(b"h", b"X-A\0one\0"), packet(b"i", u32(1) + b"X-B\0two\nfake: no\n\nbody\0"), packet(b"m", u32(1) + b"Subject\0\0"),
        packet(b"b", b"new\nbo\r"), packet(b"b", b"\ndy"), packet(b"q", b"look\r\nhere\0"), packet(b"-", b"<a@x.test>\0"), packet(b"p"), packet(b"c"),
    ])  # fmt: skip
    kept = []
    answer = ask(FakeMilter({b"E": wishes}), message=mail(kept))
    assert [(c.action, c.place, c.name, c.value) for c in answer.changes] == [
        (b"h", 0, b"X-A", b"one"), (b"i", 1, b"X-B", b"two\nfake: no\n\nbody"), (b"m", 1, b"Subject", b"")]  # fmt: skip
    assert b"".join(kept) == b"new\r\nbo\r\ndy\r\n" and answer.body == [Extent(1, 0, 13)]
    assert answer.quarantine == "look here" and answer.removed == [b"<a@x.test>"]
    assert wire.field(b"X-B", answer.changes[1].value, False) == b"X-B: two\r\n\tfake: no\r\n\tbody\r\n"


@pytest.mark.parametrize(
    "answers",
    [
        {b"O": b"\xff\xff\xff\xff" + b"O"},
        {b"O": b"\0\0\0\0"},
        {b"O": packet(b"O", b"\0\0")},
        {b"O": packet(b"O", u32(7, 0, 0))},
        {b"O": packet(b"O", u32(6, 0x40, 0))},
        {b"O": packet(b"O", u32(6, 0, 0x80000000))},
        {b"O": packet(b"c")},
        {b"O": b"SSH-2.0-OpenSSH_9.2\r\n"},
        {b"C": packet(b"z")},
        {b"M": packet(b"y", b"250 ok\0")},
        {b"M": packet(b"s")},
        {b"E": packet(b"h", b"no colon allowed:\0x\0") + packet(b"c")},
        {b"E": packet(b"h", b"X")},
        {b"E": packet(b"i", b"\0")},
        {b"E": packet(b"+", b"<new@x.test>\0") + packet(b"c")},
        {b"E": packet(b"h", b"X\0y\0") * 1_001 + packet(b"c")},
        {b"E": packet(b"h", b"X\0" + b"y" * 600_000 + b"\0") * 2 + packet(b"c")},
        {b"E": packet(b"b", b"x" * 65_535) * 17 + packet(b"c")},
        {b"E": packet(b"p") * 10_001},
        {b"E": (1 << 20).to_bytes(4, "big") + b"h"},
        {b"B": None},
        {b"C": None},
    ],
)
def test_what_can_not_be_believed(answers):
    with pytest.raises(NoAnswer, match="inet:"):
        ask(FakeMilter(answers), message=mail([]), timeout_s=0.2)


def test_what_was_not_agreed_on():
    with pytest.raises(NoAnswer, match="agreed"):
        ask(FakeMilter({b"E": packet(b"b", b"new") + packet(b"c")}, actions=0x01), message=mail([]))


def test_signs_of_life_have_an_end():
    async def main():
        async def handle(reader, writer):
            try:
                while True:
                    writer.write(packet(b"p"))
                    await writer.drain()
                    await asyncio.wait_for(reader.read(1), 0.02)
            except TimeoutError:
                await handle(reader, writer)
            except ConnectionError:
                writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        place = f"inet:127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(NoAnswer, match="Timeout"):
            await client(place, timeout_s=5.0, deadline_s=0.3).examine(mail())
        server.close()

    asyncio.run(main())


def test_breaker():
    async def main():
        breaker = Breaker()
        gone = client("inet:127.0.0.1:1", breaker=breaker)
        for _ in range(FAILURES):
            with pytest.raises(NoAnswer):
                await gone.examine(mail())
        with pytest.raises(NoAnswer, match="of late"):
            await gone.examine(mail())

    asyncio.run(main())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.lists(st.binary(max_size=20), max_size=6))
def test_nothing_leaves_its_field(value, pieces):
    made = wire.field(b"X", value, True)
    assert made.endswith(b"\r\n") and made.count(b"\n") == made.count(b"\r\n") == made.count(b"\r")
    assert all(line[:1] in (b" ", b"\t") and line.strip() for line in made.split(b"\r\n")[1:-1])
    for parse in (wire.reply, wire.terms, lambda data: wire.header_change(b"i", data)):
        try:
            parse(value)
        except NoAnswer:
            pass
    lines = wire.Lines()
    whole = b"".join([*(lines.feed(piece) for piece in pieces), lines.end()])
    assert whole == wire._LINE_END.sub(b"\r\n", b"".join(pieces))
