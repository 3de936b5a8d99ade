"""Channel bindings: both ends of a connection see the same."""

import contextlib
import hashlib
import socket
import ssl
import threading

import pytest

from iems.net import tls
from tests.support.certificates import Authority


@pytest.fixture
def server(tmp_path):
    found = Authority(tmp_path).server("mx.test")
    return tls.server_context(str(tmp_path / "mx.test.pem"), "1.2"), found


@contextlib.contextmanager
def connected(context, version):
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.maximum_version = version
    left, right = socket.socketpair()
    ends = []
    thread = threading.Thread(target=lambda: ends.append(context.wrap_socket(left, server_side=True)))
    thread.start()
    near = client.wrap_socket(right)
    thread.join()
    try:
        yield ends[0], near
    finally:
        ends[0].close()
        near.close()


def test_both_ends_see_the_same(server):
    context, certificate = server
    for version, names in (
        (ssl.TLSVersion.TLSv1_3, {b"tls-exporter", b"tls-server-end-point"}),
        (ssl.TLSVersion.TLSv1_2, {b"tls-exporter", b"tls-server-end-point", b"tls-unique"}),
    ):
        with connected(context, version) as (far, near):
            found = tls.bindings(far)
            assert set(found) == names
            assert found[b"tls-exporter"] == tls.bindings(near)[b"tls-exporter"]
            assert found[b"tls-server-end-point"] == hashlib.sha256(certificate.der).digest()
            assert hashlib.sha256(near.getpeercert(True)).digest() == found[b"tls-server-end-point"]
            if b"tls-unique" in names:
                assert found[b"tls-unique"] == near.get_channel_binding("tls-unique")
        with connected(context, version) as (other, _):
            assert tls.bindings(other)[b"tls-exporter"] != found[b"tls-exporter"]


def test_an_object_that_lies_differently_is_left_alone(server, monkeypatch):
    with connected(server[0], ssl.TLSVersion.TLSv1_3) as (far, _):
        monkeypatch.setattr(tls, "_CONTEXT_WORD", 0)
        assert tls.bindings(far) == {}
        monkeypatch.setattr(tls, "_library", lambda: None)
        assert tls.bindings(far) == {}


def test_end_point_of_what_is_no_certificate():
    for octets in (b"", b"\x30", b"\x30\x82\xff\xff", b"\x30\x03\x02\x01", bytes(40)):
        assert tls.end_point(octets) == b""
