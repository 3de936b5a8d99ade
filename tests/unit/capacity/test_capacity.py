"""The paper's figures, the formulas against a simulated day, and bad input named field by field."""

import json

import pytest

from iems.capacity.constants import Constants, measured
from iems.capacity.forecast import as_json, forecast
from iems.capacity.paper import confirmed, disagreements
from iems.capacity.simulate import simulate
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
