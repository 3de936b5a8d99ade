"""TLS towards other hosts on a started server: certificates we show, and what is told of the connections."""

from __future__ import annotations

import gzip
import json
import os
import signal
import ssl
from collections.abc import Callable
from pathlib import Path

from tests.integration.test_relay import Home, relay_to, started, until
from tests.support.certificates import Authority
from tests.support.dnsserver import DnsServer
from tests.support.smtpserver import SmtpServer

__all__ = ["started"]
_TABLE = '[[smtpc.client_certificates]]\nname = "ours"\ncertificate = "{0}"\nkey = "{0}"\n'


def test_a_host_that_asks_for_our_certificate(started: Callable[..., Home], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    ours = authority.server("mail.example.test")
    shown = authority.server("mx.partner.test").context
    shown.verify_mode = ssl.CERT_REQUIRED
    shown.load_verify_locations(authority.file)
    server = SmtpServer(extensions=("PIPELINING", "STARTTLS"), tls=shown)
    table = _TABLE.format(ours.file)
    home = started(server, settings=lambda s: relay_to(s, 'tls = "encrypt"\nretry_s = 0.5\n') + table)
    home.send("bob@partner.test")
    until(lambda: home.events("deferred"))
    assert server.messages == []
    home._call("iemsctl", "peer", "set", "partner.test", "--client-certificate", "ours")
    until(lambda: len(server.messages) == 1)
    (row,) = map(json.loads, home._call("iemsctl", "peer", "list", "--json").splitlines())
    assert row["client_certificate"] == "ours"
    # One that is not there is no reason to go without; and a broken pair at a reload leaves the old one in use.
    home._call("iemsctl", "peer", "set", "partner.test", "--client-certificate", "other")
    home.send("bob@partner.test")
    until(lambda: any("no client certificate other" in str(event) for event in home.events("deferred")))
    ours.file.write_text("broken")
    os.kill(home.master.pid, signal.SIGHUP)
    until(lambda: any("client certificates stay" in str(event) for event in home.events("alarm")))
    home._call("iemsctl", "peer", "set", "partner.test", "--client-certificate", "ours")
    until(lambda: len(server.messages) == 2)
    with_keys = [pid for role in home.status()["roles"] for pid in home.status()["roles"][role]["pids"] if holds_key(pid)]
    assert set(with_keys) == set(home.status()["roles"]["smtpc"]["pids"])


def holds_key(pid: int) -> bool:
    """Whether a process has a descriptor with a key of ours to show."""
    links = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
    return any("iems-client-tls" in link for link in links)


def test_a_report_on_tls_reaches_who_asks_for_it(started: Callable[..., Home], tmp_path: Path) -> None:
    server = SmtpServer(extensions=("PIPELINING", "STARTTLS"), tls=Authority(tmp_path).server("mx.partner.test").context)
    names = DnsServer(
        {
            ("partner.test", "MX"): ["10 mx.partner.test."],
            ("mx.partner.test", "A"): ["127.0.0.1"],
            ("_smtp._tls.partner.test", "TXT"): ['"v=TLSRPTv1; rua=mailto:anna@example.test"'],
        }
    )

    def settings(server: SmtpServer, names: DnsServer) -> str:
        return (
            f'[smtpc]\nresolution = "dns"\nport = {server.port}\ntls_reports = true\n'
            f'[dns]\nservers = ["127.0.0.1:{names.port}"]\ntimeout_s = 0.3\nattempts = 2\n'
        )

    home = started(server, names, settings=settings)
    home.send("bob@partner.test")
    until(lambda: server.messages)
    home.stop()
    (row,) = map(json.loads, home._call("iemsctl", "tlsrpt", "show", "--json").splitlines())
    assert (row["domain"], row["policy"], row["good"], row["bad"]) == ("partner.test", "no-policy-found", 1, 0)
    assert home._call("iemsctl", "tlsrpt", "send") == ""  # the day is not over
    folder = home.path / "tls-rpt"
    (folder / row["day"]).rename(folder / "2026-01-01")
    (shown,) = map(json.loads, home._call("iemsctl", "tlsrpt", "send", "--dry-run", "--json").splitlines())
    assert shown["state"] == "dry-run" and shown["report"]["policies"][0]["policy"]["policy-domain"] == "partner.test"
    home.start()
    assert home._call("iemsctl", "tlsrpt", "send").startswith("2026-01-01 partner.test: sent, mailto:anna@example.test")
    (mail,) = until(home.inbox)
    assert mail["TLS-Report-Domain"] == "partner.test" and mail["Return-Path"] == "<postmaster@example.test>"
    report = json.loads(gzip.decompress(mail.get_payload()[1].get_payload(decode=True)))
    assert report["policies"][0]["summary"]["total-successful-session-count"] == 1
    assert home._call("iemsctl", "tlsrpt", "show") == ""
