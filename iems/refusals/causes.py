"""What a refusal means and what to do about it, in words for the sender and for the administrator.

A rule is the name of the check that refused (`ban`, `dnsbl`, `helo`, ...), or else that of the reply in `iems/smtp/replies.py`
(`no-such-user`). A rule nobody has written about is explained by its enhanced status (RFC 3463).
"""

from __future__ import annotations

from typing import NamedTuple

from iems.model import Reply
from iems.smtp import replies


class Cause(NamedTuple):
    """why: what the rule found. sender, administrator: what each can do."""

    why: str
    sender: str
    administrator: str


_LATER = "Nothing: your mail server tries again by itself."
_ASK = "Ask the recipient, or the postmaster of the recipient's domain, another way; give the id of this refusal."

_BY_RULE = {
    "no-such-user": Cause(
        "The recipient is not known here.",
        "Check the address for a typing error. If it used to work, the mailbox is gone: ask the recipient for the new address.",
        "`iemsctl route explain ADDRESS` shows each look-up. Add the account (iemsuser create) or an alias (iemsctl alias add) if there should be one.",
    ),
    "relaying-denied": Cause(
        "The recipient's domain is not served here, and the client may not send to others through this server.",
        "Send through the server of your own provider; if that is this one, log in (submission port 587 or 465).",
        "For a client of ours: have it log in, or add its network to smtpd.trusted_networks. For a domain of ours: iemsctl domain add, or iemsctl forward set.",
    ),
    "ban": Cause(
        "The client's address, or the sender's address or domain, is on the list of the banned.",
        _ASK,
        "`iemsctl ban list` shows the entry; `iemsctl ban remove` lifts it. smtpd.ban_places says where senders are looked for.",
    ),
    "dnsbl": Cause(
        "A DNS block list names the client's address.",
        "Ask your mail provider to have the address taken off the list; the reply names the list.",
        "`iemsctl dnsbl list` shows the lists in use; smtpd.dnsbl_allow spares networks; --action tag lets mail in with a note.",
    ),
    "sender-domain": Cause(
        "The sender's domain has neither mail exchanger nor address, or takes no mail: nobody could answer.",
        "Use a sender address that can get mail, or have the DNS of your domain put right.",
        "smtpd.check_sender_domain decides; `tag` lets such mail in with a note.",
    ),
    "client-name": Cause(
        "The client's address has no name in DNS that leads back to it.",
        "Ask the owner of the sending server to set its reverse DNS.",
        "smtpd.check_client_name decides; smtpd.trusted_networks spares networks.",
    ),
    "helo": Cause(
        "The name the client gave in HELO or EHLO is malformed or not in DNS.",
        "Ask the owner of the sending server to give it its full name.",
        "smtpd.check_helo decides; smtpd.trusted_networks spares networks.",
    ),
    "unqualified": Cause(
        "An address without a domain.",
        "Write the whole address, with @ and the domain.",
        "smtpd.qualify completes such addresses; smtpd.check_unqualified decides.",
    ),
    "peer": Cause(
        "The profile of the client's domain does not let it send here.",
        _ASK,
        "`iemsctl peer list` shows the profiles; `iemsctl peer set DOMAIN --accept on` lets it in.",
    ),
    "too-big": Cause(
        "The message is larger than what is taken.",
        "Send less at once, or send large files another way.",
        "smtpd.size_limit, and the limits of peer profiles (`iemsctl peer list`), decide.",
    ),
    "bare-content": Cause(
        "The content has a bare CR, a bare LF or a NUL: another server could read two messages in it.",
        "Ask the maker of your mail program or the owner of the sending server: lines must end with CRLF.",
        'smtpd.bare_lf = "normalise" mends such content instead.',
    ),
    "content-line-too-long": Cause(
        "A line of the message is longer than what is taken.",
        "Have your mail program encode long lines (quoted-printable or base64).",
        "smtpd.content_line_octets decides.",
    ),
    "empty-content": Cause("The message has no octets.", "Send the message again.", "Nothing to do here."),
    "too-many-recipients": Cause(
        "The message has more recipients than are taken at once.",
        "Nothing: your mail server sends the rest by itself. Else send to fewer at once.",
        "smtpd.max_recipients decides.",
    ),
    "no-valid-recipients": Cause(
        "All recipients before had been refused.",
        "See the refusals of the recipients.",
        "See the refusals just before this one: `iemsctl refusal list --client ADDRESS`.",
    ),
    "need-auth": Cause(
        "Mail is submitted on this port only after a login.",
        "Set name and password for outgoing mail in your mail program.",
        "The user's program must log in; mail between servers goes to port 25.",
    ),
    "need-tls": Cause(
        "A password is taken over an encrypted connection only.",
        "Turn on STARTTLS or SSL/TLS for outgoing mail in your mail program.",
        "auth.plaintext says from where passwords may come without TLS.",
    ),
    "bad-credentials": Cause(
        "The login name or the password is wrong, or the account may not log in.",
        "Check name (the whole address) and password in your mail program.",
        "`iemsuser list` shows whether the account is there and enabled; `iemsuser passwd ADDRESS` sets a new password.",
    ),
    "too-many-login-failures": Cause(
        "Too many logins with wrong passwords in one session.",
        "Check name and password in your mail program.",
        "auth.max_failures decides. Many of these from one address are somebody guessing: `iemsctl refusal list --client ADDRESS`.",
    ),
    "too-many-sessions": Cause(
        "As many sessions are open as are allowed, or as there are descriptors.",
        _LATER,
        "smtpd.max_sessions decides; `iemsctl status` shows how many are open.",
    ),
    "too-many-errors": Cause(
        "The client sent too many commands that were refused.",
        "See the first refusals of the session.",
        "smtpd.max_errors decides; the refusals before tell what it tried: `iemsctl refusal list --client ADDRESS`.",
    ),
    "timeout": Cause(
        "The client was silent for too long, or a message took too long.",
        _LATER,
        "smtpd.line_timeout_s, data_timeout_s and content_deadline_s decide. Large mail that never arrives: look for a path-MTU problem.",
    ),
    "shutting-down": Cause("The server was stopped or restarted.", _LATER, "Nothing to do."),
    "local-error": Cause(
        "A fault of this server.", _LATER, "The cause is in log/mail.log, event `error`, at the same second; see also `iemsctl doctor`."
    ),
    "directory-away": Cause(
        "The directory did not answer.", _LATER, "`iemsctl doctor`, and the events `error` in log/mail.log at that time."
    ),
    "cannot-check": Cause(
        "The server that knows the recipient (the one behind this one, or an LDAP server) did not answer.",
        _LATER,
        "Is that server up? `iemsctl forward list` shows how the domain is checked, `iemsctl route explain ADDRESS --hosts` the server behind; for LDAP see "
        "[ldap] and the events `error` in log/mail.log.",
    ),
    "atrn-refused": Cause(
        "A site asked for mail of a domain that is not its own here.",
        "Nothing to do.",
        "The table [[smtpd.odmr]] says which account fetches which domains; the account must be entitled to all that it names.",
    ),
    "atrn-not-now": Cause(
        "The relay took no connection that a site had turned round.", _LATER, "Is smtpc running? `iemsctl status`; events `error` in log/mail.log."
    ),
    "system-full": Cause(
        "No room for more mail, on the disk or in memory.", _LATER, "Make room on the volume of the spool; `iemsctl doctor` shows what is left."
    ),
    "tls-unavailable": Cause("TLS could not be offered.", _LATER, "Check the certificate: `iemsctl doctor`."),
    "auth-unavailable": Cause(
        "Logins could not be checked.", _LATER, "The cause is in log/mail.log, event `error`; for tokens, does the server of auth.oauth_introspection answer?"
    ),
    "bad-sender": Cause(
        "The sender's address is malformed.", "Check the sender address of your mail program.", "Nothing to do: the client's fault."
    ),
    "bad-recipient": Cause(
        "The recipient's address is malformed.", "Check the address for a typing error.", "Nothing to do: the client's fault."
    ),
    "need-smtputf8": Cause(
        "The address has letters beyond ASCII, and the client did not announce such mail (SMTPUTF8).",
        "Use the recipient's plain address, or a mail server that can send such mail.",
        "Nothing to do: the client's fault.",
    ),
    "flood": Cause(
        "So many malformed or untimely commands came at once, from so many clients, that one record stands for all of them within a minute. "
        "The reply shown is that of the first one.",
        "Nothing to do with a message: have the program that was used looked at if it was yours.",
        "event `connected` in log/mail.log (log.level = informational) has the clients; `iemsctl ban add` keeps them out.",
    ),
    "no-mail-waits": Cause(
        "A site asked for its mail (ATRN), and nothing waited.", "Nothing to do.", "Nothing to do; `iemsctl queue destinations` shows what waits."
    ),
    "no-expansion": Cause("Members of a list are not told.", "Nothing to do.", "EXPN is always refused."),
}

_BY_STATUS = {
    (1, 1): _BY_RULE["no-such-user"],
    (2, 1): Cause(
        "The recipient's mailbox is disabled, or takes no mail.",
        _ASK,
        "`iemsuser list` shows whether the account is enabled; `iemsctl route explain ADDRESS` shows each look-up.",
    ),
    (4, 6): Cause(
        "The recipient's address leads back to itself.", _ASK, "`iemsctl route explain ADDRESS` shows the loop; mend the alias or forward."
    ),
    (5, 3): Cause(
        "The recipient's address stands for too many.", _ASK, "`iemsctl route explain ADDRESS` shows what the alias leads to."
    ),
    (5, 1): Cause(
        "The command is not known, is not done here, or came out of order. One record stands for all such replies to the client within a minute.",
        "Nothing to do with a message: the program that talked to the server does not keep to SMTP.",
        "The client's fault. With log.level = sessions its dialogue stands in log/mail.log.",
    ),
    (5, 2): Cause(
        "A line is too long, or does not end as lines have to. One record stands for all such replies to the client within a minute.",
        "Nothing to do with a message: the program that talked to the server does not keep to SMTP.",
        "The client's fault. With log.level = sessions its dialogue stands in log/mail.log.",
    ),
    (5, 4): Cause(
        "An argument or parameter of a command can't be read, or has a value that it can't have. One record may stand for all such replies to the "
        "client within a minute.",
        "Nothing to do with a message: the program that talked to the server does not keep to SMTP.",
        "The client's fault. With log.level = sessions its dialogue stands in log/mail.log.",
    ),
    (3, 1): _BY_RULE["system-full"],
    (3, 4): _BY_RULE["too-big"],
}


def _names() -> dict[Reply, str]:
    """The replies that have a name of their own, by what they say."""
    return {
        value: name.lower().replace("_", "-") for name, value in vars(replies).items() if isinstance(value, Reply)
    }


_NAMES = _names()
#: The same by identity: these live for ever.
_QUICK = {id(reply): name for reply, name in _NAMES.items()}


def rule_of(reply: Reply) -> str:
    """The rule behind a reply that no check has signed; "" if it is none of ours by name."""
    return _QUICK.get(id(reply)) or _NAMES.get(reply, "")


def explain(reply: Reply, rule: str) -> Cause:
    """What a refusal means and what to do."""
    found = _BY_RULE.get(rule) or _BY_STATUS.get((reply.subject, reply.detail))
    if found is not None:
        return found
    if reply.transient:
        return Cause(f"{reply.text}.", _LATER, "See log/mail.log at that time: event `refused`, or `error` for a fault of ours.")
    return Cause(f"{reply.text}.", _ASK, "See log/mail.log at that time: event `refused` names what refused it.")
