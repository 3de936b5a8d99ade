"""smtpd without sockets, disk or threads: the real engine and handlers on a fake spool and directory."""

from iems._native import kernel
from iems.config import Config, Smtpd
from iems.directory import Account, Resolution
from iems.directory.peers import NONE
from iems.errors import DirectoryUnavailable, SpoolError, SpoolFull
from iems.model import Reply
from iems.smtpd.engine import Engine, State
from iems.smtpd.handlers import Handlers, Session, settings_of
from iems.smtpd.policy import Policy
from tests.support.logins import FakeLogins

Buffer = kernel("buffer").Buffer

NO_SUCH_USER = Reply(550, 1, 1, "No such user here")
USERS = (b"john@mx.test", b"mary@mx.test", b"postmaster@mx.test", b"j\xc3\xb6rg@mx.test")
NOW_NS = 1_790_000_000_000_000_000


class FakeContent:
    def __init__(self, spool):
        self.buffer = Buffer()
        self.spool = spool
        self.discarded = False

    def check_spill(self):
        if 0 < self.spool.room < len(self.buffer):
            raise SpoolFull("no room")

    def discard(self):
        self.discarded = True
        self.spool.discarded += 1


class FakeSpool:
    """Keeps messages in a list; `run` answers what was submitted, with `fault` if one is set."""

    def __init__(self):
        self.messages = []
        self.waiting = []
        self.fault = None
        self.room = 0
        self.full = False
        self.begun = 0
        self.discarded = 0

    def new_id(self):
        return len(self.messages).to_bytes(16, "big")

    def new_content(self):
        if self.full:
            raise SpoolFull("no room")
        self.begun += 1
        return FakeContent(self)

    def submit(self, message, done):
        head, content = message.content
        assert not content.discarded
        self.messages.append((message.envelope, bytes(head), bytes(content.buffer)))
        self.waiting.append(done)

    def run(self):
        waiting, self.waiting = self.waiting, []
        for done in waiting:
            done(self.fault)


class FakeDirectory:
    def __init__(self):
        self.away = False
        self.seen = 1
        self.bans, self.zones = [], []
        self.profiles = NONE

    def refresh(self):
        return self.seen

    def screen_lists(self, known=-1):
        return None if known == self.seen else (self.seen, self.bans, self.zones)

    def peers(self):
        if self.away:
            raise DirectoryUnavailable("gone fishing")
        return self.profiles

    def resolve(self, address):
        if self.away or address.startswith(b"away@"):
            raise DirectoryUnavailable("gone fishing")
        if address.startswith(b"fault@"):
            raise RuntimeError("a fault of ours")
        address = address.lower()
        local = address.endswith(b"@mx.test")
        exists = not local or address in USERS
        return Resolution(
            local, exists, [], None if exists else NO_SUCH_USER, local or address.endswith(b"@backup.test")
        )


class FakeAuthenticator(FakeLogins):
    async def check(self, login, password, peer_ip):
        if login == "away":
            raise DirectoryUnavailable("gone fishing")
        if (login, password) == ("john@mx.test", "pw"):
            return Account(1, login, True, None, 0, "")
        return None


class FakeLog:
    def __init__(self):
        self.events = []

    def event(self, event, id=None, recipient=None, **detail):
        self.events.append((event, id, recipient, detail))

    def error(self, what, exc=None, id=None, **detail):
        self.events.append(("error", id, what, {"cause": repr(exc)}))


def run(work):
    """A coroutine that suspends nowhere, to its end."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise AssertionError("the coroutine suspended")


class SmtpServer(Session):
    """A server for one client. Options: listener, ip, tls, size_limit, max_errors, ...: any setting of [smtpd]."""

    def __init__(self, options=None, now=False):
        options = dict(options or {})
        listener = options.pop("listener", "smtp")
        ip = options.pop("ip", "192.0.2.1")
        tls = options.pop("tls", "yes") == "yes"
        fields = {name: type(getattr(Smtpd(), name)) for name in Smtpd.__struct_fields__}
        given = {
            name: value.split() if fields[name] is list else value == "true" if fields[name] is bool else fields[name](value)
            for name, value in options.items()
        }  # fmt: skip
        config = Config(hostname="mx.test", domain="mx.test", smtpd=Smtpd(**given))
        self.now = now
        self.spool = FakeSpool()
        self.log = FakeLog()
        self.counts = {}
        policy = Policy(config)
        directory = FakeDirectory()
        handlers = Handlers(
            policy=policy,
            spool=self.spool,
            directory=directory,
            authenticator=FakeAuthenticator(),
            log=self.log,
            count=self._count,
            clock_ns=lambda: NOW_NS,
            spawn=run,
            peers=directory.peers,
        )
        self.output = b""
        super().__init__(handlers, Engine(settings_of(config, listener)), listener, policy.peer(ip), tls)

    def _count(self, name, n=1):
        self.counts[name] = self.counts.get(name, 0) + n

    def turned(self, out):
        self.output += out

    @property
    def closed(self):
        return self.engine.closed

    def connect(self):
        self.engine.greet()
        return self.engine.take_output()

    def feed(self, data):
        self.output = b""
        # Valid only during the call, as with the real receive buffer.
        room = bytearray(data)
        self.engine.feed(memoryview(room))
        if self.engine.waiting:
            self.engine.keep()
        else:
            self.output += self.turn()
        room[:] = b"?" * len(room)
        while self.spool.waiting:
            self.spool.run()
        return self.output

    def happen(self, what):
        self.output = b""
        if what == "tls":
            assert self.engine.state == State.TLS
            self.tls_text = b"TLSv1.3 with cipher X"
            self.engine.tls_started()
        elif what == "drain":
            self.engine.drain()
        elif what == "spool full":
            self.spool.full = True
        elif what == "spool fault":
            self.spool.fault = SpoolError("EIO")
        elif what == "spool fault full":
            self.spool.fault = SpoolFull("ENOSPC")
        elif what.startswith("room "):
            self.spool.room = int(what[5:])
        elif what == "directory away":
            self.handlers.directory.away = True
        elif what.startswith("content "):
            want = what[8:].encode("latin-1").decode("unicode_escape").encode("latin-1")
            assert self.spool.messages[-1][2] == want, self.spool.messages[-1][2]
        elif what.startswith("messages "):
            assert len(self.spool.messages) == int(what[9:]), len(self.spool.messages)
        else:
            raise ValueError(what)
        return self.engine.take_output()
