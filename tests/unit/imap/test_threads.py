"""Base subjects, collation, threads and the results of searches."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.imap import envelope, results, threads
from iems.imap.grammar import Arguments, Bad
from iems.imap.subjects import base_subject, casemap
from iems.message import summarize


@pytest.mark.parametrize(
    ("text", "base", "reply"),
    [
        ("Re: [list] Fwd: hello (fwd)", "hello", True),
        ("[blob]", "[blob]", False),
        ("[a] [b] text", "text", False),
        ("[Fwd: [x] re: deep]", "deep", True),
        ("re[2]: x", "x", True),
        ("regarding: x", "regarding: x", False),
        ("", "", False),
        ("Re:", "", True),
    ],
)
def test_base_subject(text, base, reply):
    assert base_subject(text) == (base, reply)


def test_casemap_ignores_case_of_every_script():
    assert casemap("straße Ärger") == casemap("STRAßE ärger")
    assert casemap("a") < casemap("B") < casemap("c")


def node(number, *children):
    return (number, list(children))


def test_render():
    tree = [node(2), node(3, node(6, node(4, node(23)), node(44, node(7, node(96))))), node(None, node(8), node(9))]
    assert threads.render(tree) == b"(2)(3 6 (4 23)(44 7 96))((8)(9))"


def test_references_join_what_is_missing_and_break_loops():
    found = threads.references(
        [1, 2, 3, 4, 5],
        [b"<a>", b"<b>", b"<c>", b"<d>", b"<d>"],
        [(b"<c>",), (b"<a>",), (b"<b>",), (b"<gone>",), (b"<gone>",)],
        [("A", False), ("A", True), ("A", True), ("X", False), ("Y", True)],
        [1, 2, 3, 4, 5],
    )
    assert sorted(threads.render(found).replace(b"(", b" ").replace(b")", b" ").split()) == [b"1", b"2", b"3", b"4", b"5"]


def test_a_chain_of_thousands_is_no_recursion():
    count = 20_000
    ids = [b"<%d>" % number for number in range(count)]
    parents = [()] + [(ids[number - 1],) for number in range(1, count)]
    found = threads.references(
        range(1, count + 1), ids, parents, [("S", number > 0) for number in range(count)], range(count)
    )
    assert threads.render(found) == b"(" + b" ".join(b"%d" % number for number in range(1, count + 1)) + b")"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_message_is_in_one_thread(data):
    count = data.draw(st.integers(0, 12))
    names = st.sampled_from([b"", b"<a>", b"<b>", b"<c>", b"<d>", b"<e>"])
    ids = data.draw(st.lists(names, min_size=count, max_size=count))
    parents = data.draw(st.lists(st.lists(names.filter(bool), max_size=4), min_size=count, max_size=count))
    subjects = data.draw(
        st.lists(st.tuples(st.sampled_from(["", "A", "B"]), st.booleans()), min_size=count, max_size=count)
    )
    dates = data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))
    text = threads.render(threads.references(range(1, count + 1), ids, parents, subjects, dates))
    assert text.count(b"(") == text.count(b")")
    numbers = sorted(int(word) for word in text.replace(b"(", b" ").replace(b")", b" ").split())
    assert numbers == list(range(1, count + 1))


@pytest.mark.parametrize(
    ("text", "numbers", "cut"),
    [
        (b"RETURN (PARTIAL 2:3) ", [10, 20, 30, 40], [20, 30]),
        (b"RETURN (PARTIAL 3:2) ", [10, 20, 30, 40], [20, 30]),
        (b"RETURN (PARTIAL -1:-2) ", [10, 20, 30, 40], [30, 40]),
        (b"RETURN (PARTIAL -3:-9) ", [10, 20, 30, 40], [10, 20]),
        (b"RETURN (PARTIAL 9:10) ", [10], []),
    ],
)
def test_partial(text, numbers, cut):
    returned = results.parse(Arguments(text))
    assert returned is not None
    assert returned.cut(numbers) == cut


@pytest.mark.parametrize("text", [b"1", b"1:*", b"0:1", b"-1:1", b"1:2 ALL", b"1:2 PARTIAL 1:2", b""])
def test_bad_partial(text):
    with pytest.raises(Bad):
        results.parse(Arguments(b"RETURN (PARTIAL " + text + b") ALL"))


def test_envelope_is_read_back():
    content = (
        b'From: "A \\"q\\" B" <a@b.c>, =?utf-8?q?J=C3=BCrgen?= <j@d.e>\r\nTo: friends: x@y.z;\r\nCc: z\r\n'
        b"Subject: =?utf-8?b?w7xiZXI=?=\r\nDate: Tue, 1 Jan 2030 10:00:00 +0100\r\n\r\n"
    )
    found = envelope.Envelope(summarize(content)[0])
    assert envelope.subject(found) == "über"
    assert envelope.first_mailbox(found, envelope.FROM) == "a"
    assert envelope.display(found, envelope.FROM) == 'A "q" B'
    assert "Jürgen <j@d.e>" in list(envelope.address_texts(found, envelope.FROM))
    assert "x@y.z" in list(envelope.address_texts(found, envelope.TO))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_header_is_read_back(subject, author):
    """With and without literals, by pattern and by parser, the same comes out."""
    content = b"Subject: " + subject.replace(b"\n", b" ") + b"\r\nFrom: " + author.replace(b"\n", b" ") + b"\r\n\r\n"
    raw = summarize(content)[0]
    fast, slow = envelope.Envelope(raw), envelope._parsed(raw)
    assert len(slow) == 10
    assert fast.text(envelope.SUBJECT) == slow[envelope.SUBJECT]
    assert [list(item) for item in fast.addresses(envelope.FROM)] == (slow[envelope.FROM] or [])
