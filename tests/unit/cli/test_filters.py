"""iemsuser mailsort, vacation and sieve: rules kept, refused, edited by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from iems.cli.iemsuser import cli
from iems.directory import Directory


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    found = Directory(tmp_path / "directory", create=True)
    found.add_domain("example.test")
    found.create_account("john@example.test", "pw")
    found.close()
    return tmp_path


def run(home: Path, *args: str, stdin: str | bytes = "") -> tuple[int, str, str]:
    found = CliRunner().invoke(cli, ["--home", str(home), *args], input=stdin)
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.stdout, found.stderr


def filtered(home: Path) -> bool:
    directory = Directory(home / "directory")
    try:
        account = directory.account("john@example.test")
        assert account is not None
        return account.filtered
    finally:
        directory.close()


JOHN = "john@example.test"


def test_rules_in_their_order(home: Path) -> None:
    assert not filtered(home)
    assert run(home, "mailsort", "list", JOHN) == (0, "", "")
    assert run(home, "mailsort", "add", JOHN, "--header", "from", "--contains", "ann", "--move", "Friends") == (0, "", "")
    assert run(home, "mailsort", "add", JOHN, "--header", "Subject", "--contains", 'a"b', "--copy", "C", "--continue", "--at", "1")[0] == 0
    assert filtered(home)
    rows = [json.loads(line) for line in run(home, "mailsort", "list", JOHN, "--json")[1].splitlines()]
    assert [(r["number"], r["header"], r["action"], r["target"], r["continue"], r["active"]) for r in rows] == [
        (1, "subject", "copy", "C", True, True), (2, "from", "move", "Friends", False, True),
    ]  # fmt: skip
    assert run(home, "mailsort", "move", JOHN, "2", "1")[0] == 0
    assert "1   from" in run(home, "mailsort", "list", JOHN)[1]
    assert 'contains "Subject" "a\\"b"' in run(home, "mailsort", "show", JOHN)[1]
    assert run(home, "mailsort", "remove", JOHN, "3")[0] == 1
    assert run(home, "mailsort", "remove", JOHN, "1")[0] == run(home, "mailsort", "remove", JOHN, "1")[0] == 0
    assert not filtered(home) and run(home, "sieve", "list", JOHN)[1] == ""


def test_refusals_change_nothing(home: Path) -> None:
    assert run(home, "mailsort", "add", JOHN, "--header", "from", "--contains", "a")[0] == 2
    assert run(home, "mailsort", "add", JOHN, "--header", "from", "--contains", "a", "--move", "X", "--vacation")[0] == 2
    code, _, err = run(home, "mailsort", "add", JOHN, "--header", "from", "--contains", "a\r\nb", "--move", "X")
    assert code == 1 and "line ends" in err
    assert run(home, "mailsort", "add", JOHN, "--header", "from", "--contains", "a", "--forward", "nobody")[0] == 1
    assert run(home, "mailsort", "add", JOHN, "--header", "from", "--contains", "a", "--vacation")[0] == 1
    assert run(home, "mailsort", "add", "no@example.test", "--header", "from", "--contains", "a", "--move", "X")[0] == 1
    assert run(home, "vacation", "set", JOHN, "--body-stdin", "--from", "soon", stdin="x")[0] == 1
    assert run(home, "vacation", "set", JOHN, "--body-stdin", stdin=b"\xff")[0] == 1
    assert not filtered(home) and run(home, "sieve", "list", JOHN)[1] == ""


def test_vacation(home: Path) -> None:
    assert "no vacation" in run(home, "vacation", "show", JOHN)[1]
    assert run(home, "vacation", "set", JOHN, "--subject", "Away", "--body-stdin", "--until", "2030-01-01", stdin="Back\nsoon\n")[0] == 0
    shown = json.loads(run(home, "vacation", "show", JOHN, "--json")[1])
    assert shown["set"] and shown["body"] == "Back\nsoon" and shown["last"] == "2030-01-01" and shown["days"] == 7
    assert "until 2030-01-01" in run(home, "vacation", "show", JOHN)[1] and filtered(home)
    assert run(home, "mailsort", "add", JOHN, "--header", "from", "--contains", "a", "--vacation")[0] == 0
    assert run(home, "vacation", "clear", JOHN)[0] == 0
    assert not filtered(home)


def test_scripts_by_hand(home: Path) -> None:
    run(home, "mailsort", "add", JOHN, "--header", "from", "--contains", "ann", "--move", "Friends")
    code, _, err = run(home, "sieve", "put", JOHN, "mine", stdin="nope;\nfileinto \"x\";")
    assert code == 1 and "line 1, column 1: there is no command nope" in err and "line 2" in err
    assert run(home, "sieve", "put", JOHN, "mine", "--activate", stdin="keep;\n")[0] == 0
    assert run(home, "sieve", "get", JOHN, "mine")[1] == "keep;\n"
    assert [json.loads(line)["active"] for line in run(home, "sieve", "list", JOHN, "--json")[1].splitlines()] == [False, True]
    assert "not used" in run(home, "mailsort", "list", JOHN)[2]
    assert "kept but not used" in run(home, "mailsort", "add", JOHN, "--header", "to", "--contains", "x", "--move", "X")[2]
    assert run(home, "sieve", "delete", JOHN, "mine")[0] == 1
    assert run(home, "sieve", "activate", JOHN)[0] == 2
    assert run(home, "sieve", "activate", JOHN, "nope")[0] == 1
    assert run(home, "sieve", "activate", JOHN, "mailsort")[0] == run(home, "sieve", "delete", JOHN, "mine")[0] == 0
    text = run(home, "sieve", "get", JOHN, "mailsort")[1]
    run(home, "sieve", "put", JOHN, "mailsort", stdin=text)
    assert run(home, "mailsort", "list", JOHN)[2] == ""  # as it was
    run(home, "sieve", "put", JOHN, "mailsort", stdin=text + "keep;\n")
    assert "edited by hand" in run(home, "mailsort", "list", JOHN)[2]
    code, _, err = run(home, "mailsort", "remove", JOHN, "1")
    assert code == 1 and "--force" in err
    assert run(home, "sieve", "get", JOHN, "mailsort")[1] == text + "keep;\n"
    assert run(home, "mailsort", "remove", JOHN, "1", "--force")[0] == 0
    run(home, "sieve", "put", JOHN, "mailsort", stdin="keep;")
    assert run(home, "vacation", "set", JOHN, "--body-stdin", stdin="x")[0] == 1
    assert run(home, "sieve", "activate", JOHN, "--none")[0] == 0 and not filtered(home)


def test_scripts_go_with_the_account(home: Path) -> None:
    run(home, "sieve", "put", JOHN, "mine", "--activate", stdin="keep;\n")
    assert list(home.glob("store/home/*/sieve.*/scripts"))
    assert run(home, "delete", JOHN)[0] == 0
    assert not list(home.glob("store/home/*/sieve.*"))
