"""Milters behind a running server: one by hand, and OpenDKIM, whose signature must verify on what is delivered."""

from __future__ import annotations

import asyncio
import json
import smtplib
import threading

import dkim
import pytest
from cryptography.hazmat.primitives import serialization

from iems.perf.home import PrivateHome
from tests.integration.test_modules import inbox, send
from tests.support.milter import OPENDKIM, FakeMilter, OpendkimDaemon, packet, u32
from tests.support.waiting import events, status


class InThread:
    """A FakeMilter with a loop of its own."""

    def __init__(self, fake, path):
        self.fake, self.path, self.loop = fake, path, asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)

    def __enter__(self):
        self.thread.start()
        return asyncio.run_coroutine_threadsafe(self.fake.start(self.path), self.loop).result(60)

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()


CHANGES = packet(b"i", u32(0) + b"X-Filter\0seen\0") + packet(b"b", b"new\r\n.dot\r\n" + (b"z" * 70 + b"\r\n") * 50) + packet(b"c")


def said(data):
    subject = data.removeprefix(b"Subject\0").strip(b"\0 ")
    return packet({b"refuse": b"r", b"forget": b"d"}.get(subject, b"c"))


@pytest.mark.skipif(OPENDKIM is None, reason="opendkim is not installed")
def test_chain_of_two(tmp_path):
    fake = FakeMilter({b"E": CHANGES, b"L": said})
    with OpendkimDaemon(tmp_path / "opendkim") as daemon, InThread(fake, str(tmp_path / "milter")) as place:
        settings = {"milter.milters": [place, f"inet:127.0.0.1:{daemon.port}"], "smtpd.trusted_networks": ["127.0.0.0/8"]}
        with PrivateHome(2, settings) as home:
            with smtplib.SMTP("127.0.0.1", home.port("smtp"), timeout=60) as smtp:
                smtp.sendmail("a2@load.test", ["a1@load.test"], b"From: a2@load.test\r\nTo: a1@load.test\r\nSubject: sign\r\n\r\nold\r\n")
            send(home, ["a1@load.test"], subject="refuse")
            send(home, ["a1@load.test"], subject="forget")
            [arrived] = inbox(home, "a1@load.test")
            assert b"X-Filter: seen" in arrived and b"\r\n.dot\r\n" in arrived and b"old" not in arrived
            key = serialization.load_pem_private_key((tmp_path / "opendkim/key.pem").read_bytes(), None).public_key()
            shown = b"".join(key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).splitlines()[1:-1])
            assert b"DKIM-Signature:" in arrived
            assert dkim.verify(arrived + b"\r\n", dnsfunc=lambda name, timeout=5: b"v=DKIM1; p=" + shown), "opendkim signed what the first had made"
            report = inbox(home, "a2@load.test")[-1]
            assert b"Status: 5.7.1" in report and b"Refused by a check of the content" in report
            assert any("discard" in event["detail"]["reason"] for event in events(home, "discarded"))
            assert fake.all(b"C")[0] == b"[127.0.0.1]\x004\0\x00127.0.0.1\0"
            counters = status(home)["counters"]
            assert counters["preprocessor_module_milter_messages_total"] >= 3
            assert counters["preprocessor_module_milter_us_total"] > counters["preprocessor_module_milter_cpu_us_total"] > 0
            assert json.loads(home.ctl("audit", "--json"))["missing"] == 0
