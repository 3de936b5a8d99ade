"""COPY and MOVE between the mailboxes of two accounts: content is read and kept anew, as for APPEND.

Within one account the store copies rows and no content.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iems.imap.grammar import Refused
from iems.imapd.content import read_pieces
from iems.store.wire import NewMessage

if TYPE_CHECKING:
    from iems.imapd.places import Place
    from iems.imapd.session import Session
    from iems.imapd.view import View

#: Messages of one COPY to another account, which takes all or none.
MAX_MESSAGES = 2_000
READ_OCTETS = 256 * 1024


async def copy(
    session: Session, view: View, uids: list[int], target: Place, move: bool = False
) -> tuple[int, list[int], list[int]]:
    """(uidvalidity of the target, uids that were there, their new uids). Raises `Refused`, StoreError, SpoolError."""
    services = session.services
    if target.account == view.account:
        found: tuple[int, list[int], list[int]] = await services.store.copy(
            view.account, view.mailbox_id, uids, target.box.name, move=move, quota_octets=target.quota_octets,
            domain=target.owner.domain, domain_octets=services.domain_room(target.owner),
        )  # fmt: skip
        return found
    if len(uids) > MAX_MESSAGES:
        raise Refused(f"[LIMIT] At most {MAX_MESSAGES} messages at once to another account")
    source_box = services.reader.mailbox_by_id(view.account, view.mailbox_id)
    if source_box is None:
        raise Refused("The mailbox is gone")
    new: list[NewMessage] = []
    sources: list[int] = []
    for uid in uids:
        row = services.reader.message(view.account, view.mailbox_id, uid, view.member)
        if row is None:
            continue
        names = target.allowed(source_box.flag_names(row.flags))
        new.append(await _kept(session, row, names))
        sources.append(uid)
    if not new:
        return 0, [], []
    uidvalidity, targets = await services.store.append(
        target.account, target.box.name, new, target.quota_octets,
        domain=target.owner.domain, domain_octets=services.domain_room(target.owner), member=target.member,
    )  # fmt: skip
    if move:
        await services.store.store_flags(view.account, view.mailbox_id, sources, "+", ["\\Deleted"])
        await services.store.expunge(view.account, view.mailbox_id, sources)
    return uidvalidity, sources, targets


async def _kept(session: Session, row: Any, names: list[str]) -> NewMessage:
    services = session.services
    body = services.content.new(row.size)
    try:
        async for octets in read_pieces(services, services.contents.pieces(row.rope, 0, row.size), READ_OCTETS):
            body.write(memoryview(octets))
        rope, envelope, bodystructure, dot_free = await services.content.keep(body)
    finally:
        body.abandon()
    return NewMessage(
        rope=rope,
        size=row.size,
        internaldate_s=row.internaldate_s,
        envelope=envelope,
        bodystructure=bodystructure,
        flags=names,
        dot_free=dot_free,
    )
