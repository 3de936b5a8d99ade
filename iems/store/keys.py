"""Keys of a partition's LMDB environment (`HOME/store/pN/index`), one tree, numbers big-endian.

Key: account u32, kind u8, then what the table says. Writer: the role `store` worker that owns the partition, nobody else.
Readers: imapd, pop3d, iemsuser (`reader.py`) where the last column says R.

| kind | account | rest of the key            | value (rows.py), version                              | read by |
| ---- | ------- | -------------------------- | ----------------------------------------------------- | ------- |
| 0x01 | 0       | -                          | Meta, msgpack, 1: format and number of the partition  | R       |
| 0x02 | 0       | blob u64                   | BLOB: octets in use, file length, since, copied       |         |
| 0x03 | 0       | client u64, seq u64        | stored answer: time u32, frame                        |         |
| 0x04 | 0       | origin 16, account u32     | DEDUP: mailbox u32, uid u32, delivered s u32          |         |
| 0x05 | 0       | due s u32, account u32, mailbox u32, uid u32 | trash: the flags row of an expunged message | |
| 0x06 | 0       | due s u32, account u32, mailbox u32 | purge: the Mailbox of a deleted mailbox      |         |
| 0x07 | 0       | name of the domain         | DomainUse, msgpack: what its accounts keep here (format 2) | R  |
| 0x08 | 0       | origin 16, account u32     | gone: time u32 at which its last octets were let go of | R      |
| 0x10 | account | -                          | Account, msgpack, 1: counters and usage               | R       |
| 0x11 | account | mailbox u32                | Mailbox, msgpack, 1: name, counts, keywords           | R       |
| 0x12 | account | -                          | subscribed names, msgpack list                        | R       |
| 0x13 | account | hash of the name u64       | tombstone: uidvalidity u32 the name last showed       |         |
| 0x14 | account | mailbox u32 (0: the account) | annotations, msgpack: entry -> octets (RFC 5464)    | R       |
| 0x15 | account | mailbox u32                | ACL, msgpack: address -> (account u32, rights) (RFC 4314) | R     |
| 0x16 | account | -                          | accounts that share mailboxes with this one, msgpack list | R     |
| 0x17 | account | -                          | staged: u32, the partition the account is being moved from; this one: it was here | |
| 0x18 | account | mailbox u32, uid / 4096 u32, member u32 | of a shared mailbox: bits of uids whose \\Seen is the other way round for the member (account u32) | R |
| 0x20 | account | mailbox u32, uid u32       | FLAGS, 32 octets: the message exists                  | R       |
| 0x21 | account | mailbox u32, uid u32       | message row: rope and summary (version in octet 0)    | R       |
| 0x22 | account | mailbox u32, modseq u64    | vanished: time u32, then uids u32 (little-endian)     | R       |
| 0x23 | account | mailbox u32, modseq u64    | journal: uids u32 whose flags changed, in large mailboxes | R   |

Accounts start at 1, mailbox ids and uids too. All rows of an account are in the partition its directory entry names.
"""

from __future__ import annotations

import hashlib
import struct

META = 0x01
BLOB = 0x02
ANSWER = 0x03
DEDUP = 0x04
TRASH = 0x05
PURGE = 0x06
DOMAIN = 0x07
GONE = 0x08
ACCOUNT = 0x10
MAILBOX = 0x11
SUBSCRIBED = 0x12
TOMBSTONE = 0x13
METADATA = 0x14
ACL = 0x15
SHARED = 0x16
STAGED = 0x17
MARK = 0x18
FLAGS = 0x20
MESSAGE = 0x21
VANISHED = 0x22
JOURNAL = 0x23

#: The bit that tells a blob a partition wrote itself from one of the spool's.
OWN_BLOBS = 1 << 63

_HEAD = struct.Struct(">IB")
_MAILBOX = struct.Struct(">IBI")
_UID = struct.Struct(">IBII")
_MODSEQ = struct.Struct(">IBIQ")
_MARK = struct.Struct(">IBIII")
_NUMBER = struct.Struct(">IBQ")
_ANSWER = struct.Struct(">IBQQ")
_TRASH = struct.Struct(">IBIIII")
_PURGE = struct.Struct(">IBIII")

#: Length of the key prefix (account, kind, mailbox) that rows of one mailbox share.
MAILBOX_PREFIX = _MAILBOX.size
#: Length of the key of a flags or message row; the uid is its last four octets.
UID_KEY = _UID.size


def head(account: int, kind: int) -> bytes:
    """Prefix of all rows of one kind; the whole key where there is only one."""
    return _HEAD.pack(account, kind)


META_KEY = head(0, META)


def account(number: int) -> bytes:
    """Key of the account row."""
    return _HEAD.pack(number, ACCOUNT)


def mailbox(number: int, mailbox_id: int) -> bytes:
    """Key of the mailbox row."""
    return _MAILBOX.pack(number, MAILBOX, mailbox_id)


def subscribed(number: int) -> bytes:
    """Key of the list of subscriptions."""
    return _HEAD.pack(number, SUBSCRIBED)


def tombstone(number: int, name: str) -> bytes:
    """A name is kept by 64 bits of its hash: a clash only costs a new uidvalidity, which is always allowed."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return _HEAD.pack(number, TOMBSTONE) + digest


def metadata(number: int, mailbox_id: int) -> bytes:
    """Key of the annotations."""
    return _MAILBOX.pack(number, METADATA, mailbox_id)


def acl(number: int, mailbox_id: int) -> bytes:
    """Key of the ACL."""
    return _MAILBOX.pack(number, ACL, mailbox_id)


def shared(number: int) -> bytes:
    """Key of the list of accounts that share mailboxes with this one."""
    return _HEAD.pack(number, SHARED)


def domain(name: str) -> bytes:
    """Key of the counters of a domain."""
    return head(0, DOMAIN) + name.encode()


def staged(number: int) -> bytes:
    """Key of the row of an account that is being moved, or was."""
    return _HEAD.pack(number, STAGED)


def prefix(number: int, kind: int, mailbox_id: int) -> bytes:
    """Prefix of the rows of one mailbox (kinds MARK, FLAGS, MESSAGE, VANISHED, JOURNAL)."""
    return _MAILBOX.pack(number, kind, mailbox_id)


def mark(number: int, mailbox_id: int, chunk: int, member: int) -> bytes:
    """Key of the marks of a member."""
    return _MARK.pack(number, MARK, mailbox_id, chunk, member)


def flags(number: int, mailbox_id: int, uid: int) -> bytes:
    """Key of the flags row."""
    return _UID.pack(number, FLAGS, mailbox_id, uid)


def message(number: int, mailbox_id: int, uid: int) -> bytes:
    """Key of the message row."""
    return _UID.pack(number, MESSAGE, mailbox_id, uid)


def vanished(number: int, mailbox_id: int, modseq: int) -> bytes:
    """Key of the row of what vanished."""
    return _MODSEQ.pack(number, VANISHED, mailbox_id, modseq)


def journal(number: int, mailbox_id: int, modseq: int) -> bytes:
    """Key of the row of changed flags."""
    return _MODSEQ.pack(number, JOURNAL, mailbox_id, modseq)


def blob(number: int) -> bytes:
    """Key of the blob row."""
    return _NUMBER.pack(0, BLOB, number)


def answer(client: int, seq: int) -> bytes:
    """Key of the stored answer."""
    return _ANSWER.pack(0, ANSWER, client, seq)


def dedup(origin: bytes, number: int) -> bytes:
    """Key of the note of a delivery."""
    return b"\0\0\0\0\4" + origin + number.to_bytes(4, "big")


def gone(origin: bytes, number: int) -> bytes:
    """Key of the note that a message was let go of for good."""
    return b"\0\0\0\0\x08" + origin + number.to_bytes(4, "big")


def trash(due_s: int, number: int, mailbox_id: int, uid: int) -> bytes:
    """Key of the row of an expunged message."""
    return _TRASH.pack(0, TRASH, due_s, number, mailbox_id, uid)


def purge(due_s: int, number: int, mailbox_id: int) -> bytes:
    """Key of the row of a deleted mailbox."""
    return _PURGE.pack(0, PURGE, due_s, number, mailbox_id)


def split_answer(key: bytes) -> tuple[int, int]:
    """(client, seq) of an ANSWER key."""
    parts = _ANSWER.unpack(key)
    return parts[2], parts[3]


def split_trash(key: bytes) -> tuple[int, int, int, int]:
    """(due_s, account, mailbox, uid) of a TRASH key."""
    parts = _TRASH.unpack(key)
    return parts[2], parts[3], parts[4], parts[5]


def split_purge(key: bytes) -> tuple[int, int, int]:
    """(due_s, account, mailbox) of a PURGE key."""
    parts = _PURGE.unpack(key)
    return parts[2], parts[3], parts[4]
