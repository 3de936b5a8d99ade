"""Messages of the queue as files: the content octet for octet as `.eml`, the envelope beside it as `.json`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from iems.blobs import Blobs
from iems.model import Notify, Recipient, id_text, rope_length
from iems.spool import admin
from iems.spool.admin import Selection
from iems.spool.items import Item
from iems.spool.verify import Verifier

_CHUNK = 1 << 20


class Exists(Exception):
    """A file that would be overwritten; nothing of its message was written."""


def export(path: Path, selection: Selection, out: Path) -> Iterator[dict[str, Any]]:
    """Write what is meant into the folder `out`, which is made if it is missing; {id, file, envelope, octets, damaged} of each.

    A message whose parts differ in content gives a file for each content. damaged: what is wrong with the content, "" if it is what was accepted.
    Raises Exists, FileNotFoundError for content that is gone, OSError. Files are for their owner alone.
    """
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    spool = admin.folder(path)
    blobs = Blobs([spool / "segments", spool / "large"], max_open=16)
    try:
        with admin.looking(path) as index:
            found: dict[bytes, list[tuple[Item, str]]] = {}
            for entry in admin.find(index, selection):
                if entry.item is not None:
                    found.setdefault(entry.id, []).append((entry.item, entry.state))
        for id, items in found.items():
            contents: dict[bytes, list[tuple[Item, str]]] = {}
            for item, state in items:
                contents.setdefault(msgspec.msgpack.encode(item.rope), []).append((item, state))
            for number, parts in enumerate(contents.values()):
                name = id_text(id) + (f"-{number + 1}" if number else "")
                yield _write(blobs, out, name, parts)
    finally:
        blobs.close()


def _write(blobs: Blobs, out: Path, name: str, parts: list[tuple[Item, str]]) -> dict[str, Any]:
    file, beside = out / f"{name}.eml", out / f"{name}.json"
    for path in (file, beside):
        if path.exists():
            raise Exists(f"{path} is there already: nothing is overwritten")
    item = parts[0][0]
    damaged = ""
    try:
        Verifier(blobs).check(item)
    except FileNotFoundError:
        raise
    except (OSError, EOFError) as error:
        damaged = getattr(error, "strerror", "") or str(error)
    octets = rope_length(item.rope)
    envelope = _envelope(item, parts) | {"damaged": damaged}
    with _placed(file) as fd:
        for at in range(0, octets, _CHUNK):
            view = memoryview(blobs.read_range(item.rope, at, _CHUNK))
            while view:
                view = view[os.write(fd, view) :]
    with _placed(beside) as fd:
        data = msgspec.json.format(msgspec.json.encode(envelope), indent=1) + b"\n"
        if os.write(fd, data) != len(data):
            raise OSError(28, "No space left on device", str(beside))
    return {"id": id_text(item.id), "file": str(file), "envelope": str(beside), "octets": octets, "damaged": damaged}


@contextlib.contextmanager
def _placed(path: Path) -> Iterator[int]:
    """A descriptor for a file that appears under its name when it is whole. Raises Exists."""
    part = path.with_name(path.name + ".part")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        try:
            yield fd
        finally:
            os.close(fd)
        try:
            os.link(part, path)  # unlike a rename it overwrites nothing
        except FileExistsError:
            raise Exists(f"{path} is there already: nothing is overwritten") from None
    finally:
        os.unlink(part)


def _envelope(item: Item, parts: list[tuple[Item, str]]) -> dict[str, Any]:
    envelope = item.envelope
    return {
        "id": id_text(item.id),
        "input_channel": admin.channel_name(envelope.input_channel),
        "reverse_path": admin.text(envelope.reverse_path),
        "received": admin.rfc3339(envelope.received_ns),
        "client_ip": envelope.client_ip,
        "helo": admin.text(envelope.helo),
        "user": envelope.auth,
        "body": ("7BIT", "8BITMIME", "BINARYMIME")[min(envelope.body, 2)],
        "smtputf8": envelope.smtputf8,
        "requiretls": envelope.requiretls,
        "ret": ("", "FULL", "HDRS")[min(envelope.ret, 2)],
        "envid": admin.text(envelope.envid) if envelope.envid is not None else None,
        "verdicts": [[v.check, v.subject, v.answer] for v in envelope.verdicts],
        "recipients": [_recipient(part, state, r) for part, state in parts for r in part.envelope.recipients],
    }


def _recipient(item: Item, state: str, recipient: Recipient) -> dict[str, Any]:
    return {
        "address": admin.text(recipient.address),
        "original": admin.text(recipient.original or recipient.address),
        "notify": [notify.name for notify in Notify if recipient.notify & notify],
        "orcpt": admin.text(recipient.orcpt) if recipient.orcpt is not None else None,
        "channel": admin.channel_name(item.channel),
        "identifier": item.destination,
        "state": state,
        "attempts": max(recipient.attempts, item.attempts),
        "reply": admin.reply_text(recipient),
    }
