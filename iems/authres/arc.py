"""ARC: what earlier hosts found of a message that was changed on its way, chained by signatures (RFC 8617).

A chain is verified whole or not at all: one question of DNS for each seal (at most MAX_SETS) and one for the newest message
signature. Sealing adds a set on top; a chain that is broken is left as it is.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from iems.authres import header
from iems.authres.asking import DnsFailure, Lookup, ascii_name
from iems.authres.canonical import Field, relaxed_field, without_b
from iems.authres.dkim import BadSignature, judge, octets_of, read_claim, signed_octets
from iems.authres.header import MethodResult
from iems.authres.mail import Mail
from iems.authres.publickeys import BadKey, find_key
from iems.authres.sign import Signer, folded, folded_value, names_to_sign
from iems.authres.tags import BadTags, parse, solid

#: Sets of one chain (RFC 8617 4.2.1).
MAX_SETS: Final = 50
#: Fields of all sets that are looked at.
MAX_FIELDS: Final = 3 * MAX_SETS

_AAR: Final = b"arc-authentication-results"
_AMS: Final = b"arc-message-signature"
_AS: Final = b"arc-seal"
_KINDS: Final = (_AAR, _AMS, _AS)
_INSTANCE = re.compile(rb"(?:\A|;)[ \t\r\n]*i[ \t\r\n]*=[ \t\r\n]*([0-9]{1,3})[ \t\r\n]*(?=;|\Z)")
_SEALS: Final = {"rsa-sha256": "rsa", "ed25519-sha256": "ed25519"}


class Arc(Struct, frozen=True):
    """The state of a chain. result: none, pass, fail or temperror. instance: sets there are. sealer: d= of the newest seal.

    reported: what the newest set's authentication results say, method -> result, of a chain that passes.
    """

    result: str
    instance: int = 0
    sealer: str = ""
    problem: str = ""
    reported: dict[str, str] = {}


class _Broken(Exception):
    pass


Sets = list[dict[bytes, bytes]]


def _sets(fields: Sequence[Field]) -> Sets:
    """The sets in order of their instance. Raises _Broken."""
    found: dict[int, dict[bytes, bytes]] = {}
    count = 0
    for name, raw in fields:
        if name not in _KINDS:
            continue
        count += 1
        instance = _INSTANCE.search(raw[raw.find(b":") + 1 :])
        number = int(instance[1]) if instance else 0
        if count > MAX_FIELDS or not 1 <= number <= MAX_SETS:
            raise _Broken("too many fields, or one without a number")
        if found.setdefault(number, {}).setdefault(name, raw) is not raw:
            raise _Broken(f"set {number} has a field twice")
    sets = [found.get(number, {}) for number in range(1, len(found) + 1)]
    if any(len(one) != len(_KINDS) for one in sets):
        raise _Broken("a set is incomplete")
    return sets


def _sealed_octets(sets: Sets) -> bytes:
    """What the seal of the last set signs (RFC 8617 5.1.1): all sets in order, that seal without b=."""
    parts: list[bytes] = []
    for at, one in enumerate(sets):
        last = at == len(sets) - 1
        parts += [relaxed_field(_AAR, one[_AAR]), relaxed_field(_AMS, one[_AMS])]
        seal = one[_AS]
        parts.append(relaxed_field(_AS, without_b(seal) if last else seal))
    return b"\r\n".join(parts)


async def _seal_holds(lookup: Lookup, sets: Sets) -> str:
    """d= of the last set's seal, which is right. Raises _Broken, DnsFailure."""
    raw, number = sets[-1][_AS], len(sets)
    try:
        tags = parse(raw[raw.find(b":") + 1 :])
        domain, selector = ascii_name(solid(tags["d"])), ascii_name(solid(tags["s"]), loose=True)
        kind, signature = _SEALS[tags["a"].lower()], octets_of(tags["b"])
        if "h" in tags:
            raise ValueError("h= in a seal")
        if tags["cv"].lower() != ("none" if number == 1 else "pass"):
            raise ValueError(f"cv={tags['cv'][:10]}")
        key = await find_key(lookup, domain, selector, kind)
    except KeyError as cause:
        raise _Broken(f"seal {number}: {cause.args[0]}") from None
    except (BadTags, ValueError, BadKey) as cause:
        raise _Broken(f"seal {number}: {cause}") from None
    octets = _sealed_octets(sets)
    if not key.verifies(signature, octets, hashlib.sha256(octets).digest()):
        raise _Broken(f"seal {number} is wrong")
    return domain


async def verify(lookup: Lookup, mail: Mail, now_s: int) -> Arc:
    """The state of a message's chain (RFC 8617 5.2). now_s: since 1970."""
    if not any(name in _KINDS for name, _ in mail.fields):
        return Arc("none")
    instance = 0
    try:
        if mail.cut:
            raise _Broken("the header is too long")
        sets = _sets(mail.fields)
        instance = len(sets)
        try:
            claim = read_claim(sets[-1][_AMS], now_s, arc=True)
        except BadSignature as cause:
            raise _Broken(f"message signature: {cause}") from None
        if _AS in claim.names:
            raise _Broken("a message signature covers seals")
        newest = await judge(lookup, mail, claim, _AMS)
        if newest.result == "temperror":
            return Arc("temperror", instance, problem=newest.problem)
        if newest.result != "pass":
            raise _Broken(f"message signature: {newest.problem}")
        sealer = ""
        for count in range(instance, 0, -1):
            domain = await _seal_holds(lookup, sets[:count])
            sealer = sealer or domain
    except DnsFailure as cause:
        return Arc("temperror", instance, problem=str(cause))
    except _Broken as cause:
        return Arc("fail", instance, problem=str(cause))
    return Arc("pass", instance, sealer, reported=_reported(sets[-1][_AAR]))


def _reported(raw: bytes) -> dict[str, str]:
    value = raw[raw.find(b":") + 1 :]
    try:
        found = header.parse(value[value.index(b";") + 1 :])
    except ValueError:
        return {}
    return {one.method: one.result for one in reversed(found.results)}


def told(mail: Mail, word: str) -> Arc:
    """The state of a chain as it was told (in Authentication-Results of ours) when the message came in; word: "" for no chain."""
    try:
        instance = len(_sets(mail.fields))
    except _Broken as cause:
        return Arc("fail", problem=str(cause))
    if bool(instance) != (word not in ("", "none")):
        return Arc("fail", instance, problem="a chain that was not told of")
    return Arc(word or "none", instance)


async def seal(
    signer: Signer, mail: Mail, found: Arc, authserv_id: str, results: Sequence[MethodResult], now_s: int
) -> bytes:
    """The fields of a new set for a message, b"" if its chain is broken or full.

    found: the chain as it was when the message came in, before anybody here changed it. results: what was found then.
    """
    if found.result not in ("none", "pass") or found.instance >= MAX_SETS:
        return b""
    try:
        sets = _sets(mail.fields)
    except _Broken:
        return b""
    number = found.instance + 1
    if len(sets) != found.instance:
        return b""
    report = header.write(authserv_id, results, f"ARC-Authentication-Results: i={number};")
    digest, _ = (await mail.body_hashes({(True, None)}))[True, None]
    names = names_to_sign(mail.fields, (b"dkim-signature",))
    algorithm, origin = signer.algorithm.encode(), [b"d=" + signer.domain.encode(), b"s=" + signer.selector.encode()]
    message = folded(
        b"ARC-Message-Signature",
        [
            b"i=%d" % number, b"a=" + algorithm, b"c=relaxed/relaxed", *origin, b"t=%d" % now_s, b"h=" + b":".join(names),
            b"bh=" + base64.b64encode(digest), b"b=",
        ],
    )  # fmt: skip
    message += folded_value(signer.signature(signed_octets(mail.fields, names, _AMS, message, True)))
    validity = b"cv=none" if found.result == "none" else b"cv=pass"
    own = folded(b"ARC-Seal", [b"i=%d" % number, b"a=" + algorithm, b"t=%d" % now_s, validity, *origin, b"b="])
    octets = _sealed_octets([*sets, {_AAR: report[:-2], _AMS: message[:-2], _AS: own}])
    return own + folded_value(signer.signature(octets)) + message + report
