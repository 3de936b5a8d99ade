"""What domains keep is counted with each change, and limits them; formats with and without these counts."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import pytest

from iems.directory import Directory
from iems.errors import IemsError
from iems.spool import keys as spool_keys
from iems.spool import records
from iems.store import formats, keys, wire
from iems.store.fsck import look, repair
from iems.store.partition import Partition
from iems.store.quota import DomainRoom
from iems.store.reader import Reader
from iems.store.rows import FORMAT, Account, DomainUse, Meta, encode
from tests.unit.store.home import Home, delivery, message, pack

SIZE = 117


def uses(home: Home) -> dict[str, tuple[int, int, int]]:
    """Domain -> (octets, messages, accounts) as counted."""
    found = {}
    with home.partition.env.begin() as txn:
        for key, value in txn.cursor():
            if key[:5] == keys.head(0, keys.DOMAIN):
                use = msgspec.msgpack.decode(value, type=DomainUse)
                found[key[5:].decode()] = (use.octets, use.messages, use.accounts)
    return found


def test_a_domain_is_full_for_all_its_accounts(home: Home) -> None:
    limit = {"domain": "x.test", "domain_octets": 3 * SIZE + 100}
    answers = home.deliver(
        delivery(1, 1, **limit), delivery(2, 2, **limit), delivery(3, 3, domain="y.test", domain_octets=SIZE), delivery(4, 2, **limit), delivery(5, 1, **limit)
    )
    assert [(answer.status, answer.text) for answer in answers] == [("ok", ""), ("ok", ""), ("ok", ""), ("ok", ""), ("overquota", "domain")]
    assert uses(home) == {"x.test": (3 * SIZE, 3, 2), "y.test": (SIZE, 1, 1)}
    # What goes to the trash does not count; APPEND and COPY know the limit, MOVE adds nothing.
    assert home.deliver(delivery(6, 1, discard=True, **limit))[0].status == "ok"
    assert home.ask(wire.Append(1, "INBOX", [message(length=101)], **limit))[0] == "OVERQUOTA"
    assert home.ask(wire.Append(1, "INBOX", [message(length=100)], **limit))[2]
    assert home.ask(wire.Copy(2, 1, pack(1), "Archive", **limit))[0] == "OVERQUOTA"
    assert home.ask(wire.Copy(2, 1, pack(1), "Archive", True, **limit))[2]
    home.ask(wire.StoreFlags(1, 1, pack(1), "+", ["\\Deleted"]))
    home.ask(wire.Expunge(1, 1))
    assert uses(home)["x.test"] == (2 * SIZE + 100, 3, 2)
    home.reopen()
    assert home.deliver(delivery(7, 1, **limit))[0].status == "ok"
    home.ask(wire.Drop(2))
    home.ask(wire.Drop(1))
    assert uses(home) == {"y.test": (SIZE, 1, 1)}
    assert home.deliver(delivery(8, 3, domain="z.test"))[0].status == "ok"
    assert uses(home) == {"z.test": (2 * SIZE, 2, 1)}


def test_the_counts_are_those_of_the_accounts_whatever_happens(home: Home) -> None:
    rng = random.Random(9208)
    domains = {1: "a.test", 2: "a.test", 3: "b.test", 4: "b.test"}
    for number in range(300):
        account = rng.randrange(1, 5)
        domain = {"domain": domains[account], "domain_octets": rng.choice([None, 4000])}
        uid, box = rng.randrange(1, 30), rng.choice([1, 2, 5])
        home.ask(rng.choice([
            wire.Deliver([delivery(number, account, **domain), delivery(number + 1000, account, mailbox="Sent", discard=number % 3 == 0, **domain)]),
            wire.Append(account, "Sent", [message(1), message(2)], **domain),
            wire.Copy(account, box, pack(uid, uid + 1), "Archive", rng.random() < 0.5, **domain),
            wire.StoreFlags(account, box, pack(uid), "+", ["\\Deleted"]), wire.Expunge(account, box),
            wire.Create(account, f"M{number % 3}"), wire.Rename(account, "INBOX", f"From{number}"), wire.Delete(account, f"From{number - 5}"),
        ]))  # fmt: skip
        if number % 60 == 0:
            home.ask(wire.Drop(account))
        if number % 50 == 0:
            home.reopen()
    sums: dict[str, tuple[int, int, int]] = {}
    with home.partition.env.begin() as txn:
        for account, name in domains.items():
            raw = txn.get(keys.account(account))
            row = msgspec.msgpack.decode(raw, type=Account) if raw else Account()
            if row.domain:
                octets, messages, accounts = sums.get(name, (0, 0, 0))
                sums[name] = (octets + row.octets, messages + row.messages, accounts + 1)
    assert uses(home) == sums and sums


def test_a_wrong_count_is_found_and_mended(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.deliver(delivery(1, 1, domain="x.test"))
    home.close()
    folder = tmp_path / "store/p0"
    with lmdb.open(str(folder / "index"), map_size=1 << 30) as env, env.begin(write=True) as txn:
        txn.put(keys.domain("x.test"), encode(DomainUse(1, 1, 1)))
        txn.put(keys.domain("none.test"), encode(DomainUse(1, 1, 1)))
    assert [finding.what for finding in look(folder, 0).findings] == [f"what the domain {name}.test keeps is counted wrongly" for name in ("none", "x")]
    assert all(finding.mended for finding in repair(folder, 0).findings)
    home.open()
    assert uses(home) == {"x.test": (SIZE, 1, 1)}
    home.close()


def test_room_is_what_the_other_partitions_leave() -> None:
    class Others:
        def domain_octets(self, name: str, leave_out: int) -> int:
            return {("x.test", 1): 400, ("y.test", 1): 2000}[name, leave_out]

    class Someone:
        domain, partition, domain_quota_octets = "x.test", 1, 1000

    def nobody() -> Any:
        raise AssertionError("one partition needs no look")

    assert DomainRoom(lambda: Others(), 2).of(Someone) == 600  # type: ignore[arg-type, return-value]
    assert DomainRoom(nobody, 1).of(Someone) == 1000
    Someone.domain = "y.test"
    assert DomainRoom(lambda: Others(), 2).of(Someone) == 0  # type: ignore[arg-type, return-value]
    Someone.domain_quota_octets = None  # type: ignore[assignment]
    assert DomainRoom(nobody, 2).of(Someone) is None


# Formats


def old_home(path: Path) -> Home:
    """A home as the version before wrote it: format 1, account rows of six fields."""
    home = Home(path)
    home.deliver(delivery(1, 1), delivery(2, 2), delivery(3, 3), delivery(4, 1, flags=["work"]))
    home.close()
    with lmdb.open(str(path / "store/p0/index"), map_size=1 << 30) as env, env.begin(write=True) as txn:
        txn.put(keys.META_KEY, encode(Meta(1, 0)))
        for number in (1, 2, 3):
            row = msgspec.msgpack.decode(txn.get(keys.account(number)))
            txn.put(keys.account(number), encode(row[:6]))
    return home


ADDRESSES = {1: "a@x.test", 2: "b@x.test", 3: "c@y.test"}


def raw(path: Path) -> dict[bytes, bytes]:
    with lmdb.open(str(path / "store/p0/index"), map_size=1 << 30, readonly=True) as env, env.begin() as txn:
        return {bytes(key): bytes(value) for key, value in txn.cursor()}


def test_the_format_before_is_read_and_written_as_it_is(tmp_path: Path) -> None:
    home = old_home(tmp_path)
    home.open()
    assert home.partition.format == 1
    assert home.deliver(delivery(9, 1, domain="x.test", domain_octets=1))[0].status == "ok"
    assert home.reader.usage(1) == (3 * SIZE, 3) and uses(home) == {}
    home.close()
    # The version before takes the fields it knows, of a row written now, too.
    assert msgspec.msgpack.decode(raw(tmp_path)[keys.account(1)])[:6][4:] == [3 * SIZE, 3]
    assert look(tmp_path / "store/p0", 0).findings == []


def test_conversion_and_the_way_back(tmp_path: Path) -> None:
    home = old_home(tmp_path)
    store, before = tmp_path / "store", raw(tmp_path)
    dry = formats.convert(store, "p0", ADDRESSES, dry_run=True)
    assert dry == formats.Change("p0", 1, 2, 3, 2) and raw(tmp_path) == before
    assert formats.convert(store, "p0", ADDRESSES) == dry
    assert formats.convert(store, "p0", ADDRESSES) is None
    assert look(store / "p0", 0).findings == []
    home.open()
    assert uses(home) == {"x.test": (3 * SIZE, 3, 2), "y.test": (SIZE, 1, 1)}
    assert home.deliver(delivery(9, 2, domain="x.test", domain_octets=3 * SIZE))[0].text == "domain"
    with pytest.raises(IemsError, match="in use"):
        hold = subprocess.Popen([sys.executable, "-c", "import fcntl,sys;f=open(sys.argv[1]);fcntl.flock(f,2);print(1,flush=True);sys.stdin.read()",
                                 str(store / "p0/owner")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
        assert hold.stdout is not None and hold.stdout.readline()
        try:
            formats.convert(store, "p0", ADDRESSES, back=True)
        finally:
            hold.kill()
            hold.wait()
    home.close()
    assert formats.convert(store, "p0", ADDRESSES, back=True) == formats.Change("p0", 2, 1, 3, 0)
    assert raw(tmp_path) == before


def test_what_members_have_seen_is_kept_in_both_formats(tmp_path: Path) -> None:
    home = old_home(tmp_path)
    home.open()
    assert home.partition.format == 1
    home.ask(wire.StoreFlags(1, 1, pack(1, 2), "+", ["\\Seen"], member=7))
    home.close()

    def seen() -> list[int]:
        home.open()
        flags = [int(one) for one in home.reader.select(1, 1, 7).flags]  # type: ignore[union-attr]
        home.close()
        assert look(tmp_path / "store/p0", 0).findings == []
        return flags

    before = seen()
    assert [one & 1 for one in before] == [1, 1]
    for back in (False, True, False):
        formats.convert(tmp_path / "store", "p0", ADDRESSES, back=back)
        assert seen() == before


def test_a_home_made_by_the_version_before(tmp_path: Path) -> None:
    """`home-format-1.tar.gz`: directory and store as the last version of format 1 wrote them."""
    shutil.unpack_archive(Path(__file__).with_name("home-format-1.tar.gz"), tmp_path)
    (tmp_path / "spool/segments").mkdir(parents=True)
    directory = Directory(tmp_path / "directory")
    addresses = {account.number: account.address for account in directory.list_accounts()}
    directory.close()

    def mail() -> dict[str, list[Any]]:
        reader = Reader(tmp_path / "store")
        found: dict[str, list[Any]] = {}
        for number, address in addresses.items():
            for box in reader.mailboxes(number):
                table = reader.table(number, box.id)
                assert table is not None
                uids = table[1]["uid"].tolist()
                found[f"{address} {box.name}"] = [
                    (uid, box.flag_names(row.flags), row.modseq, bytes(reader.blobs.read(row.rope)))
                    for uid, row in zip(uids, reader.messages(number, box.id, uids), strict=True) if row is not None
                ]  # fmt: skip
            found[f"{address} trash"] = [one.row.uid for one in reader.trash(number)]
        reader.close()
        return found

    before, rows = mail(), raw(tmp_path)
    assert {name: len(found) for name, found in before.items() if found} == {
        "a@x.test INBOX": 2, "a@x.test trash": 1, "b@x.test INBOX": 2, "c@y.test INBOX": 1,
    }  # fmt: skip
    formats.check(tmp_path, tmp_path / "store", tmp_path / "spool")
    assert formats.convert(tmp_path / "store", "p0", addresses) == formats.Change("p0", 1, 2, 3, 2)
    assert mail() == before and look(tmp_path / "store/p0", 0).findings == []
    partition = Partition(tmp_path / "store/p0", tmp_path / "spool")
    with partition.env.begin() as txn:
        sums = [msgspec.msgpack.decode(txn.get(keys.domain(name)), type=DomainUse).accounts for name in ("x.test", "y.test")]
    partition.close()
    assert sums == [2, 1]
    assert formats.convert(tmp_path / "store", "p0", addresses, back=True) is not None
    assert mail() == before and raw(tmp_path) == rows


def test_killed_in_a_conversion_the_partition_is_as_it_was(tmp_path: Path) -> None:
    """Right before the commit, and in the middle of the rows; afterwards the conversion is simply made."""
    old_home(tmp_path)
    before = raw(tmp_path)
    code = (
        "import os,sys,signal\nfrom pathlib import Path\nfrom iems.store import formats\n"
        "count=int(sys.argv[2])\nreal=formats.encode\n"
        "def dying(value):\n    global count\n    count-=1\n    if count<0: os.kill(os.getpid(),signal.SIGKILL)\n    return real(value)\n"
        "formats.encode=dying\n"
        "formats.convert(Path(sys.argv[1]),'p0',{1:'a@x.test',2:'b@x.test',3:'c@y.test'})\n"
    )
    for count in range(6):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "store"), str(count)], check=False)
        assert done.returncode == -signal.SIGKILL
        assert raw(tmp_path) == before
    assert formats.convert(tmp_path / "store", "p0", ADDRESSES) is not None


def test_a_newer_home_is_refused_with_a_line(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.close()
    store, spool = tmp_path / "store", tmp_path / "spool"
    formats.check(tmp_path, store, spool)
    with lmdb.open(str(store / "p0/index"), map_size=1 << 30) as env, env.begin(write=True) as txn:
        txn.put(keys.META_KEY, encode(Meta(FORMAT + 1, 0)))
    with pytest.raises(formats.FormatRefusal, match=rf"p0 is of format {FORMAT + 1}, this version knows up to {FORMAT}.*newer version"):
        formats.check(tmp_path, store, spool)
    with pytest.raises(IemsError, match="format"):
        home.open()
    (spool / "index").mkdir()
    with lmdb.open(str(spool / "index"), map_size=1 << 20, max_dbs=32) as env:
        meta = env.open_db(b"meta")
        with env.begin(write=True) as txn:
            txn.put(spool_keys.META_VERSION, (spool_keys.VERSION + 1).to_bytes(4, "big"), db=meta)
    with pytest.raises(formats.FormatRefusal, match="queue index"):
        formats.check(tmp_path, store, spool)


def test_a_spool_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.close()
    head = records.FILE_HEAD.pack(records.FILE_MAGIC, b"n" * 8, 1 << 62, 0, 0, b"smtpd", 0, records.SEGMENT_FORMAT + 1, 1, 0)[:-4]
    (tmp_path / "spool/segments" / f"{1 << 62:016x}.seg").write_bytes(head + records.crc32c(head).to_bytes(4, "little"))
    with pytest.raises(formats.FormatRefusal, match="queue is of format 2"):
        formats.check(tmp_path, tmp_path / "store", tmp_path / "spool")


def test_a_damaged_partition_keeps_nobody_from_starting(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.close()
    store = tmp_path / "store"
    with lmdb.open(str(store / "p0/index"), map_size=1 << 30) as env, env.begin(write=True) as txn:
        txn.put(keys.META_KEY, b"\xc1")
    formats.check(tmp_path, store, tmp_path / "spool")
    assert [one.version for one in formats.partitions(store)] == [0]
    with pytest.raises(formats.FormatRefusal, match="fsck"):
        formats.convert(store, "p0", ADDRESSES)
    (store / "p0/index/data.mdb").write_bytes(b"no database" * 4096)
    formats.check(tmp_path, store, tmp_path / "spool")


def test_an_account_on_its_way_is_not_converted(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.deliver(delivery(1, 1, domain="x.test"))
    home.ask(wire.Hold(1, 5))
    home.ask(wire.Give(1, 5, 1))
    home.close()
    with pytest.raises(formats.FormatRefusal, match="finish the move"):
        formats.convert(tmp_path / "store", "p0", ADDRESSES, back=True)
