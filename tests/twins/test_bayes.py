"""The Bayes kernel against its twin: random and hostile sections, tables that fill, grow and shrink, scores."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from iems._native import bayes_py

bayes = pytest.importorskip("iems._native.bayes")

WORDS = [
    b"cash", b"Meeting", b"FREE!!!", b"--", b"a", b"http://", b"https://www.%45vil.test:80/x?y=1", b"ftp://u@1.2.3.4/", b"x" * 41,
    b"y" * 1200, b"\xe4\xb8\xad\xe6\x96\x87", b"\xe4\xb8", b"\xf0\x9f\x98\x80", b"caf\xc3\xa9", b"\0", b"\r\n", b"$100.00", b"it's", b"...",
    b"@", b"user@mail.host.test", b"192.0.2.17", b"1.2.3.4.5.6.7", b"a.b.c.d.e.f.g.h.test", b"\n ", b"\n", b":", b";", b"boundary=\"--=_4af\"",
    b"<", b">", b"<b>", b"</b>", b"<!--", b"-->", b"<font color=white>", b"<font color='#FFFFFF' size=1>", b"</font>", b"<p>", b"<br/>",
    b"<div style=\"display : none\">", b"</div>", b"<a href=\"http://x.test/\">", b"<img src=cid:12 border=0>", b"<a href=mailto:a@b.test>", b"<td bgcolor=\"red",
    b"<script>", b"</script>", b"<style>", b"&nbsp;", b"&amp", b"&#65;", b"&#x4E2D;", b"&#xD800;", b"&#160;", b"&#0;", b"&#;", b"&#x;", b"&#1234567", b"&",
    b"Received: from a.test (b.test [192.0.2.1]) by c id 77aa", b"Subject: ", b"Date: Mon, 1 Jan 2024 00:00:00 +0200", b"Message-Id: <1@h.test>",
    b"Content-Type: text/plain; boundary=", b"X-Spam-Flag: YES", b"MiME-Version",
    b"Received: by a; b; Tue, 1 Feb 2022 +0100", b"Delivery-Date: Tue Feb 1", b"X-OriginalArrivalTime: 1 Feb [FILETIME]", b"-date: 1", b"date: x -0100",
    b"From: A <a@one.two.test>\n", b"To: b@two.test, c@d.test\n", b"Reply-To: nobody\n", b"Return-Path: <@..x%.y>\n", b"Return-Path: <e@.two.test.>\n",
    b"Message-ID: <1@two.test>\n", b"From: @", b"\n> quoted", b"\n \t| quoted", b"CAPITALS", b"!!!", b"$$", b"://", b"=?", b"%", b"%4", b"'", b"\"", b"=", b" ",
]  # fmt: skip


def made(rng: random.Random) -> bytes:
    if rng.random() < 0.2:
        return rng.randbytes(rng.randrange(200))
    return b"".join(rng.choice(WORDS) + rng.choice((b"", b" ", b"\n")) for _ in range(rng.randrange(40)))


def test_features_agree() -> None:
    rng = random.Random(5322)
    for _ in range(4_000):
        sections = [(rng.randrange(4), made(rng)) for _ in range(rng.randrange(4))]
        assert bayes.features(sections) == bayes_py.features(sections), sections
        assert bayes.features(sections, 5) == bayes_py.features(sections, 5), sections


def test_single_octets_and_cuts_agree() -> None:
    whole = b"Subject: a free! <b style='font-size:0'>x</b> &#65; http://a.test/ \xe4\xb8\xad" + b"z" * 60
    for kind in range(4):
        for cut in range(len(whole)):
            sections = [(kind, whole[:cut])]
            assert bayes.features(sections) == bayes_py.features(sections), sections
        for octet in range(256):
            sections = [(kind, bytes((octet,)) * 3)]
            assert bayes.features(sections) == bayes_py.features(sections), sections


@pytest.mark.parametrize("text", [b"<" * 200_000, b"<!--" * 50_000, b"<a b='" * 30_000, b"&" * 200_000, b"http://" * 30_000,
                                  b"x" * 1_000_000, b"<script>" * 30_000, b"<x style=" * 30_000, b"\0" * 500_000, b"a:" * 200_000])  # fmt: skip
def test_hostile_text_is_read_in_bounded_time_and_room(text: bytes) -> None:
    for kind in range(4):
        assert len(bayes.features([(kind, text)])) <= bayes.MAX_FEATURES * 4


def test_tables_agree() -> None:
    rng = random.Random(16)
    for turn in range(30):
        bits = 7 + turn % 3
        sides = [bytearray(64 << bits), bytearray(64 << bits)]
        known: list[int] = []
        for _ in range(40):
            keys = [rng.choice(known) if known and rng.random() < 0.4 else rng.getrandbits(32) for _ in range(rng.randrange(120))]
            known += keys
            packed = struct.pack(f"={len(keys)}I", *keys)
            change = rng.choice((1, 1, 1, 3, 500, -1))
            assert bayes.add(sides[0], bits, packed, 0, change) == bayes_py.add(sides[1], bits, packed, 0, change)
            assert sides[0] == sides[1]
        assert bayes.items(sides[0], bits) == bayes_py.items(sides[1], bits)
        larger = [bytearray(64 << bits + 1), bytearray(64 << bits + 1)]
        assert bayes.grow(sides[0], bits, larger[0], bits + 1) == bayes_py.grow(sides[1], bits, larger[1], bits + 1)
        assert larger[0] == larger[1]
        assert sorted(struct.iter_unpack("=II", bayes.items(larger[0], bits + 1))) == sorted(struct.iter_unpack("=II", bayes.items(sides[0], bits)))
        assert bayes.halve(sides[0], bits) == bayes_py.halve(sides[1], bits)
        assert sides[0] == sides[1]


def test_a_table_takes_six_sevenths_before_it_must_grow() -> None:
    rng = random.Random(1)
    for bits in (7, 10, 12):
        keys = struct.pack(f"={16 << bits}I", *(rng.getrandbits(29) for _ in range(16 << bits)))
        assert bayes.add(bytearray(64 << bits), bits, keys, 0, 1) > 0.857 * (16 << bits)


def test_scores_agree() -> None:
    rng = random.Random(150)
    for _ in range(60):
        bits = 7
        tables = [bytearray(64 << bits) for _ in range(4)]
        found = [rng.getrandbits(32) & ~7 | rng.randrange(8) for _ in range(rng.randrange(300))]
        for table in tables:
            for change in (1, 2, 7):
                some = [f >> 3 for f in found if rng.random() < 0.3]
                bayes.add(table, bits, struct.pack(f"={len(some)}I", *some), 0, change)
        packed = struct.pack(f"={len(found)}I", *found)
        mine: tuple[Any, ...] = (tables[0], bits, rng.randrange(20), tables[1], bits, rng.randrange(20))
        site: tuple[Any, ...] = (tables[2], bits, rng.randrange(900), tables[3], bits, rng.randrange(900))
        for given in (mine, mine + site):
            native = struct.unpack(f"={2 * len(found)}d", bayes.weigh(packed, *given))
            assert native == pytest.approx(struct.unpack(f"={2 * len(found)}d", bayes_py.weigh(packed, *given)), abs=1e-12)
            assert bayes.score(packed, *given) == pytest.approx(bayes_py.score(packed, *given), abs=1e-9)


def test_sizes_that_do_not_fit_are_refused() -> None:
    for side in (bayes, bayes_py):
        for bits, size in ((7, 64 << 8), (6, 64 << 6), (25, 64), (7, 0)):
            with pytest.raises(ValueError):
                side.add(bytearray(size), bits, b"", 0, 1)
        with pytest.raises(ValueError):
            side.add(bytearray(64 << 7), 7, b"", -1, 1)
        with pytest.raises(ValueError):
            side.grow(bytearray(64 << 8), 8, bytearray(64 << 7), 7)
        with pytest.raises((ValueError, TypeError)):
            side.score(b"123", bytearray(64 << 7), 7, 1, bytearray(64 << 7), 7, 1)
        room = bytearray(64 << 11)
        table = memoryview(room)[: 64 << 7]
        assert side.add(table, 7, struct.pack("=I", 0xFFFFFFFF), 0, 1) == 1
        assert struct.unpack("=II", side.items(table, 7)) == ((1 << side.KEY_BITS) - 1, 1) and not any(room[64 << 7 :]), "stays within the table"


def test_names_show_what_the_features_are() -> None:
    sections = [(bayes_py.HEADER, b"Subject: cheap pills\nFrom: Bob <bob@shop.test>\n"), (bayes_py.HTML, b"<a href=http://x.shop.test/>Buy</a> now")]
    shown = bayes_py.names(sections)
    assert set(struct.unpack(f"={len(shown)}I", bayes.features(sections))) == set(shown)
    assert {"subject:cheap", "subject:cheap pills", "from:shop.test", "url:shop.test", "body:buy", "body:buy now", "tag:a"} <= set(shown.values())
