"""Joining FETCH responses: the reference of `store.pyx`.

Rows come as (key, value) pairs of octets in key order, as an LMDB cursor gives them. Layouts: `iems/store/rows.py`.
"""

import struct
import time

_FLAGS = struct.Struct("<IIQQq")
_HEAD = struct.Struct("<BBHIIII16s")
_PLACE = struct.Struct("<QQ")
_OUTSIDE = 2
_MONTHS = b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
_DATE_MIN = -62135596800  # year 1
_DATE_MAX = 253402300799  # year 9999

FLAGS, UID, ENVELOPE, BODYSTRUCTURE, INTERNALDATE, RFC822_SIZE, MODSEQ = range(1, 8)


def internal_date(seconds):
    """The date-time of INTERNALDATE in UTC, with its quotes (RFC 9051 9); years 1 to 9999, others are clamped."""
    moment = time.gmtime(min(max(seconds, _DATE_MIN), _DATE_MAX))
    return b'"%2d-%s-%04d %02d:%02d:%02d +0000"' % (
        moment.tm_mday,
        _MONTHS[moment.tm_mon - 1],
        moment.tm_year,
        moment.tm_hour,
        moment.tm_min,
        moment.tm_sec,
    )


class _Rows:
    """The row of a uid, from rows in ascending order asked for in ascending order."""

    def __init__(self, rows, prefix):
        self.rows = iter(rows)
        self.prefix = prefix
        self.uid = -1
        self.value = b""

    def find(self, uid):
        while self.uid < uid:
            key, self.value = next(self.rows, (b"", b""))
            if len(key) != len(self.prefix) + 4 or not key.startswith(self.prefix):
                self.uid = 1 << 32  # past the last row of this mailbox
                self.rows = iter(())
            else:
                self.uid = int.from_bytes(key[-4:], "big")
        return self.value if self.uid == uid else None


def fetch(
    items, names, seqs, uids, start, small, small_prefix, large, large_prefix, load, max_octets, recent_from
):
    """Join FETCH responses (RFC 9051 7.5.2) of messages `start` and on: (octets, index to go on at).

    items: the numbers above, in the order wanted. names: of flag bits 0-4, then of the keywords (bit 16 and up).
    seqs, uids: uint32[n], uids ascending. small, large: flags and message rows from uids[start] on; `large` is read only if an
    item needs it. load(blob, offset, length): a summary kept outside. max_octets: stop after the response that reaches it.
    recent_from: uids from here on get \\Recent. A message with a missing row is left out. Raises ValueError on bad rows or items.
    """
    if len(seqs) != len(uids):
        raise ValueError("as many seqs as uids, please")
    if any(not FLAGS <= item <= MODSEQ for item in items) or not items:
        raise ValueError("no such item")
    small_rows, large_rows = _Rows(small, small_prefix), _Rows(large, large_prefix)
    summary = ENVELOPE in items or BODYSTRUCTURE in items
    out = bytearray()
    index = start
    while index < len(uids) and len(out) < max_octets:
        uid, seq = int(uids[index]), int(seqs[index])
        index += 1
        value = small_rows.find(uid)
        if value is None:
            continue
        if len(value) != _FLAGS.size:
            raise ValueError("not a flags row")
        _, size, bits, modseq, date = _FLAGS.unpack(value)
        envelope = structure = b""
        if summary:
            value = large_rows.find(uid)
            if value is None:
                continue
            envelope, structure = _summary(value, load)
        pieces = []
        for item in items:
            if item == FLAGS:
                found = [name for bit, name in enumerate(names[:5]) if bits >> bit & 1]
                if uid >= recent_from:
                    found.append(b"\\Recent")
                found += [name for bit, name in enumerate(names[5:], 16) if bits >> bit & 1]
                pieces.append(b"FLAGS (" + b" ".join(found) + b")")
            elif item == UID:
                pieces.append(b"UID %d" % uid)
            elif item == ENVELOPE:
                pieces.append(b"ENVELOPE " + envelope)
            elif item == BODYSTRUCTURE:
                pieces.append(b"BODYSTRUCTURE " + structure)
            elif item == INTERNALDATE:
                pieces.append(b"INTERNALDATE " + internal_date(date))
            elif item == RFC822_SIZE:
                pieces.append(b"RFC822.SIZE %d" % size)
            else:
                pieces.append(b"MODSEQ (%d)" % modseq)
        out += b"* %d FETCH (%s)\r\n" % (seq, b" ".join(pieces))
    return bytes(out), index


def _summary(value, load):
    if len(value) < _HEAD.size:
        raise ValueError("not a message row")
    _, bits, _, rope, envelope, structure, _, _ = _HEAD.unpack_from(value)
    start = _HEAD.size + rope
    if bits & _OUTSIDE:
        if len(value) != start + _PLACE.size:
            raise ValueError("not a message row")
        both = load(*_PLACE.unpack_from(value, start), envelope + structure)
        if len(both) != envelope + structure:
            raise ValueError("a summary of the wrong length")
    else:
        both = value[start:]
        if len(both) != envelope + structure:
            raise ValueError("not a message row")
    return both[:envelope], both[envelope:]
