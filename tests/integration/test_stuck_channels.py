"""A channel that is stuck slows no other: mail that nobody takes, and hosts that say nothing, beside mail that can go."""

from __future__ import annotations

import json
import smtplib
import socket
import statistics
from datetime import datetime

from iems.perf.home import PrivateHome
from tests.integration.test_logs import hop
from tests.support.waiting import status, until

MUTE_HOSTS, DOMAINS, EACH = 6, 30, 4
NOT_TAKEN = 100
LOCAL = 30


def send(home, recipients, subject):
    """A message for each recipient over one connection; their ids."""
    ids = []
    with smtplib.SMTP("127.0.0.1", home.port("smtp")) as client:
        client.ehlo()
        for recipient in recipients:
            client.mail("s@load.test")
            assert client.rcpt(recipient)[0] == 250, recipient
            code, text = client.data(b"Subject: %b\r\n\r\nx\r\n" % subject)
            assert code == 250
            ids.append(text.split()[-1].decode())
    return ids


def waits_s(home, ids, event):
    """Seconds from `accepted` to `event`, for those of these messages that have come so far."""
    begun, ended = {}, {}
    for line in (home.path / "log/mail.log").read_text("utf-8").splitlines():
        found = json.loads(line)
        if found.get("id") in ids and found["event"] in ("accepted", event):
            (begun if found["event"] == "accepted" else ended)[found["id"]] = datetime.fromisoformat(found["time"].replace("Z", "+00:00"))
    return [(ended[id] - begun[id]).total_seconds() for id in ended if id in begun]


def all_of(home, ids, event):
    """The waits of all of them."""
    return until(lambda: len(found := waits_s(home, set(ids), event)) == len(ids) and found)


def channels(home):
    return status(home)["channels"]


def test_a_stuck_channel_slows_no_other():
    mutes = [socket.create_server(("127.0.0.1", 0), backlog=512) for _ in range(MUTE_HOSTS)]  # never accepted: they say nothing
    with hop() as live:
        table = "".join(
            f"mute{n}.test 127.0.0.1:{mutes[n % MUTE_HOSTS].getsockname()[1]}\n" for n in range(DOMAINS)
        )
        with PrivateHome(
            1,
            {"smtpc.resolution": "hosts", "smtpc.host_table": "conf/hosts", "smtpd.trusted_networks": ["127.0.0.0/8"]},
            files={"conf/hosts": table + f"live.test 127.0.0.1:{live.port}\n"},
        ) as home:
            home.ctl("connector", "add", "box@load.test", "CCMAIL", "PO1")
            alone = all_of(home, send(home, ["a1@load.test"] * LOCAL, b"alone"), "delivered")

            send(home, ["box@load.test"] * NOT_TAKEN, b"nobody takes it")
            send(home, [f"x@mute{n}.test" for n in range(DOMAINS) for _ in range(EACH)], b"nobody answers")
            stuck = until(lambda: (c := channels(home))["SMTPC"]["leased"] >= DOMAINS and c)
            assert stuck["CCMAIL"]["ready"] == NOT_TAKEN

            beside = send(home, ["a1@load.test"] * LOCAL, b"beside")
            relayed = send(home, ["y@live.test"] * 10, b"beside")
            waits = all_of(home, beside, "delivered")
            outside = all_of(home, relayed, "relayed")
            after = channels(home)
            # all of that happened while the others were stuck
            assert after["CCMAIL"]["ready"] == NOT_TAKEN and after["SMTPC"]["leased"] + after["SMTPC"]["deferred"] + after["SMTPC"]["ready"] == DOMAINS * EACH
            assert len(live.messages) == 10
            assert statistics.median(waits) <= max(3 * statistics.median(alone), 2.0), (alone, waits)
            assert max(waits) <= max(3 * max(alone), 10.0), (alone, waits)
            assert max(outside) <= 15.0, outside  # the mute ones have half a minute
            rows = [json.loads(line) for line in home.ctl("queue", "destinations", "--channel", "CCMAIL", "--json").splitlines()]
            assert [(row["destination"], row["ready"]) for row in rows] == [("PO1", NOT_TAKEN)] and rows[0]["oldest_s"] > 0
            home.crash()  # a stop would wait for the mute hosts
    for sock in mutes:
        sock.close()
