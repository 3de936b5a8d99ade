"""Which mechanisms a client is offered, and the exchange of the one it takes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from msgspec import Struct

from iems.sasl.cram import CramMd5
from iems.sasl.exchange import Exchange
from iems.sasl.oauth import OAuth
from iems.sasl.plain import Login, Plain
from iems.sasl.scram import Scram

PLUS = b"SCRAM-SHA-256-PLUS"
NO_BINDINGS: Mapping[bytes, bytes] = MappingProxyType({})


class Offer(Struct, frozen=True):
    """What is on. hostname: ours. scram, cram_md5, tokens: whether these mechanisms are offered; PLAIN and LOGIN always are.

    scope, configuration: see `OAuth`.
    """

    hostname: str = "localhost"
    scram: bool = False
    cram_md5: bool = False
    tokens: bool = False
    scope: str = ""
    configuration: str = ""

    def names(self, bindings: Mapping[bytes, bytes] = NO_BINDINGS) -> tuple[bytes, ...]:
        """The mechanisms, by the bindings that this connection has: -PLUS stands only where there is one."""
        names = [b"PLAIN", b"LOGIN"]
        if self.scram:
            names += [b"SCRAM-SHA-256", PLUS] if bindings else [b"SCRAM-SHA-256"]
        if self.cram_md5:
            names.append(b"CRAM-MD5")
        if self.tokens:
            names += [b"OAUTHBEARER", b"XOAUTH2"]
        return tuple(names)


NOTHING = Offer()


def begin(name: bytes, offer: Offer, bindings: Mapping[bytes, bytes] = NO_BINDINGS) -> Exchange | None:
    """The exchange of a mechanism, None if it is not on offer. name: in upper case. bindings: see `Offer.names`."""
    if name == b"PLAIN":
        return Plain()
    if name == b"LOGIN":
        return Login()
    if name == b"SCRAM-SHA-256" and offer.scram:
        return Scram(plus_offered=bool(bindings))
    if name == PLUS and offer.scram and bindings:
        return Scram(plus=True, plus_offered=True, bindings=bindings)
    if name == b"CRAM-MD5" and offer.cram_md5:
        return CramMd5(offer.hostname)
    if name in (b"OAUTHBEARER", b"XOAUTH2") and offer.tokens:
        return OAuth(bearer=name == b"OAUTHBEARER", scope=offer.scope, configuration=offer.configuration)
    return None
