"""Keys of DKIM: states and rotation, files, names that are none."""

from __future__ import annotations

import asyncio
import json
import os
import stat

import pytest
from click.testing import CliRunner

from iems.authres import dkim, sign
from iems.authres.keyring import Keyring, KeyringError
from iems.authres.mail import Mail
from iems.cli.iemsctl import main
from tests.support.zones import Zones


@pytest.fixture
def ring(tmp_path):
    (tmp_path / "log").mkdir()
    return Keyring(tmp_path)


def states(ring):
    return {key.selector: key.state for key in ring.find("d.example")}


def test_rotation(ring, tmp_path):
    assert ring.signers("d.example") == ()
    ring.create("D.Example.", "ed25519", "one")
    assert [signer.selector for signer in ring.signers("d.example")] == ["one"]
    ring.create("d.example", "ed25519", "two")
    assert states(ring) == {"one": "active", "two": "new"} and [s.selector for s in ring.signers("d.example")] == ["one"]
    ring.activate("d.example", "two")
    assert states(ring) == {"one": "retired", "two": "active"} and [s.selector for s in ring.signers("d.example")] == ["two"]
    assert ring.activate("d.example", "two") == []
    ring.create("d.example", "rsa", "three")  # the first of its kind: both sign
    assert [signer.selector for signer in ring.signers("d.example")] == ["three", "two"]
    with pytest.raises(KeyringError, match="retire it first"):
        ring.remove("d.example", "two")
    ring.retire("d.example", "three")
    ring.remove("d.example", "one")
    assert states(ring) == {"two": "active", "three": "retired"}
    for folder, _, files in os.walk(tmp_path / "conf/dkim"):
        assert stat.S_IMODE(os.stat(folder).st_mode) & 0o077 == 0
        assert all(stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == 0o600 for name in files)
    audit = (tmp_path / "log/directory.log").read_text()
    assert [json.loads(line)["action"] for line in audit.splitlines()][:2] == ["dkim key create"] * 2
    assert "PRIVATE" not in audit and "PRIVATE" not in repr(ring.find())


@pytest.mark.parametrize("name", ["", "..", "a/../b", "*.d.example", "a b", "../x"])
def test_names_that_are_none(ring, tmp_path, name):
    with pytest.raises(KeyringError):
        ring.create(name, "ed25519")
    with pytest.raises(KeyringError):
        ring.create("d.example", "ed25519", name or "/")
    assert ring.signers(name) == () and not list((tmp_path / "conf/dkim").glob("*/*"))


def test_bad_keys(ring, tmp_path):
    with pytest.raises(KeyringError):
        ring.create("d.example", pem=b"nothing")
    ring.create("d.example", "ed25519", "one")
    with pytest.raises(KeyringError, match="already"):
        ring.create("d.example", "ed25519", "one")
    with pytest.raises(KeyringError, match="no key"):
        ring.activate("d.example", "two")
    (tmp_path / "conf/dkim/d.example/one.json").write_text("{}")
    with pytest.raises(KeyringError, match=r"one\.json"):
        ring.find()


def ctl(home, *arguments, code=0, **more):
    done = CliRunner().invoke(main, ["--home", str(home), *arguments], **more)
    assert done.exit_code == code, done.output
    return done.stdout


def test_commands(tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "log").mkdir()
    (tmp_path / "conf/iems.toml").write_text("")
    selector = ctl(tmp_path, "dkim", "key", "create", "d.example").strip()
    pem = tmp_path / "key.pem"
    pem.write_text(sign.key_pem(sign.new_key("ed25519")))
    ctl(tmp_path, "dkim", "key", "create", "d.example", "--import", str(pem), "--selector", "mine")
    # In the order of their age, by name if they are of one second.
    first, second = sorted(ctl(tmp_path, "dkim", "record", "d.example").splitlines())
    assert first.startswith('mine._domainkey.d.example. IN TXT ( "v=DKIM1; k=ed25519; p=') and second.count('"') == 4
    records = [json.loads(line) for line in ctl(tmp_path, "dkim", "record", "d.example", "--json").splitlines()]
    zone = Zones({one["name"]: {"TXT": [one["text"].encode()]} for one in records})
    mail = b"From: a@d.example\r\n\r\nx\r\n"
    for signer in Keyring(tmp_path).signers("d.example"):
        octets = asyncio.run(signer.sign(Mail.of(mail), 1_700_000_000)) + mail
        assert [s.result for s in asyncio.run(dkim.verify(zone, Mail.of(octets), 1_700_000_001))] == ["pass"]
    rows = [json.loads(line) for line in ctl(tmp_path, "dkim", "key", "list", "--json").splitlines()]
    assert {row["selector"]: row["state"] for row in rows} == {selector: "active", "mine": "active"}
    ctl(tmp_path, "dkim", "key", "retire", "d.example", "mine")
    ctl(tmp_path, "dkim", "key", "activate", "d.example", "mine")
    ctl(tmp_path, "dkim", "key", "activate", "d.example", "none", code=1)
    ctl(tmp_path, "dkim", "record", "other.example", code=1)
    assert "mine" in ctl(tmp_path, "dkim", "key", "list")
    assert ctl(tmp_path, "check", "dkim", "-", input=b"From: x@y\n\nx\n").splitlines()[0] == "none"
