"""The generators against our own sink and small scripted servers."""

import array
import contextlib
import socket
import threading
import time

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
        thread.join(60)
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
    thread.join(60)
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
    thread.join(60)
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


def test_a_rate_is_kept_and_lateness_counts(sink):
    """With a rate, messages fall due whether or not the server keeps up, and latency is from then."""
    port, _total, _thread = sink
    settled = array.array("d", bytes(8 * 100))
    begun = time.monotonic()
    result = loadgen.smtp(port, POOL, [b"a@x.test"], b"s@x.test", sessions=3, count=100, rate=400.0, settled=settled, first_id=9)
    took = time.monotonic() - begun
    assert (result["done"], result["errors"]) == (100, 0)
    assert took > 0.1, "a hundred at 400 a second don't come at once"
    assert all(begun <= at <= begun + took for at in settled)


def test_what_a_slow_server_leaves_is_told():
    """A server that answers 20 messages a second, offered 400."""
    listener = socket.create_server(("127.0.0.1", 0))

    def slow():
        peer, _ = listener.accept()
        with contextlib.suppress(OSError), peer, peer.makefile("rb") as lines:
            peer.sendall(b"220 hi\r\n")
            content = False
            for line in lines:
                if content and line != b".\r\n":
                    continue
                if content:
                    time.sleep(0.05)
                content = line == b"DATA\r\n"
                peer.sendall(b"354 go\r\n" if content else b"250 ok\r\n")

    thread = threading.Thread(target=slow)
    thread.start()
    result = loadgen.smtp(
        listener.getsockname()[1], POOL, [b"a@x.test"], b"s@x.test", sessions=1, rate=400.0, warmup_s=0.1, run_s=0.5
    )
    listener.close()
    thread.join(60)
    assert 1 <= result["done"] <= 12 and result["waiting"] > 100
    assert max(result["latency_s"]) > 0.2, "time spent waiting for its turn is latency"


def test_generators_run_side_by_side(sink):
    port, _total, _thread = sink
    marks: dict[int, list[str]] = {0: [], 1: []}
    results = {}

    def go(number):
        results[number] = loadgen.smtp(port, POOL, [b"a@x.test"], b"s@x.test", sessions=2, count=200, on_mark=marks[number].append)

    threads = [threading.Thread(target=go, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [results[n]["done"] for n in (0, 1)] == [200, 200]
    assert marks == {0: ["start", "end"], 1: ["start", "end"]}


@pytest.mark.parametrize("size", [100, 5_000, 200_000])
def test_the_sink_notes_when_each_message_came(size):
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    listener.setblocking(False)
    came = array.array("d", bytes(8 * 50))
    thread = threading.Thread(target=lambda: loadgen.sink(listener.fileno(), came, 1 << 40))
    thread.start()
    whole = b"Received: x\r\n" * (size // 100) + MESSAGE + b"line\r\n" * (size // 6)
    pool = [(whole, whole.index(b"0123456789abcdef"))]
    settled = array.array("d", bytes(8 * 50))
    port = listener.getsockname()[1]
    result = loadgen.smtp(port, pool, [b"a@x.test"], b"s@x.test", sessions=4, count=50, first_id=1 << 40, settled=settled)
    stop(port)
    thread.join(60)
    listener.close()
    assert result["done"] == 50
    assert all(0 < arrived <= answered for arrived, answered in zip(came, settled, strict=True))


def test_slow_senders_send_octet_by_octet():
    listener = socket.create_server(("127.0.0.1", 0), backlog=50)
    got: list[bytes] = []

    def session(peer):
        with contextlib.suppress(OSError), peer:
            peer.sendall(b"220 hi\r\n")
            while piece := peer.recv(4096):
                got.append(piece)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                threading.Thread(target=session, args=(peer,), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    over = loadgen.Over()
    timer = threading.Timer(0.6, over.set)
    timer.start()
    result = loadgen.drip(listener.getsockname()[1], b"a@x.test", sessions=5, interval_s=0.02, run_s=30, over=over)
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(60)
    assert result["errors"] == 0 and result["seconds"] < 10 and result["done"] >= 5
    assert b"".join(got).count(b"E") >= 1 and max(map(len, got)) <= 3
    with pytest.raises(ValueError):
        loadgen.drip(1, b"a", interval_s=0)
    with pytest.raises(OSError):
        loadgen.drip(1, b"a@x.test", sessions=2, interval_s=0.01, run_s=0.5)


def test_more_arguments_are_checked(sink):
    port, _total, _thread = sink
    with pytest.raises(ValueError):
        loadgen.smtp(port, POOL, [b"a"], b"s", rate=-1)
    with pytest.raises(ValueError):
        loadgen.smtp(port, POOL, [b"a"], b"s", settled=array.array("f", [0]))
    with pytest.raises(ValueError):
        loadgen.fetch(port, [b"u"], b"pw", b"NOOP", 5, 1)
