"""PROXY headers, whole, cut, malformed; and read off a socket without touching what follows."""

import asyncio
import socket

import pytest

from iems.net import proxy
from iems.net.proxy import Header

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V4 = SIGNATURE + b"\x21\x11\x00\x0c" + bytes((192, 0, 2, 1, 127, 0, 0, 1, 0, 9, 0, 25))
V6 = SIGNATURE + b"\x21\x21\x00\x26" + bytes(15) + b"\x01" + bytes(16) + b"\x00\x09\x00\x19" + b"\x04\x00"
GOOD = [
    (b"PROXY TCP4 192.0.2.1 127.0.0.1 9 25\r\n", "192.0.2.1"),
    (b"PROXY TCP6 2001:db8::1 ::1 9 25\r\n", "2001:db8::1"),
    (b"PROXY UNKNOWN\r\n", ""),
    (b"PROXY UNKNOWN ffff::1 ::1 9 25\r\n", ""),
    (V4, "192.0.2.1"),
    (V6, "::1"),
    (SIGNATURE + b"\x20\x00\x00\x00", ""),
    (SIGNATURE + b"\x21\x31\x00\x01x", ""),
]


@pytest.mark.parametrize(("data", "ip"), GOOD)
def test_whole_and_cut(data, ip):
    assert proxy.parse(data + b"EHLO") == Header(len(data), ip)
    for end in range(len(data)):
        assert proxy.parse(data[:end]) is None


@pytest.mark.parametrize(
    "data",
    [
        b"EHLO x\r\n",
        b"PROXY TCP4 1.2.3 4.5.6.7 1 2\r\n",
        b"PROXY TCP6 1.2.3.4 4.5.6.7 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 4.5.6.7 1 2\n",
        b"PROXY TCP4\r\n",
        b"PROXY " + b"x" * 200,
        b"PROXY TCP4 \xff 1 2 3\r\n",
        SIGNATURE + b"\x11\x11\x00\x0c",
        SIGNATURE + b"\x22\x11\x00\x00",
        SIGNATURE + b"\x21\x11\xff\xff",
        SIGNATURE + b"\x21\x11\x00\x04" + bytes(4),
    ],
)
def test_malformed(data):
    with pytest.raises(ValueError):
        proxy.parse(data)


@pytest.mark.parametrize(("data", "ip"), [*GOOD, (b"garbage\r\n", None), (b"PROXY TC", None)])
def test_reader_takes_the_header_only(data, ip):
    async def go():
        ours, theirs = socket.socketpair()
        got = asyncio.get_running_loop().create_future()
        proxy.Reader(asyncio.get_running_loop(), ours, got.set_result, 0.3)
        half = len(data) // 2
        theirs.send(data[:half])
        await asyncio.sleep(0.02)
        theirs.send(data[half:] + (b"\x16\x03" if ip is not None else b""))
        assert await got == ip
        if ip is not None:
            assert ours.recv(10) == b"\x16\x03"
        ours.close()
        theirs.close()

    asyncio.run(go())
