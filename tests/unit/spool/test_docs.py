"""docs/spool.md says what the code does."""

from pathlib import Path

from iems.spool import records, states

PAGE = (Path(__file__).parents[3] / "docs" / "spool.md").read_text()


def test_states() -> None:
    assert states.table() in PAGE


def test_kinds_and_sizes() -> None:
    for kind in records.Kind:
        assert f"| {int(kind)} | {kind.name} |" in PAGE
    assert records.FILE_HEAD.size == records.FILE_OCTETS == 64
    assert records.HEAD.size + 4 == records.HEAD_OCTETS == 64
    assert records.END.size + 4 == records.END_OCTETS == 32
    for magic in (records.FILE_MAGIC, records.HEAD_MAGIC, records.END_MAGIC):
        assert f"`{magic.decode()}`" in PAGE
