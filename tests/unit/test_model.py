"""Envelopes as earlier versions wrote them, and as they read ours."""

import msgspec
from msgspec import Struct

from iems.model import Channel, Envelope, Recipient, Verdict


class Earlier(Struct, array_like=True):
    """The envelope before it had verdicts."""

    input_channel: int
    reverse_path: bytes
    recipients: list[Recipient]
    received_ns: int
    size: int = 0
    client_ip: str = ""
    helo: bytes = b""
    auth: str = ""
    body: int = 0
    smtputf8: bool = False
    ret: int = 0
    envid: bytes | None = None
    parent: bytes = b""
    dot_free: bool = False


def test_an_envelope_of_the_version_before_is_read():
    old = Earlier(Channel.SMTPD, b"a@b", [Recipient(b"c@d")], 7, dot_free=True)
    found = msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=Envelope)
    assert found.verdicts == () and found.dot_free and found.recipients == [Recipient(b"c@d")]


def test_the_version_before_reads_ours():
    ours = Envelope(Channel.SMTPD, b"a@b", [Recipient(b"c@d")], 7, dot_free=True, verdicts=(Verdict("dnsbl", "bl.test", "127.0.0.2"),))
    octets = msgspec.msgpack.encode(ours)
    assert msgspec.msgpack.decode(octets, type=Envelope) == ours
    assert msgspec.msgpack.decode(octets, type=Earlier) == Earlier(Channel.SMTPD, b"a@b", [Recipient(b"c@d")], 7, dot_free=True)
