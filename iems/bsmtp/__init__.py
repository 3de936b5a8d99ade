"""Role `bsmtp`: mail for a domain or an address put into batches (RFC 2442), and batches picked up and undone.

`batch` is the format, `carrier` the message a batch travels in; both do no I/O. `memory` remembers what was taken in, `pickup`
decides what becomes of a fetched message, `worker` runs encoder, POP3 pick-up and the drop folder. docs/bsmtp.md.
"""
