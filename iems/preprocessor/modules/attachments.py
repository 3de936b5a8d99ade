"""Module `attachments`: refuses, removes or tags attachments by type and name, as the administrator's rules say (product.md 1.3).

What is removed leaves a notice in its place; the rest of the message stays octet for octet. A message that mail programs read differently
follows `attachment.unparsable`, so that nothing slips through between their readings and ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgspec import structs

from iems.attachment.find import Found, find
from iems.attachment.rules import Rule, decide, place
from iems.message import build
from iems.message.structure import Structure
from iems.model import Envelope, Reply, rope_length
from iems.model import Verdict as Tag
from iems.preprocessor.modules import Verdict, Work
from iems.preprocessor.parts import Change, edited, part_replaced

#: Above this the work is done in a thread.
THREAD_OCTETS = 32 << 10
#: A longer message can't be read with certainty.
MAX_OCTETS = 256 << 20
#: Of such a message this much is read; what of its header is longer goes with the body.
HEAD_OCTETS = 1 << 20
#: What is packed takes longer to look into than its length tells: gzip, bzip2 and xz, plain or in base64.
_PACKED = (b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ", b"H4sI", b"Qlpo", b"/Td6WF")
_SHOWN = 120
#: Rules that tag one message.
_TAGS_MAX = 10


class Attachments:
    """rules: in the order they count. unparsable: `strip`, `bounce`, `tag` or `pass`. hostname: in the notices. tell: whether the postmaster hears of
    what is removed or refused."""

    name = "attachments"
    on_tags = False

    def __init__(self, rules: Callable[[], Sequence[Rule]], unparsable: str, hostname: str, tell: bool = False) -> None:
        self._rules = rules
        self._tell = tell
        self._unparsable = unparsable
        self._hostname = hostname

    def wants(self, envelope: Envelope) -> bool:
        """All mail, once there is a rule."""
        return bool(self._rules())

    async def examine(self, work: Work) -> Verdict:
        """Refused, or without what the rules forbid, or as it is."""
        rules, unparsable = self._rules(), self._unparsable
        if not work.envelope.reverse_path:
            # A report that is refused goes to nobody, and one of ours may bring back the very message: it is delivered, without what is forbidden.
            rules = [structs.replace(rule, action="strip") if rule.action == "bounce" else rule for rule in rules]
            unparsable = "strip" if unparsable == "bounce" else unparsable
        octets = rope_length(work.rope)
        if octets > MAX_OCTETS:
            why = "longer than what is looked into"
            changes = _emptied(work.read(work.rope, 0, HEAD_OCTETS), why, self._hostname, octets) if unparsable == "strip" else []
            decision = Decision("pass" if unparsable == "tag" else unparsable, why, changes, unread=why if unparsable == "tag" else "")
        else:
            content = work.read(work.rope, 0, octets)
            if octets > THREAD_OCTETS or any(mark in content for mark in _PACKED):
                decision = await asyncio.to_thread(judge, content, rules, unparsable, self._hostname)
            else:
                decision = judge(content, rules, unparsable, self._hostname)
        if decision.action == "bounce":
            reply = Reply(550, 7, 1, f"Refused: {decision.what}")
            failed = [(source, reply) for part in work.parts for source in part.sources]
            return Verdict(failed=failed, note=f"bounced: {decision.what}", notice=f"refused, {decision.what}" if self._tell else "")
        tags = tuple(Tag(self.name, shown, f"rule {rule.type} {rule.name}") for rule, shown in decision.tagged)
        if decision.unread:
            tags += (Tag(self.name, "unscannable", decision.unread),)
        noted = [f"tagged: {', '.join(tag.answer if tag.subject == 'unscannable' else tag.subject for tag in tags)}"] if tags else []
        if decision.action == "strip" and decision.changes:
            notice = f"removed, {decision.what}" if self._tell else ""
            return Verdict(rope=await edited(work, decision.changes), tags=tags, note="; ".join([f"removed: {decision.what}", *noted]), notice=notice)
        return Verdict(tags=tags, note="; ".join(noted))


class Decision(NamedTuple):
    """action: `pass`, `strip` or `bounce`. what: for the log and the sender. changes: of the content, for `strip`. tagged: (rule, attachment)
    for which the message is tagged, whatever becomes of others. unread: why it is tagged as one that can't be read with certainty, or ""."""

    action: str
    what: str = ""
    changes: Sequence[Change] = ()
    tagged: Sequence[tuple[Rule, str]] = ()
    unread: str = ""


class _Hit(NamedTuple):
    """An attachment that ends here. notice: what is said of it, before `was removed`."""

    attachment: Found
    shown: str
    notice: str


def judge(content: bytes, rules: Sequence[Rule], unparsable: str, hostname: str) -> Decision:
    """What becomes of a message."""
    findings = find(content)
    hits: list[_Hit] = []
    tagged: dict[Rule, tuple[Rule, str]] = {}
    uncertain = findings.uncertain
    closed = ""
    for one in findings.attachments:
        rule, shown, doubt = _judged(rules, one)
        if rule is not None and rule.action == "bounce":
            return Decision("bounce", f"attachment {shown}")
        if rule is not None and rule.action == "strip":
            hits.append(_Hit(one, shown, f"The attachment {shown}"))
        elif doubt:
            closed = closed or f"attachment {shown}: {doubt}"
        if doubt and unparsable == "strip" and (rule is None or rule.action == "tag"):
            # The rest of the message can be read with certainty: only the attachment goes.
            hits.append(_Hit(one, f"{shown} ({doubt})", f"The attachment {shown} could not be read with certainty ({doubt}); it"))
        if rule is not None and rule.action == "tag":
            tagged.setdefault(rule, (rule, shown))
    tags = list(tagged.values())[:_TAGS_MAX]
    if not uncertain:
        for name in findings.stray:
            rule = decide([rule for rule in rules if rule.type == "-"], [], [name])
            if rule is not None:
                uncertain = f"{_clean(name)} outside of the message's parts"
                break
        for kind in findings.stray_types:
            rule = decide([rule for rule in rules if rule.type != "-" and rule.name == "*"], [kind], [], kind in ("text/plain", "text/html"))
            if rule is not None:
                uncertain = uncertain or f"{_clean(kind)} outside of the message's parts"
                break
    unread = f"unreadable MIME ({uncertain})" if uncertain else closed
    if unread and unparsable == "bounce":
        return Decision("bounce", unread, tagged=tags)
    if uncertain and unparsable == "strip":
        return Decision("strip", unread, _emptied(content, uncertain, hostname, len(content)), tags)
    if unparsable != "tag":
        unread = ""
    if not hits:
        return Decision("pass", tagged=tags, unread=unread)
    return Decision("strip", ", ".join(hit.shown for hit in hits[:10]), _without(content, hits, hostname), tags, unread)


def _judged(rules: Sequence[Rule], one: Found) -> tuple[Rule | None, str, str]:
    """(the rule that counts for an attachment or for what is inside, what it is called, why a rule before that one may be about what can't be listed).

    A rule about the attachment itself, one to ignore it, too, leaves what comes after it nothing to say.
    """
    shown = _clean(one.names[0] if one.names else one.types[0])
    best = place(rules, one.types, one.names, one.body)
    called = shown
    for name, kind in one.inner:
        at = place(rules[:best], [kind] if kind else [], [name])
        if at < best and rules[at].action != "ignore":
            best, called = at, f"{_clean(name)} in {shown}"
    rule = rules[best] if best < len(rules) and rules[best].action != "ignore" else None
    doubt = one.closed if any(earlier.action != "ignore" for earlier in rules[:best]) else ""
    return rule, called, _clean(doubt)


def _clean(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)[:_SHOWN]


def _notice(what: str, hostname: str) -> str:
    return f"{what} was removed from this message by {hostname}, as its rules for attachments say.\r\n"


def _without(content: bytes, hits: list[_Hit], hostname: str) -> list[Change]:
    """Each attachment replaced by a notice; what stands within a removed part goes with it."""
    structure = Structure.parse(content)
    changes: list[Change] = []
    gone: list[tuple[int, int]] = []
    for one, _, what in sorted(hits, key=lambda hit: (hit.attachment.start, hit.attachment.within)):
        if any(start <= one.start < end for start, end in gone):
            continue
        notice = _notice(what, hostname)
        if one.within:
            changes.append(Change(one.start, one.end, f"[{notice.strip()}]\r\n".encode("ascii", "replace")))
            gone.append((one.start, one.end))
        else:
            changes += part_replaced(content, structure.at(one.row), build.text_part(notice))
            gone.append((one.start, one.end))
    return sorted(changes)


def _emptied(content: bytes, why: str, hostname: str, octets: int) -> list[Change]:
    """The whole body replaced by a notice, and what of the header may be body for others taken away. octets: of the message content is the
    beginning of; what of its header lies beyond HEAD_OCTETS goes with the body."""
    content = content[:HEAD_OCTETS] if Structure.parse(content).at(0).body_start > HEAD_OCTETS else content
    text = _notice(f"The content could not be read with certainty ({why}); it", hostname)
    changes = sorted(part_replaced(content, Structure.parse(content).at(0), build.text_part(text)))
    lines: list[Change] = []
    at = place = 0
    for line in content[: changes[-1].start].split(b"\n")[:-1]:
        while changes[place].end <= at:
            place += 1
        end = at + len(line) + 1
        # For some a CR alone ends a line, and two of them the header.
        if b"\r" in line[:-1] and changes[place].start > at:
            lines.append(Change(at, end, b""))
        at = end
    # The last of them takes the body away, to its end.
    changes[-1] = changes[-1]._replace(end=octets)
    return sorted([*changes, *lines])
