"""Profiles of peer domains at the door: who may say EHLO, and how large a message may be."""

from iems.directory.peers import Peer, Peers
from tests.transcripts.smtp_server import SmtpServer


def server(*profiles, **options):
    made = SmtpServer(options)
    made.handlers.directory.profiles = Peers(profiles)
    made.connect()
    return made


def mail(made, size, sender=b"a@b.c"):
    out = made.feed(b"MAIL FROM:<%b> SIZE=%d\r\nRSET\r\n" % (sender, size))
    return out[:9]


def test_not_accepted():
    made = server(Peer(domain="*.bad.test", accept=False), Peer(domain="fine.test"))
    for verb in (b"EHLO", b"HELO"):
        assert made.feed(verb + b" mx.Bad.test\r\n") == b"550 host mx.Bad.test is not authorized to connect\r\n"
    assert made.feed(b"MAIL FROM:<>\r\n").startswith(b"503")
    assert made.feed(b"EHLO bad.test\r\n").startswith(b"250-")  # the pattern stands for sub-domains
    assert made.counts["sessions_refused_total"] == 2
    assert server(Peer(domain="bad.test", accept=False), listener="submission").feed(b"EHLO bad.test\r\n").startswith(b"250")


def test_effect_at_once_and_while_the_directory_is_away():
    made = server()
    assert made.feed(b"EHLO bad.test\r\n").startswith(b"250-")
    made.handlers.directory.profiles = Peers([Peer(domain="bad.test", accept=False)])
    assert made.feed(b"EHLO bad.test\r\n").startswith(b"550 host")
    made.handlers.directory.away = True
    assert made.feed(b"EHLO bad.test\r\n").startswith(b"550 host")  # what was known last stands
    made.handlers.directory.away = False
    made.handlers.directory.profiles = Peers()
    assert made.feed(b"EHLO bad.test\r\n").startswith(b"250-")


def test_sizes():
    profiles = Peer(domain="big.test", max_in_octets=5000), Peer(domain="small.test", max_in_octets=10)
    made = server(*profiles, size_limit="1000")
    assert b"250-SIZE 5000\r\n" in made.feed(b"EHLO other.test\r\n")
    assert (mail(made, 1000), mail(made, 1001), mail(made, 5001)) == (b"250 2.1.0", b"552 5.3.4", b"552 5.3.4")
    assert (mail(made, 11, b"x@small.test"), mail(made, 5000, b"x@big.test")) == (b"552 5.3.4", b"250 2.1.0")
    assert b"250-SIZE 5000\r\n" in made.feed(b"EHLO small.test\r\n")
    assert (mail(made, 10), mail(made, 11)) == (b"250 2.1.0", b"552 5.3.4")
    # What is not announced is measured all the same.
    made.feed(b"MAIL FROM:<>\r\nRCPT TO:<john@mx.test>\r\nDATA\r\n")
    assert made.feed(b"0123456789\r\n.\r\n").startswith(b"552 5.3.4")
    assert b"250-SIZE 5000\r\n" in made.feed(b"EHLO big.test\r\n")
    assert mail(made, 5000) == b"250 2.1.0"
    made.feed(b"MAIL FROM:<>\r\nRCPT TO:<john@mx.test>\r\n")
    assert made.feed(b"BDAT 2000 LAST\r\n" + b"x" * 1998 + b"\r\n").startswith(b"250 2.0.0")


def test_no_limit_for_all_but_one():
    made = server(Peer(domain="small.test", max_in_octets=10), size_limit="0")
    assert b"250-SIZE 0\r\n" in made.feed(b"EHLO small.test\r\n")
    assert mail(made, 11) == b"552 5.3.4"
    made.feed(b"EHLO other.test\r\n")
    assert mail(made, 1 << 33) == b"250 2.1.0"
