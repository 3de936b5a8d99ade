"""The Python twin of `ids`: how the 16 octets of a message id are shown."""

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def id_text(message_id: bytes) -> str:
    """The 26 characters (Crockford base32) shown for a 16-octet id; text order is byte order. Raises ValueError."""
    if len(message_id) != 16:
        raise ValueError("an id has 16 octets")
    number = int.from_bytes(message_id, "big")
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
