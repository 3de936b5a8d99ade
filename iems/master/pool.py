"""What the master does next: a pure function of the clock and of what it knows about its workers.

`decide` forks nothing and kills nothing; it returns actions, which `supervisor` carries out. So policy (respawn delays,
reload order, drain order, deadlines) is tested without a process.
"""

from __future__ import annotations

from msgspec import Struct, field

from iems.master.board import State

SECOND = 1_000_000_000
#: A worker that lived this long is no sign of a crash loop.
WORKED_NS = 10 * SECOND


class Policy(Struct, frozen=True):
    """Times of the section [master], in ns."""

    ready_ns: int
    heartbeat_limit_ns: int
    respawn_min_ns: int
    respawn_max_ns: int
    drain_ns: int
    retire_ns: int


class Member(Struct):
    """One living worker. deadline_ns: when it must be gone, 0 while it serves. jobs: messages it has taken so far."""

    role: str
    index: int
    slot: int
    pid: int
    generation: int
    state: State
    started_ns: int
    heartbeat_ns: int
    job_deadline_ns: int = 0
    writing: bool = False
    deadline_ns: int = 0
    jobs: int = 0
    killed: bool = False


class Pool(Struct):
    """One role. failures, retry_ns: by index, of workers that died before their first job.

    exclusive: two generations must not live at once (the store's writer). last: drained after the others at a stop.
    """

    role: str
    workers: int
    members: list[Member] = field(default_factory=list)
    failures: dict[int, int] = field(default_factory=dict)
    retry_ns: dict[int, int] = field(default_factory=dict)
    exclusive: bool = False
    last: bool = False


class Farm(Struct):
    """All pools. generation: of the settings in force. stop_ns: when the stop was asked for, 0 if it was not.

    grace_ns: until then no silent worker is killed, as the one they all waited for has just been.
    """

    generation: int
    pools: list[Pool]
    stop_ns: int = 0
    grace_ns: int = 0


class Spawn(Struct, frozen=True):
    """Start worker `index` of the role with the settings in force."""

    role: str
    index: int


class Retire(Struct, frozen=True):
    """Tell a worker to stop accepting and to leave when its sessions have ended (gentle), or to drain now."""

    member: Member
    gentle: bool
    deadline_ns: int


class Kill(Struct, frozen=True):
    """End a worker at once. grace: spare the other silent ones for a while."""

    member: Member
    why: str
    grace: bool = False


class Wait(Struct, frozen=True):
    """Nothing to do before `until_ns`, unless a worker dies, reports or the operator speaks."""

    until_ns: int


Action = Spawn | Retire | Kill | Wait


def respawn_delay_ns(failures: int, policy: Policy) -> int:
    """The wait after the `failures`-th death in a row before a first job: doubling, bounded. 0 failures: none."""
    if failures <= 0:
        return 0
    return min(policy.respawn_min_ns << min(failures - 1, 32), policy.respawn_max_ns)


def died(pool: Pool, member: Member, now_ns: int, policy: Policy, expected: bool) -> None:
    """Takes a dead worker out of its pool and sets when its place may be filled again.

    A worker that died before its first job (or before it was ready) slows respawning; one that dies later is replaced at
    once. A worker that was ready for `WORKED_NS` counts as having worked, even if there was nothing to do.
    """
    pool.members.remove(member)
    if expected:
        return
    served = member.state is not State.STARTING and (
        member.jobs > 0 or now_ns - member.started_ns > WORKED_NS
    )
    failures = 0 if served else pool.failures.get(member.index, 0) + 1
    pool.failures[member.index] = failures
    pool.retry_ns[member.index] = now_ns + respawn_delay_ns(failures, policy)


def decide(now_ns: int, farm: Farm, policy: Policy) -> list[Action]:
    """What to do now. The last action is always one Wait."""
    actions: list[Action] = []
    wakes = [now_ns + 60 * SECOND]
    silent: list[Member] = []
    for pool in farm.pools:
        _watch(now_ns, pool, policy, actions, wakes, silent)
        if farm.stop_ns:
            _stop(now_ns, farm, pool, policy, actions)
        else:
            _fill(now_ns, farm, pool, policy, actions, wakes)
    _end_silent(now_ns, farm, policy, silent, actions, wakes)
    actions.append(Wait(max(min(wakes), now_ns)))
    return actions


def _watch(
    now_ns: int, pool: Pool, policy: Policy, actions: list[Action], wakes: list[int], silent: list[Member]
) -> None:
    """Deadlines of single workers."""
    for member in pool.members:
        if member.killed:
            continue
        stale_ns = member.heartbeat_ns + policy.heartbeat_limit_ns
        limits = [(stale_ns, "")]
        if member.state is State.STARTING:
            limits.append((member.started_ns + policy.ready_ns, "not ready in time"))
        if member.job_deadline_ns:
            limits.append((member.job_deadline_ns, "its job is past its deadline"))
        if member.deadline_ns:
            limits.append((member.deadline_ns, "did not leave in time"))
        over = [why for at_ns, why in limits if at_ns <= now_ns]
        if any(over):
            actions.append(Kill(member, next(why for why in over if why)))
        elif over:
            silent.append(member)
        else:
            wakes.append(min(at_ns for at_ns, _ in limits))


def _end_silent(
    now_ns: int, farm: Farm, policy: Policy, silent: list[Member], actions: list[Action], wakes: list[int]
) -> None:
    """Kills workers whose loop gives no sign; first the one in a write transaction the others may be waiting for."""
    if not silent:
        return
    if now_ns < farm.grace_ns:
        wakes.append(farm.grace_ns)
        return
    writers = [member for member in silent if member.writing]
    if writers and len(writers) < len(silent):
        actions.extend(
            Kill(member, "no sign of life in a write transaction", grace=True) for member in writers
        )
        wakes.append(now_ns + policy.heartbeat_limit_ns)
    else:
        actions.extend(Kill(member, "no sign of life") for member in silent)


def _fill(
    now_ns: int, farm: Farm, pool: Pool, policy: Policy, actions: list[Action], wakes: list[int]
) -> None:
    """Starts what is missing, then retires what is old: the old serve until the new are ready."""
    current = {
        member.index: member
        for member in pool.members
        if member.generation == farm.generation and not member.deadline_ns
    }
    old = [member for member in pool.members if member.generation != farm.generation]
    blocked = pool.exclusive and bool(old)
    for index in range(pool.workers):
        if index in current or blocked:
            continue
        retry_ns = pool.retry_ns.get(index, 0)
        if retry_ns <= now_ns:
            actions.append(Spawn(pool.role, index))
        else:
            wakes.append(retry_ns)
    for index, member in current.items():
        if index >= pool.workers:
            actions.append(Retire(member, True, _retire_by(now_ns, policy)))
    ready = all(index in current and current[index].state is State.READY for index in range(pool.workers))
    if ready or pool.exclusive:
        actions.extend(
            Retire(member, not pool.exclusive, _retire_by(now_ns, policy, pool.exclusive))
            for member in old
            if not member.deadline_ns
        )


def _retire_by(now_ns: int, policy: Policy, at_once: bool = False) -> int:
    return now_ns + policy.drain_ns + 2 * SECOND + (0 if at_once else policy.retire_ns)


def _stop(now_ns: int, farm: Farm, pool: Pool, policy: Policy, actions: list[Action]) -> None:
    """Drains: first the roles that take work, then those they lean on (store, janitor)."""
    by_ns = farm.stop_ns + policy.drain_ns + 2 * SECOND
    if pool.last:
        if any(other.members for other in farm.pools if not other.last):
            return
        # The others may have used up all the time; what is left of a batch commit still gets its own.
        by_ns = max(by_ns, now_ns + 3 * SECOND)
    for member in pool.members:
        if not member.deadline_ns or (member.deadline_ns > by_ns and member.state is not State.DRAINING):
            actions.append(Retire(member, False, by_ns))
