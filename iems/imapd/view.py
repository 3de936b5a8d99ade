"""A selected mailbox as one session sees it: numbers in arrays, and what the client has not been told yet.

The client counts messages by what it was told (RFC 3501 7.4.1), so a message expunged elsewhere keeps its place here until
an EXPUNGE response may be sent. A message costs 20 octets: uid u32, flags u64, modseq u64.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from iems.imap import flags as flag_names
from iems.imap import sequence
from iems.imap.flags import FIRST_KEYWORD, RECENT
from iems.imap.rights import flag_right
from iems.imapd import contexts

if TYPE_CHECKING:
    from iems.imapd.contexts import Context


#: Bits of `View.mode`: VANISHED instead of EXPUNGE (RFC 7162, 9586), UIDFETCH instead of FETCH (9586), no RECENT (9051).
VANISHED, UIDONLY, REV2 = 1, 2, 4


class View:
    """See the module.

    account, mailbox_id: what is selected. recent_uid: messages from this uid on are \\Recent in this session.
    modseq: every change up to it is in the arrays. own_modseq: of the last change this session made itself. stale: the store has told of a change. told: messages the client knows.
    condstore: the client wants MODSEQ with each FETCH of flags (RFC 7162 3.1).
    """

    __slots__ = (
        "_rendered",
        "account",
        "condstore",
        "contexts",
        "flags",
        "gone",
        "keywords",
        "mailbox_id",
        "member",
        "mode",
        "modseq",
        "modseqs",
        "name",
        "new_keywords",
        "own_modseq",
        "read_only",
        "recent_uid",
        "rights",
        "saved",
        "stale",
        "told",
        "uidnext",
        "uids",
        "uidvalidity",
        "unreported",
    )

    def __init__(self, account: int, selected: Any, read_only: bool, recent_uid: int) -> None:
        mailbox = selected.mailbox
        self.account = account
        self.mailbox_id: int = mailbox.id
        self.name: str = mailbox.name
        self.uidvalidity: int = mailbox.uidvalidity
        self.uidnext: int = mailbox.uidnext
        self.modseq: int = mailbox.highestmodseq
        self.keywords: list[str] = list(mailbox.keywords)
        self.own_modseq = 0
        self.read_only = read_only
        self.recent_uid = recent_uid
        self.uids: array[int] = array("I")
        self.flags: array[int] = array("Q")
        self.modseqs: array[int] = array("Q")
        for held, numbers in ((self.uids, selected.uids), (self.flags, selected.flags), (self.modseqs, selected.modseq)):
            octets: Any = np.ascontiguousarray(numbers).view(np.uint8)
            held.frombytes(octets)
        self.told = len(self.uids)
        self.stale = False
        self.rights: str | None = None  # of a mailbox another account shares (RFC 4314); None: all
        self.member = 0  # the account whose \\Seen counts, in a shared mailbox
        self.condstore = False
        self.mode = 0
        self.new_keywords = False
        self.gone: set[int] | None = None  # uids expunged, the client still counts them
        self.unreported: set[int] | None = None  # uids whose flags someone else changed
        self._rendered: dict[int, bytes] | None = None
        self.saved: array[int] | None = None  # uids SEARCH saved (RFC 5182)
        self.contexts: dict[bytes, Context] | None = None  # searches kept up to date, by their tag (RFC 5267)

    def __len__(self) -> int:
        return len(self.uids)

    def position(self, uid: int) -> int:
        """Where a message is, -1 if it is not in this view."""
        at = bisect_left(self.uids, uid)
        return at if at < len(self.uids) and self.uids[at] == uid else -1

    def bits(self, at: int) -> int:
        """The flags of a message with \\Recent."""
        return self.flags[at] | RECENT if self.uids[at] >= self.recent_uid else self.flags[at]

    def rendered(self, at: int) -> bytes:
        """The flag list of a message as it goes to the wire."""
        bits = self.bits(at)
        cache = self._rendered
        if cache is None:
            cache = self._rendered = {}
        text = cache.get(bits)
        if text is None:
            if len(cache) >= 64:
                cache.clear()
            text = cache[bits] = flag_names.render(bits, self.keywords)
        return text

    def forget_recent(self) -> None:
        """No message is \\Recent here any more (RFC 9051 has no such flag)."""
        self.recent_uid = 1 << 32
        self._rendered = None

    def recent(self) -> int:
        """Messages that are \\Recent here."""
        return len(self.uids) - bisect_left(self.uids, self.recent_uid)

    def first_unseen(self) -> int:
        """Sequence number of the first message without \\Seen, 0 if there is none."""
        for start in range(0, len(self.flags), 4096):
            part = np.frombuffer(self.flags[start : start + 4096], np.uint64)
            unseen = np.flatnonzero((part & np.uint64(flag_names.SEEN)) == 0)
            if len(unseen):
                return start + int(unseen[0]) + 1
        return 0

    # ------------------------------------------------------------------ changes

    def absorb(self, changed: Sequence[tuple[int, int, int]], vanished: Iterable[int], mailbox: Any) -> None:
        """Take in what happened after `modseq` (the answer of `Reader.changes`)."""
        self._set_keywords(mailbox.keywords)
        last = self.uids[-1] if self.uids else 0
        new = []
        for uid, bits, modseq in changed:
            if uid > last:
                new.append((uid, bits, modseq))
                continue
            at = self.position(uid)
            if at >= 0 and modseq > self.modseqs[at]:
                if bits != self.flags[at] or self.condstore:
                    if self.unreported is None:
                        self.unreported = set()
                    self.unreported.add(uid)
                self.flags[at] = bits
                self.modseqs[at] = modseq
        for uid, bits, modseq in sorted(new):
            self.uids.append(uid)
            self.flags.append(bits)
            self.modseqs.append(modseq)
        for uid in vanished:
            if self.position(uid) >= 0:
                if self.gone is None:
                    self.gone = set()
                self.gone.add(uid)
        self.modseq = mailbox.highestmodseq
        self.uidnext = mailbox.uidnext
        self.name = mailbox.name

    def _set_keywords(self, keywords: list[str]) -> None:
        if keywords != self.keywords:
            self.keywords = list(keywords)
            self._rendered = None
            self.new_keywords = True

    def changed_here(self, changes: Sequence[tuple[int, int, int]]) -> None:
        """Take in what an operation of this session did; the command itself tells the client."""
        for uid, bits, modseq in changes:
            at = self.position(uid)
            if at >= 0 and modseq >= self.modseqs[at]:
                self.flags[at] = bits
                self.modseqs[at] = modseq
            if modseq > self.own_modseq:
                self.own_modseq = modseq

    def only_new(self, mailbox: Any) -> bool:
        """Whether all that happened since `modseq` is new messages and the last change made here.

        Then old rows need not be looked at, which in a large mailbox takes milliseconds.
        """
        changed: int = mailbox.changed_modseq
        if changed <= self.modseq:
            return True
        return changed == self.own_modseq and bool(mailbox.changed_before <= self.modseq)

    def expunged_here(self, uids: Iterable[int]) -> None:
        """Messages that an operation of this session removed."""
        if self.gone is None:
            self.gone = set()
        self.gone.update(uid for uid in uids if self.position(uid) >= 0)

    @property
    def permanent_flags(self) -> bytes:
        """The lists of FLAGS and PERMANENTFLAGS without parentheses: system flags and the keywords in use."""
        names = [name.encode("ascii", "replace") for name in self.keywords if name]
        return b" ".join([flag_names.SYSTEM_NAMES, *names])

    @property
    def keywords_full(self) -> bool:
        """Whether this mailbox can have no further keyword."""
        return len(self.keywords) >= flag_names.MAX_KEYWORDS

    def flags_response(self) -> bytes:
        """FLAGS and PERMANENTFLAGS."""
        names = self.permanent_flags
        if self.read_only:
            permanent = b""
        else:
            permanent = names if self.keywords_full else names + rb" \*"
            if self.rights is not None:
                held = self.rights
                permanent = b" ".join([name for name in permanent.split() if flag_right(name.decode()) in held])
        return b"* FLAGS (" + names + b")\r\n* OK [PERMANENTFLAGS (" + permanent + b")] Flags kept\r\n"

    def fetch_flags(self, at: int, uid: bool) -> bytes:
        """A FETCH response with the flags of a message; `uid`: with its UID, as answers to UID commands need it."""
        if self.mode & UIDONLY:
            modseq = b"MODSEQ (%d) " % self.modseqs[at] if self.condstore else b""
            return b"* %d UIDFETCH (%bFLAGS %b)\r\n" % (self.uids[at], modseq, self.rendered(at))
        parts = [b"* %d FETCH (" % (at + 1)]
        if uid or self.condstore:
            parts.append(b"UID %d " % self.uids[at])
        if self.condstore:
            parts.append(b"MODSEQ (%d) " % self.modseqs[at])
        parts.append(b"FLAGS " + self.rendered(at) + b")\r\n")
        return b"".join(parts)

    def updates(self, expunges: bool) -> bytes:
        """Untagged responses for what the client does not know yet; with `expunges` those too (RFC 3501 7.4.1)."""
        parts: list[bytes] = []
        if self.new_keywords:
            self.new_keywords = False
            parts.append(self.flags_response())
        if self.unreported:
            for uid in sorted(self.unreported):
                at = self.position(uid)
                # A message the client has not been told of is asked for by it soon enough.
                if 0 <= at < self.told and not (self.gone and uid in self.gone):
                    parts.append(self.fetch_flags(at, False))
            self.unreported = None
        if expunges and self.gone:
            parts.append(self._expunge())
        if len(self.uids) > self.told:
            self.told = len(self.uids)
            if self.mode & REV2:
                parts.append(b"* %d EXISTS\r\n" % self.told)
            else:
                parts.append(b"* %d EXISTS\r\n* %d RECENT\r\n" % (self.told, self.recent()))
        return b"".join(parts)

    def _expunge(self) -> bytes:
        assert self.gone is not None
        parts = []
        if self.contexts:
            parts.append(contexts.expunged(self, sorted(self.gone)))
        told = self.told
        vanished: list[int] = []
        # From the last to the first: each number is then the one the client had before.
        for uid in sorted(self.gone, reverse=True):
            at = self.position(uid)
            if at < 0:
                continue
            if at < told:
                if self.mode & VANISHED:
                    vanished.append(uid)
                else:
                    parts.append(b"* %d EXPUNGE\r\n" % (at + 1))
                self.told -= 1
            del self.uids[at], self.flags[at], self.modseqs[at]
        self.gone = None
        if vanished:
            parts.append(b"* VANISHED " + sequence.render(reversed(vanished)) + b"\r\n")
        return b"".join(parts)


def keyword_mask(keywords: list[str]) -> int:
    """All keyword bits in use."""
    return ((1 << len(keywords)) - 1) << FIRST_KEYWORD
