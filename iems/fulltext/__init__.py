"""A disposable full-text index for SEARCH TEXT and BODY: which messages may hold a text, told without reading them.

`index` is one account's file, `building` fills it from the store, `finder` is what imapd talks to. The store never waits for it and
never needs it: a file that is missing, damaged or behind means that messages are read, as without it.
"""
