"""Columns of header values."""

import random

import numpy as np

from iems.imapd.columns import Subjects, message_ids


def test_message_ids():
    assert message_ids(b"Message-ID: x <1@x> y\r\nReferences: <a@x>\r\n <b@x>\r\nIn-Reply-To: <c@x>\r\n\r\n") == (
        b"<1@x>",
        (b"<a@x>", b"<b@x>"),
    )
    assert message_ids(b"In-Reply-To: Joe's of <c@x> <d@x>\r\n\r\n") == (b"", (b"<c@x>",))
    assert message_ids(b"Subject: x\r\n\r\n") == (b"", ())


def test_subjects_agree_with_a_list():
    """Found in one text of many lines as in each of them, in a view that has fewer and other messages, too."""
    for seed in range(60):
        rng = random.Random(seed)
        column, known = Subjects(), {}
        uid = 0
        for _ in range(rng.randrange(1, 6)):
            lines = []
            for _ in range(rng.randrange(0, 400)):
                uid += rng.randrange(1, 3)
                known[uid] = rng.choice(["", "a", "b a", "offer", "ünï a", "日本", "aa"]) if seed % 2 else rng.choice(["", "a", "ba"])
                lines.append(uid)
            column.add(np.array(lines, np.uint32), "\n".join(known[one] for one in lines))
        view = np.array(sorted(set(rng.sample(range(1, uid + 10), (uid + 9) // 2)) | {1}), np.uint32)
        for uids in (np.array(sorted(known), np.uint32), view):
            for text in ("a", "b a", "", "offer", "ï", "日", "nowhere"):
                wanted = [bool(known.get(one)) if not text else text in known.get(one, "") for one in uids.tolist()]
                assert column.holding(uids, text).tolist() == wanted, (seed, text)


def test_subjects_in_many_texts(monkeypatch):
    monkeypatch.setattr("iems.imapd.columns.SUBJECTS", 10)
    column = Subjects()
    for uid in range(1, 100, 3):
        column.add(np.arange(uid, uid + 3, dtype=np.uint32), f"n{uid}\nn{uid + 1}\nn{uid + 2}")
    assert column.holding(np.arange(1, 100, dtype=np.uint32), "n5").nonzero()[0].tolist() == [4, *range(49, 59)]
    assert 0 < column.octets < 10_000
