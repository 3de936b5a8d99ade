"""What an operator does to a working server: hold, reload (right and wrong), stop amid sessions, start twice, start with a full queue."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from iems._native import loadgen
from iems.perf import messages
from iems.perf.queue import until_drained
from tests.integration.faults.rig import FaultHome, Wire, noticed, until, variants
from tests.support.senders import delivered


@pytest.fixture
def home() -> Iterator[FaultHome]:
    with FaultHome(2) as home:
        yield home


def channel(home: FaultHome, name: str = "LOCAL") -> dict[str, int]:
    found: dict[str, int] = home.status()["channels"][name]
    return found


def amid_data(home: FaultHome, name: str) -> Wire:
    """A session that has sent half of a message."""
    wire = home.wire("smtp")
    wire.hello()
    for command in (b"MAIL FROM:<s@load.test>", b"RCPT TO:<a1@load.test>"):
        assert wire.ask(command).startswith(b"250")
    assert wire.ask(b"DATA").startswith(b"354")
    wire.send(b"X-Number: %b\r\n\r\nfirst half\r\n" % name.encode())
    return wire


def idling(home: FaultHome) -> Wire:
    """A session in IDLE."""
    wire = home.wire("imap")
    wire.line()
    assert wire.tagged(b"LOGIN a1@load.test pw")[-1].startswith(b"t OK")
    assert wire.tagged(b"SELECT INBOX")[-1].startswith(b"t OK")
    wire.send(b"i IDLE\r\n")
    assert wire.line().startswith(b"+")
    return wire


# --- hold


def test_hold_and_release(home: FaultHome) -> None:
    """LOCAL on hold: smtpd and preprocessor go on, later arrivals wait too, over a restart as well; released, all is delivered."""
    assert home.send("before").startswith(b"250")
    until_drained(home.path)
    home.ctl("queue", "hold", "--channel", "LOCAL")
    for n in range(20):
        assert home.send(f"m{n}").startswith(b"250")
    until(lambda: channel(home)["held"] == 20)
    assert channel(home, "INPUT")["ready"] == channel(home, "INPUT")["leased"] == 0
    time.sleep(0.5)
    assert set(delivered(home.path)) == {"before"}
    assert all(home.status()["roles"][role]["state"] == "running" for role in ("smtpd", "preprocessor", "lmda"))
    home.stop()
    home.start()
    assert home.send("late").startswith(b"250")
    until(lambda: channel(home)["held"] == 21)
    assert set(delivered(home.path)) == {"before"}
    home.ctl("queue", "release", "--channel", "LOCAL")
    until(lambda: not channel(home)["held"])
    until_drained(home.path)
    assert delivered(home.path) == dict.fromkeys(["before", "late", *(f"m{n}" for n in range(20))], 1)


# --- a full queue


def start_with(count: int) -> float:
    """Seconds from the start of a server with `count` queued messages until every port answers."""
    with FaultHome(20, held=("LOCAL",)) as home:
        result = loadgen.smtp(home.port("smtp"), messages.pool(1024), home.users(), b"s@load.test", sessions=20, count=count, first_id=1 << 40)
        assert not result["errors"], result
        until(lambda: channel(home)["held"] == count)
        home.kill()  # as after a crash: no clean mark
        begun = time.monotonic()
        home.start(ready=False)
        while True:
            try:
                for name in ("smtp", "submission", "imap", "pop3", "lmtp"):
                    with home.wire(name) as wire:
                        assert wire.line()
                break
            except OSError:
                time.sleep(0.01)
        took = time.monotonic() - begun
        assert home._process is not None and home._process.stdout is not None
        assert home._process.stdout.readline().strip() == b"ready"
        assert channel(home)["held"] == count
        assert home.send("late").startswith(b"250")
        return took


def test_start_with_ten_thousand_messages() -> None:
    """The ports are open soon (within 10 s, says the long form) however long the queue is: it is not read at the start. Also after a crash."""
    took = start_with(10_000)
    print(f"10,000 queued: ports open after {took:.2f} s")
    assert took < 60


@pytest.mark.long
def test_start_with_a_hundred_thousand_messages() -> None:
    took = start_with(100_000)
    print(f"100,000 queued: ports open after {took:.2f} s")
    assert took < 10


@pytest.mark.long
def test_start_with_a_hundred_thousand_messages_and_no_index() -> None:
    """The index is lost as well: mail is accepted while it is built, and all comes back."""
    count = 100_000
    with FaultHome(20, held=("LOCAL",)) as home:
        loadgen.smtp(home.port("smtp"), messages.pool(1024), home.users(), b"s@load.test", sessions=20, count=count, first_id=1 << 40)
        until(lambda: channel(home)["held"] == count)
        home.kill()
        subprocess.run(["rm", "-r", str(home.path / "spool/index")], check=True)
        begun = time.monotonic()
        home.start()
        took = time.monotonic() - begun
        assert took < 10
        assert home.send("late").startswith(b"250")
        (rebuilt,) = until(lambda: home.events("rebuilt"), 120)
        print(f"ports after {took:.1f} s, index built in {rebuilt['detail']['seconds']} s")
        assert rebuilt["detail"]["messages"] == count
        until(lambda: sum(channel(home)[what] for what in ("ready", "held", "leased")) == count + 1)


# --- reload


def test_reload_with_wrong_settings(home: FaultHome) -> None:
    """Every error is named, the old settings and workers stay, sessions notice nothing."""
    before = {role: values["pids"] for role, values in home.status()["roles"].items()}
    half, idle = amid_data(home, "half"), idling(home)
    conf = home.path / "conf/iems.toml"
    right = conf.read_text()
    for wrong in (
        right.replace("[smtpd]\n", "[smtpd]\nworkes = 3\nsize_limit = -1\n", 1),
        right + "[smtpd\n",
        "\0" * 100,
        right.replace("[ports]\n", "[ports]\nsmtp = 70000\n", 1),
        right.replace("[store]\n", '[store]\npath = "elsewhere"\n', 1),
        right.replace("[smtpd]\n", '[smtpd]\nenabled = "perhaps"\n', 1),
    ):
        conf.write_text(wrong)
        with pytest.raises(RuntimeError):
            home.ctl("reload")
        assert home.status()["generation"] == 1
    conf.write_text(right)
    assert {role: values["pids"] for role, values in home.status()["roles"].items()} == before
    half.send(b"second half\r\n.\r\n")
    assert half.reply().startswith(b"250")
    assert b"EXISTS" in idle.line()
    assert home.deaths() == []


def test_reload_to_a_port_that_is_taken(home: FaultHome) -> None:
    """A new port that somebody else has: refused, the old ports serve on."""
    with socket.socket() as other:
        for offset in range(2_000, 9_000, 7):
            with contextlib.suppress(OSError):
                other.bind(("127.0.0.1", home.base + offset))
                break
        other.listen()
        home.configure({"ports.pop3": offset})
        with pytest.raises(RuntimeError):
            home.ctl("reload")
    assert home.status()["generation"] == 1
    with home.wire("pop3") as wire:
        assert wire.line().startswith(b"+OK")


@variants("reload_at_once")
def test_reload_keeps_sessions(unsafe: str) -> None:
    """New settings: sessions amid DATA and in IDLE get on with the old workers, new ones come to the new; no connection is refused
    meanwhile. Checked with the old workers drained at once (unsafe.py)."""
    with FaultHome(2, unsafe=unsafe) as home, noticed(unsafe):
        old = {role: values["pids"] for role, values in home.status()["roles"].items()}
        half, idle = amid_data(home, "half"), idling(home)
        refused: list[bytes] = []
        over = threading.Event()

        def knock() -> None:
            while not over.is_set():
                try:
                    with home.wire("smtp") as wire:
                        if not wire.line().startswith(b"220"):
                            refused.append(b"greeting")
                except OSError as error:
                    refused.append(str(error).encode())
                time.sleep(0.002)

        knocking = threading.Thread(target=knock)
        knocking.start()
        try:
            home.configure({"smtpd.size_limit": 5_000_000, "smtpd.banner": "changed"})
            home.ctl("reload")
            until(lambda: home.status()["generation"] == 2)
            time.sleep(0.5)
        finally:
            over.set()
            knocking.join()
        assert refused == []
        with home.wire("smtp") as wire:
            assert b"changed" in wire.line()
        status = home.status()["roles"]
        assert not set(status["lmda"]["pids"]) & set(old["lmda"])
        half.send(b"second half\r\n.\r\n")
        assert half.reply().startswith(b"250")
        line = idle.line()
        assert b"EXISTS" in line, line
        idle.line()  # RECENT
        idle.send(b"DONE\r\n")
        assert idle.line().startswith(b"i OK")
        assert any(line.startswith(b"* 1 FETCH") for line in idle.tagged(b"FETCH 1 (FLAGS)"))
        assert half.ask(b"QUIT").startswith(b"221")
        idle.tagged(b"LOGOUT")
        half.sock.close()
        idle.sock.close()
        until(lambda: not set(pids(home)) & {pid for role in old.values() for pid in role})
        assert home.deaths() == []
        until_drained(home.path)
        assert delivered(home.path) == {"half": 1}


def pids(home: FaultHome) -> list[int]:
    return [child.pid for child in psutil.Process(home.pid).children()]


def test_reload_many_times_under_load(home: FaultHome) -> None:
    """Five reloads while mail is sent and delivered: all acknowledged mail arrives, once."""
    from tests.support.senders import Senders

    senders = Senders(home.port("smtp"), [user.decode() for user in home.users()], count=4, pause_s=0.002)
    try:
        for generation in range(2, 5):
            home.ctl("reload")
            until(lambda generation=generation: home.status()["generation"] == generation)
            acknowledged = len(senders.acknowledged)
            until(lambda acknowledged=acknowledged: len(senders.acknowledged) > acknowledged + 20)
    finally:
        senders.stop()
    until_drained(home.path)
    found = delivered(home.path)
    assert senders.acknowledged <= set(found) and set(found.values()) == {1}
    assert home.deaths() == []


# --- stop


def test_stop_says_goodbye(home: FaultHome) -> None:
    """SIGTERM: BYE to who idles, 421 to who waits, the message amid DATA may end within `drain_s`; exit 0, nothing left behind."""
    idle, quiet = idling(home), home.wire("smtp")
    quiet.hello()
    half = amid_data(home, "half")
    workers = pids(home)
    os.kill(home.pid, signal.SIGTERM)
    assert idle.line().startswith(b"* BYE")
    assert quiet.reply().startswith(b"421")
    half.send(b"second half\r\n.\r\n")
    assert half.reply().startswith(b"250")
    process = home._process
    assert process is not None
    assert process.wait(60) == 0
    assert not any(psutil.pid_exists(pid) for pid in workers)
    assert not (home.path / "run/master.pid").exists() or home_is_free(home)
    home.stop()
    home.start()
    until_drained(home.path)
    assert delivered(home.path) == {"half": 1}


def home_is_free(home: FaultHome) -> bool:
    done = subprocess.run([sys.executable, "-m", "iems.cli.iemsctl", "--home", str(home.path), "status"], capture_output=True, check=False)
    return done.returncode == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_drain_has_an_end(number: signal.Signals) -> None:
    """A session that never ends its content is cut off after `master.drain_s`; the exit code is 0 all the same."""
    with FaultHome(settings={"master.drain_s": 2.0}) as home:
        half = amid_data(home, "half")
        begun = time.monotonic()
        os.kill(home.pid, number)
        process = home._process
        assert process is not None
        assert process.wait(60) == 0
        assert time.monotonic() - begun > 1.0
        assert half.rest(1.0)[:3] in (b"", b"421")


def test_a_second_start_refuses(home: FaultHome) -> None:
    """With a plain line and exit 1, in the foreground and detached; the first one is not disturbed. After kill -9 it starts."""
    command = [sys.executable, "-m", "iems.cli.iemsctl", "--home", str(home.path), "start"]
    for more in ([], ["--foreground"]):
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1 and "already running" in done.stderr and "Traceback" not in done.stderr
        assert str(home.pid) in done.stderr
    assert home.send("x").startswith(b"250")
    home.kill()
    home.start()
    until_drained(home.path)
    assert delivered(home.path) == {"x": 1}
    assert json.loads(home.ctl("audit", "--json"))["missing"] == 0
