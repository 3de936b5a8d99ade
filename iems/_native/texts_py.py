"""Whether texts are in messages, told without a Python object for a part or a line: the side that knows nothing.

What is right is defined by `message.text.Searchable`: a key is in a message or it is not. The kernel says NO and YES where it is sure of that and UNSURE
elsewhere (a charset or an encoded word that it doesn't undo); this side is never sure, so that the reference is asked about every message.
"""

NO = 0
YES = 1
UNSURE = 2

#: Octets of a message that is looked at; a larger one is UNSURE.
MAX_OCTETS = 4 << 20
#: Keys that are looked for at once.
MAX_KEYS = 16


def learn(folds, charsets):
    """What folding makes of characters, once before all else.

    folds: for each character from U+0080 on its folded form in UTF-8, b"" for one that depends on its neighbours. charsets: (name in lower case,
    octets of uint16[256]: the characters of its octets), windows-1252 first. Raises ValueError for more than there is room for.
    """
    if not charsets or len(charsets) > 16 or any(len(name) > 31 or len(table) != 512 for name, table in charsets):
        raise ValueError("too many charsets, or one that is not of 256 characters")


def judge(content, keys):
    """Octets of uint8[len(keys)]: NO, YES or UNSURE. keys: (folded text in UTF-8, whether the header counts). Raises ValueError for an empty one or too many."""
    _checked(keys)
    return bytes((UNSURE,)) * len(keys)


def sift(places, heads, fds, keys, start, octets, out):
    """Judge messages where they lie, from message `start` on until `octets` were read; return the first that was not judged.

    places: uint64[n, 6] and heads as `pages.places` gives them. fds: int32[n] of their files, -1 for none. out: uint8[n, len(keys)]. What
    can't be read is UNSURE. The GIL is not held meanwhile.
    """
    _checked(keys)
    if not 0 <= start <= len(places) or len(fds) != len(places) or out.shape != (len(places), len(keys)):
        raise ValueError("arrays of different lengths")
    out[start:] = UNSURE
    return len(places)


def _checked(keys):
    if not 0 < len(keys) <= MAX_KEYS or not all(text for text, _ in keys):
        raise ValueError("an empty key, none, or too many")
