"""Names of the files in an archive or a TNEF stream, one level deep. Nothing is unpacked, so nothing can blow up."""

from __future__ import annotations

import io
import tarfile
import zipfile

from iems.attachment import sniff
from iems.message import tnef

MAX_NAMES = 10_000
#: Longer archives are not listed.
MAX_OCTETS = 64 << 20


def listed(octets: bytes) -> tuple[list[tuple[str, str]], str]:
    """((name, type by content or "") of each file inside, what could not be read or "")."""
    kind = sniff.media_type(octets)
    if len(octets) > MAX_OCTETS:
        return [], "too long to be looked into"
    try:
        if kind == "application/ms-tnef":
            return _wrapped(octets)
        if kind == "application/zip" or b"PK\x05\x06" in octets[-65_558:]:
            with zipfile.ZipFile(io.BytesIO(octets)) as archive:
                names = [entry.filename for entry in archive.filelist[: MAX_NAMES + 1]]
            return [(name, "") for name in names[:MAX_NAMES]], "too many files" if len(names) > MAX_NAMES else ""
        if kind == "application/x-tar":
            return _tar(octets)
        if kind == "application/gzip":
            name = _gzip_name(octets)
            return ([(name, "")] if name else []), ""
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        return [], f"a broken archive: {error}"
    return [], ""


def _wrapped(octets: bytes) -> tuple[list[tuple[str, str]], str]:
    found = tnef.parse(octets)
    if found is None:
        return [], "no TNEF after all"
    names: list[tuple[str, str]] = []
    for attachment in found.attachments:
        names.append((attachment.name, sniff.media_type(attachment.data) or attachment.content_type.lower()))
        if attachment.message is not None:
            names += [(name, "") for name in attachment.message.names()]
    return names, found.defects[0] if found.defects else ""


def _tar(octets: bytes) -> tuple[list[tuple[str, str]], str]:
    names: list[tuple[str, str]] = []
    with tarfile.open(fileobj=io.BytesIO(octets), mode="r:") as archive:
        for entry in archive:
            if len(names) == MAX_NAMES:
                return names, "too many files"
            names.append((entry.name, ""))
    return names, ""


def _gzip_name(octets: bytes) -> str:
    """The name in the header of a gzip file (RFC 1952 2.3)."""
    if len(octets) < 10 or not octets[3] & 8:
        return ""
    at = 10
    if octets[3] & 4:
        at += 2 + int.from_bytes(octets[at : at + 2], "little")
    end = octets.find(b"\0", at, at + 1024)
    return octets[at:end].decode("latin-1") if end > at else ""
