"""Scripts by the sections of RFC 5228 and of the extensions: what they do with a message."""

from __future__ import annotations

import random
import time
from datetime import datetime, timedelta, timezone

import pytest

from iems.sieve import Environment, ScriptError, compile_script, run
from iems.sieve.actions import Action, FileInto, Keep, Redirect, Reject, Vacation
from iems.sieve.message import ContentMessage

MAIL = (
    b"Received: from a by b; Mon, 23 Nov 2026 23:30:00 -0800\r\n"
    b"From: Ann Other <Ann.Other+lists@Example.org>\r\n"
    b"To: =?utf-8?q?J=C3=B6rg?= <me+sales@example.net>, you@example.net\r\n"
    b"Cc: team:a@example.com,b@example.com;\r\n"
    b"Subject: [dev-list]  =?utf-8?q?Gr=C3=BC=C3=9Fe?= aus A*B\r\n"
    b"Date: Tue, 24 Nov 2026 09:15:30 +0100\r\n"
    b"X-Score: 17 points\r\n"
    b"X-Two: first\r\nX-Two: second\r\nX-Two: third\r\n"
    b"X-Empty:\r\n"
    b"MIME-Version: 1.0\r\n"
    b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
    b"--b\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\nR3LDvMOfZSB2b20gQmF1bQ==\r\n"
    b"--b\r\nContent-Type: application/x-odd\r\n\r\noctets\r\n--b--\r\n"
)
NOW = datetime(2026, 11, 24, 12, 0, 5, tzinfo=timezone(timedelta(hours=1)))
ENV = Environment(
    now=NOW,
    exists=lambda name: name in ("INBOX", "Lists"),
    special_use=lambda use: "Spam" if use.lower() == "\\junk" else "",
    variables={"iems.verdict": "spam"},
)
ALL = (
    'require ["fileinto","reject","ereject","envelope","copy","body","variables","imap4flags","relational","regex","date",'
    '"comparator-i;ascii-numeric","vacation","vacation-seconds","subaddress","mailbox","index","special-use","vnd.iems.variables",'
    '"encoded-character"];\n'
)


def actions(script: str, reverse_path: str = "ann@example.org", recipient: str = "me+sales@example.net") -> list[Action]:
    outcome = run(compile_script(ALL + script), ContentMessage(MAIL, reverse_path, recipient), ENV)
    assert not outcome.error, outcome.error
    return outcome.actions


def holds(test: str, **more: str) -> bool:
    return actions(f"if {test} {{ discard; }}", **more) == []


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        # 5228 2.7.1 and 2.7.3: match types, comparators
        ('header :is "subject" "[dev-list]  grÜße aus a*b"', False),  # only ASCII folds
        ('header :is "subject" "[DEV-LIST]  GRüßE AUS a*b"', True),
        ('header :comparator "i;octet" :contains "Subject" "grü"', False),
        ('header :comparator "i;octet" :contains "Subject" "Grü"', True),
        ('header :contains "subject" ""', True),
        ('header :is "x-empty" ""', True),
        ('header :contains "x-none" ""', False),
        ('header :matches "subject" "*A\\\\*?"', True),
        ('header :matches "subject" "*A\\\\*"', False),
        ('header :matches "subject" "?dev*"', True),
        ('header :matches "subject" "dev"', False),
        ('header :regex "subject" "^\\\\[([a-z-]+)\\\\]"', True),
        ('header :regex :comparator "i;octet" "subject" "DEV"', False),
        ('header ["x-none", "x-two"] ["zzz", "second"]', True),
        # 5.1 address, 2.7.4 parts, 5233
        ('address "from" "ANN.other+lists@example.ORG"', True),
        ('address :localpart "from" "ann.other+lists"', True),
        ('address :domain ["cc","to"] "example.com"', True),
        ('address :user "from" "ann.other"', True),
        ('address :detail "from" "lists"', True),
        ('address :detail "cc" ""', False),
        ('address :is "to" "Jörg"', False),
        # 5.4 envelope
        ('envelope "from" "ann@example.org"', True),
        ('envelope :detail "to" "sales"', True),
        ('envelope :all :is ["to"] "me"', False),
        # 5.2, 5.3, 5.5, 5.6, 5.8, 5.9
        ('allof(true, not false, anyof(false, true))', True),
        ('allof(true, false)', False),
        ('exists ["from", "x-empty"]', True),
        ('exists ["from", "x-none"]', False),
        ("size :over 1K", False),
        ("size :over 100", True),
        ("size :under 1M", True),
        # 5231
        ('header :value "gt" :comparator "i;ascii-numeric" "x-score" "5"', True),
        ('header :value "lt" :comparator "i;ascii-numeric" "x-score" "5"', False),
        ('header :value "ge" "x-two" "third"', True),
        ('header :count "eq" :comparator "i;ascii-numeric" "x-two" "3"', True),
        ('address :count "gt" :comparator "i;ascii-numeric" ["to","cc"] "3"', True),
        ('header :is :comparator "i;ascii-numeric" "x-score" "017"', True),
        ('header :is :comparator "i;ascii-numeric" "subject" "none"', True),  # both infinity
        # 5260
        ('header :index 2 "x-two" "second"', True),
        ('header :index 1 :last "x-two" "third"', True),
        ('header :index 4 :last "x-two" "first"', False),
        ('date "date" "hour" "09"', True),
        ('date :zone "+0300" "date" "hour" "11"', True),
        ('date :originalzone "received" "date" "2026-11-23"', True),
        ('date "received" "iso8601" "2026-11-24T08:30:00+01:00"', True),
        ('date "date" "julian" "61368"', True),
        ('date "date" "weekday" "2"', True),
        ('date "date" "std11" "Tue, 24 Nov 2026 09:15:30 +0100"', True),
        ('date "x-none" "year" "2026"', False),
        ('currentdate :value "ge" "date" "2026-11-24"', True),
        ('currentdate :zone "-0100" "time" "10:00:05"', True),
        ('currentdate "zone" "+0100"', True),
        # 5173
        ('body :contains "vom baum"', True),
        ('body :text :contains "octets"', False),
        ('body :content "application" :contains "octets"', True),
        ('body :content "application/x-odd" :matches "oct*"', True),
        ('body :content "/" :contains "octets"', False),
        ('body :raw :contains "R3LDvM"', True),
        # 5229 string, 5490, 8579, encoded characters
        ('string "${iems.verdict}" "spam"', True),
        ('string "${nothing}" ""', True),
        ('string :count "eq" "${nothing}" "0"', True),
        ('mailboxexists ["INBOX", "Lists"]', True),
        ('mailboxexists "Nope"', False),
        ('specialuse_exists "\\\\Junk"', True),
        ('specialuse_exists "Spam" "\\\\Junk"', True),
        ('header :contains "subject" "${unicode:fc}"', True),
        ('header :contains "from" "${hex:40 45}"', True),
    ],
)  # fmt: skip
def test_tests(test: str, expected: bool) -> None:
    assert holds(test) is expected


def test_null_path_has_empty_parts() -> None:
    for part in (":all", ":localpart", ":domain"):
        assert holds(f'envelope {part} "from" ""', reverse_path="")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("", [Keep()]),
        ("keep; keep;", [Keep()]),
        ("discard;", []),
        ("discard; keep;", [Keep()]),
        ('fileinto "A"; fileinto "A";', [FileInto("A")]),
        ('fileinto :copy "A";', [FileInto("A"), Keep()]),
        ('fileinto :create "A"; stop; discard;', [FileInto("A", create=True)]),
        ('fileinto :specialuse "\\\\Junk" "Other";', [FileInto("Spam")]),
        ('fileinto :specialuse "\\\\Sent" "Other";', [FileInto("Other")]),
        ('redirect "a@b.c";', [Redirect("a@b.c")]),
        ('redirect :copy "a@b.c";', [Redirect("a@b.c"), Keep()]),
        ('reject text:\r\nno\r\n..dot\r\n.\r\n;', [Reject("no\r\n.dot\r\n")]),
        ('ereject "no";', [Reject("no", True)]),
        ('addflag "\\\\Seen"; addflag ["x y", "\\\\seen", "\\\\Recent"]; removeflag "Y"; keep;', [Keep(("\\Seen", "x"))]),
        ('setflag "a"; fileinto :copy "A"; setflag "b";', [FileInto("A", ("a",)), Keep(("b",))]),
        ('fileinto :flags "a" "A"; fileinto :flags "b" "A";', [FileInto("A", ("a", "b"))]),
        ('setflag "v" ["a", "b"]; if hasflag :contains "v" "B" { keep :flags "${v}"; }', [Keep(("a", "b"))]),
        ('setflag ["a","b"]; if hasflag :count "ge" :comparator "i;ascii-numeric" "2" { discard; }', []),
        ('if header :matches "subject" "[*]  * *" { fileinto "${1}/${2}/${3}${4}"; }', [FileInto("dev-list/Grüße/aus A*B")]),
        ('if header :regex "subject" "(dev)-(list)" { fileinto "${2}.${0}"; }', [FileInto("list.dev-list")]),
        ('set "A" "mixed Case"; set :upper :lowerfirst "b" "${a}"; fileinto "${B}";', [FileInto("mIXED CASE")]),
        ('set :length "n" "four"; set :quotewildcard "q" "a*?"; fileinto "${n}${q}";', [FileInto("4a\\*\\?")]),
        ('set "x" "${bad name} ${"; fileinto "${x}";', [FileInto("${bad name} ${")]),
        ('if false { discard; } elsif true { fileinto "B"; } else { fileinto "C"; }', [FileInto("B")]),
        ('if false { discard; } else { fileinto "C"; } keep;', [FileInto("C"), Keep()]),
        ('vacation "a"; reject "b";', [Reject("b")]),
        ('vacation "a"; vacation "a"; discard;', [Vacation("a", 7 * 86400)]),
        ('vacation "gone";', [Vacation("gone", 7 * 86400), Keep()]),
        ('vacation :days 0 "x"; discard;', [Vacation("x", 86400)]),
        ('vacation :seconds 1800 :subject "a\r\n b" :from "Me <me@example.net>" :addresses ["o@x.y"] :handle "h" :mime "x";',
         [Vacation("x", 1800, "a b", "Me <me@example.net>", ("o@x.y",), True, "h"), Keep()]),
        ('# comment\nkeep; /* another\n * one */ stop;', [Keep()]),
    ],
)  # fmt: skip
def test_commands(script: str, expected: list[Action]) -> None:
    assert actions(script) == expected


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ('reject "a"; keep;', "can't go together"),
        ('reject "a"; reject "b";', "a second time"),
        ('vacation "a"; vacation "b";', "a second time"),
        ("".join(f'redirect "a{n}@b.c";' for n in range(5)), "redirects"),
        ("".join(f'fileinto "{n}";' for n in range(33)), "actions"),
        ('redirect "${x}";', "no address"),
        ('if string :regex "a" "(${y}" { keep; }', "not a pattern"),
    ],
)
def test_what_goes_wrong_on_a_message_keeps_it(script: str, error: str) -> None:
    outcome = run(compile_script(ALL + script), ContentMessage(MAIL, "", ""), ENV)
    assert outcome.actions == [Keep()] and error in outcome.error


def test_work_on_one_message_is_bounded() -> None:
    keys = ",".join(f'"{n:04}*?*x"' for n in range(500))
    script = compile_script(ALL + "".join(f'if body :raw :matches [{keys}] {{ keep; }}' for _ in range(8)))
    outcome = run(script, ContentMessage(b"Subject: x\r\n\r\n" + b"ab" * 50_000, "", ""))
    assert outcome.actions == [Keep()] and "too long" in outcome.error


@pytest.mark.parametrize("pattern", ["[ab]*a[ab]{200}z", "(a|ab|b)*a(a|b){100}c$", "a[ab]{900}q", "((a?){30}){10}z"])
def test_patterns_at_their_worst(pattern: str) -> None:
    script = compile_script(ALL + "".join(f'if body :raw :regex "{pattern}{n}" {{ keep; }}' for n in range(600)))
    body = bytes(random.Random(5228).choices(b"ab", k=3000))
    start = time.process_time()
    assert "too long" in run(script, ContentMessage(b"Subject: x\r\n\r\n" + body, "", "")).error
    assert time.process_time() - start < 4


def test_evil_patterns_take_linear_time() -> None:
    script = compile_script('require "regex"; if header :regex "subject" "^(a+)+$" { discard; }')
    assert run(script, ContentMessage(b"Subject: " + b"a" * 5000 + b"!\r\n\r\n", "", "")).actions == [Keep()]


@pytest.mark.parametrize(
    ("script", "problems"),
    [
        ("nope;", ["1:1 there is no command nope"]),
        ("keep", ["1:5 expected ; or { after keep, not the end of the script"]),
        ('fileinto "a";', ['1:1 fileinto needs require "fileinto"']),
        ('keep;\nrequire "fileinto";', ["2:1 require stands before all other commands"]),
        ('require "x-odd";', ["1:9 there is no extension 'x-odd' here"]),
        ("if true { keep;", ["1:9 the block that begins here has no }"]),
        ("}", ["1:1 a } without its {"]),
        ('else { keep; }', ["1:1 else without if before it"]),
        ('keep "a"; stop 3;\n  foo;', ["1:1 keep takes nothing, not 1 arguments", "1:11 stop takes nothing, not 1 arguments", "2:3 there is no command foo"]),
        ('if header :is :contains "a" "b" { }', ["1:15 :contains can't go together with one before it"]),
        ('if header :comparator "i;odd" "a" "b" { }', ["1:23 there is no comparator 'i;odd' here"]),
        ('if header "a:b" "c" { }', ["1:11 'a:b' is no name of a header field"]),
        ('if address "subject" "c" { }', ["1:12 subject is no field with addresses"]),
        ('redirect "nobody";', ["1:10 'nobody' is no address"]),
        ('redirect "a@b\r\nX: y";', ["1:10 'a@b\\r\\nX: y' is no address"]),
        ('keep; "abc', ["1:7 the string that begins here has no end"]),
        ("/* x", ["1:1 the comment that begins here has no end"]),
        ("text:\nabc", ["1:1 the text that begins here has no end (a line with a dot alone)"]),
        ('require "variables"; set "a.b" "c"; set "x" "${n.s}";', ["1:22 'a.b' is no name of a variable", "1:45 there is no variable ${n.s}"]),
        ("if size 3 { }", ["1:4 size takes nothing, not 1 arguments"]),
        ("if size :over 99999999999999999999 { }", ["1:15 the number is too large"]),
        ("keep;\0", ["1:6 NUL in the script"]),
        ('require "regex"; if header :regex "a" "(" { }', ["1:39 not a pattern: missing ): ("]),
        ("keep; %", ["1:7 unexpected character '%'"]),
    ],
)  # fmt: skip
def test_all_errors_of_a_script_with_line_and_column(script: str, problems: list[str]) -> None:
    with pytest.raises(ScriptError) as caught:
        compile_script(script)
    assert [f"{p.line}:{p.column} {p.text}" for p in caught.value.problems] == problems


def test_limits_of_a_script() -> None:
    with pytest.raises(ScriptError, match="longer than"):
        compile_script("#" * 70_000)
    with pytest.raises(ScriptError, match="levels"):
        compile_script("if true {" * 40 + "}" * 40)
    with pytest.raises(ScriptError, match="levels"):
        compile_script("if " + "not " * 5000 + "true {}")
    with pytest.raises(ScriptError, match="commands and tests"):
        compile_script("stop;" * 6000)
    with pytest.raises(ScriptError, match="not UTF-8"):
        compile_script(b"keep;\n# \xff")
    compile_script("if true {" * 30 + "}" * 30)


def test_whatever_stands_in_a_message() -> None:
    script = compile_script(ALL + 'if anyof(header :matches "subject" "*x*", body :contains "y", address :matches "from" "*z") { keep; }')
    for mail in (b"", b"\r\n", b"Subject", b"Subject: =?utf-16?b?2AA=?=\r\n\r\n\xff\xfe", b"From: <<<@@@>>>,,;:\r\n\r\n"):
        assert run(script, ContentMessage(mail, "", "")).actions == [Keep()]


def test_where_a_script_sends_mail_on_to():
    from iems.sieve.redirects import redirects

    text = '''require ["copy", "variables"]; # redirect "comment@x";
    if true { redirect :copy "A@x"; if false { REDIRECT text:
b@x
.
    ; } } elsif true { redirect "${from}@x"; keep; redirect "a@x"; redirect "A@x"; } fileinto "redirect";'''
    assert redirects(text) == ["A@x", "b@x", "a@x"]
    assert redirects("nonsense {{{ redirect") == [] == redirects("")
