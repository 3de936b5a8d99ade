"""IMAP vocabulary (RFC 3501): grammar, sequence sets, mailbox names, flags, response syntax, search keys.

No I/O and no state: `imapd` builds its engine and commands from it.
"""
