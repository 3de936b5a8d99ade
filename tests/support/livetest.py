"""Runs imapclient's live tests against a server: `python livetest.py INI [unittest arguments]`.

What keeps some of them from passing anywhere is put right first: an option read as if the options were a mapping, an envelope compared as the tuple
it no longer is, and MOVE by message numbers, which Python's imaplib doesn't know.
"""

from __future__ import annotations

import argparse
import imaplib
import unittest

from imapclient import livetest
from imapclient.response_types import Envelope

argparse.Namespace.__getitem__ = lambda self, name: getattr(self, name)  # type: ignore[attr-defined]
imaplib.IMAP4.move = lambda self, *arguments: self._simple_command("MOVE", *arguments)  # type: ignore[attr-defined]
imaplib.Commands.setdefault("MOVE", ("SELECTED",))
_sequences = unittest.TestCase.assertSequenceEqual


def _assert_sequence_equal(self, first, second, *rest, **more):
    if isinstance(first, Envelope):
        return self.assertEqual(first, second)
    return _sequences(self, first, second, *rest, **more)


unittest.TestCase.assertSequenceEqual = _assert_sequence_equal  # type: ignore[method-assign]

if __name__ == "__main__":
    livetest.main()
