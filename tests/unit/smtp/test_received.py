"""The Received line."""

import email
import email.utils

import pytest

from iems.smtp import received


def line(helo=b"client.test", ip="192.0.2.1", recipient=b"a@b", tls=b"", protocol=b"ESMTP"):
    prefix = received.prefix(helo=helo, client_ip=ip, by=b"mx.test", protocol=protocol, tls=tls)
    return received.line(prefix, "0ID", recipient, 1_790_000_000)


def test_shape():
    assert line() == (
        b"Received: from client.test ([192.0.2.1])\r\n\tby mx.test with ESMTP id 0ID"
        b"\r\n\tfor <a@b>; Mon, 21 Sep 2026 14:13:20 +0000\r\n"
    )
    assert line(recipient=b"", ip="::1", tls=b"TLSv1.3 with cipher X") == (
        b"Received: from client.test ([IPv6:::1])\r\n\t(using TLSv1.3 with cipher X)\r\n\tby mx.test with ESMTP id 0ID;"
        b"\r\n\tMon, 21 Sep 2026 14:13:20 +0000\r\n"
    )
    read = email.message_from_bytes(line() + b"\r\n")["Received"]
    when = email.utils.parsedate_to_datetime(read.rpartition(";")[2].strip())
    assert int(when.timestamp()) == 1_790_000_000


def test_hostile_names():
    assert b"from a???b?c " in line(helo=b'a(;"b)c')
    assert b"from unknown " in line(helo=b"")
    assert line(helo="ü".encode()).isascii()


@pytest.mark.parametrize(
    ("flags", "want"),
    [
        ({}, b"SMTP"),
        ({"esmtp": True}, b"ESMTP"),
        ({"esmtp": True, "secure": True}, b"ESMTPS"),
        ({"esmtp": True, "secure": True, "authenticated": True}, b"ESMTPSA"),
        ({"lmtp": True, "esmtp": True}, b"LMTP"),
        ({"esmtp": True, "utf8": True, "authenticated": True}, b"UTF8SMTPA"),
        ({"lmtp": True, "esmtp": True, "utf8": True}, b"UTF8LMTP"),
    ],
)
def test_protocol(flags, want):
    given = dict.fromkeys(("lmtp", "esmtp", "secure", "authenticated", "utf8"), False) | flags
    assert received.protocol(**given) == want


def test_date_is_made_anew_each_second():
    assert received.date(0) == b"Thu, 1 Jan 1970 00:00:00 +0000"
    assert received.date(1) == b"Thu, 1 Jan 1970 00:00:01 +0000"
