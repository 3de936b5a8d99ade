"""Requests and answers between the store's writer and its clients (docs/decisions/0003).

A frame is a u32 length (little-endian) and a MessagePack array. Requests are a tagged union, decoded in one pass.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct, field

from iems.model import Extent

FRAME_MAX = 16 << 20
LENGTH_OCTETS = 4

DONE = 0
REFUSED = 1
BUSY = 2
PUSH = 3


class Place(Struct, array_like=True):
    """One more mailbox that gets a delivery. create: make it if it is not there."""

    mailbox: str
    flags: list[str] = field(default_factory=list)
    create: bool = False


class Delivery(Struct, array_like=True):
    """One message for one account. origin: the id given at acceptance; (origin, account) is delivered once.

    rope: with the lines this recipient gets prepended. size: octets of the rope. quota_octets: None is no limit.
    envelope, bodystructure: of `iems.message.summarize`. flags: names. discard: into the trash, from where `Undelete` brings it
    back. create: make the mailbox if there is none. or_inbox: where it is not there and is not made, INBOX takes its place.
    also: further mailboxes, in the same transaction. domain: the account's, under which its mail is counted. domain_octets: what the
    domain may have in this partition; None is no limit.
    """

    account: int
    origin: bytes
    rope: list[Extent | bytes]
    size: int
    internaldate_s: int
    envelope: bytes
    bodystructure: bytes
    mailbox: str = "INBOX"
    partition: int = 0
    flags: list[str] = field(default_factory=list)
    dot_free: bool = False
    quota_octets: int | None = None
    discard: bool = False
    create: bool = False
    or_inbox: bool = False
    also: list[Place] = field(default_factory=list)
    domain: str = ""
    domain_octets: int | None = None


class Delivered(Struct, array_like=True):
    """What became of a delivery: "ok", "duplicate" (was there already), "overquota" (text "domain": that of the domain),
    "nomailbox", "moved" (the account is in another partition, or about to be) or "error"."""

    status: str
    uid: int = 0
    mailbox_id: int = 0
    text: str = ""


class NewMessage(Struct, array_like=True):
    """A message to append; its octets are already durable where `rope` says."""

    rope: list[Extent | bytes]
    size: int
    internaldate_s: int
    envelope: bytes
    bodystructure: bytes
    flags: list[str] = field(default_factory=list)
    dot_free: bool = False


class Hello(Struct, array_like=True, tag=0):
    """The first request of a connection: the client's number, under which answers are kept for a repetition."""

    client: int


class Deliver(Struct, array_like=True, tag=1):
    """Answer: a Delivered for each, in order."""

    batch: list[Delivery]


class Forget(Struct, array_like=True, tag=2):
    """Drop the notes of deliveries (origin, account): their settlements are on the disk."""

    pairs: list[tuple[bytes, int]]


class Ensure(Struct, array_like=True, tag=3):
    """Make an account's rows and its special-use mailboxes, if they are not there."""

    account: int


class Create(Struct, array_like=True, tag=4):
    """A mailbox, with the levels above it. Answer: it."""

    account: int
    name: str
    special_use: str = ""


class Delete(Struct, array_like=True, tag=5):
    """A mailbox; what is in it can be brought back for a while."""

    account: int
    name: str


class Rename(Struct, array_like=True, tag=6):
    """A mailbox and all below it; of INBOX, only what is in it."""

    account: int
    old: str
    new: str


class Subscribe(Struct, array_like=True, tag=7):
    """Set or take a name from the list of subscriptions."""

    account: int
    name: str
    on: bool = True


class Append(Struct, array_like=True, tag=8):
    """Messages, all or none. Answer: (uidvalidity, mailbox id, uids)."""

    account: int
    mailbox: str
    messages: list[NewMessage]
    quota_octets: int | None = None
    replaced_box: int = 0  # mailbox id and uid of a message that goes when these come (RFC 8508)
    replaced_uid: int = 0
    domain: str = ""  # as in Delivery
    domain_octets: int | None = None
    member: int = 0  # as in StoreFlags


class StoreFlags(Struct, array_like=True, tag=9):
    """uids: u32 little-endian, one after the other. member: the account that sees them so in a shared mailbox, where each has its own \\Seen."""

    account: int
    mailbox_id: int
    uids: bytes
    mode: str
    flags: list[str]
    unchangedsince: int | None = None
    member: int = 0


class Expunge(Struct, array_like=True, tag=10):
    """uids: only these, if they are \\Deleted (UID EXPUNGE, RFC 4315); None: all that are."""

    account: int
    mailbox_id: int
    uids: bytes | None = None


class Copy(Struct, array_like=True, tag=11):
    """Copy, or move, messages to another mailbox of the account. Answer: (uidvalidity, their uids, their new uids)."""

    account: int
    src_id: int
    uids: bytes
    dst_name: str
    move: bool = False
    quota_octets: int | None = None
    domain: str = ""  # as in Delivery
    domain_octets: int | None = None


class Recent(Struct, array_like=True, tag=12):
    """Claim what is \\Recent for the session that asks. Answer: the first uid that is."""

    account: int
    mailbox_id: int


class Watch(Struct, array_like=True, tag=13):
    """Push a note to this connection whenever the mailbox changes."""

    account: int
    mailbox_id: int


class Unwatch(Struct, array_like=True, tag=14):
    """No more notes."""

    account: int
    mailbox_id: int


class Drop(Struct, array_like=True, tag=15):
    """The account is removed: so are its rows."""

    account: int


class Undelete(Struct, array_like=True, tag=16):
    """rows: of `reader.Trashed`, each (due_s, mailbox_id, uid). mailbox: where they go."""

    account: int
    rows: list[tuple[int, int, int]]
    mailbox: str = "INBOX"


class SetMetadata(Struct, array_like=True, tag=17):
    """mailbox_id 0: of the account. changes: None removes an entry."""

    account: int
    mailbox_id: int
    changes: dict[str, bytes | None]


class SetAcl(Struct, array_like=True, tag=18):
    """rights "": the entry goes. number: of the account the address names. Who watches the mailbox looks whether it still may."""

    account: int
    mailbox_id: int
    address: str
    number: int
    rights: str


class SetShared(Struct, array_like=True, tag=19):
    """Note (or no longer) that `owner` shares mailboxes with the account."""

    account: int
    owner: int
    on: bool


class Expire(Struct, array_like=True, tag=40):
    """Expunge these messages, whatever their flags: their time is over."""

    account: int
    mailbox_id: int
    uids: bytes


class Hold(Struct, array_like=True, tag=41):
    """Refuse all writes to an account for a while: its move is about to be finished (handover.py). Asked again, it holds on."""

    account: int
    token: int


class Give(Struct, array_like=True, tag=42):
    """The account belongs to another partition from now on. Refused (EXPIRED) unless `token` held it without a pause. Answer: its row."""

    account: int
    token: int
    partition: int


class Bring(Struct, array_like=True, tag=43):
    """Put and remove rows of an account that is not (or no longer) here. source: the partition whose blobs the rows name.

    last: rows whose content is missing are put, too, as they are in the source. Answer: rows left out because their content is gone.
    """

    account: int
    source: int
    puts: list[tuple[bytes, bytes]]
    deletes: list[bytes]
    last: bool = False


class Take(Struct, array_like=True, tag=44):
    """The rows brought are an account from now on. row: the account's, as `Give` answered it. Nothing if it is here already."""

    account: int
    row: bytes


class Leave(Struct, array_like=True, tag=45):
    """Remove the account row of an account that was given away: who reads looks for it elsewhere then."""

    account: int


class Part(Struct, array_like=True, tag=46):
    """An account is no member of this one any more: its entries in the lists of rights and its marks go."""

    account: int
    member: int


Body = (
    Hello | Deliver | Forget | Ensure | Create | Delete | Rename | Subscribe | Append | StoreFlags
    | Expunge | Copy | Recent | Watch | Unwatch | Drop | Undelete | SetMetadata | SetAcl | SetShared
    | Expire | Hold | Give | Bring | Take | Leave | Part
)


class Request(Struct, array_like=True):
    """seq: of the client, ascending. acked: answers up to this one need not be kept any more."""

    seq: int
    acked: int
    body: Body


class Answer(Struct, array_like=True):
    """value stays raw: its type is known to who asked."""

    seq: int
    status: int
    value: msgspec.Raw = msgspec.Raw(b"\xc0")


#: Operations whose answer is stored with their effect, because doing them twice is not the same as once.
ANSWERED = (Create, Delete, Rename, Append, StoreFlags, Expunge, Copy, Recent, Undelete)

encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode


def frame(message: Any) -> bytes:
    """`message` as one frame."""
    packed = encode(message)
    return len(packed).to_bytes(LENGTH_OCTETS, "little") + packed


class FrameError(ValueError):
    """The peer sent a frame that is too long."""


class Frames:
    """Cuts received octets into frames, over any chunk boundary."""

    def __init__(self, limit: int = FRAME_MAX) -> None:
        self._limit = limit
        self._kept = bytearray()

    def feed(self, data: bytes | memoryview) -> list[bytes]:
        """The bodies of the frames that are now whole. Raises FrameError on a length over the limit."""
        kept = self._kept
        kept += data
        found: list[bytes] = []
        start = 0
        total = len(kept)
        while total - start >= LENGTH_OCTETS:
            length = int.from_bytes(kept[start : start + LENGTH_OCTETS], "little")
            if length > self._limit:
                raise FrameError(f"frame of {length} octets")
            end = start + LENGTH_OCTETS + length
            if end > total:
                break
            found.append(bytes(kept[start + LENGTH_OCTETS : end]))
            start = end
        del kept[:start]
        return found
