"""Sessions: what waits, what is told when, what happens when something is away."""

import asyncio

import pytest

from iems.errors import StoreUnavailable
from iems.imapd.engine import Limits
from iems.message import sift
from tests.unit.imapd.fakes import World

MESSAGE = b"Subject: x\r\n\r\nbody\r\n"


def run(test):
    """Runs a coroutine function with a fresh world."""

    async def inner():
        world = World()
        await world.store.ensure(1)
        await test(world)

    asyncio.run(inner())


def test_pipelined_commands_run_in_order():
    async def test(world):
        world.store.put("INBOX", MESSAGE)
        client = await world.login("INBOX")
        out = await client.ask(
            b"a STORE 1 +FLAGS (\\Deleted)\r\nb EXPUNGE\r\nc APPEND INBOX {5+}\r\na: b\n\r\nd FETCH 1 UID\r\n"
        )
        assert [line.split()[0] for line in out.splitlines() if line[:1] != b"*"] == [b"a", b"b", b"c", b"d"]
        assert b"* 1 EXPUNGE" in out
        assert b"* 1 FETCH (UID 2)" in out

    run(test)


def test_no_expunge_before_a_pipelined_command():
    async def test(world):
        for _ in range(3):
            world.store.put("INBOX", MESSAGE)
        one, two = await world.login("INBOX"), await world.login("INBOX")
        await one.ask(b"a STORE 1 +FLAGS (\\Deleted)\r\nb EXPUNGE\r\n")
        # The client means the third message as it knows them when it sends this.
        out = await two.ask(b"a NOOP\r\nb FETCH 3 UID\r\n")
        assert b"EXPUNGE" not in out
        assert b"* 3 FETCH (UID 3)" in out
        assert b"* 1 EXPUNGE" in await two.ask(b"c NOOP\r\n")

    run(test)


def test_input_waits_while_a_command_runs():
    async def test(world):
        client = await world.login("INBOX")
        client.session.data_received(memoryview(b"a CREATE x\r\n"))
        assert client.session.running is not None
        client.session.data_received(memoryview(b"b NOOP\r\n" * 40_000))
        assert client.stream.paused
        out = await client.ask(b"c NOOP\r\n")
        for _ in range(10):
            await client.settle()
        out += client.stream.take()
        assert out.count(b"OK NOOP") == 40_001
        assert not client.stream.paused

    run(test)


def test_output_waits_for_the_peer():
    async def test(world):
        world.store.put("INBOX", b"x" * 100_000)
        client = await world.login("INBOX")
        client.stream.pending_out = 1 << 30
        assert await client.ask(b"a NOOP\r\nb NOOP\r\n") == b""
        client.stream.pending_out = 0
        client.session.writable()
        assert client.stream.take().count(b"OK NOOP") == 2

    run(test)


def test_reading_goes_on_without_the_writer():
    async def test(world):
        world.store.put("INBOX", MESSAGE)
        client = await world.login("INBOX")
        world.store.unavailable = True
        out = await client.ask(b"a FETCH 1 BODY[]\r\n")
        assert MESSAGE in out
        assert b"a OK" in out
        for command in (b"STORE 1 FLAGS (\\Seen)", b"CREATE x", b"APPEND INBOX {1+}\r\nx"):
            assert b"t NO [UNAVAILABLE]" in await client.ask(b"t " + command + b"\r\n")

    run(test)


def test_faults_of_ours_stay_ours():
    async def test(world):
        client = await world.login("INBOX")

        async def broken(*args, **more):
            raise RuntimeError("secret detail")

        world.store.create = broken
        with pytest.raises(RuntimeError):
            await client.ask(b"a CREATE x\r\n")
        out = client.stream.take()
        assert out == b"a NO [SERVERBUG] Internal error\r\n"

    run(test)


def test_quota():
    async def test(world):
        client = await world.login("INBOX")
        world.authenticator.account.quota_octets = 100
        world.store.octets = 95
        assert b"a NO [OVERQUOTA]" in await client.ask(b"a APPEND INBOX {10}\r\n")
        assert b"b OK [APPENDUID" in await client.ask(b"b APPEND INBOX {5+}\r\nabcde\r\n")

    run(test)


def test_content_that_finds_no_room():
    async def test(world):
        world.content.limit = 10
        client = await world.login("INBOX")
        out = await client.ask(b"a APPEND INBOX {30+}\r\n" + b"x" * 30 + b"\r\nb NOOP\r\n")
        assert b"a NO [UNAVAILABLE]" in out
        assert b"b OK" in out
        assert all(body.abandoned for body in world.content.bodies)

    run(test)


def test_content_goes_with_its_connection():
    async def test(world):
        client = await world.login()
        await client.ask(b"a APPEND INBOX {30+}\r\nabc")
        client.session.connection_lost(None)
        assert all(body.abandoned for body in world.content.bodies)
        client = await world.login("INBOX")
        client.session.connection_lost(None)
        assert world.store.watchers == []

    run(test)


def test_content_before_a_cut_command_is_given_back():
    async def test(world):
        client = await world.login()
        out = await client.ask(b"a APPEND INBOX {3+}\r\nabcjunk\r\nb NOOP\r\n")
        assert out.startswith(b"a BAD")
        assert all(body.abandoned for body in world.content.bodies)

    run(test)


def test_failed_logins_end_the_session():
    async def test(world):
        client = world.connect()
        for number in range(5):
            out = await client.ask(b"a%d LOGIN anna@example.test x\r\n" % number)
            assert b"NO [AUTHENTICATIONFAILED]" in out
        assert b"* BYE" in out
        assert client.stream.closed

    run(test)


def test_a_deleted_mailbox_ends_its_sessions():
    async def test(world):
        one, two = await world.login("Trash"), await world.login("Trash")
        out = await one.ask(b"a DELETE Trash\r\nb NOOP\r\n")
        assert out == b"a OK DELETE completed\r\nb OK NOOP completed\r\n"
        assert (await two.ask(b"a NOOP\r\n")).startswith(b"* BYE")
        assert two.stream.closed

    run(test)


def test_bye_waits_for_the_running_command():
    async def test(world):
        idle, busy = await world.login("INBOX"), await world.login("INBOX")
        await idle.ask(b"i IDLE\r\n")
        busy.session.data_received(memoryview(b"a CREATE x\r\nb NOOP\r\n"))
        for client in (idle, busy):
            client.session.bye("Server is shutting down")
        assert idle.stream.take() == b"* BYE Server is shutting down\r\n"
        assert not busy.stream.closed
        await busy.settle()
        assert busy.stream.take() == b"a OK [MAILBOXID (F1-7)] CREATE completed\r\n* BYE Server is shutting down\r\n"
        assert busy.stream.closed

    run(test)


def test_expiry():
    async def test(world):
        client = world.connect()
        client.session.expire("Login timed out")
        assert client.stream.take() == b"* BYE Login timed out\r\n"
        assert client.stream.closed

    run(test)


def test_store_unavailable_at_login():
    async def test(world):
        world.store.boxes.clear()
        world.store.unavailable = True
        client = world.connect()
        assert b"a NO [UNAVAILABLE]" in await client.ask(b"a LOGIN anna@example.test pw\r\n")

        async def check(*args):
            raise StoreUnavailable("never mind")

        world.authenticator.check = check
        assert b"b NO [UNAVAILABLE]" in await client.ask(b"b LOGIN anna@example.test pw\r\n")

    run(test)


def test_append_limit():
    async def inner():
        world = World(Limits(content=100))
        await world.store.ensure(1)
        client = await world.login()
        assert b"a NO [TOOBIG]" in await client.ask(b"a APPEND INBOX {101}\r\n")
        assert b"APPENDLIMIT=100" in await client.ask(b"b CAPABILITY\r\n")
        out = await client.ask(
            b"c APPEND INBOX {60+}\r\n" + b"x" * 60 + b" {60+}\r\n" + b"y" * 60 + b"\r\nd NOOP\r\n"
        )
        assert b"c NO [TOOBIG]" in out
        assert b"d OK" in out

    asyncio.run(inner())


def test_own_changes_and_new_messages_need_no_look_at_old_rows():
    async def test(world):
        for _ in range(3):
            world.store.put("INBOX", MESSAGE)
        one, two = await world.login("INBOX"), await world.login("INBOX")
        await one.ask(b"a STORE 1 +FLAGS (\\Flagged)\r\n")
        world.store.put("INBOX", MESSAGE)
        assert b"* 4 EXISTS" in await one.ask(b"b NOOP\r\n")
        assert b"FETCH (FLAGS (\\Flagged" in await two.ask(b"a NOOP\r\n")
        assert world.store.fast == 2
        # Another's change between: the old rows are looked at.
        await two.ask(b"b STORE 2 +FLAGS (\\Seen)\r\n")
        out = await one.ask(b"c STORE 3 +FLAGS (\\Draft)\r\n")
        assert b"* 2 FETCH (FLAGS (\\Seen \\Recent))" in out
        fast = world.store.fast
        await two.ask(b"c STORE 1 +FLAGS (\\Deleted)\r\nd EXPUNGE\r\n")
        assert b"* 1 EXPUNGE" in await one.ask(b"d NOOP\r\n")
        await one.ask(b"e FETCH 1 BODY[]\r\n")
        assert world.store.fast > fast

    run(test)


def test_a_long_search_tells_how_far_it_is(monkeypatch):
    """RFC 9585: every few seconds, with its tag, what is done of how much."""
    monkeypatch.setattr("iems.imapd.session.PROGRESS_S", 0.0)
    monkeypatch.setattr("iems.imapd.commands.search.SLICE_S", 0.0)
    monkeypatch.setattr("iems.imapd.sifting.ROWS", 100)

    async def test(world):
        for _ in range(450):
            world.store.put("INBOX", MESSAGE)
        client = await world.login("INBOX")
        lines = (await client.ask(b"a7 SEARCH TEXT nowhere\r\n")).splitlines()
        told = [line for line in lines if b"INPROGRESS" in line]
        if sift.judge(b"", [(b"x", True)]) == bytes((sift.NO,)):
            # All of them are judged by the kernel, a few at a time here.
            assert told[0].startswith(b'* OK [INPROGRESS ("a7" 100 450)]') and told[-1].startswith(b'* OK [INPROGRESS ("a7" 450 450)]')
        lines = (await client.ask(b"a8 SEARCH HEADER X nowhere\r\n")).splitlines()
        told = [line for line in lines if b"INPROGRESS" in line]
        assert told[0].startswith(b'* OK [INPROGRESS ("a8" 0 450)]') and told[-1].startswith(b'* OK [INPROGRESS ("a8" 400 450)]')
        assert lines[-2:] == [b"* SEARCH", b"a8 OK SEARCH completed"]

    run(test)
