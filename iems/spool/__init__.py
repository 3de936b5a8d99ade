"""The spool: holds every message from its 250 until its last recipient has an outcome.

`Spool` is what workers use; `docs/spool.md` tells what is on the disk and what happens after a crash.
"""

from iems.spool.content import Content, ContentWriter
from iems.spool.items import Item, Message, Settlement
from iems.spool.spool import Spool, SpoolParams

__all__ = ["Content", "ContentWriter", "Item", "Message", "Settlement", "Spool", "SpoolParams"]
