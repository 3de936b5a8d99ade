"""The closed formulas of the calculator: a site and the constants in, loads, disk, memory and advice out."""

from __future__ import annotations

import math
import resource
from typing import Any

from msgspec import Struct, to_builtins

from iems.capacity.constants import MODULES, Constants, M
from iems.capacity.site import Site

#: Assumed where a planner says nothing of active users: the paper's sites have 30 % and 40 %.
ACTIVE_SHARE = 0.4
#: Parts to move to a machine of their own, in the paper's order (IEMS in a Distributed Environment).
SPLIT_ORDER = (
    ("antivirus", "anti-virus takes CPU in bursts and nobody waits for it"),
    ("imap", "the message store serves people who wait for an answer"),
    ("lmda", "the LMDA takes CPU as rules and filters grow"),
)


class ModuleLoad(Struct, frozen=True, kw_only=True):
    """Load of one module. load_percent: mean over the working day; None where nobody has measured the module's rate."""

    bytes_per_day: int
    mb_per_min: float
    rate_mb_per_min: float | None
    machines: int
    load_percent: float | None
    peak_percent: float | None
    note: str = ""


class OneMachine(Struct, frozen=True, kw_only=True):
    """All work on one machine of `cores` cores: only where the CPU time of a message was measured.

    cpu_percent, disk_percent: mean over the working day; peak: of the busier of the two in the peak hour. users_at_saturation: at
    which the day's mean uses all of it up; users_in_peak: the peak hour's; users_by_memory, users_by_descriptors: whose sessions
    there is room for (None: they take none, or the machine's memory is not known). users_carried: the least of the last three, ended
    by `limited_by`. messages_per_s: inbound messages at saturation.
    """

    cores: int
    cpu_s_per_message: float
    cpu_percent: float
    cpu_percent_by_module: dict[str, float]
    disk_percent: float | None
    peak_percent: float
    users_at_saturation: int | None
    users_in_peak: int | None
    users_by_memory: int | None
    users_by_descriptors: int | None
    users_carried: int | None
    limited_by: str | None
    messages_per_s: float | None


class Forecast(Struct, frozen=True, kw_only=True):
    """What a site needs. Octets unless the name says otherwise."""

    site: str
    title: str
    source: str
    users: int
    active: int
    inbound_bytes_per_day: int
    outbound_bytes_per_day: int
    list_bytes_per_day: int
    total_bytes_per_day: int
    client_bytes_per_day: int
    inbound_messages_per_day: float
    peak_mb_per_min: float
    modules: dict[str, ModuleLoad]
    first_bottleneck: str | None
    users_at_saturation: int | None
    users_comfortable: int | None
    store_bytes: int
    bayes_bytes: int
    queue_bytes_low: int
    queue_bytes: int
    log_bytes: int
    disk_bytes: int
    sessions: dict[str, int]
    memory_connections_bytes: int
    memory_total_bytes: int
    descriptors: int
    descriptors_limit: int
    processes: int
    workers: dict[str, int]
    stores_needed: int
    relays_needed: int
    split: list[dict[str, str]]
    one_machine: OneMachine | None
    warnings: list[str]


def forecast(site: Site, constants: Constants | None = None) -> Forecast:
    """What `site` needs on machines such as `constants` describes."""
    c = constants or Constants()
    active = site.active if site.active is not None else math.ceil(site.users * ACTIVE_SHARE)
    inbound = site.users * site.messages_in * site.size
    outbound = site.users * site.messages_out * site.size
    tagged = inbound * site.passthrough_share
    expanded = site.list_postings_per_day * site.list_members * site.size
    arriving = inbound + tagged
    delivered = (arriving + expanded) if site.local_store else 0.0
    client = delivered if site.client_bytes_per_day is None else float(site.client_bytes_per_day)
    leaving = outbound + (0.0 if site.local_store else arriving + expanded)

    volumes = {
        "smtpd": arriving + outbound * site.outbound_by_smtpd,
        "smtpc": leaving,
        "lmda": delivered,
        "imap": client * site.imap_share if site.local_store else 0.0,
        "pop3": client * site.pop3_share if site.local_store else 0.0,
        "web": client * site.web_share if site.local_store else 0.0,
        "directory": 0.0,
        "antivirus": (arriving + outbound) * site.antivirus_engines,
        "content_filter": arriving if site.content_filter else 0.0,
        "bayes": delivered if site.bayes else 0.0,
        "lists": expanded,
        "network": arriving + outbound,
        "disk": arriving + outbound + expanded,
    }
    modules = {name: _load(name, volumes[name], site, c) for name in MODULES}
    known = {n: m.load_percent for n, m in modules.items() if m.load_percent}
    first = max(known, key=lambda name: known[name]) if known else None
    worst = known[first] if first else 0.0

    store = site.users * site.store_quota if site.store_quota is not None else inbound * site.retention_days
    store = round(store * (1 + site.growth_per_year)) if site.local_store else 0
    bayes = round(store * (c.bayes_good_share + c.bayes_spam_share)) if site.bayes else 0
    queued = leaving if site.queue_max_messages is None else site.queue_max_messages * site.size
    messages = site.users * (site.messages_in * (1 + site.passthrough_share) + site.messages_out)
    logs = round(messages * site.log_days * c.log_octets_per_message)
    sessions = _sessions(site, active)
    connections = (sessions["imap"] + sessions["pop3"] + sessions["web"]) * c.connection_octets
    connections += sessions["imap"] * site.messages_per_mailbox * c.selected_message_octets
    resident = c.os_octets + c.component_octets + connections + site.other_memory_bytes
    workers = _workers(modules, sessions, c)
    descriptors = sum(sessions.values()) * c.descriptors_per_session + 64 * sum(workers.values())
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    stores_needed = _machines(modules, ("lmda", "imap", "pop3", "web"), c) if site.local_store else 0
    return Forecast(
        site=site.name,
        title=site.title or site.name,
        source=c.source,
        users=site.users,
        active=active,
        inbound_bytes_per_day=round(inbound),
        outbound_bytes_per_day=round(outbound),
        list_bytes_per_day=round(expanded),
        total_bytes_per_day=round(inbound + outbound),
        client_bytes_per_day=round(client) if site.local_store else 0,
        inbound_messages_per_day=site.users * site.messages_in,
        peak_mb_per_min=(arriving + outbound) / _minutes(c) / M * site.peak_hour_factor,
        modules=modules,
        first_bottleneck=first,
        users_at_saturation=math.floor(site.users * 100 / worst) if worst else None,
        users_comfortable=math.floor(site.users * c.comfortable_percent / worst) if worst else None,
        store_bytes=store,
        bayes_bytes=bayes,
        queue_bytes_low=round(queued * c.queue_factor_low),
        queue_bytes=round(queued * c.queue_factor_high),
        log_bytes=logs,
        disk_bytes=store + bayes + round(queued * c.queue_factor_high) + logs,
        sessions=sessions,
        memory_connections_bytes=connections,
        memory_total_bytes=round(resident * (1 + c.memory_margin)),
        descriptors=descriptors,
        descriptors_limit=limit,
        processes=1 + sum(workers.values()),
        workers=workers,
        stores_needed=stores_needed,
        relays_needed=_machines(modules, ("smtpd", "smtpc"), c),
        split=_split(modules, c),
        one_machine=_one_machine(modules, site, c, connections, resident, (descriptors, limit)),
        warnings=_warnings(modules, descriptors, limit, stores_needed, site),
    )


def as_json(result: Forecast) -> dict[str, Any]:
    """The forecast as plain values; percentages rounded to one decimal."""
    data: dict[str, Any] = to_builtins(result)
    for module in data["modules"].values():
        for key in ("load_percent", "peak_percent", "mb_per_min"):
            if module[key] is not None:
                module[key] = round(module[key], 1 if key != "mb_per_min" else 3)
    data["peak_mb_per_min"] = round(data["peak_mb_per_min"], 3)
    return data


def _one_machine(
    modules: dict[str, ModuleLoad], site: Site, c: Constants, connections: int, resident: int, descriptors: tuple[int, int]
) -> OneMachine | None:
    """What the measured costs say of a machine that does everything; None if any module with work has no measured cost."""
    working = [n for n in ("smtpd", "smtpc", "lmda", "imap", "pop3", "web") if modules[n].bytes_per_day]
    if not c.costs or any(n not in c.costs for n in working):
        return None
    cores = site.cores or c.cores
    day_s = c.working_day_h * 3600
    together = c.mix_factor if len(working) > 1 else 1.0
    busy = {n: modules[n].bytes_per_day / site.size * c.costs[n].seconds(site.size) * together for n in working}
    cpu = sum(busy.values()) / (day_s * cores) * 100
    disk_rate = c.disk_mb_per_min
    disk = None if disk_rate is None else modules["disk"].bytes_per_day / M / (day_s / 60) / disk_rate * 100
    worst = max(cpu, disk or 0.0)
    inbound = site.users * site.messages_in
    by_memory = by_descriptors = None
    if c.memory_octets is not None and connections:
        room = c.memory_octets / (1 + c.memory_margin) - (resident - connections)
        by_memory = max(0, math.floor(site.users * room / connections))
    needed, allowed = descriptors
    if needed and allowed > 0:
        by_descriptors = math.floor(site.users * allowed / needed)
    in_peak = math.floor(site.users * 100 / (worst * site.peak_hour_factor)) if worst else None
    ends = {
        "disk" if (disk or 0.0) > cpu else "CPU": in_peak,
        "memory": by_memory,
        "file descriptors": by_descriptors,
    }
    known = {name: users for name, users in ends.items() if users is not None}
    limited_by = min(known, key=lambda name: known[name]) if worst else None
    return OneMachine(
        cores=cores,
        cpu_s_per_message=sum(busy.values()) / inbound if inbound else 0.0,
        cpu_percent=cpu,
        cpu_percent_by_module={n: value / (day_s * cores) * 100 for n, value in busy.items()},
        disk_percent=disk,
        peak_percent=worst * site.peak_hour_factor,
        users_at_saturation=math.floor(site.users * 100 / worst) if worst else None,
        users_in_peak=in_peak,
        users_by_memory=by_memory,
        users_by_descriptors=by_descriptors,
        users_carried=known[limited_by] if limited_by else None,
        limited_by=limited_by,
        messages_per_s=inbound / day_s * 100 / worst if worst else None,
    )


def _minutes(c: Constants) -> float:
    return c.working_day_h * 60


def _machine_count(name: str, site: Site) -> int:
    if name in ("smtpd", "smtpc"):
        return site.relays
    return site.stores if name in ("lmda", "imap", "pop3", "web", "bayes", "disk") else 1


def _rate(name: str, site: Site, c: Constants) -> float | None:
    if name == "network":
        return None if site.line_bits_per_s is None else site.line_bits_per_s / 8 * 60 / M
    if name == "antivirus" and site.antivirus_mb_per_min is not None:
        return site.antivirus_mb_per_min
    if name == "content_filter" and site.content_filter_mb_per_min is not None:
        return site.content_filter_mb_per_min
    rate: float | None = getattr(c, f"{name}_mb_per_min", None)
    if name == "lmda" and rate is not None:
        return rate * (1 - site.mailsort_slowdown)
    return rate


_NO_RATE = {
    "antivirus": "the rate depends on the engine: set antivirus_mb_per_min",
    "content_filter": "no rate known: set content_filter_mb_per_min",
    "network": "no line speed given: set line_bits_per_s",
    "directory": "bound by CPU and memory; the paper gives no rate",
    "lists": "expanded copies are counted in the LMDA and SMTPC",
}


def _load(name: str, volume: float, site: Site, c: Constants) -> ModuleLoad:
    rate = _rate(name, site, c)
    machines = _machine_count(name, site)
    flow = volume / _minutes(c) / M
    percent = None if rate is None else flow / rate / machines * 100
    note = "" if rate is not None else _NO_RATE.get(name, "no rate known: measure it (--measured)")
    return ModuleLoad(
        bytes_per_day=round(volume),
        mb_per_min=flow,
        rate_mb_per_min=rate,
        machines=machines,
        load_percent=percent,
        peak_percent=None if percent is None else percent * site.peak_hour_factor,
        note=note,
    )


def _sessions(site: Site, active: int) -> dict[str, int]:
    def of(given: int | None, share: float) -> int:
        if given is not None:
            return given
        return math.ceil(active * share) if site.local_store else 0

    return {
        "smtpd": site.smtpd_sessions,
        "smtpc": site.smtpc_sessions,
        "imap": of(site.imap_sessions, site.imap_share),
        "pop3": of(site.pop3_sessions, site.pop3_share),
        "web": of(site.web_sessions, site.web_share),
    }


def _workers(modules: dict[str, ModuleLoad], sessions: dict[str, int], c: Constants) -> dict[str, int]:
    def count(module: str, held: int) -> int:
        load = modules[module].load_percent or 0.0
        return max(1, math.ceil(load / c.comfortable_percent), math.ceil(held / c.sessions_per_worker))

    return {
        "smtpd": count("smtpd", sessions["smtpd"]),
        "preprocessor": count("smtpd", 0),
        "lmda": count("lmda", 0),
        "store": 1,
        "imapd": count("imap", sessions["imap"]),
        "pop3d": count("pop3", sessions["pop3"]),
        "smtpc": count("smtpc", sessions["smtpc"]),
        "janitor": 1,
    }


def _machines(modules: dict[str, ModuleLoad], names: tuple[str, ...], c: Constants) -> int:
    most = max((modules[n].load_percent or 0.0) * modules[n].machines for n in names)
    return max(1, math.ceil(most / 100 - 1e-9)) if most <= 100 else math.ceil(most / c.comfortable_percent)


def _split(modules: dict[str, ModuleLoad], c: Constants) -> list[dict[str, str]]:
    """What to move first when the machine gets busy, in the paper's order; empty while nothing is above the comfortable load."""
    busy = [n for n, m in modules.items() if (m.load_percent or 0.0) >= c.comfortable_percent]
    if not busy:
        return []
    order = [(n, why) for n, why in SPLIT_ORDER if modules[n].bytes_per_day]
    return [{"part": "message store" if n == "imap" else n, "why": why} for n, why in order]


def _warnings(modules: dict[str, ModuleLoad], descriptors: int, limit: int, stores: int, site: Site) -> list[str]:
    found = [
        f"{name}: {load.load_percent:.0f} % of its rate over the working day: the queue never empties"
        for name, load in modules.items()
        if load.load_percent is not None and load.load_percent > 100
    ]
    found += [
        f"{name}: {load.peak_percent:.0f} % in the peak hour: mail waits until the peak is over"
        for name, load in modules.items()
        if load.load_percent is not None and load.load_percent <= 100 and (load.peak_percent or 0) > 100
    ]
    if descriptors > limit > 0:
        found.append(f"file descriptors: {descriptors:,} needed, {limit:,} allowed here (raise LimitNOFILE)")
    if stores > site.stores:
        found.append(f"stores: {stores} needed, {site.stores} planned")
    return found
