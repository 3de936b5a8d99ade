"""A channel of one's own: writes what leaves by CCMAIL into a folder, and hands in what lies in another.

    folder_channel.py SOCKET OUT [IN]

OUT gets a file ID-PART-HASH.eml for each recipient, with its envelope beside it as .json. A file *.eml put into IN (under another name
first, then renamed) goes to the addresses in its To field and is removed. Killed at any moment it loses nothing: a message stays in the
queue until it is acked, and a message that comes again is written over the file it was written to before.
"""

from __future__ import annotations

import email
import email.utils
import hashlib
import json
import os
import sys
import time
from pathlib import Path

from iems.api.client import ApiError, Client, Item

CHANNEL_OUT, CHANNEL_IN = "CCMAIL", "CCOUT"


def put(path: Path, octets: bytes) -> None:
    """A file that is there wholly or not at all, and on the disk."""
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        file.write(octets)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def deliver(item: Item, folder: Path) -> None:
    """Write one item, then say so."""
    content = item.content()
    for recipient in item.recipients:
        # An address may hold a slash: names are made of what can't lead anywhere.
        name = f"{item.key}-{hashlib.sha256(recipient.encode()).hexdigest()[:16]}"
        envelope = {"reverse_path": item.reverse_path, "recipient": recipient, "post_office": item.destination}
        put(folder / f"{name}.json", json.dumps(envelope).encode())
        put(folder / f"{name}.eml", content)
    sync = os.open(folder, os.O_RDONLY)
    os.fsync(sync)
    os.close(sync)
    item.ack()


def hand_in(client: Client, folder: Path) -> None:
    """Hand in what lies in a folder."""
    for path in sorted(folder.glob("*.eml")):
        content = path.read_bytes()
        head = email.message_from_bytes(content)
        addresses = [address for _, address in email.utils.getaddresses(head.get_all("To", []))]
        sender = email.utils.parseaddr(head.get("From", ""))[1]
        try:
            client.insert(CHANNEL_IN, sender, addresses, content)
        except ApiError as error:
            if error.error != "bad":
                raise  # full, or failing: later
            print(f"{path.name}: {error}", file=sys.stderr, flush=True)
            path.rename(path.with_suffix(".bad"))
        else:
            path.unlink()


def serve(socket: str, out: Path, into: Path | None) -> None:
    """One connection's life. Raises OSError when it ends."""
    with Client(socket, name="folder") as client:
        print("ready", flush=True)
        while True:
            for item in client.take(CHANNEL_OUT, limit=10, wait_s=0.5 if into else 60.0, lease_s=120.0):
                deliver(item, out)
            if into is not None:
                hand_in(client, into)


def main() -> None:
    """Serve, and connect again whenever the server was away."""
    socket, *folders = sys.argv[1:]
    paths = [Path(folder) for folder in folders]
    while True:
        try:
            serve(socket, paths[0], paths[1] if len(paths) > 1 else None)
        except (OSError, ApiError) as error:
            print(f"folder channel: {error}", file=sys.stderr, flush=True)
            time.sleep(0.5)


if __name__ == "__main__":
    main()
