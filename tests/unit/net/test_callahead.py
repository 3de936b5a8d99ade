"""Asking another host about a recipient: what a yes and a no are, what is neither, and how often it is asked."""

import asyncio

import pytest

from iems.net.callahead import Callahead, _meaning
from iems.net.resolver import Resolver
from tests.support.dnsserver import DnsServer
from tests.support.smtpserver import SmtpServer


@pytest.mark.parametrize(
    ("reply", "meaning"),
    [
        (b"250 ok", True), (b"251 2.1.5 will forward", True), (b"550 no", False), (b"553 no", False), (b"554 5.1.1 no", False),
        (b"550 5.2.1 disabled", False), (b"550 5.7.1 you are listed", None), (b"554 no", None), (b"552 5.2.2 full", None),
        (b"450 5.1.1 later", None), (b"421 bye", None), (b"550 5.0.0 no", False), (b"354 what", None),
    ],
)  # fmt: skip
def test_meaning(reply, meaning):
    assert _meaning(reply) is meaning


def run(scenario, server, names=None):
    async def main():
        async with server, names or DnsServer({}) as dns:
            asker = Callahead(Resolver([dns.address], timeout_s=0.3, attempts=1), "me.test", server.port)
            return await scenario(asker, ("127.0.0.1", server.port))

    return asyncio.run(asyncio.wait_for(main(), 60))


def test_answers_are_kept_and_questions_joined():
    script = lambda c, verb, line: "550 5.1.1 no" if b"nobody" in line else None  # noqa: E731
    server = SmtpServer(script)

    async def scenario(asker, host):
        found = await asyncio.gather(*(asker.exists(host, b"ann@x.test") for _ in range(20)))
        return found, [await asker.exists(host, b"nobody@x.test") for _ in range(3)]

    assert run(scenario, server) == ([True] * 20, [False] * 3)
    assert len(server.connections) == 2 and server.messages == []
    assert server.connections[0].commands[:3] == [b"EHLO me.test", b"MAIL FROM:<>", b"RCPT TO:<ann@x.test>"]


@pytest.mark.parametrize(
    ("verb", "reply"),
    [("CONNECT", "554 no"), ("EHLO", "550 no"), ("MAIL", "550 5.1.1 no null path"), ("RCPT", "drop"), ("RCPT", "nonsense"), ("RCPT", "550" + "x" * 9000)],
)
def test_what_breaks_is_no_answer(verb, reply):
    refuse = {verb, "HELO"} if verb == "EHLO" else {verb}

    async def scenario(asker, host):
        return await asker.exists(host, b"ann@x.test")

    assert run(scenario, SmtpServer(lambda c, v, line: reply if v in refuse else None)) is None


def test_exchangers_of_the_domain():
    names = DnsServer(
        {("x.test", "MX"): ["10 mx.x.test.", "20 me.test.", "30 far.x.test."], ("mx.x.test", "A"): ["127.0.0.1"],
         ("own.test", "MX"): ["5 me.test."], ("void.test", "MX"): ["0 ."]},
        faults={"lost.test": "SERVFAIL"},
    )  # fmt: skip

    async def scenario(asker, host):
        return [await asker.exists(None, b"ann@" + name) for name in (b"x.test", b"own.test", b"void.test", b"lost.test", b"a b", b"\xc3\xa9@x.test")]

    assert run(scenario, SmtpServer(), names) == [True, None, None, None, None, None]
    assert not any(name == "far.x.test" for name, *_ in names.asked)


def test_what_can_not_be_said_is_not_said():
    server = SmtpServer()

    async def scenario(asker, host):
        return [await asker.exists(host, address) for address in (b"a\r\nQUIT@x.test", b"a>b@x.test", b"\xc3\xa9@x.test")]

    assert run(scenario, server) == [None] * 3
    assert all(len(connection.commands) == 0 for connection in server.connections)
