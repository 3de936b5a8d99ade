"""iemsctl in process: a home, its settings, its policy; exit codes and streams."""

from __future__ import annotations

import json
import os
import pwd
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from iems.cli import doctor, init
from iems.cli.common import readable_for
from iems.cli.iemsctl import COMMANDS, main
from iems.cli.trace import in_order
from iems.config import Config, load
from iems.log import Log
from iems.model import id_text
from iems.perf.ports import free_base


def run(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, args, prog_name="iemsctl")
    assert result.exit_code == code, (args, result.stdout, result.stderr, result.exception)
    return result


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    result = run("init", str(path), "--domain", "Example.Test", "--port-base", str(free_base()))
    assert result.stdout == f"{path}\n"
    return path


def ctl(home: Path, *args: str, code: int = 0) -> Result:
    return run("--home", str(home), *args, code=code)


def test_init_makes_a_closed_home(home: Path) -> None:
    for folder in (home, *(home / name for name in init.FOLDERS)):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
    assert stat.S_IMODE((home / "conf/tls/key.pem").stat().st_mode) == 0o600
    config = load(home / "conf/iems.toml")
    assert (config.domain, config.hostname) == ("example.test", "mail.example.test")
    assert ctl(home, "domain", "list").stdout == "example.test\n"


def test_init_warns_once_as_root_and_not_else(tmp_path: Path) -> None:
    result = run("init", str(tmp_path / "h"), "--domain", "d.test", "--port-base", "10000")
    assert result.stderr.count("\n") == (1 if os.getuid() == 0 else 0)


def test_init_takes_only_a_missing_or_empty_home(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    result = run("init", str(tmp_path / "full"), "--domain", "d.test", "--port-base", "10000", code=1)
    assert "not empty" in result.stderr and result.stdout == ""
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["x"]
    (tmp_path / "empty").mkdir()
    run("init", str(tmp_path / "empty"), "--domain", "d.test", "--port-base", "10000")


@pytest.mark.parametrize("domain", ["", "a b", "-x.test", "x..test", "a\nb", "x" * 64 + ".test"])
def test_init_refuses_what_is_no_domain(tmp_path: Path, domain: str) -> None:
    run("init", str(tmp_path / "h"), "--domain", domain, "--port-base", "10000", code=2)
    assert not (tmp_path / "h").exists()


def test_a_failed_init_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "self_signed", lambda *_: 1 / 0)
    CliRunner().invoke(main, ["init", str(tmp_path / "h"), "--domain", "d.test", "--port-base", "10000"])
    assert not (tmp_path / "h").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_init_for_another_user() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        home = Path(folder, "h")
        args = ["init", str(home), "--domain", "d.test", "--port-base", "10000", "--user", "nobody"]
        nobody = pwd.getpwnam("nobody")
        if not readable_for(nobody.pw_uid, nobody.pw_gid):
            assert "can't read this program" in run(*args, code=1).stderr
            assert not home.exists()
            pytest.skip("this Python is closed to other users")
        pid = os.fork()  # it becomes that user for good
        if pid == 0:
            os.chdir("/")
            os._exit(CliRunner().invoke(main, args).exit_code)
        _, status = os.waitpid(pid, 0)
        assert status == 0
        owners = {path.stat().st_uid for path in [home, *home.rglob("*")]}
        assert owners == {nobody.pw_uid}


def test_without_a_home(tmp_path: Path) -> None:
    assert "--home" in run("status", code=2).stderr
    assert "is no home" in run("--home", str(tmp_path), "status", code=1).stderr
    run("nonsense", code=2)


def test_status_of_a_stopped_server(home: Path) -> None:
    result = ctl(home, "status", code=3)
    assert result.stdout == "" and "not running" in result.stderr
    assert lines(ctl(home, "status", "--json", code=3))[0]["running"] is False
    assert "not running" in ctl(home, "stop").stderr
    assert "not running" in ctl(home, "reload", code=1).stderr


def test_config_check_names_every_error(home: Path, tmp_path: Path) -> None:
    assert ctl(home, "config", "check").stdout == ""
    bad = tmp_path / "bad.toml"
    bad.write_text("[smtpd]\nworkes = 1\nsize_limit = -1\n")
    result = run("config", "check", str(bad), code=1)
    assert result.stdout.splitlines() == [
        f"{bad}:2: smtpd.workes: unknown setting (did you mean smtpd.workers?)",
        f"{bad}:3: smtpd.size_limit: must be a whole number, at least 0",
    ]
    assert "No such file" in run("config", "check", str(tmp_path / "none"), code=1).stdout


def test_config_show(home: Path) -> None:
    assert "smtpd.max_sessions = 0" in ctl(home, "config", "show").stdout.splitlines()
    changed = lines(ctl(home, "config", "show", "--changed", "--json"))[0]
    assert set(changed) == {"hostname", "domain", "ports.base"}
    assert lines(ctl(home, "config", "show", "--json"))[0]["smtpd"]["workers"] == 2


def test_policy_commands(home: Path) -> None:
    ctl(home, "domain", "add", "*.example.test")
    assert lines(ctl(home, "domain", "list", "--json")) == [
        {"domain": "example.test"},
        {"domain": "*.example.test"},
    ]
    assert "already" in ctl(home, "domain", "add", "example.test", code=1).stderr
    ctl(home, "domain", "remove", "*.example.test")
    ctl(home, "alias", "add", "x@example.test", "a@z.test", "b@z.test")
    assert lines(ctl(home, "alias", "list", "--json")) == [
        {"address": "x@example.test", "targets": ["a@z.test", "b@z.test"]}
    ]
    ctl(home, "alias", "remove", "x@example.test", "a@z.test")
    found = lines(ctl(home, "route", "explain", "X@example.test", "--json"))[0]
    assert found["address"] == "X@example.test" and found["local"] is True
    assert found["result"] == [{"channel": "SMTPC", "identifier": "", "address": "b@z.test"}]
    assert all(set(step) == {"question", "answer"} for step in found["steps"])
    nobody = lines(ctl(home, "route", "explain", "nobody@example.test", "--json"))[0]
    assert nobody["result"] == [] and nobody["reply"].startswith("550 5.1.1")
    ctl(home, "forward", "set", "fwd.test", "SMTPC", "relay.test:26")
    assert lines(ctl(home, "forward", "list", "--json")) == [
        {"domain": "fwd.test", "channel": "SMTPC", "identifier": "relay.test:26", "check": "none"}
    ]
    ctl(home, "forward", "remove", "fwd.test")
    ctl(home, "connector", "add", "c@example.test", "smtpc", "relay.test")
    assert lines(ctl(home, "connector", "list", "--json"))[0]["identifier"] == "relay.test"
    ctl(home, "connector", "remove", "c@example.test", "SMTPC")
    ctl(home, "channel", "default", "LOCAL", "SMTPC")
    assert lines(ctl(home, "channel", "default", "--json")) == [{"LOCAL": "SMTPC", "INTERNET": "SMTPC"}]
    ctl(home, "channel", "default", "LOCAL", "NOWHERE", code=2)


def test_trace_reads_every_log(home: Path) -> None:
    one, other = bytes(range(16)), bytes(16)
    log = Log(home / "log/mail.log", "smtpd")
    log.event("accepted", one, recipient=b"a@b.test", size=3)
    log.rotate(1, 3)
    log.event("accepted", other)
    log.event("dsn", other, parent=id_text(one))
    log.event("delivered", one, recipient=b"evil\x1b[2J@b.test")
    log.close()
    found = lines(ctl(home, "trace", id_text(one).lower(), "--json"))
    assert [event["event"] for event in found] == ["accepted", "dsn", "delivered"]
    assert set(found[0]) == {"time", "event", "role", "recipient", "detail"}
    assert found[1]["detail"]["id"] == id_text(other)
    shown = ctl(home, "trace", id_text(one)).stdout
    assert "\x1b" not in shown and len(shown.splitlines()) == 3
    assert "not in the log" in ctl(home, "trace", id_text(bytes([9]) * 16), code=1).stderr
    ctl(home, "trace", "xyz", code=2)


def test_trace_puts_causes_before_effects() -> None:
    def at(ms: int, name: str) -> dict[str, Any]:
        return {"time": f"2026-01-01T00:00:{ms // 1000:02d}.{ms % 1000:03d}Z", "event": name}

    written = [
        at(13, "leased"),
        at(20, "routed"),
        at(10, "accepted"),
        at(21, "delivered"),
        at(9000, "routed"),
    ]
    assert [event["event"] for event in in_order(written)] == [
        "accepted",
        "routed",
        "leased",
        "delivered",
        "routed",
    ]


def test_queue_commands_work_on_a_stopped_server(home: Path) -> None:
    assert ctl(home, "queue", "list").stdout == ctl(home, "queue", "list", "--json").stdout == ""
    assert ctl(home, "queue", "hold", "--channel", "local").stdout == "held LOCAL\n"
    assert lines(ctl(home, "queue", "release", "--channel", "LOCAL", "--json")) == [{"released": 0}]
    one = id_text(bytes(range(16)))
    for command in ("hold", "release", "retry", "bounce", "delete"):
        ctl(home, "queue", command, code=2)
        assert "no such message" in ctl(home, "queue", command, one, code=1).stderr
        assert ctl(home, "queue", command, "x", code=2).stdout == ""
    assert "is not in the queue" in ctl(home, "queue", "show", one, code=1).stderr
    assert "0 messages would be deleted" in ctl(home, "queue", "delete", "--sender", "<>", code=2).stderr
    assert ctl(home, "queue", "delete", "--sender", "<>", "--yes").stdout == "deleted 0\n"


def test_doctor_finds_and_mends(home: Path) -> None:
    found = {finding["check"]: finding for finding in lines(ctl(home, "doctor", "--json"))}
    assert {"descriptors", "ports", "disk", "clock", "permissions", "certificate", "kernel", "dns"} <= set(
        found
    )
    (home / "spool").chmod(0o755)
    (home / "conf/tls/key.pem").chmod(0o644)
    result = ctl(home, "doctor", code=1)
    assert f"chmod 0600 {home}/conf/tls/key.pem" in result.stdout
    assert f"chmod 0700 {home}/spool" in result.stdout
    (home / "conf/iems.toml").write_text("x = 1")
    assert "unknown setting" in ctl(home, "doctor", code=1).stdout


def test_doctor_names_a_port_conflict(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        monkeypatch.setattr(doctor, "listeners", lambda config: iter([("smtpd", "smtp", "127.0.0.1", port)]))
        (finding,) = doctor.ports(type("H", (), {"path": home})(), Config())
    assert finding.level == "problem" and f"127.0.0.1:{port}" in finding.finding
    assert f"pid {os.getpid()}" in finding.finding


def test_doctors_judgements() -> None:
    def level(findings: Any) -> list[str]:
        return [finding.level for finding in findings]

    assert level(doctor.judge_descriptors(1024)) == ["problem"]
    assert level(doctor.judge_descriptors(20_000)) == ["note"]
    assert level(doctor.judge_descriptors(1 << 20)) == ["ok"]
    assert level(doctor.judge_disk("spool", 1 << 20, 1 << 40, 0.5)) == ["problem"]
    assert level(doctor.judge_disk("spool", 1 << 34, 1 << 40, 0.01)) == ["warning", "problem"]
    now = 1_800_000_000.0
    assert level(doctor.judge_clock(now, now - 5, True)) == ["ok"]
    assert level(doctor.judge_clock(now, now + 3600, True)) == ["problem"]
    assert level(doctor.judge_clock(0, 0, True)) == ["problem"]
    assert level(doctor.judge_clock(now, now, False)) == ["note"]


def test_completion_and_help() -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_IEMSCTL_COMPLETE" in run("completion", shell).stdout
    shown = run("--help").stdout
    for name in ("init", "start", "stop", "status", "doctor", "trace", "route"):
        assert name in COMMANDS and f"  {name} " in shown


def test_status_imports_nothing_slow() -> None:
    import subprocess
    import sys

    script = (
        "import sys, iems.cli.run, iems.cli.iemsctl; "
        "print(sorted({'numpy', 'uvloop', 'lmdb', 'cryptography', 'asyncio.runners'} & set(sys.modules) - {'asyncio.runners'}))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
