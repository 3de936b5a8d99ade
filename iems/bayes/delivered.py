"""What delivery has written in front of a message, and the message as it came: judging and learning must see the same octets."""

from __future__ import annotations

import re

from iems.message.verdict import FRONT, parse, recorded


def judged(content: bytes) -> str:
    """The verdict that delivery wrote into a message, "" if it was not judged here. What stands behind our fields is not ours."""
    front = FRONT.match(content)
    if front is None:
        return ""
    found = re.search(rb"^X-IEMS-Bayes: ([a-z]+) ", front[0], re.M)
    return found[1].decode("ascii") if found else ""


def filed_by_tag(content: bytes) -> bool:
    """Whether User Spam Control put the message where it was delivered to."""
    front = FRONT.match(content)
    return front is not None and b"action=file" in front[0]


def filed_by_delivery(content: bytes, mailbox: str) -> bool | None:
    """Whether delivery itself put the message into a mailbox: nobody has looked at it there. None without a record that says it.

    content: the message, or its first lines.
    """
    record = recorded(content)
    return any(item.name == "to" and item.word == mailbox for item in parse(record)) if record else None


def as_it_came(content: bytes) -> bytes:
    """A message without what delivery put in front of it."""
    front = FRONT.match(content)
    return content[front.end() :] if front is not None else content
