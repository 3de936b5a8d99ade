"""A reader of mail in memory, as much of `store.Reader` as an index needs, and messages of every kind."""

import base64
import random

from iems.model import Extent
from iems.store.rows import Mailbox, Row


class FakeReader:
    """One account with mailboxes of messages; `put` gives the uid."""

    def __init__(self):
        self.boxes = {}
        self.contents = {}
        self.blobs = self
        self.closed = 0
        self.made = 0

    def box(self, number=1, uidvalidity=7):
        self.boxes[number] = (Mailbox(id=number, name="INBOX", uidvalidity=uidvalidity), {})
        return self

    def put(self, content, number=1, origin=None):
        mailbox, rows = self.boxes[number]
        uid, mailbox.uidnext = mailbox.uidnext, mailbox.uidnext + 1
        blob = self.made = self.made + 1
        self.contents[blob] = content
        rope = [Extent(blob, 0, len(content))]
        rows[uid] = Row(
            uid, 0, uid, 0, len(content), rope, True, b"", b"", origin or blob.to_bytes(16, "big"), 0
        )
        return uid

    def twin(self, account):
        return self

    def mailbox_by_id(self, account, number):
        found = self.boxes.get(number)
        return found[0] if found else None

    def messages(self, account, number, uids):
        return [self.boxes[number][1].get(uid) for uid in uids]

    def arrivals(self, account, number, first):
        return [(uid, 0, uid) for uid in sorted(self.boxes[number][1]) if uid >= first]

    def usage(self, account):
        return 0, sum(len(rows) for _, rows in self.boxes.values())

    def read(self, rope):
        if rope[0].blob not in self.contents:
            raise FileNotFoundError("no such segment")
        return self.contents[rope[0].blob]

    def close(self):
        self.closed += 1


_WORDS = [
    "Grüße", "STRASSE", "straße", "İstanbul", "ﬁnal", "naïve", "Ωμέγα", "日本語の件名", "x\u0301y", "Ａｂｃ", "a\u00adb", "🙂🙂🙂", "abc",
    "AB", "the offer", "in\tvoice", "100%", '"quoted"', "AND", "NEAR(", "*", "\u2028line", "Ǆungla", "ŉow", "\x00zero", "\ufffe?",
]  # fmt: skip
_CHARSETS = ["utf-8", "iso-8859-1", "windows-1252", "utf-16", "iso-2022-jp", "koi8-r", "no-such", ""]


def words(rng):
    return " ".join(rng.choices(_WORDS, k=rng.randrange(1, 6)))


def message(rng: random.Random) -> bytes:
    """A message of some kind: encoded words, charsets, transfer encodings, HTML, parts, raw octets."""
    charset = rng.choice(_CHARSETS)
    try:
        octets = words(rng).encode(charset or "utf-8", "replace")
    except LookupError:
        octets = words(rng).encode("utf-8")
    if rng.random() < 0.2:
        octets = b"<p>" + octets + b"</p>&amp;<b>fin</b>al"
    encoding = rng.choice(["base64", "quoted-printable", "8bit", ""])
    if encoding == "base64":
        octets = base64.encodebytes(octets)
    subject = words(rng).replace("\x00", "")
    if rng.random() < 0.6:
        half = rng.randrange(len(subject) + 1)
        fold = rng.choice([b"\r\n ", b" ", b"\n\t"])
        coded = fold.join(
            b"=?utf-8?B?" + base64.b64encode(part.encode("utf-8", "replace")) + b"?="
            for part in (subject[:half], subject[half:])
        )
    else:
        coded = subject.encode("utf-8", "replace").replace(b"\n", b" ")
    head = b"From: =?iso-8859-1?Q?J=FCrgen?= <Jurgen@Example.test>\r\nSubject: " + coded
    if rng.random() < 0.3:
        head += b"\r\n " + rng.randbytes(8).replace(b"\n", b"")
    kind = b"text/html" if rng.random() < 0.3 else b"text/plain"
    part = b"Content-Type: %b%b\r\nContent-Transfer-Encoding: %b\r\n\r\n%b" % (
        kind, b"; charset=" + charset.encode() if charset else b"", encoding.encode(), octets
    )  # fmt: skip
    if rng.random() < 0.5:
        return head + b"\r\n" + part
    return (
        head
        + b'\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n'
        + part
        + b'\r\n--b\r\nContent-Type: application/x; name="'
        + words(rng).encode("utf-8", "replace").replace(b'"', b"")
        + b'"\r\n\r\n'
        + rng.randbytes(30)
        + b"\r\n--b--\r\n"
    )


def keys(rng: random.Random, texts: list[str]) -> str:
    """A text to look for: a piece of a text, a word, or nothing that is there."""
    pick = rng.random()
    if pick < 0.6:
        text = rng.choice(texts)
        start = rng.randrange(max(1, len(text)))
        return text[start : start + rng.randrange(1, 40)]
    return words(rng) if pick < 0.9 else "nowhere at all"
