"""Log-ins beside the loop: threads for the slow hash, and a memory of what was right a moment ago.

The memory holds a keyed HMAC of log-in name and password, never the password; the key lives in this process only.
An entry counts for five minutes and only while the directory still has the same account with the same hash, enabled:
a changed password or a disabled account counts at the next log-in. What failures cost is in guard.py.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from iems.directory.directory import Directory
from iems.directory.entries import Account
from iems.directory.guard import Guard, is_loopback
from iems.directory.passwords import octets_of
from iems.directory.stored import NO_FORMS, Forms, keys_of, scheme_of
from iems.directory.tokens import Tokens, is_jwt
from iems.errors import DirectoryUnavailable, IemsError, LoginHeldBack
from iems.sasl import NOTHING, Keys, Offer
from iems.sasl.scram import MIN_ITERATIONS, made_up

if TYPE_CHECKING:
    from iems.config import Config
    from iems.directory.introspection import Introspection
    from iems.log import Log

KEEP_S = 300.0
MAX_KEPT = 8192
MAX_WAITING = 512
MAX_LOGIN_CHARACTERS = 512
MAX_PASSWORD_CHARACTERS = 4096
#: At most one account a worker gets missing keys in this time: each is a write that makes every process forget its answers.
KEYS_EVERY_S = 1.0

_T = TypeVar("_T")


class Authenticator:
    """Checks passwords without holding up the loop.

    threads: hashes worked on at once (each takes 19 MiB and a core). per_peer: checks of one address under way at once,
    so one guesser can't fill the line; loopback is spared. keep_s: how long a right one is remembered.
    offer: the mechanisms of SASL. forms: what is kept of a password; what an account lacks is made when it shows its own.
    guard: holds back who failed too often. tokens: says whom a JWT is for, introspection whom any other. delay_s: wait before a failure is answered.
    spared: whether loopback waits for nothing. clock: monotonic seconds, for tests.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        threads: int = 2,
        per_peer: int = 16,
        keep_s: float = KEEP_S,
        offer: Offer = NOTHING,
        forms: Forms = NO_FORMS,
        guard: Guard | None = None,
        tokens: Tokens | None = None,
        introspection: Introspection | None = None,
        delay_s: float = 0.0,
        spared: bool = True,
        error: Callable[[str, BaseException], None] = lambda text, fault: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory = directory
        self.offer = offer
        self._forms = forms
        self._guard = guard
        self._tokens = tokens
        self._introspection = introspection
        self._delay_s = delay_s
        self._spared = spared
        self._error = error
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="auth")
        self._per_peer = per_peer
        self._keep_s = keep_s
        self._clock = clock
        self._key = os.urandom(32)
        self._kept: OrderedDict[bytes, tuple[float, Account]] = OrderedDict()
        #: What is being computed, by tag as in `_kept`.
        self._under_way: dict[bytes, asyncio.Future[Account | None]] = {}
        self._waiting = 0
        self._peers: dict[str, int] = {}
        self._keys_made = -KEYS_EVERY_S
        try:
            self._secret = directory.secret()
        except DirectoryUnavailable as fault:
            # A disk that takes no writes must not keep anybody out.
            error("salts for unknown names change with each start", fault)
            self._secret = os.urandom(32)

    @classmethod
    def of(cls, directory: Directory, config: Config, home: Path, log: Log) -> Authenticator:
        """As the settings of a home say."""
        auth = config.auth
        tokens = Tokens.of(auth, home, log.error)

        def silent(is_silent: bool, reason: str) -> None:
            if is_silent:
                log.error("tokens are not asked about for a while", DirectoryUnavailable(reason))
            else:
                log.event("introspection-answers")

        introspection = None
        if auth.oauth_introspection:
            from iems.directory.introspection import Introspection

            introspection = Introspection(auth, home, silent)
        offer = Offer(
            hostname=config.hostname,
            scram=auth.scram,
            cram_md5=auth.cram_md5,
            tokens=tokens is not None or introspection is not None,
            scope=auth.oauth_scope,
            configuration=auth.oauth_configuration,
        )

        def begun(what: str, login: str, network: str, wait_s: float) -> None:
            who = login[:320] if what == "account" else ""
            log.event("login-held-back", what=what, login=who, network=network, wait_s=int(wait_s))

        found = cls(
            directory,
            threads=auth.threads,
            keep_s=auth.cache_s,
            offer=offer,
            forms=Forms.of(auth),
            tokens=tokens,
            introspection=introspection,
            delay_s=auth.failure_delay_s,
            spared=not config.smtpd.limit_loopback,
            error=log.error,
        )
        if auth.lockout_failures or auth.lockout_network_failures:
            path: Path | None = home / "run" / "logins.1"
            more = {
                "failures": auth.lockout_failures,
                "network_failures": auth.lockout_network_failures,
                "longest_s": auth.lockout_s,
                "loopback": config.smtpd.limit_loopback,
            }
            try:
                found._guard = Guard(path, found._secret, begun=begun, **more)  # type: ignore[arg-type]
            except OSError as fault:
                log.error("failed logins are counted by each worker alone", fault)
                found._guard = Guard(None, found._secret, begun=begun, **more)  # type: ignore[arg-type]
        return found

    async def check(self, login: str, password: str, peer_ip: str) -> Account | None:
        """The account, or None if name or password is wrong or the account is disabled.

        login: the full address in any case of letters; the local part alone in a home with one domain.
        Raises DirectoryUnavailable if the directory can't be read or too many log-ins wait: "try later", not "wrong";
        LoginHeldBack, one of these, if there were too many failures from there.
        """
        if (
            not login
            or not password
            or len(login) > MAX_LOGIN_CHARACTERS
            or len(password) > MAX_PASSWORD_CHARACTERS
        ):
            await self.failed(login, peer_ip)
            return None
        tag = self._tag(login, password)
        account = self._remembered(tag)
        if account is not None:
            return account
        self._may_try(login, peer_ip)
        under_way = self._under_way.get(tag)
        if under_way is None:
            work = self._in_thread(peer_ip, lambda: self.directory.authenticate(login, password))
            under_way = self._under_way[tag] = asyncio.ensure_future(work)
            under_way.add_done_callback(functools.partial(self._done, tag))
        # Many sessions of a user that come at once wait for one computation; that the first of them goes away ends it for nobody.
        account = await asyncio.shield(under_way)
        if account is None:
            await self.failed(login, peer_ip)
            return None
        if len(self._kept) >= MAX_KEPT:
            self._kept.popitem(last=False)
        self._kept[tag] = (self._clock() + self._keep_s, account)
        if self._guard is not None:
            self._guard.succeeded(account.address, peer_ip)
        self._complete(account, password)
        return account

    def _done(self, tag: bytes, work: asyncio.Future[Account | None]) -> None:
        del self._under_way[tag]
        if not work.cancelled():
            work.exception()  # whoever waited has it; if all have gone, nobody needs to hear

    def keys(self, login: str, scheme: str, peer_ip: str) -> Keys:
        """What is stored for a name, or keys made up for one that has none. Raises DirectoryUnavailable, LoginHeldBack."""
        self._may_try(login, peer_ip)
        account = self._account(login)
        found = keys_of(account.keys, scheme) if account is not None else None
        if found is not None:
            return found
        return made_up(self._secret, self._normal(login), self._forms.iterations or MIN_ITERATIONS)

    async def proven(self, login: str, keys: Keys | None, scheme: str, peer_ip: str) -> Account | None:
        """The account of a name whose owner has shown that he has these keys, if it still has them and is enabled."""
        account = self._account(login)
        if account is None or keys is None or keys_of(account.keys, scheme) != keys:
            await self.failed(login, peer_ip)
            return None
        if self._guard is not None:
            self._guard.succeeded(account.address, peer_ip)
        return account

    async def token(self, login: str, token: str, peer_ip: str) -> Account | None:
        """The account a token is for, None if it is not good, or for another than `login`. Raises DirectoryUnavailable."""
        tokens, introspection = self._tokens, self._introspection
        self._may_try(login, peer_ip)
        if tokens is not None and (introspection is None or is_jwt(token)):
            user = await self._in_thread(peer_ip, lambda: tokens.user(token))
        elif introspection is not None:
            with self._place(peer_ip):
                user = await introspection.user(token)
        else:
            return None
        account = self._account(user) if user else None
        if account is None or (login and self._normal(login) != account.address):
            return None
        if self._guard is not None:
            self._guard.succeeded(account.address, peer_ip)
        return account

    async def failed(self, login: str, peer_ip: str) -> None:
        """A log-in failed: count it, and return when the client may hear of it. The wait holds no thread and no place in the line."""
        if self._guard is not None:
            self._guard.failed(self._normal(login), peer_ip)
        if self._delay_s and not (self._spared and is_loopback(peer_ip)):
            await asyncio.sleep(self._delay_s)

    def close(self) -> None:
        """Let the threads go, and give up what is asked."""
        if self._introspection is not None:
            self._introspection.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, peer_ip: str, work: Callable[[], _T]) -> _T:
        """Do slow work in a thread, within the places there are. Raises DirectoryUnavailable if there is none."""
        with self._place(peer_ip):
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    @contextmanager
    def _place(self, peer_ip: str) -> Iterator[None]:
        """A place among those who wait. Raises DirectoryUnavailable if there is none."""
        under_way = self._peers.get(peer_ip, 0)
        if self._waiting >= MAX_WAITING or (not is_loopback(peer_ip) and under_way >= self._per_peer):
            raise DirectoryUnavailable("too many log-ins at once")
        self._waiting += 1
        self._peers[peer_ip] = under_way + 1
        try:
            yield
        finally:
            self._waiting -= 1
            left = self._peers[peer_ip] - 1
            if left:
                self._peers[peer_ip] = left
            else:
                del self._peers[peer_ip]

    def _may_try(self, login: str, peer_ip: str) -> None:
        guard = self._guard
        if guard is not None and guard.held_s(self._normal(login), peer_ip):
            raise LoginHeldBack("too many failed log-ins from there")

    def _normal(self, login: str) -> str:
        """The address a name stands for, else the name itself: what is counted must not depend on who exists."""
        login = login[:MAX_LOGIN_CHARACTERS]
        try:
            return self.directory.login_address(login) or login.lower()
        except DirectoryUnavailable:
            return login.lower()

    def _account(self, login: str) -> Account | None:
        """The enabled account of a name; a shared mailbox has no log-in, whoever vouches for it."""
        address = self.directory.login_address(login) if len(login) <= MAX_LOGIN_CHARACTERS else ""
        account = self.directory.account(address) if address else None
        return account if account is not None and account.enabled and not account.shared else None

    def _complete(self, account: Account, password: str) -> None:
        """Make the keys that an account lacks, now that its password is known, in a thread and not too often."""
        missing = self._forms.schemes.difference(scheme_of(value) for value in account.keys)
        now = self._clock()
        if not missing or now - self._keys_made < KEYS_EVERY_S:
            return
        self._keys_made = now
        forms = Forms(self._forms.iterations, self._forms.cram_md5)

        def work() -> None:
            try:
                self.directory.add_keys(account, password, forms)
            except IemsError as fault:
                self._error("keys for a login could not be kept", fault)

        self._pool.submit(work)

    def _tag(self, login: str, password: str) -> bytes:
        # The length parts name and password: ("ab", "c") and ("a", "bc") are two log-ins.
        name = login.encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, len(name).to_bytes(4, "big") + name + octets_of(password), _digest)

    def _remembered(self, tag: bytes) -> Account | None:
        found = self._kept.get(tag)
        if found is None:
            return None
        until, account = found
        if self._clock() >= until:
            del self._kept[tag]
            return None
        try:
            now = self.directory.account_by_number(account.number)
        except DirectoryUnavailable:
            # Who logged in a moment ago may go on while the directory is away.
            return account
        if (
            now is None
            or not now.enabled
            or now.password != account.password
            or now.address != account.address
        ):
            del self._kept[tag]
            return None
        return now


def _digest() -> blake2b:
    return blake2b(digest_size=32)
