"""What octets are, whatever the sender says: by their first bytes. Answers media types, "" for what is not known."""

from __future__ import annotations

import re

#: (offset, octets, media type), the first that fits counts.
_MAGIC = (
    (0, b"MZ", "application/x-msdownload"),
    (0, b"\x7fELF", "application/x-executable"),
    (0, b"\xca\xfe\xba\xbe", "application/java-vm"),
    (0, b"\xcf\xfa\xed\xfe", "application/x-mach-binary"),
    (0, b"\xce\xfa\xed\xfe", "application/x-mach-binary"),
    (0, b"#!", "text/x-shellscript"),
    (0, b"%PDF-", "application/pdf"),
    (0, b"PK\x03\x04", "application/zip"),
    (0, b"PK\x05\x06", "application/zip"),
    (0, b"Rar!\x1a\x07", "application/vnd.rar"),
    (0, b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (0, b"\x1f\x8b", "application/gzip"),
    (0, b"BZh", "application/x-bzip2"),
    (0, b"\xfd7zXZ\x00", "application/x-xz"),
    (0, b"MSCF", "application/vnd.ms-cab-compressed"),
    (0, b"\x28\xb5\x2f\xfd", "application/zstd"),
    (0, b"\x1f\x9d", "application/x-compress"),
    (0, b"LZIP", "application/x-lzip"),
    (7, b"**ACE**", "application/x-ace-compressed"),
    (0, b"MSWIM\0\0\0", "application/x-ms-wim"),
    (0, b"xar!", "application/x-xar"),
    (0, b"conectix", "application/x-vhd"),
    (0, b"vhdxfile", "application/x-vhdx"),
    (0, b"ITSF", "application/vnd.ms-htmlhelp"),
    (0, b"\x4c\x00\x00\x00\x01\x14\x02\x00", "application/x-ms-shortcut"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "application/x-ole-storage"),
    (0, b"\x78\x9f\x3e\x22", "application/ms-tnef"),
    (0, b"{\\rtf", "application/rtf"),
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (257, b"ustar", "application/x-tar"),
    (32769, b"CD001", "application/x-iso9660-image"),
    (32769, b"BEA01", "application/x-iso9660-image"),
    (0, b"!<arch>\n", "application/x-archive"),
    (4, b"ftyp", "video/mp4"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"OggS", "application/ogg"),
)
#: Marks that text may begin with are looked at more closely: the main header of ARJ, a method of LHA, a first header of cpio.
_ARJ = re.compile(rb"\x60\xea.{8}\x02", re.S)
_LHA = re.compile(rb"..-l[hz][0-9a-z]-", re.S)
_CPIO = re.compile(rb"07070(?:[12][0-9A-Fa-f]{104}|7[0-7]{70})")
#: The checksum of a tar header, at octet 148.
_TAR_SUM = re.compile(rb"[ 0]*([0-7]{1,7})[ \0]")
_MARKUP = (b"<!doctype html", b"<html", b"<script", b"<svg", b"<?xml")


def media_type(octets: bytes) -> str:
    """The media type of a file by its first octets."""
    for offset, mark, kind in _MAGIC:
        if octets.startswith(mark, offset):
            return kind
    if _ARJ.match(octets):
        return "application/x-arj"
    if _LHA.match(octets):
        return "application/x-lzh-compressed"
    if _CPIO.match(octets):
        return "application/x-cpio"
    # Tar as it was before it had a mark.
    total = _TAR_SUM.match(octets, 148)
    if total is not None and sum(octets[:148]) + 8 * 32 + sum(octets[156:512]) == int(total[1], 8):
        return "application/x-tar"
    head = octets[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(_MARKUP[:3]):
        return "text/html"
    if head.startswith(b"<svg"):
        return "image/svg+xml"
    return ""
