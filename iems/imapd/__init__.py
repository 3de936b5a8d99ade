"""Role imapd: a session reads and changes the mailboxes of one account by IMAP4rev1 (RFC 3501).

`engine` is the protocol without I/O, `session` joins it to a stream, the directory and the store, `view` is a selected
mailbox, `commands/` has one command a file, `worker` the sockets and timers.
"""
