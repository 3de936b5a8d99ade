"""The message store: partitions written by role `store`, read in process by imapd and pop3d (design 4).

`keys` and `rows` say what is in the database, `partition` applies operations, `worker` serves them, `client` asks for
them, `reader` reads. Nothing here knows IMAP or SMTP beyond the form of a summary.
"""
