"""Bits that flip on the disk (beyond.md 3, row 6), and mail that looks like the spool's own records.

What is promised. A record of a segment has a checksum of its header and one of envelope and content: both are checked when an index
is built, when a message is moved, by fsck, and before a message is delivered or relayed. A row of the queue has one, checked
whenever it is read. Pages of LMDB have none: what LMDB finds wrong with a page costs the index, which is built again. In the
store nothing has a checksum, neither rows nor contents once delivered: there, damage that LMDB can see costs what stands
on the page, and other damage is not seen.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import time
from pathlib import Path

import pytest

from iems.perf.queue import until_drained
from iems.spool import records
from tests.integration.faults.rig import FaultHome, noticed, queued_as, until, variants
from tests.support.senders import delivered


def flip(path: Path, at: int, bit: int = 2) -> None:
    """Flip one bit of a file."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.pwrite(fd, bytes((os.pread(fd, 1, at)[0] ^ bit,)), at)
    finally:
        os.close(fd)


def queued(home: FaultHome, count: int = 6) -> dict[str, str]:
    """Queue messages m0, m1, ... for LOCAL, which is on hold, and stop the server: name -> id."""
    ids = {f"m{n}": queued_as(home.send(f"m{n}", b"body of m%d\r\n" % n * 30)) for n in range(count)}
    until(lambda: home.status()["channels"]["LOCAL"]["held"] == count)
    home.stop()
    return ids


def segment_with(home: FaultHome, text: bytes) -> tuple[Path, int]:
    """The segment that holds `text`, and where."""
    for path in (home.path / "spool/segments").glob("*.seg"):
        at = path.read_bytes().find(text)
        if at >= 0:
            return path, at
    raise AssertionError(f"{text!r} is in no segment")


def fsck(home: FaultHome) -> list[dict[str, str]]:
    try:
        home.ctl("fsck", "--json")
    except RuntimeError as error:
        text = str(error).partition(": ")[2]
        return [json.loads(line) for line in text.splitlines()]
    return []


def lose_index(home: FaultHome) -> None:
    shutil.rmtree(home.path / "spool/index")


@variants("no_look_at_contents")
def test_a_flip_in_a_content(unsafe: str) -> None:
    """Only that message is quarantined; fsck names it. Checked with the look at the checksum left out (unsafe.py)."""
    with FaultHome(held=("LOCAL",), unsafe=unsafe) as home, noticed(unsafe):
        ids = queued(home)
        path, at = segment_with(home, b"body of m3")
        flip(path, at + 40)
        home.start()
        home.ctl("queue", "release", "--channel", "LOCAL")
        until_drained(home.path)
        assert set(delivered(home.path)) == set(ids) - {"m3"}, "damaged content was served"
        assert home.status()["channels"]["LOCAL"]["quarantined"] == 1
        (event,) = home.events("quarantined")
        assert event["id"] == ids["m3"]
        assert [finding["id"] for finding in fsck(home)] == [ids["m3"]]
        (shown,) = [json.loads(line) for line in home.ctl("queue", "list", "--json").splitlines()]
        assert (shown["id"], shown["state"]) == (ids["m3"], "quarantined")
        assert json.loads(home.ctl("audit", "--json"))["missing"] == 0
        # A person may look at it and let it go.
        home.ctl("queue", "release", ids["m3"])
        until_drained(home.path)
        assert set(delivered(home.path)) == set(ids)


@pytest.mark.parametrize("where", ["header", "envelope", "content"])
def test_a_flip_in_a_record_when_the_index_is_lost(where: str) -> None:
    """The index is built from the segments: the damaged message is not taken up, all others are; fsck names the place."""
    with FaultHome(held=("LOCAL",)) as home:
        ids = queued(home)
        path, at = segment_with(home, b"body of m3")
        if where == "content":
            flip(path, at)
        else:
            data = path.read_bytes()
            head = data.rindex(records.HEAD_MAGIC, 0, at)
            flip(path, head + (48 if where == "header" else records.HEAD_OCTETS + 8))
        lose_index(home)
        home.start()
        (rebuilt,) = until(lambda: home.events("rebuilt"))
        assert rebuilt["detail"]["damaged"] == 1
        home.ctl("queue", "release", "--channel", "LOCAL")
        until_drained(home.path)
        assert set(delivered(home.path)) >= set(ids) - {"m3"}
        assert "m3" not in delivered(home.path)
        findings = fsck(home)
        assert findings and all(finding["where"] == path.name for finding in findings)
        assert where == "header" or ids["m3"] in [finding["id"] for finding in findings]
        assert home.send("after").startswith(b"250")


def test_a_flip_in_a_row_of_the_queue() -> None:
    """The row is set aside by its checksum, and the janitor brings the message back from its segment."""
    with FaultHome(held=("LOCAL",), unsafe="hasty") as home:
        ids = queued(home)
        index = home.path / "spool/index/data.mdb"
        data = index.read_bytes()
        at = -1
        while (at := data.find(b"a1@load.test", at + 1)) >= 0:
            # every version of the row of one message, whichever page is in force
            if ids_near(data, at) == ids["m2"]:
                flip(index, at + 1)
        home.start()
        home.ctl("queue", "release", "--channel", "LOCAL")
        until_drained(home.path)
        until(lambda: set(delivered(home.path)) == set(ids))
        assert set(delivered(home.path).values()) == {1}
        assert json.loads(home.ctl("audit", "--json"))["missing"] == 0


def ids_near(data: bytes, at: int) -> str:
    """The id in the row whose envelope has this place: an Item begins with its 16 octets (MessagePack bin 8)."""
    from iems.model import id_text

    start = data.rfind(b"\xc4\x10", max(0, at - 200), at)
    return id_text(data[start + 2 : start + 18]) if start >= 0 else ""


def scatter(home: FaultHome, seed: int, flips: int) -> None:
    rng = random.Random(seed)
    index = home.path / "spool/index/data.mdb"
    size = index.stat().st_size
    for _ in range(flips):
        flip(index, rng.randrange(size), 1 << rng.randrange(8))


def check_scattered(seed: int, flips: int) -> None:
    with FaultHome(held=("LOCAL",), unsafe="hasty") as home:
        ids = queued(home)
        scatter(home, seed, flips)
        home.start()
        late = until(lambda: (reply := home.send("late")).startswith(b"250") and reply)
        assert late
        # Again and again: a release in an index that is found damaged afterwards is lost with it.
        until(lambda: _released(home) and set(delivered(home.path)) == {*ids, "late"})
        assert set(delivered(home.path).values()) == {1}


def _released(home: FaultHome) -> bool:
    try:
        home.ctl("queue", "release", "--channel", "LOCAL")
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("seed", [2, 4])
def test_flips_all_over_the_index(seed: int) -> None:
    """Sixty bits of the index flip, in pages of every kind: it may be lost, but no mail is, and the server goes on."""
    check_scattered(seed, 60)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 160))
def test_flips_all_over_the_index_long(seed: int) -> None:
    check_scattered(seed, random.Random(seed).choice((1, 5, 30, 200, 2000)))


def test_a_damaged_page_of_the_store() -> None:
    """A whole page of a mailbox's rows is overwritten: what is on it can't be read, other accounts and new mail are served."""
    with FaultHome(2) as home:
        for n in range(120):
            assert home.send(f"m{n}", recipient=f"a{n % 2 + 1}@load.test").startswith(b"250")
        until_drained(home.path)
        before = delivered(home.path)
        assert len(before) == 120
        home.stop()
        index = home.path / "store/p0/index/data.mdb"
        data = index.read_bytes()
        pages = [at for at in range(0, len(data), 4096) if leaf_of(data[at : at + 4096], (2).to_bytes(4, "big"))]
        assert pages
        for at in pages:
            with open(index, "r+b") as file:
                file.seek(at)
                file.write(b"\xa5" * 4096)
        home.start()
        other = home.imap(1)
        assert len(other.search(None, "ALL")[1][0].split()) == 60
        assert all(other.fetch(str(n), "(BODY[] ENVELOPE)")[0] == "OK" for n in (1, 30, 60))
        assert home.send("late").startswith(b"250")
        until(lambda: "late" in delivered_to(home, 1))
        restarts = home.restarts()
        with home.wire("imap") as wire:
            wire.line()
            wire.tagged(b"LOGIN a2@load.test pw")
            answer = wire.tagged(b"SELECT INBOX")
            assert answer, "the session hangs"
            wire.tagged(b"FETCH 1:* (FLAGS ENVELOPE)")
        time.sleep(1.0)
        assert home.restarts() - restarts <= 2, "a crash loop"


def leaf_of(page: bytes, prefix: bytes) -> bool:
    """Whether this is a leaf page of LMDB with rows, all of which begin with `prefix`."""
    flags, lower, _ = struct.unpack_from("<HHH", page, 10)
    pointers = struct.unpack_from(f"<{(lower - 16) // 2}H", page, 16) if flags == 2 and 16 < lower < 4096 else ()
    return bool(pointers) and all(page[at + 8 : at + 8 + len(prefix)] == prefix for at in pointers)


def delivered_to(home: FaultHome, user: int) -> set[str]:
    client = home.imap(user)
    numbers = client.search(None, "ALL")[1][0].split()
    if not numbers:
        return set()
    _, data = client.fetch(numbers[-1], "(BODY[HEADER.FIELDS (X-NUMBER)])")
    client.logout()
    return {data[0][1].split(b":")[1].strip().decode()}


def imitation(nonce: bytes, offset: int, payload: bytes) -> bytes:
    """A record as it would stand at `offset` of a segment with this nonce: header, payload, checksums and all."""
    from iems.spool.records import HEAD, HEAD_MAGIC, Kind, crc32c

    head = HEAD.pack(HEAD_MAGIC, Kind.MESSAGE, 0, 0, nonce, offset, b"i" * 16, 1, len(payload), 0, 0)[:-4]
    head += crc32c(head).to_bytes(4, "little")
    body = payload + crc32c(payload).to_bytes(4, "little")
    return head + body + bytes(-(len(head) + len(body)) % 8)


@variants("any_nonce")
def test_mail_that_imitates_records(unsafe: str) -> None:
    """Bodies made of records: true ones of this spool copied whole, and made ones for every place they might stand at, with the
    nonce of another segment. Index lost: each message comes back once, and nothing of what it imitates.

    Checked with a reader that takes any nonce (unsafe.py).
    """
    from iems.model import Channel, Envelope, Recipient
    from iems.spool.records import MessageHead, encode

    with FaultHome(held=("LOCAL",), settings={"smtpd.workers": 1, "smtpd.content_line_octets": 0, "smtpd.bare_lf": "normalise"}, unsafe=unsafe) as home, noticed(unsafe):
        assert home.send("first", b"x" * 300).startswith(b"250")
        time.sleep(0.3)
        path, _ = segment_with(home, b"X-Number: first")
        whole = path.read_bytes()
        forged = encode(MessageHead(Envelope(Channel.SMTPD, b"thief@load.test", [Recipient(b"a1@load.test", b"a1@load.test")], 1), [b"Subject: forged\r\n\r\n"]))
        nonce = os.urandom(8)
        bodies = [whole[64:], whole[:64] + whole[64:], *(b"".join(imitation(nonce, at, forged) for at in range(base, base + 400)) for base in range(0, 1600, 400))]
        # BDAT is taken as it is; DATA would have its line ends looked at.
        with home.wire("smtp") as wire:
            wire.hello()
            for number, body in enumerate(bodies):
                for shift in range(4):
                    text = b"X-Number: b%d-%d\r\n\r\n" % (number, shift) + b"." * shift * 2 + body.replace(b"\0\n", b"\0\r\n")
                    wire.send(b"MAIL FROM:<s@load.test> BODY=BINARYMIME\r\n")
                    if not wire.reply().startswith(b"250"):
                        pytest.fail("BINARYMIME is not offered")
                    assert wire.ask(b"RCPT TO:<a1@load.test>").startswith(b"250")
                    wire.send(b"BDAT %d LAST\r\n" % len(text) + text)
                    assert wire.reply().startswith(b"250")
        expected = {"first": 1} | {f"b{number}-{shift}": 1 for number in range(len(bodies)) for shift in range(4)}
        until(lambda: home.status()["channels"]["LOCAL"]["held"] == len(expected))
        home.stop()
        lose_index(home)
        home.start()
        (rebuilt,) = until(lambda: home.events("rebuilt"))
        assert rebuilt["detail"]["messages"] == len(expected) and rebuilt["detail"]["damaged"] == 0
        home.ctl("queue", "release", "--channel", "LOCAL")
        until_drained(home.path)
        client = home.imap()
        assert len(client.search(None, "ALL")[1][0].split()) == len(expected), "an imitation came to life"
        assert fsck(home) == []
