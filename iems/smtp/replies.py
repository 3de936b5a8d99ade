"""Every reply the server gives, with its enhanced status (RFC 5321 4.2, 3463, 5248), and how one looks on the wire."""

from __future__ import annotations

from iems.model import Reply

# --- 2xx and 3xx
OK = Reply(250, 0, 0, "OK")
SENDER_OK = Reply(250, 1, 0, "Sender OK")
RECIPIENT_OK = Reply(250, 1, 5, "Recipient OK")
ETRN_STARTED = Reply(252, 0, 0, "OK, pending messages for this node started")
REVERSING = Reply(250, 0, 0, "OK now reversing the connection")
FLUSHED = Reply(250, 0, 0, "Transaction dropped")
CLOSING = Reply(221, 0, 0, "Goodbye")
TLS_READY = Reply(220, 0, 0, "Ready to start TLS")
AUTHENTICATED = Reply(235, 7, 0, "Authentication succeeded")
CANNOT_VERIFY = Reply(252, 1, 5, "Cannot VRFY user, but will take the message and try to deliver it")
VERIFIED = Reply(250, 1, 5, "Mail for this address is accepted")
HELP = Reply(
    214,
    0,
    0,
    "EHLO HELO MAIL RCPT DATA BDAT RSET NOOP VRFY EXPN ETRN HELP QUIT STARTTLS AUTH\nSee RFC 5321",
)
START_CONTENT = Reply(354, 0, 0, "Send the message, end with CRLF.CRLF")

# --- 4xx: the client may try again
SHUTTING_DOWN = Reply(421, 3, 2, "Service shutting down, try again later")
TIMEOUT = Reply(421, 4, 2, "Timeout, closing the connection")
TOO_MANY_SESSIONS = Reply(421, 7, 0, "Too many sessions, try again later")
TOO_MANY_OF_CLIENT = Reply(421, 7, 0, "Too many sessions from your address or network, try again later")
TOO_FAST = Reply(421, 7, 0, "Too many connections from your address in a minute, try again later")
TOO_MANY_MESSAGES = Reply(450, 7, 1, "Too many messages from your address in a minute, try again later")
TOO_MANY_IN_A_MINUTE = Reply(450, 7, 1, "Too many recipients from your address in a minute, try again later")
SENDER_LIMIT = Reply(450, 7, 1, "Too many recipients for now, try again later")
MAILMAX = Reply(421, 7, 0, "Too many messages in this session, go on in another one")
OVERLOADED = Reply(421, 3, 2, "System short of memory, try again later")
SHORT_OF_MEMORY = Reply(452, 3, 1, "System short of memory, try again later")
TOO_MANY_ERRORS = Reply(421, 7, 0, "Too many errors, closing the connection")
TOO_MANY_LOGIN_FAILURES = Reply(421, 7, 0, "Too many failed logins, closing the connection")
LOCAL_ERROR = Reply(451, 3, 0, "Local error, try again later")
CANNOT_CHECK = Reply(451, 4, 3, "The recipient can't be checked for now, try again later")
DIRECTORY_AWAY = Reply(451, 3, 0, "The directory does not answer, try again later")
SYSTEM_FULL = Reply(452, 3, 1, "Mail system full, try again later")
TOO_MANY_RECIPIENTS = Reply(452, 5, 3, "Too many recipients, send the rest in another transaction")
TOO_MANY_DOMAINS = Reply(452, 5, 3, "Too many domains, send the rest in another session")
NODE_NOT_NOW = Reply(458, 3, 0, "Unable to queue messages for this node, try again later")
NODE_NOT_ALLOWED = Reply(459, 7, 1, "Mail for this node is not kept here")
ATRN_REFUSED = Reply(450, 7, 1, "ATRN request refused")
ATRN_NOT_NOW = Reply(451, 3, 0, "Unable to process ATRN request now")
NO_MAIL_WAITS = Reply(453, 0, 0, "You have no mail")
TLS_UNAVAILABLE = Reply(454, 7, 0, "TLS not available for now")
AUTH_HELD_BACK = Reply(454, 7, 0, "Too many failed logins from your network, try again later")
AUTH_UNAVAILABLE = Reply(454, 7, 0, "Authentication not available for now, try again later")

# --- 5xx: syntax and sequence
UNKNOWN_COMMAND = Reply(500, 5, 1, "Command not known")
BARE_LINE_END = Reply(500, 5, 2, "A command line ends with CRLF and holds no other CR, LF or NUL")
LINE_TOO_LONG = Reply(500, 5, 2, "Line too long")
AUTH_LINE_TOO_LONG = Reply(500, 5, 6, "Authentication exchange line too long")
SYNTAX = Reply(501, 5, 4, "Syntax error in parameters")
NO_ARGUMENT = Reply(501, 5, 4, "The command takes no argument")
BAD_HELLO = Reply(501, 5, 4, "A domain or an address literal is expected")
BAD_SENDER = Reply(501, 1, 7, "Bad sender address syntax: MAIL FROM:<address> is expected")
BAD_RECIPIENT = Reply(501, 1, 3, "Bad recipient address syntax: RCPT TO:<address> is expected")
BAD_SIZE = Reply(501, 5, 4, "BDAT needs a size and may have LAST, closing the connection")
BAD_PARAMETER = Reply(501, 5, 4, "A parameter has a value it can't have")
DUPLICATE_PARAMETER = Reply(501, 5, 4, "A parameter is given twice")
UNKNOWN_PARAMETER = Reply(555, 5, 4, "Parameter not known")
NOT_IMPLEMENTED = Reply(502, 5, 1, "Command not implemented")
USE_LHLO = Reply(500, 5, 1, "This is LMTP: say LHLO")
LHLO_IS_LMTP = Reply(500, 5, 1, "This is SMTP: say EHLO")
HELLO_FIRST = Reply(503, 5, 1, "Say EHLO first")
BAD_SEQUENCE = Reply(503, 5, 1, "Bad sequence of commands")
NEED_MAIL = Reply(503, 5, 1, "MAIL first")
NESTED_MAIL = Reply(503, 5, 1, "A transaction is open already")
NEED_RCPT = Reply(503, 5, 1, "RCPT first")
NO_VALID_RECIPIENTS = Reply(554, 5, 1, "No valid recipients")
BINARY_NEEDS_BDAT = Reply(503, 5, 1, "BODY=BINARYMIME needs BDAT")
UNQUALIFIED = Reply(553, 5, 4, "The address has no domain")
NEED_SMTPUTF8 = Reply(553, 6, 7, "The address needs SMTPUTF8")

# --- 5xx: policy and content
NO_XCLIENT = Reply(550, 7, 0, "XCLIENT is not for this client")
NEED_AUTH = Reply(530, 7, 0, "Authentication required")
NEED_TLS = Reply(530, 7, 0, "Must issue a STARTTLS command first")
AUTH_NEEDS_TLS = Reply(538, 7, 11, "Encryption required for authentication")
BAD_CREDENTIALS = Reply(535, 7, 8, "Authentication credentials invalid")
AUTH_CANCELLED = Reply(501, 7, 0, "Authentication cancelled")
BAD_BASE64 = Reply(501, 5, 2, "Cannot decode the authentication response")
UNKNOWN_MECHANISM = Reply(504, 5, 4, "Authentication mechanism not known")
AUTH_TWICE = Reply(503, 5, 1, "Already authenticated")
TLS_TWICE = Reply(503, 5, 1, "TLS is active already")
NOT_YOUR_SENDER = Reply(553, 7, 1, "The sender's address does not belong to the user who logged in")
NOT_YOUR_FROM = Reply(553, 7, 1, "The field From names an address that does not belong to the user who logged in")
FROM_UNSEEN = Reply(554, 6, 0, "The header is too long for a look at its field From")
NO_SUCH_USER = Reply(550, 1, 1, "No such user here")
RELAYING_DENIED = Reply(550, 7, 1, "relaying denied")
NO_EXPANSION = Reply(550, 7, 2, "List expansion not allowed")
TOO_BIG = Reply(552, 3, 4, "Message larger than the limit")
BARE_CONTENT = Reply(554, 6, 0, "The content has a bare CR, a bare LF or a NUL; lines end with CRLF")
CONTENT_LINE_TOO_LONG = Reply(554, 6, 0, "The content has a line longer than the limit")
EMPTY_CONTENT = Reply(554, 6, 0, "The message is empty")

_CONTROLS = dict.fromkeys((*range(32), 127))


def wire(reply: Reply) -> bytes:
    """The octets of a reply, CRLF included. A line feed in the text makes it a multiline reply.

    No status on 3xx (RFC 2034 4); control characters are dropped and what is not ASCII becomes `?`, so nothing that a
    peer wrote can end a line.
    """
    return _WIRE.get(id(reply)) or _remembered(reply, _format(reply))


def _format(reply: Reply) -> bytes:
    code, subject, detail, text = reply.code, reply.subject, reply.detail, reply.text
    status = "" if code // 100 == 3 or code == 220 else f"{code // 100}.{subject}.{detail} "
    if text.isprintable() and text.isascii():
        return f"{code} {status}{text}\r\n".encode()
    lines = text.split("\n")
    out = [
        f"{code}{' ' if number == len(lines) else '-'}{status}{line.translate(_CONTROLS)}".encode(
            "ascii", "replace"
        )
        for number, line in enumerate(lines, 1)
    ]
    return b"\r\n".join(out) + b"\r\n"


#: Constants are formatted once. They live as long as the module, so nothing else can have their identity.
_WIRE: dict[int, bytes] = {
    id(value): _format(value) for value in list(globals().values()) if isinstance(value, Reply)
}
#: Refusals made elsewhere and formatted lately: kept alive, for the same reason.
_LATELY: list[Reply] = []
_MOST_LATELY = 256
#: Replies as logs show them.
_SAID: dict[int, str] = {
    id(value): f"{value.code} {value.status} {value.text}" for value in list(globals().values()) if isinstance(value, Reply)
}


def _remembered(reply: Reply, octets: bytes) -> bytes:
    """Keep the octets of a refusal that is likely to be given again, such as the directory's."""
    if reply.code >= 400:
        if len(_LATELY) >= _MOST_LATELY:
            for old in _LATELY:
                _WIRE.pop(id(old), None)
                _SAID.pop(id(old), None)
            _LATELY.clear()
        _LATELY.append(reply)
        _WIRE[id(reply)] = octets
        _SAID[id(reply)] = f"{reply.code} {reply.status} {reply.text}"
    return octets


def said(reply: Reply) -> str:
    """A reply as logs show it: `550 5.1.1 No such user here`."""
    return _SAID.get(id(reply)) or f"{reply.code} {reply.status} {reply.text}"


def queued(message_id: str) -> Reply:
    """The 250 after content; the id is the one in Received, log and trace."""
    return Reply(250, 0, 0, "queued as " + message_id)


def etrn_done(node: str, waiting: int) -> Reply:
    """The answer to ETRN (RFC 1985 5.3): 251 if nothing waits for the node, else 253 with how much."""
    if not waiting:
        return Reply(251, 0, 0, f"OK, no messages waiting for node {node}")
    return Reply(253, 0, 0, f"OK, {waiting} pending messages for node {node} started")
