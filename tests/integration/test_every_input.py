"""EICAR from every input channel meets a real clamd, over its own protocol and over ICAP; and passes where the matrix says so."""

from __future__ import annotations

import base64

import pytest

from iems.directory import Directory
from iems.model import INPUT, Channel
from iems.net.breaker import Breaker
from iems.preprocessor.absence import Absence
from iems.preprocessor.modules.antivirus import AntiVirus
from iems.scan.clamd import Clamd
from iems.scan.icap import Icap
from tests.support.scanners import CICAP, CLAMD, EICAR, CicapDaemon, ClamdDaemon
from tests.support.waiting import soon
from tests.unit.preprocessor.test_worker import home, run, taken  # noqa: F401

INPUTS = [channel for channel in Channel if channel < 32]
EVIL = b"Subject: x\r\nContent-Type: application/x; name=a.com\r\nContent-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(EICAR).replace(b"\n", b"\r\n")
NEVER = Absence("The virus scanner", "defer", {}, 1e9)


@pytest.mark.skipif(CICAP is None or CLAMD is None, reason="c-icap or clamd is not installed")
@pytest.mark.parametrize("kind", ["clamd", "icap"])
def test_from_every_input(home, tmp_path, kind):  # noqa: F811
    directory = Directory(home / "directory")
    directory.set_matrix("antivirus", {(channel, Channel.LOCAL) for channel in INPUTS})
    directory.close()
    with ClamdDaemon(tmp_path / "clamd") as clamd, CicapDaemon(tmp_path / "c-icap", clamd.port) as icap:

        async def scenario(s):
            settings = {"timeout_s": 20.0, "at_once": 4, "breaker": Breaker()}
            place = f"127.0.0.1:{clamd.port}" if kind == "clamd" else f"//127.0.0.1:{icap.port}/virus_scan"
            scanner = (Clamd if kind == "clamd" else Icap)(place, **settings)
            s.worker.modules["antivirus"] = AntiVirus([scanner], "delete", NEVER, "mx.test")
            s.worker._wants.append(s.worker.modules["antivirus"].wants)
            for channel in INPUTS:
                await s.post(b"john@example.test", b"eve@other.test", content=EVIL, channel=channel)
            await soon(lambda: sum(name == "routed" for name, *_ in s.ctx.events) == len(INPUTS))
            await s.settled()
            assert taken(s.spool, INPUT) == [] and taken(s.spool, Channel.LOCAL) == []
            assert len(taken(s.spool, Channel.SMTPC)) == len(INPUTS), "its cell is off"

        ctx = run(home, scenario)
    gone = [recipient for name, recipient, detail in ctx.events if name == "discarded" and "Test.Eicar" in detail["reason"]]
    assert gone == [b"john@example.test"] * len(INPUTS) and ctx.errors == []


@pytest.mark.skipif(CLAMD is None, reason="clamd is not installed")
def test_every_action(home, tmp_path):  # noqa: F811
    """What becomes of EICAR that a real clamd has found, by the setting; a clean message goes on each time."""
    clean = b"Subject: fine\r\n\r\nhello\r\n"
    ends = {}
    with ClamdDaemon(tmp_path / "clamd") as clamd:
        for infected in ("bounce", "quarantine", "delete", "strip", "tag"):

            async def scenario(s, infected=infected):
                scanner = Clamd(f"127.0.0.1:{clamd.port}", timeout_s=20.0, at_once=4, breaker=Breaker())
                s.worker.modules["antivirus"] = AntiVirus([scanner], infected, NEVER, "mx.test")
                s.worker._wants.append(s.worker.modules["antivirus"].wants)
                for content in (EVIL, clean):
                    await s.post(b"john@example.test", content=content)
                await s.settled()
                local = s.spool.take(Channel.LOCAL, 10)[0]
                reports = [s.spool.blobs.read(item.rope) for item in s.spool.take(Channel.SMTPC, 10)[0]]
                ends[infected] = sorted((s.spool.blobs.read(item.rope), item.envelope.verdicts) for item in local), reports, [n for n, *_ in s.ctx.events]

            run(home, scenario)
    for infected, (local, reports, names) in ends.items():
        contents = [content for content, _ in local]
        assert clean in contents and len(contents) == (2 if infected in ("strip", "tag") else 1), infected
        assert (b"virus Test.Eicar" in b"".join(reports)) == (infected == "bounce")
        assert ("quarantined" in names, "discarded" in names) == (infected == "quarantine", infected == "delete")
    [stripped] = [content for content, _ in ends["strip"][0] if content != clean]
    assert b"removed from this message" in stripped and base64.b64encode(EICAR)[:20] not in stripped
    [(tagged, verdicts)] = [one for one in ends["tag"][0] if one[0] != clean]
    assert tagged == EVIL and [verdict.check for verdict in verdicts] == ["antivirus"]
