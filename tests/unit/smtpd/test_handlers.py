"""Envelope, Received line, log and counters of accepted and refused mail."""

import email

from iems.model import Channel, Notify
from tests.transcripts.smtp_server import SmtpServer


def test_envelope_and_received():
    server = SmtpServer({"ip": "::ffff:192.0.2.7"})
    server.connect()
    server.feed(
        b"EHLO Client.Test\r\nMAIL FROM:<A@B.c> BODY=8BITMIME RET=HDRS ENVID=x+2B\r\n"
        b"RCPT TO:<John@MX.test> NOTIFY=DELAY ORCPT=rfc822;j@x\r\nDATA\r\n"
    )
    out = server.feed(b"Subject: x\r\n\r\n..dot\r\n.\r\n")
    envelope, line, content = server.spool.messages[0]
    assert out == b"250 2.0.0 queued as 00000000000000000000000000\r\n"
    assert content == b"Subject: x\r\n\r\n.dot\r\n"
    recipient = envelope.recipients[0]
    assert (recipient.address, recipient.original, recipient.orcpt, recipient.notify) == (
        b"John@mx.test", b"John@MX.test", b"rfc822;j@x", Notify.DELAY,
    )  # fmt: skip
    assert (envelope.input_channel, envelope.reverse_path, envelope.client_ip, envelope.helo) == (
        Channel.SMTPD, b"A@b.c", "192.0.2.7", b"Client.Test",
    )  # fmt: skip
    assert (envelope.body, envelope.ret, envelope.envid, envelope.dot_free) == (1, 2, b"x+2B", False)
    assert envelope.size == len(line) + len(content)
    header = email.message_from_bytes(line + content)
    assert " ".join(header["Received"].split()) == (
        "from Client.Test ([192.0.2.7]) by mx.test with ESMTP id 00000000000000000000000000"
        " for <John@MX.test>; Mon, 21 Sep 2026 14:13:20 +0000"
    )
    assert server.counts["messages_accepted_total"] == 1 and server.counts["octets_in_total"] == envelope.size
    event, message_id, address, detail = server.log.events[0]
    assert (event, message_id, address) == ("accepted", bytes(16), b"John@mx.test")
    assert detail["size"] == envelope.size and detail["recipients"] == 1


def test_several_recipients_do_not_learn_of_each_other():
    server = SmtpServer()
    server.connect()
    server.feed(
        b"HELO c\r\nMAIL FROM:<>\r\nRCPT TO:<john@mx.test>\r\nRCPT TO:<mary@mx.test>\r\nDATA\r\n.\r\n"
    )
    envelope, line, _ = server.spool.messages[0]
    assert b" for " not in line and b"with SMTP id" in line and len(envelope.recipients) == 2
    assert envelope.dot_free and envelope.body == 0


def test_body_is_what_came():
    server = SmtpServer()
    server.connect()
    server.feed(b"EHLO c\r\nMAIL FROM:<> BODY=7BIT\r\nRCPT TO:<john@mx.test>\r\nDATA\r\n\xc3\xa9\r\n.\r\n")
    assert server.spool.messages[0][0].body == 1


def test_received_after_tls_and_login():
    server = SmtpServer({"listener": "submission"})
    server.connect()
    server.feed(b"EHLO plain\r\nSTARTTLS\r\n")
    server.happen("tls")
    server.feed(b"EHLO secret\r\nAUTH PLAIN AGpvaG5AbXgudGVzdABwdw==\r\nMAIL FROM:<> SMTPUTF8\r\n")
    server.feed("RCPT TO:<jörg@mx.test>\r\nDATA\r\n.\r\n".encode())
    envelope, line, _ = server.spool.messages[0]
    assert b"from secret ([192.0.2.1])\r\n\t(using TLSv1.3 with cipher X)" in line
    assert b"with UTF8SMTPSA id" in line and envelope.auth == "john@mx.test" and envelope.smtputf8


def test_trusted_networks_relay_and_loopback_does_not():
    for ip, code in (("192.0.2.1", b"250"), ("198.51.100.1", b"550"), ("127.0.0.1", b"550"), ("::1", b"550")):
        server = SmtpServer({"trusted_networks": "192.0.2.0/24", "ip": ip})
        server.connect()
        out = server.feed(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<x@else.test>\r\nRCPT TO:<x@backup.test>\r\n")
        assert out.splitlines()[-2][:3] == code, ip
        assert out.splitlines()[-1][:3] == b"250"  # in the forwarding table: taken from anyone


def relays(options, login=False):
    """What RCPT says to an address elsewhere, to one in the forwarding table and to one of ours."""
    server = SmtpServer({"ip": "192.0.2.7", "trusted_networks": "192.0.2.0/24"} | options)
    server.connect()
    server.feed(b"EHLO c\r\n")
    if login:
        server.engine.connection.user = "john@mx.test"
    out = server.feed(b"MAIL FROM:<>\r\nRCPT TO:<x@else.test>\r\nRCPT TO:<x@backup.test>\r\nRCPT TO:<john@mx.test>\r\n")
    return [line[:3] for line in out.splitlines()[-3:]]


def test_who_is_barred_from_relaying_and_nobody_may():
    assert relays({}) == relays({"barred_networks": "192.0.2.8/32"}, True) == [b"250", b"250", b"250"]
    for login in (False, True):
        assert relays({"barred_networks": "192.0.2.4/30"}, login) == [b"550", b"250", b"250"]
        assert relays({"reject_remote": "true"}, login) == [b"550", b"250", b"250"]


def test_the_greeting_says_what_is_set():
    assert SmtpServer({"banner": "at your service"}).connect() == b"220 mx.test ESMTP at your service\r\n"


def test_vrfy_when_the_settings_open_it():
    server = SmtpServer({"vrfy": "true"})
    server.connect()
    out = server.feed(b"EHLO c\r\nVRFY john\r\nVRFY <nobody@mx.test>\r\nVRFY x@else.test\r\nVRFY a b\r\n")
    assert [line[:9] for line in out.splitlines()[-4:]] == [
        b"250 2.1.5",
        b"550 5.1.1",
        b"252 2.1.5",
        b"501 5.1.3",
    ]


def test_refusals_leave_a_trace():
    server = SmtpServer({"size_limit": "10"})
    server.connect()
    server.feed(b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<x@else.test>\r\nRCPT TO:<john@mx.test>\r\nDATA\r\n")
    server.feed(b"0123456789\r\n.\r\n")
    refused = [
        (address, detail["reply"]) for event, _, address, detail in server.log.events if event == "refused"
    ]
    assert refused == [
        (b"x@else.test", "550 5.7.1 relaying denied"),
        (None, "552 5.3.4 Message larger than the limit"),
    ]
    assert server.counts == {"recipients_refused_total": 1, "messages_refused_total": 1}


def test_known_recipients_work_while_the_directory_is_away():
    server = SmtpServer()
    server.connect()
    server.feed(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<john@mx.test>\r\nRCPT TO:<nobody@mx.test>\r\nRSET\r\n")
    server.happen("directory away")
    out = server.feed(
        b"MAIL FROM:<>\r\nRCPT TO:<john@mx.test>\r\nRCPT TO:<mary@mx.test>\r\nRCPT TO:<nobody@mx.test>\r\n"
    )
    assert [line[:3] for line in out.splitlines()[-3:]] == [b"250", b"451", b"550"]


def test_xclient_is_what_received_and_log_show():
    server = SmtpServer({"ip": "127.0.0.1", "xclient_networks": "127.0.0.1"})
    server.connect()
    server.feed(b"XCLIENT ADDR=203.0.113.5 HELO=client.example LOGIN=u\r\nEHLO proxy\r\n")
    server.feed(b"MAIL FROM:<a@b>\r\nRCPT TO:<john@mx.test>\r\nDATA\r\n.\r\n")
    envelope, line, _ = server.spool.messages[0]
    assert (envelope.client_ip, envelope.helo, envelope.auth) == ("203.0.113.5", b"client.example", "u")
    assert line.startswith(b"Received: from client.example ([203.0.113.5])\r\n\tby mx.test with ESMTPA id ")
