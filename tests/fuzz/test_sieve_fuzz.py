"""Any text is a script or a ScriptError, any message a list of actions, in bounded time."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from iems.sieve import EXTENSIONS, ScriptError, compile_script, run
from iems.sieve.message import ContentMessage

_WORDS = (
    "require", "if", "elsif", "else", "keep", "stop", "discard", "fileinto", "redirect", "reject", "vacation", "set", "addflag",
    "header", "address", "envelope", "exists", "size", "not", "allof", "anyof", "true", "false", "body", "string", "hasflag", "date",
    "currentdate", ":is", ":contains", ":matches", ":regex", ":count", ":value", ":comparator", ":over", ":under", ":copy", ":flags",
    ":create", ":days", ":index", ":last", ":zone", ":localpart", ":lower", '"subject"', '"from"', '"a*?b"', '"${1}"', '"(a+)+"',
    '"gt"', '"i;octet"', '"a@b.c"', "[", "]", "(", ")", "{", "}", ",", ";", "1K", "7", "text:\r\nx\r\n.\r\n", "/* c */", "# c\n",
)  # fmt: skip
_REQUIRE = "require [" + ",".join(f'"{name}"' for name in EXTENSIONS) + "];\n"
_MAIL = b"From: a@b.c\r\nSubject: aXXb\r\nDate: Tue, 24 Nov 2026 09:15:30 +0100\r\n\r\n" + b"a" * 2000


def _try(text: str | bytes) -> None:
    start = time.process_time()
    try:
        script = compile_script(text)
    except ScriptError as error:
        assert error.problems and all(p.line > 0 and p.column > 0 for p in error.problems)
    else:
        assert run(script, ContentMessage(_MAIL, "a@b.c", "d@e.f")) is not None
    assert time.process_time() - start < 2


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(_WORDS), max_size=40))
def test_words_in_any_order(words: list[str]) -> None:
    _try(_REQUIRE + " ".join(words))


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=200), st.binary(max_size=200)))
def test_any_text(text: str | bytes) -> None:
    _try(text)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_any_message(mail: bytes) -> None:
    script = compile_script(
        _REQUIRE + 'if anyof(header :matches ["subject","from"] "*a*", address :detail ["from","to"] "x", body :regex "(x*)*y",'
        ' date "date" "iso8601" "x", body :content "" :contains "q") { fileinto "${1}"; }'
    )
    assert run(script, ContentMessage(mail, "", "")).actions
