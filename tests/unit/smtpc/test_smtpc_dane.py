"""TLSA records of usage 2: chains made here, judged, and shown by a real TLS server."""

import datetime
import hashlib
import ssl
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.smtpc.dane import MAX_CHAIN, SHOWS_CHAIN, anchored, usable
from tests.support.dnsserver import DnsServer
from tests.support.smtpserver import SmtpServer
from tests.unit.smtpc.test_smtpc_security import TLS, Port, said, tlsa, zone
from tests.unit.smtpc.test_smtpc_worker import run

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


class Made:
    """A certificate and its key. by: who signs it (itself if None)."""

    def __init__(self, common, by=None, *, ca=True, names=(), days=(-1, 30), path=None, extensions=(), key=None, signs=None):
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])
        signer = by or self
        builder = (
            x509.CertificateBuilder().subject_name(self.name).issuer_name(signer.name).public_key(self.key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(NOW + days[0] * DAY).not_valid_after(NOW + days[1] * DAY)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=path), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False)
        if signs is not None:
            bits = dict.fromkeys(("digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
                                  "key_agreement", "crl_sign", "encipher_only", "decipher_only"), False)
            builder = builder.add_extension(x509.KeyUsage(key_cert_sign=signs, **bits), critical=True)
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        self.certificate = builder.sign(signer.key, hashes.SHA256())
        self.der = self.certificate.public_bytes(Encoding.DER)
        self.spki = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def records(self):
        """Every way to name it."""
        for selector, data in ((0, self.der), (1, self.spki)):
            yield selector, 0, data
            yield selector, 1, hashlib.sha256(data).digest()
            yield selector, 2, hashlib.sha512(data).digest()

    @property
    def record(self):
        return [(1, 1, hashlib.sha256(self.spki).digest())]


ROOT = Made("root")
MIDDLE = Made("middle", ROOT)
LEAF = Made("mx.x.test", MIDDLE, ca=False, names=["mx.x.test", "*.wild.test"])
CHAIN = [LEAF.der, MIDDLE.der, ROOT.der]


def good(chain=CHAIN, records=None, names=("mx.x.test",), now=NOW):
    return anchored(chain, ROOT.record if records is None else records, names, now)


def test_every_way_to_name_an_authority():
    for authority in (ROOT, MIDDLE):
        for record in authority.records():
            assert good(records=[(0, 1, b"\0" * 32), record]), record[:2]
    assert good([LEAF.der, ROOT.der, MIDDLE.der])  # in any order
    assert good([LEAF.der, MIDDLE.der], [(0, 0, ROOT.der)])  # the record holds the certificate: the chain need not
    assert not good([LEAF.der, MIDDLE.der]) and not good([LEAF.der, ROOT.der]) and not good([LEAF.der]) and not good([])
    assert not good(records=LEAF.record)  # the host's own certificate is no authority (that is usage 3)
    rsa_root = Made("rsa", key=rsa.generate_private_key(public_exponent=65537, key_size=2048))
    leaf = Made("mx.x.test", rsa_root, ca=False, names=["mx.x.test"])
    assert good([leaf.der, rsa_root.der], rsa_root.record)


def test_names():
    assert good(names=("other.test", "MX.X.test")) and good(names=("a.wild.test",))
    for name in ("wild.test", "a.b.wild.test", "x.test", "", "mx.x.test.evil"):
        assert not good(names=(name,)), name
    for common, fits in (("mx.x.test", True), ("y.test", False)):
        leaf = Made(common, ROOT, ca=False)  # no SAN: its common name counts
        assert good([leaf.der, ROOT.der]) is fits
    leaf = Made("mx.x.test", ROOT, ca=False, names=["y.test"])
    assert not good([leaf.der, ROOT.der])
    tld = Made("x", ROOT, ca=False, names=["*.test"])
    assert not good([tld.der, ROOT.der], names=("x.test",))


def test_what_ends_a_path():
    assert not good(now=NOW + 31 * DAY) and not good(now=NOW - 2 * DAY)
    stranger = Made("root")  # the same name, another key
    assert not good([Made("mx.x.test", stranger, ca=False, names=["mx.x.test"]).der, ROOT.der])

    def by(signer, *more, **leaf):
        made = Made("mx.x.test", signer, ca=False, names=["mx.x.test"], **leaf)
        return good([made.der, signer.der, *more, ROOT.der])

    assert by(Made("m", ROOT, signs=True)) and not by(Made("m", ROOT, signs=False))
    assert not by(Made("m", ROOT, ca=False))  # an ordinary certificate signs nothing
    assert not by(Made("m", ROOT, days=(-3, -2)))
    short = Made("short", ROOT, path=0)
    assert by(short) and not by(Made("below", short), short.der)
    constraint = x509.NameConstraints([x509.DNSName("y.test")], None)
    assert not by(Made("m", ROOT, extensions=[(constraint, True)]))
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    assert not by(Made("m", ROOT, extensions=[(unknown, True)])) and by(Made("m", ROOT, extensions=[(unknown, False)]))
    clients = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CLIENT_AUTH])
    servers = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH])
    assert not by(MIDDLE, extensions=[(clients, False)]) and by(MIDDLE, extensions=[(servers, False)])


def test_chains_are_bounded():
    links = [Made("l0")]
    for number in range(1, MAX_CHAIN):
        links.append(Made(f"l{number}", links[-1]))
    leaf = Made("mx.x.test", links[-1], ca=False, names=["mx.x.test"])
    long = [leaf.der, *(link.der for link in reversed(links))]
    assert not anchored(long, links[0].record, ("mx.x.test",), NOW)  # one too many
    assert anchored(long[:-1], links[1].record, ("mx.x.test",), NOW)
    twins = [Made("twin", days=(-1, 30 + n)) for n in range(4)]  # names that fit and signatures that don't
    assert not anchored([Made("mx.x.test", Made("twin"), ca=False, names=["mx.x.test"]).der, *(t.der for t in twins)],
                        ROOT.record, ("mx.x.test",), NOW)


@given(st.lists(st.binary(max_size=60), max_size=4), st.integers(0, 2), st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_any_octets(parts, whole, cut):
    assert not anchored([*CHAIN[: whole], *parts], [(0, 1, b"x" * 32)], ("mx.x.test",), NOW)
    assert not anchored([CHAIN[0][: -1 - cut], *CHAIN[1:]], ROOT.record, ("mx.x.test",), NOW)


def test_which_records_count():
    def record(usage, selector, mtype, cert):
        return SimpleNamespace(usage=usage, selector=selector, mtype=mtype, cert=cert)

    rows = [record(2, 0, 1, b"a" * 32), record(3, 1, 1, b"b" * 32), record(2, 1, 2, b"c" * 63), record(2, 2, 1, b"d" * 32),
            record(2, 1, 3, b"e" * 32), record(0, 1, 1, b"f" * 32), record(2, 0, 0, b"any")]
    assert usable(rows, 2) == ((0, 1, b"a" * 32), (0, 0, b"any")) and usable(rows, 3) == ((1, 1, b"b" * 32),)


def context(folder, made, *others):
    """A server that shows a chain."""
    file = folder / "chain.pem"
    pem = made.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(pem + b"".join(m.certificate.public_bytes(Encoding.PEM) for m in (made, *others)))
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found.load_cert_chain(file)
    return found


@pytest.mark.parametrize(
    ("row", "names", "shown", "outcome"),
    [
        ("2 1 1 {spki}", ["mx.x.test"], True, "relayed"),
        ("2 0 2 {whole}", ["x.test"], True, "relayed"),  # the domain's own name will do (RFC 7672 3.2.2)
        ("2 1 1 {spki}", ["elsewhere.test"], True, "deferred"),
        ("2 1 1 {spki}", ["mx.x.test"], False, "deferred"),  # the chain does not lead to the authority
        ("2 0 0 {full}", ["mx.x.test"], False, "relayed"),
        ("2 1 1 {zero}", ["mx.x.test"], True, "deferred"),
    ],
)
def test_a_server_shows_its_chain(tmp_path, row, names, shown, outcome):
    assert SHOWS_CHAIN
    leaf = Made(names[0], MIDDLE, ca=False, names=names)
    row = row.format(spki=hashlib.sha256(ROOT.spki).hexdigest(), whole=hashlib.sha512(ROOT.der).hexdigest(), full=ROOT.der.hex(),
                     zero="00" * 32)
    server = SmtpServer(extensions=TLS, tls=context(tmp_path, leaf, MIDDLE, *([ROOT] if shown else [])))
    dns_server: DnsServer = zone()
    dns_server.secure = True

    class Late:
        async def __aenter__(self):
            dns_server.records |= tlsa(server, row)

        async def __aexit__(self, *_):
            pass

    async def scenario(bench, *_):
        await bench.queue(b"bob@x.test")
        await bench.settled(1)
        return bench.outcomes()

    smtpc = {"resolution": "dns", "dane": True}
    events = run(tmp_path, scenario, dns_server, server, Late(), Port(server, smtpc), smtpc=smtpc)
    assert [event[0] for event in events] == [outcome], said(events)
    assert len(server.messages) == (outcome == "relayed")
