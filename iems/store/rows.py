"""Values of a partition's rows and the vocabulary built on them; `keys.py` has the table of keys.

Rows that grow are MessagePack arrays whose first element is a version: fields are only ever added at the end, with a
default, so a reader one version older still reads them. Rows met by the ten thousand are fixed structs (little-endian).
"""

from __future__ import annotations

import struct

import msgspec
from msgspec import Struct, field

from iems.model import Extent, Rope

# Flag bits of a message (RFC 9051 2.3.2); keywords have bits 16 and up, their names are in the mailbox row.
SEEN = 1
ANSWERED = 2
FLAGGED = 4
DELETED = 8
DRAFT = 16
RECENT = 32  # belongs to a session, never stored
DISCARDED = 64  # in trash rows only: a filter put it there, the user has never seen it
KEYWORD_SHIFT = 16
KEYWORDS_MAX = 40

SYSTEM_FLAGS = {"\\Seen": SEEN, "\\Answered": ANSWERED, "\\Flagged": FLAGGED, "\\Deleted": DELETED, "\\Draft": DRAFT}
_SYSTEM_BITS = {name.lower(): bit for name, bit in SYSTEM_FLAGS.items()}

#: Mailboxes an account gets on first need: name and special use (RFC 6154).
DEFAULT_MAILBOXES = (
    ("INBOX", ""),
    ("Sent", "\\Sent"),
    ("Drafts", "\\Drafts"),
    ("Trash", "\\Trash"),
    ("Archive", "\\Archive"),
    ("Spam", "\\Junk"),
)

#: Flags row: uid u32, size u32, flags u64, modseq u64, internal date s i64.
FLAGS_ROW = struct.Struct("<IIQQq")
#: The same for numpy.frombuffer.
FLAGS_DTYPE = [("uid", "<u4"), ("size", "<u4"), ("flags", "<u8"), ("modseq", "<u8"), ("internaldate", "<i8")]

#: Head of a message row: version u8, bits u8, reserved u16, lengths of rope, envelope, bodystructure u32 each,
#: saved s u32, origin 16. Then these three, one after the other.
MESSAGE_HEAD = struct.Struct("<BBHIIII16s")
MESSAGE_VERSION = 1
DOT_FREE = 1  # no line of the content starts with a dot
SUMMARY_OUTSIDE = 2  # instead of the summary: blob u64, offset u64 of it in a segment of the partition
SUMMARY_PLACE = struct.Struct("<QQ")
SUMMARY_INLINE_MAX = 2_000

#: Blob row: octets named by rows u64, length of the file u64, owned since s u32, bits u32.
BLOB_ROW = struct.Struct("<QQII")
BLOB_OWN = 1  # a segment written by the partition itself
BLOB_DIED = 2  # octets in it are named by nobody any more, and still there
BLOB_ERASED = 4  # dead octets were erased: records around the contents are no longer whole
DEDUP_ROW = struct.Struct("<III")

#: Uids, and octets, of a row of a member's marks (marks.py).
MARK_UIDS = 4_096
MARK_OCTETS = MARK_UIDS // 8

#: Bounds of annotations (RFC 5464): octets of one value, entries and octets of all values of one mailbox.
METADATA_VALUE_MAX = 64 << 10
METADATA_ENTRIES_MAX = 100
METADATA_OCTETS_MAX = 256 << 10

#: Entries of one access control list; accounts that share with one account.
ACL_MAX = 200
SHARED_MAX = 1_000

SIZE_MAX = 0xFFFF_FFFF

#: Rows of MessagePack in one place, so that every process encodes alike.
encode = msgspec.msgpack.Encoder().encode


#: Formats of a partition's rows. 2: each account names its domain, and the domains are counted. What reads 1 reads the rows of 2, too, but
#: would not keep these counts; `formats.py` converts, both ways.
FORMAT = 2
FORMATS_READ = (1, 2)


class Meta(Struct, array_like=True):
    """What this partition is: format of its rows, its number."""

    version: int = 1
    number: int = 0


class Account(Struct, array_like=True):
    """Counters of one account. usage: octets and messages of all mailboxes, trash not counted.

    domain: under which it is counted, "" until the first mail; format 2. given: the partition that has it now, -1 while it is here (handover.py).
    """

    version: int = 1
    modseq: int = 1
    next_mailbox: int = 1
    uidvalidity: int = 0
    octets: int = 0
    messages: int = 0
    domain: str = ""
    given: int = -1


class DomainUse(Struct, array_like=True):
    """What the accounts of a domain keep in this partition."""

    octets: int = 0
    messages: int = 0
    accounts: int = 0


#: Greater than every modseq.
CHANGED_UNKNOWN = 1 << 62


class Mailbox(Struct, array_like=True):
    """A mailbox (RFC 9051 2.3): identity, counters, names of its keywords (keyword i is flag bit 16 + i).

    highestmodseq: RFC 7162. vanished_floor: below this modseq the vanished rows are not complete.
    recent_uid: messages from this uid on were not yet shown as \\Recent. noselect: only the name of a parent.
    subscribed, has_children: not stored here, filled in by the reader. changed_modseq, changed_before: of the last change
    that was more than new messages, and of the one before it, so that a reader knows when it need not look at old rows;
    CHANGED_UNKNOWN in rows from before these fields. journal_floor: the journal rows name every message whose flags changed
    after this modseq.
    """

    version: int = 1
    id: int = 0
    name: str = ""
    uidvalidity: int = 0
    uidnext: int = 1
    highestmodseq: int = 1
    messages: int = 0
    unseen: int = 0
    deleted: int = 0
    size: int = 0
    special_use: str = ""
    noselect: bool = False
    vanished_floor: int = 0
    recent_uid: int = 1
    keywords: list[str] = field(default_factory=list)
    created_s: int = 0
    subscribed: bool = False
    has_children: bool = False
    changed_modseq: int = CHANGED_UNKNOWN
    changed_before: int = CHANGED_UNKNOWN
    journal_floor: int = CHANGED_UNKNOWN

    @property
    def attributes(self) -> list[str]:
        """The attributes of LIST (RFC 9051 7.3.1, 6154, 3348)."""
        found = ["\\Noselect"] if self.noselect else []
        found.append("\\HasChildren" if self.has_children else "\\HasNoChildren")
        if self.special_use:
            found.append(self.special_use)
        return found

    def flag_names(self, bits: int) -> list[str]:
        """Names of the flags in `bits`, \\Recent left out."""
        names = [name for name, bit in SYSTEM_FLAGS.items() if bits & bit]
        keys = bits >> KEYWORD_SHIFT
        index = 0
        while keys and index < len(self.keywords):
            if keys & 1:
                names.append(self.keywords[index])
            keys >>= 1
            index += 1
        return names


class Row(Struct):
    """One message as the readers see it. envelope, bodystructure: IMAP syntax, ready to send. origin: the id it was
    accepted under (16 octets), equal in all copies of a message within the account. saved_s: when it came into this mailbox."""

    uid: int
    flags: int
    modseq: int
    internaldate_s: int
    size: int
    rope: Rope
    dot_free: bool
    envelope: bytes
    bodystructure: bytes
    origin: bytes
    saved_s: int


_rope_decoder = msgspec.msgpack.Decoder(list[Extent | bytes])
decode_rope = _rope_decoder.decode


def system_bit(name: str) -> int:
    """The bit of a system flag in any case, 0 if it is none (a keyword)."""
    return _SYSTEM_BITS.get(name.lower(), 0)


def pack_message(
    rope: Rope, envelope: bytes, bodystructure: bytes, dot_free: bool, saved_s: int, origin: bytes,
    place: tuple[int, int] | None = None,
) -> bytes:
    """A message row. place: (blob, offset) where the summary was put if it is not in the row."""
    packed = encode(rope)
    bits = DOT_FREE if dot_free else 0
    if place is not None:
        head = MESSAGE_HEAD.pack(
            MESSAGE_VERSION, bits | SUMMARY_OUTSIDE, 0, len(packed), len(envelope), len(bodystructure), saved_s, origin
        )
        return b"".join((head, packed, SUMMARY_PLACE.pack(*place)))
    head = MESSAGE_HEAD.pack(
        MESSAGE_VERSION, bits, 0, len(packed), len(envelope), len(bodystructure), saved_s, origin
    )
    return b"".join((head, packed, envelope, bodystructure))


def message_rope(value: bytes) -> Rope:
    """The rope in a message row."""
    start = MESSAGE_HEAD.size
    length = int.from_bytes(value[4:8], "little")
    return decode_rope(value[start : start + length])


def summary_place(value: bytes) -> tuple[int, int, int] | None:
    """(blob, offset, length) of a summary kept outside the message row, else None."""
    if not value[1] & SUMMARY_OUTSIDE:
        return None
    _, _, _, rope, envelope, structure, _, _ = MESSAGE_HEAD.unpack_from(value)
    blob, offset = SUMMARY_PLACE.unpack_from(value, MESSAGE_HEAD.size + rope)
    return blob, offset, envelope + structure
