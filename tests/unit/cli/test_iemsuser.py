"""iemsuser as a process: data, exit codes, refusals."""

import json
import os
import subprocess
import sys

import pytest

from iems.cli.common import readable_for
from iems.directory import Directory


@pytest.fixture
def home(tmp_path):
    (tmp_path / "log").mkdir()
    found = Directory(tmp_path / "directory", create=True)
    found.add_domain("example.test")
    found.close()
    return tmp_path


def run(home, *args, stdin="", env=None):
    found = subprocess.run(
        [sys.executable, "-m", "iems.cli.iemsuser", *args],
        input=stdin.encode(),
        capture_output=True,
        timeout=60,
        env=os.environ | {"IEMS_HOME": str(home)} | (env or {}),
    )
    assert b"Traceback" not in found.stderr
    return found.returncode, found.stdout.decode(), found.stderr.decode()


def test_life_of_a_user(home):
    assert run(home, "create", "John@example.test", "--password-stdin", "--quota", "500M", stdin="pw\n") == (
        0,
        "created john@example.test\n",
        "",
    )
    assert run(home, "create", "mary@example.test", "--password-stdin", stdin="p w")[0] == 0
    code, out, _ = run(home, "list", "--json")
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == [
        {
            "address": "john@example.test",
            "enabled": True,
            "quota_bytes": 500_000_000,
            "used_bytes": 0,
            "messages": 0,
        },
        {
            "address": "mary@example.test",
            "enabled": True,
            "quota_bytes": None,
            "used_bytes": 0,
            "messages": 0,
        },
    ]
    assert run(home, "passwd", "john@example.test", "--password-stdin", stdin="new\n")[0] == 0
    assert run(home, "quota", "john@example.test", "2Gi")[1] == "john@example.test 2.147G\n"
    assert run(home, "quota", "john@example.test", "unlimited")[1] == "john@example.test unlimited\n"
    assert run(home, "disable", "mary@example.test")[0] == 0
    code, out, _ = run(home, "list", "m*")
    assert "mary@example.test  disabled" in out
    assert run(home, "delete", "mary@example.test")[0] == 0
    found = Directory(home / "directory")
    assert found.authenticate("john@example.test", "new")
    assert not found.authenticate("john@example.test", "pw")
    assert [a.address for a in found.list_accounts()] == ["john@example.test"]
    found.close()


def test_home_by_option(home, tmp_path):
    env = {"IEMS_HOME": ""}
    assert run(home, "list", env=env)[0] == 2
    assert run(home, "--home", str(home), "list", env=env)[0] == 0
    assert run(home, "list", "--home", str(home), env=env)[0] == 0
    code, _, err = run(home, "--home", str(tmp_path / "none"), "list", env=env)
    assert code == 1 and "no home" in err
    code, _, err = run(home, "--home", str(tmp_path / "log"), "list", env=env)
    assert code == 1 and "iemsctl init" in err


@pytest.mark.parametrize(
    ("args", "stdin", "code", "says"),
    [
        (("create", "x@other.test", "--password-stdin"), "pw", 1, "iemsctl domain add other.test"),
        (("create", "../x@example.test", "--password-stdin"), "pw", 1, "not an address"),
        (("create", "x", "--password-stdin"), "pw", 1, "not an address"),
        (("create", "a@example.test", "--password-stdin"), "", 1, "empty"),
        (("create", "a@example.test", "--password-stdin"), "a\nb\n", 1, "more than one line"),
        (("create", "a@example.test", "--password-stdin", "--quota", "much"), "pw", 2, "no size"),
        (("create", "a@example.test", "--password-stdin", "--quota", "0"), "pw", 2, "no quota"),
        (("create", "a@example.test"), "pw", 2, "--password-stdin"),
        (("create",), "", 2, "ADDRESS"),
        (("delete", "a@example.test"), "", 1, "no account"),
        (("passwd", "a@example.test", "--password-stdin"), "pw", 1, "no account"),
        (("quota", "a@example.test"), "", 1, "no account"),
        (("nonsense",), "", 2, "No such command"),
    ],
)
def test_refused(home, args, stdin, code, says):
    found, _, err = run(home, *args, stdin=stdin)
    assert found == code
    assert says in err
    assert len(err) < 600


def test_twice(home):
    assert run(home, "create", "a@example.test", "--password-stdin", stdin="pw")[0] == 0
    code, _, err = run(home, "create", "A@example.test", "--password-stdin", stdin="pw")
    assert (code, "exists already" in err) == (1, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_acts_as_the_owner(home):
    if not readable_for(12345, 12345):
        pytest.skip("needs a Python that other users can read")
    for path in [home, *home.rglob("*")]:
        os.chown(path, 12345, 12345)
    for above in home.parents:
        if str(above).startswith("/tmp/"):
            above.chmod(0o755)
    assert run(home, "create", "a@example.test", "--password-stdin", stdin="pw")[0] == 0
    assert {path.stat().st_uid for path in home.rglob("*")} == {12345}
