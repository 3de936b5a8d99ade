"""What goes over the wire between an ICAP client and its server (RFC 3507): requests made, answers read. No I/O.

The message is shown as the body of an HTTP answer (RESPMOD) or request (REQMOD) of type message/rfc822.
"""

from __future__ import annotations

import re

from msgspec import Struct

from iems.net.breaker import NoAnswer

#: Octets of a head, fields in it; octets of a chunk's first line; the longest preview sent.
HEAD_MAX = 64 << 10
FIELDS_MAX = 200
CHUNK_LINE_MAX = 1024
PREVIEW_MAX = 64 << 10
#: Longest time the answer to OPTIONS is believed.
TTL_MAX_S = 3600.0

CRLF = b"\r\n"
END = b"0\r\n\r\n"
#: The end of a preview that is the whole body.
PREVIEW_END = b"0; ieof\r\n\r\n"

#: Fields by which servers say what they have found; there is no standard for it.
_FOUND = ("x-infection-found", "x-virus-id", "x-virus-name", "x-violations-found", "x-blocked-reason")
_STATUS = re.compile(rb"(ICAP|HTTP)/([0-9])\.([0-9]) ([0-9]{3})(?: [^\r\n\0]*)?\Z")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,100})[ \t]*:[ \t]*([^\r\n\0]*)\Z")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,12})[ \t]*(?:;[^\r\n]*)?\Z")
_PIECE = re.compile(r"(req-hdr|res-hdr|req-body|res-body|opt-body|null-body)=([0-9]{1,9})\Z")
_THREAT = re.compile(r"\bThreat=([^;]{1,200})", re.I)


class Head(Struct, frozen=True):
    """The head of an answer. fields: in lower case, the first of each name."""

    code: int
    fields: dict[str, str]


class Options(Struct, frozen=True):
    """What a server has told of a service. method: the one to use. preview: octets it wants to see first, None for no preview. ttl_s: for how long."""

    method: str
    preview: int | None
    ttl_s: float


class Encapsulated(Struct, frozen=True):
    """What follows the head of an answer: kinds and lengths of heads in order, and the kind of the body, "" for none."""

    heads: tuple[tuple[str, int], ...]
    body: str


def request(method: str, host: str, service: str, *, preview: int | None = None) -> bytes:
    """The beginning of a request, up to where the chunks of the body begin. host: with its port. method: OPTIONS, RESPMOD or REQMOD."""
    head = [f"{method} icap://{host}/{service} ICAP/1.0", f"Host: {host}", "User-Agent: IEMS"]
    if method == "OPTIONS":
        return "\r\n".join([*head, "Encapsulated: null-body=0", "", ""]).encode("latin-1")
    asked = f"{'GET' if method == 'RESPMOD' else 'POST'} http://mail.invalid/message.eml HTTP/1.1\r\nHost: mail.invalid\r\n".encode()
    kind = b"Content-Type: message/rfc822\r\n"
    if method == "RESPMOD":
        asked += CRLF
        answered = b"HTTP/1.1 200 OK\r\n" + kind + b"Transfer-Encoding: chunked\r\n\r\n"
        head.append(f"Encapsulated: req-hdr=0, res-hdr={len(asked)}, res-body={len(asked) + len(answered)}")
    else:
        asked, answered = asked + kind + b"Transfer-Encoding: chunked\r\n\r\n", b""
        head.append(f"Encapsulated: req-hdr=0, req-body={len(asked)}")
    head.append("Allow: 204")
    if preview is not None:
        head.append(f"Preview: {preview}")
    return "\r\n".join([*head, "", ""]).encode("latin-1") + asked + answered


def chunk(octets: bytes) -> bytes:
    """Octets of a body as one chunk; nothing for none, which would end it."""
    return b"%x\r\n%b\r\n" % (len(octets), octets) if octets else b""


def head(octets: bytes, protocol: bytes = b"ICAP") -> Head:
    """The head of an answer, its empty line included. Raises NoAnswer if it is none."""
    lines = octets.split(b"\r\n")
    first = _STATUS.match(lines[0])
    if first is None or first[1] != protocol or lines[-2:] != [b"", b""]:
        raise NoAnswer(f"no answer of {protocol.decode()}: {octets[:200]!r}")
    if len(lines) > FIELDS_MAX:
        raise NoAnswer("too many fields in an answer")
    fields: dict[str, str] = {}
    name = ""
    for line in lines[1:-2]:
        if line[:1] in (b" ", b"\t") and name:
            continue  # what goes on is of no use here
        match = _FIELD.match(line)
        if match is None:
            raise NoAnswer(f"no field: {line[:200]!r}")
        name = match[1].decode("ascii").lower()
        fields.setdefault(name, match[2].decode("latin-1").strip())
    return Head(int(first[4]), fields)


def options(answer: Head) -> Options:
    """What the answer to OPTIONS says. Raises NoAnswer if the service can't be used."""
    if answer.code != 200:
        raise NoAnswer(f"OPTIONS is answered by {answer.code}")
    methods = [method.strip().upper() for method in re.split(r"[,\s]+", answer.fields.get("methods", ""))]
    method = next((method for method in ("RESPMOD", "REQMOD") if method in methods), "")
    if not method:
        raise NoAnswer("it knows neither RESPMOD nor REQMOD")
    preview = _number(answer.fields, "preview")
    ttl = _number(answer.fields, "options-ttl")
    return Options(method, None if preview is None else min(preview, PREVIEW_MAX), TTL_MAX_S if ttl is None else min(float(ttl), TTL_MAX_S))


def _number(fields: dict[str, str], name: str) -> int | None:
    text = fields.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise NoAnswer(f"no number in {name}: {text[:50]!r}")
    return int(text)


def encapsulated(answer: Head) -> Encapsulated:
    """What follows an answer's head (RFC 3507 4.4.1). Raises NoAnswer."""
    text = answer.fields.get("encapsulated")
    if text is None:
        return Encapsulated((), "")
    places: list[tuple[str, int]] = []
    for piece in text.split(","):
        match = _PIECE.match(piece.strip())
        if match is None or len(places) == 3:
            raise NoAnswer(f"Encapsulated can't be read: {text[:200]!r}")
        places.append((match[1], int(match[2])))
    heads = []
    for at, (kind, place) in enumerate(places):
        last = at == len(places) - 1
        length = 0 if last else places[at + 1][1] - place
        if (at == 0 and place) or last != kind.endswith("-body") or length < 0 or length > HEAD_MAX:
            raise NoAnswer(f"Encapsulated can't be read: {text[:200]!r}")
        if not last:
            heads.append((kind, length))
    body = places[-1][0]
    return Encapsulated(tuple(heads), "" if body == "null-body" else body)


def chunk_octets(line: bytes) -> int:
    """The length in a chunk's first line, without CRLF; 0 ends the body. Raises NoAnswer."""
    match = _CHUNK.match(line)
    if match is None:
        raise NoAnswer(f"no chunk: {line[:100]!r}")
    return int(match[1], 16)


def finding(answer: Head) -> str:
    """What a server says it has found, "" if it names nothing."""
    for name in _FOUND:
        text = answer.fields.get(name)
        if text is not None:
            match = _THREAT.search(text)
            text = (match[1] if match else text).strip()
            return "".join(char if " " <= char <= "~" else "?" for char in text)[:200] or "unnamed"
    return ""
