"""The Python twin of `crc32c`: one table, one octet at a time."""

_POLYNOMIAL = 0x82F63B78  # reflected


def _entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ _POLYNOMIAL if value & 1 else value >> 1
    return value


_TABLE = [_entry(value) for value in range(256)]


def crc32c(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """The checksum of `data`, or of what `crc` covers followed by `data`."""
    register = crc ^ 0xFFFFFFFF
    table = _TABLE
    for octet in memoryview(data).cast("B"):
        register = table[(register ^ octet) & 255] ^ register >> 8
    return register ^ 0xFFFFFFFF


crc32c_table = crc32c
