"""Mail made for load parses, machine figures are plausible."""

import email
import os
import random

import pytest

from iems.perf import machine, messages


@pytest.mark.parametrize("octets", [4096, 50_000, 250_000])
def test_messages_have_their_size_and_parse(octets):
    for whole, mark in messages.pool(octets, 4):
        assert abs(len(whole) - octets) < max(600, octets * 0.05)
        assert whole[mark : mark + 16] == b"0" * 16
        parsed = email.message_from_bytes(whole)
        assert [part.get_content_type() for part in parsed.walk()] == [
            "multipart/mixed", "text/plain", "application/octet-stream",
        ]  # fmt: skip
        assert not parsed.defects
        assert whole.endswith(b"\r\n") and b"\r\n.\r\n" not in whole and b"\n" not in whole.replace(b"\r\n", b"")


def test_pool_is_repeatable():
    assert messages.pool(4096, 2) == messages.pool(4096, 2)
    assert messages.text(random.Random(1), 100)


def test_machine_figures(tmp_path):
    about = machine.describe(tmp_path)
    assert about["cores"] >= 1 and about["filesystem"]
    assert machine.flushes_per_s(tmp_path, 0.05) > 0
    assert machine.loopback_mb_per_s(0.05) > 1
    before = machine.cpu_s([os.getpid()])
    sum(range(3_000_000))
    assert machine.cpu_s([os.getpid()]) > before
    assert machine.memory_octets([os.getpid()])["pss"] > 1_000_000
