"""What the doctor says of domains whose mail sites fetch."""

from types import SimpleNamespace

from iems.cli import doctor
from iems.config import Config, OdmrAccount, Ports, Smtpd
from iems.directory import Directory

ODMR = Smtpd(odmr=[OdmrAccount(account="branch@mx.test", domains=["kept.test", "Missing.test", "mx.test", "away.test", "far.test"])])


def test_each_domain_is_looked_at(tmp_path):
    directory = Directory(tmp_path / "directory", create=True, who="test", audit=lambda record: None)
    directory.add_domain("mx.test")
    directory.set_forward("kept.test", "SMTPC", "")
    directory.set_forward("away.test", "SMTPC", "relay.test:25")
    directory.set_forward("far.test", "BSMTPOUT", "box@far.test")
    directory.close()
    home = SimpleNamespace(path=tmp_path)
    found = list(doctor.on_demand(home, Config(hostname="mx.test", smtpd=ODMR, ports=Ports(odmr=366))))
    assert [(one.level, one.finding.split()[0]) for one in found] == [
        ("warning", "away.test"), ("warning", "far.test"), ("warning", "missing.test"), ("warning", "mx.test"), ("ok", "mail"),
    ]  # fmt: skip
    assert "SMTPC relay.test:25" in found[0].finding and "BSMTPOUT box@far.test" in found[1].finding
    assert "not in the forwarding table" in found[2].finding and found[2].mend == "iemsctl forward set missing.test SMTPC"
    assert found[4].finding.startswith("mail for 1 of 5 domains")
    assert doctor.on_demand in doctor.CHECKS


def test_a_port_nobody_listens_on(tmp_path):
    Directory(tmp_path / "directory", create=True, who="test", audit=lambda record: None).close()
    found = list(doctor.on_demand(SimpleNamespace(path=tmp_path), Config(hostname="mx.test", smtpd=ODMR)))
    assert "ports.odmr is 0" in found[0].finding
    assert list(doctor.on_demand(SimpleNamespace(path=tmp_path), Config(hostname="mx.test"))) == []
