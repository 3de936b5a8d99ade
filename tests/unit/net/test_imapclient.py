"""The IMAP client against servers that keep the protocol, and that don't."""

from __future__ import annotations

import asyncio
import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.net.imapclient import LINE_OCTETS, ImapClient, ImapError

TOKEN = base64.b64encode(b"\0u\0p\xc3\xa9").decode()
CAPABLE = b"* CAPABILITY IMAP4rev1 AUTH=PLAIN UIDPLUS\r\n"
BODY = b"Subject: x\r\n\r\n{3}\r\n.\r\n\x00\xff"
GOOD = {
    "": b"* OK hello\r\n", "CAPABILITY": CAPABLE, "AUTHENTICATE PLAIN": b"+ \r\n", TOKEN: b"",
    'SELECT "INBOX"': b"* FLAGS (a)\r\n* 3 EXISTS\r\n* OK [UIDVALIDITY 77] x\r\n",
    "FETCH 1:3 (UID RFC822.SIZE)": b"* 1 FETCH (UID 5 RFC822.SIZE 10)\r\n* 9 EXISTS\r\n* 2 FETCH (FLAGS (\\Seen))\r\n"
    b"* 3 FETCH (RFC822.SIZE 20 UID 9)\r\n",
    "UID FETCH 5 (BODY.PEEK[])": b"* 1 FETCH (UID 5 BODY[] {%d}\r\n%b FLAGS (\\Seen))\r\n" % (len(BODY), BODY),
    "UID STORE 5 +FLAGS.SILENT (\\Deleted)": b"", "UID EXPUNGE 5": b"* 1 EXPUNGE\r\n", "LOGOUT": b"* BYE\r\n",
}  # fmt: skip


def talk(script, body, timeout_s=5.0, mailbox="INBOX"):
    """Run `body(client)` against a server that answers by `script`; the commands it heard."""
    heard = []

    async def serve(reader, writer):
        writer.write(script[""])
        tag = b""
        try:
            while line := await reader.readline():
                text = line.decode().strip()
                if text not in script:
                    first, _, text = text.partition(" ")
                    tag = first.encode()
                heard.append(text)
                answer = script.get(text)
                if answer is None:
                    answer = tag + b" BAD what?\r\n"
                elif not answer.startswith((b"+", b"A")) and answer != b"drop":
                    answer += tag + b" OK done\r\n"
                if answer == b"drop":
                    break
                for at in range(0, len(answer), 7) if len(answer) < 10_000 else (0,):  # in small pieces
                    writer.write(answer[at : at + 7] if len(answer) < 10_000 else answer)
                    await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def run():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        client = ImapClient(timeout_s, mailbox)
        try:
            await client.connect("127.0.0.1", server.sockets[0].getsockname()[1], "none", None)
            await client.login("u", "pé")
            return await body(client)
        finally:
            client.close()
            server.close()

    return asyncio.run(asyncio.wait_for(run(), 60)), heard


async def everything(client):
    listing = await client.listing()
    content = await client.retrieve(5, 1000)
    await client.delete(5)
    await client.quit()
    return listing, content


def test_a_session():
    (listing, content), heard = talk(GOOD, everything)
    assert listing == [(5, 10, b"77.5"), (9, 20, b"77.9")] and content == BODY
    assert heard == ["CAPABILITY", "AUTHENTICATE PLAIN", TOKEN, "CAPABILITY", *list(GOOD)[4:]]


def test_a_server_without_uidplus_and_plain():
    script = GOOD | {"CAPABILITY": b"* CAPABILITY IMAP4rev1\r\n", 'LOGIN "u" "p"': b"", "EXPUNGE": b""}
    with pytest.raises(ImapError, match="can't be said"):
        talk(script, everything)

    class Ascii(ImapClient):
        async def login(self, user, password):
            await super().login(user, "p")

    _, heard = talk_as(Ascii, script)
    assert 'LOGIN "u" "p"' in heard and "EXPUNGE" in heard
    with pytest.raises(ImapError, match="takes none"):
        talk(script | {"CAPABILITY": b"* CAPABILITY IMAP4rev1 LOGINDISABLED\r\n"}, everything)


def talk_as(kind, script):
    global ImapClient
    before, ImapClient = ImapClient, kind
    try:
        return talk(script, everything)
    finally:
        ImapClient = before


def test_mail_in_other_forms():
    async def one(client):
        return await client.retrieve(5, 8)

    for answer, content in (
        (b'* 1 FETCH (UID 5 BODY[] "a\\"b\\\\c")\r\n', b'a"b\\c'),
        (b"* 1 FETCH (BODY[] {9}\r\n123456789 UID 5)\r\n", None),  # more than is wanted
        (b"* 7 FETCH (UID 6 BODY[] {1}\r\nx)\r\n* 1 FETCH (BODY[] {8}\r\n12345678 UID 5)\r\n", b"12345678"),
    ):
        assert talk(GOOD | {"UID FETCH 5 (BODY.PEEK[])": answer}, one)[0] == content
    with pytest.raises(ImapError, match="not there"):
        talk(GOOD | {"UID FETCH 5 (BODY.PEEK[])": b""}, one)


def test_an_empty_mailbox_and_names():
    async def listed(client):
        return await client.listing()

    empty = {'SELECT "a \\"b\\\\ &AOk-"': b"* 0 EXISTS\r\n"}
    found, heard = talk(GOOD | empty, listed, mailbox='a "b\\ é')
    assert found == [] and len(heard) == 5


@pytest.mark.parametrize(
    ("what", "answer"),
    [
        ("", b"* BYE no\r\n"), ("", b"* PREAUTH hi\r\n"), ("", b"220 smtp\r\n"), ("CAPABILITY", b"nonsense\r\n"), ("CAPABILITY", b"+ go on\r\n"),
        ("CAPABILITY", b"* " + b"x" * (LINE_OCTETS + 9) + b"\r\n"), ("CAPABILITY", b"drop"), (TOKEN, b"A2 NO bad password p\r\n"),
        ('SELECT "INBOX"', b"A4 NO none\r\n"), ('SELECT "INBOX"', b"* BYE going\r\n"), ("UID FETCH 5 (BODY.PEEK[])", b"* 1 FETCH (UID 5 BODY[] {99}\r\nx"),
        ("LOGOUT", b"drop"),
    ],
)  # fmt: skip
def test_servers_that_break_it(what, answer):
    with pytest.raises((ImapError, TimeoutError, OSError)) as raised:
        talk(GOOD | {what: answer}, everything, timeout_s=0.3)
    assert "password" not in str(raised.value)


def test_a_listing_without_end_is_bounded():
    line = b"* 1 FETCH (UID 5 RFC822.SIZE 10 X {60000}\r\n" + b"x" * 60_000 + b")\r\n"
    flood = (b"* 1 FETCH (UID 5 " + b"y" * 60_000 + b")\r\n") * 150
    (listing, _), _ = talk(GOOD | {"FETCH 1:3 (UID RFC822.SIZE)": line}, everything)
    assert listing == [(5, 10, b"77.5")]
    with pytest.raises(ImapError, match="too long"):
        talk(GOOD | {"FETCH 1:3 (UID RFC822.SIZE)": flood}, everything)


@given(st.binary(max_size=60))
@settings(max_examples=20, deadline=None)
def test_any_answer(octets):
    try:
        (listing, _), _ = talk(GOOD | {"FETCH 1:3 (UID RFC822.SIZE)": b"* " + octets}, everything, timeout_s=0.1)
        assert isinstance(listing, list)
    except (ImapError, TimeoutError):
        pass
