"""Columns of header values."""

from iems.imapd.columns import message_ids


def test_message_ids():
    assert message_ids(b"Message-ID: x <1@x> y\r\nReferences: <a@x>\r\n <b@x>\r\nIn-Reply-To: <c@x>\r\n\r\n") == (
        b"<1@x>",
        (b"<a@x>", b"<b@x>"),
    )
    assert message_ids(b"In-Reply-To: Joe's of <c@x> <d@x>\r\n\r\n") == (b"", (b"<c@x>",))
    assert message_ids(b"Subject: x\r\n\r\n") == (b"", ())
