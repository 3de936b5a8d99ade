"""Log-ins: right, wrong, remembered, forgotten, too many."""

import asyncio
import time

import pytest

from iems.directory import Authenticator, Directory, passwords
from iems.errors import DirectoryUnavailable


@pytest.fixture
def directory(tmp_path):
    found = Directory(tmp_path / "directory", create=True)
    found.add_domain("example.test")
    found.create_account("john@example.test", "pw")
    yield found
    found.close()


def run(coroutine):
    return asyncio.run(coroutine)


def test_right_and_wrong(directory):
    async def main():
        auth = Authenticator(directory)
        assert (await auth.check("john@example.test", "pw", "")).number == 1
        assert (await auth.check("JOHN", "pw", "")).number == 1
        for login, password in [
            ("john", "wrong"),
            ("mary", "pw"),
            ("john", ""),
            ("", "pw"),
            ("john\0x", "pw"),
            ("joh", "npw"),
            ("*", "pw"),
            ("john", "p" * 70000),
            ("j" * 70000, "pw"),
        ]:
            assert await auth.check(login, password, "") is None
        auth.close()

    run(main())


def test_logins_that_come_at_once_are_one_computation(directory, monkeypatch):
    slow = []
    verify = passwords.verify
    monkeypatch.setattr(passwords, "verify", lambda *args: slow.append(1) or verify(*args))

    async def main():
        auth = Authenticator(directory)
        found = await asyncio.gather(*(auth.check("john", "pw", "") for _ in range(300)))
        assert {account.number for account in found} == {1} and len(slow) == 1
        # a wrong password is wrong for each of them, and is not remembered
        assert await asyncio.gather(*(auth.check("john", "wrong", "") for _ in range(20))) == [None] * 20
        assert await auth.check("john", "wrong", "") is None and len(slow) == 3
        # the first to ask goes away; who waits with it is answered all the same
        directory.set_password("john@example.test", "new")
        tasks = [asyncio.ensure_future(auth.check("john", "new", "")) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        assert [account.number for account in await asyncio.gather(*tasks[1:])] == [1, 1] and len(slow) == 4
        assert tasks[0].cancelled() and not auth._under_way
        auth.close()

    run(main())


def test_a_directory_away_is_away_for_all_who_wait(directory, monkeypatch):
    def away(*_):
        raise DirectoryUnavailable("away")

    monkeypatch.setattr(directory, "authenticate", away)

    async def main():
        auth = Authenticator(directory)
        found = await asyncio.gather(*(auth.check("john", "pw", "") for _ in range(5)), return_exceptions=True)
        assert [type(one) for one in found] == [DirectoryUnavailable] * 5 and not auth._under_way
        auth.close()

    run(main())


def test_memory_ends_with_password_state_and_time(directory, monkeypatch):
    now = [0.0]
    slow = []
    verify = passwords.verify
    monkeypatch.setattr(passwords, "verify", lambda *args: slow.append(1) or verify(*args))

    async def main():
        auth = Authenticator(directory, clock=lambda: now[0])
        for _ in range(3):
            assert await auth.check("john", "pw", "")
        assert len(slow) == 1
        directory.add_alias("x@example.test", "john@example.test")
        assert await auth.check("john", "pw", "")
        assert len(slow) == 1
        now[0] = 301
        assert await auth.check("john", "pw", "")
        assert len(slow) == 2
        directory.set_password("john@example.test", "new")
        assert await auth.check("john", "pw", "") is None
        assert await auth.check("john", "new", "")
        directory.set_enabled("john@example.test", False)
        assert await auth.check("john", "new", "") is None
        directory.set_enabled("john@example.test", True)
        assert await auth.check("john", "new", "")
        directory.delete_account("john@example.test")
        assert await auth.check("john", "new", "") is None
        directory.create_account("john@example.test", "new")
        assert (await auth.check("john", "new", "")).number == 2
        auth.close()

    run(main())


def test_two_users_never_one(directory):
    directory.create_account("joh@example.test", "npw")

    async def main():
        auth = Authenticator(directory)
        found = await asyncio.gather(
            *(
                auth.check(login, password, "")
                for login, password in [("john", "pw"), ("joh", "npw"), ("joh", "pw"), ("john", "npw")] * 3
            )
        )
        assert [a and a.address for a in found] == ["john@example.test", "joh@example.test", None, None] * 3
        auth.close()

    run(main())


def test_too_many_of_one_peer(directory):
    async def main():
        auth = Authenticator(directory, per_peer=2)
        found = await asyncio.gather(
            *(auth.check("john", f"wrong{i}", "192.0.2.1") for i in range(4)), return_exceptions=True
        )
        assert [type(answer) for answer in found] == [
            type(None),
            type(None),
            DirectoryUnavailable,
            DirectoryUnavailable,
        ]
        assert await auth.check("john", "pw", "192.0.2.1")
        assert auth._peers == {}
        auth.close()

    run(main())


def test_unknown_takes_as_long_as_wrong(directory):
    def took(login):
        best = 9.0
        for _ in range(3):
            start = time.process_time()
            assert directory.authenticate(login, "wrong") is None
            best = min(best, time.process_time() - start)
        return best

    assert took("nobody") > took("john") / 3


def test_directory_away(directory):
    async def main():
        auth = Authenticator(directory)
        assert await auth.check("john", "pw", "")
        directory._env.close()
        assert await auth.check("john", "pw", "")
        with pytest.raises(DirectoryUnavailable):
            await auth.check("john", "other", "")
        auth.close()

    run(main())


def test_passwords():
    stored = passwords.hash_password("pä\u00dfwort \U0001f600")
    assert passwords.verify(stored, "pa\u0308\u00dfwort \U0001f600")
    assert not passwords.verify(stored, "p")
    assert not passwords.verify("not a hash", "p")
    assert passwords.verify(passwords.hash_password("x"), "x")
    for wrong in ("", "x" * 4097):
        with pytest.raises(ValueError):
            passwords.hash_password(wrong)
