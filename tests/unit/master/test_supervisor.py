"""A real master with tiny roles: deaths, reload, drain, orphans. Nothing here sleeps for a fixed time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from iems.cli.run import status_of
from iems.master.board import Board, blamed
from iems.master.child import lives
from iems.master.supervisor import running_pid
from iems.perf.ports import free_base
from tests.support.waiting import come_round, events, freeze, thaw, until

ROOT = Path(__file__).parents[3]
ID = bytes(range(16))


class Server:
    """A running master."""

    def __init__(self, home: Path, **env: str) -> None:
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fakeroles", str(home)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **env},
            text=True,
        )

    def ready(self) -> Server:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == "ready\n", self.process.communicate()
        return self

    def connect(self) -> Session:
        base = int(next(line for line in self.conf().splitlines() if line.startswith("base")).split()[2])
        return Session(socket.create_connection(("127.0.0.1", base + 25), 60))

    def conf(self) -> str:
        return (self.home / "conf/iems.toml").read_text()

    def set(self, old: str, new: str) -> None:
        text = self.conf()
        assert old in text
        (self.home / "conf/iems.toml").write_text(text.replace(old, new, 1))

    def events(self, name: str) -> list[dict]:
        return events(SimpleNamespace(path=self.home), name)

    def pids(self, role: str) -> list[int]:
        found = status_of(self.home)
        return found["roles"][role]["pids"] if found else []

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


class Session:
    """A connection to a fake worker."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.file = sock.makefile("rwb")

    def ask(self, line: str) -> str:
        self.file.write(line.encode() + b"\n")
        self.file.flush()
        return self.file.readline().decode().strip()

    def tell(self, line: str) -> None:
        self.file.write(line.encode() + b"\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()
        self.sock.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    subprocess.run(
        [sys.executable, "-m", "iems.cli.iemsctl", "init", str(path), "--domain", "example.test",
         "--port-base", str(free_base())],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    with open(path / "conf/iems.toml", "a") as file:
        file.write("\n")
    text = (path / "conf/iems.toml").read_text()
    text = text.replace("#heartbeat_s = 1.0", "heartbeat_s = 0.1").replace(
        "#heartbeat_limit_s = 30.0", "heartbeat_limit_s = 4.0"
    )
    (path / "conf/iems.toml").write_text(text)
    return path


@contextmanager
def running(home: Path, **env: str) -> Iterator[Server]:
    server = Server(home, **env)
    try:
        yield server.ready()
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.communicate()


def test_serves_and_stops(home: Path) -> None:
    with running(home) as server:
        status = status_of(home)
        assert status is not None
        assert status["pid"] == server.process.pid == running_pid(home)
        assert {name: role["alive"] for name, role in status["roles"].items()} == {"smtpd": 2, "store": 1}
        session = server.connect()
        assert int(session.ask("pid")) in server.pids("smtpd")
        assert session.ask("tls") == "True"
        session.tell("wait")
        assert server.stop() == 0
        assert session.file.readline() == b"bye\n"
        assert running_pid(home) is None
        assert [event["event"] for event in map(json.loads, (home / "log/mail.log").open())][-1] == "stopped"


def test_second_start_is_refused(home: Path) -> None:
    with running(home):
        second = Server(home)
        _, err = second.process.communicate(timeout=20)
        assert second.process.returncode == 1
        assert "already running" in err


def test_port_in_use_is_named(home: Path, tmp_path: Path) -> None:
    with running(home):
        other = tmp_path / "other"
        subprocess.run(["cp", "-r", str(home), str(other)], check=True)
        (other / "run/master.pid").unlink()
        (other / "run/lock").unlink()
        second = Server(other)
        _, err = second.process.communicate(timeout=20)
        assert second.process.returncode == 1
        assert "is in use by another process" in err


def test_a_dead_worker_is_replaced_and_its_socket_lives_on(home: Path) -> None:
    with running(home) as server:
        victim = server.pids("smtpd")[0]
        os.kill(victim, signal.SIGKILL)
        # A connection made meanwhile waits in the master's copy of the socket; it is answered by the next worker.
        for _ in range(8):
            assert server.connect().ask("pid") != str(victim)
        until(lambda: status_of(home)["roles"]["smtpd"]["state"] == "running")
        assert status_of(home)["roles"]["smtpd"]["restarts"] == 1
        assert server.events("worker-died")[0]["detail"]["code"] == -9
        assert server.stop() == 0


def test_a_hanging_worker_is_killed(home: Path) -> None:
    with running(home) as server:
        session = server.connect()
        pid = int(session.ask("pid"))
        session.tell("hang")
        until(lambda: pid not in server.pids("smtpd"))
        assert server.events("worker-killed")[0]["detail"]["why"] == "no sign of life"
        assert server.stop() == 0


def test_nobody_is_blamed_for_a_machine_that_stood_still(home: Path) -> None:
    """A virtual machine is moved, or paused: all processes are silent for longer than a worker may be, then the master runs first."""
    with running(home) as server:
        pids = [*server.pids("smtpd"), *server.pids("store")]
        freeze(server.process.pid, *pids)
        time.sleep(6.0)  # of the test's subject: above heartbeat_limit_s
        thaw(server.process.pid)
        come_round([server.process.pid])
        time.sleep(0.1)
        come_round([server.process.pid])
        thaw(*pids)
        assert [*server.pids("smtpd"), *server.pids("store")] == pids and not server.events("worker-killed")
        session = server.connect()
        session.tell("hang")  # one that hangs by itself is still found
        until(lambda: server.events("worker-killed"))
        assert server.stop() == 0


def test_the_message_in_work_is_blamed(home: Path) -> None:
    with running(home) as server:
        for _ in range(2):
            server.connect().ask("blame " + ID.hex())
        until(lambda: blamed(home) == {ID: 2})
        assert server.events("blamed")[-1]["detail"]["deaths"] == 2
        assert server.stop() == 0


def test_reload_keeps_sessions_and_takes_up_settings(home: Path) -> None:
    with running(home) as server:
        before = server.pids("smtpd")
        session = server.connect()
        old = session.ask("pid")
        assert session.ask("drain_s") == "10.0"
        server.set("#drain_s = 10.0", "drain_s = 4.0")
        subprocess.run(
            [sys.executable, "-c", "from tests.support import fakeroles, fakeroles as f; import sys;"
             "from iems.cli.iemsctl import main; main(['--home', sys.argv[1], 'reload'])", str(home)],
            cwd=ROOT, check=True,
        )  # fmt: skip
        fresh = server.connect()
        assert fresh.ask("pid") not in map(str, before)
        assert fresh.ask("drain_s") == "4.0"
        assert session.ask("pid") == old
        session.close()
        until(lambda: not set(before) & set(server.pids("smtpd")))
        assert status_of(home)["generation"] == 2
        assert status_of(home)["roles"]["smtpd"]["restarts"] == 0
        assert server.stop() == 0


def test_reload_loses_no_connection(home: Path) -> None:
    with running(home) as server:
        server.process.send_signal(signal.SIGHUP)
        count = 0
        while not (count > 200 and status_of(home)["generation"] == 2):
            session = server.connect()
            assert session.ask("pid").isdigit()
            session.close()
            count += 1
        assert status_of(home)["generation"] == 2
        assert server.stop() == 0


def test_wrong_settings_change_nothing(home: Path) -> None:
    with running(home) as server:
        before = server.pids("smtpd")
        server.set("#drain_s = 10.0", "drain_s = -1")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: server.events("reload-refused"))
        assert "master.drain_s" in server.events("reload-refused")[0]["detail"]["problems"][0]
        assert server.pids("smtpd") == before
        assert status_of(home)["generation"] == 1
        assert server.stop() == 0


def test_a_bad_tls_pair_keeps_the_old_one(home: Path) -> None:
    with running(home) as server:
        key = home / "conf/tls/key.pem"
        key.write_bytes(key.read_bytes().replace(b"M", b"N", 1))
        server.process.send_signal(signal.SIGHUP)
        until(lambda: server.events("alarm"))
        until(lambda: server.events("reloaded"))
        assert server.connect().ask("tls") == "True"
        assert server.stop() == 0


def test_fewer_and_more_workers(home: Path) -> None:
    with running(home) as server:
        server.set("#workers = 2", "workers = 1")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: len(server.pids("smtpd")) == 1 and status_of(home)["generation"] == 2)
        # Both sockets stay open, so the one worker must serve both.
        for _ in range(20):
            session = server.connect()
            assert session.ask("index") == "0"
            session.close()
        server.set("workers = 1", "workers = 3")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: len(server.pids("smtpd")) == 3)
        assert server.stop() == 0


def test_workers_wake_each_other(home: Path) -> None:
    with running(home) as server:
        session = server.connect()
        before = Board.open(home / "run/board").counters("store")["wakeups_total"]
        session.ask("wake store")
        until(lambda: Board.open(home / "run/board").counters("store")["wakeups_total"] == before + 1)
        assert server.stop() == 0


def test_workers_leave_when_the_master_is_killed_and_a_new_one_starts(home: Path) -> None:
    with running(home) as server:
        pids = server.pids("smtpd") + server.pids("store")
        generations = [row.generation for row in Board.open(home / "run/board").rows()]
        server.process.kill()
        server.process.communicate()
        with running(home) as second:
            assert not any(map(lives, pids))
            fresh = [row.generation for row in Board.open(home / "run/board").rows()]
            assert min(fresh) > max(generations)
            assert second.stop() == 0


def test_a_worker_that_does_not_start_slows_its_replacement(home: Path) -> None:
    server = Server(home, FAKE_FAIL="store")
    try:
        until(lambda: (home / "log/mail.log").exists() and len(server.events("worker-died")) >= 3)
        times = [event["time"] for event in server.events("worker-died")]
        assert times == sorted(times)
        assert server.stop() == 0
    finally:
        if server.process.poll() is None:
            server.process.kill()
        _, err = server.process.communicate()
    assert "did not start: RuntimeError: told to fail" in err


def test_a_second_stop_does_not_wait(home: Path) -> None:
    with running(home) as server:
        session = server.connect()
        session.tell("hang")
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.events("stopping"))
        end = time.monotonic() + 60
        while server.process.poll() is None and time.monotonic() < end:
            server.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.wait(0.2)
        assert server.process.returncode == 0
        assert server.events("worker-killed")[0]["detail"]["why"] in (
            "asked to stop a second time",
            "no sign of life",
        )


def test_the_service_manager_is_told(home: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(15)
        with running(home, NOTIFY_SOCKET=str(tmp_path / "notify")) as server:
            assert manager.recv(512).startswith(b"READY=1")
            server.process.send_signal(signal.SIGHUP)
            assert manager.recv(512).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert manager.recv(512).startswith(b"READY=1")
            assert server.stop() == 0
            assert manager.recv(512) == b"STOPPING=1"


@pytest.mark.parametrize("name", ["smtp", "unknown"])
def test_sockets_of_the_service_manager(home: Path, name: str) -> None:
    """Known by its name or by its port, one socket serves all workers of the role."""
    port = (
        int(next(line for line in (home / "conf/iems.toml").read_text().splitlines() if "base =" in line)[7:])
        + 25
    )
    with socket.create_server(("127.0.0.1", port)) as passed:
        script = (
            f"exec 3<&{passed.fileno()}; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES={name};"
            f" exec {sys.executable} -m tests.support.fakeroles {home}"
        )
        process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=ROOT,
            pass_fds=[passed.fileno()],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            with socket.create_connection(("127.0.0.1", port), 10) as sock:
                assert Session(sock).ask("pid").isdigit()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.communicate()


def test_administrators_wake_all(home: Path) -> None:
    with running(home) as server:

        def woken() -> list[int]:
            board = Board.open(home / "run/board")
            return [board.counters(role)["wakeups_total"] for role in ("smtpd", "store")]

        before = woken()
        server.process.send_signal(signal.SIGUSR1)
        until(lambda: woken() == [before[0] + 2, before[1] + 1])
        assert server.stop() == 0


def test_what_is_imported_before_the_fork_starts_no_thread_and_opens_no_file():
    program = (
        "import os\n"
        "from iems.master import supervisor\n"
        "look = lambda: (len(os.listdir('/proc/self/task')), sorted(os.listdir('/proc/self/fd')))\n"
        "before = look()\n"
        "supervisor._preload()\n"
        "assert look() == before and before[0] == 1, (before, look())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
