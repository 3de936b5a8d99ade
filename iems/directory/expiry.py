"""Rules of expiry, as the directory keeps them: mail of which mailboxes goes after how many days. There are none at first."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from msgspec import Struct

from iems.directory.entries import DirectoryRefusal
from iems.directory.names import domain_of

ATTRIBUTE = "iemsExpiry"
MAX_RULES = 1_000
MAX_DAYS = 36_500
_PATTERN_OCTETS = 1_000


class Expiry(Struct, frozen=True, order=True):
    """One rule. domain: of the accounts it is for, "" for all. pattern: of mailbox names, `*` and `?` stand for anything. days: kept."""

    domain: str
    pattern: str
    days: int

    def text(self) -> str:
        """As kept in the attribute."""
        return f"{self.days} {self.domain or '*'} {self.pattern}"

    @classmethod
    def parse(cls, text: str) -> Expiry:
        """From the attribute. Raises ValueError."""
        days, domain, pattern = text.split(" ", 2)
        return cls("" if domain == "*" else domain, pattern, int(days))


def rule_of(pattern: str, days: int, domain: str = "") -> Expiry:
    """A rule in normal form. Raises DirectoryRefusal."""
    if not 1 <= days <= MAX_DAYS:
        raise DirectoryRefusal(f"days are between 1 and {MAX_DAYS}")
    if not pattern or not pattern.isprintable() or len(pattern.encode("utf-8", "replace")) > _PATTERN_OCTETS:
        raise DirectoryRefusal(f"not a pattern for mailboxes: {pattern!a}")
    if pattern.upper() == "INBOX":
        pattern = "INBOX"
    known = domain_of(domain) if domain else ""
    if known is None:
        raise DirectoryRefusal(f"not a domain: {domain!a}")
    return Expiry(known, pattern, days)


def added(texts: Iterable[str], rule: Expiry) -> list[str]:
    """The attribute with `rule` in it, in place of one for the same mailboxes. Raises DirectoryRefusal."""
    kept = [one for one in rules_of(texts) if (one.domain, one.pattern) != (rule.domain, rule.pattern)]
    if len(kept) >= MAX_RULES:
        raise DirectoryRefusal(f"there are {MAX_RULES} rules already")
    return [one.text() for one in sorted([*kept, rule])]


def removed(texts: Iterable[str], pattern: str, domain: str) -> list[str]:
    """The attribute without the rule for these mailboxes. Raises DirectoryRefusal."""
    gone = rule_of(pattern, 1, domain)
    known = rules_of(texts)
    kept = [one for one in known if (one.domain, one.pattern) != (gone.domain, gone.pattern)]
    if len(kept) == len(known):
        raise DirectoryRefusal(f"there is no rule for {pattern!a}{' of ' + gone.domain if gone.domain else ''}")
    return [one.text() for one in kept]


def rules_of(texts: Iterable[str]) -> list[Expiry]:
    """The rules in the attribute, sorted."""
    return sorted(Expiry.parse(text) for text in texts)


def days_of(rules: Iterable[Expiry], address: str, mailbox: str) -> int:
    """Days mail in a mailbox of an account is kept, 0 for ever: a rule for its domain comes before those for all, fewer days before more."""
    domain = address.rpartition("@")[2]
    found = [rule for rule in rules if rule.domain in ("", domain) and fnmatchcase(mailbox, rule.pattern)]
    return min(((not rule.domain, rule.days) for rule in found), default=(False, 0))[1]


def pop3(rules: Iterable[Expiry], address: str = "") -> str:
    """What CAPA says after EXPIRE (RFC 2449 6.7) of an account, or before the log-in: then the least days any has, and `USER`."""
    rules = list(rules)
    if address:
        return str(days_of(rules, address, "INBOX") or "NEVER")
    least = min((rule.days for rule in rules if fnmatchcase("INBOX", rule.pattern)), default=0)
    return f"{least} USER" if least else "NEVER"
