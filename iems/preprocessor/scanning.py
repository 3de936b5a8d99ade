"""Modules that ask other programs, made as the settings say."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from iems.model import Channel
from iems.net.breaker import Breaker
from iems.preprocessor.absence import Absence
from iems.preprocessor.archive import FORMATS
from iems.preprocessor.modules.antivirus import AntiVirus, Scanner
from iems.preprocessor.modules.content import Content
from iems.preprocessor.modules.milter import Milters
from iems.scan.checker import Rspamd, Spamd
from iems.scan.clamd import Clamd
from iems.scan.command import Command
from iems.scan.icap import Icap
from iems.scan.milter import Milter

if TYPE_CHECKING:
    from iems import config as declared
    from iems.config import Config


def _breaker(name: str, event: Callable[..., None]) -> Breaker:
    def told(is_open: bool, reason: str) -> None:
        event("scanner_away" if is_open else "scanner_back", scanner=name, reason=reason)

    return Breaker(told)


def _by_channel(texts: Sequence[str]) -> dict[int, str]:
    return {int(Channel[name]): value for name, value in (text.split(" ", 1) for text in texts)}


def _absence(what: str, settings: declared.Antivirus | declared.Content | declared.Milter) -> Absence:
    return Absence(what, settings.on_failure, _by_channel(settings.channel_failures), settings.lifetime_s)


def _verifying(home: Path, ca_file: str) -> ssl.SSLContext:
    """TLS that checks certificate and name. Raises OSError."""
    return ssl.create_default_context(cafile=str(home / ca_file) if ca_file else None)


def antivirus(config: Config, home: Path, event: Callable[..., None]) -> AntiVirus:
    """The module `antivirus`. event: of the log, told when a scanner goes away or comes back."""
    settings = config.antivirus
    scanners: list[Scanner] = []
    for text in settings.scanners:
        kind, _, place = text.partition(":")
        breaker = _breaker(text.split(" ")[0], event)
        if kind == "clamd":
            scanners.append(Clamd(place, timeout_s=settings.timeout_s, at_once=settings.at_once, breaker=breaker))
        elif kind in ("icap", "icaps"):
            tls = partial(_verifying, home, settings.ca_file) if kind == "icaps" else None
            scanners.append(Icap(place, timeout_s=settings.timeout_s, at_once=settings.at_once, breaker=breaker, tls=tls))
        else:
            scanners.append(
                Command(
                    place,
                    timeout_s=settings.timeout_s,
                    at_once=settings.at_once,
                    breaker=breaker,
                    infected=settings.infected_codes,
                    clean=settings.clean_codes,
                )
            )
    return AntiVirus(scanners, settings.infected, _absence("The virus scanner", settings), config.hostname, settings.tell_postmaster)


def milters(config: Config, event: Callable[..., None]) -> Milters:
    """The module `milter`."""
    settings = config.milter
    made = [
        Milter(
            place,
            hostname=config.hostname,
            timeout_s=settings.timeout_s,
            deadline_s=settings.deadline_s,
            at_once=settings.at_once,
            body_max=settings.body_max_octets,
            breaker=_breaker(place, event),
        )
        for place in settings.milters
    ]
    return Milters(
        made,
        hostname=config.hostname,
        rejected=settings.rejected,
        discarded=settings.discarded,
        absence=_absence("A mail filter", settings),
        lifetime_s=settings.lifetime_s,
    )


def content(config: Config, home: Path, event: Callable[..., None]) -> Content:
    """The module `content`."""
    settings = config.content
    kind, _, place = settings.checker.partition(":")
    made = Spamd if kind == "spamd" else Rspamd
    checker = made(
        place, timeout_s=settings.timeout_s, at_once=settings.at_once, breaker=_breaker(settings.checker, event)
    )
    actions = _by_channel(settings.channel_actions)
    return Content(
        checker,
        settings.action,
        actions,
        subject=settings.subject,
        archive=partial(FORMATS[settings.archive_format], home / settings.archive),
        inspector=settings.inspector,
        refusal=settings.refusal,
        max_octets=settings.max_octets,
        absence=_absence("The content filter", settings),
    )
