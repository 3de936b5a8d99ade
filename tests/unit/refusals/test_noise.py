"""Refusals of malformed commands: each has an id that leads to a record, and a flood of them costs next to nothing."""

from __future__ import annotations

import asyncio

from iems.refusals import noise as module
from iems.refusals.causes import explain
from iems.refusals.noise import Noise
from iems.refusals.reader import Selection, find, matching
from iems.refusals.ring import Ring
from iems.smtp import replies


def run(folder, body, octets=1 << 20):
    async def main():
        ring = Ring(folder, octets, asyncio.get_running_loop())
        await ring.start()
        clock = [1000.0]
        body(Noise(ring, lambda: clock[0]), clock)
        ring.close()
        return ring

    return asyncio.run(main())


def said(noise, client="192.0.2.1", reply=replies.UNKNOWN_COMMAND, user=""):
    end = noise.note("smtp", client, b"c.test", user, reply)
    assert end.startswith(b" [") and end.endswith(b"]\r\n")
    return end[2:-3].decode()


def test_alike_ones_share_a_record_for_a_minute(tmp_path):
    ids = []

    def body(noise, clock):
        ids.extend([said(noise), said(noise), said(noise, "192.0.2.2"), said(noise, reply=replies.SYNTAX)])
        clock[0] += module.ALIKE_S + 1
        ids.append(said(noise))

    run(tmp_path, body)
    assert ids[0] == ids[1] and len(set(ids)) == 4
    records = list(matching(tmp_path, Selection()))
    assert [id for id, _ in records] == [ids[0], ids[2], ids[3], ids[4]]
    assert (records[0][1].client, records[0][1].helo, records[0][1].reply) == ("192.0.2.1", b"c.test", replies.UNKNOWN_COMMAND)
    assert find(tmp_path, ids[1]).reply.code == 500


def test_a_flood_from_many_clients_is_one_record_a_minute(tmp_path):
    """A million clients in an hour: each reply has an id that can be looked up; the records are as many as the budget."""
    ids = set()
    last = []

    def body(noise, clock):
        for number in range(100_000):
            clock[0] += 0.036
            last.append(said(noise, f"2001:db8::{number:x}"))
        ids.update(last)
        assert len(noise._alike) <= module.MOST

    run(tmp_path, body, 64 << 20)
    records = dict(matching(tmp_path, Selection()))
    assert ids == set(records)
    assert len(records) <= module.BURST + 3600 * module.PER_S + 3600 / module.ALIKE_S + 1
    floods = [one for one in records.values() if one.check == "flood"]
    assert floods and floods[0].client == "" and "one record stands for all" in explain(floods[0].reply, "flood").why
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2 << 20


def test_where_nothing_can_be_kept_there_is_no_id(tmp_path):
    (tmp_path / "file").write_text("")

    def body(noise, clock):
        assert noise.note("smtp", "192.0.2.1", b"", "", replies.SYNTAX) == b"" == noise.note("smtp", "192.0.2.1", b"", "", replies.SYNTAX)

    run(tmp_path / "file" / "no-folder", body)


def test_every_kind_of_noise_is_explained():
    for reply in (
        replies.UNKNOWN_COMMAND, replies.BARE_LINE_END, replies.LINE_TOO_LONG, replies.SYNTAX, replies.NO_ARGUMENT, replies.BAD_HELLO,
        replies.HELLO_FIRST, replies.BAD_SEQUENCE, replies.NEED_MAIL, replies.NOT_IMPLEMENTED, replies.UNKNOWN_MECHANISM, replies.USE_LHLO,
    ):  # fmt: skip
        cause = explain(reply, "")
        assert "program" in cause.sender and cause.administrator
