"""The attachment filter: rules, what is found in good and broken MIME, what is removed and what stays octet for octet."""

from __future__ import annotations

import asyncio
import base64
import binascii
import email
import email.policy
import io
import tarfile
import zipfile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from iems.attachment import find as finder
from iems.attachment import inside, sniff
from iems.attachment.rules import Rule, decide
from iems.directory import Directory
from iems.directory.entries import DirectoryRefusal
from iems.model import Channel, Envelope, Recipient
from iems.model import Verdict as Tag
from iems.preprocessor.modules import Verdict, Work, attachments
from iems.preprocessor.modules.attachments import Attachments, judge
from iems.preprocessor.ropes import replaced
from iems.preprocessor.route import Part
from tests.support.archives import cabinet, rar4, rar5
from tests.support.tnef import attachment, stream

EXE = [Rule("-", "*.exe", "strip")]
MZ = base64.encodebytes(b"MZ" + bytes(60)).replace(b"\n", b"\r\n")


def mixed(*parts: bytes, head: bytes = b"Subject: s\r\nMIME-Version: 1.0\r\n") -> bytes:
    return head + b"Content-Type: multipart/mixed; boundary=B\r\n\r\npreamble\r\n" + b"".join(b"--B\r\n" + p + b"\r\n" for p in parts) + b"--B--\r\n"


def leaf(fields: bytes, body: bytes = MZ, encoding: bytes = b"base64") -> bytes:
    return fields + b"Content-Transfer-Encoding: " + encoding + b"\r\n\r\n" + body


TEXT = b"Content-Type: text/plain\r\n\r\nkeep me"


def result(content: bytes, rules: list[Rule] = EXE, unparsable: str = "strip") -> tuple[str, bytes]:
    decision = judge(content, rules, unparsable, "mx.test")
    rope = replaced([content], [(c.start, c.end, [c.new] if c.new else []) for c in decision.changes])
    return decision.action, b"".join(rope)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        b'Content-Type: application/octet-stream; name="a.exe"\r\n',
        b"Content-Type: application/octet-stream\r\nContent-Disposition: attachment; filename=A.EXE\r\n",
        b"Content-Type: text/plain; name=a.exe\r\n",
        b"Content-Disposition: attachment; filename*=UTF-8''a%2Eexe\r\n",
        b'Content-Disposition: attachment; filename*0="a."; filename*1="exe"\r\n',
        b'Content-Disposition: attachment; filename="=?utf-8?B?YS5leGU=?="\r\n',
        b'Content-Disposition: attachment; filename="a.exe. . "\r\n',
        b'Content-Disposition: attachment; filename="x/y\\\\a.exe"\r\n',
        b'Content-Disposition: attachment; filename="a.exe\r\n',
        b"Content-Disposition: attachment; filename = 'a.exe'\r\n",
        b'Content-Disposition: attachment; filename="a\xe2\x80\xae.exe"\r\n',
        b"Content-Disposition: attachment; filename=ok.txt\r\nContent-Type: application/x; name=a.exe\r\n",
        b"Content-Disposition: attachment; filename=ok.txt\r\nContent-Disposition: attachment; filename=a.exe\r\n",
        b"Content-Disposition: inline;\r\n\tfilename=\r\n\ta.exe\r\n",
        b"content-TYPE : application/x; NAME=a.exe\r\n",
        b"Content-Type: application/x; name*=''a.exe\r\n",
        b"Content-Description: a.exe\r\n",
    ],
)
def test_names_in_every_disguise(fields: bytes) -> None:
    content = mixed(TEXT, leaf(fields), TEXT)
    action, left = result(content)
    assert action == "strip" and MZ.strip() not in left
    start = content.index(b"--B\r\n" + fields)
    assert left.startswith(content[:start]) and left.endswith(content[content.index(TEXT, start) - 5 :])
    message = email.message_from_bytes(left, policy=email.policy.default)
    assert [p.get_content_type() for p in message.iter_parts()] == ["text/plain"] * 3  # type: ignore[attr-defined]
    assert b"was removed" in left


def test_what_is_no_match_stays() -> None:
    content = mixed(TEXT, leaf(b"Content-Type: application/pdf; name=a.pdf\r\n"))
    assert result(content) == ("pass", content)
    assert result(b"Subject: x\r\n\r\nplain a.exe text\r\n")[0] == "pass"
    assert result(b"")[0] == "pass"


def test_types_declared_and_real() -> None:
    liar = mixed(TEXT, leaf(b"Content-Type: image/png; name=a.png\r\n"))
    for kind in ("image/*", "application/x-msdownload"):
        assert result(liar, [Rule(kind, "*", "strip")])[0] == "strip"
    assert result(liar, [Rule("application/x-msdownload", "*.jpg", "strip")])[0] == "pass"
    assert result(liar, [Rule("image/png", "*.png", "ignore"), Rule("*/*", "*", "strip")])[0] == "pass"
    action, left = result(liar, [Rule("*/*", "*", "strip")])
    assert action == "strip" and b"keep me" in left, "the text is no attachment"
    for ending in (b"\0\xffd", b"\xe7\xae.doc", b"(x)", b"=\t;"):
        cut = mixed(TEXT, leaf(b"Content-Type: application/x-m" + ending + b"\r\n", b"eHl6"))
        assert result(cut, [Rule("application/x-m", "*", "strip")])[0] == "strip", ending
    html = b"Content-Type: text/html\r\n\r\n<p>x</p>"
    assert result(mixed(html), [Rule("text/html", "*", "strip")])[0] == "strip"


def test_root_is_replaced_and_its_other_fields_stay() -> None:
    content = b"Subject: s\r\nContent-Type: application/x; name=a.exe\r\nX-Kept: 1\r\nContent-Transfer-Encoding: base64\r\n\r\n" + MZ
    action, left = result(content)
    message = email.message_from_bytes(left, policy=email.policy.default)
    assert action == "strip" and message["X-Kept"] == "1" and message.get_content_type() == "text/plain" and MZ not in left
    assert left.count(b"Content-Type") == 1


def test_refused_when_a_rule_says_so() -> None:
    content = mixed(TEXT, leaf(b"Content-Type: application/x; name=a.exe\r\n"), leaf(b"Content-Type: application/x; name=b.scr\r\n"))
    decision = judge(content, [*EXE, Rule("-", "*.scr", "bounce")], "strip", "mx.test")
    assert decision.action == "bounce" and decision.what == "attachment b.scr"


def test_files_inside() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("folder/readme.txt", "x")
        archive.writestr("folder/A.exe", "MZ")
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a.exe"))
    gzipped = b"\x1f\x8b\x08\x08" + bytes(6) + b"a.exe\0"
    wrapped = stream(attachment("a.exe", b"MZ"))
    forwarded = mixed(leaf(b"Content-Type: application/x; name=a.exe\r\n"))
    for octets, kind in (
        (packed.getvalue(), b"application/zip; name=a.zip"),
        (b"#!self-extracting\n" + packed.getvalue(), b"application/x; name=a.bin"),
        (tarred.getvalue(), b"application/x-tar"),
        (gzipped, b"application/gzip"),
        (wrapped, b"application/ms-tnef; name=winmail.dat"),
        (forwarded, b"message/rfc822"),
    ):
        body = base64.encodebytes(octets).replace(b"\n", b"\r\n")
        content = mixed(TEXT, leaf(b"Content-Type: " + kind + b"\r\n", body))
        action, left = result(content)
        assert action == "strip" and body.strip() not in left and b"keep me" in left, kind
    plain = mixed(TEXT, b"Content-Type: message/rfc822\r\n\r\n" + forwarded)
    action, left = result(plain)
    assert action == "strip" and MZ.strip() not in left and left.count(b"Subject: s") == 2, "of a message inside, only its part goes"


def test_files_in_a_text() -> None:
    uu = b"begin 644 a.exe\r\n#0V%T\r\n`\r\nend\r\n"
    content = b"Subject: s\r\n\r\nbefore\r\n" + uu + b"after\r\n"
    action, left = result(content)
    assert action == "strip" and b"#0V%T" not in left and left.startswith(b"Subject: s\r\n\r\nbefore\r\n[") and left.endswith(b"after\r\n")
    quoted = mixed(leaf(b"Content-Type: text/plain\r\n", b"begin 644 a=2Eexe\r\n#0V%T\r\nend", b"quoted-printable"))
    assert b"#0V%T" not in result(quoted)[1]
    assert b"data" not in result(b"\r\n=ybegin line=128 size=3 name=a.exe\r\ndata\r\n=yend size=3\r\n")[1]
    assert result(b"Subject: s\r\n\r\n(This file must be converted with BinHex 4.0)\r\n:abc:\r\n", [Rule("application/mac-binhex40", "*", "strip")])[0] == "strip"


@pytest.mark.parametrize(
    "content",
    [
        b"Content-Type: multipart/mixed\r\n\r\n--B\r\nContent-Type: a/b; name=a.exe\r\n\r\nx\r\n--B--\r\n",
        b"Content-Type: multipart/mixed; boundary=A; boundary=B\r\n\r\n--B\r\nContent-Type: a/b; name=a.exe\r\n\r\nx\r\n--B--\r\n",
        b"Content-Type: multipart/mixed; boundary=A\r\nContent-Type: multipart/mixed; boundary=B\r\n\r\n--B\r\nContent-Type: a/b; name=a.exe\r\n\r\nx\r\n--B--\r\n",
        b"Content-Type: text/plain\r\nContent-Transfer-Encoding: 7bit\r\nContent-Transfer-Encoding: base64\r\n\r\nTVo=\r\n",
        mixed(leaf(b"Content-Type: a/b; name=a.pdf\r\n", b"x", b"x-secret")),
        mixed(leaf(b"Content-Type: multipart/mixed; boundary=C\r\n", base64.encodebytes(b"--C\r\n\r\n--C--\r\n"))),
        mixed(TEXT) + b"--C\r\nContent-Type: a/b;\r\n name=a.exe\r\n\r\nx\r\n",
        mixed(leaf(b"Content-Type: application/zip\r\n", base64.encodebytes(b"PK\x03\x04 broken"))),
        mixed(b"Content-Type: multipart/mixed; boundary=C\r\n\r\nno part"),
        # A CR alone ends lines for some.
        b"Subject: x\r\n\rContent-Type: a/b; name=a.exe\r\n\r\nx\r\n",
        mixed(TEXT + b"\r--B\rContent-Type: a/b; name=a.exe\r\rx"),
        mixed(leaf(b"Content-Type: a/b; name=a.\r exe\r\n")),
    ],
)
def test_doubtful_mime_follows_the_setting(content: bytes) -> None:
    action, left = result(content)
    assert action == "strip" and b"could not be read with certainty" in left and b"a.exe\r\n\r\nx" not in left
    assert result(content, unparsable="bounce")[0] == "bounce"
    assert result(content, [Rule("-", "*.never", "strip")], "pass") == ("pass", content)


def test_nothing_stays_in_the_header() -> None:
    """Where a CR ends lines, the whole of it is a message with a body of its own."""
    hidden = b"Subject: s\r\nX: y\rContent-Type: a/b; name=a.exe\r\rsecret\r\nTo: a@b\r\n\r\nbody\r\n"
    action, left = result(hidden)
    assert action == "strip" and b"secret" not in left and left.startswith(b"Subject: s\r\nTo: a@b\r\nMIME-Version") and result(left)[0] == "pass"


def test_types_where_no_part_is_ours() -> None:
    """A delimiter is one for programs that compare its beginning (RFC 2046 5.1.1), or that go on behind the last."""
    for delimiter in (b"--B-more\r\n", b"--B--\r\n--B\r\n", b"--other\r\nX: y\r\n"):
        content = mixed(TEXT) + delimiter + b"Content-Type: a/b\r\n\r\nsecret\r\n"
        action, left = result(content, [Rule("a/*", "*", "strip")])
        assert action == "strip" and b"secret" not in left, delimiter
    quoted = mixed(b"\r\nwrite\r\n\r\nContent-Type: a/b\r\n\r\nthere")
    assert result(quoted, [Rule("a/*", "*", "strip")]) == ("pass", quoted)
    hidden = mixed(b"Content-Type: message/external-body; access-type=x\r\n\r\nContent-Type: a/b; name=a.exe\r\n\r\n")
    for rule in (EXE[0], Rule("a/b", "*", "strip")):
        assert result(hidden, [rule])[0] == "strip"


@pytest.mark.parametrize("field", [b'name="x>; filename="a.exe"', b'filename=a.exe"', b"filename=a.exe=", b"filename=a.exe (x)", b"filename=a.\r\n exe"])
def test_names_in_broken_quotes(field: bytes) -> None:
    content = mixed(leaf(b"Content-Disposition: attachment; " + field + b"\r\n"))
    assert MZ.strip() not in result(content)[1]


@pytest.mark.parametrize("unparsable", ["strip", "bounce", "pass"])
def test_what_is_too_long_follows_the_setting(unparsable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "MAX_OCTETS", 10_000)
    monkeypatch.setattr(attachments, "HEAD_OCTETS", 1_000)
    for content in (mixed(leaf(b"Content-Type: a/b; name=a.exe\r\n", MZ * 1000)), b"X: y\r\n" * 5_000, b"\r\n" + MZ * 1_000):
        recipient = Recipient(b"a@b")
        work = Work(b"", Envelope(Channel.SMTPD, b"s@t", [recipient], 0), [Part(Channel.LOCAL, "", [recipient], [recipient])], [content],
                    lambda rope, start, length: b"".join(rope)[start : start + length], None)  # fmt: skip
        verdict = asyncio.run(attachments.Attachments(lambda: EXE, unparsable, "mx.test").examine(work))
        assert bool(verdict.failed) == (unparsable == "bounce") and (verdict.rope is None) == (unparsable != "strip")
        if verdict.rope is not None:
            left = b"".join(verdict.rope)
            assert MZ.strip() not in left and b"longer than what is looked" in left and len(left) < 2_000


def test_rules_are_kept_in_order(tmp_path) -> None:
    directory = Directory(tmp_path / "d", create=True)
    directory.add_attachment_rule("-", "*.EXE", "strip")
    directory.add_attachment_rule("Image/*", "*", "bounce")
    directory.add_attachment_rule("-", "*.exe", "bounce")
    assert directory.attachment_rules() == [Rule("-", "*.exe", "bounce"), Rule("image/*", "*", "bounce")]
    for wrong in (("x", "*", "strip"), ("a/b", "*", "delete"), ("a/b", "\r\n", "strip"), ("a/b", "x" * 300, "strip")):
        if wrong[1] == "\r\n":
            continue
        with pytest.raises(DirectoryRefusal):
            directory.add_attachment_rule(*wrong)
    directory.add_attachment_rule("*/*", "*.txt", "strip")
    assert directory.attachment_rules() == [Rule("*/*", "*", "strip")]
    with pytest.raises(DirectoryRefusal):
        directory.add_attachment_rule("-", "*.exe", "strip")
    directory.remove_attachment_rule("*/*", "")
    with pytest.raises(DirectoryRefusal):
        directory.remove_attachment_rule("*/*", "*")
    assert directory.attachment_rules() == []
    assert decide([], ["a/b"], ["x"]) is None
    directory.close()


@given(st.lists(st.sampled_from([b"--B\r\n", b"--B--\r\n", b"Content-Type: multipart/mixed; boundary=B\r\n", b"Content-Type: a/b; name=a.exe\r\n",
       b"Content-Disposition: attachment; filename=a.exe\r\n", b"\r\n", b"begin 644 a.exe\r\n", b"end\r\n", b"text\r\n", b"\x00\xff", b"Content-Transfer-Encoding: base64\r\n",
       b"Content-Type: message/rfc822\r\n", MZ]), max_size=14))  # fmt: skip
@settings(max_examples=200, deadline=None)
@example([b"Content-Type: multipart/mixed; boundary=B\r\n", b"\r\n", b"--B\r\n", b"Content-Type: a/b; name=a.exe\r\n", b"--B--\r\n", b"begin 644 a.exe\r\n"])
def test_after_the_filter_nothing_is_found(lines: list[bytes]) -> None:
    content = b"".join(lines)
    action, left = result(content)
    if action == "strip":
        again = judge(left, EXE, "strip", "mx.test")
        assert again.action == "pass", (content, left, again.what)
    for one in email.message_from_bytes(left).walk():
        assert not (one.get_filename() or "").endswith(".exe"), (content, left)


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_nothing_breaks_it(octets: bytes) -> None:
    finder.find(octets)
    inside.listed(octets)
    sniff.media_type(octets)
    for mark in (b"PK\x05\x06", b"\x1f\x8b\x08\x08", b"x" * 257 + b"ustar"):
        inside.listed(mark + octets)


SECRET = rar5([], hidden=True)


def packed(octets: bytes, name: bytes) -> bytes:
    return leaf(b"Content-Type: application/x; name=" + name + b"\r\n", base64.encodebytes(octets).replace(b"\n", b"\r\n"))


@pytest.mark.parametrize("make", [rar4, rar5, cabinet])
def test_files_inside_of_other_archives(make) -> None:
    good, bad = packed(make([(b"read.me", b"x")]), b"a.dat"), packed(make([(b"read.me", b"x"), (b"x/A.exe", b"MZ")]), b"b.dat")
    assert result(mixed(TEXT, good)) == ("pass", mixed(TEXT, good))
    action, left = result(mixed(TEXT, good, bad))
    assert action == "strip" and b"A.exe in b.dat was removed" in left and good in left and TEXT in left


def test_an_archive_that_cannot_be_listed_follows_the_setting() -> None:
    """It alone: the rest of the message can be read."""
    good = packed(b"%PDF-1", b"b.pdf")
    content = mixed(TEXT, packed(SECRET, b"a.rar"), good)
    action, left = result(content)
    assert action == "strip" and TEXT in left and good in left and base64.b64encode(SECRET)[:40] not in left
    assert b"The attachment a.rar could not be read with certainty (an archive whose names are" in left.replace(b"=\r\n", b"") and result(left)[0] == "pass"
    assert judge(content, EXE, "bounce", "mx").what == "attachment a.rar: an archive whose names are encrypted"
    assert result(content, EXE, "pass") == ("pass", content)
    tagged = judge(content, EXE, "tag", "mx")
    assert (tagged.action, tagged.unread, tagged.changes) == ("pass", "attachment a.rar: an archive whose names are encrypted", ())
    # Without a rule that could be about what is inside, nobody asks. One about the archive itself, which comes first, has said what is to be done.
    assert result(content, [Rule("-", "*.exe", "ignore")])[0] == "pass"
    assert result(content, [Rule("-", "*.rar", "ignore"), *EXE]) == ("pass", content)
    assert result(content, [*EXE, Rule("-", "*.rar", "ignore")])[0] == "strip"
    assert b"a.rar was removed" in result(content, [Rule("-", "*.rar", "strip"), *EXE])[1]
    # Within a message that stands in a transfer encoding.
    inner = leaf(b"Content-Type: message/rfc822\r\n", base64.encodebytes(content))
    assert result(mixed(TEXT, inner))[0] == "strip" and TEXT in result(mixed(TEXT, inner))[1]


def test_an_ignored_archive_is_left_with_what_is_in_it() -> None:
    content = mixed(TEXT, packed(rar5([(b"a.exe", b"MZ")]), b"tools.rar"))
    assert result(content, [Rule("-", "tools.rar", "ignore"), *EXE]) == ("pass", content)
    assert result(content, [*EXE, Rule("-", "tools.rar", "ignore")])[0] == "strip", "the first that fits counts"
    assert result(content, [Rule("-", "read.me", "ignore"), *EXE])[0] == "strip", "an exception within is one for that file"
    decision = judge(content, [Rule("-", "*.exe", "bounce"), Rule("-", "*.rar", "strip")], "strip", "mx")
    assert decision.action == "bounce" and decision.what == "attachment a.exe in tools.rar"


def test_unreadable_mail_is_tagged_where_the_setting_says_so() -> None:
    content = b"Content-Type: multipart/mixed; boundary=A; boundary=B\r\n\r\n--B\r\nContent-Type: a/b; name=a.pdf\r\n\r\nx\r\n--B--\r\n"
    decision = judge(content, EXE, "tag", "mx")
    assert (decision.action, decision.unread) == ("pass", "unreadable MIME (a part with two boundaries)")
    recipient = Recipient(b"u@x")
    work = Work(b"", Envelope(Channel.SMTPD, b"s@t", [recipient], 0), [Part(Channel.LOCAL, "", [recipient], [recipient])], [content],
                lambda rope, start, length: content[start : start + length], None)  # type: ignore[arg-type]  # fmt: skip
    found = asyncio.run(Attachments(lambda: EXE, "tag", "mx.test").examine(work))
    assert found == Verdict(tags=(Tag("attachments", "unscannable", decision.unread),), note=f"tagged: {decision.unread}")


def test_files_in_a_text_are_looked_into() -> None:
    archive = rar5([(b"a.exe", b"MZ")])
    lines = b"".join(binascii.b2a_uu(archive[at : at + 45]) for at in range(0, len(archive), 45)).replace(b"\n", b"\r\n")
    text = b"Subject: s\r\n\r\nbefore\r\nbegin 644 a.rar\r\n" + lines + b"`\r\nend\r\nafter\r\n"
    action, left = result(text)
    assert action == "strip" and lines not in left and left.endswith(b"after\r\n")
    escaped = b"".join(b"=" + bytes(((octet + 106) & 255,)) if (octet + 42) & 255 in b"\0\r\n=" else bytes(((octet + 42) & 255,)) for octet in archive)
    yenc = b"Subject: s\r\n\r\n=ybegin line=999 size=9 name=a.rar\r\n" + escaped + b"\r\n=yend size=9\r\n"
    assert result(yenc)[0] == "strip" and escaped not in result(yenc)[1]
    plain = b"Subject: s\r\n\r\nbegin-base64 644 a.png\r\n" + base64.b64encode(b"MZ" + bytes(60)) + b"\r\n====\r\n"
    assert result(plain, [Rule("application/x-msdownload", "*", "strip")])[0] == "strip"
    many = b"Subject: s\r\n\r\n" + b"begin 644 a.txt\r\nend\r\n" * 600
    assert result(many)[0] == "strip" and b"too many files in a text" in result(many)[1]


def test_a_rule_that_tags_leaves_the_content() -> None:
    content = mixed(TEXT, leaf(b'Content-Type: application/x; name="a.exe"\r\n'), leaf(b'Content-Type: application/x; name="b.doc"\r\n'))
    decision = judge(content, [Rule("-", "*.exe", "tag")], "strip", "mx.test")
    assert decision.action == "pass" and not decision.changes and [(rule.name, shown) for rule, shown in decision.tagged] == [("*.exe", "a.exe")]
    # Others of the same message are removed, or refuse it.
    rules = [Rule("-", "*.exe", "tag"), Rule("-", "*.doc", "strip")]
    decision = judge(content, rules, "strip", "mx.test")
    assert decision.action == "strip" and decision.what == "b.doc" and len(decision.tagged) == 1
    assert b"a.exe" in result(content, rules)[1] and b'name="b.doc"' not in result(content, rules)[1]
    assert judge(content, [*rules[:1], Rule("-", "*.doc", "bounce")], "strip", "mx.test").action == "bounce"


def test_the_module_tags() -> None:
    recipient = Recipient(b"u@x")
    content = mixed(TEXT, leaf(b'Content-Type: application/x; name="a.exe"\r\n'))
    work = Work(b"", Envelope(Channel.SMTPD, b"s@t", [recipient], 0), [Part(Channel.LOCAL, "", [recipient], [recipient])], [content],
                lambda rope, start, length: content[start : start + length], None)  # type: ignore[arg-type]  # fmt: skip
    found = asyncio.run(Attachments(lambda: [Rule("-", "*.exe", "tag")], "strip", "mx.test").examine(work))
    assert found == Verdict(tags=(Tag("attachments", "a.exe", "rule - *.exe"),), note="tagged: a.exe")


def test_nothing_may_tag_while_a_channel_has_no_default(tmp_path) -> None:
    directory = Directory(tmp_path / "directory", create=True)
    try:
        directory.set_tag_default("NOTES", "none", [])
        with pytest.raises(DirectoryRefusal, match="NOTES"):
            directory.add_attachment_rule("-", "*.exe", "tag")
        with pytest.raises(DirectoryRefusal, match="NOTES"):
            directory.add_header_rule("r", "Subject", "x", "tag")
        directory.add_header_rule("r", "Subject", "x", "tag", draft=True)
        directory.add_attachment_rule("-", "*.exe", "strip")
        directory.set_tag_default("NOTES", "pass", [])
        directory.add_attachment_rule("-", "*.exe", "tag")
        directory.add_header_rule("r", "Subject", "x", "tag")
        for gone in ("attachment - [*].exe", "headerrule r"):
            with pytest.raises(DirectoryRefusal, match=gone):
                directory.set_tag_default("NOTES", "none", [])
            if gone.startswith("a"):
                directory.remove_attachment_rule("-", "*.exe")
        with pytest.raises(DirectoryRefusal, match=r"content\.action"):
            directory.remove_header_rule("r")
            directory.set_tag_default("NOTES", "none", ["content.action"])
    finally:
        directory.close()
