"""The asking side of ODMR against providers that keep the protocol, and that don't."""

from __future__ import annotations

import asyncio
import base64
import hmac
import socket

import pytest

from iems.net.odmr import OdmrClient, OdmrError
from tests.support import scripted

CHALLENGE = b"<1896.697170952@provider.test>"
DIGEST = hmac.digest(b"secret", CHALLENGE, "md5").hex()


def coded(text):
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


GOOD = {
    "": b"220 provider.test\r\n",
    "EHLO me.test": b"250-provider.test\r\n250-AUTH CRAM-MD5 LOGIN PLAIN\r\n250 ATRN\r\n",
    "AUTH CRAM-MD5": b"334 " + base64.b64encode(CHALLENGE) + b"\r\n",
    coded("me " + DIGEST): b"235 ok\r\n",
    "ATRN a.test,b.test": b"250 turn\r\n",
    "ATRN": b"453 no mail\r\n",
    "QUIT": b"221 bye\r\n",
}


def talk(script, body, timeout_s=5.0):
    """Run `body(client)` against a provider that answers by `script`; what it gave and the commands that were heard."""
    client = OdmrClient(timeout_s, "me.test")
    return scripted.talk(script, client, lambda: body(client), b"500 what?\r\n")


async def ask(client, domains=("a.test", "b.test")):
    await client.login("me", "secret")
    return await client.turn(list(domains))


def test_asks_as_the_rfc_says():
    assert talk(GOOD, ask) == (True, ["EHLO me.test", "AUTH CRAM-MD5", coded("me " + DIGEST), "ATRN a.test,b.test"])
    assert talk(GOOD, lambda client: ask(client, ()))[0] is False  # 453


def test_other_mechanisms():
    plain = GOOD | {"EHLO me.test": b"250-p\r\n250-AUTH PLAIN\r\n250 ATRN\r\n", "AUTH PLAIN " + coded("\0me\0secret"): b"235 ok\r\n"}
    assert talk(plain, ask)[0]
    login = GOOD | {
        "EHLO me.test": b"250-p\r\n250-AUTH LOGIN\r\n250 ATRN\r\n", "AUTH LOGIN": b"334 VXNlcm5hbWU6\r\n", coded("me"): b"334 UGFzc3dvcmQ6\r\n",
        coded("secret"): b"235 ok\r\n",
    }  # fmt: skip
    assert talk(login, ask)[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"": b"554 go away\r\n"},
        {"": b"nonsense\r\n"},
        {"": b"220 " + b"x" * 5000},
        {"EHLO me.test": b"250-x\r\n" * 200},
        {"EHLO me.test": b"250-p\r\n250 ATRN\r\n"},
        {"EHLO me.test": b"250-p\r\n250 AUTH CRAM-MD5\r\n"},
        {"EHLO me.test": b"250-p\r\n250-AUTH GSSAPI\r\n250 ATRN\r\n"},
        {"AUTH CRAM-MD5": b"334 !!\r\n"},
        {coded("me " + DIGEST): b"535 you said secret\r\n"},
        {"ATRN a.test,b.test": b"450 not you\r\n"},
        {"ATRN a.test,b.test": None},
    ],
)
def test_what_goes_wrong_is_said_without_the_password(changed):
    with pytest.raises(OdmrError) as found:
        talk(GOOD | changed, ask)
    assert "secret" not in str(found.value)


def test_no_command_is_smuggled():
    with pytest.raises(OdmrError):
        talk(GOOD, lambda client: client.turn(["a.test\r\nQUIT"]))


def test_a_provider_that_says_nothing():
    with pytest.raises(TimeoutError):
        talk(GOOD | {"": b""}, ask, 0.1)


def test_octets_are_carried_both_ways():
    """All of both sides in order; the server's end is the provider's, once it has the last of it."""

    async def body(client):
        assert await ask(client)
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=theirs)
        carrying = asyncio.create_task(client.carry(ours))
        writer.write(b"QUIT\r\n")
        assert await reader.readline() == b"221 bye\r\n"
        writer.write(b"ATRN\r\n")
        assert await reader.readline() == b"453 no mail\r\n"
        writer.write(b"last\r\n")
        writer.close()
        await carrying

    assert talk(GOOD, body)[1][-3:] == ["QUIT", "ATRN", "last"]


def test_the_providers_end_is_the_servers():
    async def body(client):
        assert await ask(client)
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=theirs)
        carrying = asyncio.create_task(client.carry(ours))
        writer.write(b"END\r\n")
        assert await reader.read() == b""
        writer.close()
        await carrying

    talk(GOOD | {"END": None}, body)
