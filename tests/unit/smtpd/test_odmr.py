"""ATRN in the engine, who may have which domains' mail, and the pair of streams that is joined afterwards."""

import asyncio
import socket

import pytest

from iems.config import OdmrAccount
from iems.errors import ConfigError
from iems.net import handover
from iems.net.stream import Stream
from iems.smtp import grammar, replies
from iems.smtpd.engine import Atrn, Engine, Hello, Settings, State
from iems.smtpd.odmr import Reversals


def engine(answer):
    """An engine of the listener after EHLO and a login, and what it says to octets; ATRN is answered by `answer`."""
    found = Engine(Settings(hostname=b"mx.test", odmr=True))
    asked = []

    def say(data):
        found.feed(data)
        while (event := found.next_event()) is not None:
            if isinstance(event, Atrn):
                asked.append(event.domains)
            found.reply(answer if isinstance(event, Atrn) else replies.OK)
        found.keep()
        return found.take_output()

    say(b"EHLO c\r\n")
    found.connection.user = "a@x.test"
    return found, say, asked


def test_after_the_reversal_no_octet_is_a_command():
    found, say, asked = engine(replies.REVERSING)
    assert say(b"ATRN One.test,two.test.\r\nQUIT\r\n") == b"250 2.0.0 OK now reversing the connection\r\n"
    assert asked == [("one.test", "two.test")] and found.state == State.REVERSED
    assert say(b"QUIT\r\n220 hello\r\n") == b"" and found.backlog == 0 and not found.closed


@pytest.mark.parametrize("cut", range(1, 10))
def test_in_pieces(cut):
    _, say, asked = engine(replies.REVERSING)
    line = b"ATRN a.b\r\n"
    assert say(line[:cut]) == b"" and say(line[cut:]).startswith(b"250") and asked == [("a.b",)]


def test_a_refusal_leaves_the_roles_as_they_are():
    found, say, asked = engine(replies.NO_MAIL_WAITS)
    assert say(b"ATRN\r\n") == b"453 4.0.0 You have no mail\r\n" and asked == [()]
    assert found.errors == 0 and found.state == State.READY and say(b"QUIT\r\n").startswith(b"221") and found.closed
    found, say, _ = engine(replies.OK)
    found.drain()
    assert found.take_output().startswith(b"421")


def test_other_listeners_have_no_atrn():
    found = Engine(Settings(hostname=b"mx.test", etrn=True))
    found.feed(b"EHLO c\r\nATRN a.b\r\n")
    assert isinstance(found.next_event(), Hello)
    found.reply(replies.OK)
    assert found.next_event() is None and b"ATRN" not in (out := found.take_output()) and out.endswith(b"500 5.5.1 Command not known\r\n")


def test_domains_of_the_command():
    assert grammar.atrn_domains(b"") == ()
    assert grammar.atrn_domains(b"B.test,a.test ,b.test") == ("b.test", "a.test")
    for bad in (b",", b"a,", b"a b", b"*.a", b"<a>", b"[192.0.2.1]", b"a" * 300, b"a\xff", b"#a"):
        assert grammar.atrn_domains(bad) == replies.SYNTAX, bad


def test_who_may_have_what(tmp_path):
    accounts = [OdmrAccount(account="A@x.test", domains=["one.test", "Two.test"]), OdmrAccount(account="b@x.test", domains=["three.test"])]
    found = Reversals(None, accounts, tmp_path)
    assert found.domains("a@X.test", ()) == ("one.test", "two.test")
    assert found.domains("a@x.test", ("two.test",)) == ("two.test",)
    assert found.domains("a@x.test", ("two.test", "three.test")) is None  # all or none
    assert found.domains("c@x.test", ()) is None and found.domains("c@x.test", ("one.test",)) is None
    from iems.config import parse

    with pytest.raises(ConfigError, match="is no domain"):
        parse(b'[[smtpd.odmr]]\naccount = "a@x.test"\ndomains = ["*.x.test"]\n', "f")
    with pytest.raises(ConfigError, match="needs smtpc"):
        parse(b"[ports]\nodmr = 366\n[smtpc]\nenabled = false\n", "f")


def test_a_connection_is_given_and_joined(tmp_path):
    """Octets both ways in order, more than either side takes at once; the end of one is the end of the other; nobody there is said."""

    async def main():
        loop = asyncio.get_running_loop()
        errors, taken = [], loop.create_future()

        async def take(sock, given):
            handover.answer(sock, given.account != "no")
            if given.account == "no":
                sock.close()
            else:
                taken.set_result((sock, given))

        with pytest.raises(handover.NobodyTakes):
            await handover.give(tmp_path, "smtpc", handover.Given())
        dead = handover.bind(handover.place(tmp_path, "smtpc", 7))
        dead.close()  # as a killed worker leaves it
        takings = handover.Takings(handover.place(tmp_path, "smtpc", 0), take, lambda what, error: errors.append(error))
        with pytest.raises(handover.NobodyTakes):
            await handover.give(tmp_path, "smtpc", handover.Given(account="no"))
        given = handover.Given("192.0.2.1", 25, "a", ("x.test",), True, "TLSv1.3")
        sock = await handover.give(tmp_path, "smtpc", given)
        far, told = await taken
        assert told == given

        near, client = socket.socketpair()
        over = loop.create_future()
        handover.Pair(Stream(loop, near, None), Stream(loop, sock, None), over.set_result)
        reader, writer = await asyncio.open_connection(sock=client)
        far_reader, far_writer = await asyncio.open_connection(sock=far)
        large = bytes(range(256)) * 20_000
        writer.write(large)
        far_writer.write(b"hello" + large)
        await asyncio.sleep(0.1)  # neither reads: both must wait, not grow
        assert await far_reader.readexactly(len(large)) == large
        assert await reader.readexactly(len(large) + 5) == b"hello" + large
        far_writer.write(b"last words")
        far_writer.close()
        assert await reader.read() == b"last words"
        writer.close()
        await over

        rude = socket.socket(socket.AF_UNIX)
        rude.connect(str(handover.place(tmp_path, "smtpc", 0)))
        rude.send(b"no json\n")
        while not errors:
            await asyncio.sleep(0.01)
        assert isinstance(errors[0], ValueError)
        rude.close()
        takings.close()
        takings.close()

    asyncio.run(asyncio.wait_for(main(), 60))
