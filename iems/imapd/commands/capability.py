"""CAPABILITY (RFC 3501 6.1.1): only what works in this state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.imapd.commands.common import no_arguments
from iems.imapd.engine import ANY, Command, Spec, State

if TYPE_CHECKING:
    from iems.imapd.session import Session

_ALWAYS = b"IMAP4rev1 IMAP4rev2 LITERAL+ SASL-IR ID ENABLE"
_LOGGED_IN = (
    b" IDLE NAMESPACE UIDPLUS MOVE UNSELECT CHILDREN SPECIAL-USE CREATE-SPECIAL-USE LIST-EXTENDED LIST-STATUS "
    b"CONDSTORE ESEARCH SEARCHRES PARTIAL SORT SORT=DISPLAY ESORT THREAD=ORDEREDSUBJECT THREAD=REFERENCES I18NLEVEL=1 "
    b"CONTEXT=SEARCH CONTEXT=SORT MULTIAPPEND STATUS=SIZE WITHIN "
    b"QRESYNC BINARY CATENATE REPLACE UTF8=ACCEPT UIDONLY OBJECTID SAVEDATE PREVIEW "
    b"QUOTA QUOTA=RES-STORAGE METADATA INPROGRESS NOTIFY ACL RIGHTS=kxte"
)


def mechanisms(session: Session) -> list[bytes]:
    """The mechanisms of AUTHENTICATE on offer; LOGIN, which is the command of that name again, is none here."""
    names = session.services.authenticator.offer.names(session.bindings)
    return [name for name in names if name != b"LOGIN"]


def capabilities(session: Session) -> bytes:
    """The capabilities of a session as it is now."""
    parts = [_ALWAYS]
    if session.engine.state == State.NOT_AUTHENTICATED:
        if session.services.tls is not None and not session.stream.secure:
            parts.append(b" STARTTLS")
        if session.may_login:
            parts += [b" AUTH=" + name for name in mechanisms(session)]
        else:
            parts.append(b" LOGINDISABLED")
    else:
        parts.append(_LOGGED_IN)
        if not session.compressed:
            parts.append(b" COMPRESS=DEFLATE")
        limit = session.services.limits.content
        if limit:
            parts.append(b" APPENDLIMIT=%d" % limit)
    return b"".join(parts)


def run(session: Session, command: Command) -> bytes:
    """Carry out CAPABILITY; the text of the tagged answer. Raises Refused, StoreError."""
    session.send(b"* CAPABILITY " + capabilities(session) + b"\r\n")
    return b"OK CAPABILITY completed"


SPECS = [Spec(b"CAPABILITY", ANY, no_arguments, run)]
