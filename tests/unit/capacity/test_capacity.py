"""The paper's figures, the formulas against a simulated day, and bad input named field by field."""

import json

import numpy as np
import pytest

from iems.capacity.constants import Constants, measured
from iems.capacity.forecast import as_json, forecast
from iems.capacity.paper import confirmed, disagreements
from iems.capacity.simulate import SPREAD, _apart, _together, around, simulate
from iems.capacity.site import Site, SiteError, make, octets, parse, scenario, scenario_names


def test_large_office_as_the_paper_has_it():
    site, paper = scenario("large-office")
    result = forecast(site)
    assert result.inbound_bytes_per_day == 37_500_000_000
    loads = {n: result.modules[n].load_percent for n in ("smtpd", "lmda", "imap")}
    assert {n: round(v) for n, v in loads.items()} == {"smtpd": 82, "lmda": 71, "imap": 87}
    assert result.first_bottleneck == "imap"
    assert result.modules["antivirus"].load_percent is None and result.modules["antivirus"].note
    assert disagreements(result, paper) == []
    assert result.users_at_saturation == 576


def test_fifty_connections_take_seven_megabytes():
    site, paper = scenario("pop-imap-50")
    result = forecast(site)
    assert result.memory_connections_bytes == 7_000_000
    assert result.memory_total_bytes == round((64_000_000 + 7_000_000) * 1.2)
    assert confirmed(result, paper)[0]["figure"] == "memory_connections_bytes"


def test_the_paper_errs_for_the_small_office():
    site, paper = scenario("small-office")
    (row,) = disagreements(forecast(site), paper)
    assert (row["figure"], row["paper"], row["ours"]) == ("inbound_bytes_per_day", 2_000_000, 50_000_000)
    assert "2 MB" in row["why"]


@pytest.mark.parametrize("name", scenario_names())
def test_every_scenario_agrees_or_says_why(name):
    site, paper = scenario(name)
    result = forecast(site)
    assert all(row["why"] != "not explained" for row in disagreements(result, paper))
    json.dumps(as_json(result))


def test_volumes_of_the_500_user_sites():
    gateway = forecast(scenario("gateway")[0])
    assert gateway.inbound_bytes_per_day == gateway.outbound_bytes_per_day == 1_000_000_000
    assert gateway.store_bytes == 0 and gateway.modules["lmda"].bytes_per_day == 0
    migration = forecast(scenario("exchange-migration")[0])
    assert migration.total_bytes_per_day == 2_000_000_000
    assert migration.memory_connections_bytes == 21_000_000
    assert forecast(scenario("large-office")[0]).memory_connections_bytes == 28_000_000


def test_bayes_adds_three_quarters_and_queues_two_to_four_times():
    result = forecast(make({"users": 1, "store_quota": "100M", "bayes": True, "messages_out": 2, "size": "1M"}))
    assert (result.store_bytes, result.bayes_bytes) == (100_000_000, 75_000_000)
    assert (result.queue_bytes_low, result.queue_bytes) == (4_000_000, 8_000_000)


def test_measured_rates_replace_the_papers():
    lines = ['{"module": "smtpd", "mb_per_min": 9500}', "", '{"rig": "other"}', '{"constant": "connection_octets", "value": 16000}']
    own = measured(lines)
    assert (own.smtpd_mb_per_min, own.connection_octets, own.source) == (9500, 16000, "measured")
    assert forecast(scenario("large-office")[0], own).modules["smtpd"].load_percent == pytest.approx(0.822, abs=0.001)


@pytest.mark.parametrize(
    ("line", "word"),
    [("nonsense", "line 1"), ("[]", "object"), ('{"module": "imap", "mb_per_min": -1}', "positive"), ('{"module": "imap", "mb_per_min": true}', "positive"),
     ('{"constant": "sourc", "value": 1}', "sourc"), ("", "no line")],
)  # fmt: skip
def test_measured_refuses_what_is_no_figure(line, word):
    with pytest.raises(ValueError, match=word):
        measured([line])


def test_everything_wrong_is_named_at_once():
    with pytest.raises(SiteError) as error:
        make({"users": -1, "size": "50Q", "relays": 1.5, "bayes": 1, "aktive": 3, "peak_hour_factor": float("nan")})
    fields = [problem.split(":")[0] for problem in error.value.problems]
    assert fields == ["users", "size", "relays", "bayes", "aktive", "peak_hour_factor"]
    assert "between 0 and" in error.value.problems[0] and "did you mean active" in error.value.problems[4]


@pytest.mark.parametrize(
    "values",
    [{"users": 5, "active": 6}, {"users": 5, "imap_share": 0.5}, {"list_postings_per_day": 1}, {"bayes": True, "local_store": False},
     {"content_filter_mb_per_min": 5}, {"antivirus_mb_per_min": 5}],
)  # fmt: skip
def test_contradictions_are_refused(values):
    with pytest.raises(SiteError):
        make(values)


def test_toml_and_sizes():
    site, paper = parse('users = 10\nsize = "2.5M"\n[paper]\nx = 1\n')
    assert (site.users, site.size, paper) == (10, 2_500_000, {"x": 1})
    assert [octets(t) for t in ("50K", "1 MB", "7", "2g")] == [50_000, 1_000_000, 7, 2_000_000_000]
    with pytest.raises(SiteError, match="not TOML"):
        parse("users = = 1")
    with pytest.raises(SiteError, match="did you mean gateway"):
        scenario("gatway")


def test_simulation_agrees_with_the_formulas_below_the_knee():
    site, _ = scenario("large-office")
    result = forecast(site)
    day = simulate(make({"users": 200, "messages_in": 300, "size": 250_000, "peak_hour_factor": 1}))
    for name in ("smtpd", "lmda", "imap"):
        expected = result.modules[name].load_percent * 200 / 500
        assert day.busy_percent[name] == pytest.approx(expected, rel=0.03)
    assert day.delay_p99_s < 5 and day.drained_s < 60


def test_simulation_shows_the_knee():
    def p99(users):
        return simulate(make({"users": users, "messages_in": 300, "size": 250_000, "peak_hour_factor": 1})).delay_p99_s

    easy, near, over = p99(250), p99(560), p99(800)
    assert easy < near < over
    assert over > 600, "past saturation mail waits for as long as the day goes on"


def test_simulation_with_shared_cores_and_disk():
    site = make({"users": 100, "messages_in": 100, "size": 250_000, "peak_hour_factor": 1, "cores": 2})
    day = simulate(site, stages_apart=False)
    assert set(day.busy_percent) == {"cpu", "disk"}
    apart = simulate(site)
    assert sum(apart.busy_percent.values()) == pytest.approx(day.busy_percent["cpu"] * 2 + day.busy_percent["disk"], rel=0.02)
    with pytest.raises(ValueError, match="nothing to simulate"):
        simulate(Site())


def test_constants_name_their_source():
    assert Constants().source.startswith("Site Planning Guide")


# What `iemsctl perf run` writes, cut to what matters: the machine, four rigs at two sizes, a peer beside them, memory of a connection.
RUN = [
    {"machine": {"cores": 2, "cpu": "X", "memory_octets": 8_000_000_000}, "write_mb_per_s": 300.0},
    {"rig": "smtp_accept", "case": "4096x1", "octets": 4096, "sessions": 1, "cpu_us": [800.0, 700.0, 900.0]},
    {"rig": "smtp_accept", "case": "4096x50", "octets": 4096, "sessions": 50, "cpu_us": [160.0, 150.0, 170.0]},
    {"rig": "smtp_accept", "case": "4096x50", "octets": 4096, "sessions": 50, "cpu_us": [1600.0] * 3, "peer": "postfix"},
    {"rig": "smtp_accept", "case": "4096x50", "versus": "postfix", "ratios": {"cpu_us": [10, 10, 10]}},
    {"rig": "smtp_accept", "case": "250000x10", "octets": 250_000, "sessions": 10, "cpu_us": [600.0] * 3, "module": "smtpd",
     "mb_per_min": 15_000.0},
    {"rig": "local_delivery", "case": "4096", "octets": 4096, "cpu_us": [60.0] * 3},
    {"rig": "local_delivery", "case": "250000", "octets": 250_000, "cpu_us": [150.0] * 3, "module": "lmda", "mb_per_min": 60_000.0},
    {"rig": "imap_fetch", "case": "250000x18", "octets": 250_000, "cpu_us": [120.0] * 3, "module": "imap", "mb_per_min": 90_000.0},
    {"rig": "relay", "case": "250000", "octets": 250_000, "cpu_us": [1000.0] * 3},
    {"rig": "relay", "case": "4096", "failed": "no"},
    {"rig": "memory", "case": "tls, a connection", "constant": "connection_octets", "value": 18_000, "octets_each": [18_000.0] * 3},
]  # fmt: skip


def own_constants():
    return measured(json.dumps(record) for record in RUN)


def test_a_run_calibrates_costs_cores_and_disk():
    own = own_constants()
    assert (own.cores, own.disk_mb_per_min, own.connection_octets, own.smtpd_mb_per_min) == (2, 18_000, 18_000, 15_000)
    assert own.costs["smtpd"].seconds(4096) == pytest.approx(160e-6) and own.costs["smtpd"].seconds(250_000) == pytest.approx(600e-6)
    assert own.costs["imap"].message_us == 0 and own.costs["imap"].seconds(250_000) == pytest.approx(120e-6)
    assert own.costs["smtpc"].seconds(250_000) == pytest.approx(400e-6), "what a relayed message takes beyond being taken in"


@pytest.mark.parametrize(
    "line",
    ['{"machine": {"cores": 0}}', '{"machine": {}, "write_mb_per_s": -1}', '{"rig": "smtp_accept", "octets": 4096, "cpu_us": [0]}',
     '{"rig": "relay", "octets": "x", "cpu_us": 5}', '{"constant": "costs", "value": 1}'],
)  # fmt: skip
def test_a_damaged_run_is_refused(line):
    with pytest.raises(ValueError, match="line 1"):
        measured([line])


def test_one_machine_with_measured_costs():
    own = own_constants()
    site = make({"users": 500, "messages_in": 300, "size": 250_000})
    one = forecast(site, own).one_machine
    assert one.cpu_s_per_message == pytest.approx((600 + 150 + 120) * 1e-6)
    # 150,000 messages of 0.87 ms in 8 hours on two cores
    assert one.cpu_percent == pytest.approx(150_000 * 0.87e-3 / (28_800 * 2) * 100)
    assert one.disk_percent == pytest.approx(37_500 / (480 * 18_000) * 100)
    worst = max(one.cpu_percent, one.disk_percent)
    assert one.users_at_saturation == int(500 * 100 / worst) and one.users_in_peak == int(500 * 100 / (worst * 2))
    assert one.messages_per_s == pytest.approx(150_000 / 28_800 * 100 / worst)
    assert forecast(site).one_machine is None, "the paper gives rates, not costs"
    assert forecast(make({"users": 5, "messages_in": 1, "pop3_share": 1.0, "imap_share": 0.0}), own).one_machine is None


def test_what_ends_first_on_one_machine():
    own = own_constants()
    site = make({"users": 500, "messages_in": 300, "size": 250_000})
    one = forecast(site, own).one_machine
    # 200 sessions of 18,000 + 200 * 100 octets; 64 MB of system; a fifth of margin
    per_user = 200 * (18_000 + 200 * 100) / 500
    assert one.users_by_memory == int((8e9 / 1.2 - 64e6) / per_user)
    assert one.users_carried == min(one.users_in_peak, one.users_by_memory, one.users_by_descriptors)
    assert one.limited_by in ("CPU", "disk", "memory", "file descriptors")
    small = forecast(make({"users": 5, "messages_in": 0.1, "size": 1000}), own).one_machine
    assert small.limited_by == "file descriptors"


def test_the_formulas_hold_in_a_day_of_measured_costs():
    own = own_constants()
    site = make({"users": 500, "messages_in": 300, "messages_out": 30, "size": 250_000, "peak_hour_factor": 1})
    one = forecast(site, own).one_machine
    days = dict(around(site, one.users_at_saturation, own))
    busiest = "disk" if one.disk_percent > one.cpu_percent else "cpu"
    assert days[1.0].busy_percent[busiest] == pytest.approx(100, abs=3)
    assert days[0.5].busy_percent[busiest] == pytest.approx(50, abs=2)
    assert days[0.5].delay_p99_s < days[0.95].delay_p99_s < days[1.1].delay_p99_s
    assert days[1.1].delay_p99_s > 20 * days[0.5].delay_p99_s, "past the knee delay only grows"


def test_a_simulated_queue_waits_as_long_as_theory_says():
    """One station, Poisson arrivals: the mean wait of M/G/1 is rho / (1 - rho) * (1 + cv^2) / 2 services (Pollaczek, Khinchine)."""
    service_s, load = 0.01, 0.8
    waits = []
    for seed in range(5):
        random = np.random.default_rng(seed)
        arrivals = np.cumsum(random.exponential(service_s / load, 100_000))
        service = random.gamma(1 / SPREAD**2, service_s * SPREAD**2, 100_000)
        done, busy, _ = _apart(arrivals, [("one", service)])
        waits.append(float((done[:, 0] - arrivals - service).mean()))
        assert busy["one"] == pytest.approx(1000, rel=0.02)
    assert np.mean(waits) == pytest.approx(load / (1 - load) * (1 + SPREAD**2) / 2 * service_s, rel=0.05)


def test_cores_share_the_work_first_come_first_served():
    arrivals = np.zeros(4)
    done, busy, longest = _together(arrivals, np.full((4, 1), 2.0), np.zeros((4, 1)), 2)
    assert sorted(done[:, 0]) == [2, 2, 4, 4] and busy == {"cpu": 4.0, "disk": 0.0} and longest == 4
    done, busy, _ = _together(arrivals, np.zeros((4, 1)), np.full((4, 1), 1.0), 2)
    assert sorted(done[:, 0]) == [1, 2, 3, 4], "there is one disk"


@pytest.mark.parametrize(("name", "figures"), [
    ("gateway", {"inbound_bytes_per_day": 1_000_000_000, "outbound_bytes_per_day": 1_000_000_000, "store_bytes": 0}),
    ("exchange-migration", {"inbound_bytes_per_day": 1_000_000_000, "total_bytes_per_day": 2_000_000_000, "active": 150,
                            "memory_connections_bytes": 21_000_000}),
    ("firewall", {"users": 500, "store_bytes": 0}),
    ("small-office", {"users": 25, "inbound_bytes_per_day": 50_000_000}),
    ("small-office-busy", {"inbound_bytes_per_day": 1_875_000_000}),
    ("large-office", {"inbound_bytes_per_day": 37_500_000_000, "active": 200, "memory_connections_bytes": 28_000_000}),
    ("relays-2000", {"users": 2_000, "stores_needed": 1}),
    ("pop-imap-50", {"memory_connections_bytes": 7_000_000}),
])  # fmt: skip
def test_figures_of_the_papers_sites(name, figures):
    result = forecast(scenario(name)[0])
    assert {key: getattr(result, key) for key in figures} == figures


def test_split_goes_in_the_papers_order():
    busy = forecast(scenario("large-office")[0])
    assert [step["part"] for step in busy.split] == ["antivirus", "message store", "lmda"]
    assert forecast(scenario("small-office")[0]).split == []
