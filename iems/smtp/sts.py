"""The texts of MTA-STS (RFC 8461): the TXT record that names a policy, and the policy. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal

from msgspec import Struct

#: Longest time a policy may be kept (RFC 8461 3.2), octets of a policy that are read, and mx lines that count.
MAX_AGE_S: Final = 31_557_600
MAX_OCTETS: Final = 65_536
MAX_PATTERNS: Final = 256

_RECORD = re.compile(rb"v=STSv1[ \t]*;(.*)\Z", re.S)
_ID = re.compile(rb"[A-Za-z0-9]{1,32}\Z")
_PATTERN = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*\Z")


class StsPolicy(Struct, frozen=True):
    """What a domain asks of those who send to it. mx: host names, or `*.` with one label's place. id: of the TXT record."""

    mode: Literal["none", "testing", "enforce"]
    mx: tuple[str, ...]
    max_age_s: int
    id: str = ""

    def covers(self, host: str) -> bool:
        """Whether a mail exchanger is one the policy names (RFC 8461 4.1): `*.` stands for exactly one label."""
        host = host.rstrip(".").lower()
        parent = host.partition(".")[2]
        return any(parent == name[2:] if name.startswith("*.") else host == name for name in self.mx)


def record_id(records: Sequence[bytes]) -> str | None:
    """The id in the TXT records of `_mta-sts.DOMAIN`; None if there is no policy, which more than one record means too."""
    found = [match[1] for record in records if (match := _RECORD.match(record))]
    if len(found) != 1:
        return None
    for part in found[0].split(b";"):
        name, equals, value = part.strip().partition(b"=")
        if equals and name.strip() == b"id":
            value = value.strip()
            return value.decode() if _ID.match(value) else None
    return None


def parse_policy(content: bytes, policy_id: str = "") -> StsPolicy:
    """The policy in `content`. Raises ValueError if it is none that RFC 8461 3.2 allows."""
    if len(content) > MAX_OCTETS:
        raise ValueError("a policy is too long")
    fields: dict[str, str] = {}
    mx: list[str] = []
    for line in content.decode("utf-8", "replace").splitlines():
        name, colon, value = line.partition(":")
        name, value = name.strip(), value.strip()
        if not colon:
            continue
        if name == "mx":
            pattern = value.rstrip(".").lower()
            if not _PATTERN.match(pattern) or len(mx) >= MAX_PATTERNS:
                raise ValueError("a policy names a host that is none, or too many")
            mx.append(pattern)
        else:
            fields.setdefault(name, value)  # of a field given twice the first counts
    age = fields.get("max_age", "")
    if fields.get("version") != "STSv1" or not (age.isascii() and age.isdigit() and len(age) <= 10):
        raise ValueError("a policy has no version STSv1 or no max_age")
    mode = fields.get("mode")
    if mode not in ("none", "testing", "enforce"):
        raise ValueError("a policy has no mode")
    if mode != "none" and not mx:
        raise ValueError("a policy names no mail host")
    return StsPolicy(mode, tuple(mx), min(int(age), MAX_AGE_S), policy_id)  # type: ignore[arg-type]
