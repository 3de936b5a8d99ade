"""A store, a directory and a stream in memory, good enough to talk IMAP to."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from iems.errors import SpoolFull, StoreError
from iems.imap import flags as flag_names
from iems.imap import response
from iems.imapd.engine import Limits
from iems.imapd.services import Services
from iems.imapd.session import Session
from iems.message import summarize
from iems.store import reader as reader_module
from iems.store.rows import DEFAULT_MAILBOXES, FLAGS_DTYPE, Mailbox, Row, system_bit
from tests.support.logins import FakeLogins


class FakeBlobs:
    """Contents by number."""

    def __init__(self) -> None:
        self.contents: dict[int, bytes] = {}

    def fd(self, blob: int) -> int:
        raise OSError("no files here")

    def read(self, rope: list[Any]) -> bytes:
        return b"".join(piece if isinstance(piece, bytes) else self.contents[piece.blob] for piece in rope)

    def read_range(self, rope: list[Any], start: int, length: int) -> bytes:
        return self.read(rope)[start : start + length]

    def pin(self, fd: int) -> None:
        pass

    unpin = pin

    def slices(self, rope: list[Any], start: int, length: int) -> list[bytes]:
        return [self.read_range(rope, start, length)]


class Box:
    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox
        self.rows: dict[int, Row] = {}
        self.vanished: list[tuple[int, int]] = []


class FakeStore:
    """Reader and StoreClient at once; one account per instance is enough."""

    def __init__(self) -> None:
        self.blobs = FakeBlobs()
        self.boxes: dict[int, Box] = {}
        self.names: list[str] = []
        self.modseq = 1
        self.next_id = 1
        self.uidvalidity = 1000
        self.watchers: list[tuple[int, Any]] = []
        self.octets = 0
        self.annotations: dict[int, dict[str, bytes]] = {}
        self.unavailable = False
        self.fast = 0  # refreshes that did not look at old rows

    # ---- Reader

    def twin(self, account: int) -> FakeStore:
        return self

    def close(self) -> None:
        pass

    def mailboxes(self, account: int) -> list[Mailbox]:
        found = [box.mailbox for box in self.boxes.values()]
        for box in found:
            box.subscribed = box.name in self.names
        return sorted(found, key=lambda box: (box.name != "INBOX", box.name))

    def subscriptions(self, account: int) -> list[str]:
        return list(self.names)

    def mailbox(self, account: int, name: str) -> Mailbox | None:
        return next((box for box in self.mailboxes(account) if box.name == name), None)

    def mailbox_by_id(self, account: int, mailbox_id: int) -> Mailbox | None:
        box = self.boxes.get(mailbox_id)
        return box.mailbox if box else None

    def select(self, account: int, mailbox_id: int, member: int = 0) -> Any:
        box = self.boxes.get(mailbox_id)
        if box is None:
            return None
        rows = [box.rows[uid] for uid in sorted(box.rows)]
        return reader_module.Selected(
            box.mailbox,
            np.array([row.uid for row in rows], np.uint32),
            np.array([row.flags for row in rows], np.uint64),
            np.array([row.modseq for row in rows], np.uint64),
        )

    def table(self, account: int, mailbox_id: int) -> Any:
        box = self.boxes[mailbox_id]
        rows = [box.rows[uid] for uid in sorted(box.rows)]
        return box.mailbox, np.array(
            [(row.uid, row.size, row.flags, row.modseq, row.internaldate_s) for row in rows], FLAGS_DTYPE
        )

    def changes(self, account: int, mailbox_id: int, since: int, uidnext: int = 0, member: int = 0) -> Any:
        box = self.boxes.get(mailbox_id)
        if box is None:
            return [], [], None
        changed = [(row.uid, row.flags, row.modseq) for row in box.rows.values() if row.modseq > since]
        return changed, [uid for uid, modseq in box.vanished if modseq > since], box.mailbox

    def arrivals(self, account: int, mailbox_id: int, first_uid: int, member: int = 0) -> list[tuple[int, int, int]]:
        self.fast += 1
        rows = self.boxes[mailbox_id].rows
        return [(uid, rows[uid].flags, rows[uid].modseq) for uid in sorted(rows) if uid >= first_uid]

    def vanished(self, account: int, mailbox_id: int, since: int) -> list[int]:
        return sorted(uid for uid, modseq in self.boxes[mailbox_id].vanished if modseq > since)

    def message(self, account: int, mailbox_id: int, uid: int, member: int = 0) -> Row | None:
        return self.boxes[mailbox_id].rows.get(uid)

    def messages(self, account: int, mailbox_id: int, uids: Any) -> list[Row | None]:
        return [self.message(account, mailbox_id, uid) for uid in uids]

    def places(self, account: int, mailbox_id: int, uids: Any, start: int, count: int) -> Any:
        """As if each content stood in its row, so that there is no file to read."""
        found = [row for row in self.messages(account, mailbox_id, uids[start : start + count].tolist()) if row is not None]
        heads, table = b"", []
        for row in found:
            content = self.blobs.read(row.rope)
            table.append((1, len(heads), len(content), 0, 0, 0))
            heads += content
        return np.array([row.uid for row in found], np.uint32), np.array(table, np.uint64).reshape(-1, 6), heads

    def fetch_summaries(
        self,
        account: int,
        mailbox_id: int,
        seqs: Any,
        uids: Any,
        items: Any,
        start: int,
        max_octets: int,
        recent_from: int,
        member: int = 0,
    ) -> tuple[bytes, int]:
        out = b""
        box = self.boxes[mailbox_id]
        while start < len(uids) and len(out) < max_octets:
            row = box.rows.get(int(uids[start]))
            if row is not None:
                parts = []
                for item in items:
                    parts.append(
                        {
                            reader_module.FETCH_UID: lambda r=row: b"UID %d" % r.uid,
                            reader_module.FETCH_FLAGS: lambda r=row: (
                                b"FLAGS "
                                + flag_names.render(
                                    r.flags | (flag_names.RECENT if r.uid >= recent_from else 0),
                                    box.mailbox.keywords,
                                )
                            ),
                            reader_module.FETCH_ENVELOPE: lambda r=row: b"ENVELOPE " + r.envelope,
                            reader_module.FETCH_BODYSTRUCTURE: lambda r=row: (
                                b"BODYSTRUCTURE " + r.bodystructure
                            ),
                            reader_module.FETCH_INTERNALDATE: lambda r=row: (
                                b"INTERNALDATE " + response.internaldate(r.internaldate_s)
                            ),
                            reader_module.FETCH_RFC822_SIZE: lambda r=row: b"RFC822.SIZE %d" % r.size,
                            reader_module.FETCH_MODSEQ: lambda r=row: b"MODSEQ (%d)" % r.modseq,
                        }[item]()
                    )
                out += b"* %d FETCH (%b)\r\n" % (seqs[start], b" ".join(parts))
            start += 1
        return out, start

    def acl(self, account: int, mailbox_id: int) -> dict[str, tuple[int, str]]:
        return {}

    def shared(self, account: int) -> list[int]:
        return []

    def metadata(self, account: int, mailbox_id: int) -> dict[str, bytes]:
        return self.annotations.get(mailbox_id, {})

    async def set_metadata(self, account: int, mailbox_id: int, changes: dict[str, bytes | None]) -> None:
        kept = self.annotations.setdefault(mailbox_id, {})
        for entry, value in changes.items():
            if value is None:
                kept.pop(entry, None)
            else:
                kept[entry] = value

    def usage(self, account: int) -> tuple[int, int]:
        return self.octets, 0

    # ---- StoreClient

    def _step(self, box: Box | None = None, arrival: bool = False) -> int:
        if self.unavailable:
            from iems.errors import StoreUnavailable

            raise StoreUnavailable("away")
        self.modseq += 1
        if box is not None:
            box.mailbox.highestmodseq = self.modseq
            if not arrival:
                box.mailbox.changed_before, box.mailbox.changed_modseq = box.mailbox.changed_modseq, self.modseq
            box.mailbox.messages = len(box.rows)
            box.mailbox.unseen = sum(1 for row in box.rows.values() if not row.flags & 1)
        return self.modseq

    def _push(self, box: Box) -> None:
        for mailbox_id, callback in list(self.watchers):
            if mailbox_id == box.mailbox.id:
                callback(box.mailbox.highestmodseq)

    def _named(self, name: str, code: str = "NONEXISTENT") -> Box:
        for box in self.boxes.values():
            if box.mailbox.name == name:
                return box
        raise StoreError("No such mailbox", code)

    async def ensure(self, account: int) -> None:
        for name, use in DEFAULT_MAILBOXES:
            await self.create(account, name, use)
            self.names.append(name)

    async def create(self, account: int, name: str, special_use: str = "") -> Mailbox:
        await asyncio.sleep(0)
        self._step()
        levels = name.split("/")
        for count in range(1, len(levels) + 1):
            part = "/".join(levels[:count])
            exists = any(box.mailbox.name == part for box in self.boxes.values())
            if exists and count == len(levels):
                raise StoreError("Mailbox exists", "ALREADYEXISTS")
            if not exists:
                mailbox = Mailbox(
                    id=self.next_id,
                    name=part,
                    uidvalidity=self.uidvalidity,
                    special_use=special_use,
                    highestmodseq=self.modseq,
                    changed_modseq=self.modseq,
                    changed_before=self.modseq,
                )
                self.uidvalidity += 1
                self.boxes[self.next_id] = Box(mailbox)
                self.next_id += 1
        return mailbox

    async def delete(self, account: int, name: str) -> None:
        box = self._named(name)
        self._step()
        if any(other.mailbox.name.startswith(name + "/") for other in self.boxes.values()):
            box.mailbox.noselect = True
            box.rows.clear()
        else:
            del self.boxes[box.mailbox.id]
        self._push(box)

    async def rename(self, account: int, old: str, new: str) -> None:
        box = self._named(old)
        if any(other.mailbox.name == new for other in self.boxes.values()):
            raise StoreError("Mailbox exists", "ALREADYEXISTS")
        if old == "INBOX":
            await self.create(account, new)
            await self.copy(account, box.mailbox.id, sorted(box.rows), new, move=True)
            return
        for other in self.boxes.values():
            if other.mailbox.name == old or other.mailbox.name.startswith(old + "/"):
                other.mailbox.name = new + other.mailbox.name[len(old) :]

    async def subscribe(self, account: int, name: str) -> None:
        if name not in self.names:
            self.names.append(name)

    async def unsubscribe(self, account: int, name: str) -> None:
        if name in self.names:
            self.names.remove(name)

    async def append(self, account: int, name: str, messages: Any, quota: int | None = None, *, replaces: Any = None, **domain: Any) -> Any:
        await asyncio.sleep(0)
        box = self._named(name, "TRYCREATE")
        uids = []
        for message in messages:
            uid = box.mailbox.uidnext
            box.mailbox.uidnext += 1
            self._step()
            box.rows[uid] = Row(
                uid,
                self._bits(box, message.flags),
                self.modseq,
                message.internaldate_s,
                message.size,
                message.rope,
                message.dot_free,
                message.envelope,
                message.bodystructure,
                b"",
                0,
            )
            box.mailbox.size += message.size
            uids.append(uid)
            self._step(box, arrival=True)
            box.rows[uid].modseq = self.modseq
        if replaces is not None:
            old = self.boxes[replaces[0]]
            del old.rows[replaces[1]]
            old.vanished.append((replaces[1], self._step(old)))
        self._push(box)
        return box.mailbox.uidvalidity, uids

    def _bits(self, box: Box, names: list[str]) -> int:
        bits = 0
        for name in names:
            bit = system_bit(name)
            if not bit:
                if name not in box.mailbox.keywords:
                    box.mailbox.keywords.append(name)
                bit = 1 << (16 + box.mailbox.keywords.index(name))
            bits |= bit
        return bits

    async def store_flags(
        self,
        account: int,
        mailbox_id: int,
        uids: Any,
        mode: str,
        names: list[str],
        unchangedsince: int | None = None,
        member: int = 0,
    ) -> list[tuple[int, int, int]]:
        await asyncio.sleep(0)
        box = self.boxes[mailbox_id]
        bits = self._bits(box, names)
        modseq = self._step(box)
        result = []
        for uid in uids:
            row = box.rows.get(uid)
            if row is None or (unchangedsince is not None and row.modseq > unchangedsince):
                continue
            new = bits if mode == "=" else row.flags | bits if mode == "+" else row.flags & ~bits
            if new != row.flags:
                row.flags = new
                row.modseq = modseq
            result.append((uid, row.flags, row.modseq))
        self._push(box)
        return result

    async def expunge(self, account: int, mailbox_id: int, uids: Any = None) -> list[int]:
        await asyncio.sleep(0)
        box = self.boxes[mailbox_id]
        gone = [
            uid
            for uid in sorted(box.rows if uids is None else uids)
            if uid in box.rows and box.rows[uid].flags & 8
        ]
        for uid in gone:
            del box.rows[uid]
        modseq = self._step(box)
        box.vanished += [(uid, modseq) for uid in gone]
        self._push(box)
        return gone

    async def copy(
        self,
        account: int,
        src: int,
        uids: Any,
        name: str,
        move: bool = False,
        quota_octets: int | None = None,
        **domain: Any,
    ) -> Any:
        await asyncio.sleep(0)
        source, target = self.boxes[src], self._named(name, "TRYCREATE")
        done, new = [], []
        for uid in uids:
            row = source.rows.get(uid)
            if row is None:
                continue
            number = target.mailbox.uidnext
            target.mailbox.uidnext += 1
            names = source.mailbox.flag_names(row.flags)
            self._step(target, arrival=True)
            target.rows[number] = Row(
                number,
                self._bits(target, names),
                self.modseq,
                row.internaldate_s,
                row.size,
                row.rope,
                row.dot_free,
                row.envelope,
                row.bodystructure,
                b"",
                0,
            )
            done.append(uid)
            new.append(number)
        self._step(target, arrival=True)
        self._push(target)
        if move:
            for uid in done:
                del source.rows[uid]
            modseq = self._step(source)
            source.vanished += [(uid, modseq) for uid in done]
            self._push(source)
        return target.mailbox.uidvalidity, done, new

    async def take_recent(self, account: int, mailbox_id: int) -> int:
        box = self.boxes[mailbox_id].mailbox
        first, box.recent_uid = box.recent_uid, box.uidnext
        return first

    def watch(self, account: int, mailbox_id: int, callback: Any) -> None:
        self.watchers.append((mailbox_id, callback))

    def unwatch(self, account: int, mailbox_id: int, callback: Any = None) -> None:
        self.watchers.remove((mailbox_id, callback))

    # ---- for tests

    def put(self, name: str, content: bytes, flags: list[str] | None = None, date_s: int = 0) -> int:
        """A message without the ways of APPEND."""
        box = self._named(name)
        blob = len(self.blobs.contents) + 1
        from iems.model import Extent

        self.blobs.contents[blob] = content
        envelope, structure = summarize(content)
        uid = box.mailbox.uidnext
        box.mailbox.uidnext += 1
        modseq = self._step()
        box.rows[uid] = Row(
            uid,
            self._bits(box, flags or []),
            modseq,
            date_s,
            len(content),
            [Extent(blob, 0, len(content))],
            False,
            envelope,
            structure,
            b"",
            0,
        )
        box.mailbox.highestmodseq = modseq
        self._step(box, arrival=True)
        self._push(box)
        return uid


class FakeBody:
    def __init__(self, limit: int) -> None:
        self.octets = bytearray()
        self.limit = limit
        self.abandoned = False

    def write(self, view: memoryview) -> None:
        self.octets += view
        if len(self.octets) > self.limit:
            raise SpoolFull("full")

    def __len__(self) -> int:
        return len(self.octets)

    def abandon(self) -> None:
        self.abandoned = True


class FakeContent:
    def __init__(self, store: FakeStore) -> None:
        self.store = store
        self.limit = 1 << 30
        self.bodies: list[FakeBody] = []

    def new(self, size: int) -> FakeBody:
        self.bodies.append(FakeBody(self.limit))
        return self.bodies[-1]

    async def keep(self, body: FakeBody) -> Any:
        await asyncio.sleep(0)
        content = bytes(body.octets)
        blob = len(self.store.blobs.contents) + 1
        from iems.model import Extent

        self.store.blobs.contents[blob] = content
        return [Extent(blob, 0, len(content))], *summarize(content), False


class FakeAccount:
    def __init__(self, number: int = 1, address: str = "anna@example.test") -> None:
        self.number = number
        self.address = address
        self.quota_octets: int | None = None
        self.domain_quota_octets: int | None = None
        self.domain = address.rpartition("@")[2]
        self.partition = 0
        self.shared = False
        self.member_of: tuple[int, ...] = ()


class FakeAuthenticator(FakeLogins):
    def __init__(self) -> None:
        self.account = FakeAccount()

    async def check(self, login: str, password: str, peer_ip: str) -> Any:
        await asyncio.sleep(0)
        return self.account if (login, password) == (self.account.address, "pw") else None


class FakeStream:
    """Collects what is sent."""

    def __init__(self, peer_ip: str = "127.0.0.1") -> None:
        self.out = bytearray()
        self.peer = (peer_ip, 40000)
        self.secure = False
        self.closed = False
        self.pending_out = 0
        self.paused = False
        self.tls: Any = None
        self.sslobj: Any = None

    def send(self, data: Any) -> None:
        if not self.closed:
            self.out += data

    def cork(self) -> None:
        pass

    def uncork(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def start_tls(self, context: Any) -> None:
        self.tls = context

    def take(self) -> bytes:
        out, self.out = bytes(self.out), bytearray()
        return out


class World:
    """A server in memory; `session()` connects to it. Make it inside a running loop."""

    def __init__(self, limits: Limits | None = None, **more: Any) -> None:
        self.store = FakeStore()
        self.authenticator = FakeAuthenticator()
        self.content = FakeContent(self.store)
        self.logged: list[Any] = []
        self.errors: list[BaseException] = []
        self.services = Services(
            loop=asyncio.get_running_loop(),
            reader=self.store,
            store=self.store,
            authenticator=self.authenticator,
            content=self.content,
            hostname="mail.example.test",
            limits=limits,
            log=lambda event, **detail: self.logged.append((event, detail)),
            error=lambda text, fault: self.errors.append(fault),
            clock=lambda: 1_700_000_000.0,
            **more,
        )

    def connect(self, peer_ip: str = "127.0.0.1") -> Client:
        return Client(self, peer_ip)

    async def login(self, mailbox: str = "") -> Client:
        """A client that is logged in, and has selected a mailbox if one is named."""
        client = self.connect()
        await client.ask(b"L LOGIN anna@example.test pw\r\n")
        if mailbox:
            await client.ask(b"S SELECT " + mailbox.encode() + b"\r\n")
        return client


class Client:
    def __init__(self, world: World, peer_ip: str) -> None:
        self.world = world
        self.session = Session(world.services)
        self.stream = FakeStream(peer_ip)
        self.session.stream = self.stream  # type: ignore[assignment]
        self.session.greet()
        self.greeting = self.stream.take()

    async def settle(self) -> None:
        """Let every task run until nothing moves."""
        for _ in range(200):
            await asyncio.sleep(0)
            if self.session.running is None:
                break
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def ask(self, data: bytes, step: int = 0) -> bytes:
        """Send octets (in pieces of `step`), give what comes back."""
        if self.stream.closed:
            return b""
        for start in range(0, len(data), step or len(data)):
            if not self.stream.closed:
                self.session.data_received(memoryview(data[start : start + (step or len(data))]))
        await self.settle()
        while self.session.running is not None:
            await asyncio.sleep(0.001)
        if self.world.errors:
            raise self.world.errors.pop()
        return self.stream.take()
