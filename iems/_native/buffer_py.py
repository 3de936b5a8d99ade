"""The Python twin of `buffer`: the same answers from a bytearray."""


class Buffer(bytearray):
    """Octets that grow at the end; a bytearray with the names of the native class."""

    def append(self, piece):  # type: ignore[no-untyped-def,override]
        """Add the octets of `piece` at the end."""
        self += piece

    def truncate(self, length: int) -> None:
        """Keep the first `length` octets. Raises ValueError if there are fewer."""
        if length < 0 or length > len(self):
            raise ValueError("can't truncate to more than there is")
        del self[length:]
