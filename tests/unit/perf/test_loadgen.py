"""The generators against our own sink and small scripted servers."""

import contextlib
import socket
import threading

import pytest

loadgen = pytest.importorskip("iems._native.loadgen")

MESSAGE = b"Message-ID: <0123456789abcdef@load.test>\r\nSubject: x\r\n\r\nhello\r\n..dotted\r\n"
POOL = [(MESSAGE, MESSAGE.index(b"0123456789abcdef"))]


@pytest.fixture
def sink():
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    listener.setblocking(False)
    total = []
    thread = threading.Thread(target=lambda: total.append(loadgen.sink(listener.fileno())))
    thread.start()
    yield listener.getsockname()[1], total, thread
    if thread.is_alive():
        stop(listener.getsockname()[1])
        thread.join(5)
    listener.close()


def stop(port):
    with socket.create_connection(("127.0.0.1", port)) as control:
        control.recv(100)
        control.sendall(b"XSTOP\r\n")


@pytest.mark.parametrize("pipeline", [False, True])
@pytest.mark.parametrize("per_connection", [0, 3])
def test_smtp_sends_the_count_it_was_given(sink, pipeline, per_connection):
    port, total, thread = sink
    marks = []
    result = loadgen.smtp(
        port, POOL, [b"a@x.test", b"b@x.test"], b"s@x.test", sessions=4, count=200, pipeline=pipeline,
        per_connection=per_connection, on_mark=marks.append,
    )  # fmt: skip
    assert (result["done"], result["errors"], result["complaint"]) == (200, 0, "")
    assert result["octets"] == 200 * len(MESSAGE)
    assert len(result["latency_s"]) == 200 and min(result["latency_s"]) > 0
    assert marks == ["start", "end"]
    stop(port)
    thread.join(5)
    assert total == [200]


def test_smtp_reports_refusals():
    listener = socket.create_server(("127.0.0.1", 0))

    def refuse():
        peer, _ = listener.accept()
        with peer:
            peer.sendall(b"220 hi\r\n")
            peer.recv(1000)
            peer.sendall(b"250 ok\r\n")
            peer.recv(1000)
            peer.sendall(b"452 4.3.1 full\r\n")
            peer.recv(1000)

    thread = threading.Thread(target=refuse)
    thread.start()
    result = loadgen.smtp(listener.getsockname()[1], POOL, [b"a@x.test"], b"s@x.test", count=1)
    thread.join(5)
    listener.close()
    assert (result["done"], result["errors"]) == (0, 1) and "4.3.1 full" in result["complaint"]


def serve_imap(listener, size, pop3):
    def session(peer):
        body = (b"x" * 70 + b"\r\n") * (size // 72)
        with contextlib.suppress(ConnectionError), peer, peer.makefile("rb") as lines:
            peer.sendall(b"+OK hi\r\n" if pop3 else b"* OK hi\r\n")
            for line in lines:
                word = line.split()[0 if pop3 else 1].upper()
                if pop3:
                    peer.sendall(b"+OK here\r\n" + (body + b".\r\n" if word == b"RETR" else b""))
                elif word == b"FETCH":
                    peer.sendall(b"* 1 FETCH (BODY[] {%d}\r\n%b)\r\na OK done\r\n" % (len(body), body))
                else:
                    peer.sendall(b"* 3 EXISTS\r\na OK done\r\n")

    def accept():
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=session, args=(peer,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


@pytest.mark.parametrize("pop3", [False, True])
@pytest.mark.parametrize("size", [144, 250_000])
def test_fetch_reads_whole_messages(pop3, size):
    listener = socket.create_server(("127.0.0.1", 0))
    serve_imap(listener, size, pop3)
    result = loadgen.fetch(
        listener.getsockname()[1], [b"u"], b"pw", b"RETR %ld" if pop3 else b"FETCH %ld BODY.PEEK[]", 1, 3, sessions=2, pop3=pop3,
        warmup_s=0.1, run_s=0.3,
    )  # fmt: skip
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    assert result["errors"] == 0 and result["done"] > 5
    assert result["octets"] >= (result["done"] - 2) * (size // 72 * 72)


def test_arguments_are_checked():
    with pytest.raises(ValueError):
        loadgen.smtp(1, [], [b"a"], b"s")
    with pytest.raises(ValueError):
        loadgen.smtp(1, [(b"short", 3)], [b"a"], b"s")
    with pytest.raises(ValueError):
        loadgen.fetch(1, [b"u"], b"pw", b"FETCH %s", 1, 1)
    assert loadgen.smtp(1, POOL, [b"a"], b"s", count=1)["errors"] == 1, "nobody listens there"
