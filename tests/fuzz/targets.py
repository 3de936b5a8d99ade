"""What is fuzzed with coverage: each target takes octets and raises only for a fault of ours. `atheris_run.py` drives one of them.

Where a kernel has a twin, both get the same octets; the twin, which is Python, leads the way through its branches.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

TOP = Path(__file__).parents[1]


class Target(NamedTuple):
    """run: one input. seeds: inputs to start from."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]


def _mails() -> Iterable[bytes]:
    found = sorted(path for path in (TOP / "corpus/mime").rglob("*") if path.suffix in (".eml", ".msg", ".raw"))
    return [path.read_bytes() for path in found if path.stat().st_size < 4_000]


def _mime() -> Target:
    from tests.twins.test_mime import same

    return Target(same, _mails)


def _smtp_lines() -> Target:
    from tests.twins.test_smtp import both, cuts_of

    def run(octets: bytes) -> None:
        rng = random.Random(octets[:2])
        both(octets, cuts_of(rng, len(octets)))
        both(octets, cuts_of(rng, len(octets)), normalise=True, limit=9)
        both(octets, cuts_of(rng, len(octets)), raw=True, binary=True, finish=True)

    return Target(run, lambda: [b"Subject: x\r\n\r\n..a\r\n.\r\nQUIT\r\n", b"a\rb\nc\0\r\n.\r\n"])


def _smtp_engine() -> Target:
    from tests.fuzz.test_smtp_fuzz import FILES, survive
    from tests.transcripts.player import Transcript

    transcripts = [Transcript(path) for path in FILES]

    def run(octets: bytes) -> None:
        if octets:
            survive(random.Random(octets[:4]), transcripts[octets[0] % len(transcripts)], octets[1:])

    return Target(run, lambda: [bytes((at,)) + one.client()[:3_000] for at, one in enumerate(transcripts)])


def _smtp_grammar() -> Target:
    from iems.smtp import grammar

    def run(octets: bytes) -> None:
        for parse in (grammar.mail, grammar.rcpt, grammar.hello, grammar.etrn_node, grammar.chunk, grammar.xclient, grammar.unxtext):
            parse(octets)

    return Target(run, lambda: [b"FROM:<a@b> SIZE=5 BODY=8BITMIME", b'TO:<"a b"@[IPv6:::1]> NOTIFY=NEVER ORCPT=rfc822;x+2By', b"5 LAST", b"NAME=x ADDR=1.2.3.4"])


def _smtp_replies() -> Target:
    """What a host we relay to may say: each message has one outcome, or is still open when the connection is gone."""
    from iems.smtpc.engine import NEED_DATA, Engine, Stage, What
    from tests.unit.smtpc.test_smtpc_engine import BARE, FULL, transaction

    def run(octets: bytes) -> None:
        engine = Engine(b"me.test")
        begun = [transaction(b"a@x.net", b"b@x.net"), transaction(b"c@x.net", size=7)]
        rng = random.Random(octets[:2])
        at = 0
        while at <= len(octets):
            size = rng.choice((1, 7, 100, 5_000))
            engine.feed(octets[at : at + size])
            at += size
            while (event := engine.next_event()) is not NEED_DATA:
                if event.what == What.READY:
                    for one in begun:
                        engine.begin(one)
                elif event.what == What.CONTENT:
                    engine.content_sent()
                elif event.what == What.TLS:
                    engine.tls_started()
            engine.take_output()
        left = engine.unfinished()
        for one in begun:
            assert not (one.stage == Stage.DONE and one in left)
            if one.stage == Stage.DONE:
                assert one.reply is not None or all(reply is not None for reply in one.replies)

    ends = b"250 ok\r\n" * 3 + b"354 go\r\n" + b"250 2.0.0 done\r\n"
    return Target(run, lambda: [b"".join(FULL) + ends * 2, b"".join(BARE) + ends, FULL[0] + b"250-mx\r\n250 CHUNKING\r\n" + b"550 5.1.1 no\r\n" * 5 + b"421 bye\r\n"])


def _pop3_engine() -> Target:
    from iems.pop3d.engine import MAX_SASL_OCTETS
    from tests.fuzz.test_pop3_fuzz import FILES
    from tests.transcripts.player import Transcript
    from tests.transcripts.pop3_server import Pop3Server

    transcripts = [Transcript(path) for path in FILES]

    def run(octets: bytes) -> None:
        server = Pop3Server(transcripts[octets[0] % len(transcripts)].options if octets else {})
        server.connect()
        if not server.closed:
            server.feed(b"USER mary\r\nPASS  p w \r\n" + octets[1:])
        assert server.session.engine.buffered <= MAX_SASL_OCTETS
        server.finish()
        assert all("gone" in str(fault) for fault in server.errors)

    return Target(run, lambda: [bytes((at,)) + one.client()[:2_000] for at, one in enumerate(transcripts)])


def _batches() -> Target:
    from iems.bsmtp import batch, carrier

    def run(octets: bytes) -> None:
        with contextlib.suppress(batch.BatchError):
            batch.decode(octets)
        parts = carrier.open_parts(octets)
        assert parts is not None
        carrier.check_signature(b"key", octets, [octets], 0)
        carrier.author(octets)

    sample = b"EHLO x\r\nMAIL FROM:<a@b> SIZE=9\r\nRCPT TO:<c@d> NOTIFY=NEVER\r\nDATA\r\nSubject: x\r\n\r\n..\r\n.\r\nQUIT\r\n"
    wrapped = b"Content-Type: application/batch-SMTP; required-extensions=\"8BITMIME\"\r\n\r\n" + sample
    return Target(run, lambda: [sample, wrapped])


def _bayes() -> Target:
    from iems._native import bayes, bayes_py
    from tests.twins.test_bayes import WORDS

    def run(octets: bytes) -> None:
        sections = [(octets[0] % 4 if octets else 0, octets[1:])]
        assert bayes.features(sections) == bayes_py.features(sections)

    return Target(run, lambda: [bytes((at % 4,)) + b" ".join(WORDS[at : at + 9]) for at in range(0, len(WORDS), 9)])


def _small() -> Target:
    """PROXY headers, MailSort scripts, refusals of a call-ahead."""
    from iems.net import proxy
    from iems.sieve import compile_script, mailsort

    def run(octets: bytes) -> None:
        with contextlib.suppress(ValueError):
            proxy.parse(octets)
        found = mailsort.read(octets.decode("utf-8", "replace"))
        if found is not None:
            compile_script(mailsort.write(found))

    rule = mailsort.write(mailsort.MailSort([]))
    return Target(run, lambda: [b"PROXY TCP4 192.0.2.1 192.0.2.2 5 25\r\n", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12), rule.encode()])


def _imap_commands() -> Target:
    from iems.imap import appending
    from iems.imap.grammar import Arguments, Bad, Refused
    from iems.imapd.commands import COMMANDS
    from tests.fuzz.test_imap_arguments import TOKENS

    names = sorted(COMMANDS)

    def run(octets: bytes) -> None:
        if not octets:
            return
        arguments = Arguments(octets[1:])
        with contextlib.suppress(Bad, Refused):
            COMMANDS[names[octets[0] % len(names)]].parse(arguments)
        with contextlib.suppress(Bad, Refused):
            appending.stream(Arguments(octets[1:]), None, False)
        appending.url(octets[1:])

    return Target(run, lambda: [bytes((at,)) + b" " + b" ".join(TOKENS[at % len(TOKENS) :][:6]) for at in range(len(names))])


def _imap_engine() -> Target:
    from iems.imapd.engine import Limits
    from tests.fuzz.test_imap_fuzz import FILES, said
    from tests.unit.imapd import fakes

    async def talk(octets: bytes) -> None:
        world = fakes.World(Limits(bad=1_000_000, login_bad=1_000_000))
        await world.store.ensure(1)
        world.store.put("INBOX", b"Subject: x\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b--\r\n")
        client = await world.login("INBOX")
        await client.ask(octets or b" ")
        assert not world.errors
        assert client.session.engine.buffered <= client.session.engine.limits.command

    loop = asyncio.new_event_loop()
    return Target(lambda octets: loop.run_until_complete(talk(octets)), lambda: [said(path)[:2_000] for path in FILES])


def _sieve() -> Target:
    from tests.fuzz.test_sieve_fuzz import _REQUIRE, _try

    examples = ('if header :matches "subject" "*a?" { fileinto "${1}"; stop; }', 'vacation :days 7 text:\r\nx\r\n.\r\n;', 'if allof(size :over 1K, not exists "x") { discard; }')
    return Target(lambda octets: _try(octets), lambda: [(_REQUIRE + one).encode() for one in examples])


def _tnef() -> Target:
    from iems.message import tnef
    from tests.support.tnef import attachment, rtf_body, stream

    def run(octets: bytes) -> None:
        found = tnef.parse(octets)
        if found is not None:
            assert len(found.attachments) <= 1_000
            for one in found.attachments:
                assert isinstance(one.name, str)

    return Target(run, lambda: [stream(rtf_body(rb"{\rtf1 hello\par}"), attachment("a.txt", b"x", "text/plain")), stream(attachment("b.exe", b"MZ"))])


def _rtf() -> Target:
    from iems.message import rtf

    examples = (rb"{\rtf1\ansi\fromhtml1{\*\htmltag64 <p>}a\'e4\u8364?\par}", rb"{\rtf1{\fonttbl{\f0\fcharset204 x;}}\f0 \'ea\bin3 abc}")
    return Target(lambda octets: rtf.extract(octets) and None, lambda: examples)


def _archives() -> Target:
    """Names in archives: RAR, 7z, cabinets, zip, tar, what is packed as a whole."""
    from iems.attachment import inside, rar, sevenzip
    from iems.attachment.octets import BadArchive
    from tests.support.archives import cabinet, rar4, rar5
    from tests.unit.attachment.test_inside import FILES, SEVENZIP, signed

    def run(octets: bytes) -> None:
        found, trouble = inside.listed(octets, ["a.tgz"])
        assert len(found) <= 2 * inside.MAX_NAMES + 2 and isinstance(trouble, str)
        for name, _ in found:
            assert isinstance(name, str)
        # Behind a checksum that is right.
        with contextlib.suppress(BadArchive):
            sevenzip.listed(signed(octets, bytes(40)), 0, 100, [])
        with contextlib.suppress(BadArchive):
            rar.listed(rar.MARK + b"\0" + octets, 0, 100, [])

    headers = [octets[32 + int.from_bytes(octets[12:20], "little") :] for octets in SEVENZIP.values()]
    return Target(run, lambda: [rar4(FILES), rar5(FILES), cabinet(FILES), *SEVENZIP.values(), *headers, rar4(FILES)[7:]])


def _attachments() -> Target:
    from iems.attachment.rules import Rule
    from iems.preprocessor.modules.attachments import judge
    from iems.preprocessor.ropes import replaced

    rules = [Rule("-", "*.exe", "strip"), Rule("a/*", "*", "strip")]

    def run(octets: bytes) -> None:
        decision = judge(octets, rules, "strip", "mx.test")
        if decision.action == "strip":
            left = b"".join(replaced([octets], [(c.start, c.end, [c.new] if c.new else []) for c in decision.changes]))  # type: ignore[arg-type]
            assert judge(left, rules, "strip", "mx.test").action == "pass", left

    return Target(run, _mails)


def _words() -> Target:
    from iems.message import address, date, structure, tag, words
    from iems.message.headerrules import Rule, Rules

    rules = Rules([Rule("a", "subject", "(a+)+$", "tag")])

    def run(octets: bytes) -> None:
        words.decode_words(octets).encode("utf-8", "surrogatepass")
        for parse in (words.content_type, words.disposition, words.decode_parameters, address.parse_addresses, date.parse_date, tag.parse):
            parse(octets)
        address.author(octets)
        rules.first(b"Subject: " + octets)
        with contextlib.suppress(ValueError):
            structure.parse_section(octets)

    return Target(run, lambda: [b"=?utf-8?q?a=C3=A4?= =?koi8-r?B?89DJ?=", b'text/plain; name*0*=utf-8\'\'%41; name*1="x"', b"A B <a@b>, g: c@d;", b"Tue, 24 Nov 2026 09:15:30 +0100"])


def _authentication() -> Target:
    """SPF, DMARC and key records, tag lists, Authentication-Results, and whole messages: DKIM and ARC."""
    from iems.authres.dmarc import read_record
    from iems.authres.header import claimed_id
    from iems.authres.header import parse as parse_results
    from iems.authres.spfrecord import BadRecord
    from iems.authres.spfrecord import parse as parse_spf
    from iems.authres.tags import BadTags
    from iems.authres.tags import parse as parse_tags
    from iems.smtp import sts, tlsrpt
    from tests.fuzz.test_authres_fuzz import RECORDS, evaluate, sample, zone

    def run(octets: bytes) -> None:
        kind, text = octets[:1], octets[1:]
        if kind == b"M":
            evaluate(text, zone())
            return
        with contextlib.suppress(BadRecord):
            parse_spf(text)
        with contextlib.suppress(BadTags):
            parse_tags(text)
        with contextlib.suppress(ValueError):
            parse_results(text)
        with contextlib.suppress(ValueError):
            sts.parse_policy(text)
        claimed_id(text)
        read_record(text, "d.example")
        sts.record_id([text])
        tlsrpt.destinations([text])
        name = {b"S": "d.example", b"D": "_dmarc.d.example", b"K": "r._domainkey.d.example"}.get(kind)
        if name:
            evaluate(whole, zone(**{name: text}))

    whole = sample()
    return Target(run, lambda: [b"M" + whole, *(b"SDK"[at % 3 : at % 3 + 1] + text for at, text in enumerate(RECORDS.values())), b"Rmx.test 1; spf=pass smtp.mailfrom=a@b (x) reason=\"y\""])


class _Mute:
    """The other side of a connection whose answers are known."""

    def write(self, octets: bytes) -> None:
        pass

    def write_eof(self) -> None:
        pass

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        pass


async def _content() -> Any:
    yield b"Subject: x\r\n\r\n" + b"0123456789" * 30


def _asked(ask: Callable[[], Any], seeds: Iterable[bytes]) -> Target:
    """A client of `iems.scan` whose server has said these octets: it answers, or raises NoAnswer."""
    from iems.net.breaker import NoAnswer

    said = b""

    async def connect(*_: Any, **__: Any) -> Any:
        reader = asyncio.StreamReader()
        reader.feed_data(said)
        reader.feed_eof()
        return reader, _Mute()

    asyncio.open_connection = connect  # type: ignore[assignment]
    loop = asyncio.new_event_loop()

    def run(octets: bytes) -> None:
        nonlocal said
        said = octets
        with contextlib.suppress(NoAnswer):
            loop.run_until_complete(ask())

    return Target(run, lambda: seeds)


def _scanner(kind: str) -> dict[str, Any]:
    from iems.net import breaker

    breaker.FAILURES = 1 << 60  # it is asked again and again
    return {"timeout_s": 5.0, "at_once": 1, "breaker": breaker.Breaker()}


def _clamd() -> Target:
    from iems.scan.clamd import Clamd

    return _asked(lambda: Clamd("h:1", **_scanner("clamd")).scan(_content()), [b"1: stream: OK\0", b"1: stream: Eicar FOUND\0", b"INSTREAM size limit exceeded. ERROR\0"])


def _icap() -> Target:
    from iems.scan.icap import Icap
    from tests.unit.scan.test_icap import CLEAN, CONTINUE, MAIL, NO_PREVIEW, OPTIONS, back

    async def ask() -> None:
        await Icap("//h:1/s", **_scanner("icap")).scan(_content())

    inner = back(MAIL, more=b"X-Infection-Found: Type=0; Threat=x;\r\n")
    return _asked(ask, [OPTIONS + CONTINUE + CLEAN, OPTIONS + CONTINUE + back(MAIL), NO_PREVIEW + inner])


def _spamd() -> Target:
    from iems.scan.checker import Spamd

    client = Spamd("h:1", **_scanner("spamd"))
    return _asked(lambda: client.check(b"x"), [b"SPAMD/1.1 0 EX_OK\r\nContent-length: 9\r\nSpam: True ; 15.2 / 5.0\r\n\r\nGTUBE,ABC"])


def _rspamd() -> Target:
    from iems.net.breaker import NoAnswer
    from iems.scan.checker import Rspamd

    client = Rspamd("h:1", **_scanner("rspamd"))
    said = b""

    class Socket:
        def sendall(self, octets: bytes) -> None:
            pass

        def makefile(self, mode: str) -> io.BytesIO:
            return io.BytesIO(said)

        def close(self) -> None:
            pass

    def connect(self: http.client.HTTPConnection) -> None:
        self.sock = Socket()  # type: ignore[assignment]

    http.client.HTTPConnection.connect = connect  # type: ignore[method-assign]

    async def here(call: Callable[..., Any], *arguments: Any) -> Any:
        return call(*arguments)

    asyncio.to_thread = here  # type: ignore[assignment]
    loop = asyncio.new_event_loop()

    def run(octets: bytes) -> None:
        nonlocal said
        said = octets if octets[:1] != b"{" else b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(octets), octets)
        with contextlib.suppress(NoAnswer):
            loop.run_until_complete(client.check(b"x"))

    body = b'{"action":"add header","score":7.5,"required_score":6,"symbols":{"B":{},"A":{"name":"A","score":1e9}}}'
    return Target(run, lambda: [body, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"])


def _milter() -> Target:
    from iems.model import Extent
    from iems.scan.milter import Mail, Milter
    from tests.support.milter import packet, u32

    scanner = _scanner("milter")
    client = Milter("inet:h:1", hostname="mx", timeout_s=5.0, deadline_s=5.0, at_once=1, body_max=100_000, breaker=scanner["breaker"])

    async def keep(octets: bytes) -> Extent:
        assert b"\n" not in octets.replace(b"\r\n", b"") and b"\r" not in octets.replace(b"\r\n", b"")
        return Extent(9, 0, len(octets))

    async def ask() -> None:
        mail = Mail("id", "192.0.2.1", b"h", "", b"s@t", (), [b"a@x", b"b@x"], [(b"Subject", b" x")], _content, keep)
        answer = await client.examine(mail)
        assert answer.text
        for change in answer.changes:
            from iems.scan import milterwire

            field = milterwire.field(change.name, change.value, answer.leading_space)
            assert all(line[:1] in b" \t" for line in field.split(b"\r\n")[1:-1]) and field.endswith(b"\r\n") and field.count(b"\n") == field.count(b"\r\n")

    head, go = packet(b"O", u32(6, 0x13B, 0)), packet(b"c")
    end = packet(b"h", b"X-A\0b\nc\0") + packet(b"i", u32(1) + b"X\0y\0") + packet(b"m", u32(1) + b"Subject\0\0") + packet(b"b", b"new\n.\rx") + packet(b"-", b"<a@x>\0")
    return _asked(ask, [head + go * 9 + end + packet(b"c"), head + go * 3 + packet(b"y", b"550 5.7.1 no\0"), head + go * 9 + packet(b"q", b"why\0") + packet(b"a")])


TARGETS: dict[str, Callable[[], Target]] = {
    "mime": _mime,
    "smtp-lines": _smtp_lines,
    "smtp-grammar": _smtp_grammar,
    "smtp-engine": _smtp_engine,
    "smtp-replies": _smtp_replies,
    "pop3-engine": _pop3_engine,
    "batches": _batches,
    "bayes": _bayes,
    "small": _small,
    "imap-commands": _imap_commands,
    "imap-engine": _imap_engine,
    "sieve": _sieve,
    "tnef": _tnef,
    "rtf": _rtf,
    "archives": _archives,
    "attachments": _attachments,
    "words": _words,
    "authentication": _authentication,
    "clamd": _clamd,
    "icap": _icap,
    "spamd": _spamd,
    "rspamd": _rspamd,
    "milter": _milter,
}
