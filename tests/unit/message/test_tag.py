"""The tag of suspect mail: what is written is read, what was signed is believed, nothing else is."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from iems.message import header, tag
from iems.model import Verdict

HEAD = b"From: a@b.test\r\nDate: Tue, 24 Nov 2026 15:00:00 +0000\r\nMessage-ID: <1@b.test>\r\nSubject: x\r\n\r\nbody\r\n"
NOW = 1_795_532_400
SECRETS = {"k1": b"secret of one", "k2": b"secret of two"}
TAGS = (Verdict("dnsbl", "a.test", "127.0.0.2"), Verdict("content", "spamd", "score 7.1 of 5; VIAGRA (x)"))
text = st.text(max_size=40)
verdict = st.builds(Verdict, st.from_regex(r"[a-jl-r][a-z0-9-]{1,20}", fullmatch=True).filter(lambda n: n not in ("action", "ip")), text, text)


def signed(key: str = "k1", at: int = NOW, head: bytes = HEAD) -> bytes:
    return tag.signed("192.0.2.8", at, TAGS, key, SECRETS[key], head)


def test_signed_tag_is_believed() -> None:
    for key in SECRETS:
        line = signed(key)
        found = tag.verified(line + HEAD, SECRETS, NOW + 10)
        assert found == tag.Tag("192.0.2.8", NOW, TAGS, key)
        # lines put in front on the way do no harm, nor does another fold
        assert tag.verified(b"Received: by x\r\n" + line.replace(b";\r\n\t", b"; ") + HEAD, SECRETS, NOW) == found


def test_anything_else_is_not() -> None:
    line = signed()
    assert tag.verified(HEAD, SECRETS, NOW) is None
    assert tag.verified(line + HEAD, {"k2": SECRETS["k2"]}, NOW) is None
    assert tag.verified(line + HEAD, {}, NOW) is None
    assert tag.verified(line.replace(b"a.test", b"b.test") + HEAD, SECRETS, NOW) is None
    assert tag.verified(line.replace(b"192.0.2.8", b"192.0.2.9") + HEAD, SECRETS, NOW) is None
    assert tag.verified(line + HEAD.replace(b"<1@", b"<2@"), SECRETS, NOW) is None
    assert tag.verified(line + HEAD.replace(b"From", b"From: c@d\r\nFrom"), SECRETS, NOW) is None
    assert tag.verified(line + HEAD, SECRETS, NOW + tag.MAX_AGE_S + 1) is None
    assert tag.verified(line + HEAD, SECRETS, NOW - tag.MAX_AHEAD_S - 1) is None
    assert tag.verified(line + signed("k2") + HEAD, SECRETS, NOW) is None, "two tags, nobody knows which counts"
    assert tag.verified(HEAD + line, SECRETS, NOW) is None, "in the body"
    unsigned = line.partition(b"; s=")[0].partition(b"s=")[0] + b"\r\n"
    assert tag.verified(unsigned + HEAD, SECRETS, NOW) is None


def test_reader_sees_what_was_done() -> None:
    line = tag.for_reader("192.0.2.8", NOW, TAGS, "file=Spam", "zone a.test")
    assert line == (
        b"X-IEMS-AntiSpam: ip=192.0.2.8;\r\n\tt=2026-11-24T15:00:00Z;\r\n\tdnsbl=a.test (127.0.0.2);\r\n"
        b"\tcontent=spamd (score 7.1 of 5%3B VIAGRA %28x%29);\r\n\taction=file%3DSpam (zone a.test)\r\n"
    )


@given(text, st.lists(verdict, max_size=6), text)
@settings(max_examples=80, deadline=None)
def test_round_trip(ip: str, verdicts: list[Verdict], key: str) -> None:
    secrets = {key: b"s"}
    line = tag.signed(ip, NOW, verdicts, key, b"s", HEAD)
    assert line.isascii() and all(len(each) < 3000 for each in line.split(b"\r\n")) and b"\n" not in line.replace(b"\r\n", b"")
    [raw] = header.values(line + HEAD, tag.FIELD)
    found = tag.verified(line + HEAD, secrets, NOW)
    if key:
        assert found == tag.Tag(ip, NOW, tuple(verdicts), key), raw


@given(st.binary(max_size=200) | st.text(alphabet="ip=t; ()ks%20:-Z", max_size=80).map(str.encode))
@settings(max_examples=150, deadline=None)
def test_nothing_breaks_it(raw: bytes) -> None:
    tag.parse(raw)
    assert tag.verified(tag.FIELD + b": " + raw + b"\r\n" + HEAD, SECRETS, NOW) is None
