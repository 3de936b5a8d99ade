"""Texts added to mail by its input channel, as the directory keeps them."""

from __future__ import annotations

from iems.directory import keys
from iems.directory.entries import AUTOTEXT, DirectoryRefusal, Entry
from iems.directory.names import rdn
from iems.directory.view import Change, View
from iems.model import Channel

MAX_CHARACTERS = 20_000
#: Mail of these channels is machines' or was looked at as it came in by another.
_NEVER = (Channel.MTA,)


def channel_of(name: str) -> Channel:
    """An input channel that can have a text. Raises DirectoryRefusal."""
    known = [channel for channel in Channel if channel < 32 and channel not in _NEVER]
    for channel in known:
        if channel.name == name.upper():
            return channel
    raise DirectoryRefusal(f"a channel is {', '.join(channel.name for channel in known)}, not {name!a}")


def read(view: View) -> dict[int, tuple[str, str]]:
    """Input channel -> (plain text, HTML)."""
    return {
        int(Channel[entry.lookup]): (entry.first("iemsText"), entry.first("iemsHtml"))
        for _, entry in view.of_class(keys.CLASS_AUTOTEXT)
    }


def write(work: Change, channel: Channel, text: str, html: str) -> None:
    """Set the texts of a channel; both empty removes them. Raises DirectoryRefusal."""
    for given in (text, html):
        if len(given) > MAX_CHARACTERS:
            raise DirectoryRefusal(f"a text has at most {MAX_CHARACTERS} characters")
        if any(ord(char) < 32 and char not in "\r\n\t" for char in given):
            raise DirectoryRefusal("a text has no control characters")
    found = work.find(keys.KIND_AUTOTEXT, channel.name)
    values = {"cn": [channel.name], "iemsText": [text] if text else [], "iemsHtml": [html] if html else []}
    if not (text or html):
        if found is None:
            raise DirectoryRefusal(f"{channel.name} has no text")
        work.remove(*found)
    elif found is not None:
        work.replace(*found, values)
    else:
        folder = work.folder("ou=autotext")
        work.add(Entry(folder, rdn("cn", channel.name), keys.KIND_AUTOTEXT, channel.name, ["top", AUTOTEXT], values))
