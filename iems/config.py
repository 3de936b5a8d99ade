"""Settings: one declaration each, from which parsing, checks, `docs/config.md` and the sample in `conf/` come.

A file is TOML. `load` reports every error of a file at once, each as `FILE:LINE: KEY: what`; an unknown key is
refused with the nearest known name. Ports, paths and pools live here and need a reload; policy lives in the directory
and acts at once. Each role's owner keeps the fields of the role's own section.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
import tomllib
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from iems.errors import ConfigError, IemsError

# --- checks that a type can't express; named in Meta(extra={"check": ...}), they raise ValueError with what is wrong


def _networks(value: list[str]) -> None:
    for text in value:
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f"{text!r} is no IP address or network (write 192.0.2.0/24)") from None


def _addresses(value: list[str]) -> None:
    for text in value:
        try:
            ipaddress.ip_address(text)
        except ValueError:
            raise ValueError(f"{text!r} is no IP address") from None


def host_port(text: str, default_port: int) -> tuple[str, int]:
    """`HOST`, `HOST:PORT`, `[V6]:PORT` or a bare IPv6 address as (host, port). Raises ValueError."""
    host, port = text, str(default_port)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is no HOST:PORT")
        port = rest[1:] or port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is no HOST:PORT")
    return host, int(port)


def _hosts(value: list[str]) -> None:
    for text in value:
        host_port(text, 25)


def _servers(value: list[str]) -> None:
    for text in value:
        host, _ = host_port(text, 53)
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise ValueError(f"{text!r}: a DNS server is named by its IP address") from None


def _spam_action(value: str) -> None:
    from iems.directory.spamcontrol import action_of

    try:
        action_of(value)
    except IemsError as refusal:
        raise ValueError(str(refusal)) from None


_BAN_PLACES = ("mail-from", "from", "reply-to", "resent-from", "sender", "return-path")


def _ban_places(value: list[str]) -> None:
    for text in value:
        if text not in _BAN_PLACES:
            raise ValueError(f"{text!r} is none of {', '.join(_BAN_PLACES)}")


_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


def _host_name(value: str) -> None:
    if value and (len(value) > 253 or not all(_LABEL.fullmatch(label) for label in value.split("."))):
        raise ValueError(f"{value!r} is no host name")


def _no_control(value: str) -> None:
    if any(ord(char) < 32 or ord(char) == 127 for char in value):
        raise ValueError("holds a control character")


Workers = Annotated[int, Meta(ge=1, le=64, description="Worker processes of this role.")]
Enabled = Annotated[bool, Meta(description="Whether this machine runs the role.")]
_WORKERS = "Worker processes of this role."


class Master(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The process that binds the ports, starts the workers and replaces those that die."""

    drain_s: Annotated[
        float,
        Meta(ge=0, le=3600, description="At stop, seconds open work may take before workers are ended."),
    ] = 10.0
    retire_s: Annotated[
        float,
        Meta(ge=0, description="After a reload, seconds the sessions of the old workers may stay open."),
    ] = 3600.0
    ready_s: Annotated[
        float, Meta(gt=0, description="Seconds a new worker may take to report ready before it is ended.")
    ] = 60.0
    heartbeat_s: Annotated[
        float, Meta(gt=0, le=60, description="Seconds between two signs of life of a worker's loop.")
    ] = 1.0
    heartbeat_limit_s: Annotated[
        float, Meta(ge=2, description="A worker silent for this many seconds is killed and replaced.")
    ] = 30.0
    respawn_min_s: Annotated[
        float,
        Meta(
            ge=0.01,
            description="First delay before a worker that died before its first job is started again.",
        ),
    ] = 0.25
    respawn_max_s: Annotated[
        float, Meta(ge=0.01, description="The delay doubles up to this many seconds.")
    ] = 60.0
    user: Annotated[
        str,
        Meta(
            description="User the server runs as when started by root; empty: the owner of the home.",
            extra={"check": _no_control},
        ),
    ] = ""


class Ports(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Listening ports: `base` plus the well-known number. A number of 0 turns the listener off."""

    base: Annotated[
        int, Meta(ge=0, le=55000, description="Added to each port below; 0 is production (25, 143, ...).")
    ] = 0
    bind: Annotated[
        list[str],
        Meta(
            description="Addresses to listen on; empty: 127.0.0.1 if base is not 0, else all (IPv4 and IPv6).",
            extra={"check": _addresses},
        ),
    ] = field(default_factory=list)
    backlog: Annotated[
        int, Meta(ge=1, le=65535, description="Connections waiting to be accepted, per worker.")
    ] = 1024
    smtp: Annotated[int, Meta(ge=0, le=10000, description="SMTP (RFC 5321).")] = 25
    submission: Annotated[int, Meta(ge=0, le=10000, description="Submission with STARTTLS (RFC 6409).")] = 587
    submissions: Annotated[int, Meta(ge=0, le=10000, description="Submission over TLS (RFC 8314).")] = 465
    lmtp: Annotated[
        int,
        Meta(ge=0, le=10000, description="LMTP (RFC 2033). On 127.0.0.1 and ::1 only, whatever bind says."),
    ] = 24
    odmr: Annotated[
        int,
        Meta(
            ge=0, le=10000, description="ODMR (RFC 2645): sites without a fixed address fetch their mail; see smtpd.odmr. Off; its number is 366."
        ),
    ] = 0
    imap: Annotated[int, Meta(ge=0, le=10000, description="IMAP with STARTTLS.")] = 143
    imaps: Annotated[int, Meta(ge=0, le=10000, description="IMAP over TLS (RFC 8314).")] = 993
    pop3: Annotated[int, Meta(ge=0, le=10000, description="POP3 with STLS.")] = 110
    pop3s: Annotated[int, Meta(ge=0, le=10000, description="POP3 over TLS (RFC 8314).")] = 995
    metrics: Annotated[
        int,
        Meta(ge=0, le=10000, description="Prometheus text. On 127.0.0.1 and ::1 only, whatever bind says."),
    ] = 9100
    sieve: Annotated[int, Meta(ge=0, le=10000, description="ManageSieve with STARTTLS (RFC 5804).")] = 4190


class OdmrAccount(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A site that fetches its mail by ODMR: mail for its domains is kept for it and not sent by MX."""

    account: Annotated[str, Meta(min_length=1, max_length=320, description="Address of the account it logs in with.")]
    domains: Annotated[list[str], Meta(min_length=1, description="Domains of the site.")]


def _odmr_accounts(value: list[OdmrAccount]) -> None:
    for entry in value:
        for domain in entry.domains:
            if not domain.isascii() or domain.endswith(".") or len(domain) > 253 or not all(_LABEL.fullmatch(part) for part in domain.split(".")):
                raise ValueError(f"{domain!r} of {entry.account!r} is no domain (write an IDN in its xn-- form)")


class Smtpd(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Workers that accept mail from the network."""

    enabled: Enabled = True
    workers: Workers = 2
    banner: Annotated[
        str,
        Meta(
            max_length=200,
            description="Text of the greeting after the host name; empty: the product's name.",
            extra={"check": _no_control},
        ),
    ] = ""
    trusted_networks: Annotated[
        list[str],
        Meta(
            description="Networks whose clients may relay without login. Loopback is not among them.",
            extra={"check": _networks},
        ),
    ] = field(default_factory=list)
    barred_networks: Annotated[
        list[str],
        Meta(
            description="Networks whose clients may not relay, not even after a login and within trusted_networks; mail for domains here is taken from them.",
            extra={"check": _networks},
        ),
    ] = field(default_factory=list)
    reject_remote: Annotated[
        bool, Meta(description="Refuse recipients in others' domains, whoever asks; those of the forwarding table are not meant.")
    ] = False
    xclient_networks: Annotated[
        list[str],
        Meta(description="Networks whose clients may use XCLIENT.", extra={"check": _networks}),
    ] = field(default_factory=list)
    proxy_networks: Annotated[
        list[str],
        Meta(
            description="Networks of proxies that open each connection with a PROXY header.",
            extra={"check": _networks},
        ),
    ] = field(default_factory=list)
    size_limit: Annotated[
        int,
        Meta(ge=0, description="Largest message in octets (SIZE, RFC 1870); 0: bounded by the disk only."),
    ] = 104_857_600
    max_sessions: Annotated[
        int,
        Meta(
            ge=0,
            description="Sessions at once over all workers; the next gets 421. 0: bounded by descriptors.",
        ),
    ] = 0
    limit_loopback: Annotated[
        bool,
        Meta(description="Whether per-IP, per-user and rate limits, delays and tarpits act on loopback too."),
    ] = False
    max_recipients: Annotated[
        int, Meta(ge=100, description="Recipients of one message (RFC 5321 4.5.3.1.8 asks for at least 100).")
    ] = 1000
    bare_lf: Annotated[
        Literal["refuse", "normalise"],
        Meta(description="Content with a bare CR or LF: refused, or made CRLF. It is never passed on."),
    ] = "refuse"
    line_timeout_s: Annotated[
        float, Meta(gt=0, description="Wait for the next command; RFC 5321 4.5.3.2.7 asks for 300 or more.")
    ] = 300.0
    data_timeout_s: Annotated[
        float, Meta(gt=0, description="Wait for more content; RFC 5321 4.5.3.2.5 gives a client 180 a block.")
    ] = 300.0
    max_errors: Annotated[int, Meta(ge=1, description="Refused commands after which a session gets 421.")] = (
        20
    )
    vrfy: Annotated[bool, Meta(description="Whether VRFY answers with what it knows instead of 252.")] = False
    qualify: Annotated[
        bool,
        Meta(description="Whether an address without a domain gets the primary domain; else it is refused."),
    ] = True
    content_line_octets: Annotated[
        int,
        Meta(
            ge=0, description="Longest line of content taken; RFC 5321 4.5.3.1.6 asks for 1000. 0: no limit."
        ),
    ] = 1_000_000
    content_deadline_s: Annotated[
        float,
        Meta(
            gt=0, description="Longest time the content of one message may take, however steadily it comes."
        ),
    ] = 3600.0
    ban_places: Annotated[
        list[str],
        Meta(
            description="Where banned addresses and domains are looked for: at MAIL FROM, and in header fields.",
            extra={"check": _ban_places},
        ),
    ] = field(default_factory=lambda: list(_BAN_PLACES))
    dnsbl_allow: Annotated[
        list[str],
        Meta(description="Networks that no DNS-BL is asked about.", extra={"check": _networks}),
    ] = field(default_factory=list)
    dnsbl_sick_s: Annotated[
        float,
        Meta(ge=1, description="Seconds a DNS-BL that fails or lists everybody is left alone and lists nobody."),
    ] = 600.0
    screen_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=60,
            description="Wait for one look-up of a DNS-BL or a sender check; above dns.timeout_s, so that one lost packet is no failure.",
        ),
    ] = 8.0
    check_sender_domain: Annotated[
        Literal["off", "tag", "reject"],
        Meta(description="A sender's domain without MX, A and AAAA records."),
    ] = "off"
    check_client_name: Annotated[
        Literal["off", "tag", "reject"],
        Meta(description="A client whose address has no name in DNS that leads back to it."),
    ] = "off"
    check_helo: Annotated[
        Literal["off", "tag", "reject"],
        Meta(description="A name in HELO or EHLO that is malformed or not in DNS."),
    ] = "off"
    check_unqualified: Annotated[
        Literal["off", "tag", "reject"],
        Meta(description="A sender or recipient without a domain, where smtpd.qualify would complete it."),
    ] = "off"
    sender_login: Annotated[
        Literal["off", "warn", "reject"],
        Meta(
            description="A client that logged in and names a sender in MAIL FROM that is not one of its own; warn: a line in the log."
        ),
    ] = "off"
    sender_login_from: Annotated[
        bool, Meta(description="Whether smtpd.sender_login holds for each address in the field From too.")
    ] = False
    max_sessions_per_ip: Annotated[
        int,
        Meta(ge=0, description="Sessions at once of one client over all workers; the next gets 421. 0: any number."),
    ] = 50
    max_sessions_per_network: Annotated[
        int,
        Meta(ge=0, description="The same of one network, /24 or /64 of IPv6. 0: any number."),
    ] = 200
    session_rate: Annotated[
        int, Meta(ge=0, description="New sessions of one client in a minute; the next gets 421. 0: any number.")
    ] = 0
    message_rate: Annotated[
        int, Meta(ge=0, description="MAIL commands of one client in a minute; the next gets 450. 0: any number.")
    ] = 0
    recipient_rate: Annotated[
        int, Meta(ge=0, description="RCPT commands of one client in a minute; the next gets 450. 0: any number.")
    ] = 0
    greeting_delay_s: Annotated[
        float,
        Meta(ge=0, le=60, description="Wait before the greeting on port 25, in which a client must be silent."),
    ] = 1.0
    early_talker: Annotated[
        Literal["off", "tag", "reject"],
        Meta(description="A client that speaks before the greeting on port 25; off: no delay either."),
    ] = "reject"
    early_pipelining: Annotated[
        Literal["off", "tag", "reject"],
        Meta(description="A client that sends commands before an answer they have to wait for (RFC 2920 3.1)."),
    ] = "reject"
    tarpit_s: Annotated[
        float,
        Meta(ge=0, le=60, description="Delay of the answer for each refused command above tarpit_errors; 0: none."),
    ] = 1.0
    tarpit_errors: Annotated[
        int, Meta(ge=0, description="Refused commands since the last message that are answered at once.")
    ] = 10
    flow_queue_high: Annotated[
        int,
        Meta(ge=0, description="Messages in the input queue at which MAIL gets 452; 0: no mark."),
    ] = 1_000_000
    flow_queue_low: Annotated[
        int, Meta(ge=0, description="Messages in the input queue at which mail is taken again. Each low mark that is not below its high one is nine tenths of it.")
    ] = 900_000
    flow_disk_high: Annotated[
        float,
        Meta(
            ge=0,
            le=100,
            description="Per cent of the spool's disk, or its inodes, in use at which MAIL gets 452; 0: no mark. The default leaves"
            " it to the spool, which answers 452 when it has no room.",
        ),
    ] = 0.0
    flow_disk_low: Annotated[
        float, Meta(ge=0, le=100, description="Per cent in use at which mail is taken again.")
    ] = 99.0
    flow_memory_high: Annotated[
        float,
        Meta(ge=0, le=100, description="Per cent of the memory in use at which clients get 421 and MAIL 452; 0: no mark."),
    ] = 97.0
    flow_memory_low: Annotated[
        float, Meta(ge=0, le=100, description="Per cent in use at which clients are let in again.")
    ] = 94.0
    sender_hour: Annotated[
        int,
        Meta(ge=0, description="Recipients elsewhere of one user who logged in, in an hour; more get 450. 0: any number."),
    ] = 1000
    sender_day: Annotated[int, Meta(ge=0, description="The same in a day. 0: any number.")] = 5000
    takeover_recipients: Annotated[
        int,
        Meta(
            ge=0,
            le=10_000,
            description="More distinct recipients elsewhere in ten minutes are a sign that a user's account is in strange hands. 0: never.",
        ),
    ] = 500
    takeover_networks: Annotated[
        int,
        Meta(ge=0, le=63, description="More networks (/24, /64) of a user's clients in an hour are such a sign. 0: never."),
    ] = 10
    max_messages: Annotated[
        int, Meta(ge=0, description="MAIL commands of one session (LIMITS MAILMAX, RFC 9422). 0: any number.")
    ] = 0
    max_recipient_domains: Annotated[
        int, Meta(ge=0, description="Domains of a session's recipients (LIMITS RCPTDOMAINMAX). 0: any number.")
    ] = 0
    etrn: Annotated[
        bool, Meta(description="Whether ETRN (RFC 1985) starts a queue run for relayed domains.")
    ] = True
    etrn_domains: Annotated[
        list[str],
        Meta(description="Domains (`*.DOMAIN` for those below it) for which ETRN is allowed beside relayed ones."),
    ] = field(default_factory=list)
    odmr: Annotated[
        list[OdmrAccount],
        Meta(
            description="Sites that fetch the mail of their domains by ATRN on ports.odmr, each a table `[[smtpd.odmr]]`; see odmr.md.",
            extra={"check": _odmr_accounts},
        ),
    ] = field(default_factory=list)


class Preprocessor(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Workers that route each message and run the modules."""

    enabled: Enabled = True
    workers: Workers = 1
    max_trips: Annotated[
        int,
        Meta(
            ge=1,
            le=1000,
            description="Received lines naming this host at which a message is bounced as a loop.",
        ),
    ] = 25
    loop_to_postmaster: Annotated[
        bool, Meta(description="Whether looping mail goes to the postmaster instead of back to the sender.")
    ] = False
    tnef: Annotated[
        bool, Meta(description="Whether winmail.dat (TNEF) is unwrapped; costs a look at the content of every message.")
    ] = False
    autotext_signed: Annotated[
        bool, Meta(description="Whether texts (`iemsctl autotext`) go into mail that came in with a DKIM signature, which breaks it.")
    ] = False


class Attachment(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What becomes of messages once there is a rule about attachments (`iemsctl attachment`)."""

    unparsable: Annotated[
        Literal["strip", "bounce", "tag", "pass"],
        Meta(
            description="What becomes of mail that mail programs read differently, and of archives that can't be listed: removed (the body, the archive),"
            " refused, tagged for users and lists to act on, or nothing."
        ),
    ] = "strip"
    tell_postmaster: Annotated[
        bool, Meta(description="Whether the postmaster is told of attachments that are removed or refused, of many at a time in one message.")
    ] = False


def _scanners(value: list[str]) -> None:
    for text in value:
        kind, _, place = text.partition(":")
        if kind == "clamd" and place.startswith("/"):
            continue
        if kind == "clamd":
            host_port(place, 3310)
        elif kind in ("icap", "icaps") and place.startswith("//") and place.isprintable() and " " not in place:
            host_port(place[2:].partition("/")[0], 1344)
        elif kind != "command" or not place.strip():
            raise ValueError(f"{text!r} is no scanner: clamd:HOST:PORT, clamd:/PATH/OF/SOCKET, icap://HOST:PORT/SERVICE, icaps://HOST:PORT/SERVICE or command:COMMAND %F")


def _checker(value: str) -> None:
    kind, _, place = value.partition(":")
    if value and kind not in ("spamd", "rspamd"):
        raise ValueError(f"{value!r} is no content filter: spamd:HOST:PORT or rspamd:HOST:PORT")
    if value:
        host_port(place, 783)


_CONTENT_ACTIONS = ("tag", "header", "subject", "discard", "bounce", "forward", "archive", "pass")
_FAILURES = ("defer", "defer_then_pass", "pass")


def _per_channel(value: list[str], words: tuple[str, ...]) -> None:
    for text in value:
        channel, _, word = text.partition(" ")
        if channel not in ("LOCAL", "SMTPC", "BSMTPOUT", "DL", "CCMAIL", "NOTES") or word not in words:
            raise ValueError(f"{text!r}: write CHANNEL WORD, as in 'CCMAIL {words[0]}'; words are {', '.join(words)}")


def _channel_actions(value: list[str]) -> None:
    _per_channel(value, _CONTENT_ACTIONS)


def _channel_failures(value: list[str]) -> None:
    _per_channel(value, _FAILURES)


def _inspector(value: str) -> None:
    if value and (value.count("@") != 1 or not all(value.split("@")) or not value.isprintable() or " " in value):
        raise ValueError(f"{value!r} is no address")


OnFailure = Literal["defer", "defer_then_pass", "pass"]
_ON_FAILURE = (
    "What becomes of mail while {} does not answer: it waits and is refused at the age of lifetime_s, waits and then goes on unseen, or goes on"
    " unseen at once."
)
ChannelFailures = Annotated[
    list[str],
    Meta(
        description="The same for single output channels, as 'LOCAL pass'. A message for several waits as long as one of them asks for it.",
        extra={"check": _channel_failures},
    ),
]

class Antivirus(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Virus scanners, asked one after the other."""

    scanners: Annotated[
        list[str],
        Meta(
            description="clamd:HOST:PORT, clamd:/PATH/OF/SOCKET, icap://HOST:PORT/SERVICE, icaps:// for the same over TLS, or command:COMMAND with %F for the message's"
            " file and %D for the folder with it and its attachments. None: mail is not looked at.",
            extra={"check": _scanners},
        ),
    ] = field(default_factory=list)
    infected: Annotated[
        Literal["bounce", "quarantine", "delete", "strip", "tag"],
        Meta(
            description="What becomes of infected mail: told to the sender, put aside (`iemsctl queue`), removed, or its infected parts, or tagged for"
            " users and lists to act on."
        ),
    ] = "quarantine"
    tell_postmaster: Annotated[
        bool, Meta(description="Whether the postmaster is told of infected mail that is deleted, of many at a time in one message.")
    ] = False
    on_failure: Annotated[OnFailure, Meta(description=_ON_FAILURE.format("a scanner"))] = "defer"
    channel_failures: ChannelFailures = field(default_factory=list)
    lifetime_s: Annotated[float, Meta(gt=0, description="Age at which mail no longer waits for a scanner.")] = 432_000.0
    timeout_s: Annotated[float, Meta(gt=0, description="Time for one message with one scanner.")] = 60.0
    at_once: Annotated[int, Meta(ge=1, le=256, description="Messages a scanner looks at at the same time, per worker.")] = 8
    ca_file: Annotated[
        str, Meta(description="PEM file of the authorities that certificates of icaps servers are checked by; relative to the home. Empty: the system's.")
    ] = ""
    infected_codes: Annotated[list[int], Meta(description="Exit codes of a command that mean a virus.")] = field(default_factory=lambda: [1])
    clean_codes: Annotated[list[int], Meta(description="Exit codes of a command that mean none.")] = field(default_factory=lambda: [0])


class Content(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A content filter that scores mail."""

    checker: Annotated[
        str, Meta(description="spamd:HOST:PORT or rspamd:HOST:PORT; empty: mail is not looked at.", extra={"check": _checker})
    ] = ""
    action: Annotated[
        Literal["tag", "header", "subject", "discard", "bounce", "forward", "archive", "pass"],
        Meta(
            description="What becomes of spam: tagged for users and lists to act on, given the field X-Spam-Status, tagged with a mark before its"
            " subject, removed, refused, sent to the inspector or kept in the archive instead of delivered, or nothing."
        ),
    ] = "tag"
    channel_actions: Annotated[
        list[str],
        Meta(description="Other actions for single output channels, as 'CCMAIL discard'.", extra={"check": _channel_actions}),
    ] = field(default_factory=list)
    subject: Annotated[str, Meta(description="The mark before the subject.")] = "[SPAM] "
    refusal: Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[ -~]+$", description="The sentence of action bounce.")] = (
        "Refused: the content was judged to be spam"
    )
    inspector: Annotated[
        str, Meta(description="Address that gets mail of action forward; without one nothing is forwarded.", extra={"check": _inspector})
    ] = ""
    archive: Annotated[str, Meta(description="Maildir or mbox file for action archive; relative to the home.")] = "spam"
    archive_format: Annotated[Literal["maildir", "mbox"], Meta(description="What the archive is.")] = "maildir"
    max_octets: Annotated[int, Meta(ge=1024, description="Longer mail is not looked at.")] = 524_288
    timeout_s: Annotated[float, Meta(gt=0, description="Time for one message.")] = 30.0
    at_once: Annotated[int, Meta(ge=1, le=256, description="Messages it looks at at the same time, per worker.")] = 8
    on_failure: Annotated[OnFailure, Meta(description=_ON_FAILURE.format("it"))] = "pass"
    channel_failures: ChannelFailures = field(default_factory=list)
    lifetime_s: Annotated[float, Meta(gt=0, description="Age at which mail no longer waits for it.")] = 432_000.0


def _milters(value: list[str]) -> None:
    for text in value:
        kind, _, place = text.partition(":")
        if kind == "inet" and place.rpartition(":")[0]:
            host_port(place, 0)
        elif kind != "unix" or not place.startswith("/"):
            raise ValueError(f"{text!r} is no milter: inet:HOST:PORT or unix:/PATH/OF/SOCKET")


class Milter(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Milters, asked one after the other once mail is accepted."""

    milters: Annotated[
        list[str],
        Meta(description="inet:HOST:PORT or unix:/PATH/OF/SOCKET. None: mail is not looked at.", extra={"check": _milters}),
    ] = field(default_factory=list)
    rejected: Annotated[
        Literal["bounce", "quarantine", "delete", "tag"],
        Meta(
            description="What becomes of mail a milter refuses: told to the sender, put aside (`iemsctl queue`), removed, or tagged for users and lists to"
            " act on (a recipient refused alone is told)."
        ),
    ] = "bounce"
    discarded: Annotated[
        Literal["delete", "quarantine"], Meta(description="What becomes of mail a milter discards: removed, or put aside.")
    ] = "delete"
    on_failure: Annotated[OnFailure, Meta(description=_ON_FAILURE.format("a milter"))] = "defer"
    channel_failures: ChannelFailures = field(default_factory=list)
    timeout_s: Annotated[float, Meta(gt=0, description="Time for one answer; a sign of progress starts it anew.")] = 60.0
    deadline_s: Annotated[float, Meta(gt=0, description="Time for one message with one milter, in all.")] = 300.0
    lifetime_s: Annotated[float, Meta(gt=0, description="Age at which mail that milters put off is refused, and no longer waits for one.")] = 432_000.0
    at_once: Annotated[int, Meta(ge=1, le=256, description="Messages a milter looks at at the same time, per worker.")] = 8
    body_max_octets: Annotated[int, Meta(ge=1024, description="Longest new body taken from a milter.")] = 104_857_600


class Lmda(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Workers that deliver to mailboxes."""

    enabled: Enabled = True
    workers: Workers = 1
    batch: Annotated[int, Meta(ge=1, le=1024, description="Messages taken from the queue at once.")] = 64
    over_quota: Annotated[
        Literal["defer", "fail"],
        Meta(description="What becomes of mail for a full account: tried again, or bounced."),
    ] = "defer"
    retry_s: Annotated[
        float, Meta(gt=0, description="First delay before a deferred delivery is tried again.")
    ] = 60.0
    retry_max_s: Annotated[float, Meta(gt=0, description="The delay doubles up to this many seconds.")] = (
        3600.0
    )
    lifetime_s: Annotated[float, Meta(gt=0, description="Age at which deferred local mail is bounced.")] = (
        432_000.0
    )
    spam_action: Annotated[
        str,
        Meta(
            description="What becomes of tagged mail for users who chose nothing (`iemsuser spam`): ignore, discard, bounce,"
            " file or file=MAILBOX.",
            extra={"check": _spam_action},
        ),
    ] = "ignore"
    bayes_prior: Annotated[
        str,
        Meta(description="File with the site-wide prior of the Bayesian filters (`iemsctl bayes prior`); relative to the home. Empty: none."),
    ] = ""


def _contact(value: str) -> None:
    from iems.smtp.tlsrpt import address_of

    if value and not address_of(f"mailto:{value}"):
        raise ValueError("must be an address")


def _weight_ranges(value: list[str]) -> None:
    from iems.spool.weight import ranges

    ranges(value)


def _weight_words(value: list[str]) -> None:
    from iems.spool.weight import words

    words(value)


class ClientCertificate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A certificate the relay shows to hosts that ask for one; peer profiles name it. The key is read by the master alone."""

    name: Annotated[
        str, Meta(pattern="^(?!(default|none)$)[A-Za-z0-9._-]{1,64}$", description="What profiles call it.")
    ]
    certificate: Annotated[
        str, Meta(min_length=1, description="PEM file of the chain; relative to the home.")
    ]
    key: Annotated[str, Meta(min_length=1, description="PEM file of the private key; relative to the home.")]


def _client_certificates(value: list[ClientCertificate]) -> None:
    names = [pair.name for pair in value]
    if len(names) > 64:
        raise ValueError("at most 64 certificates")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two certificates are called {name!r}")


class Smtpc(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Workers that relay mail to other hosts."""

    enabled: Enabled = True
    workers: Workers = 1
    resolution: Annotated[
        Literal["dns", "dns-hosts", "hosts-dns", "hosts", "relay"],
        Meta(
            description="How the next hop is found: DNS, the host table, both in order, or only relay_hosts."
        ),
    ] = "dns-hosts"
    relay_hosts: Annotated[
        list[str],
        Meta(description="HOST or HOST:PORT of relays, tried in order.", extra={"check": _hosts}),
    ] = field(default_factory=list)
    host_table: Annotated[
        str, Meta(description="Host table: a file of `DOMAIN HOST[:PORT] ...` lines; relative to the home.")
    ] = ""
    port: Annotated[int, Meta(gt=0, lt=65536, description="Port of remote hosts that name none.")] = 25
    retry_s: Annotated[
        float,
        Meta(gt=0, description="First delay before a deferred recipient is tried again (RFC 5321 4.5.4.1)."),
    ] = 1800.0
    retry_max_s: Annotated[float, Meta(gt=0, description="The delay doubles up to this many seconds.")] = (
        14_400.0
    )
    lifetime_s: Annotated[
        float, Meta(gt=0, description="Age at which deferred mail is bounced (RFC 5321 4.5.4.1: 4-5 days).")
    ] = 432_000.0
    delay_notice_s: Annotated[
        float, Meta(ge=0, description="Age at which the sender is told of the delay, once, of mail that waits for a scanner, too; 0: never.")
    ] = 14_400.0
    tls: Annotated[
        Literal["off", "may", "encrypt", "verify"],
        Meta(
            description="STARTTLS: never, where offered, always, or always with a certificate checked for the host's name."
        ),
    ] = "may"
    max_connections: Annotated[int, Meta(ge=1, description="Connections at once, per worker.")] = 100
    max_per_host: Annotated[
        int, Meta(ge=1, description="Connections at once to one destination, per worker.")
    ] = 5
    max_messages: Annotated[int, Meta(ge=1, description="Messages over one connection.")] = 100
    idle_s: Annotated[
        float,
        Meta(
            ge=0, description="A connection with nothing to send stays open this long for the next message."
        ),
    ] = 5.0
    temporary_554: Annotated[
        bool,
        Meta(description="A 554 to DATA or the content is tried again: many hosts say it for what passes."),
    ] = True
    connect_timeout_s: Annotated[float, Meta(gt=0, description="Wait for the connection.")] = 30.0
    greeting_timeout_s: Annotated[
        float, Meta(gt=0, description="Wait for the greeting (RFC 5321 4.5.3.2.1).")
    ] = 300.0
    helo_timeout_s: Annotated[float, Meta(gt=0, description="Wait for the reply to EHLO or HELO.")] = 300.0
    mail_timeout_s: Annotated[float, Meta(gt=0, description="Wait for the reply to MAIL (4.5.3.2.2).")] = (
        300.0
    )
    rcpt_timeout_s: Annotated[float, Meta(gt=0, description="Wait for the reply to RCPT (4.5.3.2.3).")] = (
        300.0
    )
    data_timeout_s: Annotated[float, Meta(gt=0, description="Wait for the 354 (4.5.3.2.4).")] = 120.0
    block_timeout_s: Annotated[float, Meta(gt=0, description="Wait while sending a block (4.5.3.2.5).")] = (
        180.0
    )
    end_timeout_s: Annotated[
        float, Meta(gt=0, description="Wait for the reply to the final dot (4.5.3.2.6).")
    ] = 600.0
    dane: Annotated[
        bool,
        Meta(description="Whether TLSA records of hosts are looked up and obeyed (RFC 7672); see dns.validating."),
    ] = False
    mta_sts: Annotated[
        bool, Meta(description="Whether MTA-STS policies of domains are fetched and obeyed (RFC 8461).")
    ] = False
    mta_sts_port: Annotated[int, Meta(gt=0, lt=65536, description="Port of policy hosts.")] = 443
    tls_ca_file: Annotated[
        str,
        Meta(
            description="Certificates (PEM) of authorities trusted besides the system's; relative to the home."
        ),
    ] = ""
    srs: Annotated[
        bool,
        Meta(description="Whether mail of others that is forwarded leaves with a reverse path of ours (SRS)."),
    ] = False
    srs_secret_file: Annotated[
        str,
        Meta(
            description="Secret for SRS, 16 octets or more, relative to the home; made if missing. Empty: conf/srs.key."
        ),
    ] = ""
    run_interval_s: Annotated[
        float, Meta(ge=0, description="Seconds between two looks at the queue; 0: mail leaves as it comes.")
    ] = 0.0
    run_size: Annotated[
        int, Meta(ge=0, description="Messages taken in one run, per worker, with a run_interval_s; 0: any number.")
    ] = 0
    weight_precedence: Annotated[
        int,
        Meta(
            ge=-1000,
            le=1000,
            description="Multiplier of precedence_values. What has the lowest sum of the three leaves first; all 0: in order of time.",
        ),
    ] = 0
    weight_size: Annotated[
        int, Meta(ge=-1000, le=1000, description="Multiplier of size_values.")
    ] = 0
    weight_deferred: Annotated[
        int,
        Meta(
            ge=-1000,
            le=1000,
            description="Multiplier of deferred_values. Below 0, mail that waited longer goes first.",
        ),
    ] = 0
    precedence_values: Annotated[
        list[str],
        Meta(
            description="WORD:VALUE for each word of the header field Precedence; `*`: any other, and none.",
            extra={"check": _weight_words},
        ),
    ] = field(
        default_factory=lambda: ["special-delivery:0", "first-class:1", "*:2", "list:4", "bulk:6", "junk:10"]
    )
    size_values: Annotated[
        list[str],
        Meta(
            description="LIMIT:VALUE, by size: below LIMIT thousand octets it counts VALUE; the last LIMIT is `*`.",
            extra={"check": _weight_ranges},
        ),
    ] = field(default_factory=lambda: ["10:0", "1000:2", "10000:4", "*:10"])
    deferred_values: Annotated[
        list[str],
        Meta(
            description="LIMIT:VALUE, by hours since acceptance, for mail tried before; what is new counts as 0 hours.",
            extra={"check": _weight_ranges},
        ),
    ] = field(default_factory=lambda: ["1:1", "6:4", "12:6", "*:20"])
    tls_reports: Annotated[
        bool,
        Meta(description="Whether TLS towards other domains is counted, and reported daily to those that ask for it (RFC 8460)."),
    ] = False
    tls_reports_post: Annotated[
        bool, Meta(description="Whether reports go by HTTPS too, where a domain asks for that; else by mail only.")
    ] = False
    tls_reports_contact: Annotated[
        str, Meta(description="Address that reports come from and name as contact; empty: the postmaster.", extra={"check": _contact})
    ] = ""
    client_certificate: Annotated[
        str, Meta(description="Name of the certificate shown to hosts that ask for one; empty: none.")
    ] = ""
    client_certificates: Annotated[
        list[ClientCertificate],
        Meta(
            description="Certificates for hosts that ask for one, each a table `[[smtpc.client_certificates]]`.",
            extra={"check": _client_certificates},
        ),
    ] = field(default_factory=list)


class Store(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The writer of the mailboxes."""

    enabled: Enabled = True
    workers: Annotated[
        int, Meta(ge=1, le=64, description=_WORKERS + " Never more than there are partitions.")
    ] = 1
    path: Annotated[str, Meta(description="Folder of the partitions; relative to the home.")] = "store"
    partitions: Annotated[
        int,
        Meta(
            ge=1, le=64, description="LMDB environments the accounts are spread over; set before first use."
        ),
    ] = 1
    copy: Annotated[
        Literal["shared", "always"],
        Meta(
            description="Whether a delivery keeps the spool's segment by a hard link (shared) or copies (always)."
        ),
    ] = "shared"
    undelete_s: Annotated[
        float, Meta(ge=3600, description="Seconds the bytes of expunged mail are kept; at least an hour.")
    ] = 86_400.0
    quota_warn_percent: Annotated[
        list[Annotated[int, Meta(ge=1, le=100)]],
        Meta(max_length=10, description="Parts of the quota in percent; who crosses one gets a mail. Empty: no warnings."),
    ] = field(default_factory=lambda: [80, 95])


class Imapd(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Workers that serve IMAP."""

    enabled: Enabled = True
    workers: Workers = 2
    max_sessions: Annotated[
        int, Meta(ge=0, description="Sessions at once over all workers. 0: bounded by descriptors.")
    ] = 0
    timeout_s: Annotated[
        float, Meta(ge=1800, description="Wait for the next command; RFC 3501 5.4 asks for at least 1800.")
    ] = 1800.0
    login_timeout_s: Annotated[float, Meta(gt=0, description="Wait for a login.")] = 60.0
    append_limit: Annotated[
        int, Meta(ge=0, description="Largest message in octets APPEND takes; 0: no limit.")
    ] = 104_857_600
    fulltext_from: Annotated[
        int,
        Meta(
            ge=0,
            description="Messages from which on a mailbox searched by TEXT or BODY gets a full-text index; 0: none does.",
        ),
    ] = 500


class Pop3d(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Workers that serve POP3."""

    enabled: Enabled = True
    workers: Workers = 2
    max_sessions: Annotated[
        int, Meta(ge=0, description="Sessions at once over all workers. 0: bounded by descriptors.")
    ] = 0
    timeout_s: Annotated[
        float, Meta(ge=600, description="Wait for the next command; RFC 1939 3 asks for at least 600.")
    ] = 600.0
    login_timeout_s: Annotated[float, Meta(gt=0, description="Wait for a login.")] = 60.0


class Sieved(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Workers that serve ManageSieve, by which mail programs edit a user's scripts."""

    enabled: Enabled = True
    workers: Workers = 1
    max_sessions: Annotated[
        int, Meta(ge=0, description="Sessions at once over all workers. 0: bounded by descriptors.")
    ] = 0
    timeout_s: Annotated[
        float, Meta(ge=1800, description="Wait for the next command; RFC 5804 1.8 asks for at least 1800.")
    ] = 1800.0
    login_timeout_s: Annotated[float, Meta(gt=0, description="Wait for a login.")] = 60.0


def _pickup_host(value: str) -> None:
    if not value or not value.isprintable() or " " in value:
        raise ValueError("must be a host name or an IP address")


class Pickup(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A maildrop that batches are picked up from by POP3 or IMAP, or a provider that keeps our mail (ODMR).

    name: for the log, Received lines and the memory of what was taken.
    """

    name: Annotated[str, Meta(pattern="^[A-Za-z0-9._-]{1,64}$", description="Name of the profile.")]
    host: Annotated[str, Meta(min_length=1, description="Host of the maildrop.")]
    login: Annotated[str, Meta(min_length=1, description="Name to log in with.")]
    password_file: Annotated[
        str, Meta(description="File with the password, readable by its owner alone; relative to the home.")
    ]
    tls: Annotated[
        Literal["implicit", "starttls", "none"], Meta(description="How the connection is kept private.")
    ] = "implicit"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port; 0: 995, or 110 without implicit TLS; by IMAP 993, 143; by ODMR 366.")] = 0
    verify: Annotated[bool, Meta(description="Whether the server's certificate must be good.")] = True
    ca_file: Annotated[
        str, Meta(description="PEM file of roots trusted beside the system's; relative to the home.")
    ] = ""
    interval_s: Annotated[float, Meta(ge=0.1, description="Seconds between two sessions.")] = 300.0
    timeout_s: Annotated[float, Meta(gt=0, description="Wait for each answer of the server.")] = 300.0
    max_messages: Annotated[
        int, Meta(ge=1, description="Messages taken in one session; then QUIT and a new session.")
    ] = 100
    senders: Annotated[
        list[str],
        Meta(description="Addresses or domains the From of a batch must be of; empty: any. Can be forged: see key_file."),
    ] = field(default_factory=list)
    key_file: Annotated[
        str, Meta(description="File with the key batches must be signed with; empty: bsmtp.key_file.")
    ] = ""
    relay: Annotated[
        bool, Meta(description="Whether recipients that are not ours are taken; needs a key.")
    ] = False
    deliver_to: Annotated[str, Meta(description="Address that gets mail without a batch; empty: the postmaster.")] = ""
    protocol: Annotated[
        Literal["pop3", "imap", "odmr"],
        Meta(description="How the maildrop is read; odmr (RFC 2645): mail itself, taken as by SMTP, no batches. See odmr.md."),
    ] = "pop3"
    domains: Annotated[
        list[str], Meta(description="Domains whose mail is asked for, by ODMR; empty: all that the provider keeps for the login.")
    ] = field(default_factory=list)
    mailbox: Annotated[
        str, Meta(min_length=1, max_length=255, description="Mailbox that is emptied, by IMAP.", extra={"check": _no_control})
    ] = "INBOX"


def _pickups(value: list[Pickup]) -> None:
    names = [profile.name for profile in value]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two profiles are called {name!r}")
    for profile in value:
        try:
            _pickup_host(profile.host)
        except ValueError as error:
            raise ValueError(f"profile {profile.name!r}: host {error}") from None
        if profile.protocol != "odmr":
            if profile.domains:
                raise ValueError(f"profile {profile.name!r}: domains are for protocol odmr")
            continue
        for name in ("senders", "key_file", "relay", "deliver_to"):
            if getattr(profile, name):
                raise ValueError(f"profile {profile.name!r}: {name} is about batches, which protocol odmr does not bring")
        for domain in profile.domains:
            if not domain.isascii() or len(domain) > 253 or not all(_LABEL.fullmatch(label) for label in domain.split(".")):
                raise ValueError(f"profile {profile.name!r}: {domain!r} is no domain (write an IDN in its xn-- form)")


class Bsmtp(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The worker that puts mail into batches (RFC 2442) and picks batches up."""

    enabled: Enabled = False
    workers: Annotated[int, Meta(ge=1, le=1, description=_WORKERS)] = 1
    encoder: Annotated[
        bool, Meta(description="Whether mail of the channel BSMTPOUT is put into batches; if not, it waits.")
    ] = True
    key_file: Annotated[
        str,
        Meta(
            description="File with the key batches are signed with and must be signed with, readable by its owner alone;"
            " relative to the home; empty: none."
        ),
    ] = ""
    max_octets: Annotated[
        int, Meta(ge=1 << 16, description="Largest mail fetched, and largest message in a batch; larger mail stays in its maildrop.")
    ] = 104_857_600
    max_messages: Annotated[int, Meta(ge=1, le=10_000, description="Most messages in one mail.")] = 1000
    max_recipients: Annotated[
        int, Meta(ge=1, le=10_000, description="Most recipients of one message in a batch.")
    ] = 1000
    folder: Annotated[
        str,
        Meta(description="Folder whose files are taken in as fetched mail; relative to the home; empty: none."),
    ] = ""
    folder_interval_s: Annotated[float, Meta(ge=0.1, description="Seconds between two looks into the folder.")] = 10.0
    folder_relay: Annotated[
        bool, Meta(description="Whether recipients that are not ours are taken from the folder; needs a key.")
    ] = False
    pickup: Annotated[
        list[Pickup],
        Meta(
            description="Maildrops batches are picked up from, each a table `[[bsmtp.pickup]]`; see bsmtp.md.",
            extra={"check": _pickups},
        ),
    ] = field(default_factory=list)


InputChannel = Literal["CCOUT", "NOTESOUT", "WEBCLIENT", "BSMTPIN"]
OutputChannel = Literal["CCMAIL", "NOTES", "BSMTPOUT", "DL", "SMTPC", "LOCAL"]


class Api(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The worker that serves run/mta.sock, by which programs of others hand mail in and take mail out (api-mta.md)."""

    enabled: Enabled = False
    workers: Annotated[int, Meta(ge=1, le=1, description=_WORKERS)] = 1
    insert: Annotated[
        list[InputChannel], Meta(description="Input channels that programs may hand mail in by.")
    ] = field(default_factory=lambda: ["CCOUT", "NOTESOUT"])
    take: Annotated[
        list[OutputChannel],
        Meta(description="Output channels that programs may take mail of; none that an enabled role serves."),
    ] = field(default_factory=lambda: ["CCMAIL", "NOTES"])
    max_clients: Annotated[int, Meta(ge=1, le=10_000, description="Connections at once; the next is refused.")] = 100
    max_leases: Annotated[int, Meta(ge=1, le=10_000, description="Items a connection may have in hand.")] = 256
    max_octets: Annotated[int, Meta(ge=1, description="Largest message handed in, in octets.")] = 104_857_600
    lease_s: Annotated[
        float, Meta(gt=0, le=86_400, description="Longest time an item may be in hand before it is offered again.")
    ] = 3600.0
    timeout_s: Annotated[
        float, Meta(gt=0, description="Wait for the rest of a content, and for a client that does not read its answers.")
    ] = 300.0


class Janitor(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The worker that recovers, reclaims and serves the metrics."""

    enabled: Enabled = True
    workers: Annotated[int, Meta(ge=1, le=1, description=_WORKERS)] = 1


class Spool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Messages on their way: segments and their index."""

    path: Annotated[str, Meta(description="Folder of the spool; relative to the home.")] = "spool"
    segment_octets: Annotated[
        int, Meta(ge=1 << 20, le=1 << 40, description="Size at which a segment is sealed.")
    ] = 134_217_728
    segment_s: Annotated[float, Meta(gt=0, description="Age at which a segment is sealed.")] = 3600.0
    ahead_octets: Annotated[
        int,
        Meta(
            ge=0,
            le=4 << 20,
            description="Zeros written ahead in a segment while few messages come at once, so that a flush is shorter; "
            "0: none, for file systems that never write in place (btrfs, ZFS).",
        ),
    ] = 262_144
    large_octets: Annotated[
        int, Meta(ge=4096, description="Content above this size gets a file of its own.")
    ] = 1_048_576
    staging_octets: Annotated[
        int,
        Meta(
            ge=1 << 20, description="Memory for incoming content, per worker; above it content goes to files."
        ),
    ] = 134_217_728
    map_octets: Annotated[
        int, Meta(ge=1 << 20, description="Address space of the index (LMDB map size).")
    ] = 274_877_906_944
    ballast_octets: Annotated[
        int,
        Meta(
            ge=0, description="File given up on a full disk, so that settling and expunging go on; 0: none."
        ),
    ] = 16_777_216
    double_bounces: Annotated[
        Literal["postmaster", "discard"],
        Meta(description="Who hears of a delivery report of ours that failed: the postmaster, once, or nobody."),
    ] = "postmaster"


class Log(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Event lines in log/mail.log."""

    format: Annotated[
        Literal["json", "text"], Meta(description="One JSON object or one line of text an event.")
    ] = "json"
    rotate_octets: Annotated[
        int, Meta(ge=0, description="Size at which the log is renamed and a new one started; 0: never.")
    ] = 1_073_741_824
    keep: Annotated[int, Meta(ge=1, le=1000, description="Old logs kept (mail.log.1 is the youngest).")] = 8
    refusals_octets: Annotated[
        int,
        Meta(
            ge=0,
            description="Size of what is kept of refusals for `iemsctl refusal ID`, about; the oldest go. 0: nothing, and replies have no id.",
        ),
    ] = 67_108_864
    level: Annotated[
        Literal["errors", "warning", "message", "sessions", "informational", "diagnostic"],
        Meta(
            description="How much is written, each level with those before it: sessions adds all SMTP commands and replies without secrets, "
            "informational connections, diagnostic reads. Below message, `iemsctl trace` finds nothing."
        ),
    ] = "message"
    keep_old: Annotated[
        bool, Meta(description="Whether old logs stay on the disk; if not, they go once they are renamed (and sent).")
    ] = True
    mail_old: Annotated[
        bool,
        Meta(description="Whether an old log is sent to the postmaster; a large one compressed, a very large one its last part."),
    ] = False


class Dns(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The resolver."""

    servers: Annotated[
        list[str],
        Meta(
            description="HOST:PORT of the servers to ask, by IP address; empty: those of /etc/resolv.conf.",
            extra={"check": _servers},
        ),
    ] = field(default_factory=list)
    timeout_s: Annotated[float, Meta(gt=0, description="Wait for one answer.")] = 5.0
    attempts: Annotated[
        int, Meta(ge=1, le=10, description="Tries over all servers before giving up for now.")
    ] = 4
    cache_records: Annotated[int, Meta(ge=0, description="Answers kept, per worker; 0: no cache.")] = (
        1_000_000
    )
    shared_mb: Annotated[
        int,
        Meta(ge=0, le=4096, description="Memory for answers that all workers share, in MiB, used as it fills; 0: each worker asks for itself."),
    ] = 32
    validating: Annotated[
        list[str],
        Meta(
            description="Addresses of servers whose word on DNSSEC counts, as they validate and the way to them is safe; "
            "loopback always does.",
            extra={"check": _addresses},
        ),
    ] = field(default_factory=list)


class Auth(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Logins, for SMTP, IMAP and POP3 alike."""

    plaintext: Annotated[
        Literal["never", "loopback", "always"],
        Meta(description="From where a password may be sent without TLS."),
    ] = "loopback"
    threads: Annotated[
        int, Meta(ge=1, le=64, description="Password hashes computed at once, per worker.")
    ] = 2
    cache_s: Annotated[
        float, Meta(ge=0, description="Seconds a checked password is remembered, in memory.")
    ] = 300.0
    max_failures: Annotated[int, Meta(ge=1, description="Failed logins after which a session is closed.")] = 5
    scram: Annotated[
        bool,
        Meta(
            description="Whether SCRAM-SHA-256 is offered, and its keys are kept when a password is set or shown by a login."
        ),
    ] = True
    scram_iterations: Annotated[
        int,
        Meta(
            ge=4096,
            le=10_000_000,
            description="Rounds of hashing in new SCRAM keys: work for a client at each login, and for whoever steals the keys.",
        ),
    ] = 100_000
    cram_md5: Annotated[
        bool,
        Meta(
            description="Whether CRAM-MD5 is offered; it works for passwords set or shown while it is on, "
            "which are then kept in a form as good as the password."
        ),
    ] = False
    failure_delay_s: Annotated[
        float,
        Meta(ge=0, le=60, description="Wait before a failed login is answered; loopback: see smtpd.limit_loopback."),
    ] = 2.0
    lockout_failures: Annotated[
        int,
        Meta(
            ge=0,
            description="Failed logins of one account from one address before further ones from there are put off; 0: never.",
        ),
    ] = 5
    lockout_network_failures: Annotated[
        int,
        Meta(
            ge=0,
            description="Failed logins from one address, over all accounts, before logins from there are put off; 0: never.",
        ),
    ] = 50
    lockout_s: Annotated[
        float,
        Meta(
            ge=1,
            le=86_400,
            description="Longest time a login is put off; it begins at 2 s and doubles with each failure. After twice this "
            "time without one, failures are forgotten.",
        ),
    ] = 900.0
    oauth_jwks: Annotated[
        str,
        Meta(
            description="File with the keys (JWKS, RFC 7517) of the authorization server whose tokens log in; relative to the "
            "home. Empty: OAUTHBEARER and XOAUTH2 are not offered."
        ),
    ] = ""
    oauth_issuer: Annotated[str, Meta(description="The claim iss that a token must have.")] = ""
    oauth_audience: Annotated[str, Meta(description="What the claim aud of a token must be or hold.")] = ""
    oauth_claim: Annotated[
        str, Meta(min_length=1, description="The claim that names the user, by address or login name.")
    ] = "email"
    oauth_scope: Annotated[
        str, Meta(description="Scope a token must have; named to clients whose token is refused. Empty: any.")
    ] = ""
    oauth_configuration: Annotated[
        str,
        Meta(
            description="Address of the authorization server's metadata, named to clients whose token is refused (RFC 7628)."
        ),
    ] = ""
    oauth_introspection: Annotated[
        str,
        Meta(
            description="Address (https) of the authorization server that is asked about tokens which are no JWT, or about all without oauth_jwks "
            "(RFC 7662). What is set of oauth_issuer, oauth_audience and oauth_scope must be in its answer. Empty: nobody is asked.",
            extra={"check": _introspection},
        ),
    ] = ""
    oauth_client_id: Annotated[str, Meta(description="Name by which this server is known to the one that is asked.")] = ""
    oauth_client_secret_file: Annotated[
        str, Meta(description="File with the secret that goes with it, readable by its owner alone; relative to the home; empty: none.")
    ] = ""
    oauth_ca_file: Annotated[
        str, Meta(description="PEM file of the authorities its certificate must be of; relative to the home; empty: the system's.")
    ] = ""
    oauth_cache_s: Annotated[
        float, Meta(ge=0, le=86_400, description="Seconds its answer is remembered, at most until the token's end; a token it cuts off is good so long.")
    ] = 60.0
    oauth_timeout_s: Annotated[float, Meta(gt=0, le=60, description="Wait for its answer; without one a login is put off (454).")] = 5.0


def _introspection(value: str) -> None:
    from iems.net.http import Place

    if value:
        place = Place.of(value)
        if not place.tls and place.host not in ("localhost", "127.0.0.1", "::1"):
            raise ValueError("http sends tokens in the clear: write https (but for this machine)")


def _ldap_uris(value: list[str]) -> None:
    from iems.net.ldap import Server

    for uri in value:
        Server.of(uri)


def _ldap_filter(value: str) -> None:
    from iems.net.ldap import Filter

    if not Filter(value).places & {"s", "u"}:
        raise ValueError("must ask for the address: %s, or %u (and %d)")


class Ldap(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An external directory that is asked for recipients of relay domains (`--check ldap` of a forwarded domain); see relay.md."""

    uris: Annotated[
        list[str],
        Meta(description="Servers, ldap://HOST[:PORT] or ldaps://HOST[:PORT], asked in this order; empty: none.", extra={"check": _ldap_uris}),
    ] = field(default_factory=list)
    bind_dn: Annotated[str, Meta(description="Name to bind with; empty: nobody (anonymous).")] = ""
    password_file: Annotated[
        str, Meta(description="File with the password of bind_dn, readable by its owner alone; relative to the home; empty: none.")
    ] = ""
    base: Annotated[str, Meta(description="Name below which is searched.")] = ""
    scope: Annotated[Literal["sub", "one", "base"], Meta(description="How far below.")] = "sub"
    filter: Annotated[
        str,
        Meta(
            description="Filter (RFC 4515) that finds a recipient; %s is the address, %u and %d its parts, %% a percent sign. "
            "What takes their place is never read as part of the filter.",
            extra={"check": _ldap_filter},
        ),
    ] = "(mail=%s)"
    starttls: Annotated[bool, Meta(description="Whether TLS is started on ldap:// before anything else is said.")] = False
    ca_file: Annotated[
        str, Meta(description="PEM file of the authorities a server's certificate must be of; relative to the home; empty: the system's.")
    ] = ""
    timeout_s: Annotated[float, Meta(gt=0, le=300, description="Wait for a connection with its bind, and for an answer.")] = 5.0
    known_s: Annotated[float, Meta(ge=0, description="Seconds a recipient that was found is remembered, per worker.")] = 86_400.0
    unknown_s: Annotated[float, Meta(ge=0, description="Seconds one that was not found is remembered, per worker.")] = 3_600.0


class Tls(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The server's certificate. A pair that doesn't match keeps the old one in use."""

    certificate: Annotated[str, Meta(description="PEM file of the chain; relative to the home.")] = (
        "conf/tls/cert.pem"
    )
    key: Annotated[str, Meta(description="PEM file of the private key; relative to the home.")] = (
        "conf/tls/key.pem"
    )
    minimum: Annotated[Literal["1.2", "1.3"], Meta(description="Oldest version of TLS spoken.")] = "1.2"
    domains: Annotated[
        str,
        Meta(
            description="Folder with a folder for each further domain, DOMAIN/cert.pem and DOMAIN/key.pem, shown to clients that "
            "ask for DOMAIN or a name in it; relative to the home. Empty: none."
        ),
    ] = "conf/tls"


class Authres(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """SPF, DKIM, DMARC and ARC of mail that comes in, told in Authentication-Results. docs/mail-authentication.md."""

    verify: Annotated[
        bool, Meta(description="Whether mail from outside is checked; it costs questions of DNS.")
    ] = False
    authserv_id: Annotated[
        str,
        Meta(
            description="Our name in Authentication-Results; fields from outside under it are removed. Empty: hostname.",
            extra={"check": _host_name},
        ),
    ] = ""
    trusted_networks: Annotated[
        list[str],
        Meta(
            description="Clients whose mail is passed on unchecked and unstripped, such as our own MTAs in front; beside smtpd.trusted_networks.",
            extra={"check": _networks},
        ),
    ] = []
    dmarc: Annotated[
        Literal["none", "quarantine-tag", "reject"],
        Meta(
            description="What failing DMARC does at most: nothing; a tag where the domain asks for quarantine or reject; or refusal where it asks for that."
        ),
    ] = "none"
    trusted_sealers: Annotated[
        list[str],
        Meta(description="Domains whose ARC seal counts: mail that passed DMARC with them is not held to it here."),
    ] = []
    timeout_s: Annotated[
        float, Meta(gt=0, le=120, description="Time for all checks of a message; after it they are `temperror`.")
    ] = 10.0
    reports: Annotated[
        bool, Meta(description="Whether domains that ask for it get a DMARC report a day by mail.")
    ] = False
    report_address: Annotated[
        str, Meta(description="Sender of the reports; empty: postmaster of the primary domain.")
    ] = ""
    report_rows_mb: Annotated[
        int, Meta(ge=1, le=4096, description="Room for what one day's reports are made of; what comes after is left out.")
    ] = 16


class Dkim(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Signatures under mail that leaves by SMTP. Keys: iemsctl dkim."""

    sign: Annotated[
        bool,
        Meta(description="Whether mail of ours is signed, where the domain in From (or one above it) has an active key."),
    ] = True
    seal: Annotated[
        bool, Meta(description="Whether mail from outside that is forwarded gets an ARC seal; needs authres.verify.")
    ] = False
    seal_domain: Annotated[
        str, Meta(description="Domain whose key seals; empty: the primary domain.", extra={"check": _host_name})
    ] = ""


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of a home."""

    hostname: Annotated[
        str,
        Meta(
            min_length=1,
            description="Full name of this host, as greetings and Received lines show it.",
            extra={"check": _host_name},
        ),
    ] = "localhost"
    domain: Annotated[
        str,
        Meta(description="Primary local domain: completes names without one.", extra={"check": _host_name}),
    ] = ""
    master: Master = field(default_factory=Master)
    ports: Ports = field(default_factory=Ports)
    tls: Tls = field(default_factory=Tls)
    auth: Auth = field(default_factory=Auth)
    dns: Dns = field(default_factory=Dns)
    ldap: Ldap = field(default_factory=Ldap)
    log: Log = field(default_factory=Log)
    spool: Spool = field(default_factory=Spool)
    smtpd: Smtpd = field(default_factory=Smtpd)
    preprocessor: Preprocessor = field(default_factory=Preprocessor)
    attachment: Attachment = field(default_factory=Attachment)
    antivirus: Antivirus = field(default_factory=Antivirus)
    content: Content = field(default_factory=Content)
    milter: Milter = field(default_factory=Milter)
    lmda: Lmda = field(default_factory=Lmda)
    smtpc: Smtpc = field(default_factory=Smtpc)
    store: Store = field(default_factory=Store)
    imapd: Imapd = field(default_factory=Imapd)
    pop3d: Pop3d = field(default_factory=Pop3d)
    janitor: Janitor = field(default_factory=Janitor)
    bsmtp: Bsmtp = field(default_factory=Bsmtp)
    authres: Authres = field(default_factory=Authres)
    dkim: Dkim = field(default_factory=Dkim)
    sieved: Sieved = field(default_factory=Sieved)
    api: Api = field(default_factory=Api)

    def spool_path(self, home: Path) -> Path:
        """The spool's folder."""
        return home / self.spool.path

    def store_path(self, home: Path) -> Path:
        """The folder of the partitions."""
        return home / self.store.path


def tagging_settings(config: Config) -> list[str]:
    """Names of the settings under which a check at the door or a module tags mail."""
    smtpd = config.smtpd
    found = [f"smtpd.{name}" for name in smtpd.__struct_fields__ if name.startswith("check_") and getattr(smtpd, name) == "tag"]
    content = config.content
    actions = {content.action, *(text.split(" ", 1)[1] for text in content.channel_actions)}
    modules = {
        "content.action": bool(content.checker) and not actions.isdisjoint(("tag", "subject")),
        "authres.dmarc": config.authres.verify and config.authres.dmarc == "quarantine-tag",
        "attachment.unparsable": config.attachment.unparsable == "tag",
        "antivirus.infected": bool(config.antivirus.scanners) and config.antivirus.infected == "tag",
        "milter.rejected": bool(config.milter.milters) and config.milter.rejected == "tag",
    }
    return found + [name for name, tags in modules.items() if tags]


def load(path: Path | str) -> Config:
    """The settings in the TOML file `path`.

    Raises ConfigError with every problem of the file, each `FILE:LINE: KEY: what (did you mean K?)`.
    """
    try:
        octets = Path(path).read_bytes()
    except OSError as exc:
        raise ConfigError([f"{path}:1: -: can't be read: {exc.strerror}"]) from None
    return parse(octets, str(path))


def parse(octets: bytes, name: str) -> Config:
    """The settings in the TOML text `octets`; `name` stands for the file in problems. Raises ConfigError."""
    try:
        text = octets.decode("utf-8")
    except UnicodeDecodeError as exc:
        line = octets.count(b"\n", 0, exc.start) + 1
        raise ConfigError([f"{name}:{line}: -: not UTF-8 text"]) from None
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError([_syntax_problem(name, text, str(exc))]) from None
    lines = key_lines(text)
    problems: list[tuple[int, str]] = []

    def problem(key: tuple[str, ...], what: str) -> None:
        at = key
        while at and at not in lines:
            at = at[:-1]
        line = lines.get(at, 1)
        problems.append((line, f"{name}:{line}: {'.'.join(key)}: {what}"))

    config: Config = _build(Config, raw, (), problem)
    if not problems:
        for key, what in _contradictions(config):
            problem(key, what)
    if problems:
        raise ConfigError([text for _, text in sorted(problems, key=lambda item: item[0])])
    return config


def _syntax_problem(name: str, text: str, message: str) -> str:
    """A TOML syntax error as a problem line; tomllib says `... (at line 3, column 5)`."""
    found = re.search(r"\(at line (\d+), column \d+\)", message)
    if found:
        line, what = int(found[1]), message[: found.start()].strip()
    else:
        line, what = text.count("\n") + 1, message
    return f"{name}:{line}: -: not TOML: {what}"


def _contradictions(config: Config) -> list[tuple[tuple[str, ...], str]]:
    """Settings that are each right and don't fit together, as (key, what)."""
    found: list[tuple[tuple[str, ...], str]] = []
    if config.smtpc.resolution == "relay" and not config.smtpc.relay_hosts:
        found.append((("smtpc", "resolution"), "'relay' needs smtpc.relay_hosts"))
    if config.smtpc.resolution == "hosts" and not config.smtpc.host_table:
        found.append((("smtpc", "resolution"), "'hosts' needs smtpc.host_table"))
    if config.master.heartbeat_limit_s <= 2 * config.master.heartbeat_s:
        found.append((("master", "heartbeat_limit_s"), "must be more than twice master.heartbeat_s"))
    if config.master.respawn_max_s < config.master.respawn_min_s:
        found.append((("master", "respawn_max_s"), "must not be below master.respawn_min_s"))
    for profile in config.bsmtp.pickup:
        if profile.relay and not (profile.key_file or config.bsmtp.key_file):
            found.append((("bsmtp", "pickup"), f"profile {profile.name!r}: relay needs a key"))
    if config.bsmtp.folder_relay and not config.bsmtp.key_file:
        found.append((("bsmtp", "folder_relay"), "needs bsmtp.key_file"))
    if config.bsmtp.enabled and not config.smtpd.enabled and any(profile.protocol == "odmr" for profile in config.bsmtp.pickup):
        found.append((("bsmtp", "pickup"), "protocol odmr needs smtpd, which takes the mail in"))
    if config.ports.odmr and not config.smtpc.enabled:
        found.append((("ports", "odmr"), "needs smtpc, which sends the mail"))
    if config.auth.oauth_client_secret_file and not config.auth.oauth_client_id:
        found.append((("auth", "oauth_client_secret_file"), "needs auth.oauth_client_id"))
    if config.ldap.password_file and not config.ldap.bind_dn:
        found.append((("ldap", "password_file"), "needs ldap.bind_dn"))
    if config.ldap.bind_dn and not config.ldap.password_file:
        # A bind with a name and no password is an anonymous one in disguise (RFC 4513 5.1.2).
        found.append((("ldap", "bind_dn"), "needs ldap.password_file"))
    if config.dkim.seal and not config.authres.verify:
        found.append((("dkim", "seal"), "needs authres.verify"))
    if config.authres.reports and not config.authres.verify:
        found.append((("authres", "reports"), "needs authres.verify"))
    if not config.content.inspector and "forward" in (config.content.action, *(text.split(" ")[-1] for text in config.content.channel_actions)):
        found.append((("content", "inspector"), "action forward needs it"))
    if config.api.enabled:
        served = {
            "LOCAL": config.lmda.enabled,
            "SMTPC": config.smtpc.enabled,
            "BSMTPOUT": config.bsmtp.enabled and config.bsmtp.encoder,
        }
        for name in config.api.take:
            if served.get(name):
                found.append((("api", "take"), f"{name} is taken by a role that is enabled"))
    if config.log.mail_old and 0 < config.log.rotate_octets < 10_240:
        found.append((("log", "rotate_octets"), "must be at least 10240 with log.mail_old: a log mail is logged too"))
    if config.store.workers > config.store.partitions:
        found.append((("store", "workers"), "must not be above store.partitions"))
    seen: dict[int, str] = {}
    for info in msgspec.structs.fields(Ports):
        if info.name in ("base", "bind", "backlog"):
            continue
        port = getattr(config.ports, info.name)
        if port and port in seen:
            found.append((("ports", info.name), f"the same port as ports.{seen[port]}"))
        elif port:
            seen[port] = info.name
    return found


def _build(
    cls: Any, raw: dict[str, Any], at: tuple[str, ...], problem: Callable[[tuple[str, ...], str], None]
) -> Any:
    """A `cls` from the table `raw` at key `at`; each bad key is reported and left at its default."""
    values: dict[str, Any] = {}
    declared = declarations(cls)
    for key, value in raw.items():
        where = (*at, key)
        setting = declared.get(key)
        if setting is None:
            problem(where, "unknown setting" + _suggestion(key, at, declared))
        elif setting.section is not None:
            if isinstance(value, dict):
                values[key] = _build(setting.section, value, where, problem)
            else:
                problem(where, "is a section: write [" + ".".join(where) + "]")
        else:
            try:
                values[key] = converted = msgspec.convert(value, setting.type, strict=True)
                if isinstance(converted, float) and not math.isfinite(converted):
                    raise ValueError("must be a finite number")
                if setting.check is not None:
                    setting.check(converted)
            except msgspec.ValidationError as exc:
                if table_of(setting.type) is not None:
                    problem(where, str(exc))
                    continue
                words = ", ".join(filter(None, (kind(setting.type, ""), limits(setting.meta))))
                article = "a " if words.startswith(("whole", "number", "list")) else ""
                problem(where, f"must be {article}{words}")
            except ValueError as exc:
                values.pop(key, None)
                problem(where, str(exc))
    return cls(**values)


def _suggestion(key: str, at: tuple[str, ...], declared: dict[str, Setting]) -> str:
    """` (did you mean K?)` for an unknown key: among its siblings, else the same name in another section."""
    near = difflib.get_close_matches(key, declared, 1, 0.6)
    if near:
        return f" (did you mean {'.'.join((*at, near[0]))}?)"
    everywhere = {name: key_of for key_of, name, _ in walk()}
    for name, key_of in everywhere.items():
        if name == key:
            return f" (did you mean {key_of}?)"
    near = difflib.get_close_matches(key, everywhere, 1, 0.75)
    return f" (did you mean {everywhere[near[0]]}?)" if near else ""


class Setting(Struct, frozen=True):
    """One declared setting. type: for msgspec.convert. section: its Struct if it is a section. check: raises ValueError."""

    name: str
    type: Any
    description: str
    default: Any
    section: Any = None
    check: Callable[[Any], None] | None = None
    meta: Any = None


_DECLARED: dict[Any, dict[str, Setting]] = {}


def declarations(cls: Any) -> dict[str, Setting]:
    """Name -> declaration of each field of the section `cls`, in order."""
    known = _DECLARED.get(cls)
    if known is not None:
        return known
    hints = typing.get_type_hints(cls, include_extras=True)
    result: dict[str, Setting] = {}
    for info in msgspec.structs.fields(cls):
        hint = hints[info.name]
        description, check, meta = "", None, None
        if typing.get_origin(hint) is Annotated:
            for note in hint.__metadata__:
                if isinstance(note, Meta):
                    meta = note
                    description = note.description or description
                    check = (note.extra or {}).get("check", check)
        default = info.default if info.default is not msgspec.NODEFAULT else None
        if info.default_factory is not msgspec.NODEFAULT:
            default = info.default_factory()
        section = hint if isinstance(hint, type) and issubclass(hint, Struct) else None
        if section is not None:
            description = (section.__doc__ or "").strip()
        result[info.name] = Setting(info.name, hint, description, default, section, check, meta)
    _DECLARED[cls] = result
    return result


def walk() -> list[tuple[str, str, Setting]]:
    """(full key, name, declaration) of every setting, sections left out."""
    found: list[tuple[str, str, Setting]] = []

    def visit(cls: Any, at: tuple[str, ...]) -> None:
        for setting in declarations(cls).values():
            if setting.section is not None:
                visit(setting.section, (*at, setting.name))
            else:
                found.append((".".join((*at, setting.name)), setting.name, setting))

    visit(Config, ())
    return found


# --- where a key stands in the text: tomllib keeps no line numbers

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """The line (from 1) each key and table of valid TOML stands on; the first one if it is repeated."""
    return _Scanner(text).scan()


class _Scanner:
    """Walks TOML that tomllib has already found valid, looking only for keys and ends of values."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found: dict[tuple[str, ...], int] = {}

    def scan(self) -> dict[tuple[str, ...], int]:
        prefix: tuple[str, ...] = ()
        while True:
            self._skip_blank()
            if self.at >= len(self.text):
                return self.found
            start = self.at
            if self.text[self.at] == "[":
                self.at += 2 if self.text.startswith("[[", self.at) else 1
                prefix = self._key()
                self._note(prefix, start)
                self._to_line_end()
            else:
                self._pair(prefix)
                self._to_line_end()

    def _note(self, key: tuple[str, ...], offset: int) -> None:
        self.found.setdefault(key, self.text.count("\n", 0, offset) + 1)

    def _skip_blank(self) -> None:
        text = self.text
        while self.at < len(text):
            if text[self.at] in " \t\r\n":
                self.at += 1
            elif text[self.at] == "#":
                self._to_line_end()
            else:
                return

    def _to_line_end(self) -> None:
        end = self.text.find("\n", self.at)
        self.at = len(self.text) if end < 0 else end + 1

    def _spaces(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in " \t":
            self.at += 1

    def _key(self) -> tuple[str, ...]:
        parts: list[str] = []
        while True:
            self._spaces()
            if self.text[self.at] in "\"'":
                start = self.at
                self._string()
                parts.append(tomllib.loads("k=" + self.text[start : self.at])["k"])
            else:
                bare = _BARE_KEY.match(self.text, self.at)
                if bare is None:
                    return tuple(parts)
                parts.append(bare[0])
                self.at = bare.end()
            self._spaces()
            if self.at < len(self.text) and self.text[self.at] == ".":
                self.at += 1
                continue
            return tuple(parts)

    def _pair(self, prefix: tuple[str, ...]) -> None:
        start = self.at
        key = (*prefix, *self._key())
        self._note(key, start)
        self._spaces()
        self.at += 1  # the equals sign
        self._value(key)

    def _string(self) -> None:
        quote = self.text[self.at]
        ends = quote * 3 if self.text.startswith(quote * 3, self.at) else quote
        self.at += len(ends)
        while not self.text.startswith(ends, self.at):
            self.at += 2 if quote == '"' and self.text[self.at] == "\\" else 1
        self.at += len(ends)
        # A multi-line string may end in up to two quotes of its own ("""a""""").
        while len(ends) == 3 and self.text.startswith(quote, self.at):
            self.at += 1

    def _value(self, key: tuple[str, ...]) -> None:
        self._spaces()
        char = self.text[self.at]
        if char in "\"'":
            self._string()
        elif char == "[":
            self.at += 1
            while True:
                self._skip_blank()
                if self.text[self.at] == "]":
                    self.at += 1
                    return
                if self.text[self.at] == ",":
                    self.at += 1
                else:
                    self._value(key)
        elif char == "{":
            self.at += 1
            while True:
                self._skip_blank()
                if self.text[self.at] == "}":
                    self.at += 1
                    return
                if self.text[self.at] == ",":
                    self.at += 1
                else:
                    self._pair(key)
        else:
            while self.at < len(self.text) and self.text[self.at] not in ",]}#\r\n":
                self.at += 1


# --- text made from the declarations


def toml_value(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:_}" if abs(value) >= 100_000 else str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, Struct):
        pairs = msgspec.structs.asdict(value).items()
        return "{ " + ", ".join(f"{name} = {toml_value(item)}" for name, item in pairs) + " }"
    return msgspec.json.encode(value).decode()


def table_of(hint: Any) -> Any:
    """The Struct of whose tables a list holds any number, or None."""
    if typing.get_origin(hint) is Annotated:
        return table_of(typing.get_args(hint)[0])
    if typing.get_origin(hint) is not list:
        return None
    element = typing.get_args(hint)[0]
    return element if isinstance(element, type) and issubclass(element, Struct) else None


def kind(hint: Any, quote: str = "`") -> str:
    """A type in words; `quote` goes round literal values."""
    if typing.get_origin(hint) is Annotated:
        return kind(typing.get_args(hint)[0], quote)
    origin = typing.get_origin(hint)
    if origin is Literal:
        return " or ".join(f"{quote}{toml_value(choice)}{quote}" for choice in typing.get_args(hint))
    if table_of(hint) is not None:
        return "tables"
    if origin is list:
        return "list of " + kind(typing.get_args(hint)[0], quote)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(kind(part, quote) for part in typing.get_args(hint))
    return {bool: "true or false", int: "whole number", float: "number", str: "text"}.get(hint, str(hint))


def limits(meta: Any) -> str:
    """The bounds a Meta sets, in words, or ''."""
    if meta is None:
        return ""
    words = []
    for name, sign in (("gt", ">"), ("ge", "at least"), ("lt", "<"), ("le", "at most")):
        bound = getattr(meta, name)
        if bound is not None:
            words.append(f"{sign} {toml_value(bound)}")
    if meta.min_length:
        words.append("not empty")
    if meta.max_length is not None:
        words.append(f"at most {meta.max_length} characters")
    return ", ".join(words)


def reference() -> str:
    """docs/config.md: every setting with type, bounds and default."""
    out = [
        "# Settings",
        "",
        "Every setting of `conf/iems.toml`. Made by `iemsctl config docs`; a test compares this page with the",
        "declarations in `iems/config.py`. `iemsctl config check FILE` names every error of a file at once;",
        "`iemsctl reload` takes a changed file up and keeps the old settings if the new ones are wrong.",
        "",
    ]

    def table(cls: Any) -> None:
        rows = [setting for setting in declarations(cls).values() if setting.section is None]
        if not rows:
            return
        out.extend(["| setting | type | default | meaning |", "|---|---|---|---|"])
        for setting in rows:
            bounds = limits(setting.meta)
            what = kind(setting.type) + (f" ({bounds})" if bounds else "")
            default = "needed" if setting.default is None else f"`{toml_value(setting.default)}`"
            cells = (f"`{setting.name}`", what, default, setting.description)
            out.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        out.append("")

    table(Config)
    for setting in declarations(Config).values():
        if setting.section is not None:
            out.extend([f"## [{setting.name}]", "", setting.description.splitlines()[0], ""])
            table(setting.section)
            for inner in declarations(setting.section).values():
                rows = table_of(inner.type)
                if rows is not None:
                    out.extend([f"## [[{setting.name}.{inner.name}]]", "", rows.__doc__.strip(), ""])
                    table(rows)
    return "\n".join(out).rstrip("\n") + "\n"


def sample(given: dict[str, Any] | None = None) -> str:
    """A configuration file: settings in `given` (full key -> value) are set, all others shown at their default."""
    given = given or {}
    out = [
        "# Settings of IEMS. A line that is commented out shows the default; docs/config.md explains each.",
        "# After a change: iemsctl config check, then iemsctl reload.",
        "",
    ]

    def table(cls: Any, at: str) -> None:
        for setting in declarations(cls).values():
            if setting.section is not None:
                continue
            key = at + setting.name
            out.append("# " + setting.description)
            if key in given:
                out.append(f"{setting.name} = {toml_value(given[key])}")
            else:
                out.append(f"#{setting.name} = {toml_value(setting.default)}")
        out.append("")

    table(Config, "")
    for setting in declarations(Config).values():
        if setting.section is not None:
            out.extend(["# " + setting.description.splitlines()[0], f"[{setting.name}]"])
            table(setting.section, setting.name + ".")
    return "\n".join(out).rstrip("\n") + "\n"
