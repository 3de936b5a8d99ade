"""When a deferred recipient is tried again, when its sender is told of the delay, and when it is given up. Pure arithmetic.

All ages are in queue time (`iems.spool.clock`): a step of the wall clock bounces nothing.
"""

from __future__ import annotations

from msgspec import Struct


class Policy(Struct, frozen=True):
    """Settings of a channel's retries, in seconds (`smtpc.*`). delay_notice_s: 0 for never."""

    retry_s: float = 1800.0
    retry_max_s: float = 14_400.0
    lifetime_s: float = 432_000.0
    delay_notice_s: float = 14_400.0


class Decision(Struct, frozen=True):
    """expired: give up now. notify: tell the sender of the delay now. next_attempt_s: seconds from now otherwise."""

    expired: bool
    notify: bool
    next_attempt_s: float


def delay_s(policy: Policy, attempts: int) -> float:
    """Seconds until the next try after `attempts` (>= 1) tries (RFC 5321 4.5.4.1): doubles up to `retry_max_s`."""
    if attempts < 1:
        raise ValueError("attempts counts tries made")
    return min(policy.retry_s * 2.0 ** min(attempts - 1, 64), max(policy.retry_max_s, policy.retry_s))


def decide(
    policy: Policy, attempts: int, age_s: float, *, notice_due: bool, not_before_s: float = 0.0
) -> Decision:
    """What follows from one more failed try.

    attempts: tries made, this one included. age_s: of the message. notice_due: some recipient's sender wants to hear of a delay
    and has not. not_before_s: seconds the destination is left alone anyway.
    The last try comes at the end of the lifetime, not one delay before it; a notice that falls due meanwhile is a try, too.
    """
    if age_s >= policy.lifetime_s:
        return Decision(True, False, 0.0)
    next_s = max(delay_s(policy, attempts), not_before_s)
    notify = False
    if notice_due and policy.delay_notice_s > 0:
        if age_s >= policy.delay_notice_s:
            notify = True
        elif policy.delay_notice_s < policy.lifetime_s:
            next_s = min(next_s, policy.delay_notice_s - age_s)
    return Decision(False, notify, max(min(next_s, policy.lifetime_s - age_s), 0.0))
