"""Bans as they match: addresses, domains, spans of IP addresses, header fields."""

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.config import parse
from iems.directory.screening import ban_of
from iems.errors import ConfigError
from iems.smtpd.screen.bans import FIELD_OCTETS, PLACES, Bans
from iems.smtpd.screen.screen import HEADER_OCTETS
from tests.transcripts.smtp_server import SmtpServer
from tests.unit.smtpd.screen_rig import screened


def bans(*rows, places=PLACES):
    return Bans([ban_of(kind, value, *reply) for kind, value, *reply in rows], places)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (b"Evil@Spam.Test", 553), (b"good@spam.test", 0), (b"x@bulk.test", 451), (b"x@a.bulk.test", 0),
        (b"x@deep.down.net", 553), (b"x@down.net", 0), (b'"evil"@spam.test', 553), (b"", 0), (b"x" * 200 + b"@bulk.test", 451),
        (b"x@[192.0.2.1]", 553), (b"x@xn--bcher-kva.test", 553), ("x@bücher.test".encode(), 553), (b"x@a..b", 0), (b"x@\xff", 0),
    ],
)  # fmt: skip
def test_reverse_paths(path, code):
    found = bans(
        ("address", "EVIL@spam.test"), ("domain", "bulk.test", 451), ("domain", "*.down.net"), ("domain", "[192.0.2.1]"),
        ("domain", "BÜCHER.test"),
    ).sender(path)  # fmt: skip
    assert (found.reply.code if found else 0) == code


def test_places():
    rows = ("address", "a@b.test"), ("ip", "192.0.2.1")
    none = bans(rows[1])
    assert none.clients and not none.header and not none.at_mail
    only = bans(*rows, places=["sender"])
    assert not only.at_mail and only.sender(b"a@b.test") is None
    assert only.content(b"From: a@b.test\r\n\r\n") is None and only.content(b"Sender: a@b.test\r\n\r\n").reply.code == 553


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9), st.sampled_from([553, 451])), max_size=8),
    st.integers(0, 80),
)
@settings(max_examples=150, deadline=None)
def test_spans_match_like_a_search_through_all(rows, number):
    def ip(value):
        return str(ipaddress.IPv4Address(0xC0000200 + value))

    made = [ban_of("range", f"{ip(first)}-{ip(first + size)}", reply) for first, size, reply in rows]
    hits = {reply for first, size, reply in rows if first <= number <= first + size}
    found = Bans(made).client(ip(number))
    assert (found.reply.code if found else 0) == (554 if 553 in hits else 421 if hits else 0)


def test_clients():
    found = bans(("ip", "::ffff:192.0.2.7"), ("cidr", "2001:db8::/32"), ("range", "10.0.0.1-10.0.0.5", 451))
    assert found.client("192.0.2.7").reply.code == 554 and found.client("2001:db8::5").reply.code == 554
    assert found.client("10.0.0.5").reply.code == 421 and found.client("10.0.0.6") is None
    assert found.client("2001:db9::") is None and found.client("") is None


@pytest.mark.parametrize("place", PLACES[1:])
@pytest.mark.parametrize(
    "value", [b"x <a@b.test>", b"ok@ok.test,\r\n\t(c) A@B.TEST", b"g: a@b.test;", b"<@r.test:a@b.test>", b'"a"@b.test']
)
def test_header_fields(place, value):
    found = bans(("address", "a@b.test")).content(b"Subject: a@b.test\r\n%b: %b\r\n\r\nFrom: body\r\n" % (place.upper().encode(), value))
    assert found.reply.code == 553 and found.subject == f"{place} {'A@B.TEST' if b'TEST' in value else 'a@b.test'}"


@pytest.mark.parametrize("raw", [b"From: x@ok.test\r\n\r\nFrom: a@b.test\r\n", b"", b"\r\n", b"From: b.test\r\n\r\n", b"To: a@b.test\r\n\r\n", b"From: =?utf-8?q?a=40b=2Etest?= <x@y>\r\n"])
def test_what_names_nobody_banned(raw):
    assert bans(("address", "a@b.test"), ("domain", "b.test")).content(raw) is None


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_any_header_is_read(raw):
    bans(("address", "a@b.test"), ("domain", "*.test")).content(b"From: " + raw)


def test_too_many_senders_are_refused():
    one = bans(("domain", "b.test"))
    assert one.content(b"From: " + b"a@ok.test," * 1001 + b"\r\n\r\n").reply.code == 554
    assert one.content(b"From: " + b"x" * FIELD_OCTETS + b"\r\n\r\n").reply.code == 554


def talk(server, content, pieces=1, path=b"ok@ok.test"):
    server.feed(b"EHLO c\r\nMAIL FROM:<%b>\r\nRCPT TO:<john@mx.test>\r\nDATA\r\n" % path)
    out = b""
    size = len(content) // pieces + 1
    for start in range(0, len(content), size):
        out += server.feed(content[start : start + size])
    return (out + server.feed(b"\r\n.\r\n"))[:3]


@pytest.mark.parametrize("pieces", [1, 2, 7, 40])
def test_header_in_a_session_however_it_is_cut(pieces):
    server = screened(SmtpServer(), bans=[("domain", "b.test", 451)])
    server.connect()
    banned = b"Subject: x\r\nReply-To: y@b.test\r\n\r\nbody\r\n"
    assert talk(server, banned, pieces) == b"451" and not server.spool.messages
    assert talk(server, b"Subject: x\r\nFrom: y@ok.test\r\n\r\nReply-To: y@b.test\r\n", pieces) == b"250"
    refused = [detail for event, *_, detail in server.log.events if event == "refused"]
    assert len(refused) == 1 and server.spool.discarded == 1


def test_a_header_without_end_is_refused():
    server = screened(SmtpServer(), bans=[("domain", "b.test")])
    server.connect()
    assert talk(server, b"X: %b\r\n" % (b"y" * 900) * (HEADER_OCTETS // 900 + 2), 30) == b"554"
    assert talk(server, b"X: %b\r\n" % (b"y" * 900) * (HEADER_OCTETS // 900 + 2), 1) == b"554"
    assert not server.spool.messages


def test_chunks_too():
    server = screened(SmtpServer(), bans=[("domain", "b.test")])
    server.connect()
    out = server.feed(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<john@mx.test>\r\nBDAT 10\r\nFrom: a@b.BDAT 8 LAST\r\ntest\r\n\r\n")
    assert out.splitlines()[-1][:3] == b"553"


def test_in_force_with_the_next_recipient_and_lifted_at_once():
    server = screened(SmtpServer())
    directory = server.handlers.directory
    server.connect()
    assert server.feed(b"EHLO c\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<john@mx.test>\r\n").splitlines()[-1][:3] == b"250"
    directory.bans, directory.seen = [ban_of("address", "a@b.test")], 2
    out = server.feed(b"RCPT TO:<mary@mx.test>\r\nRSET\r\nMAIL FROM:<a@b.test>\r\n").splitlines()
    assert [line[:3] for line in out] == [b"553", b"250", b"553"]
    directory.bans, directory.seen = [], 3
    out = server.feed(b"MAIL FROM:<>\r\nRCPT TO:<john@mx.test>\r\nRSET\r\nMAIL FROM:<a@b.test>\r\n").splitlines()
    assert out[-1][:3] == b"250"


def test_a_ban_amid_content_that_is_in_the_spool_already():
    server = screened(SmtpServer())
    directory = server.handlers.directory
    server.connect()
    server.feed(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<john@mx.test>\r\nDATA\r\nSubject: x\r\n\r\n")
    server.engine.transaction.sink.buffer.truncate(0)  # as after a spill
    directory.bans, directory.seen = [ban_of("domain", "b.test")], 2
    server.handlers.screen.refresh()
    assert server.feed(b"From: a@b.test\r\n\r\n.\r\n")[:3] == b"250"  # a line of the body


def test_memory_that_runs_short_amid_a_header_is_no_refusal_for_good():
    server = screened(SmtpServer(), bans=[("domain", "b.test")])
    server.connect()
    server.feed(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<john@mx.test>\r\nDATA\r\n")
    server.feed(b"X: %b\r\n" % (b"y" * 900) * 100)
    server.engine.transaction.sink.buffer.truncate(0)  # as after a spill
    assert server.feed(b"From: a@b.test\r\n\r\n.\r\n").startswith(b"452 4.3.1 ") and not server.spool.messages


def test_content_above_the_size_limit_is_told_so():
    server = screened(SmtpServer({"size_limit": "2000"}), bans=[("domain", "b.test")])
    server.connect()
    assert talk(server, b"X: %b\r\n" % (b"y" * 900) * 10, 8) == b"552"


def test_xclient_does_not_lead_round_a_ban():
    server = screened(SmtpServer({"ip": "127.0.0.1", "xclient_networks": "127.0.0.1"}), bans=[("cidr", "203.0.113.0/24")])
    server.connect()
    assert server.feed(b"XCLIENT ADDR=203.0.113.5\r\nEHLO c\r\n").startswith(b"554 5.7.1 ") and server.closed


def test_places_are_checked_in_the_settings():
    assert list(PLACES) == parse(b"", "f").smtpd.ban_places
    with pytest.raises(ConfigError, match=r"f:2: smtpd.ban_places: 'to' is none of mail-from, from"):
        parse(b'[smtpd]\nban_places = ["from", "to"]\n', "f")


def test_headers_that_are_free_are_remembered_under_these_bans_only():
    """The same header again is no work; a ban that comes later is in force for it all the same; memory is bounded."""
    header = b"From: Ann <ann@x.test>\r\nSender: bob@y.test\r\n\r\n"
    before = Bans([ban_of("domain", "spam.test")])
    assert before.content(header) is None and before.content(header) is None and len(before._free) == 1
    assert before.content(header.replace(b"y.test", b"spam.test")) is not None
    after = Bans([ban_of("domain", "spam.test"), ban_of("address", "ann@x.test")])
    assert after.content(header) is not None and after.content(header) is not None
    for number in range(3000):
        before.content(b"From: a%d@x.test\r\n\r\n" % number)
    before.content(b"From: " + b"a" * 2000 + b"@x.test\r\n\r\n")
    assert len(before._free) <= 1024 and all(len(raw) <= 1024 for raw in before._free)
