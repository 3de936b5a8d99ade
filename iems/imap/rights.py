"""Rights of access control lists (RFC 4314 2.1) as letters in one order."""

from __future__ import annotations

from iems.imap.grammar import Bad

#: lookup, read, seen, write, insert, post, create, delete mailbox, delete messages, expunge, administer.
ALL = "lrswipkxtea"
#: Letters of RFC 2086 and what they stand for.
_OLD = {"c": "kx", "d": "te"}


def parse(text: bytes) -> str:
    """Rights in canonical order. Raises `Bad` for letters that are none."""
    found: set[str] = set()
    for letter in text.decode("latin-1"):
        if letter in _OLD:
            found.update(_OLD[letter])
        elif letter in ALL:
            found.add(letter)
        else:
            raise Bad("Unknown right")
    return "".join(letter for letter in ALL if letter in found)


def change(held: str, text: bytes) -> str:
    """Rights after SETACL's argument: `+` adds, `-` takes away, else they are replaced. Raises `Bad`."""
    sign, letters = text[:1], text[1:]
    if sign not in (b"+", b"-"):
        return parse(text)
    given = parse(letters)
    return "".join(
        letter for letter in ALL if (letter in held and not (sign == b"-" and letter in given)) or (sign == b"+" and letter in given)
    )


def render(rights: str) -> bytes:
    """Rights as responses have them, with the letters of RFC 2086 for clients that know only those."""
    old = "c" * any(letter in rights for letter in "kx") + "d" * any(letter in rights for letter in "te")
    return (rights + old).encode()


def flag_right(name: str) -> str:
    """The right that setting or clearing a flag takes."""
    return {"\\seen": "s", "\\deleted": "t"}.get(name.lower(), "w")
