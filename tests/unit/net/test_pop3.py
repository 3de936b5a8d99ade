"""The POP3 client against servers that keep the protocol, and that don't."""

from __future__ import annotations

import pytest

from iems.net.pop3 import LINE_OCTETS, Pop3Client, Pop3Error
from tests.support import scripted

GOOD = {
    "": b"+OK hello\r\n", "USER u": b"+OK\r\n", "PASS p": b"+OK\r\n", "LIST": b"+OK\r\n1 10\r\n2 20\r\n.\r\n",
    "UIDL": b"+OK\r\n1 one\r\n2 two\r\n.\r\n", "RETR 1": b"+OK\r\nSubject: x\r\n\r\n..\r\n...two\r\nbare\nLF\r\n.\r\n",
    "DELE 1": b"+OK\r\n", "QUIT": b"+OK\r\n",
}  # fmt: skip


def talk(script, body, timeout_s=5.0):
    """Run `body(client)`, logged in, against a server that answers by `script`; and the commands it heard."""
    client = Pop3Client(timeout_s)

    async def session():
        await client.login("u", "p")
        return await body(client)

    return scripted.talk(script, client, session, b"-ERR what?\r\n")


async def everything(client):
    listing = await client.listing()
    content = await client.retrieve(1, 1000)
    await client.delete(1)
    await client.quit()
    return listing, content


def test_a_session():
    (listing, content), heard = talk(GOOD, everything)
    assert listing == [(1, 10, b"one"), (2, 20, b"two")]
    assert content == b"Subject: x\r\n\r\n.\r\n..two\r\nbare\nLF\r\n"
    assert heard == ["USER u", "PASS p", "LIST", "UIDL", "RETR 1", "DELE 1", "QUIT"]


def test_a_server_without_unique_ids():
    (listing, _), _ = talk(GOOD | {"UIDL": b"-ERR no such command\r\n"}, everything)
    assert listing == [(1, 10, b""), (2, 20, b"")]


def test_too_large_a_mail_is_read_over():
    async def body(client):
        assert await client.retrieve(1, 5) is None
        return await client.retrieve(1, 1000)

    assert talk(GOOD, body)[0]


@pytest.mark.parametrize(
    "change",
    [
        {"": b"HTTP/1.1 200 OK\r\n"},
        {"": b"x" * (LINE_OCTETS + 10)},
        {"LIST": b"+OK\r\none two\r\n.\r\n"},
        {"LIST": b"+OK\r\n1 99999999999999999999999\r\n.\r\n"},
        {"LIST": None},
        {"RETR 1": b"-ERR gone\r\n"},
        {"RETR 1": b"+OK\r\nx\r\n.\r\n+OK for a command nobody gave\r\n"},
        {"QUIT": b"-ERR some not deleted\r\n"},
        {"QUIT": None},
    ],
)
def test_nonsense(change):
    with pytest.raises((Pop3Error, ConnectionError)):
        talk(GOOD | change, everything)


def test_a_password_is_never_in_an_error():
    with pytest.raises(Pop3Error) as caught:
        talk(GOOD | {"PASS p": b"-ERR wrong password p@ssw0rd\r\n"}, everything)
    assert "p@ss" not in str(caught.value)


def test_a_line_end_in_an_argument_is_no_second_command():
    async def body(client):
        await client.login("u\r\nDELE 1", "p")

    with pytest.raises(Pop3Error, match="control character"):
        talk(GOOD, body)


def test_silence_ends():
    with pytest.raises(TimeoutError):
        talk(GOOD | {"RETR 1": b"+OK\r\nSubject: never ends\r\n"}, everything, timeout_s=0.2)
