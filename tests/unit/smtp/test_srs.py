"""Rewritten reverse paths: back again, never for a forger."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.smtp.srs import Forged, Rewriter

OURS = Rewriter(b"secret of sixteen+", "our.test")
OTHER = Rewriter(b"another secret, too", "first.test")


def test_there_and_back():
    made = OURS.encode(b"Anna@example.net", 20_000)
    assert made.startswith(b"SRS0=") and made.endswith(b"=example.net=Anna@our.test")
    assert OURS.decode(made, 20_000) == OURS.decode(made, 20_021) == b"Anna@example.net"
    assert OURS.decode(made.lower(), 20_000) == b"anna@example.net"  # a host that changes case
    for day in (20_022, 19_999):
        with pytest.raises(Forged, match="old"):
            OURS.decode(made, day)


def test_a_second_hop_keeps_the_first():
    first = OTHER.encode(b"a@x.test", 5)
    second = OURS.encode(first, 5)
    assert second.startswith(b"SRS1=") and b"=first.test==" in second
    assert OURS.decode(second, 5) == first
    third = Rewriter(b"a third secret, long", "third.test").encode(second, 5)
    assert third.startswith(b"SRS1=") and b"=first.test==" in third and third.endswith(b"@third.test")
    assert OTHER.decode(Rewriter(b"a third secret, long", "third.test").decode(third, 5), 5) == b"a@x.test"


@pytest.mark.parametrize(
    "address", [b"", b"anna@our.test", b"nobody", b'"a b"@x.test', b"a@[192.0.2.1]", b"a" * 60 + b"@x.test", b"SRS1=broken@x.test"]
)
def test_kept_as_it_is(address):
    assert OURS.encode(address, 1) == address


@pytest.mark.parametrize(
    "address",
    [
        b"SRS0=aaaaaa=aa=x.test=a@our.test", b"SRS0=@our.test", b"srs1=x@our.test", b"SRS0=aaaaaa=!!=x.test=a@our.test",
        OTHER.encode(b"a@x.test", 5).replace(b"first.test", b"our.test"),
    ],
)  # fmt: skip
def test_forged(address):
    with pytest.raises(Forged):
        OURS.decode(address, 5)


def test_not_ours():
    assert OURS.decode(b"SRS0=aaaaaa=aa=x.test=a@else.test", 5) is None
    assert OURS.decode(b"srs0@our.test", 5) is None
    with pytest.raises(ValueError, match="16"):
        Rewriter(b"short", "x.test")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 100_000))
def test_any_octets(octets, day):
    try:
        OURS.decode(b"SRS0=" + octets + b"@our.test", day)
    except Forged:
        pass
    else:
        raise AssertionError("a forged address was undone")
    made = OURS.encode(octets + b"@x.test", day)
    if made.endswith(b"@our.test") and made.startswith(b"SRS0"):
        assert OURS.decode(made, day) == octets + b"@x.test"
