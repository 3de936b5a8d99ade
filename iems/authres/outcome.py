"""All methods of one message, in one call; and their words for Authentication-Results."""

from __future__ import annotations

from msgspec import Struct

from iems.authres import arc, dkim, dmarc, spf
from iems.authres.asking import Lookup
from iems.authres.header import MethodResult
from iems.authres.mail import Mail
from iems.message.address import author


class Outcome(Struct, frozen=True):
    """What the methods say of a message. identity: the address in From, "" where it has not exactly one."""

    identity: str
    spf: spf.Spf | None
    dkim: tuple[dkim.Signature, ...]
    dmarc: dmarc.Dmarc
    arc: arc.Arc = arc.Arc("none")


def from_domain(mail: Mail) -> tuple[str, str]:
    """(address, domain) of the one identity in From, as everything else here reads it; ("", "") where there is not one."""
    froms = b"\r\n".join(raw for name, raw in mail.fields if name == b"from")
    one = author(froms + b"\r\n\r\n")
    if one is None or mail.cut:
        return "", ""
    return one.addr_spec, one.domain.decode("utf-8", "replace")


async def evaluate(
    lookup: Lookup,
    mail: Mail,
    *,
    ip: str,
    helo: str,
    mail_from: str,
    receiver: str,
    now_s: int,
    sample: int = 0,
) -> Outcome:
    """Ask SPF, DKIM, DMARC and, where there is a chain, ARC. ip: of the client, "" to leave SPF out. The caller bounds the time."""
    by_spf = None
    if ip:
        by_spf = await spf.check(lookup, ip, helo, mail_from, receiver=receiver, now_s=now_s)
    signatures = await dkim.verify(lookup, mail, now_s)
    chain = await arc.verify(lookup, mail, now_s)
    identity, domain = from_domain(mail)
    if domain:
        policy = await dmarc.evaluate(lookup, domain, by_spf, signatures, sample=sample)
    else:
        policy = dmarc.Dmarc("permerror", problem="From has not exactly one address")
    return Outcome(identity, by_spf, tuple(signatures), policy, chain)


def spf_words(found: spf.Spf, helo: str, mail_from: str) -> MethodResult:
    """SPF's part of the field (RFC 8601 2.7.2)."""
    properties = [("smtp.mailfrom", mail_from)] if found.scope == "mailfrom" else [("smtp.helo", helo)]
    return MethodResult("spf", found.result, tuple(properties), found.problem[:100])


def dkim_words(found: dkim.Signature) -> MethodResult:
    """A signature's part of the field (RFC 8601 2.7.1; header.b is of RFC 6008)."""
    return MethodResult(
        "dkim",
        found.result,
        (("header.d", found.domain), ("header.s", found.selector), ("header.b", found.b)),
        found.problem[:100],
    )


def dmarc_words(found: dmarc.Dmarc) -> MethodResult:
    """DMARC's part of the field (RFC 9989 10)."""
    properties = [("header.from", found.domain)]
    if found.policy:
        properties.append(("policy.dmarc", found.policy))
    return MethodResult("dmarc", found.result, tuple(properties), found.problem[:100])


def words(found: Outcome, helo: str, mail_from: str) -> list[MethodResult]:
    """All of it."""
    parts = [spf_words(found.spf, helo, mail_from)] if found.spf is not None else []
    parts += [dkim_words(one) for one in found.dkim] or [MethodResult("dkim", "none")]
    if found.arc.result != "none":
        parts.append(MethodResult("arc", found.arc.result, reason=found.arc.problem[:100]))
    return [*parts, dmarc_words(found.dmarc)]
