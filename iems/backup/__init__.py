"""Backups of a home while it works: mailboxes, directory and settings, incremental, verified; restored whole or in parts.

A backup folder holds each content file once (`blobs/pN`) and for each snapshot the rows (`snapshots/TIME`): `snapshot.py` makes and checks them,
`restore.py` brings them back.
"""
