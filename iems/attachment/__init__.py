"""Attachments of a message, seen as the most lenient mail program would see them, and rules about them.

`find.py` lists them, `sniff.py` tells what octets really are, `inside.py` looks into archives and TNEF, `rules.py` matches.
"""
