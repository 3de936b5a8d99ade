"""Clients of content filters: spamd (its protocol) and rspamd (its HTTP interface). Both answer with a score and a limit."""

from __future__ import annotations

import asyncio
import http.client
import re

import msgspec
from msgspec import Struct

from iems.config import host_port
from iems.net.breaker import Breaker, Guard, NoAnswer

_SPAM = re.compile(rb"^Spam:[ \t]*(True|Yes|False|No)[ \t]*;[ \t]*(-?[0-9.]+)[ \t]*/[ \t]*(-?[0-9.]+)", re.I | re.M)
_ANSWER_MAX = 1 << 20


class Score(Struct, frozen=True):
    """spam: what the filter says. rules: names of what matched, as far as it tells."""

    spam: bool
    score: float
    limit: float
    rules: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """For people: `7.1 of 5 (RULE, ...)`."""
        rules = f" ({', '.join(self.rules[:20])})" if self.rules else ""
        return f"{self.score:g} of {self.limit:g}{rules}"


class Checker:
    """What both have in common. place: HOST:PORT. timeout_s: for one message. at_once: messages at the same time."""

    kind = ""
    port = 0

    def __init__(self, place: str, *, timeout_s: float, at_once: int, breaker: Breaker) -> None:
        self.name = f"{self.kind}:{place}"
        self._host, self._port = host_port(place, self.port)
        self._timeout_s = timeout_s
        self._guard = Guard(self.name, timeout_s=timeout_s, at_once=at_once, breaker=breaker)

    async def check(self, content: bytes, *, ip: str = "", helo: str = "", sender: str = "", recipients: tuple[str, ...] = ()) -> Score:
        """The score of a message. Raises NoAnswer."""
        async with self._guard.asking(http.client.HTTPException, RecursionError):
            return await self._ask(content, ip, helo, sender, recipients)

    async def _ask(self, content: bytes, ip: str, helo: str, sender: str, recipients: tuple[str, ...]) -> Score:
        raise NotImplementedError


class Spamd(Checker):
    """SpamAssassin's daemon (protocol SPAMC/1.5, method SYMBOLS)."""

    kind = "spamd"
    port = 783

    async def _ask(self, content: bytes, ip: str, helo: str, sender: str, recipients: tuple[str, ...]) -> Score:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(b"SYMBOLS SPAMC/1.5\r\nContent-length: %d\r\n\r\n" % len(content))
            writer.write(content)
            await writer.drain()
            writer.write_eof()
            answer = await reader.read(_ANSWER_MAX)
            while more := await reader.read(_ANSWER_MAX - len(answer)):
                answer += more
        finally:
            writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        first = head.partition(b"\r\n")[0].split()
        found = _SPAM.search(head)
        if len(first) < 3 or not first[0].startswith(b"SPAMD/") or first[1] != b"0" or found is None:
            raise NoAnswer(f"no answer of spamd: {answer[:200]!r}")
        rules = tuple(rule.decode("ascii", "replace") for rule in body.strip().split(b",")[:100] if rule.strip())
        return Score(found[1].lower() in (b"true", b"yes"), float(found[2]), float(found[3]), rules)


class _RspamdAnswer(Struct):
    action: str
    score: float
    required_score: float
    symbols: dict[str, msgspec.Raw] = {}


class Rspamd(Checker):
    """rspamd's normal worker (POST /checkv2). Spam is what it would reject, rewrite or mark."""

    kind = "rspamd"
    port = 11333

    async def _ask(self, content: bytes, ip: str, helo: str, sender: str, recipients: tuple[str, ...]) -> Score:
        return await asyncio.to_thread(self._post, content, ip, helo, sender, recipients)

    def _post(self, content: bytes, ip: str, helo: str, sender: str, recipients: tuple[str, ...]) -> Score:
        given = {"IP": ip, "Helo": helo, "From": sender, "Rcpt": ",".join(recipients)}
        headers = {name: _safe(value) for name, value in given.items() if value}
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        try:
            connection.request("POST", "/checkv2", content, headers)
            response = connection.getresponse()
            body = response.read(_ANSWER_MAX)
        finally:
            connection.close()
        if response.status != 200:
            raise NoAnswer(f"rspamd answers {response.status}: {body[:200]!r}")
        answer = msgspec.json.decode(body, type=_RspamdAnswer)
        spam = answer.action in ("reject", "add header", "rewrite subject")
        return Score(spam, answer.score, answer.required_score, tuple(sorted(answer.symbols)[:100]))


def _safe(text: str) -> str:
    """A header value: printable ASCII, so that an address can't add a field."""
    return "".join(char if " " <= char <= "~" else "?" for char in text)[:1000]
