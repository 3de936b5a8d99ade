"""Names of the files in archives: made by other programs, made to mislead, cut, broken, too large."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import lzma
import random
import resource
import tarfile
import tracemalloc
import zipfile

import pytest

from iems.attachment import inside, packed, rar, sevenzip
from iems.attachment.octets import BadArchive
from tests.support.archives import cabinet, rar4, rar5

FILES = [(b"folder/read me.txt", b"x"), (b"a.exe", b"MZ")]
NAMES = ["folder/read me.txt", "a.exe"]
#: Made by 7-Zip 26.02 from FILES: with a plain and a packed header, with a header that tells of encrypted files, files apart, filters.
SEVENZIP = {
    "plain": base64.b64decode(
        "N3q8ryccAARvXpZeBwAAAAAAAACGAAAAAAAAAP+dLP8BAAJNWngAAQQGAAEJBwAHCwEAASEhAQAMAwAIDQIJAgoBXZuwj4MW3IwAAAUCGQQAAAAAETMAYQAu"
        "AGUAeABlAAAAZgBvAGwAZABlAHIALwByAGUAYQBkACAAbQBlAC4AdAB4AHQAAAAZABQSAQAKTNrkZnzdAQpM2uRmfN0BFQoBACCApIEggKSBAAA="
    ),
    "packed": base64.b64decode(
        "N3q8ryccAASxUn5YeAAAAAAAAAAhAAAAAAAAAIQxItoBAAJNWngAAACBMweuD84lflFCynNIGZqoUZTnWFvYnJ4mRtUs8WH1R9cBpAChhtIjJFhI8d5vz8x0"
        "H9QRRS9D+jq5UMEEETVVp/W5gNybH4CJx28LGkVFLm8iq6suwwJouNYjYBlpWu0Q9N/NCrS2eu92yZ5OAAAXBgcBCXEABwsBAAEjAwEBBV0AEAAADICGCgH/"
        "nSz/AAA="
    ),
    "content": base64.b64decode(
        "N3q8ryccAATbhE12nQAAAAAAAAAiAAAAAAAAAAVPt3TxqvLUegnhHyYK6uDazEc8AACBMweuD87ysgwHsMPa919FiphISvfkWtXq+SUYlZkVEdN+/GpLwHSy"
        "C18b7VEIaFIZlp7YK+8eUF8cr+d7Bd+PhIvWOXNfAf9H11oV0hGPj9C4kcPWKxkXvCCtag1IPVBMqoyRAOPVOxUVVOVK3DyHteJGTBJOMan3unmoRz521s0T"
        "a6ylPhTaRwAAFwYQAQmAjQAHCwEAASMDAQEFXQAQAAAMgKYKAQoV+A4AAA=="
    ),
    "apart": base64.b64decode(
        "N3q8ryccAASt/KRzgwAAAAAAAAAhAAAAAAAAAD/ya2IATQ8j3HQAAHeId4gAAACBMweuMZisiWj7LCCXHocZm5XdZpJEkVroaNWLQAU94cQnVWl69BkuZQpY"
        "Cl5crDipHK3fr8vMmUfK4s+cfrNamJE5UfIW0ZkPQdKx4wWb4pnZuT5RUZ8fSRGtv5rxsssOEerxGbmgffFtKuyfoBvN6QAAABcGDQEJdgAHCwEAASMDAQEF"
        "XQAQAAAMgJYKAf+wFUAAAA=="
    ),
    "bcj": base64.b64decode(
        "N3q8ryccAAQN2MKriQAAAAAAAAAhAAAAAAAAAPk3Q70BAAJNWngAAAAAAAAAAIEzB65tvp7DqEqYqsVg8wO9xee08VZeScrF9r447L8ytJMjm4iFiK02QFm7"
        "v1eiW4jmTuiNGo05PGgrIKE3304I6NItCKDzlJOOOGdTPlteNTrmguFvfDc4KJz4S20jmtjkpPD2rybhcv/0rmJwgpksk2KzWtWbcMAAABcGDAEJfQAHCwEA"
        "ASMDAQEFXQAQAAAMgJYKAW0n9noAAA=="
    ),
}  # fmt: skip
HIDDEN = base64.b64decode(
    "N3q8ryccAAS9vuj2oAAAAAAAAAA+AAAAAAAAANLGMW7Z+LJMbZDZDTqOzAf4KO9pAVL71S0NddaljH1/xeA63VzRMYvps8aR/rrwv4+Si0Huk3wSaRxo/5/Y"
    "XW9Cy/ALWDKc/4bza8815oCpDBLzNyBQ6P7l8SVSmiH6or6H4pBaoDDgnNSrL4g9ar8hkUzFf0jpgexOgjAwPPQnwd2011agOtdlPXoas3NdO0+eEEzBuep6"
    "vI2Kl7jOhM+w4knDFwYQAQmAkAAHCwEAAiQG8QcBElMPAzukTaGWCm1XbziL490haiMDAQEFXQAQAAABAAyAjYCmCgF9u11RAAA="
)


def tarred(*names: str, octets: bytes = b"") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(octets)
            tar.addfile(entry, io.BytesIO(octets))
    return out.getvalue()


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return out.getvalue()


def names(octets: bytes, called: str = "") -> list[str]:
    found, trouble = inside.listed(octets, [called] if called else [])
    assert not trouble, trouble
    return [name for name, _ in found]


@pytest.mark.parametrize("octets", [rar4(FILES), rar4(FILES, flags=0x100), rar5(FILES), cabinet(FILES), *SEVENZIP.values()])
def test_names(octets: bytes) -> None:
    assert sorted(names(octets)) == sorted(NAMES)
    # Behind a program that unpacks it, which the filter sees as the program it is.
    if octets[:4] != b"MSCF":
        assert sorted(names(b"MZ" + bytes(5_000) + octets)) == sorted(NAMES)


def test_names_in_unicode() -> None:
    wide = b"a?.exe\0\0" + bytes((0b00100000, ord("a"))) + "ж".encode("utf-16-le") + b".e\0xe"
    assert names(rar4([(wide, b"x")], flags=0x200)) == ["a?.exe", "aж.exe"]
    assert names(rar4([("aж.exe".encode(), b"x")], flags=0x200)) == ["aж.exe"]
    assert names(rar5([("aж.exe".encode(), b"x")])) == ["aж.exe"]


@pytest.mark.parametrize("octets", [rar4(FILES, hidden=True), rar5([], hidden=True)])
def test_hidden_names(octets: bytes) -> None:
    assert inside.listed(octets) == ([], rar.HIDDEN)


@pytest.mark.parametrize(("pack", "ending"), [(gzip.compress, "gz"), (bz2.compress, "bz2"), (lzma.compress, "xz")])
def test_packed_as_a_whole(pack, ending) -> None:
    assert inside.listed(pack(b"MZ" + bytes(900)), [f"a.exe.{ending}"]) == ([("a.exe", "application/x-msdownload")], "")
    assert inside.listed(pack(b"MZ" + bytes(900)), ["x"]) == ([("", "application/x-msdownload")], "")
    assert names(pack(tarred("b/a.exe", "c.txt")), f"x.t{ending}") in (["x.tar", "b/a.exe", "c.txt"], ["", "b/a.exe", "c.txt"])
    bomb = pack(tarred("a.exe", octets=bytes(packed.UNPACKED_MAX // 4)))
    room = packed.Room()
    said = [inside.listed(bomb, [f"x.tar.{ending}"], room)[1] for _ in range(20)]
    assert said[:3] == [""] * 3 and all("more than is unpacked" in trouble for trouble in said[4:]), "of one message no more than a stated number of octets"
    broken = pack(random.Random(1).randbytes(9_000))[:-3_000]
    assert inside.listed(broken[:40], [f"a.exe.{ending}"])[0][0][0] == "a.exe"
    assert inside.listed(pack(b"")[:7] + b"\xff" * 40, [f"a.exe.{ending}"])[1].startswith("a broken archive") or ending == "bz2"


def test_a_zip_archive_with_more_local_headers_than_are_read() -> None:
    """Its table names one file; a program that reads from the beginning sees those before it, of which the last is not looked at."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("harmless.txt", "x")
    local = b"PK\x03\x04" + bytes(22) + b"\x05\x00\x00\x00a.exe"
    found, trouble = inside.listed(local * inside.MAX_NAMES + out.getvalue())
    assert ("a.exe", "") in found and trouble == "too many files"
    assert inside.listed(local * (inside.MAX_NAMES - 1) + out.getvalue())[1] == ""


def test_a_zip_archive_with_two_tables() -> None:
    """What reads it from the beginning sees other names than what reads it from its end."""
    good = zipped("a.txt", "b.txt")
    assert names(good) == ["a.txt", "b.txt"]
    at = good.index(b"a.txt")
    assert "a.exe" in names(good[:at] + b"a.exe" + good[at + 5 :])
    assert "a.exe" in names(zipped("a.exe") + zipped("b.txt"))
    cut = zipped("a.exe")[:-30]
    assert inside.listed(cut)[0] == [("a.exe", "")] and "broken" in inside.listed(cut)[1]
    hidden = bytearray(zipped("a.exe"))
    hidden[hidden.index(b"PK\1\2") + 9] |= 0x20
    assert inside.listed(bytes(hidden))[1]


@pytest.mark.parametrize("octets", [
    b"\x28\xb5\x2f\xfd" + bytes(90), b"LZIP" + bytes(90), b"\x60\xea" + bytes(8) + b"\2" + bytes(90), bytes(7) + b"**ACE**" + bytes(90),
    b"\0\0-lh5-" + bytes(90), b"MSWIM\0\0\0" + bytes(90), bytes(32_769) + b"CD001", bytes(32_769) + b"BEA01", b"!<arch>\n" + bytes(90), b"070701" + b"0" * 104, b"\x1f\x9d\x90" + bytes(90),
])  # fmt: skip
def test_what_is_not_looked_into_says_so(octets: bytes) -> None:
    assert inside.listed(octets) == ([], "an archive of a kind that is not looked into")


def test_marks_that_begin_no_archive() -> None:
    program = b"MZ" + bytes(100) + rar.MARK + b"\0" + bytes(100) + sevenzip.MARK + bytes(100)
    assert inside.listed(program) == ([], "")
    assert inside.listed(b"ls-lh and Rar! and 7z in a text") == ([], "")
    assert inside.listed(rar.MARK + b"\0" + bytes(20))[1] and inside.listed(sevenzip.MARK + bytes(40))[1]


@pytest.mark.parametrize("octets", [rar4(FILES[::-1]), rar5(FILES[::-1]), cabinet(FILES[::-1]), tarred("a.exe", "b", octets=b"x" * 900), gzip.compress(tarred("a.exe", "b", octets=b"x" * 900), 0)])
def test_what_comes_before_the_break_is_found(octets: bytes) -> None:
    """Programs show it; behind other octets, too."""
    at = octets.rindex(b"folder") if b"folder" in octets else octets.rindex(b"ustar") - 200
    for before in (b"", b"x"):
        found, trouble = inside.listed(before + octets[:at] + b"\xff" * 8)
        if not before or octets[:4] == b"Rar!":
            assert "a.exe" in [name for name, _ in found] and ("broken" in trouble or octets[257:262] == b"ustar"), before


def test_tar_without_a_mark() -> None:
    octets = bytearray(tarred("a.exe"))
    octets[257:265] = bytes(8)
    octets[148:156] = b"%06o\0 " % (sum(octets[:148]) + 256 + sum(octets[156:512]))
    assert names(bytes(octets)) == ["a.exe"]
    assert names(bz2.compress(octets), "x.tbz") == ["x.tar", "a.exe"]


def test_files_behind_the_end_of_a_tar_archive() -> None:
    first, second = tarred("a.txt", octets=b"x"), tarred("a.exe")
    for middle in (b"", b"\xff" * 512, bytes(5_120)):
        assert names(first + middle + second) == ["a.txt", "a.exe"]
        assert [name for name in names(gzip.compress(first + middle) + gzip.compress(second)) if name] == ["a.txt", "a.exe"]


def test_every_cut_and_change_ends() -> None:
    """What is broken is told, not believed; nothing is raised, and the memory and time of it are bounded."""
    rng = random.Random(7)
    whole = [rar4(FILES), rar5(FILES), cabinet(FILES), HIDDEN, zipped("a.exe"), gzip.compress(tarred("a.exe")), *SEVENZIP.values()]
    for octets in whole:
        for cut in range(0, len(octets), max(1, len(octets) // 60)):
            inside.listed(octets[:cut])
        for _ in range(300):
            changed = bytearray(octets)
            for _ in range(rng.randrange(1, 5)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            inside.listed(bytes(changed))


def test_numbers_without_measure() -> None:
    """Counts and lengths of 2**64 cost nothing."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    tracemalloc.start()
    huge = b"\xff" * 9
    for body in (b"\1\4\6" + huge * 3, b"\1\4\7\x0b" + huge, b"\1\4\x08\x0d" + huge, b"\1\5" + huge * 4, b"\1\2\1" + huge, b"\x17\6\0\1\x09" + huge + b"\0"):
        with pytest.raises(BadArchive):
            sevenzip.listed(signed(body), 0, 100, [])
    # A dictionary of 4 GiB, for a header of nine octets.
    folder = b"\7\x0b\1\0\1\x23\3\1\1\5\x5d\xff\xff\xff\xff\x0c\x09\0\0"
    with pytest.raises(BadArchive):
        sevenzip.listed(signed(b"\x17\6\0\1\x09\x08\0" + folder, bytes(8)), 0, 100, [])
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 5


def signed(header: bytes, before: bytes = b"") -> bytes:
    """A 7z archive with such a header, whose checksums are right."""
    import struct
    from zlib import crc32

    tail = struct.pack("<QQI", len(before), len(header), crc32(header))
    return sevenzip.MARK + b"\0\4" + struct.pack("<I", crc32(tail)) + tail + before + header


def test_many_files() -> None:
    many = [(b"%d" % number, b"") for number in range(inside.MAX_NAMES + 5)]
    for make in (rar4, rar5):
        found, trouble = inside.listed(make(many))
        assert len(found) == inside.MAX_NAMES and trouble == "too many files"
