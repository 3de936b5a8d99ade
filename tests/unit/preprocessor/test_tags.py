"""Tags between systems: foreign ones cut out of the rope, signed ones believed, peers that keep them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.directory.entries import DirectoryRefusal
from iems.directory.peers import NONE, Peer, Peers
from iems.directory.tagkeys import TagKeys
from iems.message import header, tag
from iems.model import Channel, Envelope, Extent, Recipient, Verdict
from iems.preprocessor.matrix import Matrices
from iems.preprocessor.proof import alias_loops, forward_loops, unseen
from iems.preprocessor.ropes import replaced
from iems.preprocessor.route import Part
from iems.preprocessor.tags import Tags
from iems.preprocessor.trips import HEAD_OCTETS

TAG = Verdict("dnsbl", "bl.test", "127.0.0.2")
TEXT = b"Received: by mx\r\nFrom: a@b.test\r\nMessage-ID: <1@b>\r\nSubject: x\r\n\r\nX-Spam-Status: YES\r\n"


@pytest.fixture
def keys(tmp_path):
    (tmp_path / "conf").mkdir()
    return TagKeys(tmp_path)


def envelope(*verdicts):
    return Envelope(Channel.SMTPD, b"s@b.test", [], 0, client_ip="192.0.2.1", verdicts=verdicts)


def read(rope, start, length):
    return b"".join(rope)[start : start + length]


def incoming(tags, content, env=None):
    rope = tags.incoming(env or envelope(), [content], read, content[:HEAD_OCTETS])
    return None if rope is None else b"".join(rope)


@pytest.mark.parametrize("name", [b"X-Spam-Status", b"x-iems-ANTISPAM", b"X-Spam-STATUS \t"])
@pytest.mark.parametrize("before", [b"", b"Received: by y\r\n" * 2000], ids=["short", "long"])
def test_foreign_fields_go(keys, name, before):
    tags = Tags(keys, lambda: NONE)
    forged = name + (b": YES\r\n" if b"tatus" in name.lower() else b": YES; s=abc\r\n\tfolded\r\n")
    assert incoming(tags, forged + before + TEXT) == before + TEXT
    assert incoming(tags, before + forged + TEXT.replace(b"Subject", forged + b"Subject")) == before + TEXT
    assert incoming(tags, before + TEXT) is None
    assert incoming(tags, b"Subject: y\r\n" + name[:8] + b"-Other: 1\r\n\r\n") is None
    foreign = b"X-Spam-Status: Yes, score=9.1 required=5\r\nX-Spam-Status: No\r\n"
    assert incoming(tags, foreign + TEXT) is None, "another filter's own word"
    assert incoming(tags, b"no header at all") is None and incoming(tags, b"") is None


@pytest.mark.parametrize(
    "line",
    [
        b"Delivered-To: me+vip@ours.test\r\n",
        b"DELIVERED-TO :\t<me@OURS.test>\r\n",
        b"Delivered-To:\r\n me@ours.test\r\n",
        b"delivered-to: x@far.test,\r\n\tme@ours.test (comment)\r\n",
        b"Delivered-To: me@ ours.test\r\n",
    ],
)
def test_a_delivery_here_is_nobody_else_s_word(keys, line):
    asked = []
    tags = Tags(keys, lambda: NONE, lambda domain: asked.append(domain) or domain.lower() == "ours.test")
    assert incoming(tags, line + TEXT) == TEXT == incoming(tags, TEXT.replace(b"Subject: x\r\n", line + b"Subject: x\r\n"))
    others = b"Delivered-To: list@far.test\r\nDelivered-To: me\r\nX-Delivered-To: me@ours.test\r\nDelivered-To: a@ours.test.far.test\r\n"
    assert incoming(tags, others + TEXT) is None, "what others wrote is how they find their loops"
    assert incoming(tags, others + line + TEXT) == others + TEXT
    assert incoming(tags, TEXT + line) is None, "text is no header"
    asked.clear()
    assert incoming(tags, b"Delivered-To: a@b.test\r\n" * 9 + TEXT) is None and asked == ["b.test"]


def test_signed_tag_goes_into_the_envelope(keys):
    tags = Tags(keys, lambda: NONE)
    secret = keys.add("k1")
    now = int(__import__("time").time())
    line = tag.signed("203.0.113.9", now, (TAG,), "k1", secret, TEXT)
    env = envelope(Verdict("helo", "x", "y"))
    assert incoming(tags, line + TEXT, env) == TEXT
    assert env.client_ip == "203.0.113.9" and env.verdicts == (Verdict("helo", "x", "y"), TAG)
    assert incoming(tags, line + TEXT, env) == TEXT and len(env.verdicts) == 2
    for broken in (line.replace(b"bl.test", b"al.test"), line.replace(b"k=k1", b"k=k2"), line + line):
        env = envelope()
        assert incoming(tags, broken + TEXT, env) == TEXT
        assert env.client_ip == "192.0.2.1" and env.verdicts == ()
    keys.add("k2")
    keys.use("k2")
    keys.remove("k1")
    env = envelope()
    assert incoming(tags, line + TEXT, env) == TEXT and env.verdicts == ()


def test_only_peers_that_keep_tags_get_them(keys):
    peers = Peers([Peer(domain="inner.test", keep_tags=True), Peer(domain="plain.test")])
    tags = Tags(keys, lambda: peers)
    env = envelope(TAG)

    def sent(*domains, channel=Channel.SMTPC):
        part = Part(channel, "", [Recipient(b"u@" + d) for d in domains], [])
        tags.outgoing(env, part, [TEXT], read)
        return b"".join(part.rope or [TEXT])

    assert sent(b"inner.test") == TEXT, "no key, no tag"
    secret = keys.add("k1")
    out = sent(b"inner.test")
    assert out.endswith(TEXT) and tag.verified(out, {"k1": secret}).verdicts == (TAG,)
    assert sent(b"plain.test") == sent(b"other.test") == sent(b"inner.test", b"plain.test") == TEXT
    assert sent(b"inner.test", channel=Channel.BSMTPOUT) == TEXT


def test_keys_are_kept_and_read_again(keys, tmp_path):
    other = TagKeys(tmp_path)
    assert other.all == {} and other.signing is None
    secret = keys.add("one")
    assert other.all == {"one": secret} and other.signing == ("one", secret)
    assert keys.add("two", b"0123456789abcdef") == b"0123456789abcdef"
    assert (tmp_path / "conf/tag.keys").stat().st_mode & 0o777 == 0o600
    for wrong in (lambda: keys.add("one"), lambda: keys.add("a b"), lambda: keys.add("x", b"short"), lambda: keys.use("no"), lambda: keys.remove("one")):
        with pytest.raises(DirectoryRefusal):
            wrong()
    keys.use("two")
    keys.remove("one")
    assert other.all == {"two": b"0123456789abcdef"} and other.signing[0] == "two"
    keys.remove("two")
    assert other.all == {} and other.signing is None


@given(st.lists(st.binary(max_size=20), max_size=5), st.lists(st.integers(0, 110), max_size=8))
@settings(max_examples=100, deadline=None)
def test_cutting_a_rope_is_cutting_its_octets(pieces, marks):
    content = b"".join(pieces)
    edges = sorted(min(mark, len(content)) for mark in set(marks))
    ranges = list(zip(edges[::2], edges[1::2], strict=False))
    rope = [Extent(n, 100, len(p)) if n % 2 else p for n, p in enumerate(pieces)]
    for new in (b"", b"<new>"):
        cut = replaced(rope, [(start, end, [new] if new else []) for start, end in ranges])
        octets = b"".join(p if isinstance(p, bytes) else pieces[p.blob][p.offset - 100 : p.offset - 100 + p.length] for p in cut)
        expected, at = b"", 0
        for start, end in ranges:
            expected, at = expected + content[at:start] + new, end
        assert octets == expected + content[at:]


@given(st.lists(st.sampled_from([b"X-Spam-Status: YES\r\n", b" folded\r\n", b"From: x\r\n", b"\r\n", b"X-IEMS-AntiSpam:\r\n", b"junk\r\n", b"\n"]), max_size=12))
@settings(max_examples=100, deadline=None)
def test_nothing_of_ours_is_left_in_a_header(tmp_path_factory, lines):
    tags = Tags(TagKeys(tmp_path_factory.getbasetemp()), lambda: NONE)
    content = b"".join(lines)
    left = incoming(tags, content)
    left = content if left is None else left
    assert not [f for f in header.fields(left) if tag.is_ours(f.name, left[f.value : f.end])]


def test_ways_past_a_module():
    every = {(int(i), int(o)) for i in Channel if i < 32 for o in Channel if o >= 32}
    S, L, X, again = Channel.SMTPD, Channel.LOCAL, Channel.SMTPC, Channel.LOCALOUT
    assert unseen(Matrices(["m"], {}), "m") == []
    assert unseen(Matrices(["m"], {"m": frozenset(every - {(S, L)})}), "m") == [(S, L)]
    assert unseen(Matrices(["m"], {"m": frozenset(every - {(S, L), (again, X)})}), "m") == [(S, L), (S, L, again, X)]
    assert unseen(Matrices(["m"], {"m": frozenset(every - {(again, X)})}), "m") == [], "seen when it came in"
    assert len(unseen(Matrices(["m"], {"m": frozenset()}), "m")) > 30


def test_loops():
    assert alias_loops([("a@x", ["b@x"]), ("b@x", ["c@x", "A@x"]), ("c@x", ["d@y"]), ("s@x", ["s@x"])]) == [
        ["a@x", "b@x", "a@x"],
        ["s@x", "s@x"],
    ]
    assert alias_loops([("a@x", ["b@x", "b@x"]), ("b@x", ["c@x"])]) == []
    assert alias_loops([(f"a{n}@x", [f"a{n + 1}@x"]) for n in range(5000)]) == []
    S = Channel.SMTPC
    assert forward_loops([("a", S, "MX.test:25"), ("b", S, "other"), ("c", Channel.BSMTPOUT, "mx.test")], {"mx.test"}) == [("a", "MX.test:25")]
