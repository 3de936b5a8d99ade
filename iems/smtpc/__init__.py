"""Relay mail to other hosts: the last role on the path of a message that leaves (docs/architecture.md)."""
