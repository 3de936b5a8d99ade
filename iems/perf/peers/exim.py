"""A private Exim 4: it accepts and queues, or relays to one host."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path

from iems.perf.home import DOMAIN
from iems.perf.peers import program
from iems.perf.peers.private import PrivatePeer


def _user(path: str) -> str:
    """The user Exim was built to run as."""
    # Exim can't even say its settings while its user is missing, but names it then
    done = subprocess.run([path, "-C", "/dev/null", "-bP", "exim_user"], capture_output=True, text=True, check=False)
    found = re.search(r"exim_user\s*=\s*(\S+)", done.stdout) or re.search(r'user (?:name )?"([\w-]+)"', done.stderr)
    return found[1] if found else "Debian-exim"


def problem(given: str | None) -> str | None:
    """Why the installed Exim can't be run; None if it can."""
    path = program("exim", given)
    if path is None:
        return "not installed"
    try:
        pwd.getpwnam(_user(path))
    except KeyError:
        return f"its user {_user(path)} is missing (Debian: apt install exim4-base)"
    return None


class Exim(PrivatePeer):
    """next_hop: port on loopback all mail goes to; None: what comes in stays in the queue."""

    name = "exim"
    listeners = ("smtp",)

    def __init__(self, accounts: int, folder: Path | None, program: str, *, next_hop: int | None = None) -> None:
        super().__init__(accounts, folder, program)
        self._next_hop = next_hop

    def _configure(self) -> None:
        user = _user(self._program)
        for name in ("spool", "spool/log"):
            (self.path / name).mkdir()
            shutil.chown(self.path / name, user, user)
        (self.path / "exim.conf").write_text(f"""\
exim_path = {self._program}
spool_directory = {self.path}/spool
log_file_path = {self.path}/spool/log/%slog
pid_file_path = {self.path}/spool/exim.pid
primary_hostname = {DOMAIN}
local_interfaces = 127.0.0.1
daemon_smtp_ports = {self.port("smtp")}
disable_ipv6 = true
hostlist relay_from_hosts = 127.0.0.1
acl_smtp_rcpt = acl_rcpt
host_lookup =
rfc1413_hosts =
tls_advertise_hosts =
keep_environment =
split_spool_directory = true
deliver_drop_privilege = true
message_size_limit = 100M
# what would slow down one busy client, which is all a measurement has
smtp_accept_max = 300
smtp_connect_backlog = 300
smtp_accept_max_per_connection = 0
smtp_accept_queue_per_connection = 0
{"queue_only = true" if self._next_hop is None else ""}
begin acl
acl_rcpt:
  accept hosts = +relay_from_hosts
  deny
begin routers
onward:
  driver = manualroute
  route_list = * 127.0.0.1::{self._next_hop or 25} byname
  self = send
  transport = out
begin transports
out:
  driver = smtp
  hosts_avoid_tls = *
begin retry
* * F,1h,1m
""")

    def _start(self) -> int:
        arguments = [self._program, "-C", str(self.path / "exim.conf"), "-bdf"]
        return self._run(*arguments, *(["-q1m"] if self._next_hop else [])).pid

    def waiting(self) -> int:
        """Headers in its queue."""
        return sum(name.endswith("-H") for _, _, files in os.walk(self.path / "spool/input") for name in files)
