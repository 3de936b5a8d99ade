"""`iemsctl doctor` asks a running server to relay, as a stranger would."""

import json
import socketserver
import subprocess
import sys
import threading

from iems.cli import relaytest
from iems.perf.home import PrivateHome


def findings(home):
    done = subprocess.run(
        [sys.executable, "-m", "iems.cli.iemsctl", "--home", home.path, "doctor", "--json"], capture_output=True, text=True, timeout=60
    )
    return [found for found in map(json.loads, done.stdout.splitlines()) if found["check"] == "relay"]


def test_no_open_relay():
    with PrivateHome(1) as home:
        (found,) = findings(home)
        assert found["level"] == "ok" and "on 2 port(s)" in found["finding"]
        home.stop()
        (found,) = findings(home)
        assert found["level"] == "note"


def test_networks_of_strangers_that_may_relay():
    with PrivateHome(1, {"smtpd.trusted_networks": ["127.0.0.0/8", "128.0.0.0/1"]}) as home:
        found = findings(home)
        assert [each["level"] for each in found] == ["problem", "note", "note"]
        assert "128.0.0.0/1" in found[0]["finding"] and found[0]["mend"]


class _Open(socketserver.StreamRequestHandler):
    """A server that takes what it is given, but for quoted addresses."""

    def handle(self):
        self.wfile.write(b"220 open\r\n")
        for line in self.rfile:
            if line.upper().startswith(b"QUIT"):
                self.wfile.write(b"221 bye\r\n")
                return
            self.wfile.write(b"550 no\r\n" if b'"' in line else b"250 ok\r\n")


def test_what_an_open_relay_takes_is_named():
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Open) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ways = relaytest.attempts("ours.test", "mail.ours.test", "192.0.2.1")
        taken = relaytest.accepted(*server.server_address, ways)
        server.shutdown()
    assert [what for what, _ in taken] == [what for what, _, recipient in ways if '"' not in recipient]


def test_networks_that_hold_strangers():
    assert relaytest.wide(["10.0.0.0/8", "192.0.2.0/24", "128.0.0.0/1", "::/0", "fd00::/8"]) == ["128.0.0.0/1", "::/0"]
