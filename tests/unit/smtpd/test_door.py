"""Limits at the door in dialogues: rates, senders, holds, commands that come too soon, flow control, who is spared."""

import os

import pytest

from iems.config import Smtpd
from iems.master.board import Board
from iems.model import Verdict
from iems.smtpd.door import Door
from iems.smtpd.flow import Flow, Level
from iems.smtpd.outbound import Outbound
from iems.smtpd.sessions import Clients
from tests.transcripts.smtp_server import SmtpServer

PLAIN = b"AUTH PLAIN AGpvaG5AbXgudGVzdABwdw==\r\n"
OTHER = "198.51.100.7"


class Bench:
    """Servers for clients of one worker."""

    def __init__(self, path):
        self.path = path
        (path / "run").mkdir()
        self.board = Board.create(path / "run/board")
        self.board.begin(0, os.getpid(), "smtpd", 0, 1, 1)
        self.level = 0.0
        self.door = None

    def client(self, ip="192.0.2.1", **options):
        given = {name: str(value).lower() if isinstance(value, bool) else value for name, value in options.items()}
        server = SmtpServer(given | {"ip": ip})
        server.refused = None
        config = Smtpd(**{k: v for k, v in options.items() if k in Smtpd.__struct_fields__})
        if self.door is None:
            flow = Flow(
                [Level("queue", 10, 5, "messages", lambda: self.level)], server.log, lambda n, v: None, lambda n: 0
            )
            self.door = Door(
                config,
                server.handlers.policy,
                flow,
                server.log,
                server._count,
                lambda: Clients(self.path / "run", self.board, "smtpd", 0, 1),
                (lambda: Outbound.of(config, self.path)) if config.sender_hour or config.takeover_recipients else None,
            )
            self.door._in_thread = lambda senders, user, why: senders.held.change(user, why, 1)
        server.handlers.door = self.door
        server.refused, server.counted = self.door.enter(server.peer)
        server.strict = self.door.strict(server.peer)
        server.connect()
        return server


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def told(server, line):
    return server.feed(line + b"\r\n").split(b"\r\n")[-2]


def transaction(server, *recipients):
    """The last reply of a whole message."""
    last = told(server, b"MAIL FROM:<john@mx.test>")
    for one in recipients:
        last = told(server, b"RCPT TO:<%b>" % one)
    if last[:1] != b"2":
        told(server, b"RSET")
        return last
    told(server, b"DATA")
    return told(server, b"Subject: x\r\n\r\nx\r\n.")


def test_sessions_per_ip_and_network(bench):
    limits = {"max_sessions_per_ip": 2, "max_sessions_per_network": 3}
    first = bench.client(**limits)
    assert first.refused is None and bench.client(**limits).refused is None
    third = bench.client(**limits)
    assert third.refused.code == 421
    assert bench.client("192.0.2.2", **limits).refused is None
    assert bench.client("192.0.2.3", **limits).refused.code == 421  # of a network that has three
    assert bench.client(OTHER, **limits).refused is None
    bench.door.leave(first.counted)
    assert bench.client(**limits).refused is None


@pytest.mark.parametrize(
    ("ip", "more", "spared"),
    [
        ("127.0.0.1", {}, True),
        ("::1", {}, True),
        ("127.0.0.1", {"limit_loopback": True}, False),
        ("192.0.2.1", {"trusted_networks": ["192.0.2.0/24"]}, True),
        ("2001:db8::1", {}, False),
    ],
)
def test_who_is_spared(bench, ip, more, spared):
    texts = {name: " ".join(value) if isinstance(value, list) else value for name, value in more.items()}
    first = SmtpServer({"ip": ip} | {k: str(v).lower() if v is True else v for k, v in texts.items()})
    config = Smtpd(max_sessions_per_ip=1, **more)
    door = Door(
        config, first.handlers.policy, None, first.log, first._count,
        lambda: Clients(bench.path / "run", bench.board, "smtpd", 0, 1),
    )  # fmt: skip
    assert door.enter(first.peer)[0] is None
    assert (door.enter(first.peer)[0] is None) == spared


def test_session_rate(bench):
    for _ in range(3):
        server = bench.client(session_rate=3)
        assert server.refused is None
        bench.door.leave(server.counted)
    assert bench.client(session_rate=3).refused.code == 421
    assert bench.client(OTHER, session_rate=3).refused is None


def test_message_and_recipient_rates(bench):
    server = bench.client(message_rate=2, recipient_rate=3)
    told(server, b"EHLO c")
    assert transaction(server, b"john@mx.test", b"mary@mx.test").startswith(b"250")
    assert transaction(server, b"john@mx.test", b"mary@mx.test") == (
        b"450 4.7.1 Too many recipients from your address in a minute, try again later"
    )
    assert told(server, b"MAIL FROM:<a@b>").startswith(b"450 4.7.1 Too many messages")
    again = bench.client(message_rate=2)
    told(again, b"EHLO c")
    assert told(again, b"MAIL FROM:<a@b>").startswith(b"450")  # a new session is the same client
    other = bench.client(OTHER, message_rate=2)
    told(other, b"EHLO c")
    assert told(other, b"MAIL FROM:<a@b>").startswith(b"250")


def test_xclient_is_counted_as_the_client_told_of(bench):
    options = {"max_sessions_per_ip": 1, "xclient_networks": "192.0.2.1/32"}
    bench.client(OTHER, **options)
    proxy = bench.client(**{k: v for k, v in options.items() if k != "x"})
    told(proxy, b"EHLO c")
    assert proxy.feed(b"XCLIENT ADDR=198.51.100.9\r\n").startswith(b"220")
    assert bench.client("192.0.2.1", **options).refused is None  # the proxy itself has none now
    told(proxy, b"EHLO c")
    assert proxy.feed(b"XCLIENT ADDR=198.51.100.7\r\n").startswith(b"421")
    assert proxy.closed


@pytest.mark.parametrize(
    ("group", "codes"),
    [
        (b"EHLO c\r\nMAIL FROM:<a@b>\r\n", [b"554"]),
        (b"HELO c\r\nMAIL FROM:<a@b>\r\n", [b"554"]),
        (b"EHLO c\r\n|MAIL FROM:<a@b>\r\nRCPT TO:<john@mx.test>\r\nDATA\r\n", [b"250", b"250", b"354"]),
        (b"EHLO c\r\n|MAIL FROM:<a@b>\r\nRCPT TO:<john@mx.test>\r\nDATA\r\nx\r\n.\r\n", [b"250", b"250", b"554"]),
        (b"HELO c\r\n|MAIL FROM:<a@b>\r\nRCPT TO:<john@mx.test>\r\n", [b"554"]),
        (b"HELO c\r\n|MAIL FROM:<a@b>\r\n|RCPT TO:<john@mx.test>\r\n", [b"250"]),
    ],
)  # fmt: skip
def test_early_pipelining(bench, group, codes):
    server = bench.client()
    *before, last = group.split(b"|")
    for part in before:
        server.feed(part)
    got = [line[:3] for line in server.feed(last).splitlines() if line[3:4] == b" "]
    assert got == codes
    assert server.closed == (b"554" in codes)


def test_early_pipelining_as_a_tag(bench):
    server = bench.client(early_pipelining="tag")
    server.feed(b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<john@mx.test>\r\nDATA\r\nx\r\n.\r\n")
    assert server.spool.messages[0][0].verdicts == (Verdict("early-pipelining", "192.0.2.1", "spoke too soon"),)
    assert server.counts["early_talkers_total"] == 1


def test_early_pipelining_is_nothing_to_loopback(bench):
    server = bench.client("127.0.0.1")
    server.feed(b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<john@mx.test>\r\nDATA\r\nx\r\n.\r\n")
    assert len(server.spool.messages) == 1


def login(bench, ip="192.0.2.1", **options):
    server = bench.client(ip, listener="submission", **options)
    told(server, b"EHLO c")
    server.feed(b"STARTTLS\r\n")
    server.happen("tls")
    told(server, b"EHLO c")
    assert server.feed(PLAIN).startswith(b"235")
    return server


def test_a_sender_has_a_limit_of_recipients_elsewhere(bench):
    server = login(bench, sender_hour=3, takeover_recipients=0)
    assert transaction(server, b"a@else.test", b"b@else.test").startswith(b"250")
    assert transaction(server, b"a@else.test", b"b@else.test") == b"450 4.7.1 Too many recipients for now, try again later"
    assert transaction(server, b"a@else.test").startswith(b"250")
    assert transaction(server, b"a@else.test").startswith(b"450")
    assert transaction(server, b"mary@mx.test").startswith(b"250")  # to people here it may go on
    again = login(bench, OTHER, sender_hour=3, takeover_recipients=0)
    assert transaction(again, b"a@else.test").startswith(b"450")
    alarms = [detail["what"] for event, _, _, detail in server.log.events + again.log.events if event == "alarm"]
    assert alarms == ["sender-limit"]


def test_sessions_at_once_share_a_sender_s_room(bench):
    options = {"sender_hour": 3, "takeover_recipients": 0}
    both = [login(bench, **options) for _ in range(2)]
    for server in both:
        for line in (b"MAIL FROM:<john@mx.test>", b"RCPT TO:<a@else.test>", b"RCPT TO:<b@else.test>"):
            assert told(server, line).startswith(b"250")
        told(server, b"DATA")
    assert told(both[0], b"x\r\n.").startswith(b"250")
    assert told(both[1], b"x\r\n.").startswith(b"450 4.7.1")
    assert both[1].spool.messages == [] and both[1].spool.discarded == 1


def test_a_burst_is_accepted_and_held(bench):
    server = login(bench, takeover_recipients=3)
    assert transaction(server, b"a@else.test", b"b@else.test", b"c@else.test").startswith(b"250")
    assert transaction(server, b"d@else.test").startswith(b"250")
    assert transaction(server, b"mary@mx.test").startswith(b"250")
    held = [envelope.held for envelope, _, _ in server.spool.messages]
    why = "sender john@mx.test is on hold: more than 3 recipients in 10 minutes"
    assert held == ["", why, why]
    assert [d["what"] for event, _, _, d in server.log.events if event == "alarm"] == ["sender-takeover"]
    assert server.counts["messages_held_total"] == 2 and server.counts["takeovers_total"] == 1


def test_senders_on_loopback_are_spared(bench):
    server = login(bench, "127.0.0.1", sender_hour=1, takeover_recipients=1)
    assert transaction(server, b"a@else.test", b"b@else.test").startswith(b"250")
    assert server.spool.messages[0][0].held == ""


def test_flow_control(bench):
    server = bench.client("127.0.0.1")
    told(server, b"EHLO c")
    bench.level = 11
    bench.door.flow.look(1)
    assert told(server, b"MAIL FROM:<a@b>") == b"452 4.3.1 Mail system full, try again later"
    bench.level = 5
    bench.door.flow.look(2)
    assert transaction(server, b"john@mx.test").startswith(b"250")


def test_lmtp_has_the_same_limits(bench):
    server = bench.client("127.0.0.1", listener="lmtp", limit_loopback=True, message_rate=1)
    told(server, b"LHLO c")
    assert transaction(server, b"john@mx.test").startswith(b"250")
    assert told(server, b"MAIL FROM:<a@b>").startswith(b"450 4.7.1")
    bench.level = 11
    bench.door.flow.look(1)
    assert told(server, b"MAIL FROM:<a@b>").startswith(b"452 4.3.1")


def test_counts_that_cannot_be_made_limit_nobody(bench):
    (bench.path / "run").rename(bench.path / "gone")
    assert bench.client(max_sessions_per_ip=1).refused is None
    server = bench.client(max_sessions_per_ip=1)
    assert server.refused is None and server.counted == ()
