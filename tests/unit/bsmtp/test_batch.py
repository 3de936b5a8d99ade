"""The batch format: what is written is read back as it was, and what is not whole gives nothing (RFC 2442)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.bsmtp.batch import BatchError, Entry, Limits, check_extensions, decode, encode, is_lines
from iems.model import Recipient

ATOM = st.text("abcXYZ019!#$%&'*+/=?^_`{|}~-", min_size=1, max_size=12)
LOCAL = st.lists(ATOM, min_size=1, max_size=3).map(".".join)
QUOTED = st.sampled_from(['"a b"', '"a@b"', '"a\\"b"', '".dot"', '"a\\\\b"'])
DOMAIN = st.sampled_from(["a.test", "b-c.example.test", "xn--bcher-kva.test", "[192.0.2.1]", "[ipv6:2001:db8::1]"])
ASCII = st.builds(lambda a, b: f"{a}@{b}".encode(), LOCAL | QUOTED, DOMAIN)
UTF8 = st.builds(lambda a, b: f"{a}ü@{b}".encode(), LOCAL, st.sampled_from(["bücher.test", "a.test"]))
XTEXT = st.text("abc019-._", min_size=1, max_size=40).map(str.encode) | st.just(b"a+2Bb+3D")
NOTIFY = st.sampled_from([0, 1, 2, 4, 8, 6, 10, 12, 14])
LINE = st.one_of(
    st.sampled_from([b"", b".", b"..", b".QUIT", b"QUIT", b"DATA", b"MAIL FROM:<>", b"x" * 3000]),
    st.binary(max_size=60).map(lambda raw: raw.translate(None, b"\r\n\0")),
)
LINES = st.lists(LINE, max_size=8).map(lambda lines: b"".join(line + b"\r\n" for line in lines))
CONTENT = LINES | st.lists(st.sampled_from(b"\r\n.a\0\xff"), max_size=24).map(bytes) | st.binary(max_size=200)


@st.composite
def entries(draw):
    utf8 = draw(st.booleans())
    address = ASCII | UTF8 if utf8 else ASCII
    recipient = st.builds(
        lambda where, notify, orcpt: Recipient(where, where, orcpt, notify),
        address, NOTIFY, st.none() | XTEXT.map(lambda text: b"rfc822;" + text),
    )  # fmt: skip
    content = draw(CONTENT)
    body = draw(st.sampled_from([0, 1, 2])) if is_lines(content) else 2
    return Entry(
        draw(st.just(b"") | address), draw(st.lists(recipient, min_size=1, max_size=5)), content,
        body, utf8, draw(st.sampled_from([0, 1, 2])), draw(st.none() | XTEXT),
    )  # fmt: skip


def plain(entry):
    """All that must come back."""
    return (
        entry.reverse_path,
        [(r.address, r.orcpt, r.notify) for r in entry.recipients],
        entry.content, entry.body, entry.smtputf8, entry.ret, entry.envid,
    )  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.lists(entries(), min_size=1, max_size=4))
def test_what_is_written_comes_back(given_entries):
    written = encode(given_entries, b"mx.a.test")
    assert [plain(entry) for entry in decode(written.octets)] == [plain(entry) for entry in given_entries]
    check_extensions(",".join(written.extensions))


@settings(max_examples=80, deadline=None)
@given(st.lists(entries(), min_size=1, max_size=2), st.data())
def test_a_batch_cut_short_gives_nothing(given_entries, data):
    octets = encode(given_entries, b"mx").octets
    cut = data.draw(st.integers(0, len(octets) - len(b"QUIT\r\n")))
    with pytest.raises(BatchError):
        decode(octets[:cut])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([
    b"MAIL FROM:<a@b.test>\r\n", b"RCPT TO:<c@d.test>\r\n", b"DATA\r\n", b".\r\n", b"x\r\n", b"QUIT\r\n", b"BDAT 3 LAST\r\nabc",
    b"BDAT 3\r\nabc", b"RSET\r\n", b"EHLO h\r\n", b"\n", b"\0", b"\r", b"BDAT 99 LAST\r\n", b"MAIL FROM:<> BODY=BINARYMIME\r\n",
]), max_size=14).map(b"".join) | st.binary(max_size=100))  # fmt: skip
def test_any_octets_are_read_or_refused(octets):
    try:
        found = decode(octets)
    except BatchError:
        return
    assert all(entry.recipients for entry in found)
    assert all(entry.body == 2 or is_lines(entry.content) for entry in found)


HEAD = b"EHLO h\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n"


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"", "ends without QUIT"),
        (b"QUIT\r\n", "holds no message"),
        (HEAD + b"DATA\r\nx\r\n.\r\n", "ends without QUIT"),
        (HEAD + b"DATA\r\nx\r\n", "content without its end"),
        (HEAD + b"DATA\r\nx\n.\nMAIL FROM:<evil@b.test>\r\n.\r\nQUIT\r\n", "bare LF"),
        (HEAD + b"DATA\r\nx\r\n.\r\nQUIT\r\nMAIL FROM:<>\r\n", "goes on after QUIT"),
        (HEAD + b"QUIT\r\n", "QUIT within a message"),
        (HEAD + b"MAIL FROM:<>\r\n", "MAIL within a message"),
        (b"RCPT TO:<c@d.test>\r\n", "RCPT without MAIL"),
        (b"MAIL FROM:<a@b.test>\r\nDATA\r\n.\r\nQUIT\r\n", "content without a recipient"),
        (b"MAIL FROM:<a@b.test> MAGIC=1\r\nQUIT\r\n", "MAIL: "),
        (b"MAIL FROM:<a@b.test>\r\nRCPT TO:<nobody>\r\nQUIT\r\n", "RCPT: "),
        (b"VRFY a\r\nQUIT\r\n", "no place in a batch"),
        (b"STARTTLS\r\n", "no place in a batch"),
        (b"x" * 5000, "too long"),
        (HEAD + b"BDAT 9 LAST\r\nabc", "chunk without its end"),
        (HEAD + b"BDAT 3 LAST\r\na\nbQUIT\r\n", "bare CR"),
        (b"NOOP\r\n" * 1001 + b"QUIT\r\n", "do nothing"),
    ],
)
def test_what_is_refused_says_why(octets, reason):
    with pytest.raises(BatchError, match=reason):
        decode(octets)


def test_limits():
    one = HEAD + b"DATA\r\n12345678\r\n.\r\n"
    assert len(decode(one * 2 + b"QUIT\r\n")) == 2
    for limits in (Limits(messages=1), Limits(octets=9)):
        with pytest.raises(BatchError, match="more than"):
            decode(one * 2 + b"QUIT\r\n", limits)
    with pytest.raises(BatchError, match="more than 1 recipients"):
        decode(HEAD + b"RCPT TO:<e@d.test>\r\n", Limits(recipients=1))


def test_extensions_used_are_named():
    simple = Entry(b"a@b.test", [Recipient(b"c@d.test")], b"x\r\n")
    assert encode([simple], b"h").extensions == []
    simple.body, simple.ret = 1, 2
    assert encode([simple], b"h").extensions == ["8BITMIME", "DSN"]
    simple.content = b"no line end"
    assert encode([simple], b"h").extensions == ["BINARYMIME", "CHUNKING", "DSN"]
    with pytest.raises(BatchError, match="MAGIC"):
        check_extensions("8bitmime, MAGIC")


def test_an_envelope_that_would_read_otherwise_is_not_written():
    for bad in (b"a b@c.test", b"a@b.test>\r\nRCPT TO:<x@y.test", b"", b"a@B.test"):
        with pytest.raises(BatchError):
            encode([Entry(b"", [Recipient(bad)], b"x\r\n")], b"h")
    with pytest.raises(BatchError):
        encode([Entry(b"a> RET=FULL@b.test", [Recipient(b"c@d.test")], b"x\r\n")], b"h")
    with pytest.raises(BatchError):
        encode([Entry(b"", [], b"x\r\n")], b"h")
