"""Faults of ours and of the machine. Refusals that belong to a protocol are values (`model.Reply`), not exceptions."""


class IemsError(Exception):
    """Base of all faults raised by IEMS itself."""


class ConfigError(IemsError):
    """A configuration that can't be used; `problems` holds one `FILE:LINE: KEY: what` a line."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class SpoolError(IemsError):
    """The spool could not make a message durable; nothing of it counts."""


class SpoolFull(SpoolError):
    """No room (disk, inodes or the staging budget): the client may try again later (452)."""


class StoreError(IemsError):
    """The store refused or failed an operation; `code` is the IMAP response code (RFC 5530) or ''."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class StoreUnavailable(StoreError):
    """The store's writer can't be reached or its lane is full: try again later."""


class DirectoryUnavailable(IemsError):
    """The directory gave no answer: the caller must treat it as transient (451), never as 'unknown'."""


class LoginHeldBack(DirectoryUnavailable):
    """Too many failed log-ins came from there: nothing was checked, the client may try again later."""
