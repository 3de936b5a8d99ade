"""Certificates for other hosts: read, checked, handed over; or a reason why not."""

import os
import ssl

import pytest

from iems.config import ClientCertificate, Config, ConfigError, Smtpc, parse
from iems.master.client_pairs import PairError, close, read_client_pairs
from tests.support.certificates import Authority


def config(*pairs, default=""):
    certificates = [ClientCertificate(name=name, certificate=str(chain), key=str(key)) for name, chain, key in pairs]
    return Config(smtpc=Smtpc(client_certificates=certificates, client_certificate=default))


def test_pairs_are_handed_over(tmp_path):
    one = Authority(tmp_path).server("mx.me.test")
    pairs = read_client_pairs(tmp_path, config(("one", one.file.name, one.file.name), default="one"))
    with pytest.raises(OSError):
        os.write(pairs["one"], b"x")  # sealed
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(f"/proc/self/fd/{pairs['one']}")
    close(pairs)
    assert pairs == {}
    assert read_client_pairs(tmp_path, Config()) == {}


def test_pairs_that_are_none(tmp_path):
    authority = Authority(tmp_path)
    one, two = authority.server("one.test"), authority.server("two.test")
    (tmp_path / "key.pem").write_bytes(two.file.read_bytes().split(b"-----BEGIN CERT")[0])
    (tmp_path / "cert.pem").write_bytes(b"-----BEGIN CERT" + one.file.read_bytes().split(b"-----BEGIN CERT")[1])
    before = len(os.listdir("/proc/self/fd"))
    for pair in (("x", "cert.pem", "key.pem"), ("x", "cert.pem", "gone.pem"), ("x", "ca.pem", "ca.pem")):
        with pytest.raises(PairError, match="client certificate x"):
            read_client_pairs(tmp_path, config(("good", one.file.name, one.file.name), pair))
    with pytest.raises(PairError, match="'y' is none of"):
        read_client_pairs(tmp_path, config(("good", one.file.name, one.file.name), default="y"))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", ["none", "default", "", "a b"])
def test_names_that_profiles_could_not_use(name):
    text = f'[[smtpc.client_certificates]]\nname = "{name}"\ncertificate = "a"\nkey = "b"\n'
    with pytest.raises(ConfigError, match="client_certificates"):
        parse(text.encode(), "x")
    twice = '[[smtpc.client_certificates]]\nname = "a"\ncertificate = "a"\nkey = "b"\n' * 2
    with pytest.raises(ConfigError, match="two certificates"):
        parse(twice.encode(), "x")
