"""Reads IMAP data items back into lists, for comparing them with what is expected."""

import re

_ATOM = re.compile(rb"[A-Za-z0-9]+")


def parse(data):
    """`data` (one parenthesised list) as nested lists of bytes, int and None. Raises if it is no IMAP syntax."""
    item, at = _item(data, 0)
    assert at == len(data), (data, at)
    return item


def _item(data, at):
    head = data[at : at + 1]
    if head == b"(":
        found, at = [], at + 1
        while data[at : at + 1] != b")":
            if data[at : at + 1] == b" ":
                at += 1
                continue
            item, at = _item(data, at)
            found.append(item)
        return found, at + 1
    if head == b'"':
        out, at = bytearray(), at + 1
        while data[at] != 34:
            at += data[at] == 92
            assert data[at] not in b"\r\n\0" and data[at] < 128
            out.append(data[at])
            at += 1
        return bytes(out), at + 1
    if head == b"{":
        end = data.index(b"}\r\n", at)
        count, at = int(data[at + 1 : end]), end + 3
        assert len(data) >= at + count and b"\0" not in data[at : at + count]
        return data[at : at + count], at + count
    word = _ATOM.match(data, at)[0]
    return (None if word == b"NIL" else int(word)), at + len(word)


def children(structure):
    """The parts within a multipart of BODYSTRUCTURE; [] for another part."""
    found = []
    for item in structure:
        if not isinstance(item, list):
            break
        found.append(item)
    return found


def media(structure):
    """type/subtype of a part, in lower case."""
    inner = children(structure)
    if inner:
        return "multipart/" + structure[len(inner)].decode("latin-1").lower()
    return (structure[0] + b"/" + structure[1]).decode("latin-1").lower()


def tree(structure):
    """Nested type/subtype: a leaf is a string, others [type, children...]."""
    name, inner = media(structure), children(structure)
    if name == "message/rfc822" and not inner:
        inner = [structure[8]]
    return [name, *map(tree, inner)] if inner else name


def leaves(structure, number=""):
    """(part number, part) of everything that is no multipart, numbered as FETCH does (RFC 3501 6.4.5)."""
    inner = children(structure)
    for place, child in enumerate(inner, 1):
        yield from leaves(child, f"{number}.{place}" if number else str(place))
    if not inner:
        number = number or "1"
        yield number, structure
        if media(structure) == "message/rfc822":
            yield from leaves(structure[8], number if children(structure[8]) else number + ".1")


def parameters(pairs):
    """A parameter list as a dict with lower-case names."""
    pairs = [item.decode("latin-1") for item in pairs or []]
    return {name.lower(): value for name, value in zip(pairs[::2], pairs[1::2], strict=True)}
