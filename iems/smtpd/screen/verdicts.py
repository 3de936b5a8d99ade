"""What checks answer: a refusal with what the log says of it, or verdicts that travel with the message."""

from __future__ import annotations

from msgspec import Struct

from iems.model import Reply, Verdict


class Refusal(Struct, frozen=True):
    """A refusal. reply: for the client. check: the check that refused. subject: what it looked at, for the log."""

    reply: Reply
    check: str
    subject: str


class Findings(Struct, frozen=True):
    """What one check, or several, found. refusal: the first one, None if the mail may come in. verdicts: of checks that tag.

    asked: what the others answered, for the record.
    """

    refusal: Refusal | None = None
    verdicts: tuple[Verdict, ...] = ()
    asked: tuple[Verdict, ...] = ()


NOTHING = Findings()


def joined(found: list[Findings]) -> Findings:
    """Several findings as one. A refusal for good counts before one for now: no retry would change it."""
    refusals = [one.refusal for one in found if one.refusal is not None]
    firm = [refusal for refusal in refusals if not refusal.reply.transient]
    verdicts = tuple(verdict for one in found for verdict in one.verdicts)
    asked = tuple(verdict for one in found for verdict in one.asked)
    if not refusals and not verdicts and not asked:
        return NOTHING
    return Findings(next(iter(firm or refusals), None), verdicts, asked)


def answered(check: str, subject: bytes | str, answer: str) -> Findings:
    """The findings of a check that has nothing against the mail, or could not find out."""
    text = subject if isinstance(subject, str) else subject.decode("utf-8", "backslashreplace")
    return Findings(asked=(Verdict(check, text, answer),))
