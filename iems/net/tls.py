"""TLS of the server's side: contexts, and what ties an exchange of SASL to its connection (channel binding).

Bindings: `tls-exporter` (RFC 9266), `tls-server-end-point` and, below TLS 1.3, `tls-unique` (RFC 5929). Python has no call for the
exporter, so OpenSSL is asked through ctypes, after a look whether its connection lies in the object where it does in the versions
known. Without it no binding is given, so -PLUS is not offered: clients take the exporter for granted with TLS 1.3.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import ssl
import sys
import sysconfig
from collections.abc import Callable
from hashlib import new

_EXPORTER_LABEL = b"EXPORTER-Channel-Binding"
_GET_EXTMS_SUPPORT = 122  # SSL_ctrl(3): whether the extended master secret is in use (RFC 7627)
#: The words behind the header of a `_ssl._SSLSocket`: a weak reference to the socket, SSL *, the context.
_SSL_WORD, _CONTEXT_WORD = 1, 2
_KNOWN_PYTHONS = ((3, 11), (3, 14))

#: Signature algorithms by the DER of their object identifier -> the hash of `tls-server-end-point` (MD5 and SHA-1 count as SHA-256).
_HASHES = {
    bytes.fromhex("2a864886f70d010104"): "sha256",  # md5WithRSAEncryption
    bytes.fromhex("2a864886f70d010105"): "sha256",  # sha1WithRSAEncryption
    bytes.fromhex("2a864886f70d01010b"): "sha256",
    bytes.fromhex("2a864886f70d01010c"): "sha384",
    bytes.fromhex("2a864886f70d01010d"): "sha512",
    bytes.fromhex("2a864886f70d01010e"): "sha224",
    bytes.fromhex("2a8648ce3d0401"): "sha256",  # ecdsa-with-SHA1
    bytes.fromhex("2a8648ce3d040301"): "sha224",
    bytes.fromhex("2a8648ce3d040302"): "sha256",
    bytes.fromhex("2a8648ce3d040303"): "sha384",
    bytes.fromhex("2a8648ce3d040304"): "sha512",
}


class Context(ssl.SSLContext):
    """A server's context that knows the hash of its certificate. end_point: b"" if that can't be had."""

    end_point: bytes = b""


def server_context(pem_path: str, minimum: str) -> Context:
    """A context from one PEM file with chain and key. minimum: "1.2" or "1.3". Raises ssl.SSLError, OSError."""
    context = Context(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if minimum == "1.3" else ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.load_cert_chain(pem_path)
    with open(pem_path, encoding="ascii", errors="replace") as file:
        text = file.read()
    start = text.find(ssl.PEM_HEADER)
    end = text.find(ssl.PEM_FOOTER, start)
    if start >= 0 and end >= 0:
        context.end_point = end_point(ssl.PEM_cert_to_DER_cert(text[start : end + len(ssl.PEM_FOOTER)]))
    return context


def end_point(certificate: bytes) -> bytes:
    """`tls-server-end-point` of a certificate in DER (RFC 5929 4.1); b"" where its signature names no hash, as Ed25519."""
    try:
        body, _ = _value(certificate, 0)
        _, after = _value(body, 0)
        algorithm, _ = _value(body, after)
        identifier, _ = _value(algorithm, 0)
    except IndexError:
        return b""
    name = _HASHES.get(identifier)
    return new(name, certificate).digest() if name else b""


def _value(data: bytes, at: int) -> tuple[bytes, int]:
    """The value of the DER element at an offset, and the offset behind it. Raises IndexError."""
    length = data[at + 1]
    at += 2
    if length & 0x80:
        count = length & 0x7F
        length = int.from_bytes(data[at : at + count], "big")
        at += count
    if at + length > len(data):
        raise IndexError("cut short")
    return data[at : at + length], at + length


def bindings(sock: ssl.SSLSocket) -> dict[bytes, bytes]:
    """The channel bindings of a connection whose handshake is done: type -> data. Empty where they can't all be had."""
    try:
        raw = sock._sslobj  # type: ignore[attr-defined]
        pointer = _connection(raw, sock.context)
        if pointer is None:
            return {}
        library = _library()
        assert library is not None
        found: dict[bytes, bytes] = {}
        if sock.version() != "TLSv1.3":
            if library.SSL_ctrl(pointer, _GET_EXTMS_SUPPORT, 0, None) != 1:
                # Without the extended master secret one in between can make two connections that look the same (RFC 7627 1).
                return {}
            found[b"tls-unique"] = sock.get_channel_binding("tls-unique") or b""
        out = ctypes.create_string_buffer(32)
        label = _EXPORTER_LABEL
        if library.SSL_export_keying_material(pointer, out, 32, label, len(label), b"", 0, 1) != 1:
            return {}
        found[b"tls-exporter"] = out.raw
    except (AttributeError, ValueError, OSError):
        return {}
    context = sock.context
    if isinstance(context, Context) and context.end_point:
        found[b"tls-server-end-point"] = context.end_point
    return {name: data for name, data in found.items() if data}


def _connection(raw: object, context: ssl.SSLContext) -> ctypes.c_void_p | None:
    """The SSL of a Python TLS object, None unless its neighbour in memory is the context, as it should be."""
    if _library() is None or type(raw).__basicsize__ < object.__basicsize__ + 24:
        return None
    word = ctypes.sizeof(ctypes.c_void_p)
    start = id(raw) + object.__basicsize__
    if ctypes.c_void_p.from_address(start + _CONTEXT_WORD * word).value != id(context):
        return None
    value = ctypes.c_void_p.from_address(start + _SSL_WORD * word).value
    return ctypes.c_void_p(value) if value else None


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The OpenSSL that Python's module uses; None for a Python whose objects may lie differently."""
    known = _KNOWN_PYTHONS[0] <= sys.version_info[:2] <= _KNOWN_PYTHONS[1]
    if platform.python_implementation() != "CPython" or not known or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return None
    import _ssl

    try:
        library = ctypes.CDLL(getattr(_ssl, "__file__", None))
        export: Callable[..., int] = library.SSL_export_keying_material
        control: Callable[..., int] = library.SSL_ctrl
    except (OSError, AttributeError):
        return None
    export.restype = ctypes.c_int  # type: ignore[attr-defined]
    export.argtypes = [  # type: ignore[attr-defined]
        ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p,
        ctypes.c_size_t, ctypes.c_int,
    ]  # fmt: skip
    control.restype = ctypes.c_long  # type: ignore[attr-defined]
    control.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p]  # type: ignore[attr-defined]
    return library
