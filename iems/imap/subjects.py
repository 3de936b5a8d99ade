"""Texts as SORT and THREAD compare them: the base subject (RFC 5256 2.1) and i;unicode-casemap (RFC 5051)."""

from __future__ import annotations

import re
import unicodedata

#: Characters of a subject that are looked at.
MAX_CHARACTERS = 1000

_LEADER = re.compile(r"(?:\[[^\[\]]*\]\s*)*(?:re|fwd?)\s*(?:\[[^\[\]]*\]\s*)?:|\s+", re.IGNORECASE)
_BLOB = re.compile(r"\[[^\[\]]*\]\s*")
_TRAILER = re.compile(r"(?:\s+|\(fwd\))\Z", re.IGNORECASE)


def casemap(text: str) -> str:
    """A text in the form whose code points i;unicode-casemap compares (RFC 5051 2.3)."""
    if text.isascii():
        return text.upper()
    titled = "".join([char.title() if len(char.title()) == 1 else char for char in text])
    return unicodedata.normalize("NFKD", titled)


def base_subject(text: str) -> tuple[str, bool]:
    """(base subject, whether it is a reply or forward) of a decoded subject (RFC 5256 2.1)."""
    text = " ".join(text[:MAX_CHARACTERS].split())
    reply = False
    while True:
        while (trailer := _TRAILER.search(text)) is not None:
            reply = reply or not trailer.group().isspace()
            text = text[: trailer.start()]
        while True:
            leader = _LEADER.match(text)
            if leader is not None:
                reply = reply or not leader.group().isspace()
                text = text[leader.end() :]
                continue
            blob = _BLOB.match(text)
            if blob is None or blob.end() == len(text):
                break
            text = text[blob.end() :]
        if text[:5].lower() == "[fwd:" and text.endswith("]"):
            text = text[5:-1]
            reply = True
            continue
        return text, reply
