"""A real ICAP server (c-icap) that asks a real clamd, and one that gives content back: what it finds, and mail through a running server."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl

import pytest

from iems.net.breaker import Breaker, NoAnswer
from iems.perf.home import PrivateHome
from iems.scan.icap import Icap
from tests.integration.test_modules import inbox, part, send
from tests.support.certificates import Authority
from tests.support.scanners import CICAP, CLAMD, EICAR, CicapDaemon, ClamdDaemon
from tests.support.waiting import events

pytestmark = pytest.mark.skipif(CICAP is None or CLAMD is None, reason="c-icap or clamd is not installed")
VIRUS = base64.encodebytes(EICAR).replace(b"\n", b"\r\n")
EVIL = b"Subject: x\r\nContent-Type: application/x; name=a.com\r\nContent-Transfer-Encoding: base64\r\n\r\n" + VIRUS
GOOD = b"Subject: x\r\n\r\n" + b"hello\r\n" * 200_000


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    folder = tmp_path_factory.mktemp("icap")
    certificate = Authority(folder).server("localhost")
    with ClamdDaemon(folder / "clamd") as clamd, CicapDaemon(folder / "c-icap", clamd.port, pem=certificate.file) as found:
        yield found


async def octets(content):
    for at in range(0, len(content), 100_000):
        yield content[at : at + 100_000]


def test_what_it_finds(daemon):
    async def main():
        for service in ("echo", "virus_scan"):
            icap = Icap(f"//127.0.0.1:{daemon.port}/{service}", timeout_s=30.0, at_once=3, breaker=Breaker())
            contents = (GOOD[:14], GOOD[:1024], GOOD[:1025], GOOD, EVIL, EVIL + GOOD)
            found = await asyncio.gather(*(icap.scan(octets(content)) for content in contents for _ in range(3)))
            assert found[:12] == [""] * 12
            assert [bool(one) for one in found[12:]] == [service == "virus_scan"] * 6
            assert service == "echo" or found[12].startswith("Test.Eicar")
        nothing = Icap(f"//127.0.0.1:{daemon.port}/nothing", timeout_s=30.0, at_once=3, breaker=Breaker())
        with pytest.raises(NoAnswer, match="OPTIONS is answered by 404"):
            await nothing.scan(octets(GOOD))

    asyncio.run(main())


def test_over_tls(daemon):
    """Certificate and name are checked: a server that can't prove who it is is shown nothing."""
    folder = daemon.folder.parent

    def icap(host, ca):
        return Icap(
            f"//{host}:{daemon.tls_port}/virus_scan", timeout_s=30.0, at_once=3, breaker=Breaker(), tls=lambda: ssl.create_default_context(cafile=ca)
        )  # fmt: skip

    async def main():
        known = icap("localhost", folder / "ca.pem")
        found = await asyncio.gather(*(known.scan(octets(content)) for content in (GOOD, EVIL, EVIL + GOOD, GOOD[:14])))
        assert [bool(one) for one in found] == [False, True, True, False] and found[1].startswith("Test.Eicar")
        for stranger in (icap("127.0.0.1", folder / "ca.pem"), icap("localhost", None)):
            with pytest.raises(NoAnswer, match="certificate"):
                await stranger.scan(octets(EVIL))

    asyncio.run(main())


def test_behind_a_running_server(daemon):
    ca_file = str(daemon.folder.parent / "ca.pem")
    settings = {"antivirus.scanners": [f"icaps://localhost:{daemon.tls_port}/virus_scan"], "antivirus.ca_file": ca_file, "antivirus.infected": "strip", "smtpd.trusted_networks": ["127.0.0.0/8"]}
    with PrivateHome(2, settings) as home:
        send(home, ["a1@load.test"], part("a.com", VIRUS), part("good.bin", base64.b64encode(b"good") + b"\r\n"), subject="stripped")
        [last] = inbox(home, "a1@load.test")
        assert b"a.com" not in last and b"Test.Eicar" in last and b"good.bin" in last and VIRUS.strip() not in last
        notes = [event["detail"]["note"] for event in events(home, "examined") if event["detail"]["module"] == "antivirus"]
        assert notes[0].startswith(f"icaps://localhost:{daemon.tls_port}/virus_scan: Test.Eicar") and notes[0].endswith("; removed")
        assert json.loads(home.ctl("audit", "--json"))["missing"] == 0
