"""Who may import whom (docs/architecture.md): roles import services, services import vocabulary, nobody upwards or across."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

IEMS = Path(__file__).parents[3] / "iems"
ROLES = {"smtpd", "preprocessor", "lmda", "smtpc", "imapd", "pop3d", "sieved", "bsmtp", "janitor", "api"}
SERVICES = {"spool", "store", "directory", "fulltext", "refusals", "bayes", "backup", "transfer", "scan", "attachment"}
VOCABULARY = {"smtp", "imap", "sasl", "message", "sieve", "net"}


def imports(folder: str, root: Path = IEMS) -> Iterator[tuple[str, str]]:
    """(file, part of iems it imports) of every import in a folder, those inside functions too."""
    for path in sorted((root / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module] if node.module != "iems" else [f"iems.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                if name.startswith("iems."):
                    yield f"{folder}/{path.name}", name.split(".")[1]


def test_roles_do_not_import_each_other() -> None:
    assert not [(file, part) for role in ROLES for file, part in imports(role) if part in ROLES - {role}]


def test_nobody_imports_upwards() -> None:
    assert not [(file, part) for folder in SERVICES for file, part in imports(folder) if part in ROLES]
    assert not [(file, part) for folder in VOCABULARY for file, part in imports(folder) if part in ROLES | SERVICES]


def test_the_look_finds_what_it_looks_for(tmp_path: Path) -> None:
    (tmp_path / "smtpd").mkdir()
    (tmp_path / "smtpd" / "x.py").write_text("def f():\n    from iems.lmda import worker\nfrom iems import smtpc\nimport iems.spool.keys\n")
    assert {part for _, part in imports("smtpd", tmp_path)} == {"lmda", "smtpc", "spool"}
