"""iemsuser export, import: an account's mail to and from mbox, Maildir and .eml files."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from iems.cli.common import Failed, note, say, say_json
from iems.cli.spam import account_of
from iems.errors import StoreError
from iems.imap import mailboxes
from iems.model import Extent
from iems.store.reader import Reader
from iems.transfer.sources import FORMATS, guess, read

CHUNK_OCTETS = 1 << 20
_SHOWN = 20


@click.command("export")
@click.argument("address")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--format", "kind", type=click.Choice(FORMATS), default="maildir", show_default=True, help="What to write.")
@click.option("--mailbox", "wanted", multiple=True, help="Only these mailboxes; a pattern such as 'Lists/*'. Can be given again.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object at the end.")
@click.pass_obj
def export_mail(home: Any, address: str, folder: Path, kind: str, wanted: tuple[str, ...], as_json: bool) -> None:
    """Write the mail of ADDRESS into FOLDER. Repeated into the same folder, it adds what is new (mbox is written anew)."""
    from iems.transfer.targets import TARGETS

    account = account_of(home.directory(), address)
    store = home.config().store_path(home.place())
    if not store.is_dir():
        raise Failed("there is no store yet")
    folder.mkdir(parents=True, exist_ok=True)
    reader = Reader(store)
    target = TARGETS[kind](folder)
    written = there = gone = 0
    for box in reader.mailboxes(account.number):
        if box.noselect or (wanted and not any(fnmatch.fnmatchcase(box.name, pattern) for pattern in wanted)):
            continue
        selected = reader.select(account.number, box.id)
        for uid in selected.uids.tolist() if selected is not None else ():
            row = reader.message(account.number, box.id, uid)
            if row is None:
                continue
            flags = box.flag_names(row.flags)
            try:
                new = target.add(box.name, f"{box.uidvalidity}-{uid}", _pieces(reader, row.rope, row.size), flags, row.internaldate_s)
            except (FileNotFoundError, EOFError) as error:
                gone += 1
                note(f"{box.name}, uid {uid}: its content can't be read: {error}")
                continue
            written, there = written + new, there + (not new)
    target.done()
    reader.close()
    if as_json:
        say_json({"written": written, "there": there, "unreadable": gone})
    else:
        say(f"wrote {written} messages" + (f", {there} were there already" if there else ""))
    if gone:
        raise SystemExit(1)


def _pieces(reader: Reader, rope: list[Extent | bytes], size: int) -> Iterator[bytes]:
    for at in range(0, size, CHUNK_OCTETS):
        yield reader.blobs.read_range(rope, at, min(CHUNK_OCTETS, size - at))


@click.command("import")
@click.argument("address")
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option("--format", "kind", type=click.Choice(("auto", *FORMATS)), default="auto", show_default=True, help="What it is.")
@click.option("--mailbox", default="", help="Put it here; folders of the source become mailboxes below. Default: INBOX and the top.")
@click.option("--dry-run", is_flag=True, help="Say what would be brought in, and bring nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object at the end.")
@click.pass_obj
def import_mail(home: Any, address: str, source: Path, kind: str, mailbox: str, dry_run: bool, as_json: bool) -> None:
    """Bring mail from SOURCE (mbox, Maildir, .eml; a file or a folder) into the mailboxes of ADDRESS, with flags and dates.

    Can be repeated after a stop: messages that are there from an earlier run are not doubled.
    """
    from iems.store.offline import ask
    from iems.store.quota import room_of
    from iems.transfer.bring import Bringer

    directory = home.directory()
    account = account_of(directory, address)
    config, place = home.config(), home.place()
    try:
        found = guess(source) if kind == "auto" else kind
    except ValueError as error:
        raise Failed(str(error)) from None
    spool = place / config.spool.path
    store = config.store_path(place)
    skipped: list[tuple[str, str]] = []
    if not dry_run:
        for folder in (spool / "large", store / f"p{account.partition}"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def put(body: Any) -> bytes:
        return ask(place, store, spool, account.partition, account.number, body, config.store.undelete_s)

    bringer = Bringer(account, room_of(store, account, config.store.partitions), spool, put)
    counted = 0
    try:
        for mail in read(source, found, lambda where, why: skipped.append((where, why))):
            try:
                name = mailboxes.checked("/".join([*filter(None, mailbox.split("/")), *mail.mailbox]) or "INBOX")
            except StoreError as error:
                skipped.append((mail.place, str(error)))
                continue
            counted += 1
            if not dry_run:
                bringer.add(mail, name)
            if len(bringer.refused) > _SHOWN:
                break
        bringer.flush()
    except StoreError as error:
        raise Failed(f"after {bringer.brought} messages: {error}; repeat the command to go on") from error
    for where, why in [*skipped, *bringer.refused][:_SHOWN]:
        note(f"not brought in: {where}: {why}")
    result = {"found": counted, "brought": bringer.brought, "known": bringer.known, "skipped": len(skipped), "refused": len(bringer.refused)}
    if as_json:
        say_json(result)
    elif dry_run:
        say(f"would bring in {counted} messages of {found}")
    else:
        say(f"brought in {bringer.brought} messages" + (f", {bringer.known} were there already" if bringer.known else ""))
    if bringer.refused:
        raise SystemExit(1)
