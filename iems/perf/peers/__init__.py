"""Other mail servers as yardsticks: private instances of what is installed on the machine, started and stopped by the suite.

Each has its own configuration, queue, mail and ports in a temporary folder, listens on loopback only, asks no DNS and speaks no TLS, and
keeps its own default for when mail is durable. A server of the same name that runs on the machine is neither used nor touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping

from iems.perf.measure import Options

#: Name -> (programs, any of which will do; Debian packages that bring it).
KNOWN = {
    "postfix": (("postfix",), "postfix"),
    "dovecot": (("dovecot",), "dovecot-imapd dovecot-pop3d dovecot-lmtpd"),
    "exim": (("exim4", "exim"), "exim4-daemon-light"),
    "rspamd": (("rspamd",), "rspamd"),
}


def parse(text: str) -> dict[str, str | None]:
    """`postfix,exim=/opt/exim/bin/exim` as name -> program (None: the one on the path). Raises ValueError, naming what is wrong."""
    found: dict[str, str | None] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, program = part.partition("=")
        if name not in KNOWN:
            raise ValueError(f"no peer is named {name!r}; known: {', '.join(KNOWN)}")
        found[name] = program if equals else None
    if not found:
        raise ValueError(f"name at least one peer of {', '.join(KNOWN)}")
    return found


def program(name: str, given: str | None = None) -> str | None:
    """The program of a peer, or None if it isn't there. /usr/sbin is looked at even where it isn't on the path."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin"
    candidates = (given,) if given else KNOWN[name][0]
    return next((found for one in candidates if (found := shutil.which(one, path=path))), None)


def missing(wanted: Mapping[str, str | None]) -> dict[str, str]:
    """Peers that can't be run here, and what to do about each."""
    found = {}
    for name, given in wanted.items():
        if program(name, given) is None:
            what = f"{given} is no program" if given else "not installed"
            found[name] = f"{what} (Debian: apt install {KNOWN[name][1]})"
        elif os.geteuid():
            found[name] = "has to be started by root, as it changes to users of its own"
        else:
            problem = _problem(name, given)
            if problem:
                found[name] = problem
    return found


def _problem(name: str, given: str | None) -> str | None:
    if name == "dovecot":
        from iems.perf.peers import dovecot

        return dovecot.problem(given)
    if name == "exim":
        from iems.perf.peers import exim

        return exim.problem(given)
    return None


def started(name: str, options: Options) -> str:
    """The program of a peer that a run was asked for. Raises RuntimeError if it isn't there."""
    found = program(name, options.peers.get(name))
    if found is None:
        raise RuntimeError(f"{name} is not installed (Debian: apt install {KNOWN[name][1]})")
    return found


def version(name: str, options: Options) -> str:
    """What its program says it is; empty if it says nothing."""
    path = program(name, options.peers.get(name))
    if path is None:
        return ""
    arguments = {"postfix": ["postconf", "-h", "mail_version"], "exim": [path, "-bV"]}.get(name, [path, "--version"])
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return " ".join(done.stdout.split("\n", 1)[0].split())
