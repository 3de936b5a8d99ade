"""IEMS: an Internet mail system. The folders follow the path of a message; see docs/architecture.md."""

__version__ = "0.1.0"
