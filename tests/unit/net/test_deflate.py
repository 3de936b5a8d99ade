"""A compressed stream: order, bounds and ends, over a stream in memory."""

import asyncio
import os
import zlib

import pytest

from iems.net import deflate
from iems.net.deflate import Deflated


class FakeStream:
    def __init__(self):
        self.out = b""
        self.pending_out = 0
        self.peer = self.local = ()
        self.secure = False
        self.sslobj = None
        self.closed = self.paused = False
        self.handler = None

    def send(self, data):
        self.out += bytes(data)

    def cork(self):
        pass

    uncork = cork

    def close(self):
        self.closed = True

    abort = close

    def pause_reading(self):
        self.paused = True

    def resume_reading(self):
        self.paused = False


class Handler:
    def __init__(self):
        self.got = b""
        self.ended = False
        self.writable_calls = 0
        self.stop_at = None
        self.stream = None

    def data_received(self, view):
        self.got += bytes(view)
        if self.stop_at is not None and len(self.got) >= self.stop_at:
            self.stream.pause_reading()

    def eof_received(self):
        self.ended = True

    def writable(self):
        self.writable_calls += 1

    def connection_lost(self, cause):
        pass


def run(test):
    async def main():
        raw, handler = FakeStream(), Handler()
        raw.handler = handler
        made = Deflated(asyncio.get_running_loop(), raw)
        handler.stream = made
        assert raw.handler is made
        await test(made, raw, handler)

    asyncio.run(main())


def packed(data):
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)


def plain(raw):
    return zlib.decompressobj(-15).decompress(raw.out)


def test_what_a_few_octets_hold_comes_in_turns():
    async def test(made, raw, handler):
        data = b"x" * (5 * deflate.TURN_OCTETS)
        made.data_received(memoryview(packed(data)))
        made.eof_received()
        assert len(handler.got) == deflate.TURN_OCTETS
        assert raw.paused and not handler.ended
        turns = 1
        while len(handler.got) < len(data):
            await asyncio.sleep(0)
            turns += 1
        assert turns == 5
        assert handler.got == data
        await asyncio.sleep(0)
        assert handler.ended

    run(test)


def test_a_handler_that_pauses_gets_no_more():
    async def test(made, raw, handler):
        data = os.urandom(400_000)
        handler.stop_at = 100_000
        made.data_received(memoryview(packed(data)))
        assert 100_000 <= len(handler.got) < 200_000
        handler.stop_at = None
        made.resume_reading()
        await asyncio.sleep(0)
        assert handler.got == data and not raw.paused

    run(test)


@pytest.mark.parametrize("corked", [False, True])
def test_files_and_octets_stay_in_order(tmp_path, corked):
    async def test(made, raw, handler):
        path = tmp_path / "content"
        content = os.urandom(500_000)
        path.write_bytes(content)
        fd = os.open(path, os.O_RDONLY)
        if corked:
            made.cork()
        made.send(b"before")
        made.send_file(fd, 100, 400_000)
        os.close(fd)  # the caller's cache may close it at once
        made.send(b"between")
        made.send_file(os.open(path, os.O_RDONLY), 0, 10)
        made.send(b"after")
        assert made.pending_out > 400_000
        if corked:
            made.uncork()
        made.close()
        async with asyncio.timeout(60):
            while not raw.closed:
                await asyncio.sleep(0)
        assert plain(raw) == b"before" + content[100:400_100] + b"between" + content[:10] + b"after"
        assert made.pending_out == 0

    run(test)


def test_what_is_no_deflate_ends_it():
    async def test(made, raw, handler):
        made.data_received(memoryview(b"\xff\xff\xff\xff"))
        assert raw.closed and not handler.got
        made.send(b"x")
        assert not raw.out

    run(test)


def test_a_file_that_is_too_short_ends_it(tmp_path):
    async def test(made, raw, handler):
        path = tmp_path / "content"
        path.write_bytes(b"short")
        made.send_file(os.open(path, os.O_RDONLY), 0, 100)
        async with asyncio.timeout(60):
            while not raw.closed:
                await asyncio.sleep(0)

    run(test)
