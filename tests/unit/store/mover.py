"""A process that moves account 1: `python -m tests.unit.store.mover HOME PARTITION`. The file `entry` stands for the directory."""

import sys
from pathlib import Path

from iems.durable import write_durably
from iems.store.move import move

if __name__ == "__main__":
    home, wanted = Path(sys.argv[1]), int(sys.argv[2])
    entry = home / "entry"
    move(home, home / "store", home / "spool", 1, int(entry.read_text()), wanted, lambda number: write_durably(entry, str(number).encode()))
