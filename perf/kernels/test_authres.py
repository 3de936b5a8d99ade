"""SPF, DKIM and DMARC of one message with a warm cache, and signatures of ours, beside dkimpy."""

from __future__ import annotations

import asyncio
import random

import dkim as dkimpy
import pytest

from iems.authres import outcome, sign
from iems.authres.mail import Mail
from iems.net.resolver import Answer, Resolver

KEYS = {"rsa": sign.new_key("rsa"), "ed25519": sign.new_key("ed25519")}
RNG = random.Random(6376)
WORDS = [bytes(RNG.choices(b"abcdefghijklmnop", k=RNG.randrange(2, 9))) for _ in range(700)]
BODY = b"\r\n".join(b" ".join(WORDS[at : at + 11]) for at in range(0, 700, 11)) + b"\r\n"
HEAD = b"".join(
    b"Received: from mx%d.example.net (mx%d.example.net [192.0.2.%d])\r\n\tby mx.d.example with ESMTP id abc%d;\r\n\t"
    b"Mon, 1 Jan 2026 00:00:00 +0000\r\n" % (n, n, n, n) for n in range(3)
) + (
    b"From: A <a@d.example>\r\nTo: b@e.example\r\nSubject: hello there\r\nDate: Mon, 1 Jan 2026 00:00:00 +0000\r\n"
    b"Message-ID: <x@d.example>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
)  # fmt: skip
MESSAGE = HEAD + BODY[:3500] + b"\r\n"
NOW = 1_700_000_000
RECORDS = {
    "d.example": b"v=spf1 ip4:198.51.100.0/24 include:_spf.d.example ~all",
    "_spf.d.example": b"v=spf1 ip4:203.0.113.0/24 ip4:192.0.2.0/24 -all",
    "_dmarc.d.example": b"v=DMARC1; p=reject; rua=mailto:x@d.example",
    **{f"{name}._domainkey.d.example": sign.record(key).encode() for name, key in KEYS.items()},
}


@pytest.fixture(scope="module")
def loop():
    made = asyncio.new_event_loop()
    yield made
    made.close()


def signer(name):
    return sign.Signer("d.example", name, KEYS[name])


@pytest.mark.parametrize("name", KEYS)
def test_check(benchmark, loop, name):
    resolver = Resolver([("127.0.0.1", 1)])
    for at, text in RECORDS.items():
        resolver._keep((at, "TXT"), loop.time() + 1e6, Answer((text,), True, at, 1e6))
    octets = loop.run_until_complete(signer(name).sign(Mail.of(MESSAGE), NOW)) + MESSAGE

    async def check():
        return await outcome.evaluate(
            resolver, Mail.of(octets), ip="192.0.2.7", helo="mx", mail_from="a@d.example", receiver="mx", now_s=NOW + 1
        )

    found = benchmark(lambda: loop.run_until_complete(check()))
    assert (found.spf.result, found.dkim[0].result, found.dmarc.result) == ("pass", "pass", "pass") and resolver.queries == 0


@pytest.mark.parametrize("name", KEYS)
def test_sign(benchmark, loop, name):
    one = signer(name)
    benchmark(lambda: loop.run_until_complete(one.sign(Mail.of(MESSAGE), NOW)))


@pytest.mark.parametrize("octets", [4_000, 250_000])
def test_verify_beside_dkimpy(benchmark, octets):
    body = HEAD + BODY * (octets // len(BODY) + 1)
    signed = dkimpy.sign(body, b"rsa", b"d.example", sign.key_pem(KEYS["rsa"]).encode()) + body
    assert benchmark(lambda: dkimpy.verify(signed, dnsfunc=lambda name, timeout=5: RECORDS[name.decode().rstrip(".")]))
