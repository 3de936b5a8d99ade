"""Old logs: sent once, bounded, kept or not; and a mail about a log is never the cause of another."""

from __future__ import annotations

import asyncio
import email
import gzip
import os
from types import SimpleNamespace

import pytest

from iems.config import Config, Log
from iems.errors import SpoolFull
from iems.janitor import oldlogs
from iems.janitor.oldlogs import OldLogs
from iems.model import Channel


class FakeSpool:
    def __init__(self):
        self.messages = []
        self.full = False

    def new_id(self):
        return len(self.messages).to_bytes(16, "big")

    async def append(self, messages):
        if self.full:
            return [SpoolFull("full")]
        self.messages += messages
        return [None]


def home(tmp_path, **settings):
    (tmp_path / "log").mkdir(exist_ok=True)
    events: list[str] = []
    ctx = SimpleNamespace(
        home=tmp_path, hostname="mx.test", config=Config(hostname="mx.test", domain="load.test", log=Log(**settings)),
        log=SimpleNamespace(event=lambda name, *_, **__: events.append(name)),
    )  # fmt: skip
    return ctx, FakeSpool(), events


def rotated(tmp_path, text):
    """A full log was renamed; those before it moved up."""
    log = tmp_path / "log"
    numbers = sorted((int(p.suffix[1:]) for p in log.glob("mail.log.*")), reverse=True)
    for number in numbers:
        os.rename(log / f"mail.log.{number}", log / f"mail.log.{number + 1}")
    (log / "mail.log.1").write_bytes(text)
    os.utime(log / "mail.log.1", (1, 1))


def sent(spool):
    found = []
    for message in spool.messages:
        assert message.envelope.reverse_path == b"" and message.envelope.input_channel == Channel.MTA
        assert message.envelope.recipients[0].address == b"postmaster@load.test"
        parsed = email.message_from_bytes(b"".join(message.content))
        assert parsed["Auto-Submitted"] == "auto-generated"
        found.append(parsed.get_payload()[1])
    return found


def rounds(ctx, spool, number=1):
    for _ in range(number):
        asyncio.run(OldLogs(ctx, spool).round())


def test_each_log_is_sent_once(tmp_path):
    ctx, spool, events = home(tmp_path, mail_old=True)
    rotated(tmp_path, b"before it was turned on\n")
    rounds(ctx, spool, 2)
    assert spool.messages == []
    rotated(tmp_path, b"one \xff\n")
    rounds(ctx, spool, 3)
    rotated(tmp_path, b"two\n")
    rotated(tmp_path, b"three\n")
    rounds(ctx, spool, 2)
    assert [part.get_payload(decode=True).strip() for part in sent(spool)] == [b"one \\xff", b"two", b"three"]
    with open(tmp_path / "log/mail.log.1", "ab") as late:
        late.write(b"a worker that had not noticed\n")
    rotated(tmp_path, b"four\n")
    os.utime(tmp_path / "log/mail.log.1")  # somebody may still write it
    rounds(ctx, spool, 2)
    os.unlink(tmp_path / "log/mail.log.1")
    assert events == ["log-mailed"] * 3 and len(list((tmp_path / "log").glob("mail.log.*"))) == 4


def test_not_kept_on_the_disk(tmp_path):
    ctx, spool, _ = home(tmp_path, mail_old=True, keep_old=False)
    rotated(tmp_path, b"old\n")
    rounds(ctx, spool)
    rotated(tmp_path, b"one\n")
    spool.full = True
    with pytest.raises(SpoolFull):
        rounds(ctx, spool)
    assert (tmp_path / "log/mail.log.1").exists()  # not sent: not gone
    spool.full = False
    rounds(ctx, spool)
    assert len(sent(spool)) == 1 and list((tmp_path / "log").glob("mail.log.*")) == []
    ctx, spool, _ = home(tmp_path, keep_old=False)
    rotated(tmp_path, b"two\n")
    rounds(ctx, spool)
    assert spool.messages == [] and list((tmp_path / "log").glob("mail.log.*")) == []
    ctx, spool, _ = home(tmp_path)
    rotated(tmp_path, b"three\n")
    rounds(ctx, spool)
    assert (tmp_path / "log/mail.log.1").exists() and spool.messages == []


def test_a_large_log_is_compressed_and_bounded(tmp_path, monkeypatch):
    ctx, spool, _ = home(tmp_path, mail_old=True)
    rounds(ctx, spool)
    lines = b"".join(b"%07d a line of a log\n" % n for n in range(10_000))
    rotated(tmp_path, lines)
    rounds(ctx, spool)
    [part] = sent(spool)
    assert part.get_content_type() == "application/gzip" and part.get_filename() == "mail.log.gz"
    assert gzip.decompress(part.get_payload(decode=True)) == lines
    monkeypatch.setattr(oldlogs, "LAST_OCTETS", 100_000)
    rotated(tmp_path, b"another one\n" + lines + b"x\n")
    rounds(ctx, spool)
    left = gzip.decompress(sent(spool)[1].get_payload(decode=True))
    assert lines.endswith(left[:-2]) and 90_000 < len(left) <= 100_000 and left[7:8] == b" "
    monkeypatch.setattr(oldlogs, "MOST_OCTETS", 5_000)
    rotated(tmp_path, os.urandom(200_000))
    rounds(ctx, spool)
    assert len(sent(spool)[2].get_payload(decode=True)) <= 5_000


def test_settings_that_would_never_end():
    from iems import config
    from iems.errors import ConfigError

    with pytest.raises(ConfigError) as caught:
        config.parse(b"[log]\nmail_old = true\nrotate_octets = 2000\n", "x")
    assert caught.value.problems[0].startswith("x:3: log.rotate_octets: must be at least 10240")
    with pytest.raises(ConfigError):
        config.parse(b'[log]\nlevel = "loud"\n', "x")
