"""Two clients on one mailbox under random APPEND, STORE, EXPUNGE, MOVE, COPY and QRESYNC agree with a model: two of one user, and two members of
a shared mailbox, who have each their own \\Seen."""

import itertools
import re

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from iems.perf.home import PrivateHome
from tests.integration.test_imap_extensions import Client

SEEN = b"\\Seen"
FLAGS = (SEEN, b"\\Flagged", b"\\Deleted", b"$Label", b"$Other")
_names = itertools.count()
_TAKEN = re.compile(rb"UID (\d+).*?FLAGS \(([^)]*)\)")
CLIENTS = st.sampled_from([0, 1])


class Viewer(Client):
    """A client that counts messages by what it is told. known: what it would keep in a cache, by uid."""

    def open(self, box):
        self.box = box
        self.ask(b"ENABLE QRESYNC") if self.vanishing else None
        self.uids = []
        self.known = {}
        untagged, done = self.ask(b"SELECT " + box)
        assert done.startswith(b"OK"), done
        self.validity = re.search(rb"UIDVALIDITY (\d+)", b" ".join(untagged))[1]
        self.modseq = 0
        self.take(untagged)

    def take(self, untagged):
        """Apply untagged responses in their order."""
        exists = len(self.uids)
        for line in untagged:
            if match := re.fullmatch(rb"\* (\d+) EXPUNGE", line):
                assert not self.vanishing
                self.known.pop(self.uids[int(match[1]) - 1], None)
                del self.uids[int(match[1]) - 1]
                exists -= 1
            elif match := re.fullmatch(rb"\* VANISHED( \(EARLIER\))? ([\d:,]+)", line):
                for uid in numbers(match[2]):
                    self.known.pop(uid, None)
                    if uid in self.uids:
                        assert not match[1] or uid in self.uids
                        self.uids.remove(uid)
                        exists -= 1
            elif match := re.fullmatch(rb"\* (\d+) EXISTS", line):
                exists = int(match[1])
            elif (match := re.match(rb"\* (\d+) FETCH", line)) and (found := _TAKEN.search(line)):
                self.known[int(found[1])] = flags(found[2])
            elif match and (found := re.search(rb"FLAGS \(([^)]*)\)", line)) and int(match[1]) <= len(self.uids):
                self.known[self.uids[int(match[1]) - 1]] = flags(found[1])
            if match := re.search(rb"(?:HIGHESTMODSEQ |MODSEQ \()(\d+)", line):
                self.modseq = max(self.modseq, int(match[1]))
        if exists > len(self.uids):
            lines, _ = self.ask(b"FETCH %d:%d (UID FLAGS)" % (len(self.uids) + 1, exists))
            for line in lines:
                number = int(re.match(rb"\* (\d+) FETCH", line)[1])
                found = _TAKEN.search(line)
                if number == len(self.uids) + 1:
                    self.uids.append(int(found[1]))
                self.known[int(found[1])] = flags(found[2])
        assert len(self.uids) == exists

    def do(self, command):
        untagged, done = self.ask(command)
        self.take(untagged)
        return done, untagged


def numbers(text):
    found = []
    for part in text.split(b","):
        low, _, high = part.partition(b":")
        found += range(int(low), int(high or low) + 1)
    return found


def flags(text):
    return frozenset(text.split()) - {b"\\Recent"}


class Boxes(RuleBasedStateMachine):
    """model, other: what all see of the messages of both mailboxes; seen, other_seen: for each client what it has seen."""

    home = None
    users = (b"a6@load.test", b"a6@load.test")
    below = b"%b"

    def __init__(self):
        super().__init__()
        number = next(_names)
        self.one, self.two = self.below % (b"m%d" % number), self.below % (b"n%d" % number)
        self.model = {}
        self.other = {}
        one, other = set(), set()
        self.seen = [one, one] if self.users[0] == self.users[1] else [one, set()]
        self.other_seen = [other, other] if self.users[0] == self.users[1] else [other, set()]
        self.clients = []
        for index in range(2):
            client = Viewer(self.home, self.users[index])
            client.vanishing = index == 1
            if not index:
                client.ask(b"CREATE " + self.one)
                client.ask(b"CREATE " + self.two)
            client.open(self.one)
            self.clients.append(client)

    def teardown(self):
        for client in self.clients:
            client.do(b"NOOP")
            assert client.uids == sorted(self.model)
        for index, client in enumerate(self.clients):
            untagged, _ = client.ask(b"STATUS %b (UNSEEN)" % self.two)
            client.ask(b"SELECT " + self.two)
            lines, _ = client.ask(b"UID FETCH 1:* (FLAGS)")
            expected = as_seen(self.other, self.other_seen[index])
            assert {int(m[1]): flags(m[2]) for m in map(_TAKEN.search, lines)} == expected
            assert b"(UNSEEN %d)" % sum(SEEN not in held for held in expected.values()) in untagged[0]
            client.close()

    def expected(self, index):
        return as_seen(self.model, self.seen[index])

    def keep(self, index, uid, given):
        self.model[uid] = given - {SEEN}
        self.seen[index].discard(uid)
        if SEEN in given:
            self.seen[index].add(uid)

    def pick(self, client, place):
        """A message as the client counts: (number, uid)."""
        at = place % len(client.uids)
        return at + 1, client.uids[at]

    @rule(index=CLIENTS, given=st.frozensets(st.sampled_from(FLAGS), max_size=2))
    def append(self, index, given):
        content = b"Subject: x\r\n\r\nx\r\n"
        done, _ = self.clients[index].do(
            b"APPEND %b (%b) {%d+}\r\n%b" % (self.one, b" ".join(given), len(content), content)
        )
        self.keep(index, int(re.search(rb"APPENDUID \d+ (\d+)", done)[1]), given)

    @precondition(lambda self: any(client.uids for client in self.clients))
    @rule(
        index=CLIENTS,
        place=st.integers(0, 50),
        count=st.integers(1, 4),
        mode=st.sampled_from([b"", b"+", b"-"]),
        silent=st.booleans(),
        given=st.frozensets(st.sampled_from(FLAGS), max_size=3),
    )
    def store(self, index, place, count, mode, silent, given):
        client = self.clients[index]
        if not client.uids:
            return
        first, _ = self.pick(client, place)
        last = min(first + count - 1, len(client.uids))
        uids = client.uids[first - 1 : last]
        done, _ = client.do(
            b"STORE %d:%d %bFLAGS%b (%b)" % (first, last, mode, b".SILENT" if silent else b"", b" ".join(given))
        )
        assert not done.startswith(b"BAD"), done
        for uid in uids:
            if uid in self.model:
                old = self.expected(index)[uid]
                new = given if not mode else old | given if mode == b"+" else old - given
                self.keep(index, uid, new)
                if silent:
                    client.known[uid] = new

    @rule(index=CLIENTS)
    def expunge(self, index):
        self.clients[index].do(b"EXPUNGE")
        self.model = {uid: held for uid, held in self.model.items() if b"\\Deleted" not in held}

    @precondition(lambda self: any(client.uids for client in self.clients))
    @rule(index=CLIENTS, place=st.integers(0, 50), verb=st.sampled_from([b"MOVE", b"COPY", b"UID MOVE", b"UID COPY"]))
    def transfer(self, index, place, verb):
        client = self.clients[index]
        if not client.uids:
            return
        number, uid = self.pick(client, place)
        done, untagged = client.do(b"%b %d %b" % (verb, uid if verb.startswith(b"UID") else number, self.two))
        found = re.search(rb"COPYUID \d+ (\d+) (\d+)", done + b" ".join(untagged))
        assert (found is not None) == (uid in self.model), (done, uid)
        if found is not None:
            assert int(found[1]) == uid
            self.other[int(found[2])] = self.model[uid]
            for here, there in zip(self.seen, self.other_seen, strict=True):
                if uid in here:
                    there.add(int(found[2]))
            if verb.endswith(b"MOVE"):
                del self.model[uid]

    @rule(index=CLIENTS)
    def noop(self, index):
        client = self.clients[index]
        client.do(b"NOOP")
        assert client.uids == sorted(self.model)
        assert client.known == self.expected(index)

    @rule()
    def resync(self):
        """The second client leaves, and comes back with what it has cached."""
        client = self.clients[1]
        client.do(b"NOOP")
        client.ask(b"UNSELECT")
        self.append(0, frozenset({SEEN}))
        client.uids = []
        untagged, done = client.ask(b"SELECT %b (QRESYNC (%b %d))" % (self.one, client.validity, max(client.modseq, 1)))
        assert done.startswith(b"OK")
        known = dict(client.known)
        for line in untagged:
            if match := re.fullmatch(rb"\* VANISHED \(EARLIER\) ([\d:,]+)", line):
                for uid in numbers(match[1]):
                    known.pop(uid, None)
            elif found := _TAKEN.search(line):
                known[int(found[1])] = flags(found[2])
        assert known == self.expected(1)
        client.known = known
        client.take([line for line in untagged if b"VANISHED" not in line])

    @invariant()
    def at_most_what_is_there(self):
        for client in self.clients:
            assert client.uids == sorted(client.uids)


class SharedBoxes(Boxes):
    users = (b"a5@load.test", b"a6@load.test")
    below = b'"Shared Folders/team@load.test/%b"'


def as_seen(model, seen):
    return {uid: held | {SEEN} if uid in seen else held for uid, held in model.items()}


@pytest.fixture(scope="module")
def home():
    with PrivateHome(6) as home:
        home.ctl("shared", "create", "team@load.test", "--member", "a5@load.test=manage", "--member", "a6@load.test=manage")
        yield home
        assert not home.ctl("fsck", "--json")


def play(home, examples, steps, machine=Boxes):
    machine.home = home
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


def test_two_clients_agree(home):
    play(home, 25, 30)


def test_two_members_of_a_shared_mailbox_agree(home):
    play(home, 25, 30, SharedBoxes)


@pytest.mark.long
@pytest.mark.parametrize("machine", [Boxes, SharedBoxes])
def test_two_clients_agree_for_long(home, machine):
    play(home, 1_000, 60, machine)
