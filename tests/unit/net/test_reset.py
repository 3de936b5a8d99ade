"""A reset behind more data than one read takes: the data arrives, then the end, on every loop."""

import asyncio
import socket
import struct

import pytest
import uvloop

from iems.net.stream import Stream


class Handler:
    def __init__(self):
        self.octets = 0
        self.lost = asyncio.get_running_loop().create_future()

    def data_received(self, view):
        self.octets += len(view)

    def eof_received(self):
        raise AssertionError("a reset is no orderly end")

    def connection_lost(self, cause):
        self.lost.set_result(cause)


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("size", [1, 1000, 600_000])
def test_reset(factory, size):
    async def go():
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_000_000)
            peer = socket.create_connection(server.getsockname())
            sock, _ = server.accept()
            handler = Handler()
            Stream(asyncio.get_running_loop(), sock, handler)
            sent = 0
            peer.setblocking(False)
            while sent < size:
                try:
                    sent += peer.send(b"x" * (size - sent))
                except BlockingIOError:
                    break
            # Data and reset are both there before the loop looks.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            cause = await asyncio.wait_for(handler.lost, 60)
            assert isinstance(cause, OSError) and 0 < handler.octets <= sent

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(go())
