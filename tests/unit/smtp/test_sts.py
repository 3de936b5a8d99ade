"""The texts of MTA-STS."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.smtp.sts import MAX_AGE_S, StsPolicy, parse_policy, record_id

GOOD = b"version: STSv1\r\nmode: enforce\nmx: mail.example.test\nmx: *.example.net\nmax_age: 86400\n"


@pytest.mark.parametrize(
    ("records", "found"),
    [
        ([b"v=STSv1; id=20160831085700Z;"], "20160831085700Z"),
        ([b"v=spf1 -all", b"v=STSv1 ;id=a; more=1"], "a"),
        ([b"v=STSv1; id=a", b"v=STSv1; id=b"], None),
        ([b"v=STSv1; id=a-b"], None),
        ([b"v=STSv1;"], None),
        ([b"v=STSv2; id=a"], None),
        ([b"v=STSv1; id=" + b"a" * 33], None),
        ([], None),
    ],
)
def test_record(records, found):
    assert record_id(records) == found


def test_policy():
    policy = parse_policy(GOOD, "x")
    assert policy == StsPolicy("enforce", ("mail.example.test", "*.example.net"), 86400, "x")
    covered = {name: policy.covers(name) for name in ("Mail.Example.test.", "a.example.net", "example.net", "a.b.example.net", "x.mail.example.test")}
    assert list(covered.values()) == [True, True, False, False, False]
    assert parse_policy(b"version: STSv1\nmode: none\nmax_age: 99999999").max_age_s == MAX_AGE_S


@pytest.mark.parametrize(
    "text",
    [
        b"", b"\xff\xfe", GOOD.replace(b"STSv1", b"STSv2"), GOOD.replace(b"enforce", b"maybe"), GOOD.replace(b"86400", b"-1"),
        GOOD.replace(b"mail.", b"m*il."), b"version: STSv1\nmode: enforce\nmax_age: 1", GOOD + b"x" * 70_000,
        b"version: STSv1\nmode: testing\nmax_age: 1\n" + b"mx: a.test\n" * 300,
    ],
)  # fmt: skip
def test_no_policy(text):
    with pytest.raises(ValueError, match="polic"):
        parse_policy(text)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([b"version: STSv1", b"mode: enforce", b"mx: a.test", b"max_age: 5", b"mx:", b":", b"\n", b"\r\n", b"\xc3", b"mx: *"])))
def test_any_text_is_a_policy_or_a_value_error(pieces):
    try:
        policy = parse_policy(b"\n".join(pieces))
    except ValueError:
        return
    assert policy.mx and not policy.covers("b.test")
