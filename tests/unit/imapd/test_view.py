"""A view against the truth: whatever happens, applying what a client is told gives what the mailbox holds."""

import random

import numpy as np

from iems.imapd.view import View
from iems.store.reader import Selected
from iems.store.rows import Mailbox


class Client:
    """Keeps what it is told."""

    def __init__(self, view):
        self.view = view
        self.messages = [None] * view.told

    def hear(self, text):
        for line in text.splitlines():
            words = line.split()
            if words[2:3] == [b"EXPUNGE"]:
                del self.messages[int(words[1]) - 1]
            elif words[2:3] == [b"EXISTS"]:
                assert int(words[1]) >= len(self.messages)
                self.messages += [None] * (int(words[1]) - len(self.messages))
            elif words[2:3] == [b"FETCH"]:
                self.messages[int(words[1]) - 1] = line.partition(b"FLAGS ")[2]


def test_random_histories():
    for seed in range(60):
        rng = random.Random(seed)
        box = Mailbox(id=1, name="x", uidvalidity=1, uidnext=6, highestmodseq=10)
        rows = {uid: (0, 10) for uid in range(1, 6)}
        gone = []
        view = View(
            1,
            Selected(
                box, np.arange(1, 6, dtype=np.uint32), np.zeros(5, np.uint64), np.full(5, 10, np.uint64)
            ),
            False,
            1 << 32,
        )
        client = Client(view)
        for at in range(5):
            client.messages[at] = b"()"
            client.messages[at] += b")"
        for _ in range(80):
            what = rng.randrange(5)
            box.highestmodseq += 1
            if what == 0:
                rows[box.uidnext] = (0, box.highestmodseq)
                box.uidnext += 1
            elif what == 1 and rows:
                uid = rng.choice(list(rows))
                rows[uid] = (rng.randrange(32), box.highestmodseq)
            elif what == 2 and rows:
                uid = rng.choice(list(rows))
                del rows[uid]
                gone.append((uid, box.highestmodseq))
            if rng.random() < 0.4:
                since = view.modseq
                view.absorb(
                    [(uid, bits, modseq) for uid, (bits, modseq) in rows.items() if modseq > since],
                    [uid for uid, modseq in gone if modseq > since],
                    box,
                )
                client.hear(view.updates(rng.random() < 0.5))
        since = view.modseq
        view.absorb(
            [(uid, bits, modseq) for uid, (bits, modseq) in rows.items() if modseq > since],
            [uid for uid, modseq in gone if modseq > since],
            box,
        )
        client.hear(view.updates(True))
        assert list(view.uids) == sorted(rows)
        assert list(view.flags) == [rows[uid][0] for uid in view.uids]
        assert len(client.messages) == len(rows) == view.told
        for at, uid in enumerate(view.uids):
            if client.messages[at] is not None:
                assert client.messages[at] == view.rendered(at) + b")", (seed, uid)
