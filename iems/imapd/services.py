"""What the sessions of one worker share: store, directory, content, limits, counters. Tests hand in fakes."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import Any

from iems.imapd.columns import Columns
from iems.imapd.content import Contents, Source
from iems.imapd.engine import Limits
from iems.imapd.kept import KeptViews
from iems.imapd.structures import Structures


class Services:
    """See the module.

    reader, store, authenticator: as in `iems.store` and `iems.directory`. content: makes and keeps the content of APPEND
    (`commands.append` says what it needs). plaintext: the setting `auth.plaintext`. log, error, count: of the worker.
    finder: full-text indexes (`iems.fulltext`), None: none; fulltext_from: messages a mailbox has that gets one.
    now_known(account): the account as the directory has it now. domain_room(account): octets its domain may have in its partition, None without a limit.
    gone(session): a connection ended. directory: who the other users are; None: nothing is shared. now: monotonic seconds; clock: seconds since 1970.
    """

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        reader: Any,
        store: Any,
        authenticator: Any,
        content: Any,
        hostname: str,
        tls: ssl.SSLContext | None = None,
        plaintext: str = "loopback",
        limits: Limits | None = None,
        max_failures: int = 5,
        log: Callable[..., None] = lambda *args, **detail: None,
        error: Callable[[str, BaseException], None] = lambda text, fault: None,
        count: Callable[..., None] = lambda name, n=1: None,
        gone: Callable[[Any], None] = lambda session: None,
        know: Callable[[Any], None] = lambda account: None,
        now_known: Callable[[Any], Any] = lambda account: account,
        domain_room: Callable[[Any], int | None] = lambda account: None,
        directory: Any = None,
        finder: Any = None,
        fulltext_from: int = 0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.loop = loop
        self.now = loop.time
        self.clock = clock or time.time
        self.reader = reader
        self.store = store
        self.authenticator = authenticator
        self.content = content
        self.hostname = hostname
        self.tls = tls
        self.plaintext = plaintext
        self.limits = limits or Limits()
        self.max_failures = max_failures
        self.log = log
        self.error = error
        self.count = count
        self.gone = gone
        self.know = know
        self.now_known = now_known
        self.domain_room = domain_room
        self.directory = directory
        self.finder = finder
        self.fulltext_from = fulltext_from
        self.structures = Structures()
        self.columns = Columns()
        self.views = KeptViews()
        self._tasks: set[asyncio.Task[None]] = set()
        #: Held while a large content is looked at in a thread, so that not all of them are in memory at once.
        self.large = asyncio.Semaphore(2)
        self.contents = Contents(lambda: self.reader.blobs)

    def source(self, key: tuple[int, int, int], row: Any) -> Source:
        """The content of a message, by (account, mailbox id, uid) and its row."""
        return Source(self, key, row)

    def keep_task(self, task: asyncio.Task[None]) -> None:
        """Hold a task that nobody waits for until it is done; the loop alone would let it go."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
