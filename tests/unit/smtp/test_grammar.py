"""Arguments of MAIL, RCPT, EHLO and BDAT."""

import random

import pytest

from iems.model import Notify, Reply
from iems.smtp import grammar, replies
from iems.smtp.grammar import Mail, Path, Rcpt


def address(text, qualify=b"home.test"):
    read = grammar.rcpt(b"TO:" + text, qualify)
    return read if isinstance(read, Reply) else read.path.address


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (b"<a@b.c>", b"a@b.c"),
        (b" <a@b.c> ", b"a@b.c"),
        (b"\t<a.b+c=d@B.Example>", b"a.b+c=d@b.example"),
        (b"<A.b@C>", b"A.b@c"),
        (b"a@b.c", b"a@b.c"),
        (b"<@one.test,@two.test:a@b.c>", b"a@b.c"),
        (b"<postmaster>", b"postmaster@home.test"),
        (b"<joe>", b"joe@home.test"),
        (b'<"joe"@b>', b"joe@b"),
        (b'<"j\\oe"@b>', b"joe@b"),
        (b'<"a b"@c>', b'"a b"@c'),
        (b'<"a@b"@c>', b'"a@b"@c'),
        (b'<"a>b"@c>', b'"a>b"@c'),
        (b'<"a\\"b\\\\"@c>', b'"a\\"b\\\\"@c'),
        (b'<""@c>', b'""@c'),
        (b"<a@[127.0.0.1]>", b"a@[127.0.0.1]"),
        (b"<a@[IPv6:::1]>", b"a@[ipv6:::1]"),
        (b"<a@sub_domain.test>", b"a@sub_domain.test"),
        ("<jörg@Bücher.test>".encode(), "jörg@bücher.test".encode()),
        (b"<../../etc/passwd@b>", replies.BAD_RECIPIENT),
        (b"<$(x)@b>", replies.BAD_RECIPIENT),
        (b"<*)(uid=*@b>", replies.BAD_RECIPIENT),
        (b"<>", replies.BAD_RECIPIENT),
        (b"", replies.BAD_RECIPIENT),
        (b"<a@b", replies.BAD_RECIPIENT),
        (b"a@b>", replies.BAD_RECIPIENT),
        (b"<<a@b>>", replies.BAD_RECIPIENT),
        (b"<a@>", replies.BAD_RECIPIENT),
        (b"<@b>", replies.BAD_RECIPIENT),
        (b"<a b@c>", replies.BAD_RECIPIENT),
        (b"<.a@c>", replies.BAD_RECIPIENT),
        (b"<a..b@c>", replies.BAD_RECIPIENT),
        (b"<a.@c>", replies.BAD_RECIPIENT),
        (b"<a@-c>", replies.BAD_RECIPIENT),
        (b"<a@c.>", replies.BAD_RECIPIENT),
        (b"<a@[999.0.0.1]>", replies.BAD_RECIPIENT),
        (b"<a@[127.0.0.1>", replies.BAD_RECIPIENT),
        (b"<a@[IPv6:::1%eth0]>", replies.BAD_RECIPIENT),
        (b"<a@b>x", replies.BAD_RECIPIENT),
        (b"<a@b@c>", replies.BAD_RECIPIENT),
        (b'<"a@b>', replies.BAD_RECIPIENT),
        (b'<"a\x01"@b>', replies.BAD_RECIPIENT),
        (b"<a\xff@b>", replies.BAD_RECIPIENT),
        (b"<a@b\xc2\x85>", replies.BAD_RECIPIENT),
        (b"<\xe2\x80\xa8@b>", replies.BAD_RECIPIENT),
        (b"<@one.test:a@b", replies.BAD_RECIPIENT),
        (b"<@-one:a@b>", replies.BAD_RECIPIENT),
        (b"<" + b"a" * 257 + b"@b>", replies.BAD_RECIPIENT),
        (b"<a@" + b"b" * 64 + b">", replies.BAD_RECIPIENT),
        (b"<a@" + b".".join([b"b" * 50] * 6) + b">", replies.BAD_RECIPIENT),
        (b"<a@b> X=Y", replies.UNKNOWN_PARAMETER),
        (b"<a@b> =Y", replies.SYNTAX),
        (b"<a@b> NOTIFY", replies.BAD_PARAMETER),
        (b"<a@b> NOTIFY=", replies.SYNTAX),
        (b"<a@b> NOTIFY=NEVER NOTIFY=NEVER", replies.DUPLICATE_PARAMETER),
    ],
)
def test_recipient(text, want):
    assert address(text) == want


def test_without_a_domain_to_complete_with():
    assert address(b"<joe>", b"") == replies.UNQUALIFIED
    assert address(b"joe", b"") == replies.UNQUALIFIED


def test_mail():
    assert grammar.mail(b"FROM:<>") == Mail(Path(b"", b""))
    assert grammar.mail(b"from:<a@b> size=5 Body=BinaryMime ret=full envid=x+2By auth=<>") == Mail(
        Path(b"a@b", b"a@b"), 5, 2, False, 1, b"x+2By", b"<>"
    )
    assert grammar.mail("FROM:<ü@b> SMTPUTF8".encode()).path.utf8
    assert grammar.mail("FROM:<ü@b>".encode()) == replies.NEED_SMTPUTF8
    for bad in (
        b"SIZE=1e3",
        b"SIZE=" + b"9" * 21,
        b"BODY",
        b"SMTPUTF8=1",
        b"RET=x",
        b"ENVID=a+2",
        b"AUTH=a+zz",
    ):
        assert grammar.mail(b"FROM:<a@b> " + bad) == replies.BAD_PARAMETER, bad
    for bad in (b"", b"FROM", b"TO:<a@b>", b"FROM <a@b>", b"FROM:", b"FROM: ", b"FROM:< >"):
        assert grammar.mail(bad) == replies.BAD_SENDER, bad


def test_rcpt_parameters():
    read = grammar.rcpt(b"TO:<a@B> notify=success,failure,delay orcpt=rfc822;A+2Bb@c")
    assert read == Rcpt(
        Path(b"a@b", b"a@B"), Notify.SUCCESS | Notify.FAILURE | Notify.DELAY, b"rfc822;A+2Bb@c"
    )
    for bad in (
        b"ORCPT=rfc822",
        b"ORCPT=;x",
        b"ORCPT=rfc822;",
        b"ORCPT=rfc822;" + b"a" * 500,
        b"NOTIFY=NEVER,DELAY",
    ):
        assert grammar.rcpt(b"TO:<a@b> " + bad) == replies.BAD_PARAMETER, bad


def test_nothing_raises():
    """Dense random arguments: a value or a reply; an address holds no control, no bracket, one path only."""
    rng = random.Random(3)
    for _ in range(20_000):
        text = bytes(rng.choices(b'<>@.:",\\[] ab1=;+\x00\x7f\xc3\xa9-', k=rng.randrange(30)))
        for read in (grammar.mail(b"FROM:" + text, b"q"), grammar.rcpt(b"TO:" + text, b"q")):
            if isinstance(read, Reply):
                assert read.code >= 500
            else:
                got = read.path.address
                assert not any(octet < 32 or octet == 127 for octet in got)
                again = address(b"<" + got + b">") if got else b""
                assert again == got, (text, got)
        grammar.chunk(text)
        grammar.hello(text)
        grammar.unxtext(text)


def test_xtext():
    raw = bytes(range(256))
    assert grammar.unxtext(grammar.xtext(raw)) == raw
    assert grammar.unxtext(b"+0D+0A") == b"\r\n"
    assert grammar.unxtext(b"+0d") is None
    assert grammar.unxtext(b"a b") is None


def test_chunk():
    assert grammar.chunk(b"10") == (10, False)
    assert grammar.chunk(b"0 last") == (0, True)
    for bad in (b"", b"x", b"-1", b"+1", b"1 2", b"1 LAST LAST", b"9" * 19, b"1LAST", "١".encode()):
        assert grammar.chunk(bad) == replies.BAD_SIZE, bad


def test_hello():
    assert grammar.hello(b"[IPv6:::1]") == b"[IPv6:::1]"
    for bad in (b"", b"a b", b"a\tb", b"a" * 256, b"a\x7f"):
        assert grammar.hello(bad) == replies.BAD_HELLO


def test_literals():
    assert grammar.literal_address(b"[127.0.0.1]") == "127.0.0.1"
    assert grammar.literal_address(b"[ipv6:2001:DB8::1]") == "2001:db8::1"
    assert grammar.literal_address(b"[127.1]") is None
    assert grammar.literal_address(b"[::1]") is None
    assert grammar.address_literal("::1") == b"[IPv6:::1]"


@pytest.mark.parametrize(
    ("argument", "node"),
    [
        (b"Branch.Example", "branch.example"),
        (b"@branch.example.", "@branch.example"),
        (b"#127.0.0.1:2525", "#127.0.0.1:2525"),
        (b"#[::1]:25", "#[::1]:25"),
        (b"", None),
        (b"a b", None),
        (b"@", None),
        (b"#", None),
        (b"a..b", None),
        (b"\xc3\xbc.example", None),
        (b"a" * 64, None),
        (b"a." * 128 + b"a", None),
    ],
)
def test_etrn_node(argument, node):
    found = grammar.etrn_node(argument)
    assert found == (node or replies.SYNTAX)
