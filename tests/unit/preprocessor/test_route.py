"""Routing of envelopes, matrices, own Received lines."""

import random

import pytest

from iems.directory import Resolution, Target
from iems.errors import DirectoryUnavailable
from iems.model import Channel, Notify, Recipient, Reply
from iems.preprocessor.matrix import Matrices
from iems.preprocessor.route import UNROUTABLE, Part, route
from iems.preprocessor.trips import HEAD_OCTETS, Trips

L, S, B = Channel.LOCAL, Channel.SMTPC, Channel.BSMTPOUT
DISABLED = Reply(550, 2, 1, "Mailbox disabled")
ANSWERS = {
    b"a@x": [Target(L, "", b"a@x")],
    b"b@x": [Target(L, "", b"b@x")],
    b"all@x": [Target(L, "", b"a@x"), Target(L, "", b"b@x"), Target(S, "", b"c@Out.Test")],
    b"c@out.test": [Target(S, "", b"c@out.test")],
    b"d@other.test": [Target(S, "", b"d@other.test")],
    b"r@x": [Target(S, "relay.test", b"r@x")],
    b"q@x": [Target(B, "batch@x", b"q@x")],
}


def resolve(address):
    targets = ANSWERS.get(address)
    if targets is None:
        return Resolution(True, False, [], DISABLED if address == b"off@x" else None)
    return Resolution(True, True, targets)


def routed(*addresses):
    found = route(resolve, [Recipient(address, b"<" + address + b">") for address in addresses])
    parts = {(p.channel, p.destination): [r.address for r in p.recipients] for p in found.parts}
    for part in found.parts:
        assert len(part.sources) == len(part.recipients)
    return parts, [(r.address, reply) for r, reply in found.failed]


def test_one_recipient():
    found = route(resolve, [Recipient(b"a@x", b"A@X", b"rfc822;A@X", Notify.SUCCESS)])
    (part,) = found.parts
    assert (part.channel, part.destination, found.failed) == (L, "", [])
    (recipient,) = part.recipients
    assert recipient == Recipient(b"a@x", b"A@X", b"rfc822;A@X", Notify.SUCCESS, L, "")


def test_parts_by_channel_and_destination():
    parts, failed = routed(b"a@x", b"b@x", b"c@out.test", b"d@other.test", b"r@x", b"q@x")
    assert parts == {
        (L, ""): [b"a@x", b"b@x"],
        (S, "out.test"): [b"c@out.test"],
        (S, "other.test"): [b"d@other.test"],
        (S, "relay.test"): [b"r@x"],
        (B, "batch@x"): [b"q@x"],
    }
    assert failed == []


def test_alias_and_person_meet_once():
    found = route(
        resolve, [Recipient(b"a@x", notify=Notify.FAILURE), Recipient(b"all@x", notify=Notify.SUCCESS)]
    )
    local = next(p for p in found.parts if p.channel == L)
    assert [(r.address, r.notify) for r in local.recipients] == [(b"a@x", 6), (b"b@x", 2)]
    assert next(p for p in found.parts if p.channel == S).destination == "out.test"


def test_unroutable():
    parts, failed = routed(b"none@x", b"a@x", b"off@x")
    assert parts == {(L, ""): [b"a@x"]}
    assert failed == [(b"none@x", UNROUTABLE), (b"off@x", DISABLED)]
    assert routed(b"none@x") == ({}, [(b"none@x", UNROUTABLE)])


def test_directory_away():
    def away(address):
        raise DirectoryUnavailable("gone")

    with pytest.raises(DirectoryUnavailable):
        route(away, [Recipient(b"a@x")])


def test_every_recipient_lands_once():
    rng = random.Random(5321)
    names = [*ANSWERS, b"none@x", b"off@x"]
    for _ in range(500):
        chosen = [Recipient(rng.choice(names)) for _ in range(rng.randrange(1, 8))]
        found = route(resolve, chosen)
        final = [(p.channel, p.destination, r.address) for p in found.parts for r in p.recipients]
        assert len(final) == len(set(final))
        wanted = {(t.channel, t.address) for r in chosen for t in ANSWERS.get(r.address, ())}
        assert {(channel, address) for channel, _, address in final} == wanted
        assert sum(r.address not in ANSWERS for r in chosen) == len(found.failed)


def test_matrix():
    parts = [Part(L, "", [], []), Part(S, "a", [], []), Part(S, "b", [], [])]
    assert Matrices((), {}).split(Channel.SMTPD, parts) == [((), parts)]
    grids = {"virus": frozenset({(1, L), (1, S)}), "text": frozenset({(1, S)})}
    matrices = Matrices(("virus", "text", "new"), grids)
    assert matrices.modules_for(1, L) == ("virus", "new")
    assert matrices.modules_for(1, S) == ("virus", "text", "new")
    assert matrices.modules_for(Channel.MTA, L) == ("new",)
    assert matrices.split(1, parts) == [(("virus", "new"), parts[:1]), (("virus", "text", "new"), parts[1:])]
    assert matrices.split(Channel.MTA, parts) == [(("new",), parts)]


OWN = b"Received: from peer.test ([192.0.2.1])\r\n\tby mx.example.test with ESMTP id 01ABC\r\n\tfor <a@x>; Mon\r\n"
OTHER = b"Received: from mx.example.test (helo by mx.example.test.evil)\r\n\tby other.test with ESMTP id 1; Mon\r\n"


def test_trips():
    trips = Trips("mx.example.test")
    body = b"Subject: by mx.example.test by mx.example.test\r\n\r\n" + OWN * 30
    assert trips.count(OWN * 3 + OTHER * 4 + body) == 3
    assert trips.at_least(OWN * 3 + body, 3) is True
    assert trips.at_least(OWN * 2 + body, 3) is False
    assert trips.at_least(OTHER * 40 + body, 25) is False
    assert trips.at_least(b"", 1) is False
    assert trips.count(b"received:\tby MX.EXAMPLE.TEST;\r\n\r\n") == 1
    assert trips.count(b"X-Received: by mx.example.test;\r\n\r\n") == 0
    assert trips.count(b"Received: from x by mx.example.tester with SMTP; Mon\r\n\r\n") == 0


def test_trips_of_a_long_header():
    trips = Trips("mx.example.test")
    long = OWN + b"X: " + b"y" * HEAD_OCTETS + b"\r\n" + OWN * 2 + b"\r\n"
    assert trips.at_least(long[:HEAD_OCTETS], 3) is None
    assert trips.at_least(long, 3) is True
    assert trips.at_least(b"X: " + b"y" * HEAD_OCTETS, 3) is False
