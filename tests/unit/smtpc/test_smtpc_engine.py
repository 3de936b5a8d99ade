"""The client's side of SMTP: a test is a list of replies; each is played whole, octet by octet and at random cuts."""

import random

import pytest

from iems.model import Channel, Envelope, Notify, Recipient, Reply
from iems.smtpc import engine as module
from iems.smtpc.engine import (
    NEED_DATA,
    Engine,
    Event,
    Stage,
    Transaction,
    Wait,
    What,
    parse_extensions,
    parse_reply,
)

FULL = b"220 hi\r\n", b"250-mx\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250-8BITMIME\r\n250-DSN\r\n250 SMTPUTF8\r\n"
BARE = b"220 hi\r\n", b"250 mx\r\n"


def transaction(*addresses, size=100, reverse_path=b"ann@example.test", binary=False, **envelope):
    recipients = [a if isinstance(a, Recipient) else Recipient(a) for a in addresses or (b"bob@example.net",)]
    return Transaction(Envelope(Channel.SMTPD, reverse_path, recipients, 0, **envelope), recipients, size, binary=binary)


class Play:
    """An engine and a peer of canned replies: `say` feeds them, `out` collects what the engine sends."""

    def __init__(self, *replies, cut=None, **options):
        self.engine = Engine(b"me.test", **options)
        self.events = []
        self.cut = cut
        for reply in replies:
            self.say(reply)

    def say(self, data):
        pieces = [data]
        if self.cut is not None:
            pieces, at = [], 0
            while at < len(data):
                step = 1 if self.cut == 0 else self.cut.randrange(1, 12)
                pieces.append(data[at : at + step])
                at += step
        for piece in pieces:
            self.engine.feed(piece)
            while (event := self.engine.next_event()) is not NEED_DATA:
                self.events.append(event)
        return self.engine.take_output()

    def take(self):
        events, self.events = self.events, []
        return [event.what for event in events]


def test_introduction():
    play = Play()
    assert play.say(b"220 mx.example.net\r\n") == b"EHLO me.test\r\n"
    assert play.say(FULL[1]) == b"" and play.take() == [What.READY]
    assert play.engine.extensions == module.Extensions(True, 1000, True, True, True)
    assert play.engine.idle


def test_helo_when_ehlo_is_refused():
    play = Play(b"220-one\r\n220 two\r\n")
    assert play.say(b"502 no\r\n") == b"HELO me.test\r\n"
    play.say(b"250 ok\r\n")
    assert play.take() == [What.READY]


@pytest.mark.parametrize(
    "replies",
    [(b"554 no\r\n",), (b"421 later\r\n",), (b"220 x\r\n", b"421 x\r\n"), (b"220 x\r\n", b"550 x\r\n", b"550 you\r\n"),
     (b"220 x\r\n", b"450 x\r\n"), (b"HTTP/1.1 400 Bad\r\n",), (b"22\r\n",), (b"x" * 5000,), (b"220-a\r\n221 b\r\n",),
     (b"220-a\r\n" * 300,), (b"999 x\r\n",), (b"220_x\r\n",)],
)
def test_a_bad_introduction_closes(replies):
    play = Play(*replies)
    assert play.take() == [What.CLOSED]
    assert play.say(b"250 ok\r\n") == b"" and play.take() == []


@pytest.mark.parametrize("cut", [None, 0, random.Random(1), random.Random(2)])
def test_pipelining_puts_the_next_message_behind_the_dot(cut):
    play = Play(*FULL, cut=cut)
    engine = play.engine
    one, two = transaction(b"a@x.net", b"b@x.net"), transaction(b"c@x.net", size=7)
    engine.begin(one)
    engine.begin(two)
    assert engine.take_output() == (
        b"MAIL FROM:<ann@example.test> SIZE=100\r\nRCPT TO:<a@x.net>\r\nRCPT TO:<b@x.net>\r\nDATA\r\n")
    play.take()
    assert play.say(b"250 ok\r\n250 ok\r\n550 5.1.1 no such user\r\n354 go\r\n") == b""
    assert play.take() == [What.CONTENT] and one.stage == Stage.CONTENT
    engine.content_sent()
    assert engine.take_output() == b".\r\nMAIL FROM:<ann@example.test> SIZE=7\r\nRCPT TO:<c@x.net>\r\nDATA\r\n"
    assert one.stage == Stage.DOT and engine.waiting == Wait.END and engine.unfinished() == [one, two]
    play.say(b"250 2.0.0 queued as 1\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    assert play.take() == [What.DONE, What.CONTENT]
    assert one.replies == [Reply(250, 0, 0, "queued as 1"), Reply(550, 1, 1, "no such user")] and one.refused_at is None
    engine.content_sent()
    assert engine.take_output() == b".\r\n"
    play.say(b"554 5.7.1 spam\r\n")
    assert play.take() == [What.DONE] and two.refused_at == Wait.END
    assert two.replies == [Reply(554, 7, 1, "spam")] and engine.idle and engine.unfinished() == []


def test_without_pipelining_one_command_at_a_time():
    play = Play(*BARE)
    one, two = transaction(b"a@x.net", b"b@x.net"), transaction(b"c@x.net")
    play.engine.begin(one)
    play.engine.begin(two)
    assert play.engine.take_output() == b"MAIL FROM:<ann@example.test>\r\n"
    assert play.say(b"250 ok\r\n") == b"RCPT TO:<a@x.net>\r\n"
    assert play.say(b"450 4.2.1 busy\r\n") == b"RCPT TO:<b@x.net>\r\n"
    assert play.say(b"250 ok\r\n") == b"DATA\r\n"
    play.say(b"354 go\r\n")
    play.engine.content_sent()
    assert play.engine.take_output() == b".\r\n"
    assert play.say(b"250 ok\r\n") == b"MAIL FROM:<ann@example.test>\r\n"
    assert one.replies[0].code == 450 and one.replies[1].code == 250
    assert play.say(b"250 ok\r\n") == b"RCPT TO:<c@x.net>\r\n"
    three = transaction(b"d@x.net")
    play.engine.begin(three)
    assert play.say(b"550 no\r\n") == b"RSET\r\n"  # MAIL was taken and nothing followed
    assert play.say(b"250 ok\r\n") == b"MAIL FROM:<ann@example.test>\r\n"
    assert play.say(b"550 5.7.1 go away\r\n") == b""
    assert three.replies == [Reply(550, 7, 1, "go away")] and play.engine.idle


def test_a_refused_mail_counts_for_every_recipient_whatever_rcpt_says():
    play = Play(*FULL)
    one = transaction(b"a@x.net", b"b@x.net")
    play.engine.begin(one)
    play.engine.take_output()
    play.say(b"452 4.3.1 full\r\n503 5.5.1 no MAIL\r\n503 5.5.1 no MAIL\r\n503 5.5.1 no RCPT\r\n")
    assert one.replies == [Reply(452, 3, 1, "full")] * 2 and one.refused_at == Wait.MAIL
    play.engine.begin(transaction())
    assert play.engine.take_output().startswith(b"MAIL")


def test_all_recipients_refused():
    play = Play(*FULL)
    one = transaction(b"a@x.net", b"b@x.net")
    play.engine.begin(one)
    play.engine.take_output()
    # A host that answers 354 all the same gets an empty message (RFC 2920 3.1), and its answer means nothing.
    assert play.say(b"250 ok\r\n550 a\r\n551 b\r\n354 go\r\n") == b".\r\n"
    play.say(b"250 thanks\r\n")
    assert [r.code for r in one.replies] == [550, 551]
    two = transaction(b"a@x.net")
    play.engine.begin(two)
    play.engine.take_output()
    play.say(b"250 ok\r\n550 a\r\n554 no valid recipients\r\n")
    assert [r.code for r in two.replies] == [550]
    play.engine.begin(transaction())
    assert play.engine.take_output().startswith(b"RSET\r\nMAIL")


@pytest.mark.parametrize("said", [b"421 4.3.2 bye\r\n", b"250 ok\r\n421 bye\r\n", b"250 ok\r\n250 ok\r\n421 bye\r\n"])
def test_421_before_the_content_decides_nothing(said):
    play = Play(*FULL)
    one, two = transaction(), transaction()
    play.engine.begin(one)
    play.engine.begin(two)
    play.engine.take_output()
    play.take()
    assert play.say(said) == b""
    assert play.events[-1].what == What.CLOSED and play.events[-1].reply.code == 421
    undecided = play.engine.unfinished()
    if one.stage == Stage.DONE:  # 421 to DATA
        assert one.replies == [None]
    else:
        assert one in undecided and one.replies == [None]
    assert two in undecided


def test_421_to_the_dot_is_an_answer():
    play = Play(*FULL)
    one, two = transaction(), transaction()
    play.engine.begin(one)
    play.say(b"250 ok\r\n250 ok\r\n354 go\r\n")
    play.engine.content_sent()
    play.engine.begin(two)
    play.engine.take_output()
    play.take()
    play.say(b"421 4.3.2 no\r\n")
    assert play.take() == [What.DONE, What.CLOSED] and one.replies == [Reply(421, 3, 2, "no")]
    assert play.engine.unfinished() == [two]


def test_the_peer_hangs_up_an_idle_session():
    play = Play(*FULL)
    play.take()
    play.say(b"421 4.4.2 timeout\r\n")
    assert play.take() == [What.CLOSED]


def test_starttls_forgets_what_was_said_in_the_clear():
    offer = b"250-mx\r\n250-STARTTLS\r\n250 DSN\r\n"
    play = Play(b"220 x\r\n", tls=True)
    assert play.say(offer) == b"STARTTLS\r\n"
    assert play.say(b"220 go\r\n250 injected\r\n250-x\r\n") == b""
    assert play.take() == [What.TLS]
    play.engine.tls_started()
    assert play.engine.take_output() == b"EHLO me.test\r\n"
    play.say(b"250-mx\r\n250-STARTTLS\r\n250 PIPELINING\r\n")
    assert play.take() == [What.READY] and play.engine.extensions.pipelining and not play.engine.extensions.dsn


def test_starttls_refused_goes_on_in_the_clear():
    play = Play(b"220 x\r\n", b"250-mx\r\n250 STARTTLS\r\n", b"454 not now\r\n", tls=True)
    assert play.take() == [What.READY]
    assert Play(b"220 x\r\n", b"250-mx\r\n250 STARTTLS\r\n").take() == [What.READY]


def test_dsn_parameters():
    recipients = [
        Recipient(b"a@x.net", notify=Notify.SUCCESS | Notify.FAILURE, orcpt=b"rfc822;a+2Bb@y.test"),
        Recipient(b"b@x.net", notify=Notify.NEVER),
        Recipient(b"c@x.net", orcpt=b"rfc822;x\r\nRCPT TO:<evil@x.net>"),
    ]
    play = Play(*FULL)
    play.engine.begin(transaction(*recipients, ret=2, envid=b"E1", body=1))
    assert play.engine.take_output() == (
        b"MAIL FROM:<ann@example.test> SIZE=100 BODY=8BITMIME RET=HDRS ENVID=E1\r\n"
        b"RCPT TO:<a@x.net> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;a+2Bb@y.test\r\n"
        b"RCPT TO:<b@x.net> NOTIFY=NEVER\r\nRCPT TO:<c@x.net>\r\nDATA\r\n")
    plain = Play(b"220 x\r\n", b"250-x\r\n250 PIPELINING\r\n")
    plain.engine.begin(transaction(*recipients, ret=2, envid=b"E1", body=1))
    assert plain.engine.take_output().startswith(b"MAIL FROM:<ann@example.test>\r\nRCPT TO:<a@x.net>\r\n")


def refused(replies, *args, **kwargs):
    play = Play(*replies)
    one = transaction(*args, **kwargs)
    play.engine.begin(one)
    return one.replies, play.engine.take_output()


def test_what_the_host_can_not_take_is_not_sent():
    assert refused(FULL, size=1001) == ([module.TOO_BIG], b"")
    assert refused(BARE, reverse_path="я@example.test".encode(), smtputf8=True) == ([module.NEEDS_UTF8], b"")
    assert refused(BARE, "я@x.net".encode(), smtputf8=True) == ([module.NEEDS_UTF8], b"")
    assert refused(FULL, body=2, binary=True) == ([module.NEEDS_BINARY], b"")
    replies, out = refused(BARE, "я@x.net".encode(), b"b@x.net", smtputf8=True)
    assert replies == [module.NEEDS_UTF8, None] and out == b"MAIL FROM:<ann@example.test>\r\n"
    _, out = refused(FULL, "я@x.net".encode(), smtputf8=True)
    assert out == "MAIL FROM:<ann@example.test> SIZE=100 SMTPUTF8\r\nRCPT TO:<я@x.net>\r\nDATA\r\n".encode()


def test_line_ends_in_an_address_never_reach_the_wire():
    assert refused(FULL, b"a@x.net>\r\nDATA\r\n") == ([module.BAD_RECIPIENT], b"")
    assert refused(FULL, reverse_path=b"a\nb@x") == ([module.BAD_SENDER], b"")


def test_the_one_that_can_not_be_sent_does_not_hold_up_the_next():
    play = Play(*FULL)
    one, two, three = transaction(), transaction(size=9999), transaction(b"c@x.net")
    for item in (one, two, three):
        play.engine.begin(item)
    play.say(b"250 ok\r\n250 ok\r\n354 go\r\n")
    play.engine.content_sent()
    assert b"c@x.net" in play.engine.take_output()
    assert two.replies == [module.TOO_BIG] and two.stage == Stage.DONE


@pytest.mark.parametrize("pipelining", [True, False])
def test_binary_content_goes_by_bdat(pipelining):
    offer = b"250-mx\r\n250-CHUNKING\r\n250 BINARYMIME\r\n"
    play = Play(b"220 x\r\n", offer.replace(b"\r\n", b"\r\n250-PIPELINING\r\n", 1) if pipelining else offer)
    engine = play.engine
    one, two, three = (transaction(b"a@x.net", b"b@x.net", size=n, body=2, binary=n < 3) for n in (1, 2, 3))
    for item in (one, two, three):
        engine.begin(item)
    play.take()
    # one of two recipients refused
    said = engine.take_output()
    said += play.say(b"250 ok\r\n") + play.say(b"550 no\r\n") + play.say(b"250 ok\r\n")
    assert said == (
        b"MAIL FROM:<ann@example.test> BODY=BINARYMIME\r\nRCPT TO:<a@x.net>\r\nRCPT TO:<b@x.net>\r\nBDAT 1 LAST\r\n")
    assert play.take() == [What.CONTENT]
    engine.content_sent()
    said = engine.take_output() + play.say(b"250 queued\r\n")
    assert play.take() == [What.DONE] and [r.code for r in one.replies] == [550, 250]
    # both refused: no content, and the next message starts afresh
    said += play.say(b"250 ok\r\n") + play.say(b"550 no\r\n") + play.say(b"550 no\r\n")
    assert b"BDAT" not in said and play.take() == [What.DONE] and said.count(b"RSET\r\n") == 1
    assert [r.code for r in two.replies] == [550, 550]
    # text in truth: by DATA
    said += play.say(b"250 reset\r\n") + play.say(b"250 ok\r\n") + play.say(b"250 ok\r\n") + play.say(b"250 ok\r\n")
    assert said.endswith(b"DATA\r\n") and said.count(b"BODY=BINARYMIME") == 1


def test_quit():
    play = Play(*FULL)
    play.engine.quit()
    play.engine.quit()
    assert play.engine.take_output() == b"QUIT\r\n"
    play.take()
    play.say(b"221 bye\r\n")
    assert play.events == [Event(What.CLOSED)]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([b"250 ok"], Reply(250, 0, 0, "ok")),
        ([b"550-5.1.1 no", b"550 5.1.1 such user"], Reply(550, 1, 1, "no such user")),
        ([b"550 4.1.1 mixed up"], Reply(550, 0, 0, "4.1.1 mixed up")),
        ([b"451"], Reply(451, 0, 0, "")),
        ([b"450 4.2.0"], Reply(450, 2, 0, "")),
        ([b"550 x\x00\x1b[2Jy\xff"], Reply(550, 0, 0, "x [2Jy\ufffd")),
        ([b"250 2.0.0.1 odd"], Reply(250, 0, 0, "2.0.0.1 odd")),
    ],
)
def test_parse_reply(lines, expected):
    assert parse_reply(lines) == expected


def test_parse_extensions_takes_anything():
    found = parse_extensions([b"250-x", b"250-", b"250-SIZE", b"250-SIZE x", b"250-LIMITS RCPTMAX=7 MAILMAX=20 X", b"250 \xff"])
    assert found == module.Extensions(size=0, rcpt_max=7, mail_max=20)
    assert parse_extensions([b"250-x", b"250 LIMITS RCPTMAX=99999999999999999 MAILMAX=-1"]).rcpt_max == 100


def test_random_replies_never_break_it():
    rng = random.Random(5321)
    words = [b"220 x\r\n", b"250 ok\r\n", b"250-", b"PIPELINING\r\n", b"354 go\r\n", b"421 x\r\n", b"550 no\r\n", b"\r\n", b"\n", b"2", b"STARTTLS\r\n", b"\xff"]
    for _ in range(5000):
        play = Play(tls=rng.random() < 0.3)
        began = [transaction(b"a@x.net", b"b@x.net") for _ in range(3)]
        for one in began:
            play.engine.begin(one)
        for _ in range(rng.randrange(25)):
            play.say(rng.choice(words))
            for event in play.events:
                if event.what == What.CONTENT and play.engine._current is event.transaction and event.transaction.stage == Stage.CONTENT:
                    play.engine.content_sent()
                elif event.what == What.TLS:
                    play.engine.tls_started()
            play.events.clear()
        unfinished = play.engine.unfinished()
        for one in began:
            assert (one.stage == Stage.DONE) != (one in unfinished)
