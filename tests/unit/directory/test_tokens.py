"""Tokens: whom they are for, and all the reasons to turn one down."""

import asyncio
import base64
import hmac
import json
import os
import time

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from iems.config import Auth
from iems.directory import Authenticator, Directory
from iems.directory.login import settle
from iems.directory.tokens import Tokens
from iems.sasl import WRONG, Challenge, Offer, Refused, begin

ISSUER, AUDIENCE = "https://login.example.test", "mail"
KEY = ECKey.generate_key("P-256", {"kid": "one", "use": "sig"})


def token(key=KEY, alg="ES256", header=None, **claims):
    body = {"iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 300, "email": "john@example.test"} | claims
    body = {name: value for name, value in body.items() if value is not None}
    return jwt.encode({"alg": alg, "kid": "one"} | (header or {}), body, key, algorithms=[alg])


def write(path, *keys):
    path.write_text(json.dumps({"keys": [key.as_dict(private=False) for key in keys]}))


@pytest.fixture
def tokens(tmp_path):
    write(tmp_path / "jwks.json", KEY)
    return Tokens(tmp_path / "jwks.json", issuer=ISSUER, audience=AUDIENCE)


def unsigned(alg):
    parts = ({"alg": alg, "kid": "one"}, {"iss": ISSUER, "aud": AUDIENCE, "exp": 1 << 40, "email": "john@example.test"})
    text = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts)
    signature = hmac.digest(KEY.as_pem(private=False), text, "sha256") if alg == "HS256" else b""
    return (text + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def test_good(tokens):
    assert tokens.user(token()) == "john@example.test"
    assert tokens.user(token(aud=["web", "mail"])) == "john@example.test"


@pytest.mark.parametrize(
    "make",
    [
        lambda: token(exp=int(time.time()) - 3600),
        lambda: token(exp=None),
        lambda: token(nbf=int(time.time()) + 3600),
        lambda: token(iss="https://other.test"),
        lambda: token(iss=None),
        lambda: token(aud="other"),
        lambda: token(aud=None),
        lambda: token(email=None),
        lambda: token(email=["john@example.test"]),
        lambda: token(email_verified=False),
        lambda: token(ECKey.generate_key("P-256", {"kid": "one"})),
        lambda: token(header={"kid": "two"}),
        # The public key as if it were a secret of HMAC, and no signature at all.
        lambda: unsigned("HS256"),
        lambda: unsigned("none"),
        lambda: token()[:-4] + "AAAA",
        lambda: "",
        lambda: "a.b.c",
        lambda: "a" * 9000,
        lambda: ".." * 4000,
    ],
)
def test_turned_down(tokens, make):
    assert tokens.user(make()) == ""


def test_scope_and_claim(tmp_path):
    write(tmp_path / "jwks.json", KEY)
    strict = Tokens(tmp_path / "jwks.json", issuer=ISSUER, audience=AUDIENCE, claim="sub", scope="mail")
    assert strict.user(token(sub="john", scope="openid mail")) == "john"
    assert strict.user(token(sub="john", scope="openid")) == ""
    assert strict.user(token(sub="john")) == ""


def test_keys_are_taken_up_when_the_file_changes(tmp_path):
    path = tmp_path / "jwks.json"
    faults = []
    tokens = Tokens(path, issuer=ISSUER, audience=AUDIENCE, error=lambda text, fault: faults.append(text))
    assert tokens.user(token()) == "" and faults
    fresh = RSAKey.generate_key(2048, {"kid": "two"})
    write(path, KEY, fresh, OctKey.generate_key(256))
    assert tokens.user(token()) == "john@example.test"
    assert tokens.user(token(fresh, "RS256", {"kid": "two"})) == "john@example.test"
    faults.clear()
    path.write_text("{")
    os.utime(path, (1, 1))
    assert tokens.user(token()) == "john@example.test" and len(faults) == 1
    assert tokens.user(token()) == "john@example.test" and len(faults) == 1
    write(path, fresh)
    assert tokens.user(token()) == ""


def test_all_three_settings_are_needed(tmp_path):
    def made(**more):
        return Tokens.of(Auth(**more), tmp_path, lambda text, fault: None)

    assert made() is None and made(oauth_jwks="x", oauth_issuer="y") is None
    assert made(oauth_jwks="x", oauth_issuer="y", oauth_audience="z") is not None


def test_a_login(tmp_path, tokens):
    directory = Directory(tmp_path / "directory", create=True)
    directory.add_domain("example.test")
    directory.create_account("john@example.test", "pw")
    directory.create_account("mary@example.test", "pw")
    offer = Offer(tokens=True, scope="mail")

    async def login(message, name=b"OAUTHBEARER"):
        exchange = begin(name, offer)
        outcome = await settle(auth, exchange, exchange.start(message), "")
        if isinstance(outcome, Challenge):
            assert json.loads(outcome.octets)["scope"] == "mail"
            outcome = await settle(auth, exchange, exchange.step(b"\x01"), "")
        return outcome

    async def main():
        nonlocal auth
        auth = Authenticator(directory, offer=offer, tokens=tokens)
        good = token().encode()
        bearer = b"\x01auth=Bearer " + good + b"\x01\x01"
        assert (await login(b"n,," + bearer)).number == 1
        assert (await login(b"n,a=JOHN@example.test," + bearer)).number == 1
        assert (await login(b"user=john@example.test" + bearer, b"XOAUTH2")).number == 1
        # John's token is no key to Mary's mail, and a good token of a stranger is none to any.
        assert await login(b"n,a=mary@example.test," + bearer) == Refused(WRONG)
        assert await login(b"user=mary@example.test" + bearer, b"XOAUTH2") == Refused(WRONG)
        strange = token(email="x@example.test").encode()
        assert await login(b"n,,\x01auth=Bearer " + strange + b"\x01\x01") == Refused(WRONG)
        directory.set_enabled("john@example.test", False)
        assert await login(b"n,," + bearer) == Refused(WRONG)
        auth.close()

    auth = None
    asyncio.run(main())
    directory.close()
