"""From the files to the handshake: which pair a client is shown, and what becomes of one that is bad."""

import contextlib
import os
import socket
import ssl
import threading

import pytest

from iems.config import Tls
from iems.master.certificates import LOOK_S, Certificates, PairRefused
from iems.net import certificates as module
from iems.net.certificates import Bundle, Pairs, Served, TooMany, normal_name
from tests.support.certificates import Authority


class Site:
    """A home with pairs for names, and the clock of its master."""

    def __init__(self, home):
        self.home = home
        (home / "ca").mkdir()
        self.authority = Authority(home / "ca")
        self.now = 100.0
        self.errors = []
        self.put("conf/tls", "mx.test")
        self.master = Certificates(home, lambda: self.now)

    def put(self, folder, *names):
        """A new pair in a folder."""
        self.authority.server(*names)
        pem = (self.home / f"ca/{names[0]}.pem").read_text()
        at = pem.index("-----BEGIN CERTIFICATE")
        key, chain = (pem[:at], pem[at:]) if at else (pem[pem.index("-----BEGIN PRIVATE") :], pem)
        (self.home / folder).mkdir(parents=True, exist_ok=True)
        (self.home / folder / "cert.pem").write_text(chain)
        (self.home / folder / "key.pem").write_text(key)

    def look(self, times=2):
        """Enough looks for a change to count; what the last said."""
        found = None
        for _ in range(times):
            self.now += LOOK_S
            found = self.master.look()
        return found

    def serve(self):
        return Served(self.master.fd, "1.2", lambda text, fault: self.errors.append(text))


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def shown(served, name):
    """The subject's name in the certificate that a client gets who asks for `name` (None: asks for none)."""
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    left, right = socket.socketpair()
    kept = []
    work = threading.Thread(target=lambda: kept.append(served.context.wrap_socket(left, server_side=True)))
    work.start()
    with client.wrap_socket(right, server_hostname=name) as near:
        work.join()
        der = near.getpeercert(True)
    with contextlib.suppress(OSError):
        kept[0].close()
    from cryptography import x509

    return x509.load_der_x509_certificate(der).subject.rfc4514_string().removeprefix("CN=")


def test_a_client_gets_the_pair_of_the_name_it_asks_for(site):
    site.put("conf/tls/one.test", "one.test", "mail.one.test")
    site.put("conf/tls/B\u00fccher.test", "xn--bcher-kva.test")
    (site.home / "conf/tls/empty.test").mkdir()
    assert site.master.take(Tls()) == []
    served = site.serve()
    assert shown(served, None) == "mx.test"
    assert shown(served, "mx.test") == "mx.test"
    assert shown(served, "one.test") == "one.test"
    assert shown(served, "MAIL.one.test") == "one.test"
    assert shown(served, "notone.test") == "mx.test"
    assert shown(served, "xn--bcher-kva.test") == "xn--bcher-kva.test"
    assert shown(served, "empty.test") == "mx.test"
    assert site.errors == []
    assert site.master.take(Tls(domains="")) == []
    assert served.refresh() and shown(served, "one.test") == "mx.test"


def test_a_change_is_taken_up_while_connections_stand(site):
    site.master.take(Tls())
    served = site.serve()
    context = served.context
    assert not served.refresh() and site.look(5) is None
    site.put("conf/tls", "renewed.test")
    site.put("conf/tls/one.test", "one.test")
    assert site.look(1) is None  # perhaps only half of it is there yet
    assert site.look(1) == []
    assert served.refresh() and not served.refresh()
    assert served.context is context
    assert shown(served, None) == "renewed.test" and shown(served, "one.test") == "one.test"
    assert site.look(3) is None
    # A domain that goes is served as the rest.
    (site.home / "conf/tls/one.test/cert.pem").unlink()
    assert site.look() == [] and served.refresh()
    assert shown(served, "one.test") == "renewed.test"


def test_a_bad_pair_keeps_the_old_one_and_is_told_once(site):
    site.put("conf/tls/one.test", "one.test")
    site.master.take(Tls())
    served = site.serve()
    key = (site.home / "conf/tls/key.pem").read_text()
    (site.home / "conf/tls/one.test/key.pem").write_text(key)
    problems = site.look()
    assert len(problems) == 1 and "conf/tls/one.test/cert.pem" in problems[0] and "don't go together" in problems[0]
    (site.home / "conf/tls/cert.pem").write_text("garbage")
    assert len(site.look()) == 2
    assert site.look(4) is None
    assert not served.refresh()
    assert shown(served, None) == "mx.test" and shown(served, "one.test") == "one.test"
    (site.home / "conf/tls/key.pem").unlink()
    assert any("No such file" in problem for problem in site.look())
    site.put("conf/tls", "mended.test")
    site.put("conf/tls/one.test", "one.test")
    assert site.look() == [] and served.refresh() and shown(served, None) == "mended.test"


def test_a_new_domain_with_a_bad_pair_is_left_out(site):
    site.master.take(Tls())
    served = site.serve()
    site.put("conf/tls/one.test", "one.test")
    (site.home / "conf/tls/one.test/key.pem").write_text("x")
    assert len(site.look()) == 1
    served.refresh()
    assert shown(served, "one.test") == "mx.test"


def test_no_start_without_a_pair(site):
    (site.home / "conf/tls/key.pem").write_text("x")
    with pytest.raises(PairRefused, match=r"conf/tls/cert\.pem and conf/tls/key\.pem"):
        site.master.take(Tls())
    with pytest.raises(PairRefused, match="No such file"):
        site.master.take(Tls(certificate="none.pem"))
    (site.home / "conf/tls/key.pem").write_bytes(bytes(2 << 20))
    with pytest.raises(PairRefused, match="more than"):
        site.master.take(Tls())


def test_only_the_master_can_write_the_file(site):
    site.master.take(Tls())
    for flags in (os.O_RDWR, os.O_WRONLY):
        with contextlib.suppress(PermissionError):
            fd = os.open(f"/proc/self/fd/{site.master.fd}", flags)
            with pytest.raises(PermissionError):
                os.write(fd, b"x")
            os.close(fd)
    with pytest.raises(PermissionError):
        os.pwrite(site.master.fd, b"x", 0)


def test_half_a_write_changes_nothing(site):
    site.master.take(Tls())
    served = site.serve()
    bundle = site.master._bundle
    bundle._map[:8] = (9).to_bytes(8, "little")
    bundle._map[60] ^= 1
    assert not served.refresh() and shown(served, None) == "mx.test"


def test_a_pair_the_worker_can_not_use(site, monkeypatch):
    site.master.take(Tls())
    served = site.serve()
    site.master._bundle.write(Pairs(b"garbage", {}))
    assert not served.refresh() and site.errors == ["new certificate"]
    site.put("conf/tls", "mended.test")
    site.look()
    site.master._bundle.write(Pairs(site.master._pairs.default, {"one.test": b"garbage"}))
    assert served.refresh() and shown(served, "one.test") == "mended.test"
    assert site.errors == ["new certificate", "certificate of one.test"]
    monkeypatch.setattr(module, "OCTETS", 100)
    with pytest.raises(TooMany):
        Bundle().write(Pairs(b"x" * 100, {}))


def test_names():
    assert normal_name("Mail.Example.TEST.") == "mail.example.test"
    assert normal_name("b\u00fccher.test") == "xn--bcher-kva.test"
    assert normal_name("\u00fc" * 80) == ""
