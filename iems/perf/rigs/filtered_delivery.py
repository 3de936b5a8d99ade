"""Local delivery with everything on: User Spam Control on tagged mail, a trained Bayesian filter, five rules, a vacation answer that is set.

A filled queue is released and drains through all of that. Beside it stand Dovecot's LMTP with the same rules as a Sieve script (Pigeonhole), and the
same with rspamd's Bayesian classifier asked about each message before; whatever mail that is passes the same rules on each side.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from iems._native import loadgen
from iems.perf import measure, messages, peers
from iems.perf.drain import drain
from iems.perf.home import PrivateHome
from iems.perf.measure import Case, Options, Reading
from iems.sieve.mailsort import NAME as MAILSORT
from iems.sieve.mailsort import Answer, MailSort, Rule, write

NAME = "filtered_delivery"
TITLE = "Local delivery with all filters on"
PEERS = {"dovecot sieve": ("dovecot",), "dovecot sieve+rspamd": ("dovecot", "rspamd")}
CASES = ((4_096, 10_000, 1_000), (250_000, 1_000, 300))
LEAST = {4_096: 1_000, 250_000: 200}
ACCOUNTS = 10
#: Messages of each kind that the filters learn.
LESSONS = 100
ALLOWED = 20
#: Words of spam in the place of words of the good mail.
_WORSE = {b"meeting": b"casino", b"budget": b"pills", b"report": b"lottery", b"invoice": b"winner", b"project": b"viagra", b"offer": b"bonus"}


def script() -> str:
    """The rules of everybody: four that look and don't match, one that files, an answer that is tried each time."""
    rules = [
        Rule("from", "boss@", "copy", "Important", True),
        Rule("subject", "newsletter", "move", "Newsletters"),
        Rule("to", "list@", "move", "Lists"),
        Rule("cc", "team@", "move", "Team"),
        Rule("from", "sender@load", "move", "Filed"),
    ]
    return write(MailSort(rules, Answer("Away", "I am away and read it later.")))


def lessons(spam: bool) -> list[bytes]:
    """Mail of one kind to learn from."""
    found = [content for content, _ in messages.pool(4_096, LESSONS, seed=31 + spam)]
    if spam:
        for good, bad in _WORSE.items():
            found = [content.replace(good, bad) for content in found]
    return found


def cases(options: Options) -> list[Case]:
    """Two sizes. `peer_messages`: how many a peer gets, which takes longer over each."""
    return [
        Case(
            f"{octets}",
            {"octets": octets, "messages": options.count(count, LEAST[octets]), "peer_messages": options.count(few, 100)},
        )
        for octets, count, few in CASES
    ]


@contextlib.contextmanager
def side(options: Options, case: Case, who: str) -> Iterator[Callable[[], Reading]]:
    """Fill, release, wait until empty; the queue is filled anew for each repetition."""
    pool = messages.pool(case["octets"])
    if who == "iems":
        with PrivateHome(ACCOUNTS, folder=options.folder) as home:
            _set_up(home)

            def repetition() -> Reading:
                found = drain(home, case["octets"], case["messages"])
                _see(home)
                return found

            yield repetition
        return
    from iems.perf.peers.dovecot import Dovecot
    from iems.perf.peers.rspamd import Rspamd

    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(Dovecot(ACCOUNTS, options.folder, peers.started("dovecot", options), sieve=script()))
        classifier: Rspamd | None = None
        if who == "dovecot sieve+rspamd":
            classifier = Rspamd(1, options.folder, peers.started("rspamd", options))
            stack.enter_context(classifier)
            for spam in (False, True):
                if classifier.learn(lessons(spam), spam) < LESSONS // 2:
                    raise RuntimeError("rspamd does not learn")
            if b"BAYES_" not in classifier.scan(lessons(True)[:1])[0]:
                raise RuntimeError("rspamd does not judge")
        count = case["peer_messages"]
        scanned: Sequence[bytes] = [pool[number % len(pool)][0] for number in range(count)]

        def load() -> None:
            if classifier is not None:
                classifier.scan(scanned)
            done = loadgen.smtp(
                peer.port("lmtp"), pool, peer.users(), b"sender@load.test", sessions=10, lmtp=True, count=count, first_id=time.time_ns()
            )
            if done["errors"] or done["done"] < count:
                raise RuntimeError(f"Dovecot took {done['done']} of {count}: {done['complaint']}")

        yield lambda: measure.counted([peer, *([classifier] if classifier is not None else [])], count, case["octets"], load)


def _set_up(home: PrivateHome) -> None:
    """Every account's spam control, filter, rules and answer, as their owners would set them."""
    from iems.bayes.trainer import Trainer
    from iems.directory import Directory
    from iems.directory.bayeschoice import choice_of
    from iems.directory.spamcontrol import SpamControl, action_of, allowed_of
    from iems.store.homes import bayes_folder
    from iems.store.scripts import scripts_of

    home.ctl("headerrule", "add", "all", "--field", "Subject", "--matches", ".", "--action", "tag")
    store = home.path / "store"
    learnt: Path | None = None
    directory = Directory(home.path / "directory")
    try:
        control = SpamControl(action_of("ignore"), {"bl.test": action_of("discard")}, tuple(allowed_of(f"friend{n}@far{n}.test") for n in range(ALLOWED)))
        for user in home.users():
            address = user.decode()
            directory.set_spam_control(address, lambda _: control)
            directory.set_bayes(address, choice_of("ignore", "ignore", 0.35, 0.65))
            account = directory.account(address)
            assert account is not None
            scripts_of(directory, store, account).put(MAILSORT, script(), activate=True)
            folder = bayes_folder(store, address)
            if learnt is None:
                with Trainer(folder) as trainer:
                    for good, bad in zip(lessons(False), lessons(True), strict=True):
                        trainer.learn(good, False)
                        trainer.learn(bad, True)
                learnt = folder
            else:
                shutil.copytree(learnt, folder, dirs_exist_ok=True)
    finally:
        directory.close()


def _see(home: PrivateHome) -> None:
    """That all filters were on. Raises RuntimeError."""
    from iems.message.verdict import parse, recorded
    from iems.store.reader import Reader

    reader = Reader(home.path / "store")
    try:
        box = reader.mailbox(1, "Filed") or reader.mailbox(2, "Filed")
        if box is None:
            raise RuntimeError("no rule has filed anything")
        for account in (1, 2):
            found = reader.mailbox(account, "Filed")
            row = reader.message(account, found.id, found.uidnext - 1) if found is not None else None
            if row is not None:
                said = {item.name for item in parse(recorded(reader.blobs.read_range(row.rope, 0, 4_096)))}
                if not {"headerrule", "spamcontrol", "bayes", "rule", "to"} <= said:
                    raise RuntimeError(f"a filter was off: {sorted(said)}")
    finally:
        reader.close()
