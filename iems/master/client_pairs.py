"""Certificates the relay shows to other hosts: read and checked by the master alone, handed to the relay's workers as memfds."""

from __future__ import annotations

import fcntl
import os
import ssl
from pathlib import Path

from iems.config import Config


class PairError(Exception):
    """A pair can't be used; the text says which, and why."""


def read_client_pairs(home: Path, config: Config) -> dict[str, int]:
    """Descriptors of the pairs of `smtpc.client_certificates` by name, each a sealed memfd with chain and key. Raises PairError."""
    found: dict[str, int] = {}
    try:
        for pair in config.smtpc.client_certificates:
            try:
                chain = (home / pair.certificate).read_bytes()
                key = (home / pair.key).read_bytes()
            except OSError as exc:
                raise PairError(f"client certificate {pair.name}: {exc.filename}: {exc.strerror}") from None
            fd = found[pair.name] = os.memfd_create("iems-client-tls", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.write(fd, chain + b"\n" + key)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(f"/proc/self/fd/{fd}", password=_no_password)
            except (ssl.SSLError, ValueError, OSError) as exc:
                raise PairError(
                    f"client certificate {pair.name}: {pair.certificate} and {pair.key} don't go together: {exc}"
                ) from None
        default = config.smtpc.client_certificate
        if default and default not in found:
            raise PairError(f"smtpc.client_certificate: {default!r} is none of smtpc.client_certificates")
    except PairError:
        close(found)
        raise
    return found


def _no_password() -> str:
    raise ValueError("the key needs a password")  # rather than a question on a terminal nobody watches


def close(pairs: dict[str, int]) -> None:
    """Give up the descriptors."""
    for fd in pairs.values():
        os.close(fd)
    pairs.clear()
