"""Names: addresses and domains in the one form the directory compares, and distinguished names (RFC 2377, RFC 4514).

Pure. Local parts of our own users compare without regard to case (RFC 5321 2.4 leaves that to the receiver); domains
are A-labels in lower case. Hostile text stays text: nothing here builds a path, a filter or a query.
"""

from __future__ import annotations

import re
import unicodedata

MAX_ADDRESS_OCTETS = 320  # 64 for the local part, "@", 255 for the domain (RFC 5321 4.5.3.1)
MAX_LOCAL_OCTETS = 64
MAX_DOMAIN_OCTETS = 253

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u0080-\U0010ffff-]+"
_DOT_ATOM = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_QUOTED_PAIR = re.compile(r"\\(.)")
#: Nearly every address: nothing quoted, nothing to convert.
_PLAIN = re.compile(
    rb"([A-Za-z0-9._+=~&'*-]{1,64})@((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){0,8}[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)"
)
_DN_SPECIAL = re.compile(r'([,+"\\<>;=])')


class NameRefused(ValueError):
    """A name that cannot be one; the text says why."""


def domain_of(text: str) -> str | None:
    """A domain in the form the directory compares: A-labels, lower case. None if it is no domain name.

    A domain literal (`[192.0.2.1]`) comes back in lower case, as it is.
    """
    domain = text.lower()
    if not domain.isascii():
        try:
            domain = unicodedata.normalize("NFC", domain).encode("idna").decode("ascii").lower()
        except UnicodeError:
            return None
    if (
        domain.startswith("[")
        and domain.endswith("]")
        and len(domain) <= MAX_DOMAIN_OCTETS
        and domain.isprintable()
    ):
        return domain
    if not domain or len(domain) > MAX_DOMAIN_OCTETS:
        return None
    for label in domain.split("."):
        if not _LABEL.fullmatch(label):
            return None
    return domain


def pattern_of(text: str) -> str:
    """A domain or `*.DOMAIN` (every sub-domain, not DOMAIN itself) as an administrator writes it. Raises NameRefused."""
    star = text.startswith("*.")
    domain = domain_of(text[2:] if star else text)
    if domain is None or domain.startswith("["):
        raise NameRefused(f"not a domain name: {shown(text)}")
    return f"*.{domain}" if star else domain


def address_of(octets: bytes) -> tuple[str, str] | None:
    """(local part, domain) of an addr-spec in the form the directory compares; domain "" if there is none.

    A quoted local part that needs no quotes loses them (`"john"@x` is `john@x`). None if it cannot be an address:
    too long, not UTF-8, control characters, bad domain.
    """
    if not octets or len(octets) > MAX_ADDRESS_OCTETS:
        return None
    plain_address = _PLAIN.fullmatch(octets)
    if plain_address is not None and len(plain_address[2]) <= MAX_DOMAIN_OCTETS:
        return plain_address[1].decode().lower(), plain_address[2].decode().lower()
    try:
        text = octets.decode("utf-8")
    except UnicodeDecodeError:
        return None
    local, at, domain_text = text.rpartition("@")
    if not at:
        local, domain = text, ""
    else:
        found = domain_of(domain_text)
        if found is None:
            return None
        domain = found
    if not local or len(local.encode()) > MAX_LOCAL_OCTETS or not local.isprintable():
        return None
    if local[0] == '"':
        if len(local) < 3 or local[-1] != '"':
            return None
        plain = _QUOTED_PAIR.sub(r"\1", local[1:-1])
        if _DOT_ATOM.fullmatch(plain):
            local = plain
    if not local.isascii():
        local = unicodedata.normalize("NFC", local)
    return local.lower(), domain


def entry_address(text: str) -> tuple[str, str]:
    """(local part, domain) of an address an entry may have. Raises NameRefused.

    Stricter than `address_of`: a dot-atom and a domain name, both within RFC 5321's limits.
    """
    parts = address_of(text.encode("utf-8", "surrogatepass"))
    if parts is None or not parts[1] or parts[1].startswith("[") or not _DOT_ATOM.fullmatch(parts[0]):
        raise NameRefused(f"not an address: {shown(text)}")
    return parts


def shown(text: str) -> str:
    """Text from outside made fit for a message: quoted, cut at 80 characters."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")


def suffixes(domain: str) -> list[str]:
    """The patterns `*.x` that could cover a domain, nearest first: a.b.c -> *.b.c, *.c."""
    found = []
    at = domain.find(".")
    while at >= 0:
        found.append("*" + domain[at:])
        at = domain.find(".", at + 1)
    return found


def domain_rdns(domain: str) -> list[str]:
    """RDNs from the root down (RFC 2377): jade.net -> dc=net, dc=jade."""
    return [f"dc={label}" for label in reversed(domain.split("."))]


def rdn(attribute: str, value: str) -> str:
    """One RDN, its value escaped (RFC 4514 2.4)."""
    escaped = _DN_SPECIAL.sub(r"\\\1", value)
    if escaped[:1] in ("#", " "):
        escaped = "\\" + escaped
    return f"{attribute}={escaped}"


def split_dn(dn: str) -> list[str]:
    """RDNs of a distinguished name as written, the entry's own first; escapes stay as they are."""
    parts, start, at = [], 0, 0
    while at < len(dn):
        if dn[at] == "\\":
            at += 2
            continue
        if dn[at] == ",":
            parts.append(dn[start:at].strip())
            start = at + 1
        at += 1
    parts.append(dn[start:].strip())
    return [part for part in parts if part]
