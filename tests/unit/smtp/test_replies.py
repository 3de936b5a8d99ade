"""How replies look on the wire."""

from iems.model import Reply
from iems.smtp import replies


def test_status_where_it_belongs():
    assert replies.wire(replies.OK) == b"250 2.0.0 OK\r\n"
    assert replies.wire(replies.START_CONTENT).startswith(b"354 Send")
    assert replies.wire(replies.TLS_READY) == b"220 Ready to start TLS\r\n"
    assert replies.wire(replies.HELP).count(b"\r\n") == 2
    assert replies.wire(replies.HELP).startswith(b"214-2.0.0 ")


def test_nothing_ends_a_line():
    wire = replies.wire(Reply(550, 1, 1, "a\r\x00b\x85ü"))
    assert wire == b"550 5.1.1 ab??\r\n"
    assert replies.wire(Reply(550, 1, 1, "a\nb")) == b"550-5.1.1 a\r\n550 5.1.1 b\r\n"


def test_each_constant_is_one_reply():
    for name, value in vars(replies).items():
        if isinstance(value, Reply):
            for line in replies.wire(value).split(b"\r\n")[:-1]:
                assert line[:3].decode() == str(value.code) and len(line) < 512, name
