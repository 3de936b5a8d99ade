"""What becomes of tagged mail: white list, zones, all tags, the site; the strictest of several."""

from __future__ import annotations

import pytest

from iems.directory.entries import DirectoryRefusal
from iems.directory.spamcontrol import (
    MAX_ALLOWED,
    Action,
    Allowed,
    SpamControl,
    action_of,
    allowed_of,
    read,
    written,
)
from iems.lmda.spamcontrol import decide
from iems.model import Envelope, Verdict

FILE = Action("file", "Spam")
DISCARD, BOUNCE, IGNORE = Action("discard"), Action("bounce"), Action("ignore")
TAGS = (Verdict("dnsbl", "a.test", "127.0.0.2"), Verdict("dnsbl", "b.test", "127.0.0.3"), Verdict("helo", "x", "no such host"))


def envelope(path: bytes = b"s@out.test", ip: str = "192.0.2.8", verdicts: tuple[Verdict, ...] = TAGS) -> Envelope:
    return Envelope(1, path, [], 0, client_ip=ip, verdicts=verdicts)


@pytest.mark.parametrize(
    ("control", "verdicts", "expected"),
    [
        (None, TAGS, (FILE, "site")),
        (SpamControl(), TAGS, (FILE, "site")),
        (SpamControl(DISCARD), TAGS, (DISCARD, "all tags")),
        (SpamControl(None, {"b.test": BOUNCE}), TAGS, (BOUNCE, "zone b.test")),
        (SpamControl(IGNORE, {"b.test": BOUNCE}), TAGS[:1], (IGNORE, "all tags")),
        (SpamControl(DISCARD, {"a.test": IGNORE}), TAGS[:1], (IGNORE, "zone a.test")),
        (SpamControl(DISCARD, {"a.test": IGNORE}), TAGS, (DISCARD, "all tags")),
        (SpamControl(IGNORE, {"x": DISCARD}), TAGS[2:], (IGNORE, "all tags")),
    ],
)
def test_strictest(control: SpamControl | None, verdicts: tuple[Verdict, ...], expected: tuple[Action, str]) -> None:
    assert decide(envelope(verdicts=verdicts), b"", control, FILE) == expected


@pytest.mark.parametrize(
    ("value", "path", "ip", "head", "covered"),
    [
        ("S@Out.Test", b"s@OUT.test", "192.0.2.8", b"", True),
        ("s@out.test", b"t@out.test", "192.0.2.8", b"From: S <s@out.test>\r\n\r\n", True),
        ("s@out.test", b"", "", b"From: s@out.test\r\nFrom: t@out.test\r\n\r\n", False),
        ("s@out.test", b"", "", b"From: s@out.test, t@out.test\r\n\r\n", False),
        ("s@out.test", b"", "", b"X: y\r\n\r\nFrom: s@out.test\r\n", False),
        ("*@out.test", b"any@out.test", "", b"", True),
        ("*@out.test", b"any@sub.out.test", "", b"", False),
        ("*.out.test", b"any@sub.out.test", "", b"", True),
        ("*.out.test", b"any@out.test", "", b"", False),
        ("out.test", b"any@notout.test", "", b"", False),
        ("192.0.2.8", b"", "192.0.2.8", b"", True),
        ("192.0.2.0-192.0.2.255", b"", "192.0.2.8", b"", True),
        ("192.0.2.0-192.0.2.7", b"", "192.0.2.8", b"", False),
        ("192.0.2.0/24", b"", "192.0.2.8", b"", True),
        ("192.0.2.0/24", b"", "2001:db8::1", b"", False),
        ("2001:db8::/32", b"", "2001:db8::1", b"", True),
        ("192.0.2.8", b"", "", b"", False),
    ],
)
def test_white_list(value: str, path: bytes, ip: str, head: bytes, covered: bool) -> None:
    control = SpamControl(DISCARD, {}, (allowed_of(value),))
    found = decide(envelope(path, ip), head, control, FILE)
    assert found == ((IGNORE, "white list") if covered else (DISCARD, "all tags"))


def test_what_is_kept_is_what_was_chosen() -> None:
    control = SpamControl(FILE, {"b.test": action_of("file=A/B c"), "a.test": DISCARD}, (allowed_of("*.x.test"), allowed_of("10.0.0.1 - 10.0.0.9")))
    assert read({name: values for name, values in written(control).items() if values}) == control
    assert read({}) is None and not any(written(SpamControl()).values())
    with pytest.raises(DirectoryRefusal):
        written(SpamControl(allow=(Allowed("ip", "192.0.2.1"),) * (MAX_ALLOWED + 1)))
    with pytest.raises(DirectoryRefusal):
        written(SpamControl(zones={f"z{n}.test": DISCARD for n in range(65)}))


@pytest.mark.parametrize("text", ["", "delete", "discard=x", "file=\r\nX", "file=" + "x" * 2000, "ignore=INBOX"])
def test_no_action(text: str) -> None:
    with pytest.raises(DirectoryRefusal):
        action_of(text)
