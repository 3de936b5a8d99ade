"""Modules that examine and rewrite mail between routing and the output channels.

A module sees a message once per group of recipients it runs for (`matrix.Matrices`), with content, envelope and parts,
and answers with a `Verdict`. Modules run in the order of `installed()`: what refuses comes before what rewrites, and what
tags before what acts on tags; each sees the content the one before it left.

A module must bound its own time and memory, treat what it can't read as its policy for unscannable mail says, and raise
only for faults of ours, or TryLater: then the message stays in the input queue and is tried again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from msgspec import Struct, field

from iems.errors import IemsError
from iems.model import Envelope, Extent, Recipient, Reply, Rope
from iems.model import Verdict as Tag
from iems.preprocessor.route import Part

if TYPE_CHECKING:
    from iems.config import Config
    from iems.directory import Directory
    from iems.master.child import WorkerContext

_T = TypeVar("_T")


class TryLater(IemsError):
    """A module can't answer now: the message waits. reply: for the log and the sender's report in the end. seconds: until it is tried again.
    lifetime_s: age at which the module lets it wait no more."""

    def __init__(self, reply: Reply, seconds: float, reason: str, lifetime_s: float | None = None) -> None:
        super().__init__(reason)
        self.reply = reply
        self.seconds = seconds
        self.lifetime_s = lifetime_s


class Work(Struct):
    """One message on its way through the modules of one group.

    envelope: of the whole message, recipients as the client gave them. parts: the recipients of this group; `sources` of
    a part are the envelope's. rope: the content as the module before left it. read: octets (rope, start, length) of
    content. write: makes octets durable and gives their extent. released: an administrator has let it out of quarantine.
    age_s: how long the message has been here.
    shared: what modules leave for later ones, by module; one for the whole message, so that groups of it need not find out the same again.
    """

    id: bytes
    envelope: Envelope
    parts: list[Part]
    rope: Rope
    read: Callable[[Rope, int, int], bytes]
    write: Callable[[bytes], Awaitable[Extent]]
    released: bool = False
    shared: dict[str, Any] = field(default_factory=dict)
    age_s: float = 0.0


class Verdict(Struct, frozen=True):
    """What a module wants. The default is: pass on unchanged.

    rope: the new content, every extent of it durable (`Work.write`). failed: recipients refused (of the envelope, as in
    `Part.sources`), each with the reply for the sender's report; an alias fails as a whole. discarded: recipients that get
    nothing, each with the reason for the log. dropped: the same for single recipients of parts, so that of an alias one way can end
    and another go on. tags: what the module found, for the group's recipients to act on. reenter: an
    input channel by which the message, with its new content, starts again. quarantine: why
    the whole message is put aside for a person to look at, "" if it is not. note: for the log. ropes: content for some parts only; for
    modules that run last, as the ones behind do not see it. redirected: parts that go to an address in the place of their recipients, with the
    reason for the log; no module looks at them any more. failures: how many of those it asked did not answer, for the metrics. notice: what the
    postmaster is told of it, "" for nothing.
    """

    rope: Rope | None = None
    failed: list[tuple[Recipient, Reply]] = []
    discarded: list[tuple[Recipient, str]] = []
    dropped: list[tuple[Recipient, str]] = []
    tags: tuple[Tag, ...] = ()
    reenter: int = 0
    quarantine: str = ""
    note: str = ""
    ropes: list[tuple[Part, Rope]] = []
    redirected: list[tuple[Part, bytes, str]] = []
    failures: int = 0
    notice: str = ""


class Module(Protocol):
    """What `modules/NAME.py` provides."""

    #: As its matrix and the log call it.
    name: str
    #: Whether it also looks at what a module before it has tagged.
    on_tags: bool

    def wants(self, envelope: Envelope) -> bool:
        """Whether the module looks at a message at all; asked of every message, so it must cost next to nothing."""

    def examine(self, work: Work) -> Coroutine[Any, Any, Verdict]:
        """Look at one message for one group of recipients."""


#: Names of all modules, in the order they run.
NAMES = ("loopdetection", "authres", "tnef", "antivirus", "milter", "attachments", "headerrules", "content", "antispam", "autotext", "arc", "dkim")


def installed(
    config: Config,
    home: Path,
    directory: Directory,
    keeps_tags: Callable[[Part], bool],
    event: Callable[..., None],
    ctx: WorkerContext | None = None,
) -> tuple[Module, ...]:
    """The modules of this system in the order they run.

    keeps_tags: whether a part leaves with our tags on it. event: of the log. ctx: of the worker; without it `authres`, `arc` and `dkim`
    are left out.
    """
    from iems.message.headerrules import Rules
    from iems.preprocessor.modules.antispam import AntiSpam
    from iems.preprocessor.modules.attachments import Attachments
    from iems.preprocessor.modules.autotext import AutoText, AutoTextInsertion
    from iems.preprocessor.modules.headerrules import HeaderRules
    from iems.preprocessor.modules.tnef import Tnef
    from iems.preprocessor.scanning import antivirus, content, milters

    found: list[Module] = []
    if ctx is not None and config.authres.verify:
        # Before anything rewrites what is signed. Imported where it is on: a router without it needs no cryptography.
        from iems.preprocessor.modules.authres import Authres

        found.append(Authres(ctx))
    if config.preprocessor.tnef:
        found.append(Tnef())
    if config.antivirus.scanners:
        found.append(antivirus(config, home, event))
    if config.milter.milters:
        found.append(milters(config, event))
    found.append(Attachments(_kept(directory, directory.attachment_rules), config.attachment.unparsable, config.hostname, config.attachment.tell_postmaster))
    found.append(HeaderRules(_kept(directory, lambda: Rules(directory.header_rules()))))
    if config.content.checker:
        found.append(content(config, home, event))
    found.append(AntiSpam(directory.tag_default, keeps_tags))

    def texts() -> dict[int, AutoText]:
        return {channel: AutoText(*given) for channel, given in directory.autotexts().items()}

    found.append(AutoTextInsertion(_kept(directory, texts), config.preprocessor.autotext_signed))
    if ctx is not None and config.dkim.seal:
        from iems.preprocessor.modules.arc import Seal

        found.append(Seal(ctx))
    if ctx is not None and config.dkim.sign:
        from iems.preprocessor.modules.dkim import Sign

        found.append(Sign(ctx))
    return tuple(found)


def _kept(directory: Directory, read: Callable[[], _T]) -> Callable[[], _T]:
    """`read` asked again only after the directory has changed, as the routing of the message has just seen."""
    version: int | None = None
    value: Any = None

    def get() -> _T:
        nonlocal version, value
        if directory.seen != version:
            version = directory.seen
            value = read()
        return value  # type: ignore[no-any-return]

    return get
