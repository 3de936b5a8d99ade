"""Databases of the directory's LMDB environment (`HOME/directory`).

| database | key                                        | value                                   | written by   | read by          |
| -------- | ------------------------------------------ | --------------------------------------- | ------------ | ---------------- |
| meta     | name: format version policy entry account screen | u64: see below                    | every write  | every look-up    |
| entries  | entry id u64                               | `entries.Entry` as MessagePack array    | policy write | look-ups         |
| names    | parent id u64, hash of the RDN u64         | entry id u64 (several if hashes meet)   | policy write | names, `ldapd`   |
| lookup   | kind u8, hash of the look-up key u64       | entry id u64 (several if hashes meet)   | policy write | routing, log-in  |
| classes  | class code u8, entry id u64                | empty                                   | policy write | lists            |
| accounts | account number u32                         | entry id u64                            | account write| log-in, delivery |
| retired  | account number u32                         | time of deletion u64 (ns since 1970), partition u32 | deletion | janitor |

All numbers are big-endian, so key order is number order. Names are never keys: LMDB limits keys and duplicate values
to 511 octets, so a name is found by its hash and compared in the entry.

meta: `format` is the layout's version (1; a newer one is refused). `version` grows with every write, `policy` with those
that touch more than one entry's routing (domains, forwarding table, channels, settings), `screen` (there from the first
one on) with those of bans and DNS-BL zones. `entry` and `account` are the next free numbers; an account number is never used twice, since the store's rows are named by it.

Writers commit fully synced, from any process: LMDB's own lock makes them take turns. Open the environment after a fork,
once per process.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

FORMAT = 1
MAP_OCTETS = 8 << 30
MAX_READERS = 4096

DATABASES: tuple[tuple[bytes, bool], ...] = (
    (b"meta", False),
    (b"entries", False),
    (b"names", True),
    (b"lookup", True),
    (b"classes", False),
    (b"accounts", False),
    (b"retired", False),
)

# Kinds of look-up keys.
KIND_MAIL = 1
KIND_DOMAIN = 2
KIND_FORWARD = 3
KIND_MATRIX = 4
KIND_SETTINGS = 5
KIND_BAN = 10
KIND_DNSBL = 11
KIND_PEER = 12
KIND_RELAYED = 13
KIND_ATTACHMENT = 14
KIND_AUTOTEXT = 15
KIND_HEADER_RULE = 30

# Codes of the object classes that have an index.
CLASS_LOCAL_DOMAIN = 2
CLASS_ACCOUNT = 3
CLASS_ALIAS = 4
CLASS_RECIPIENT = 5
CLASS_FORWARD = 6
CLASS_MATRIX = 7
CLASS_SETTINGS = 8
CLASS_BAN = 20
CLASS_DNSBL = 21
CLASS_PEER = 24
CLASS_RELAYED = 25
CLASS_ATTACHMENT = 26
CLASS_AUTOTEXT = 27
CLASS_HEADER_RULE = 40

_U64 = struct.Struct(">Q")
_U32 = struct.Struct(">I")
_U8_U64 = struct.Struct(">BQ")

_RETIRED = struct.Struct(">QI")
retired = _RETIRED.pack
unpack_retired = _RETIRED.unpack
_KINDS = [bytes([kind]) for kind in range(64)]

u64 = _U64.pack


def u64_of(octets: bytes) -> int:
    """The number in eight octets."""
    return int(_U64.unpack(octets)[0])


def _hash(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()


def name_key(parent: int, rdn: str) -> bytes:
    """Key of `names`. rdn: in lower case."""
    return u64(parent) + _hash(rdn)


def lookup_key(kind: int, text: str) -> bytes:
    """Key of `lookup`. text: normalised address, domain, pattern or module name."""
    return _KINDS[kind] + _hash(text)


def class_key(code: int, entry: int) -> bytes:
    """Key of `classes`."""
    return _U8_U64.pack(code, entry)


def account_key(number: int) -> bytes:
    """Key of `accounts` and `retired`."""
    return _U32.pack(number)
