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
from iems.attachment.rules import Rule, decide
from iems.message import build
from iems.message.structure import Structure
from iems.model import Envelope, Reply, rope_length
from iems.model import Verdict as Tag
from iems.preprocessor.modules import Verdict, Work
from iems.preprocessor.parts import Change, edited, part_replaced

#: Above this the work is done in a thread.
THREAD_OCTETS = 128 << 10
#: A longer message can't be read with certainty.
MAX_OCTETS = 256 << 20
#: Of such a message this much is read; what of its header is longer goes with the body.
HEAD_OCTETS = 1 << 20
_SHOWN = 120
#: Rules that tag one message.
_TAGS_MAX = 10


class Attachments:
    """rules: in the order they count. unparsable: `strip`, `bounce` or `pass`. hostname: in the notices."""

    name = "attachments"
    on_tags = False

    def __init__(self, rules: Callable[[], Sequence[Rule]], unparsable: str, hostname: str) -> None:
        self._rules = rules
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
            head = work.read(work.rope, 0, HEAD_OCTETS)
            changes = _emptied(head, why, self._hostname) if unparsable == "strip" else []
            # The last of them takes the body away, to its end.
            changes = [*changes[:-1], changes[-1]._replace(end=octets)] if changes else []
            decision = Decision(unparsable, why, changes)
        else:
            content = work.read(work.rope, 0, octets)
            if octets > THREAD_OCTETS:
                decision = await asyncio.to_thread(judge, content, rules, unparsable, self._hostname)
            else:
                decision = judge(content, rules, unparsable, self._hostname)
        if decision.action == "bounce":
            reply = Reply(550, 7, 1, f"Refused: {decision.what}")
            return Verdict(failed=[(source, reply) for part in work.parts for source in part.sources], note=f"bounced: {decision.what}")
        tags = tuple(Tag(self.name, shown, f"rule {rule.type} {rule.name}") for rule, shown in decision.tagged)
        noted = [f"tagged: {', '.join(shown for _, shown in decision.tagged)}"] if tags else []
        if decision.action == "strip" and decision.changes:
            return Verdict(rope=await edited(work, decision.changes), tags=tags, note="; ".join([f"removed: {decision.what}", *noted]))
        return Verdict(tags=tags, note="; ".join(noted))


class Decision(NamedTuple):
    """action: `pass`, `strip` or `bounce`. what: for the log and the sender. changes: of the content, for `strip`. tagged: (rule, attachment)
    for which the message is tagged, whatever becomes of others."""

    action: str
    what: str = ""
    changes: Sequence[Change] = ()
    tagged: Sequence[tuple[Rule, str]] = ()


def judge(content: bytes, rules: Sequence[Rule], unparsable: str, hostname: str) -> Decision:
    """What becomes of a message."""
    findings = find(content)
    hits: list[tuple[Found, Rule, str]] = []
    for one in findings.attachments:
        rule = decide(rules, one.types, one.names, one.body)
        shown = one.names[0] if one.names else one.types[0]
        if rule is None:
            for name, kind in one.inner:
                rule = decide(rules, [kind] if kind else [], [name])
                if rule is not None:
                    shown = f"{name} in {shown}"
                    break
        if rule is not None:
            hits.append((one, rule, _clean(shown)))
    for _, rule, shown in hits:
        if rule.action == "bounce":
            return Decision("bounce", f"attachment {shown}")
    tagged = list({rule: (rule, shown) for _, rule, shown in hits if rule.action == "tag"}.values())[:_TAGS_MAX]
    hits = [hit for hit in hits if hit[1].action != "tag"]
    uncertain = findings.uncertain
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
    if uncertain and unparsable != "pass":
        return Decision(unparsable, f"unreadable MIME ({uncertain})", _emptied(content, uncertain, hostname), tagged)
    if not hits:
        return Decision("pass", tagged=tagged)
    return Decision("strip", ", ".join(shown for _, _, shown in hits[:10]), _without(content, hits, hostname), tagged)


def _clean(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)[:_SHOWN]


def _notice(what: str, hostname: str) -> str:
    return f"{what} was removed from this message by {hostname}, as its rules for attachments say.\r\n"


def _without(content: bytes, hits: list[tuple[Found, Rule, str]], hostname: str) -> list[Change]:
    """Each attachment replaced by a notice; what stands within a removed part goes with it."""
    structure = Structure.parse(content)
    changes: list[Change] = []
    gone: list[tuple[int, int]] = []
    for one, _, shown in sorted(hits, key=lambda hit: (hit[0].start, hit[0].within)):
        if any(start <= one.start < end for start, end in gone):
            continue
        notice = _notice(f"The attachment {shown}", hostname)
        if one.within:
            changes.append(Change(one.start, one.end, f"[{notice.strip()}]\r\n".encode("ascii", "replace")))
            gone.append((one.start, one.end))
        else:
            changes += part_replaced(content, structure.at(one.row), build.text_part(notice))
            gone.append((one.start, one.end))
    return sorted(changes)


def _emptied(content: bytes, why: str, hostname: str) -> list[Change]:
    """The whole body replaced by a notice, and what of the header may be body for others taken away."""
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
    return sorted([*changes, *lines])
