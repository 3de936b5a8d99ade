"""The engine alone: limits, memory, what becomes of content."""

import pytest

from iems._native import kernel
from iems.sasl import Password
from iems.smtp import replies
from iems.smtpd.engine import COMMANDS, Begin, Engine, Hello, Login, Settings, StartTls, State, Transaction

Buffer = kernel("buffer").Buffer


class Sink:
    def __init__(self):
        self.buffer = Buffer()
        self.discarded = 0

    def discard(self):
        self.discarded += 1


class Recorder(Engine):
    """An engine whose events are all answered with yes."""

    __slots__ = ("events", "sinks")

    def __init__(self, **given):
        super().__init__(Settings(hostname=b"mx.test", **given))
        self.connection.mechanisms = (b"PLAIN", b"LOGIN")
        self.connection.starttls = True
        self.events = []
        self.sinks = []

    def say(self, data):
        self.feed(data)
        while (event := self.next_event()) is not None:
            self.events.append(event)
            answer = replies.OK
            if isinstance(event, Begin):
                self.sinks.append(Sink())
                self.transaction.sink = self.sinks[-1]
                answer = replies.START_CONTENT
            elif isinstance(event, Transaction):
                event.sink = None
                answer = replies.queued("1")
            elif isinstance(event, Login):
                answer = replies.AUTHENTICATED
            elif isinstance(event, StartTls):
                answer = replies.TLS_READY
            self.reply(answer)
        self.keep()
        return self.take_output()


TO_DATA = b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n"


def test_table_names_every_state():
    """Each command says where it is allowed; no command is allowed where lines are not commands."""
    for row in COMMANDS:
        assert row.states and not row.states & {State.DATA, State.CHUNK, State.AUTH, State.TLS, State.CLOSED}
    assert {row.name for row in COMMANDS if row.last} == {
        b"EHLO", b"HELO", b"LHLO", b"DATA", b"NOOP", b"VRFY", b"EXPN", b"QUIT", b"STARTTLS", b"AUTH", b"XCLIENT",
    }  # fmt: skip


def test_events_wait_for_their_reply():
    made = Engine(Settings(hostname=b"mx.test"))
    made.feed(b"EHLO c\r\nNOOP\r\n")
    assert isinstance(made.next_event(), Hello)
    assert made.next_event() is None and made.waiting
    made.keep()
    made.feed(b"NOOP\r\n")
    assert made.next_event() is None and made.backlog == 12
    made.reply(replies.OK)
    assert made.next_event() is None and not made.waiting
    assert made.take_output().count(b"250 2.0.0 OK\r\n") == 2


def test_a_megabyte_without_line_end_costs_no_memory():
    made = Recorder(skip_octets=1 << 20)
    for _ in range(16):
        made.say(b"x" * 65536)
        assert made.backlog <= 12_288
    assert not made.closed
    assert made.say(b"x\r\nNOOP\r\n") == b"500 5.5.2 Line too long\r\n250 2.0.0 OK\r\n"
    for _ in range(17):
        made.say(b"x" * 65536)
    assert made.closed and made.take_output() == b""


def test_a_megabyte_of_auth():
    made = Recorder()
    made.say(b"EHLO c\r\nAUTH PLAIN\r\n")
    assert made.say(b"A" * 1_000_000) == b""
    assert made.say(b"\r\nNOOP\r\n") == b"500 5.5.6 Authentication exchange line too long\r\n250 2.0.0 OK\r\n"
    assert not made.events[1:]


def test_auth_lines_may_be_longer_than_commands():
    made = Recorder()
    made.say(b"EHLO c\r\n")
    out = made.say(b"AUTH PLAIN AGEA" + b"YWFh" * 2000 + b"\r\n")
    assert out.startswith(b"235")
    assert made.events[-1].outcome == Password("a", "a" * 6000)


def test_rset_drops_the_transaction_only():
    made = Recorder()
    made.say(b"EHLO c\r\nAUTH PLAIN AGEAYg==\r\n")
    made.connection.user = "a"
    made.say(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 3\r\nabc")
    assert made.state == State.CHUNKS
    made.say(b"RSET\r\n")
    assert made.transaction is None and made.connection.user == "a" and made.connection.helo == b"c"
    assert made.sinks[0].discarded == 1 and made.state == State.READY


def test_tls_forgets_the_client():
    made = Recorder()
    made.say(b"EHLO c\r\nSTARTTLS\r\nNOOP\r\n")
    assert made.state == State.TLS
    made.say(b"MAIL FROM:<a@b>\r\n")
    made.tls_started()
    assert made.take_output() == b"" and made.connection.helo == b"" and made.connection.secure


def test_size_limit_stops_memory_and_keeps_counting():
    made = Recorder(size_limit=1000)
    made.say(TO_DATA)
    for _ in range(100):
        made.say(b"y" * 990 + b"\r\n")
    assert len(made.sinks[0].buffer) <= 2000
    assert made.say(b".\r\n") == b"552 5.3.4 Message larger than the limit\r\n"
    assert made.sinks[0].discarded == 1 and made.refused is replies.TOO_BIG


def test_refused_content_is_not_kept():
    made = Recorder()
    made.say(TO_DATA)
    made.refuse_content(replies.SYSTEM_FULL)
    assert made.sinks[0].discarded == 1
    for _ in range(10):
        made.say(b"z" * 1000)
    assert made.say(b"\r\n.\r\nNOOP\r\n").startswith(b"452 4.3.1 ")


def test_line_of_content_too_long():
    made = Recorder(content_line_octets=100)
    assert b"554 5.6.0" not in made.say(TO_DATA + b"x" * 100 + b"\r\n.\r\n")
    assert b"554 5.6.0" in made.say(TO_DATA[8:] + b"x" * 101 + b"\r\n.\r\n")


@pytest.mark.parametrize("data", [TO_DATA + b"half", TO_DATA[:-6] + b"BDAT 10\r\nhalf"])
def test_lost_in_the_middle_of_content(data):
    made = Recorder()
    made.say(data)
    made.end()
    assert made.closed and made.sinks[0].discarded == 1 and made.transaction is None


def test_lost_while_the_spool_works():
    """The content is the spool's then: nothing is dropped, a late reply does nothing."""
    made = Engine(Settings(hostname=b"mx.test"))
    made.feed(TO_DATA + b".\r\n")
    while not isinstance(event := made.next_event(), Transaction):
        if isinstance(event, Begin):
            made.transaction.sink = sink = Sink()
            made.reply(replies.START_CONTENT)
        else:
            made.reply(replies.OK)
    event.sink = None
    made.end()
    made.take_output()
    made.reply(replies.queued("1"))
    assert sink.discarded == 0 and made.take_output() == b"" and made.closed


def test_idle_commands_are_bounded():
    made = Recorder(max_idle_commands=10)
    out = made.say(b"NOOP\r\n" * 20)
    assert out.count(b"250 ") == 10 and out.endswith(b"421 4.7.0 Too many errors, closing the connection\r\n")


def test_drain_between_transactions():
    made = Recorder()
    made.say(b"EHLO c\r\n")
    made.drain()
    assert made.closed and made.take_output().startswith(b"421 4.3.2")
    made = Recorder()
    made.say(b"EHLO c\r\nMAIL FROM:<a@b>\r\n")
    made.drain()
    assert not made.closed
    assert (
        made.say(b"RSET\r\n").endswith(b"421 4.3.2 Service shutting down, try again later\r\n")
        and made.closed
    )


def test_drain_while_chunks_are_refused():
    made = Recorder(size_limit=5)
    made.say(b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n")
    made.drain()
    out = made.say(b"BDAT 6 LAST\r\nabcdef")
    assert out.startswith(b"552") and b"421" in out and made.closed


def test_arguments_are_remembered_within_bounds():
    settings = Settings(hostname=b"mx.test")
    made = Engine(settings)
    made.feed(b"EHLO c\r\n" + b"".join(b"MAIL FROM:<a%d@b>\r\nRSET\r\n" % n for n in range(400)))
    while made.next_event() is not None:
        made.reply(replies.OK)
    assert len(settings.mail_cache) == 400
    assert settings.mail_cache is not Settings(hostname=b"x").mail_cache


def test_early_talk_is_noted():
    made = Recorder()
    made.say(b"EHLO c\r\n")
    assert not made.connection.early
    made.say(b"NOOP\r\nNOOP\r\n")
    assert made.connection.early
