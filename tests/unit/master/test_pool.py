"""Decisions of the master: no process, a passed-in clock."""

from __future__ import annotations

from iems.master.board import State
from iems.master.pool import (
    SECOND,
    Action,
    Farm,
    Kill,
    Member,
    Policy,
    Pool,
    Retire,
    Spawn,
    Wait,
    decide,
    died,
    respawn_delay_ns,
)

NOW = 1_000 * SECOND
POLICY = Policy(
    ready_ns=60 * SECOND,
    heartbeat_limit_ns=30 * SECOND,
    respawn_min_ns=SECOND // 4,
    respawn_max_ns=60 * SECOND,
    drain_ns=10 * SECOND,
    retire_ns=3600 * SECOND,
)


def member(index: int = 0, generation: int = 1, state: State = State.READY, **more: object) -> Member:
    given = {
        "role": "smtpd",
        "slot": index,
        "pid": 100 + index,
        "started_ns": NOW,
        "heartbeat_ns": NOW,
        **more,
    }
    return Member(index=index, generation=generation, state=state, **given)


def farm(*members: Member, workers: int = 2, generation: int = 1, **more: object) -> Farm:
    return Farm(generation, [Pool("smtpd", workers, list(members), **more)])


def acts(found: list[Action]) -> list[Action]:
    assert isinstance(found[-1], Wait)
    assert sum(isinstance(action, Wait) for action in found) == 1
    return found[:-1]


def test_starts_what_is_missing() -> None:
    assert acts(decide(NOW, farm(member(1)), POLICY)) == [Spawn("smtpd", 0)]
    assert acts(decide(NOW, farm(member(0), member(1)), POLICY)) == []


def test_delay_doubles_and_is_bounded() -> None:
    delays = [respawn_delay_ns(failures, POLICY) / SECOND for failures in range(12)]
    assert delays[:5] == [0, 0.25, 0.5, 1.0, 2.0]
    assert delays[-1] == 60.0
    assert respawn_delay_ns(10**6, POLICY) == POLICY.respawn_max_ns


def test_death_before_the_first_job_slows_respawning() -> None:
    state = farm(member(0, state=State.STARTING), workers=1)
    pool = state.pools[0]
    died(pool, pool.members[0], NOW, POLICY, expected=False)
    found = decide(NOW, state, POLICY)
    assert acts(found) == [] and found[-1] == Wait(NOW + SECOND // 4)
    assert acts(decide(NOW + SECOND // 4, state, POLICY)) == [Spawn("smtpd", 0)]


def test_death_after_a_job_is_replaced_at_once() -> None:
    state = farm(member(0, jobs=1), workers=1, failures={0: 5})
    pool = state.pools[0]
    died(pool, pool.members[0], NOW, POLICY, expected=False)
    assert acts(decide(NOW, state, POLICY)) == [Spawn("smtpd", 0)]
    assert pool.failures == {0: 0}


def test_an_expected_death_changes_no_delay() -> None:
    state = farm(member(0), workers=1)
    died(state.pools[0], state.pools[0].members[0], NOW, POLICY, expected=True)
    assert state.pools[0].failures == {} and acts(decide(NOW, state, POLICY)) == [Spawn("smtpd", 0)]


def test_limits_of_one_worker() -> None:
    silent = member(0, heartbeat_ns=NOW - 31 * SECOND)
    assert acts(decide(NOW, farm(silent, workers=1), POLICY)) == [Kill(silent, "no sign of life")]
    slow = member(0, state=State.STARTING, started_ns=NOW - 61 * SECOND)
    assert acts(decide(NOW, farm(slow, workers=1), POLICY)) == [Kill(slow, "not ready in time")]
    stuck = member(0, job_deadline_ns=NOW - 1)
    assert acts(decide(NOW, farm(stuck, workers=1), POLICY)) == [Kill(stuck, "its job is past its deadline")]
    stuck.killed = True
    assert acts(decide(NOW, farm(stuck, workers=1), POLICY)) == []


def test_the_writer_others_wait_for_is_killed_first() -> None:
    writer = member(0, heartbeat_ns=NOW - 31 * SECOND, writing=True)
    waiting = member(1, heartbeat_ns=NOW - 31 * SECOND)
    state = farm(writer, waiting)
    found = acts(decide(NOW, state, POLICY))
    assert found == [Kill(writer, "no sign of life in a write transaction", grace=True)]
    writer.killed = True
    state.grace_ns = NOW + 30 * SECOND
    assert acts(decide(NOW, state, POLICY)) == []
    assert acts(decide(NOW + 31 * SECOND, state, POLICY)) == [Kill(waiting, "no sign of life")]


def test_reload_retires_the_old_when_the_new_are_ready() -> None:
    old = [member(0, 1), member(1, 1)]
    state = farm(*old, generation=2)
    assert acts(decide(NOW, state, POLICY)) == [Spawn("smtpd", 0), Spawn("smtpd", 1)]
    fresh = [member(0, 2), member(1, 2, State.STARTING)]
    state.pools[0].members += fresh
    assert acts(decide(NOW, state, POLICY)) == []
    fresh[1].state = State.READY
    deadline = NOW + POLICY.drain_ns + POLICY.retire_ns + 2 * SECOND
    assert acts(decide(NOW, state, POLICY)) == [Retire(each, True, deadline) for each in old]
    for each in old:
        each.deadline_ns = deadline
    assert acts(decide(NOW, state, POLICY)) == []


def test_an_exclusive_role_is_never_two_at_once() -> None:
    old = member(0, 1)
    state = farm(old, workers=1, generation=2, exclusive=True)
    found = acts(decide(NOW, state, POLICY))
    assert found == [Retire(old, False, NOW + POLICY.drain_ns + 2 * SECOND)]
    old.deadline_ns = NOW + 1 * SECOND
    assert acts(decide(NOW, state, POLICY)) == []
    state.pools[0].members.clear()
    assert acts(decide(NOW, state, POLICY)) == [Spawn("smtpd", 0)]


def test_fewer_workers() -> None:
    state = farm(member(0), member(1), workers=1)
    (action,) = acts(decide(NOW, state, POLICY))
    assert isinstance(action, Retire) and action.member.index == 1 and action.gentle


def test_a_role_switched_off_is_retired() -> None:
    state = farm(member(0, 1), workers=0, generation=2)
    (action,) = acts(decide(NOW, state, POLICY))
    assert isinstance(action, Retire)


def test_stop_drains_the_store_last() -> None:
    session, writer = member(0), member(0, role="store")
    state = Farm(1, [Pool("store", 1, [writer], last=True), Pool("smtpd", 1, [session])], stop_ns=NOW)
    by_ns = NOW + 12 * SECOND
    assert acts(decide(NOW, state, POLICY)) == [Retire(session, False, by_ns)]
    session.deadline_ns = by_ns
    assert acts(decide(NOW, state, POLICY)) == []
    state.pools[1].members.clear()
    assert acts(decide(NOW, state, POLICY)) == [Retire(writer, False, by_ns)]


def test_stop_cuts_a_gentle_retirement_short() -> None:
    leaving = member(0, state=State.RETIRING, deadline_ns=NOW + 3600 * SECOND)
    state = Farm(1, [Pool("smtpd", 1, [leaving])], stop_ns=NOW)
    assert acts(decide(NOW, state, POLICY)) == [Retire(leaving, False, NOW + 12 * SECOND)]


def test_stop_ends_who_does_not_leave() -> None:
    stuck = member(0, state=State.DRAINING, deadline_ns=NOW)
    state = Farm(1, [Pool("smtpd", 1, [stuck])], stop_ns=NOW - 12 * SECOND)
    assert acts(decide(NOW, state, POLICY)) == [Kill(stuck, "did not leave in time")]
