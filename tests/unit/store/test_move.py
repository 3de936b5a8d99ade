"""An account moves to another partition: all of it, under whatever happens meanwhile, killed wherever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from iems.errors import StoreError
from iems.store import keys, wire
from iems.store.fsck import look
from iems.store.handover import HOLD_S, owner_of
from iems.store.move import MoveFailure, Mover, Note, Notes, Side, finish, move
from iems.store.reader import Reader
from iems.store.rows import Account
from iems.store.soundness import Check
from tests.unit.store.home import SEGMENT, delivery, message, pack

ACCOUNT, NEIGHBOUR = 1, 2


class Killed(Exception):
    """Stands for the death of the mover."""


class Place:
    """A home with two partitions and nobody running; each use opens and closes them, as after a death."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store, self.spool = home / "store", home / "spool"
        for folder in (self.spool / "segments", self.spool / "large", self.store, home / "run"):
            folder.mkdir(parents=True)
        (self.spool / "segments" / f"{SEGMENT:016x}.seg").write_bytes(bytes(range(256)) * 4096)
        self.entry = 0  # what the directory says

    def ask(self, partition: int, *bodies: Any, account: int = ACCOUNT) -> list[Any]:
        side = Side(self.home, self.store, self.spool, partition)
        try:
            return [msgspec.msgpack.decode(side.ask(account, body)) for body in bodies]
        finally:
            side.close()

    def flip(self, partition: int) -> None:
        self.entry = partition

    def move(self, wanted: int, step: Callable[[str], None] = lambda name: None) -> int:
        return move(self.home, self.store, self.spool, ACCOUNT, self.entry, wanted, self.flip, step=step)

    def everything(self, account: int = ACCOUNT) -> dict[str, Any]:
        """All a reader can know of an account, and where it is."""
        reader = Reader(self.store)
        try:
            boxes = reader.mailboxes(account)
            found: dict[str, Any] = {"boxes": boxes, "subscribed": reader.subscriptions(account), "usage": reader.usage(account)}
            for box in boxes:
                table = reader.table(account, box.id)
                assert table is not None
                found[f"flags {box.id}"] = table[1].tolist()
                for uid in table[1]["uid"].tolist():
                    row = reader.message(account, box.id, uid)
                    assert row is not None
                    content = reader.blobs.read(row.rope)
                    found[f"message {box.id} {uid}"] = (bytes(content), row.origin, row.envelope, row.bodystructure, row.saved_s)
                found[f"vanished {box.id}"] = reader.vanished(account, box.id, 0)
                found[f"rights {box.id}"] = (reader.acl(account, box.id), reader.metadata(account, box.id))
            found["trash"] = [
                (one.due_s, one.mailbox_id, one.row.uid, one.row.flags, bytes(reader.blobs.read(one.row.rope))) for one in reader.trash(account)
            ]
            found["shared"] = reader.shared(account)
            return found
        finally:
            reader.close()

    def rows(self, partition: int, account: int = ACCOUNT) -> list[bytes]:
        side = Side(self.home, self.store, self.spool, partition)
        try:
            with side.env.begin() as txn:
                return [key for key, _ in txn.cursor() if owner_of(key) == account]
        finally:
            side.close()

    def sound(self) -> None:
        for number in (0, 1):
            if (self.store / f"p{number}").exists():
                check: Check = look(self.store / f"p{number}", number)
                assert [finding.what for finding in check.findings] == []


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    long = b"(" + b'"x" ' * 700 + b")"
    made.ask(
        0,
        wire.Deliver([
            delivery(1, domain="a.test"), delivery(2, domain="a.test", flags=["$Label", "\\Seen"]), delivery(3, domain="a.test"),
            delivery(4, domain="a.test", envelope=long), delivery(5, domain="a.test", discard=True),
            delivery(1, NEIGHBOUR, domain="a.test"), delivery(2, NEIGHBOUR, domain="b.test"),
        ]),
        wire.Append(ACCOUNT, "Drafts", [message(10, ["$Two"]), message(40)]),
        wire.StoreFlags(ACCOUNT, 1, pack(1), "+", ["\\Flagged", "work"]),
        wire.Create(ACCOUNT, "Lists/Ünï"), wire.Create(ACCOUNT, "Gone"), wire.Append(ACCOUNT, "Gone", [message(70, ["kept"])]),
        wire.Delete(ACCOUNT, "Gone"), wire.Copy(ACCOUNT, 1, pack(2), "Archive"),
        wire.StoreFlags(ACCOUNT, 1, pack(3), "+", ["\\Deleted"]), wire.Expunge(ACCOUNT, 1),
        wire.SetMetadata(ACCOUNT, 1, {"/private/comment": b"mine"}), wire.SetAcl(ACCOUNT, 1, "b@b.test", NEIGHBOUR, "lr"),
        wire.SetShared(ACCOUNT, NEIGHBOUR, True), wire.Subscribe(ACCOUNT, "Lists/Ünï"),
    )  # fmt: skip
    yield made


def test_everything_of_an_account_is_the_same_after_a_move_and_nothing_is_left(place: Place) -> None:
    before, neighbour = place.everything(), place.everything(NEIGHBOUR)
    assert len(before["trash"]) == 2 and before["boxes"][0].keywords == ["$Label", "work"]
    assert place.move(1) == 1 and place.entry == 1
    assert place.everything() == before
    assert place.everything(NEIGHBOUR) == neighbour
    assert place.rows(0) == [keys.staged(ACCOUNT)] and keys.account(ACCOUNT) in place.rows(1)
    assert list((place.store / "moves").glob("[0-9]*")) == []
    place.sound()
    # Single instance: the octets have one more name, not one more copy.
    name = f"{SEGMENT:016x}.seg"
    assert (place.store / "p0/blobs" / name).stat().st_ino == (place.store / "p1/blobs" / name).stat().st_ino
    assert place.move(0) == 0
    assert place.everything() == before
    place.sound()


def test_what_is_counted_for_the_domain_goes_along(place: Place) -> None:
    def counted() -> list[int]:
        reader = Reader(place.store)
        try:
            return [reader.domain_octets("a.test", 1), reader.domain_octets("a.test", 0), reader.domain_octets("b.test")]
        finally:
            reader.close()

    used = place.everything()["usage"][0]
    assert counted() == [used, 0, 2 * 117]  # the neighbour's last delivery named b.test
    place.move(1)
    assert counted() == [0, used, 2 * 117]


def test_a_delivery_noted_as_done_is_not_done_again_after_a_move(place: Place) -> None:
    place.move(1)
    [[answer]] = place.ask(1, wire.Deliver([delivery(1)]))
    assert answer[0] == "duplicate"
    [[answer]] = place.ask(0, wire.Deliver([delivery(99, NEIGHBOUR)]))
    assert answer[0] == "ok"


def test_killed_at_each_step_the_account_is_whole_in_one_place_and_the_move_can_be_finished(place: Place) -> None:
    steps: list[str] = []
    before = place.everything()
    place.move(1, steps.append)
    place.move(0)
    for at in range(len(steps)):
        left = [None] * at

        def kill(name: str, left: list[None] = left) -> None:
            if not left:
                raise Killed(name)
            left.pop()

        with pytest.raises(Killed):
            place.move(1, kill)
        found = place.everything()
        assert found == before, steps[at]
        active = []
        for number in (0, 1):
            side = Side(place.home, place.store, place.spool, number)
            row = side.row(ACCOUNT)
            side.close()
            if row is not None and row.given < 0:
                active.append(number)
        assert len(active) <= 1
        assert place.move(1) == 1
        assert place.everything() == before
        assert place.rows(0) == [keys.staged(ACCOUNT)]
        place.sound()
        place.move(0)
        assert place.everything() == before


@pytest.mark.parametrize("step", ["pass 1", "bring", "hold", "give"])
def test_a_move_not_handed_over_can_be_taken_back(place: Place, step: str) -> None:
    def kill(name: str) -> None:
        if name == step:
            raise Killed

    before = place.everything()
    with pytest.raises(Killed):
        place.move(1, kill)
    place.ask(0, wire.Deliver([delivery(50)])) if step != "give" and step != "hold" else None
    assert place.move(0) == 0
    assert place.rows(1) == [keys.staged(ACCOUNT)]
    assert place.everything().keys() >= before.keys()
    place.sound()


def test_a_move_handed_over_is_finished_by_the_janitor(place: Place) -> None:
    def kill(name: str) -> None:
        if name == "take":
            raise Killed

    before = place.everything()
    with pytest.raises(Killed):
        place.move(1, kill)
    with pytest.raises(StoreError, match="moved"):
        place.ask(0, wire.Append(ACCOUNT, "INBOX", [message(1)]))
    said = []
    assert finish(place.home, place.store, place.spool, lambda *which: said.append(which)) == [ACCOUNT]
    assert said == [(ACCOUNT, 1)] and place.everything() == before and place.rows(0) == [keys.staged(ACCOUNT)]
    # One that only began is left for a person to go on with, or to take back.
    Notes.write(notes := Notes(place.store), NEIGHBOUR, Note(0, 1))
    notes.close()
    assert finish(place.home, place.store, place.spool, lambda *which: said.append(which)) == []


def test_what_changes_between_the_passes_is_brought(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iems.store.move.FEW_ROWS", 1)
    source, target = (Side(place.home, place.store, place.spool, number) for number in (0, 1))
    changes: list[Any] = [
        [wire.Deliver([delivery(20)]), wire.StoreFlags(ACCOUNT, 1, pack(2), "-", ["\\Seen"])],
        [wire.Expunge(ACCOUNT, 1), wire.Copy(ACCOUNT, 1, pack(1), "Trash", move=True)],
        [wire.Undelete(ACCOUNT, [(0, 1, 3)], "Sent"), wire.Rename(ACCOUNT, "Lists", "Other"), wire.SetMetadata(ACCOUNT, 1, {"/private/comment": None})],
    ]

    held = False

    def step(name: str) -> None:
        nonlocal held
        held |= name == "hold"
        # After the pass has taken its snapshot, so that only a later one can see it.
        if name == "bring" and changes and not held:
            with source.env.begin() as txn:
                trash = [keys.split_trash(key) for key, _ in txn.cursor() if key[:5] == keys.head(0, keys.TRASH)]
            for body in changes.pop(0):
                if isinstance(body, wire.Undelete):
                    body = wire.Undelete(ACCOUNT, [(due, box, uid) for due, _, box, uid in trash], "Sent")
                source.ask(ACCOUNT, body)

    seen: dict[str, Any] = {}

    def last(name: str) -> None:
        step(name)
        if name == "give":
            with source.env.begin() as txn:
                seen.update({key.hex(): value for key, value in txn.cursor() if owner_of(key) == ACCOUNT})

    Mover(ACCOUNT, source, target, lambda: place.flip(1), last).run()
    source.close()
    with target.env.begin() as txn:
        now = {key.hex(): value for key, value in txn.cursor() if owner_of(key) == ACCOUNT}
    target.close()
    assert changes == [] and now == seen
    place.sound()


def test_while_an_account_is_held_its_writes_wait_and_the_lapse_of_a_hold_is_noticed(place: Place) -> None:
    side = Side(place.home, place.store, place.spool, 0)
    assert side._partition is not None
    now = 100.0
    side._partition.handover._clock = lambda: now
    assert side.ask(ACCOUNT, wire.Hold(ACCOUNT, 7)) == b"\xc2"
    assert side.ask(ACCOUNT, wire.Hold(ACCOUNT, 7)) == b"\xc3"
    [answer] = msgspec.msgpack.decode(side.ask(ACCOUNT, wire.Deliver([delivery(60)])))
    assert answer[0] == "moved"
    for body in (wire.Append(ACCOUNT, "INBOX", [message(1)]), wire.Recent(ACCOUNT, 1), wire.Hold(ACCOUNT, 8), wire.Ensure(ACCOUNT)):
        with pytest.raises(StoreError):
            side.ask(ACCOUNT, body)
    [answer] = msgspec.msgpack.decode(side.ask(NEIGHBOUR, wire.Deliver([delivery(60, NEIGHBOUR)])))
    assert answer[0] == "ok"
    now += HOLD_S
    [answer] = msgspec.msgpack.decode(side.ask(ACCOUNT, wire.Deliver([delivery(60)])))
    assert answer[0] == "ok"
    with pytest.raises(StoreError, match="not held"):
        side.ask(ACCOUNT, wire.Give(ACCOUNT, 7, 1))
    assert side.ask(ACCOUNT, wire.Hold(ACCOUNT, 7)) == b"\xc2"
    side.close()


def test_contents_are_copied_where_links_are_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EXDEV, "other file system")

    before = place.everything()
    monkeypatch.setattr(os, "link", refuse)
    place.move(1)
    assert place.everything() == before
    names = [path.name for path in (place.store / "p1/blobs").iterdir()]
    assert names and f"{SEGMENT:016x}.seg" not in names
    place.sound()


def test_a_second_mover_is_refused_and_an_account_in_both_partitions_is_not_touched(place: Place) -> None:
    notes = Notes(place.store)
    with pytest.raises(MoveFailure, match="backup"):
        place.move(1)
    notes.close()
    place.ask(1, wire.Ensure(ACCOUNT))
    with pytest.raises(MoveFailure, match="both"):
        place.move(1)


def test_a_delivery_that_comes_late_does_not_found_the_account_anew(place: Place) -> None:
    place.move(1)
    [[answer]] = place.ask(0, wire.Deliver([delivery(200)]))
    assert answer[0] == "moved"
    with pytest.raises(StoreError, match="moved"):
        place.ask(0, wire.Ensure(ACCOUNT))


def test_rows_of_a_third_account_and_to_an_account_that_is_there_are_refused(place: Place) -> None:
    with pytest.raises(StoreError, match="another account"):
        place.ask(1, wire.Bring(ACCOUNT, 0, [(keys.mailbox(NEIGHBOUR, 1), b"")], []))
    with pytest.raises(StoreError, match="another account"):
        place.ask(1, wire.Bring(ACCOUNT, 0, [], [keys.META_KEY]))
    with pytest.raises(StoreError, match="is here"):
        place.ask(0, wire.Bring(ACCOUNT, 1, [], [keys.mailbox(ACCOUNT, 1)]))
    with pytest.raises(StoreError, match="given away"):
        place.ask(0, wire.Leave(ACCOUNT))
    with pytest.raises(StoreError, match="brought"):
        place.ask(1, wire.Take(ACCOUNT, msgspec.msgpack.encode(Account())))


def test_files_two_partitions_name_are_swept_apart(place: Place) -> None:
    """The space of a file shared between partitions comes back, though the spool has no name of it any more."""
    place.move(1)
    os_name = place.spool / "segments" / f"{SEGMENT:016x}.seg"
    os_name.unlink()
    before = place.everything()
    side = Side(place.home, place.store, place.spool, 1)
    partition = side._partition
    assert partition is not None
    partition._now = int(partition._clock()) + 2 * 86_400
    assert partition.sweep.begin()
    while partition.sweep.step():
        pass
    assert all(blob >> 63 for blob in [int(path.name[:16], 16) for path in (place.store / "p1/blobs").iterdir()] if blob != SEGMENT)
    with side.env.begin() as txn:
        raw = txn.get(keys.blob(SEGMENT))
    assert raw is not None and raw[:8] == bytes(8)  # nothing names it here any more
    side.close()
    assert place.everything() == before
