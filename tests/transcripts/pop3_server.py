"""pop3d without sockets, disk or threads: the real engine and session on a fake stream, reader and store."""

import asyncio
from types import SimpleNamespace

from iems.directory import Account
from iems.errors import DirectoryUnavailable, StoreUnavailable
from iems.pop3d import handlers
from tests.support.logins import FakeLogins

MESSAGES = [
    b"From: a@x\r\nSubject: one\r\n\r\nfirst line\r\nsecond line\r\nthird line\r\n",
    b"Subject: dots\r\n\r\n.one\r\n..two\r\n.\r\nend\r\n",
    b"Subject: no body\r\n",
    b"Subject: open end\r\n\r\n.last",
]
USERS = {
    "john@mx.test": ("pw", 1),
    "mary@mx.test": (" p w ", 2),
    "away@mx.test": ("pw", 3),
    "empty@mx.test": ("pw", 4),
}


class FakeStream:
    """Keeps what is sent."""

    def __init__(self, loop, sock, handler, *, tls=None):
        self.peer = (sock, 4711)
        self.output = b""
        self.pending_out = 0
        self.closed = False
        self.paused = False
        self.started_tls = False
        self.sslobj = None

    def send(self, data):
        assert data, "an empty send"
        if not self.closed:
            self.output += bytes(data)

    def send_file(self, fd, offset, length):
        raise AssertionError("the fake blobs have no files")

    def cork(self):
        pass

    def uncork(self):
        pass

    def start_tls(self, context):
        self.started_tls = True

    def pause_reading(self):
        self.paused = True

    def resume_reading(self):
        self.paused = False

    def close(self):
        self.closed = True

    abort = close


class FakeStore:
    """Does what is asked to the messages of `reader`; `away` makes it fail."""

    def __init__(self, reader):
        self.reader = reader
        self.away = False

    async def store_flags(self, account, mailbox_id, uids, mode, flags):
        if self.away:
            raise StoreUnavailable("gone")
        for uid in uids:
            if uid in self.reader.flags:
                self.reader.flags[uid] |= {"\\Deleted": 8, "\\Seen": 1}[flags[0]]

    async def expunge(self, account, mailbox_id, uids):
        for uid in uids:
            if self.reader.flags.get(uid, 0) & 8:
                del self.reader.flags[uid]


class FakeReader:
    """One INBOX for every account but `empty`; uids 11, 12, ..."""

    def __init__(self, messages, folder=None):
        self.messages = dict(enumerate(messages, 11))
        self.flags = dict.fromkeys(self.messages, 0)
        self.blobs = self

    def mailbox(self, account, name):
        assert name == "INBOX"
        return None if account == 4 else SimpleNamespace(id=7, uidvalidity=99)

    def sizes(self, account, mailbox_id):
        uids = sorted(self.flags)
        return (
            self.mailbox(account, "INBOX"),
            uids,
            [len(self.messages[uid]) for uid in uids],
            [self.flags[uid] for uid in uids],
        )

    def message(self, account, mailbox_id, uid):
        if uid not in self.flags:
            return None
        content = self.messages[uid]
        dot_free = not content.startswith(b".") and b"\n." not in content
        return SimpleNamespace(uid=uid, size=len(content), rope=[content], dot_free=dot_free)

    def slices(self, rope, start, length):
        return [rope[0][start : start + length]]


class FakeAuthenticator(FakeLogins):
    async def check(self, login, password, peer_ip):
        await asyncio.sleep(0)
        name = login.strip().lower()
        name = name if "@" in name else name + "@mx.test"
        if name == "away@mx.test":
            raise DirectoryUnavailable("gone")
        known = USERS.get(name)
        if known is None or known[0] != password:
            return None
        return Account(known[1], name, True, None, 0, "")


class FakeLocks:
    def __init__(self):
        self.held = set()

    def take(self, account):
        if account in self.held:
            return False
        self.held.add(account)
        return True

    def release(self, account):
        self.held.discard(account)


class Pop3Server:
    """What `player.play` talks to. Options: ip, tls, plaintext, secure, in_use, seen."""

    def __init__(self, options, messages=MESSAGES):
        self.options = options
        self.loop = asyncio.new_event_loop()
        self.reader = FakeReader(messages)
        self.store = FakeStore(self.reader)
        self.locks = FakeLocks()
        if "in_use" in options:
            self.locks.take(1)
        self.errors = []
        self.services = handlers.Services(
            loop=self.loop,
            hostname="mx.test",
            reader=self.reader,
            store=self.store,
            authenticator=FakeAuthenticator(),
            locks=self.locks,
            tls=object() if options.get("tls", "yes") == "yes" else None,
            plaintext=options.get("plaintext", "loopback"),
            max_failures=3,
            error=lambda text, fault: self.errors.append(fault),
        )
        original, handlers.Stream = handlers.Stream, FakeStream
        try:
            secure = "secure" in options
            self.session = handlers.Session(self.services, options.get("ip", "127.0.0.1"), secure)
        finally:
            handlers.Stream = original
        if secure:
            self.session.tls_ready()

    @property
    def stream(self):
        return self.session.stream

    @property
    def closed(self):
        return self.stream.closed

    def _output(self):
        for _ in range(20):
            self.loop.run_until_complete(asyncio.sleep(0))
        out, self.stream.output = self.stream.output, b""
        return out

    def connect(self):
        return self._output()

    def feed(self, data):
        if self.closed or self.stream.started_tls:
            return b""
        self.session.data_received(memoryview(data))
        return self._output()

    def happen(self, what):
        if what == "tls":
            assert self.stream.started_tls
            self.stream.started_tls = False
            self.session.tls_ready()
        elif what == "store away":
            self.store.away = True
        elif what.startswith("gone "):
            del self.reader.flags[int(what[5:])]
        elif what == "drain":
            self.session.drain()
        elif what == "lost":
            self.session.connection_lost(None)
        else:
            raise ValueError(what)
        return self._output()

    def finish(self):
        self._output()
        if not self.session._lost:
            self.session.connection_lost(None)
        self._output()
        self.loop.close()
        assert self.locks.held <= ({1} if "in_use" in self.options else set())
