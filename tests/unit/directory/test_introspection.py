"""Opaque tokens: what is asked, what counts as a yes, and what is no answer."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest

from iems.config import Auth, ConfigError, parse
from iems.directory import Authenticator, Directory
from iems.directory.introspection import Introspection
from iems.directory.login import settle
from iems.directory.tokens import is_jwt
from iems.errors import DirectoryUnavailable
from iems.net import breaker
from iems.sasl import WRONG, Challenge, Offer, Refused, begin
from tests.support.introspection import Endpoint

JOHN = {"email": "john@example.test", "iss": "https://login.test", "aud": ["web", "mail"], "scope": "openid mail"}


@pytest.fixture
def endpoint():
    with Endpoint({"good": JOHN}) as server:
        yield server


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


def of(endpoint, tmp_path, clock=None, told=lambda is_open, reason: None, **settings):
    (tmp_path / "secret").write_text("s:e cret\n")
    (tmp_path / "secret").chmod(0o600)
    given = {"oauth_client_id": "mail server", "oauth_client_secret_file": "secret", "oauth_introspection": endpoint.url, "oauth_timeout_s": 5.0}
    return Introspection(Auth(**(given | settings)), tmp_path, told, clock or Clock())


def users(introspection, *tokens):
    """What is said of tokens, one after the other; an exception in its place."""

    async def main():
        found = []
        for token in tokens:
            try:
                found.append(await introspection.user(token))
            except DirectoryUnavailable as error:
                found.append(error)
        introspection.close()
        return found

    return asyncio.run(asyncio.wait_for(main(), 60))


def test_asked_once_and_with_our_name(endpoint, tmp_path):
    assert users(of(endpoint, tmp_path), "good", "bad/+=", "good", "bad/+=") == ["john@example.test", "", "john@example.test", ""]
    assert [token for _, token in endpoint.asked] == ["good", "bad/+="]
    scheme, coded = endpoint.asked[0][0].split()
    assert scheme == "Basic" and base64.b64decode(coded) == b"mail+server:s%3Ae+cret"
    assert users(of(endpoint, tmp_path, oauth_client_id="", oauth_client_secret_file=""), "good") == ["john@example.test"]
    assert endpoint.asked[-1][0] is None


def test_memory_ends_with_the_setting_and_with_the_token(endpoint, tmp_path):
    clock = Clock()
    endpoint.tokens["short"] = JOHN | {"exp": int(clock.now) + 20}
    introspection = of(endpoint, tmp_path, clock, oauth_cache_s=60.0)

    async def main():
        found = []
        for moment in (0, 19, 21, 59, 61):
            clock.now = Clock.now + moment
            found.append((await introspection.user("good"), await introspection.user("short"), len(endpoint.asked)))
        return found

    good = "john@example.test"
    assert asyncio.run(main()) == [(good, good, 2), (good, good, 2), (good, "", 3), (good, "", 3), (good, "", 4)]
    assert users(of(endpoint, tmp_path, oauth_cache_s=0.0), "good", "good") == [good, good] and len(endpoint.asked) == 6


def test_the_same_token_is_asked_about_once_at_a_time(endpoint, tmp_path):
    endpoint.delay_s = 0.1
    introspection = of(endpoint, tmp_path)

    async def main():
        return await asyncio.gather(*(introspection.user("good") for _ in range(30)))

    assert set(asyncio.run(main())) == {"john@example.test"} and len(endpoint.asked) == 1


@pytest.mark.parametrize(
    ("claims", "settings"),
    [
        (JOHN | {"active": False}, {}),
        (JOHN | {"exp": 999_999}, {}),
        (JOHN | {"exp": "never"}, {}),
        (JOHN | {"exp": True}, {}),
        (JOHN | {"nbf": 1_000_100}, {}),
        ({"sub": "john"}, {}),
        (JOHN | {"email": ["john@example.test"]}, {}),
        (JOHN | {"email_verified": False}, {}),
        (JOHN | {"iss": "https://other.test"}, {"oauth_issuer": "https://login.test"}),
        ({"email": "john@example.test"}, {"oauth_issuer": "https://login.test"}),
        (JOHN | {"aud": "web"}, {"oauth_audience": "mail"}),
        ({"email": "john@example.test"}, {"oauth_audience": "mail"}),
        (JOHN | {"scope": "openid"}, {"oauth_scope": "mail"}),
        (JOHN | {"scope": ["mail"]}, {"oauth_scope": "mail"}),
    ],
)
def test_not_good(endpoint, tmp_path, claims, settings):
    endpoint.body = json.dumps({"active": True} | claims).encode()
    assert users(of(endpoint, tmp_path, **settings), "t") == [""]


def test_good(endpoint, tmp_path):
    strict = of(endpoint, tmp_path, oauth_issuer="https://login.test", oauth_audience="mail", oauth_scope="mail")
    assert users(strict, "good") == ["john@example.test"]
    endpoint.tokens["u"] = {"username": "john"}
    assert users(of(endpoint, tmp_path, oauth_claim="username"), "u") == ["john"]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, b'{"active": true, "email": "john@example.test"}'), (500, b"{}"), (302, b"{}"), (200, b""), (200, b"no json"), (200, b"[]"), (200, b"{}"),
        (200, b'{"active": "true"}'), (200, b'{"active": 1}'), (200, b"[" * 5000), (200, b" " * 400_000), (200, b"\xff\xfe"),
    ],
)  # fmt: skip
def test_no_answer(endpoint, tmp_path, status, body):
    """No login, and no refusal: the client may try later. What is not kept is asked again."""
    endpoint.status, endpoint.body = status, body
    introspection = of(endpoint, tmp_path)
    [found] = users(introspection, "good")
    assert isinstance(found, DirectoryUnavailable) and "good" not in str(found) and "cret" not in str(found)
    endpoint.status, endpoint.body = 200, None
    assert users(introspection, "good") == ["john@example.test"]


def test_slow_absent_and_no_secret(endpoint, tmp_path):
    endpoint.delay_s = 0.5
    [found] = users(of(endpoint, tmp_path, oauth_timeout_s=0.1), "good")
    assert isinstance(found, DirectoryUnavailable)
    endpoint.delay_s = 0
    introspection = of(endpoint, tmp_path)
    (tmp_path / "secret").chmod(0o644)
    [found] = users(introspection, "good")
    assert isinstance(found, DirectoryUnavailable) and "chmod 600" in str(found)


def test_a_server_that_is_away_is_left_alone(endpoint, tmp_path):
    told = []
    endpoint.status = 503
    introspection = of(endpoint, tmp_path, told=lambda *what: told.append(what))
    found = users(introspection, *(f"t{number}" for number in range(breaker.FAILURES + 5)))
    assert all(isinstance(each, DirectoryUnavailable) for each in found)
    assert len(endpoint.asked) == breaker.FAILURES and told == [(True, "the server answers 503")]


def test_settings():
    for url in ("http://login.test/i", "ftp://x/", "https://", "https://u:p@x/", "https://x/\x7f"):
        with pytest.raises(ConfigError):
            parse(f"[auth]\noauth_introspection = {json.dumps(url)}\n".encode(), "f")
    parse(b'[auth]\noauth_introspection = "http://127.0.0.1:8080/i"\n', "f")
    with pytest.raises(ConfigError, match="oauth_client_id"):
        parse(b'[auth]\noauth_client_secret_file = "s"\n', "f")


def test_what_looks_like_a_jwt():
    head = base64.urlsafe_b64encode(b'{"alg":"ES256"}').rstrip(b"=").decode()
    assert is_jwt(f"{head}.x.y") and not is_jwt(f"{head}.x") and not is_jwt("a.b.c") and not is_jwt("opaque") and not is_jwt(f".{head}.x")


def test_a_login(endpoint, tmp_path):
    directory = Directory(tmp_path / "directory", create=True)
    directory.add_domain("example.test")
    directory.create_account("john@example.test", "pw")
    offer = Offer(tokens=True)

    async def login(auth, message):
        exchange = begin(b"OAUTHBEARER", offer)
        outcome = await settle(auth, exchange, exchange.start(message), "")
        return await settle(auth, exchange, exchange.step(b"\x01"), "") if isinstance(outcome, Challenge) else outcome

    async def main():
        auth = Authenticator(directory, offer=offer, introspection=of(endpoint, tmp_path))
        assert (await login(auth, b"n,,\x01auth=Bearer good\x01\x01")).number == 1
        assert await login(auth, b"n,a=mary@example.test,\x01auth=Bearer good\x01\x01") == Refused(WRONG)
        assert await login(auth, b"n,,\x01auth=Bearer bad\x01\x01") == Refused(WRONG)
        endpoint.status = 500
        with pytest.raises(DirectoryUnavailable):
            await login(auth, b"n,,\x01auth=Bearer new\x01\x01")
        auth.close()

    asyncio.run(main())
    directory.close()
