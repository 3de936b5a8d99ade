"""Reading many rows of one mailbox: the reference of `pages.pyx`.

A cursor is one of a read transaction of LMDB, with buffers or without; `page_size` is of no meaning here. The kernel takes all rows of a leaf
page once the cursor has led to one of them, instead of asking for each.
"""

import re
import struct
from array import array

import msgspec

_HEAD = struct.Struct("<BBHIIII16s")
_FLAGS = struct.Struct("<IIQQq")
_PLACE = 16
_OUTSIDE = 2
#: Date and subject of an ENVELOPE, where both are NIL or quoted.
_SUBJECT = re.compile(rb'\((?:NIL|"(?:[^"\\]|\\.)*") (NIL|"((?:[^"\\]|\\.)*)")', re.DOTALL)
#: What makes a subject more than its text: encoded words, escapes, controls, white space that folds, octets that are not ASCII.
_ODD = re.compile(rb"=\?|\\|[\x00-\x1f\x7f-\xff]|  |^ | $", re.DOTALL)


def fixed(cursor, prefix, length, page_size):
    """The values of all rows whose key begins with `prefix`, one after the other. Raises ValueError for one that has not `length` octets."""
    found = []
    if cursor.set_range(prefix):
        for key, value in cursor:
            if bytes(key[: len(prefix)]) != prefix:
                break
            if len(value) != length:
                raise ValueError("a row of another length")
            found.append(bytes(value))
    return b"".join(found)


def flags(cursor, prefix, page_size, expected):
    """Uids, flags and modseqs of the flags rows whose key begins with `prefix`: octets of uint32[n], uint64[n], uint64[n].

    expected: how many there may be. Raises ValueError for a row of another length.
    """
    uids, bits, modseqs = array("I"), array("Q"), array("Q")
    rows = fixed(cursor, prefix, _FLAGS.size, page_size)
    for uid, _, flag_bits, modseq, _ in _FLAGS.iter_unpack(rows):
        uids.append(uid)
        bits.append(flag_bits)
        modseqs.append(modseq)
    return uids.tobytes(), bits.tobytes(), modseqs.tobytes()


def subjects(cursor, prefix, uids, start, count, page_size):
    """The subjects of `count` messages from `uids[start]` on: (uids found, texts, odd ones).

    uids: uint32[n] ascending. Found uids come as octets of uint32; texts in lower case with a line feed between each two. A subject that is
    more than ASCII on one line has an empty text and is in the list of odd ones: (its place among the found, the whole ENVELOPE, or None if
    that lies outside the row). Raises ValueError for what is no message row.
    """
    if start < 0 or count < 0:
        raise ValueError("start and count are not negative")
    found, texts, odd = array("I"), [], []
    for uid in uids[start : start + count].tolist():
        wanted = prefix + uid.to_bytes(4, "big")
        if not cursor.set_range(wanted):
            break
        key, value = cursor.item()
        if bytes(key) != wanted:
            continue
        envelope = _envelope(bytes(value))
        match = envelope and _SUBJECT.match(envelope)
        text = b""
        if not match or (match[2] and _ODD.search(match[2])):
            odd.append((len(found), envelope))
        else:
            text = (match[2] or b"").lower()
        found.append(uid)
        texts.append(text)
    return found.tobytes(), b"\n".join(texts), odd


def places(cursor, prefix, uids, start, count, page_size):
    """Where the contents of `count` messages from `uids[start]` on lie: (uids found, their places, heads).

    uids: uint32[n] ascending. Found uids come as octets of uint32. A place is uint64[6]: 1, offset and length of what of the content stands in the
    row (in heads), blob, offset and length of the one extent after it; a blob of 0 and no length where there is none. All is 0 for a rope of another
    shape. Raises ValueError for what is no message row.
    """
    if start < 0 or count < 0:
        raise ValueError("start and count are not negative")
    found, table, heads = array("I"), array("Q"), []
    octets = 0
    for uid in uids[start : start + count].tolist():
        wanted = prefix + uid.to_bytes(4, "big")
        if not cursor.set_range(wanted):
            break
        key, value = cursor.item()
        if bytes(key) != wanted:
            continue
        head, extent = _place(_rope(bytes(value)))
        found.append(uid)
        if extent is None:
            table.extend((0,) * 6)
            continue
        table.extend((1, octets, len(head), *extent))
        heads.append(head)
        octets += len(head)
    return found.tobytes(), table.tobytes(), b"".join(heads)


def _place(raw):
    """(octets, extent) of a rope that is octets, an extent as it lies in the file, or one after the other; else (b"", None)."""
    try:
        rope = msgspec.msgpack.decode(raw)
    except (msgspec.DecodeError, ValueError):
        return b"", None
    # written otherwise than the store does: not read by the kernel
    if type(rope) is not list or not 0 < len(rope) <= 2 or msgspec.msgpack.encode(rope) != raw:
        return b"", None
    head = rope.pop(0) if type(rope[0]) is bytes else b""
    if not rope:
        return head, (0, 0, 0)
    extent = rope[0]
    if len(rope) != 1 or type(extent) is not list or len(extent) != 4 or not all(type(n) is int and n >= 0 for n in extent) or extent[3]:
        return b"", None
    return head, tuple(extent[:3])


def _rope(value):
    _envelope(value)
    return value[_HEAD.size : _HEAD.size + int.from_bytes(value[4:8], "little")]


def _envelope(value):
    if len(value) < _HEAD.size:
        raise ValueError("not a message row")
    _, bits, _, rope, envelope, structure, _, _ = _HEAD.unpack_from(value)
    start = _HEAD.size + rope
    if len(value) != start + (_PLACE if bits & _OUTSIDE else envelope + structure):
        raise ValueError("not a message row")
    return None if bits & _OUTSIDE else value[start : start + envelope]
