"""Learning and scoring: what is told apart, what waits, what is taken back, what survives damage."""

from __future__ import annotations

import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems._native import kernel
from iems.bayes import Filter, Outcome, Prior, Trainer, records
from iems.bayes import prior as priors
from iems.bayes.exchange import export, load
from iems.bayes.filter import BEND, LEAN, Filters, arguments, opened, squeezed
from iems.bayes.parts import _PLAIN, MAX_TEXT, _charset, sections
from iems.bayes.side import Damaged, Side
from iems.bayes.statistics import statistics
from iems.bayes.trainer import digest_of, reset
from iems.errors import IemsError
from iems.message.words import content_type
from tests.support.bayesmail import messages


def taught(folder: Path, count: int = 60) -> None:
    with Trainer(folder) as trainer:
        for spam in (False, True):
            given = messages(count, spam, 1)
            assert len(list(trainer.learn_each(given, spam, len(given)))) == count


def right(judge: Filter, count: int = 100) -> float:
    scores = [(judge.score(one).score > 0.5) == spam for spam in (False, True) for one in messages(count, spam, 2)]
    return sum(scores) / len(scores)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_was_learnt_is_told_apart(tmp_path: Path) -> None:
    taught(tmp_path / "a")
    judge = Filter(tmp_path / "a")
    assert right(judge) > 0.97
    verdicts = [judge.score(one).verdict for one in messages(100, True, 2)]
    assert verdicts.count("spam") > 80 and "good" not in verdicts
    assert len(files(tmp_path / "a")["good"]) < 200_000


def test_an_empty_filter_is_undecided_and_makes_nothing(tmp_path: Path) -> None:
    score = Filter(tmp_path / "none").score(messages(1, True, 1)[0])
    assert (score.score, score.verdict) == (0.5, "unsure")
    assert not (tmp_path / "none").exists()


def test_one_kind_alone_waits_and_decides_nothing(tmp_path: Path) -> None:
    good = messages(40, False, 1)
    with Trainer(tmp_path) as trainer:
        assert set(trainer.learn_each(good, False, len(good))) == {Outcome.WAITS}
    assert Filter(tmp_path).score(messages(1, True, 1)[0]).verdict == "unsure"
    assert "until both" in str(statistics(tmp_path)["state"])
    with Trainer(tmp_path) as trainer:
        assert trainer.learn(good[0], False) is Outcome.KNOWN
        for one in messages(40, True, 1):
            trainer.learn(one, True)
    assert 0 < int(str(statistics(tmp_path)["good_learnt"])) <= 40
    assert right(Filter(tmp_path)) > 0.95


def test_learning_twice_counts_once_and_moving_takes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taught(tmp_path)
    monkeypatch.setattr(Trainer, "_revise", lambda *_: None)
    fresh = messages(3, True, 9)[0].replace(b"offer", b"novelty")
    with Trainer(tmp_path) as trainer:
        before = [side.items().tolist() for side in trainer.sides]
        assert trainer.learn(fresh, False) is Outcome.LEARNT
        assert trainer.learn(fresh, False) is Outcome.KNOWN
        middle = trainer.sides[0].messages
        assert trainer.learn(fresh, True) is Outcome.MOVED
        assert trainer.sides[0].messages == middle - 1
        assert sorted(trainer.sides[0].items().tolist()) == sorted(before[0])
        assert trainer.forget(fresh) and not trainer.forget(fresh)
        assert sorted(trainer.sides[1].items().tolist()) == sorted(before[1])


def test_what_was_learnt_is_gone_through_again_and_all_of_it_is_forgotten(tmp_path: Path) -> None:
    taught(tmp_path)
    hard = messages(1, False, 1)[0] + b"once more\r\n"  # spam that looks good
    with Trainer(tmp_path) as trainer:
        assert trainer.learn(hard, True) is Outcome.LEARNT
        spam, digest = trainer.sides[1], digest_of(hard)
        lessons = list(records.read(tmp_path / "journal"))
        assert [record.lesson for record in lessons] == [1] + [0] * (len(lessons) - 1) and len(lessons) > 1
        assert all(side.weight == sum(side.digests.values()) and side.messages == len(side.digests) for side in trainer.sides)
        before_undo = [sorted(side.items().tolist()) for side in trainer.sides]
        trainer.commit()
        assert trainer.undo() == 1 and digest not in trainer.sides[1].digests
        trainer.commit()
        assert trainer.undo() == 1 and [sorted(side.items().tolist()) for side in trainer.sides] == before_undo
        messages_learnt, weight, its = spam.messages, spam.weight, spam.digests[digest]
        assert its == sum(record.change for record in lessons if record.digest == digest) > 0
        assert trainer.forget(hard)
        assert (spam.messages, spam.weight) == (messages_learnt - 1, weight - its)
        trainer.learn(messages(1, True, 6)[0], True)
    assert digest not in {record.digest for record in records.read(tmp_path / "recent")}


def test_shares_of_all_features_make_the_score(tmp_path: Path) -> None:
    taught(tmp_path)
    for one in (*messages(3, True, 2), *messages(3, False, 2)):
        score = Filter(tmp_path).score(one, 10_000)
        belief = kernel("bayes").score(kernel("bayes").features(sections(one)), *arguments(*Filter(tmp_path).sides(), None))[0]
        lean = LEAN / (1.0 + abs(belief + LEAN) / BEND)
        assert sum(share for _, share in score.evidence) + lean == pytest.approx(opened(score.score))


FORMER = Path(__file__).parent / "former"


def test_a_folder_of_the_former_layout_goes_on(tmp_path: Path) -> None:
    for path in FORMER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert (tmp_path / "good").read_bytes().startswith(b"IEMSbay1")
    assert right(Filter(tmp_path)) > 0.97
    exported = tmp_path / "exported"
    load(tmp_path / "copy", exported.read_bytes().splitlines())
    one = messages(1, True, 2)[0]
    with Trainer(tmp_path) as trainer:
        learnt = [sorted(side.items().tolist()) for side in trainer.sides]
        assert all(side.weight == side.former == side.messages == len(side.digests) > 5 for side in trainer.sides)
        known = next(message for message in messages(30, False, 1) if digest_of(message) in trainer.sides[0].digests)
        assert trainer.learn(known, False) is Outcome.KNOWN
        trainer.commit()
    with Trainer(tmp_path / "copy") as copy:
        assert [sorted(side.items().tolist()) for side in copy.sides] == learnt
    assert (tmp_path / "good").read_bytes().startswith(b"IEMSbay2")
    assert Filter(tmp_path).score(one).score == Filter(tmp_path / "copy").score(one).score
    with Trainer(tmp_path) as trainer:
        assert trainer.undo() == 4
    assert right(Filter(tmp_path)) > 0.9


def test_undo_takes_back_the_last_command_and_once_more_brings_it_back(tmp_path: Path) -> None:
    taught(tmp_path)
    before = [sorted(Side.map(tmp_path / name).items().tolist()) for name in ("good", "spam")]
    with Trainer(tmp_path) as trainer:
        trainer.learn(b"Subject: entirely new matter\n\nnever heard of before", True)
    after = [sorted(Side.map(tmp_path / name).items().tolist()) for name in ("good", "spam")]
    assert before != after
    for expected in (before, after):
        with Trainer(tmp_path) as trainer:
            assert trainer.undo() == 1
        assert [sorted(Side.map(tmp_path / name).items().tolist()) for name in ("good", "spam")] == expected
    reset(tmp_path)
    with Trainer(tmp_path) as trainer, pytest.raises(IemsError, match="nothing to undo"):
        trainer.undo()


@pytest.mark.parametrize("name", ["good", "spam"])
@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone", "noise"])
def test_a_damaged_table_is_noticed_and_learning_starts_anew(tmp_path: Path, name: str, damage: str) -> None:
    taught(tmp_path)
    path = tmp_path / name
    octets = bytearray(path.read_bytes())
    if damage == "flip":
        octets[len(octets) // 2] ^= 4
    path.unlink()
    if damage != "gone":
        path.write_bytes({"cut": octets[:-9], "flip": octets, "empty": b"", "noise": b"x" * 5_000}[damage])
    assert Filter(tmp_path).score(messages(1, True, 2)[0]).score == 0.5
    with Trainer(tmp_path) as trainer:
        assert trainer.damaged
    taught(tmp_path)
    assert right(Filter(tmp_path)) > 0.97


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=300))
def test_any_octets_as_a_table_or_prior_are_refused(octets: bytes) -> None:
    with pytest.raises(Damaged):
        Side.read(octets)


def test_a_crash_between_the_two_tables_counts_nothing_twice(tmp_path: Path) -> None:
    taught(tmp_path)
    old = files(tmp_path)
    fresh = b"Subject: something new\n\nquite unheard of"
    with Trainer(tmp_path) as trainer:
        trainer.learn(fresh, False)
        trainer.learn(fresh, True)
        journal = (tmp_path / "journal").read_bytes()
    new = files(tmp_path)
    wanted = [sorted(Side.map(tmp_path / name).items().tolist()) for name in ("good", "spam")]
    # The good table was written, the spam table was not; then neither; the record at the end is torn too.
    for state in ({"good": new["good"], "spam": old["spam"]}, {"good": old["good"], "spam": old["spam"]}):
        for name, octets in state.items():
            (tmp_path / name).write_bytes(octets)
        (tmp_path / "journal").write_bytes(journal + b"\x40\0\0\0torn")
        with Trainer(tmp_path):
            pass
        assert [sorted(Side.map(tmp_path / name).items().tolist()) for name in ("good", "spam")] == wanted


def test_a_table_at_its_cap_forgets_what_was_seen_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    side = Side()
    often = rng.integers(0, 1 << 32, 200, np.uint32)
    side.add(often, 40, 7)
    side.messages = 50
    for _ in range(20):
        side.add(rng.integers(0, 1 << 32, 500, np.uint32), 1, 7)
    assert side.bits == 7 and side.halved and side.messages < 50
    left = dict(side.items().tolist())
    if side.halved < 5:
        assert set(often.tolist()) <= set(left)


def test_export_and_import_give_the_same_filter(tmp_path: Path) -> None:
    taught(tmp_path / "a")
    lines = list(export(tmp_path / "a"))
    assert all(json.loads(line) for line in lines)
    load(tmp_path / "b", lines)
    assert list(export(tmp_path / "b")) == lines
    one = messages(1, True, 2)[0]
    assert Filter(tmp_path / "a").score(one).score == pytest.approx(Filter(tmp_path / "b").score(one).score, abs=1e-12)
    with pytest.raises(IemsError, match="--replace"):
        load(tmp_path / "b", lines)
    load(tmp_path / "b", lines, replace=True)


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b'{"side":"bad"}', b'{"side":"good","keys":["xyz"]}', b'{"side":"good","count":0}', b"\xff"])
def test_an_import_with_a_wrong_line_changes_nothing(tmp_path: Path, line: bytes) -> None:
    taught(tmp_path / "a", 5)
    before = files(tmp_path / "a")
    with pytest.raises(IemsError, match=r"line 2"):
        load(tmp_path / "a", [next(iter(export(tmp_path / "a"))), line], replace=True)
    assert {name: before[name] for name in ("good", "spam")} == {name: files(tmp_path / "a")[name] for name in ("good", "spam")}


def test_a_prior_decides_for_who_has_taught_nothing_and_gives_way(tmp_path: Path) -> None:
    with Trainer(tmp_path / "site") as trainer:
        for spam in (False, True):
            given = messages(60, spam, 1)
            list(trainer.learn_each(given, spam, len(given)))
        priors.write(tmp_path / "prior", *trainer.sides)
    prior = Prior(tmp_path / "prior")
    judge = Filter(tmp_path / "user", prior)
    assert right(judge) > 0.97
    # This user likes what the site calls spam.
    wanted = messages(60, True, 3)
    with Trainer(tmp_path / "user", prior) as trainer:
        list(trainer.learn_each(wanted, False, len(wanted)))
        list(trainer.learn_each(messages(20, False, 3), True, 20))
    assert sum(judge.score(one).score < 0.5 for one in messages(100, True, 2)) > 90
    (tmp_path / "prior").write_bytes((tmp_path / "prior").read_bytes()[:-100])
    with pytest.raises(IemsError, match="build it again"):
        Prior(tmp_path / "prior")


def test_two_users_disagree_on_the_same_message(tmp_path: Path) -> None:
    for user, turned in (("a", False), ("b", True)):
        with Trainer(tmp_path / user) as trainer:
            for spam in (False, True):
                given = messages(40, spam, 1)
                list(trainer.learn_each(given, spam != turned, len(given)))
    one = messages(1, True, 2)[0]
    filters = Filters(limit=1)
    assert filters.of(tmp_path / "a").score(one).verdict == "spam"
    assert filters.of(tmp_path / "b").score(one).verdict == "good"
    assert len(filters) == 1


def test_evidence_names_the_strongest_features(tmp_path: Path) -> None:
    taught(tmp_path)
    score = Filter(tmp_path).score(messages(1, True, 2)[0], 5)
    assert len(score.evidence) == 5
    assert any("offer" in text or "deals" in text or "tag:" in text for text, _ in score.evidence)


def test_threads_may_score_while_another_learns(tmp_path: Path) -> None:
    taught(tmp_path)
    judge = Filter(tmp_path)
    mail = messages(40, True, 2)
    with ThreadPoolExecutor(3) as pool:
        scores = [pool.submit(judge.score, one) for one in mail]
        with Trainer(tmp_path) as trainer:
            trainer.learn(b"Subject: x\n\nnew words here", True)
        assert all(0 < score.result().score < 1 for score in scores)


def test_scores_keep_their_order_and_never_reach_the_ends() -> None:
    odds = [-1e6, -500.0, -3.0, 0.0, 1e-9, 3.0, 500.0, 1e6]
    scores = [squeezed(one) for one in odds]
    assert scores == sorted(set(scores)) and scores[0] > 0 and scores[-1] < 1 and squeezed(0) == 0.5
    assert all(0 < float(f"{score:.12f}") < 1 for score in scores)
    assert opened(squeezed(3.0)) == pytest.approx(3.0)


HOSTILE = [
    b"", b"\0" * 100_000, b"x" * 1_000_000, b"a: b\n" * 100_000, b"Subject: " + b"=?utf-8?B?" * 20_000, b"Content-Type: text/html; charset=nonsense\n\n\xff\xfe<",
    b"Content-Type: text/plain; charset=utf-16\nContent-Transfer-Encoding: base64\n\n////AAAA", b"Subject: \xff\xfe\n\n\x80",
    b"Content-Type: text/html\n\n" + b"<a href='" * 100_000, b"\n" + "\u0130\ufdfa".encode() * 100_000, b"Content-Transfer-Encoding: x-uuencode\n\nbegin 644 x\n" + b"M" * 1000,
]  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_messages_are_bounded(tmp_path: Path, content: bytes) -> None:
    parts = sections(content)
    assert sum(len(text) for kind, text in parts if kind >= 2) <= MAX_TEXT
    with Trainer(tmp_path) as trainer:
        trainer.learn(content, True)
        trainer.learn(b"Subject: good\n\nmail", False)
    assert 0 < Filter(tmp_path).score(content, 3).score < 1


def test_deep_and_wide_mime_is_bounded() -> None:
    deep = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(10_000))
    wide = b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\nContent-Type: text/plain\n\nhello\n" * 20_000
    for content in (deep, wide):
        assert len(sections(content)) <= 101


def test_random_changes_of_a_message_never_fail() -> None:
    rng = random.Random(7)
    whole = (
        b"Subject: =?utf-8?q?caf=C3=A9?=\nContent-Type: multipart/mixed; boundary=x\n\n--x\nContent-Type: text/html; charset=iso-8859-1\n"
        b"Content-Transfer-Encoding: quoted-printable\n\n<b>caf=E9</b>\n--x\nContent-Type: application/pdf; name=a.pdf\n"
        b"Content-Transfer-Encoding: base64\n\nAAAA\n--x--\n"
    )
    for _ in range(1_500):
        octets = bytearray(whole)
        for _ in range(rng.randrange(6)):
            octets[rng.randrange(len(octets))] = rng.randrange(256)
        sections(bytes(octets[: rng.randrange(len(octets) + 1)]))


def test_encodings_of_one_text_have_the_same_words() -> None:
    from iems._native.bayes_py import names

    plain = b"Content-Type: text/plain; charset=utf-8\n\n" + "Grüße STRASSE".encode()
    latin = b"Content-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: quoted-printable\n\nGr=FC=DFe STRASSE"
    based = b"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: base64\n\nR3LDvMOfZSBTVFJBU1NF\n"
    words = [{name for name in names(sections(one)).values() if name.startswith("body:")} for one in (plain, latin, based)]
    assert words[0] == words[1] == words[2] == {"body:grüße", "body:strasse", "body:grüße strasse"}


def test_a_charset_found_the_short_way_is_the_one_the_parser_finds() -> None:
    rng = random.Random(2045)
    pieces = [b"text/plain", b"text/html", b";", b" ", b"charset", b"=", b"utf-8", b'"', b"ISO-8859-1", b"format", b"flowed", b"\r\n\t", b"*0", b"(c)",
              b"charset=us-ascii", b"name=x", b";charset=", b";  format=flowed", b"x", b"'", b"CHARSET", b"\v"]  # fmt: skip
    short = 0
    for _ in range(20_000):
        kind = (b"text/plain; charset=" if rng.random() < 0.7 else b"") + b"".join(rng.choices(pieces, k=rng.randrange(9)))
        short += _PLAIN.fullmatch(kind) is not None
        assert _charset(kind) == content_type(kind)[2].get("charset", ""), kind
    assert short > 1_000


def test_statistics_say_what_it_takes(tmp_path: Path) -> None:
    taught(tmp_path)
    figures = statistics(tmp_path)
    assert figures["state"] == "ready" and figures["good_given"] == 60 and figures["spam_given"] == 60
    assert figures["octets"] == sum(os.path.getsize(tmp_path / name) for name in ("good", "spam", "undo", "recent") if (tmp_path / name).exists())
