"""What the doctor says of the certificates of further domains."""

from types import SimpleNamespace

from iems.cli import doctor
from iems.cli.init import self_signed
from iems.config import Config
from tests.support.certificates import Authority


def put(path, octets):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(octets)


def test_each_domain_is_looked_at(tmp_path):
    (tmp_path / "ca").mkdir()
    authority = Authority(tmp_path / "ca")

    def signed(*names):
        authority.server(*names)
        return (tmp_path / f"ca/{names[0]}.pem").read_bytes()

    put(tmp_path / "conf/tls/cert.pem", signed("mx.test"))
    put(tmp_path / "conf/tls/good.test/cert.pem", signed("mail.good.test"))
    put(tmp_path / "conf/tls/wild.test/cert.pem", signed("*.wild.test"))
    put(tmp_path / "conf/tls/other.test/cert.pem", signed("another.test"))
    put(tmp_path / "conf/tls/self.test/cert.pem", self_signed("self.test", ["self.test"])[0])
    put(tmp_path / "conf/tls/bad.test/cert.pem", b"x")
    found = [(one.level, one.finding) for one in doctor.certificate(SimpleNamespace(path=tmp_path), Config(hostname="mx.test"))]
    assert [level for level, _ in found] == ["ok", "problem", "warning", "note"]
    assert "bad.test" in found[1][1]
    assert found[2][1] == "other.test: not for other.test but for another.test"
    assert found[3][1].startswith("self.test: self-signed")
