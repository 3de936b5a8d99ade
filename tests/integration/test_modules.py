"""Modules of the preprocessor in a running server: each on and off in cells of its matrix, told by mail that was really sent."""

from __future__ import annotations

import base64
import json
import poplib
import smtplib

import pytest

from iems.perf.home import PASSWORD, PrivateHome
from iems.spool import admin
from tests.support.tnef import attachment, stream
from tests.support.waiting import events, until

EXE = base64.encodebytes(b"MZ" + bytes(90)).replace(b"\n", b"\r\n")


@pytest.fixture(scope="module")
def server():
    with PrivateHome(2, {"preprocessor.tnef": True, "smtpd.trusted_networks": ["127.0.0.0/8"]}, held=("SMTPC",)) as home:
        yield home


def send(home, recipients, *parts, subject="s"):
    content = f"From: x@else.test\r\nSubject: {subject}\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=B\r\n\r\n".encode()
    content += b"".join(b"--B\r\n" + part + b"\r\n" for part in (b"\r\ntext", *parts)) + b"--B--\r\n"
    with smtplib.SMTP("127.0.0.1", home.port("smtp"), timeout=60) as smtp:
        smtp.sendmail("a2@load.test", recipients, content)
    until(lambda: not any(c["ready"] + c["leased"] + c["deferred"] for name, c in admin.counts(home.path / "spool").items() if name != "SMTPC"))


def inbox(home, address):
    """Contents of an INBOX, the last one last."""
    pop = poplib.POP3("127.0.0.1", home.port("pop3"), timeout=60)
    pop.user(address)
    pop.pass_(PASSWORD)
    found = [b"\r\n".join(pop.retr(number + 1)[1]) for number in range(len(pop.list()[1]))]
    pop.quit()
    return found


def part(name, octets=EXE, kind="application/octet-stream"):
    return f'Content-Type: {kind}; name="{name}"\r\nContent-Transfer-Encoding: base64\r\n\r\n'.encode() + octets


def test_attachments_by_cell(server):
    server.ctl("attachment", "add", "--name", "*.exe", "--action", "strip")
    send(server, ["a1@load.test", "u@far.test"], part("a.exe"), part("b.pdf"))
    assert b"a.exe was removed" in inbox(server, "a1@load.test")[-1] and EXE.strip() in inbox(server, "a1@load.test")[-1]
    [queued] = [json.loads(line) for line in server.ctl("queue", "list", "--channel", "SMTPC", "--json").splitlines()]
    removed = queued["size"]
    server.ctl("queue", "delete", queued["id"])
    # off for what leaves, on for what stays: one message, two contents
    server.ctl("cam", "set", "attachments", "SMTPD", "SMTPC", "off")
    send(server, ["a1@load.test", "u@far.test"], part("a.exe"), subject="cells")
    assert b"a.exe was removed" in inbox(server, "a1@load.test")[-1]
    found = server.ctl("queue", "show", json.loads(server.ctl("queue", "list", "--channel", "SMTPC", "--json"))["id"])
    assert "far.test" in found and removed > 0
    server.ctl("queue", "delete", "--channel", "SMTPC", "--yes")
    server.ctl("cam", "set", "attachments", "*", "*", "off")
    send(server, ["a1@load.test"], part("a.exe"), subject="off")
    assert EXE.strip() in inbox(server, "a1@load.test")[-1]
    server.ctl("cam", "set", "attachments", "*", "*", "on")
    server.ctl("attachment", "add", "--name", "*.exe", "--action", "bounce")
    send(server, ["a1@load.test"], part("a.exe"), subject="refused")
    assert b"subject: refused" not in inbox(server, "a1@load.test")[-1].lower()
    report = inbox(server, "a2@load.test")[-1]
    assert b"Status: 5.7.1" in report and b"attachment a.exe" in report
    assert EXE.strip() not in report and b"a.exe was removed" in report, "nor does it come back in the report"
    server.ctl("attachment", "remove", "--name", "*.exe")
    assert server.ctl("attachment", "list") == ""
    assert json.loads(server.ctl("audit", "--json"))["missing"] == 0


def test_wrapped_mail_meets_the_row_tnef(server):
    wrapped = base64.encodebytes(stream(attachment("a.exe", b"MZ secret"), attachment("b.txt", b"plain words"))).replace(b"\n", b"\r\n")
    server.ctl("attachment", "add", "--name", "a.exe", "--action", "strip")
    server.ctl("cam", "set", "attachments", "SMTPD", "*", "off")
    send(server, ["a1@load.test"], part("winmail.dat", wrapped, "application/ms-tnef"), subject="wrapped")
    last = inbox(server, "a1@load.test")[-1]
    assert b"ms-tnef" not in last and base64.b64encode(b"plain words") in last and base64.b64encode(b"MZ secret") not in last
    assert b"a.exe was removed" in last
    notes = [event["detail"] for event in events(server, "examined")]
    assert {"module": "tnef", "note": "unwrapped a.exe, b.txt"} in notes
    server.ctl("cam", "set", "attachments", "*", "*", "on")
    server.ctl("attachment", "remove", "--name", "a.exe")


def test_text_by_channel_and_cell(server, tmp_path):
    (tmp_path / "d.txt").write_text("Vertraulich – bitte löschen.\n", "utf-8")
    server.ctl("autotext", "set", "SMTPD", "--text", str(tmp_path / "d.txt"))
    server.ctl("cam", "set", "autotext", "*", "LOCAL", "off")
    send(server, ["a1@load.test"], subject="inside")
    assert b"Vertraulich" not in inbox(server, "a1@load.test")[-1]
    server.ctl("cam", "set", "autotext", "SMTPD", "LOCAL", "on")
    send(server, ["a1@load.test"], subject="with text")
    assert b"Vertraulich =E2=80=93 bitte l=C3=B6schen." in inbox(server, "a1@load.test")[-1]
    server.ctl("autotext", "remove", "SMTPD")
    server.ctl("cam", "set", "autotext", "*", "*", "on")
