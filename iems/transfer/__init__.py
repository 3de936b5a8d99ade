"""Mail of an account to and from files: mbox, Maildir and .eml, one message in memory at a time.

`sources.py` reads files, `targets.py` writes them, `bring.py` puts messages into the store. Both ways can be repeated: what is there already is
not doubled.
"""
