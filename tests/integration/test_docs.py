"""Every command line that the documents show runs."""

from __future__ import annotations

import os
import re
import shlex
import smtplib
import subprocess
import sys
from pathlib import Path

import pytest

from iems.perf import queue
from iems.perf.home import PrivateHome

TOP = Path(__file__).parents[2]
PAGES = [TOP / "README.md", TOP / "CONTRIBUTING.md", *sorted((TOP / "docs").glob("*.md"))]
_BLOCK = re.compile(r"```(?:sh|console|bash)\n(.*?)```", re.DOTALL)
_INLINE = re.compile(r"`((?:iemsctl|iemsuser)(?: [^`]*)?)`")
#: Commands of the system around us; `make test` runs this test, `make run` has tests/integration/test_lifecycle.py.
OUTSIDE = ("apt ", "useradd ", "python3 -m venv", "make ", ".venv/bin/", "export ", "git ", "cd ", "pip ")
#: Left out: they would stop the server under test, or measure for minutes; their own tests run them.
ELSEWHERE = ("iemsctl start", "iemsctl stop", "iemsctl perf run", "iemsctl init", "iemsctl fsck --repair", "iemsctl upgrade --back", "iemsctl compact", "iemsuser move")


#: What must have been done before, as the lines may run in any order and in different homes.
BEFORE = {
    "iemsctl peer remove DOMAIN": ("peer", "set", "load.test", "--transmit", "off"),
    "iemsctl shared member add SHARED MEMBER --rights write --send-as": ("shared", "create", "SHARED"),
    "iemsctl shared show SHARED": ("shared", "create", "SHARED"),
    "iemsctl shared member remove SHARED MEMBER": ("shared", "create", "SHARED", "--member", "a2@load.test"),
    "iemsctl shared delete SHARED": ("shared", "create", "SHARED"),
    "iemsctl forward disallow ADDRESS": ("forward", "allow", "a1@load.test"),
    "iemsctl dkim record DOMAIN": ("dkim", "key", "create", "load.test", "--selector", "record"),
    "iemsctl dkim key activate DOMAIN SELECTOR": ("dkim", "key", "create", "load.test", "--selector", "activate"),
    "iemsctl dkim key retire DOMAIN SELECTOR": ("dkim", "key", "create", "load.test", "--selector", "retire"),
}


def shown() -> list[str]:
    """Each command line of ours in the documents, once; alternatives (`a|b`) as several."""
    found: dict[str, None] = {}
    for page in PAGES:
        text = page.read_text("utf-8")
        lines = [
            line.strip() for block in _BLOCK.findall(text) for line in block.splitlines()
        ] + _INLINE.findall(text)
        for line in lines:
            line = re.sub(r"^(\S*/)?(?=(iemsctl|iemsuser)\b)", "", line.split("  #")[0].strip())
            if not line or line.startswith("#") or line.startswith(OUTSIDE):
                continue
            assert line.startswith(("iemsctl", "iemsuser")), (
                f"{page.name}: {line}: neither ours nor known as of the system"
            )
            match = re.fullmatch(r"(\S+) ((?:\w+\|)+\w+)", line)
            for variant in [f"{match[1]} {word}" for word in match[2].split("|")] if match else [line]:
                found[variant] = None
    return list(found)


@pytest.fixture(scope="module")
def home():
    with PrivateHome(2) as running:
        with smtplib.SMTP("127.0.0.1", running.port("smtp")) as client:
            client.ehlo()
            client.mail("s@load.test")
            client.rcpt("a1@load.test")
            running.id = client.data(b"Subject: x\r\n\r\nx\r\n")[1].split()[-1].decode()
            client.mail("s@load.test")
            running.refusal = client.rcpt("nobody@load.test")[1].split()[-1].decode().strip("[]")
        queue.until_drained(running.path)
        running.backup = running.path.parent / "backup"
        running.ctl("backup", "make", str(running.backup))
        running.ctl("queue", "hold", "--channel", "LOCAL")
        with smtplib.SMTP("127.0.0.1", running.port("smtp")) as client:
            client.ehlo()
            client.mail("s@load.test")
            client.rcpt("a2@load.test")
            running.queued = client.data(b"Subject: y\r\n\r\ny\r\n")[1].split()[-1].decode()
        yield running


@pytest.mark.parametrize("line", [line for line in shown() if not line.startswith(ELSEWHERE)])
def test_command_line(home, line, tmp_path):
    places = {
        "ADDRESS": "a1@load.test", "FILE": str(tmp_path / "addresses" if "autotext" in line else home.path / "conf/iems.toml"), "ID": home.refusal if "refusal" in line else home.queued if "queue" in line else home.id,
        "DOMAIN": "load.test", "anna@example.org": "anna@load.test", "/var/lib/iems": str(home.path),
        "SCENARIO": "large-office", "perf.jsonl": str(tmp_path / "perf.jsonl"),
        "measured/perf.jsonl": str(tmp_path / "perf.jsonl"), "site.toml": str(tmp_path / "site.toml"),
        "ADDRESSES": str(tmp_path / "addresses"), "HOST": "relay.test", "OUT": str(tmp_path / "out"), "BACKUP": str(home.backup), "TARGET": str(tmp_path / "target"), "IN": str(tmp_path / "in.eml"), "FRONT1": f"k{os.urandom(4).hex()}",
        "DIR": str(tmp_path / "filter"), "@LIST": f"@{tmp_path / 'list'}",
        "SHARED": f"s{os.urandom(4).hex()}@load.test", "MEMBER": "a2@load.test", "orders@example.org": f"o{os.urandom(4).hex()}@load.test",
        "anna@example.org=manage": "a1@load.test=manage",
        "SELECTOR": line.split()[3] if "SELECTOR" in line else "",
    }  # fmt: skip
    (tmp_path / "in.eml").write_bytes(b"Subject: x\r\n\r\nx\r\n")
    (tmp_path / "mail").write_text("Subject: x\n\nx\n")
    (tmp_path / "list").write_text(f"{tmp_path / 'mail'}\n")
    (tmp_path / "addresses").write_text("# people\na1@load.test\n")
    (tmp_path / "site.toml").write_text("users = 10\nmessages_in = 1\n")
    (tmp_path / "perf.jsonl").write_text('{"module": "smtpd", "mb_per_min": 9000}\n')
    words = [places.get(word, word) for word in shlex.split(line)]
    module = "iems.cli.iemsctl" if words[0] == "iemsctl" else "iems.cli.iemsuser"
    command = [sys.executable, "-m", module, *words[1:]]
    group = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False, timeout=60)
    assert group.returncode == 0, group.stderr
    if len(words) == 1 or "COMMAND [ARGS]" in group.stdout:
        return  # the page speaks of a group of commands
    if line in BEFORE:
        home.ctl(*(places.get(word, word) for word in BEFORE[line]))
    done = subprocess.run(
        command, input="secret\n", capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path,
        env=os.environ | {"IEMS_HOME": str(home.path), "PYTHONPATH": str(TOP)},
    )  # fmt: skip
    if len(words) == 2 and ("Missing argument" in done.stderr or "name a scenario" in done.stderr):
        return  # the page names a command, it shows no line
    allowed = (0, 1) if "doctor" in line else (0,)  # this machine may have findings
    assert done.returncode in allowed, f"{line}: {done.stderr or done.stdout}"


def test_documents_show_commands():
    assert len(shown()) > 15
