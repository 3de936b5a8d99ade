"""Whether the certificates a host showed are those its TLSA records name (RFC 6698, 7671, 7672).

Usage 3 (DANE-EE) names the host's own certificate or key; its names and dates don't matter. Usage 2 (DANE-TA) names an authority in
the chain that the host sends; from the host's certificate to it each must have signed the one before, be in date and be
allowed to sign, and the host's certificate must be for one of the names we know it by. Signatures are `cryptography`'s work. Its own
verifier is not used: it asks for what the authorities of web sites must have and private ones often lack (key identifiers, SAN only).
"""

from __future__ import annotations

import datetime
import hashlib
import ssl
from collections.abc import Iterable, Sequence
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: Certificates of a chain looked at; signatures checked in one search for a path.
MAX_CHAIN: Final = 10
MAX_CHECKS: Final = 40

#: A TLSA record without its usage: selector, matching type, octets.
Record = tuple[int, int, bytes]

_DIGESTS: Final = {1: hashlib.sha256, 2: hashlib.sha512}
_LENGTHS: Final = {0: None, 1: 32, 2: 64}
#: Extensions whose meaning is looked at below; another one that is critical ends the path (RFC 5280 4.2).
_KNOWN: Final = (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage, x509.SubjectAlternativeName)


def usable(records: Iterable[Any], usage: int) -> tuple[Record, ...]:
    """The TLSA records of a usage that can be checked: selector 0 or 1, matching type 0 to 2, digests of the right length."""
    found = []
    for record in records:
        length = _LENGTHS.get(record.mtype, 0)
        if record.usage == usage and record.selector in (0, 1) and length in (None, len(record.cert)):
            found.append((record.selector, record.mtype, bytes(record.cert)))
    return tuple(found)


def matches(certificate: bytes, records: Sequence[Record]) -> bool:
    """Whether a certificate (DER) is one that a record names."""
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
        spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except Exception:  # a certificate of the peer's making: whatever it breaks, it does not match
        spki = b""
    for selector, matching, octets in records:
        data = spki if selector else certificate
        if matching:
            data = _DIGESTS[matching](data).digest()
        if data and data == octets:
            return True
    return False


def chain_of(tls: ssl.SSLSocket) -> list[bytes]:
    """The certificates (DER) the other side sent, its own first. Empty where Python can't tell (see `SHOWS_CHAIN`)."""
    try:
        if hasattr(tls, "get_unverified_chain"):  # 3.13
            return list(tls.get_unverified_chain()[: MAX_CHAIN + 1])
        chain = tls._sslobj.get_unverified_chain() or []  # type: ignore[attr-defined]
        return [ssl.PEM_cert_to_DER_cert(c.public_bytes()) for c in chain[: MAX_CHAIN + 1]]
    except (AttributeError, TypeError, ValueError, ssl.SSLError):
        return []


def _shows_chain() -> bool:
    if hasattr(ssl.SSLSocket, "get_unverified_chain"):
        return True
    import _ssl

    return hasattr(_ssl._SSLSocket, "get_unverified_chain")  # type: ignore[attr-defined]  # Python 3.10 to 3.12


#: Whether this Python shows the chain; without it no record of usage 2 is usable.
SHOWS_CHAIN: Final = _shows_chain()


def anchored(chain: Sequence[bytes], records: Sequence[Record], names: Sequence[str], now: datetime.datetime) -> bool:
    """Whether a chain (DER, the host's certificate first) leads to an authority that a record of usage 2 names.

    names: the host's, and those of the domain it takes mail for (RFC 7672 3.2.2). now: in UTC. A record that holds the whole
    certificate (2 0 0) needs no copy of it in the chain; all others do.
    """
    if not chain or len(chain) > MAX_CHAIN:
        return False
    try:
        return _anchored(chain, records, names, now)
    except Exception:  # certificates of the peer's making: whatever they break, they lead nowhere
        return False


def _anchored(chain: Sequence[bytes], records: Sequence[Record], names: Sequence[str], now: datetime.datetime) -> bool:
    leaf = x509.load_der_x509_certificate(chain[0])
    if not (_in_date(leaf, now) and _for_servers(leaf) and _sound(leaf) and _named(leaf, names)):
        return False
    anchors: list[x509.Certificate] = []
    others: list[x509.Certificate] = []
    for der in chain[1:]:
        (anchors if matches(der, records) else others).append(x509.load_der_x509_certificate(der))
    for selector, matching, octets in records:
        if not selector and not matching:
            anchors.append(x509.load_der_x509_certificate(octets))
    anchors = [c for c in anchors if _may_sign(c, now)]
    others = [c for c in others if _may_sign(c, now)]
    left = MAX_CHECKS
    # Ever longer paths from the host's certificate: (its end, certificates between the two).
    paths: list[tuple[x509.Certificate, tuple[x509.Certificate, ...]]] = [(leaf, ())]
    while paths:
        end, between = paths.pop()
        for signer in anchors + others:
            if end.issuer != signer.subject or signer in between:
                continue
            if left <= 0:
                return False
            left -= 1
            if _signed(end, signer, len(between)):
                if signer in anchors:
                    return True
                paths.append((signer, (*between, signer)))
    return False


def _signed(one: x509.Certificate, signer: x509.Certificate, below: int) -> bool:
    """Whether `signer` issued `one`, with so many authorities below it."""
    basic = _extension(signer, x509.BasicConstraints)
    if basic is not None and basic.path_length is not None and basic.path_length < below:
        return False
    try:
        one.verify_directly_issued_by(signer)
    except Exception:  # another name, another key, an unknown algorithm
        return False
    return True


def _extension(certificate: x509.Certificate, kind: Any) -> Any:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _in_date(certificate: x509.Certificate, now: datetime.datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _sound(certificate: x509.Certificate) -> bool:
    """Whether nothing critical in it is unknown here; name constraints are not understood, so they end a path in any case."""
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.NameConstraints):
            return False
        if extension.critical and not isinstance(extension.value, _KNOWN):
            return False
    return True


def _may_sign(certificate: x509.Certificate, now: datetime.datetime) -> bool:
    basic = _extension(certificate, x509.BasicConstraints)
    usage = _extension(certificate, x509.KeyUsage)
    return (
        basic is not None
        and basic.ca
        and (usage is None or usage.key_cert_sign)
        and _in_date(certificate, now)
        and _sound(certificate)
    )


def _for_servers(certificate: x509.Certificate) -> bool:
    uses = _extension(certificate, x509.ExtendedKeyUsage)
    return uses is None or ExtendedKeyUsageOID.SERVER_AUTH in uses or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in uses


def _named(certificate: x509.Certificate, names: Sequence[str]) -> bool:
    """Whether a certificate is for one of the names: its DNS names, else (if it has none) its common name (RFC 7672 3.2.3)."""
    alternative = _extension(certificate, x509.SubjectAlternativeName)
    held = alternative.get_values_for_type(x509.DNSName) if alternative is not None else []
    if not held:
        held = [str(attribute.value) for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return any(_fits(one, name) for one in held for name in names)


def _fits(held: str, name: str) -> bool:
    held, name = held.lower().rstrip("."), name.lower().rstrip(".")
    if held.startswith("*."):  # one whole label, and never all of a top-level domain
        first, _, rest = name.partition(".")
        return bool(first) and rest == held[2:] and "." in rest
    return bool(name) and held == name
