"""What becomes of tagged mail on channels that can't act on tags: the administrator's default for each (product.md 5).

LOCAL and DL act on tags themselves: users and lists decide there. For the others the preprocessor's module `antispam` does what is set
here. A channel may be left without a default only as long as nothing tags.
"""

from __future__ import annotations

from pathlib import Path

from iems.directory import attachmentrules, headerrules, keys
from iems.directory.entries import SETTINGS, DirectoryRefusal, Entry
from iems.directory.screening import zones
from iems.directory.view import Change, View
from iems.model import Channel

#: Channels whose mail no user's rule will see.
BLIND = (Channel.SMTPC, Channel.BSMTPOUT, Channel.CCMAIL, Channel.NOTES)
DEFAULTS = ("pass", "discard", "bounce", "none")
_ATTRIBUTE = "iemsTagDefault"


def read(view: View) -> dict[Channel, str]:
    """The default of each blind channel."""
    found = view.find(keys.KIND_SETTINGS, "")
    kept = dict(text.split(" ", 1) for text in found[1].attributes.get(_ATTRIBUTE, ())) if found else {}
    return {channel: kept.get(channel.name, "pass") for channel in BLIND}


def write(work: Change, channel: str, default: str, config_tags: list[str]) -> None:
    """Set the default of a channel. config_tags: settings that make checks tag. Raises DirectoryRefusal."""
    names = [each.name for each in BLIND]
    if channel.upper() not in names:
        raise DirectoryRefusal(f"{channel} acts on tags itself; a default is for {', '.join(names)}")
    if default not in DEFAULTS:
        raise DirectoryRefusal(f"a default is one of {', '.join(DEFAULTS)}, not {default!a}")
    aim = Channel[channel.upper()]
    if default == "none" and (tagging := _tagging(work) + config_tags):
        raise DirectoryRefusal(f"{aim.name} needs a default while mail is tagged ({', '.join(tagging[:5])})")
    chosen = {**read(work), aim: default}
    values = {_ATTRIBUTE: [f"{each.name} {kept}" for each, kept in chosen.items()]}
    found = work.find(keys.KIND_SETTINGS, "")
    if found is None:
        work.add(Entry(work.folder(""), "ou=settings", keys.KIND_SETTINGS, "", ["top", SETTINGS], values))
    else:
        work.replace(*found, values)


def _tagging(view: View) -> list[str]:
    """What tags mail by the directory: zones, rules about header fields and attachments."""
    found = [zone.name for zone in zones(view) if zone.action == "tag"]
    found += [f"headerrule {rule.name}" for rule in headerrules.rules(view) if rule.action == "tag" and not rule.draft]
    return found + [f"attachment {rule.type} {rule.name}" for rule in attachmentrules.rules(view) if rule.action == "tag"]


def undecided(defaults: dict[Channel, str]) -> list[str]:
    """Names of blind channels without a default."""
    return [channel.name for channel, default in defaults.items() if default == "none"]


def refusal(home: Path, settings: list[str]) -> str:
    """Why settings under which mail is tagged can't come into force: a blind channel of the home has no default. "" if they can.

    settings: their names, as `tagging_settings` gives them. Opens the directory, so for no process that forks. Raises DirectoryUnavailable.
    """
    if not settings:
        return ""
    from iems.directory.directory import Directory

    directory = Directory(home / "directory")
    try:
        missing = undecided(directory.tag_defaults())
    finally:
        directory.close()
    if not missing:
        return ""
    return f"{settings[0]} tags mail: say what becomes of it on {', '.join(missing)}: iemsctl cam default {missing[0]} pass"


def require(view: View) -> None:
    """Raises DirectoryRefusal if mail must not be tagged because a channel has no default."""
    if missing := undecided(read(view)):
        raise DirectoryRefusal(
            f"say first what becomes of tagged mail on {', '.join(missing)}: iemsctl cam default {missing[0]} pass"
        )
