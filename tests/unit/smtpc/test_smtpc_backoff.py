"""Retries, delay notices and giving up, as arithmetic."""

import pytest

from iems.smtpc.backoff import Decision, Policy, decide, delay_s


def test_delays_double_up_to_the_limit():
    policy = Policy()
    assert [delay_s(policy, n) for n in range(1, 7)] == [1800, 3600, 7200, 14400, 14400, 14400]
    assert delay_s(policy, 10**6) == 14400
    assert delay_s(Policy(retry_s=9e9), 3) == 9e9  # a first delay above the limit stays as it is set
    with pytest.raises(ValueError):
        delay_s(policy, 0)


def test_a_whole_life():
    """Ages of the tries of a message that never gets through: one notice, the last try at the end of the lifetime."""
    policy = Policy()
    age, attempts, noticed, ages = 0.0, 0, None, []
    while True:
        attempts += 1
        ages.append(age)
        decision = decide(policy, attempts, age, notice_due=noticed is None)
        if decision.expired:
            break
        if decision.notify:
            assert noticed is None
            noticed = age
        age += decision.next_attempt_s
    assert ages[:5] == [0, 1800, 5400, 12600, 14400] and noticed == 14400
    assert ages[-1] == policy.lifetime_s and len(ages) < 40


def test_no_notice():
    assert decide(Policy(delay_notice_s=0), 1, 20_000, notice_due=True) == Decision(False, False, 1800)
    assert decide(Policy(), 1, 20_000, notice_due=False) == Decision(False, False, 1800)
    assert decide(Policy(lifetime_s=100, delay_notice_s=200), 1, 0, notice_due=True).next_attempt_s == 100


def test_not_before():
    assert decide(Policy(retry_s=1), 1, 0, notice_due=False, not_before_s=60).next_attempt_s == 60
    assert decide(Policy(retry_s=1, lifetime_s=30), 1, 0, notice_due=False, not_before_s=60).next_attempt_s == 30
