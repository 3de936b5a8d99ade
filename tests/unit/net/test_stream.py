"""Streams over real loopback sockets: order, back-pressure, files, STARTTLS, endings."""

import asyncio
import os
import random
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from iems.net.stream import Stream, serve


class Recorder:
    """A handler that keeps what it is told."""

    def __init__(self):
        self.data = bytearray()
        self.eof = False
        self.lost = asyncio.get_running_loop().create_future()
        self.ready = asyncio.get_running_loop().create_future()
        self.on_data = None

    def data_received(self, view):
        self.data += view
        if self.on_data:
            self.on_data(bytes(view))

    def eof_received(self):
        self.eof = True
        self.stream.close()

    def connection_lost(self, cause):
        self.lost.set_result(cause)

    def tls_ready(self):
        self.ready.set_result(True)


def run(test):
    async def bounded():
        await asyncio.wait_for(test(), 60)

    uvloop.run(bounded())


def pair():
    listener = socket.create_server(("127.0.0.1", 0))
    near = socket.create_connection(listener.getsockname())
    far, _ = listener.accept()
    listener.close()
    return near, far


def attach(sock, **options):
    handler = Recorder()
    handler.stream = Stream(asyncio.get_running_loop(), sock, handler, **options)
    return handler


def read_all(sock):
    """All octets until the end, read in a thread."""
    result = []

    def reader():
        with sock:
            while chunk := sock.recv(65536):
                result.append(chunk)

    thread = threading.Thread(target=reader)
    thread.start()

    async def joined():
        await asyncio.get_running_loop().run_in_executor(None, thread.join)
        return b"".join(result)

    return joined


@pytest.fixture(scope="session")
def contexts(tmp_path_factory):
    """A server and a client context over a fresh self-signed certificate."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    client = ssl.create_default_context(cafile=str(folder / "cert.pem"))
    return server, client


def test_sends_in_order_through_back_pressure(tmp_path):
    content = random.Random(1).randbytes(3_000_000)
    (tmp_path / "blob").write_bytes(content)

    async def test():
        near, far = pair()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        handler = attach(near)
        everything = read_all(far)
        fd = os.open(tmp_path / "blob", os.O_RDONLY)
        handler.stream.send(b"head")
        handler.stream.send_file(fd, 10, 2_000_000)
        handler.stream.send(b"middle" * 100_000)
        handler.stream.send_file(fd, 0, 5)
        handler.stream.send(b"tail")
        assert handler.stream.pending_out > 0
        os.close(fd)  # the stream keeps its own
        handler.stream.close()
        expected = b"head" + content[10:2_000_010] + b"middle" * 100_000 + content[:5] + b"tail"
        assert await everything() == expected
        assert await handler.lost is None

    run(test)


def test_cork_gathers(tmp_path):
    (tmp_path / "blob").write_bytes(b"0123456789")

    async def test():
        near, far = pair()
        handler = attach(near)
        fd = os.open(tmp_path / "blob", os.O_RDONLY)
        handler.stream.cork()
        handler.stream.send(b"a")
        handler.stream.send_file(fd, 2, 3)
        handler.stream.send(b"b")
        far.setblocking(False)
        with pytest.raises(BlockingIOError):
            far.recv(10)
        handler.stream.uncork()
        await asyncio.sleep(0)
        far.setblocking(True)
        far.settimeout(5)
        got = b""
        while len(got) < 5:
            got += far.recv(100)
        assert got == b"a234b"
        os.close(fd)
        handler.stream.abort()
        far.close()
        await handler.lost

    run(test)


def test_last_reply_survives_unread_input():
    async def test():
        near, far = pair()
        handler = attach(near)
        handler.stream.pause_reading()
        far.sendall(b"x" * 1000)
        handler.stream.send(b"421 bye\r\n")
        handler.stream.close()
        assert await read_all(far)() == b"421 bye\r\n"
        assert await handler.lost is None

    run(test)


def test_file_that_ends_early_drops_the_connection(tmp_path):
    (tmp_path / "blob").write_bytes(b"short")

    async def test():
        near, far = pair()
        handler = attach(near)
        fd = os.open(tmp_path / "blob", os.O_RDONLY)
        handler.stream.send_file(fd, 0, 100)
        os.close(fd)
        assert isinstance(await handler.lost, OSError)
        assert await read_all(far)() == b"short"

    run(test)


def test_fault_in_handler_ends_only_its_connection():
    async def test():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        near, far = pair()
        handler = attach(near)

        def fail(_data):
            raise ValueError("ours")

        handler.on_data = fail
        far.send(b"x")
        assert isinstance(await handler.lost, ValueError)
        far.close()

    run(test)


def test_pause_and_resume():
    async def test():
        near, far = pair()
        handler = attach(near)
        handler.stream.pause_reading()
        far.send(b"one")
        await asyncio.sleep(0.02)
        assert not handler.data
        handler.stream.resume_reading()
        far.close()
        await handler.lost
        assert handler.data == b"one" and handler.eof

    run(test)


@pytest.mark.parametrize("implicit", [True, False])
def test_tls_both_ways(contexts, tmp_path, implicit):
    server_context, client_context = contexts
    content = random.Random(2).randbytes(1_500_000)
    (tmp_path / "blob").write_bytes(content)

    async def test():
        near, far = pair()
        if implicit:
            server = attach(near, tls=server_context)
            client = attach(far, tls=client_context, server_side=False, server_hostname="localhost")
        else:
            server, client = attach(near), attach(far)

            def begin(data):
                assert data == b"STARTTLS\r\n"
                server.stream.send(b"220 go\r\n")
                server.stream.start_tls(server_context)

            server.on_data = begin
            client.on_data = lambda data: client.stream.start_tls(
                client_context, server_side=False, server_hostname="localhost"
            )
            client.stream.send(b"STARTTLS\r\n")
        await asyncio.gather(server.ready, client.ready)
        server.on_data = client.on_data = None
        server.data.clear()
        client.data.clear()
        assert server.stream.secure and client.stream.sslobj.version() == "TLSv1.3"
        fd = os.open(tmp_path / "blob", os.O_RDONLY)
        server.stream.send(b"head")
        server.stream.send_file(fd, 0, len(content))
        server.stream.send(b"t" * 300_000)
        os.close(fd)
        client.stream.send(content)
        expected = b"head" + content + b"t" * 300_000
        while len(client.data) < len(expected) or len(server.data) < len(content):
            await asyncio.sleep(0.005)
        assert client.data == expected
        assert server.data == content
        server.stream.close()
        await asyncio.gather(server.lost, client.lost)

    run(test)


def test_plain_octets_after_starttls_fail_the_handshake(contexts):
    async def test():
        near, far = pair()
        handler = attach(near)
        handler.on_data = lambda data: handler.stream.start_tls(contexts[0])
        far.send(b"STARTTLS\r\n")
        await asyncio.sleep(0.02)
        far.send(b"RSET\r\nMAIL FROM:<a@b.c>\r\n")
        assert isinstance(await handler.lost, OSError)
        assert handler.data == b"STARTTLS\r\n"
        far.close()

    run(test)


def test_server_refuses_when_out_of_descriptors(monkeypatch):
    async def test():
        listener = socket.create_server(("127.0.0.1", 0))
        taken = []
        server = serve(asyncio.get_running_loop(), listener, taken.append, refusal=b"421 full\r\n")
        client = socket.create_connection(listener.getsockname())
        while not taken:
            await asyncio.sleep(0.005)
        hog = []
        resource_limit = __import__("resource")
        soft, hard = resource_limit.getrlimit(resource_limit.RLIMIT_NOFILE)
        second = socket.socket()
        resource_limit.setrlimit(resource_limit.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 4, hard))
        try:
            with pytest.raises(OSError):
                while True:
                    hog.append(os.open("/dev/null", os.O_RDONLY))
            second.connect(listener.getsockname())
            second.setblocking(False)
            answer = await asyncio.get_running_loop().sock_recv(second, 100)
            assert answer == b"421 full\r\n"
        finally:
            for fd in hog:
                os.close(fd)
            resource_limit.setrlimit(resource_limit.RLIMIT_NOFILE, (soft, hard))
        third = socket.create_connection(listener.getsockname())
        while len(taken) < 2:
            await asyncio.sleep(0.01)
        server.close()
        for sock in (client, second, third, listener, *taken):
            sock.close()

    run(test)
