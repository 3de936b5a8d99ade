"""The mechanisms against the examples of their RFCs, and against clients that mean harm (beyond.md 3.22)."""

import base64
import hashlib
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.sasl import (
    MALFORMED,
    WRONG,
    Challenge,
    Keys,
    Lookup,
    Offer,
    Password,
    Proven,
    Refused,
    Token,
    begin,
    decode,
    first,
)
from iems.sasl.cram import CramMd5, make_key
from iems.sasl.oauth import OAuth
from iems.sasl.prep import saslprep
from iems.sasl.scram import Scram, made_up, make_keys
from tests.support.scram import Client

ALL = Offer("mx.test", scram=True, cram_md5=True, tokens=True)
BINDINGS = {b"tls-server-end-point": b"certificate"}


def test_scram_as_in_rfc7677():
    exchange = Scram(nonce=b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0")
    assert exchange.start(None) == Challenge(b"")
    assert exchange.step(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO") == Lookup("user", "SCRAM-SHA-256")
    keys = make_keys("pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
    assert exchange.found(keys) == Challenge(
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    )
    assert exchange.step(
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
        b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    ) == Challenge(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
    assert exchange.step(b"") == Proven("user")


def test_cram_as_in_rfc2195():
    exchange = CramMd5("x", b"<1896.697170952@postoffice.reston.mci.net>")
    assert exchange.start(None) == Challenge(b"<1896.697170952@postoffice.reston.mci.net>")
    assert exchange.step(b"tim b913a602c7eda7a495b4e6e7334d3890") == Lookup("tim", "CRAM-MD5")
    assert exchange.found(make_key("tanstaaftanstaaf")) == Proven("tim")
    assert exchange.found(make_key("other")) == Refused(WRONG)
    assert exchange.found(Keys(b"tanstaaftanstaaf", known=False)) == Refused(WRONG)
    long = "p" * 100
    digest = hmac.new(long.encode(), b"c", "md5").hexdigest().encode()
    exchange = CramMd5("x", b"c")
    exchange.step(b"a b " + digest.upper())
    assert exchange.found(make_key(long)) == Proven("a b")


@pytest.mark.parametrize("message", [b"", b"tim", b"tim short", b"\xff " + b"0" * 32, b"a\0b " + b"0" * 32])
def test_cram_refuses(message):
    exchange = CramMd5("x")
    assert exchange.start(b"") == Refused(MALFORMED)
    assert exchange.step(message) == Refused(MALFORMED)
    assert CramMd5("x").step(b" " + b"0" * 32) == Refused(WRONG)
    assert CramMd5("x")._challenge != exchange._challenge


def test_oauthbearer_as_in_rfc7628():
    exchange = OAuth(
        bearer=True, scope="mail", configuration="https://example.test/.well-known/openid-configuration"
    )
    assert exchange.start(
        b"n,a=user@example.com,\x01host=server.example.com\x01port=143\x01"
        b"auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\x01\x01"
    ) == Token("user@example.com", "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==")
    assert exchange.token(False) == Challenge(
        b'{"status":"invalid_token","scope":"mail",'
        b'"openid-configuration":"https://example.test/.well-known/openid-configuration"}'
    )
    assert exchange.step(b"\x01") == Refused(WRONG)
    assert exchange.step(b"n,,\x01auth=Bearer good\x01\x01") == Refused(WRONG)


def test_oauth_forms():
    exchange = OAuth(bearer=True)
    assert exchange.start(b"n,,\x01auth=bearer abc\x01\x01") == Token("", "abc")
    assert exchange.step(b"n,,\x01auth=bearer other\x01\x01") == Refused(MALFORMED)
    exchange = OAuth(bearer=False, scope="mail")
    assert exchange.start(b"user=a@b\x01auth=Bearer abc\x01\x01") == Token("a@b", "abc")
    assert exchange.token(True) == Proven("a@b")
    assert exchange.token(False) == Challenge(b'{"status":"401","schemes":"bearer","scope":"mail"}')
    # The question what would be needed.
    assert isinstance(OAuth(bearer=True).start(b"n,,\x01auth=\x01\x01"), Challenge)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"n,,",
        b"n,,\x01\x01",
        b"p=tls-exporter,,\x01auth=Bearer a\x01\x01",
        b"n,,\x01auth=Bearer a\x01",
        b"n,,\x01auth=Bearer a\x01auth=Bearer b\x01\x01",
        b"n,b=c,\x01auth=Bearer a\x01\x01",
        b"user=a\x01auth=Bearer a\x01\x01",
        b"n,a=\xff,\x01auth=Bearer a\x01\x01",
        b"n,a=x\0y,\x01auth=Bearer a\x01\x01",
        b"n,,\x01auth=Bearer a\x01\x01" + b"x" * 10_000,
    ],
)
def test_oauth_refuses(message):
    assert OAuth(bearer=True).start(message) == Refused(MALFORMED)


def test_plain_and_login():
    plain = begin(b"PLAIN", ALL)
    assert plain.start(None) == Challenge(b"")
    assert plain.step(b"\0tim\0tanstaaf") == Password("tim", "tanstaaf")
    assert begin(b"PLAIN", ALL).start(b"TIM\0tim\0pw") == Password("tim", "pw")
    for message, why in (
        (b"", MALFORMED),
        (b"a\0b", MALFORMED),
        (b"\0a\0b\0c", MALFORMED),
        (b"\0\xff\0\xff", MALFORMED),
        (b"\0a\0" + b"p" * 10_000, MALFORMED),
        (b"mary\0john\0pw", WRONG),
        (b"\0\0pw", WRONG),
        (b"\0john\0", WRONG),
    ):
        assert begin(b"PLAIN", ALL).start(message) == Refused(why)
    login = begin(b"LOGIN", ALL)
    assert login.start(None) == Challenge(b"Username:")
    assert login.step(b"john") == Challenge(b"Password:")
    assert login.step(b"pw") == Password("john", "pw")
    assert begin(b"LOGIN", ALL).start(b"a\0b") == Refused(MALFORMED)
    assert begin(b"LOGIN", ALL).start(b"") == Refused(WRONG)


def exchange_of(client, exchange, keys):
    """Play a client against an exchange up to its end."""
    outcome = exchange.start(client.first())
    while True:
        if isinstance(outcome, Lookup):
            outcome = exchange.found(keys)
        elif isinstance(outcome, Challenge):
            outcome = exchange.step(client.answer(outcome.octets))
        else:
            return outcome


def test_scram_with_channel_binding():
    keys = make_keys("pw", b"salt", 4096)
    plus = begin(b"SCRAM-SHA-256-PLUS", ALL, BINDINGS)
    right = Client("john", "pw", b"tls-server-end-point", b"certificate")
    assert exchange_of(right, plus, keys) == Proven("john")
    assert right.server_proven
    # Another certificate in between; a type we don't have; no binding at all; -PLUS taken off the list.
    for client, mechanism in (
        (Client("john", "pw", b"tls-server-end-point", b"another"), b"SCRAM-SHA-256-PLUS"),
        (Client("john", "pw", b"tls-exporter", b"certificate"), b"SCRAM-SHA-256-PLUS"),
        (Client("john", "pw"), b"SCRAM-SHA-256-PLUS"),
        (Client("john", "pw", flag=b"y"), b"SCRAM-SHA-256"),
        (Client("john", "pw", b"tls-server-end-point", b"certificate"), b"SCRAM-SHA-256"),
    ):
        assert exchange_of(client, begin(mechanism, ALL, BINDINGS), keys) == Refused(WRONG)
    assert exchange_of(Client("john", "pw"), begin(b"SCRAM-SHA-256", ALL, BINDINGS), keys) == Proven("john")
    assert exchange_of(Client("john", "pw", flag=b"y"), begin(b"SCRAM-SHA-256", ALL), keys) == Proven("john")


def test_scram_wrong_password_unknown_user_and_another_identity():
    keys = make_keys("pw", b"salt", 4096)
    assert exchange_of(Client("john", "no"), begin(b"SCRAM-SHA-256", ALL), keys) == Refused(WRONG)
    unknown = Keys(keys.stored, keys.salt, keys.iterations, keys.server, known=False)
    assert exchange_of(Client("john", "pw"), begin(b"SCRAM-SHA-256", ALL), unknown) == Refused(WRONG)
    assert exchange_of(Client("john", "pw", authzid="mary"), begin(b"SCRAM-SHA-256", ALL), keys) == Refused(
        WRONG
    )
    assert exchange_of(Client("john", "pw", authzid="JOHN"), begin(b"SCRAM-SHA-256", ALL), keys) == Proven(
        "john"
    )
    assert exchange_of(Client("a=b,c", "pw"), begin(b"SCRAM-SHA-256", ALL), keys) == Proven("a=b,c")


def test_made_up_keys_look_like_real_ones():
    one, again, other = (made_up(b"secret", name, 4096) for name in ("a", "a", "b"))
    assert one.salt == again.salt != other.salt
    assert len(one.salt) == 16 and not one.known
    assert made_up(b"another home", "a", 4096).salt != one.salt


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"n",
        b"n,,",
        b"n,,n=,r=",
        b"x,,n=a,r=b",
        b"n,,m=ext,n=a,r=b",
        b"n,,n=a=b,r=c",
        b"n,,n=a=2c,r=c",
        b"n,,n=\xff,r=c",
        b"n,,n=a\0b,r=c",
        b"n,,n=a,r=\x01",
        b"n,,n=a,r=" + b"x" * 2000,
        b"n,,n=a,r=b" * 2000,
        b"n,x=y,n=a,r=b",
    ],
)
def test_scram_refuses_first(message):
    assert Scram().start(message) == Refused(MALFORMED)


@pytest.mark.parametrize(
    ("final", "why"),
    [
        (b"", MALFORMED),
        (b"c=biws,r=cs", MALFORMED),
        (b"c=biws,r=cs,p=!!", MALFORMED),
        (b"c=b,r=cs,p=AAAA", MALFORMED),
        (b"c=biws,r=cs,p=AAAA", MALFORMED),
        (b"c=biws,r=cs,p=" + base64.b64encode(bytes(33)), MALFORMED),
        (b"c=biws,r=cs,p=" + base64.b64encode(bytes(32)), WRONG),
        (b"c=biws,r=cs,p=" + b"A" * 10_000, MALFORMED),
        (b"n,,n=a,r=b", MALFORMED),
    ],
)
def test_scram_refuses_final(final, why):
    exchange = Scram(nonce=b"s")
    exchange.start(b"n,,n=a,r=c")
    exchange.found(make_keys("pw", b"salt", 4096))
    assert exchange.step(final) == Refused(why)


def test_scram_proof_of_another_nonce_or_header_is_no_proof():
    """The proof fits what was signed, but that is not this exchange."""
    for tamper in (lambda text: text.replace(b"r=c", b"r=d"), lambda text: text.replace(b"biws", b"eSws")):
        keys = make_keys("pw", b"salt", 4096)
        exchange = Scram(nonce=b"s")
        exchange.start(b"n,,n=a,r=c")
        server_first = exchange.found(keys).octets
        without = tamper(b"c=biws,r=cs")
        salted = hashlib.pbkdf2_hmac("sha256", b"pw", b"salt", 4096)
        client = hmac.digest(salted, b"Client Key", "sha256")
        signature = hmac.digest(keys.stored, b"n=a,r=c," + server_first + b"," + without, "sha256")
        proof = base64.b64encode(bytes(a ^ b for a, b in zip(client, signature, strict=True)))
        assert exchange.step(without + b",p=" + proof) == Refused(WRONG)


def test_an_end_is_an_end():
    keys = make_keys("pw", b"salt", 4096)
    exchange = begin(b"SCRAM-SHA-256", ALL)
    assert exchange_of(Client("john", "pw"), exchange, keys) == Proven("john")
    exchange = begin(b"SCRAM-SHA-256", ALL)
    client = Client("john", "pw")
    exchange.start(client.first())
    exchange.step(client.answer(exchange.found(keys).octets))
    assert exchange.step(b"more") == Refused(MALFORMED)
    assert begin(b"PLAIN", ALL).found(keys) == Refused(MALFORMED)
    assert begin(b"PLAIN", ALL).token(True) == Refused(MALFORMED)


def test_offers():
    assert Offer().names() == (b"PLAIN", b"LOGIN")
    assert ALL.names(BINDINGS) == (
        b"PLAIN", b"LOGIN", b"SCRAM-SHA-256", b"SCRAM-SHA-256-PLUS", b"CRAM-MD5", b"OAUTHBEARER", b"XOAUTH2",
    )  # fmt: skip
    for name in (b"SCRAM-SHA-256", b"CRAM-MD5", b"OAUTHBEARER", b"XOAUTH2", b"NTLM", b""):
        assert begin(name, Offer(), BINDINGS) is None
    assert begin(b"SCRAM-SHA-256-PLUS", ALL) is None


def test_lines():
    assert decode(b"YWI=") == b"ab"
    assert decode(b"") == b""
    for line in (b"!!!!", b"YWI", b"YW I=", b"YWI=\r", b"YWI=YWI=", b"\xff", b"A" * 1_000_000):
        assert decode(line) is None
    assert first(begin(b"PLAIN", ALL), b"=") == Refused(MALFORMED)
    assert first(begin(b"PLAIN", ALL), b"!") == Refused(MALFORMED)
    assert first(begin(b"PLAIN", ALL), b"AHRpbQBwdw==") == Password("tim", "pw")
    assert first(begin(b"PLAIN", ALL), None) == Challenge(b"")


def test_saslprep_as_in_rfc4013():
    assert saslprep("I\u00adX") == "IX"
    assert saslprep("user") == "user"
    assert saslprep("USER") == "USER"
    assert saslprep("\u00aa") == "a"
    assert saslprep("\u2168") == "IX"
    assert saslprep("a\u00a0b") == "a b"
    for text in ("\u0007", "\u06271", "\u0627a\u0627"):
        with pytest.raises(ValueError):
            saslprep(text)
    assert make_keys("\u2168", b"s", 4096) == make_keys("IX", b"s", 4096)
    assert make_keys("\u0007", b"s", 4096).stored


MECHANISMS = [
    b"PLAIN",
    b"LOGIN",
    b"SCRAM-SHA-256",
    b"SCRAM-SHA-256-PLUS",
    b"CRAM-MD5",
    b"OAUTHBEARER",
    b"XOAUTH2",
]
PIECES = st.lists(
    st.sampled_from(
        [
            b"n,,",
            b"y,,",
            b"p=tls-server-end-point,,",
            b"n=a",
            b"r=b",
            b",",
            b"=",
            b"\x00",
            b"\x01",
            b"auth=Bearer x",
            b"user=a",
            b"c=biws",
            b"p=AAAA",
            b"john",
            b"\xff",
            b"%" * 40,
        ]
    ),
    max_size=8,
).map(b"".join)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(MECHANISMS), st.lists(PIECES | st.binary(max_size=60), min_size=1, max_size=4))
def test_whatever_a_client_sends_proves_nothing(name, messages):
    """No exception, and no identity without the key; a password or token is only ever a question."""
    exchange = begin(name, ALL, BINDINGS)
    outcome = exchange.start(messages[0])
    for message in [*messages[1:], b""]:
        if isinstance(outcome, Lookup):
            outcome = exchange.found(made_up(b"secret", outcome.login, 4096))
        elif isinstance(outcome, Token):
            outcome = exchange.token(False)
        if not isinstance(outcome, Challenge):
            break
        outcome = exchange.step(message)
    assert not isinstance(outcome, Proven)
