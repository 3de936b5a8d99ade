"""DKIM signatures verified (RFC 6376, with the limits of 8301 and the key type of 8463).

What is bounded: MAX_SIGNATURES are looked at, one question of DNS each; the body is read once, whatever the number. A signature
that leaves part of the body out (l=) is valid only for what it covers, so it is `policy` and vouches for nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from iems.authres.asking import DnsFailure, Lookup, ascii_name
from iems.authres.canonical import Field, relaxed_field, without_b
from iems.authres.mail import Mail
from iems.authres.publickeys import BadKey, find_key
from iems.authres.tags import BadTags, parse, solid

#: Signatures of one message that are verified, from the top; the rest is not looked at.
MAX_SIGNATURES: Final = 8
#: Names in h=.
MAX_SIGNED: Final = 500
#: Seconds a signature may come from the future: clocks differ.
SLACK_S: Final = 36 * 3600

_NUMBER = re.compile(r"[0-9]{1,12}\Z")
_LENGTH = re.compile(r"[0-9]{1,76}\Z")
_ALGORITHMS: Final = {"rsa-sha256": "rsa", "ed25519-sha256": "ed25519"}


class Signature(Struct, frozen=True):
    """One signature and what became of it. result: pass, fail, policy, permerror or temperror (RFC 8601 2.7.1).

    domain, selector, identity, algorithm: its d=, s=, i=, a=. b: the first characters of b=, which tell it from others. bits: of
    the key. testing: the key says that the domain is still trying.
    """

    result: str
    domain: str = ""
    selector: str = ""
    identity: str = ""
    algorithm: str = ""
    b: str = ""
    problem: str = ""
    bits: int = 0
    testing: bool = False


class Claim(Struct, frozen=True):
    """The tags of a signature that could be one. Of DKIM, or an ARC-Message-Signature, which has the same form."""

    raw: bytes
    domain: str
    selector: str
    identity: str
    algorithm: str
    signature: bytes
    body_hash: bytes
    names: tuple[bytes, ...]
    relaxed_header: bool
    relaxed_body: bool
    limit: int | None
    b: str


class BadSignature(Exception):
    """A field that is no signature, or one that is not accepted. word: its result. domain, b: as far as they are known."""

    def __init__(self, word: str, problem: str, domain: str = "", selector: str = "", b: str = "") -> None:
        super().__init__(problem)
        self.word = word
        self.domain = domain
        self.selector = selector
        self.b = b


def octets_of(value: str) -> bytes:
    """The octets of folded base64, at least one. Raises ValueError."""
    try:
        octets = base64.b64decode(solid(value).encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as cause:
        raise ValueError("no base64") from cause
    if not octets:
        raise ValueError("empty")
    return octets


def read_claim(raw: bytes, now_s: int, arc: bool = False) -> Claim:
    """The signature in a DKIM-Signature field, or with `arc` an ARC-Message-Signature. Raises BadSignature."""
    domain = selector = short = ""
    try:
        tags = parse(raw[raw.find(b":") + 1 :])
        domain = ascii_name(solid(tags["d"]))
        selector = ascii_name(solid(tags["s"]), loose=True)
        short = solid(tags["b"])[:8]
        if not arc and tags["v"] != "1":
            raise ValueError("v= is not 1")
        algorithm = tags["a"].lower()
        if algorithm not in _ALGORITHMS:
            raise BadSignature("policy" if algorithm == "rsa-sha1" else "permerror", f"a={algorithm[:30]}")
        signature, body_hash = octets_of(tags["b"]), octets_of(tags["bh"])
        head, _, body = tags.get("c", "simple/simple").lower().partition("/")
        if head not in ("simple", "relaxed") or body not in ("", "simple", "relaxed"):
            raise ValueError("unknown c=")
        names = tuple(solid(tags["h"]).lower().encode("utf-8", "surrogateescape").split(b":"))
        if len(names) > MAX_SIGNED:
            raise BadSignature("policy", "h= is too long")
        if b"from" not in names:
            raise ValueError("From is not signed")
        if "q" in tags and "dns/txt" not in solid(tags["q"]).lower().split(":"):
            raise ValueError("unknown q=")
        identity = "" if arc else solid(tags.get("i", "@" + domain))
        at_domain = ascii_name(identity.rpartition("@")[2]) if identity else domain
        if "@" not in (identity or "@") or not (at_domain == domain or at_domain.endswith("." + domain)):
            raise ValueError("i= is not of d=")
        signed_s = _number(tags, "t")
        expires_s = _number(tags, "x")
        if expires_s is not None and signed_s is not None and expires_s < signed_s:
            raise ValueError("x= before t=")
        limit = None
        if "l" in tags and not arc:
            if not _LENGTH.match(tags["l"]):
                raise ValueError("l= is no number")
            limit = int(tags["l"])
    except KeyError as cause:
        raise BadSignature("permerror", f"no {cause.args[0]}=", domain, selector, short) from None
    except (BadTags, ValueError) as cause:
        raise BadSignature("permerror", str(cause), domain, selector, short) from None
    except BadSignature as cause:
        raise BadSignature(cause.word, str(cause), domain, selector, short) from None
    if expires_s is not None and expires_s < now_s:
        raise BadSignature("fail", "expired", domain, selector, short)
    if signed_s is not None and signed_s > now_s + SLACK_S:
        raise BadSignature("fail", "of the future", domain, selector, short)
    return Claim(
        raw, domain, selector, identity, algorithm, signature, body_hash, names, head == "relaxed", body == "relaxed", limit, short
    )  # fmt: skip


def _number(tags: dict[str, str], name: str) -> int | None:
    if name not in tags:
        return None
    if not _NUMBER.match(tags[name]):
        raise ValueError(f"{name}= is no number")
    return int(tags[name])


def signed_octets(
    fields: Sequence[Field], names: Sequence[bytes], own_name: bytes, own: bytes, relaxed: bool
) -> bytes:
    """What is hashed of a header (RFC 6376 3.7): the named fields, of equal ones the last first, then the signature's own
    field without the value of b= and without CRLF."""
    by_name: dict[bytes, list[bytes]] = {}
    wanted = set(names)
    for name, raw in fields:
        if name in wanted:
            by_name.setdefault(name, []).append(raw)
    parts: list[bytes] = []
    for name in names:
        left = by_name.get(name)
        if left:
            raw = left.pop()
            parts.append(relaxed_field(name, raw) if relaxed else raw)
    own = without_b(own)
    parts.append(relaxed_field(own_name, own) if relaxed else own)
    return b"\r\n".join(parts)


async def judge(lookup: Lookup, mail: Mail, claim: Claim, own_name: bytes) -> Signature:
    """Whether a claim holds. The hash of the body is expected to be known to `mail`, or is made now. Raises nothing of DNS."""

    def result(word: str, problem: str = "", bits: int = 0, testing: bool = False) -> Signature:
        return Signature(
            word, claim.domain, claim.selector, claim.identity, claim.algorithm, claim.b, problem, bits, testing
        )

    form = claim.relaxed_body, claim.limit
    digest, length = mail.hashed.get(form) or (await mail.body_hashes({form}))[form]
    if claim.limit is not None and claim.limit < length:
        return result("policy", "l= leaves part of the body unsigned")
    if claim.limit is not None and claim.limit > length:
        return result("fail", "the body is shorter than l=")
    if digest != claim.body_hash:
        return result("fail", "the body was changed")
    try:
        key = await find_key(lookup, claim.domain, claim.selector, _ALGORITHMS[claim.algorithm])
    except BadKey as cause:
        return result(cause.word, str(cause))
    except DnsFailure as cause:
        return result("temperror", str(cause))
    if key.strict and claim.identity.rpartition("@")[2].lower() not in ("", claim.domain):
        return result("permerror", "i= is of a sub-domain, which the key forbids", key.bits)
    octets = signed_octets(mail.fields, claim.names, own_name, claim.raw, claim.relaxed_header)
    if not key.verifies(claim.signature, octets, hashlib.sha256(octets).digest()):
        return result("fail", "the header was changed", key.bits)
    return result("pass", "", key.bits, key.testing)


async def verify(lookup: Lookup, mail: Mail, now_s: int) -> list[Signature]:
    """Every signature of a message that is looked at, in the order of the header; [] for unsigned mail. now_s: since 1970."""
    raws = [raw for name, raw in mail.fields if name == b"dkim-signature"][:MAX_SIGNATURES]
    found: list[Signature | Claim] = []
    for raw in raws:
        try:
            if mail.cut:
                raise BadSignature("policy", "the header is too long")
            found.append(read_claim(raw, now_s))
        except BadSignature as cause:
            found.append(
                Signature(cause.word, cause.domain, cause.selector, b=cause.b, problem=str(cause))
            )
    claims = [one for one in found if isinstance(one, Claim)]
    if claims:
        await mail.body_hashes({(claim.relaxed_body, claim.limit) for claim in claims})
    return [
        await judge(lookup, mail, one, b"dkim-signature") if isinstance(one, Claim) else one for one in found
    ]
