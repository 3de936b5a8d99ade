"""Who may do what in a session: relay, log in, see VRFY answers. Decisions only, from settings and addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from iems.sasl import NO_BINDINGS, Offer

if TYPE_CHECKING:
    from iems.config import Config

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Listeners for users of ours: no MAIL without a login (RFC 6409 4.3), and on that of ODMR none at all (RFC 2645 5.2).
SUBMISSION = frozenset(("submission", "submissions", "odmr"))


class Peer(Struct, frozen=True):
    """What the address of a client tells. ip: "" if it has none (it has gone already).

    trusted: may relay. xclient, proxy: may tell of other clients by XCLIENT, by a PROXY header. barred: may not relay, whoever uses it.
    """

    ip: str
    loopback: bool
    trusted: bool
    xclient: bool
    proxy: bool
    barred: bool = False


class Policy:
    """The settings that decide, in a form that answers fast."""

    def __init__(self, config: Config) -> None:
        self._trusted = _networks(config.smtpd.trusted_networks)
        self._barred = _networks(config.smtpd.barred_networks)
        self._reject_remote = config.smtpd.reject_remote
        self._xclient = _networks(config.smtpd.xclient_networks)
        self._proxy = _networks(config.smtpd.proxy_networks)
        self.proxies = bool(self._proxy)
        self._plaintext = config.auth.plaintext
        self.limit_loopback = config.smtpd.limit_loopback
        self.vrfy = config.smtpd.vrfy
        self.max_login_failures = config.auth.max_failures

    def peer(self, ip: str) -> Peer:
        """The client at an address as the socket gives it (an IPv4 client of an IPv6 socket counts as IPv4)."""
        try:
            address = ipaddress.ip_address(ip.partition("%")[0])
        except ValueError:
            return Peer("", False, False, False, False)
        address = getattr(address, "ipv4_mapped", None) or address
        return Peer(
            str(address),
            address.is_loopback,
            _within(address, self._trusted),
            _within(address, self._xclient),
            _within(address, self._proxy),
            _within(address, self._barred),
        )

    def limited(self, peer: Peer) -> bool:
        """Whether limits, delays and tarpits act on this client: on loopback only if the settings say so."""
        return self.limit_loopback or not peer.loopback

    def mechanisms(
        self, listener: str, peer: Peer, secure: bool, offer: Offer, bindings: Mapping[bytes, bytes] = NO_BINDINGS
    ) -> tuple[bytes, ...]:
        """The AUTH mechanisms on offer, all of them over TLS, or from where `auth.plaintext` allows it.

        bindings: channel bindings of the connection.
        """
        if listener == "lmtp":
            return ()
        if secure or self._plaintext == "always" or (self._plaintext == "loopback" and peer.loopback):
            return offer.names(bindings)
        return ()

    def may_relay(self, peer: Peer, user: str) -> bool:
        """Whether mail for others' domains is taken (design.md 9: loopback is not trusted by itself)."""
        return (bool(user) or peer.trusted) and not peer.barred and not self._reject_remote


def _networks(texts: list[str]) -> list[_Network]:
    return [ipaddress.ip_network(text, strict=False) for text in texts]


def _within(address: ipaddress.IPv4Address | ipaddress.IPv6Address, networks: list[_Network]) -> bool:
    return any(network.version == address.version and address in network for network in networks)
