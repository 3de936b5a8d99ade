"""iemsctl ban and dnsbl: what they keep, show and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from iems.cli.iemsctl import main
from iems.directory import Directory


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/iems.toml").touch()
    (tmp_path / "log").mkdir()
    Directory(tmp_path / "directory", create=True).close()
    return tmp_path


def ctl(home: Path, *args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["--home", str(home), *args], prog_name="iemsctl")
    assert result.exit_code == code, (args, result.stdout, result.stderr, result.exception)
    return result


def test_bans(home: Path) -> None:
    ctl(home, "ban", "add", "domain", "*.Spam.test")
    ctl(home, "ban", "add", "CIDR", "2001:db8::/32", "--reply", "451")
    shown = ctl(home, "ban", "list", "--json").stdout.splitlines()
    assert [json.loads(line) for line in shown] == [
        {"kind": "domain", "value": "*.spam.test", "reply": 553},
        {"kind": "cidr", "value": "2001:db8::/32", "reply": 451},
    ]
    assert "*.spam.test" in ctl(home, "ban", "list").stdout
    ctl(home, "ban", "remove", "domain", "*.spam.test")
    ctl(home, "ban", "remove", "cidr", "2001:db8::/32")
    assert ctl(home, "ban", "list", "--json").stdout == ""


def test_zones(home: Path) -> None:
    ctl(home, "dnsbl", "add", "BL.test", "--action", "tag", "--codes", "127.0.0.2,127.0.0.4-11")
    assert json.loads(ctl(home, "dnsbl", "list", "--json").stdout) == {
        "zone": "bl.test", "action": "tag", "codes": ["127.0.0.2", "127.0.0.4-11"],
    }  # fmt: skip
    ctl(home, "dnsbl", "add", "bl.test", "--action", "reject")
    assert ctl(home, "dnsbl", "list").stdout.split() == ["ZONE", "ACTION", "CODES", "bl.test", "reject", "any"]
    ctl(home, "dnsbl", "remove", "bl.test")
    assert ctl(home, "dnsbl", "list").stdout == ""


@pytest.mark.parametrize(
    ("args", "code", "word"),
    [
        (("ban", "add", "colour", "red"), 2, "colour"), (("ban", "add", "ip", "10.0.0.0/8"), 1, "not an IP address"),
        (("ban", "add", "cidr", "10.0.0.1/8"), 1, "host bits"), (("ban", "add", "domain", "a\x1b[2J"), 1, r"\x1b"),
        (("ban", "add", "ip", "10.0.0.1", "--reply", "250"), 2, "250"), (("ban", "remove", "ip", "10.0.0.1"), 1, "not banned"),
        (("dnsbl", "add", "bl.test"), 2, "--action"), (("dnsbl", "add", "bl", "--action", "tag"), 1, "not the name of a zone"),
        (("dnsbl", "add", "bl.test", "--action", "tag", "--codes", "1.2.3.4"), 1, "a code is like"),
        (("dnsbl", "remove", "bl.test"), 1, "not among the zones"),
    ],
)  # fmt: skip
def test_bad_input(home: Path, args: tuple[str, ...], code: int, word: str) -> None:
    assert word in ctl(home, *args, code=code).stderr
    assert ctl(home, "ban", "list").stdout == ctl(home, "dnsbl", "list").stdout == ""
    assert not (home / "log/directory.log").exists()
