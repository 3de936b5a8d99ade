"""REQUIRETLS (RFC 8689): announced and taken over TLS only, kept in the envelope."""

import msgspec

from iems.model import Envelope
from tests.transcripts.smtp_server import SmtpServer


def test_over_tls_only():
    made = SmtpServer()
    made.connect()
    assert b"REQUIRETLS" not in made.feed(b"EHLO c\r\n")
    assert made.feed(b"MAIL FROM:<> REQUIRETLS\r\n").startswith(b"555 5.5.4")
    made.feed(b"STARTTLS\r\n")
    made.happen("tls")
    assert b"250-REQUIRETLS\r\n" in made.feed(b"EHLO c\r\n")
    assert made.feed(b"MAIL FROM:<> REQUIRETLS=YES\r\n").startswith(b"501")
    made.feed(b"MAIL FROM:<> REQUIRETLS\r\nRCPT TO:<john@mx.test>\r\nDATA\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<john@mx.test>\r\nDATA\r\n.\r\n")
    assert [envelope.requiretls for envelope, *_ in made.spool.messages] == [True, False]


def test_not_over_lmtp():
    made = SmtpServer({"listener": "lmtp"})
    made.connect()
    made.feed(b"LHLO c\r\nSTARTTLS\r\n")
    made.happen("tls")
    assert b"REQUIRETLS" not in made.feed(b"LHLO c\r\n")


def test_a_record_from_before():
    old = msgspec.msgpack.decode(msgspec.msgpack.encode(Envelope(1, b"a@b", [], 5)))[:14]
    assert msgspec.convert(old, Envelope, strict=False).requiretls is False
