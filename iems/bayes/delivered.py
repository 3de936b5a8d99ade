"""What delivery has written in front of a message, and the message as it came: judging and learning must see the same octets."""

from __future__ import annotations

import re

#: Fields that delivery puts in front of a message; training and judging must see the same octets.
_OURS = re.compile(
    rb"(?:(?:Return-Path|Delivered-To|X-IEMS-AntiSpam|X-IEMS-Bayes|X-Spam-Status):[^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*)+"
)


def judged(content: bytes) -> str:
    """The verdict that delivery wrote into a message, "" if it was not judged here. What stands behind our fields is not ours."""
    front = _OURS.match(content)
    if front is None:
        return ""
    found = re.search(rb"^X-IEMS-Bayes: ([a-z]+) ", front[0], re.M)
    return found[1].decode("ascii") if found else ""


def filed_by_tag(content: bytes) -> bool:
    """Whether User Spam Control put the message where it was delivered to."""
    front = _OURS.match(content)
    return front is not None and b"action=file" in front[0]


def as_it_came(content: bytes) -> bytes:
    """A message without what delivery put in front of it."""
    front = _OURS.match(content)
    return content[front.end() :] if front is not None else content
