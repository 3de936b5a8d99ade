"""`iemsctl capacity` as a planner uses it."""

import json

from click.testing import CliRunner

from iems.cli.capacity import capacity
from tests.unit.capacity.test_capacity import RUN


def run(*arguments):
    return CliRunner().invoke(capacity, list(arguments))


def test_scenario_as_json():
    result = run("large-office", "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer["first_bottleneck"] == "imap"
    assert answer["modules"]["smtpd"]["load_percent"] == 82.2
    assert answer["inbound_bytes_per_day"] == 37_500_000_000
    assert answer["paper_hardware"] and answer["paper_disagreements"] == []


def test_table_says_where_the_paper_errs():
    result = run("small-office")
    assert result.exit_code == 0
    assert "50 MB" in result.stdout and "we get 50,000,000" in result.stdout


def test_own_site_from_options_and_file(tmp_path):
    result = run("--users", "100", "--active", "20", "--messages-in", "10", "--messages-out", "5", "--size", "50K", "--json")
    answer = json.loads(result.stdout)
    assert (answer["inbound_bytes_per_day"], answer["outbound_bytes_per_day"]) == (50_000_000, 25_000_000)
    file = tmp_path / "site.toml"
    file.write_text('users = 10\nmessages_in = 1\nsize = "1M"\n')
    assert json.loads(run("--file", str(file), "--json").stdout)["inbound_bytes_per_day"] == 10_000_000


def test_page_what_if_and_simulation(tmp_path):
    page = tmp_path / "site.html"
    result = run("large-office", "--html", str(page), "--what-if", "users=200..800", "--simulate")
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert text.count("<svg") == 3 and "http" not in text
    assert "simulated:" in result.stdout and "800" in result.stdout


def test_bad_input_names_the_field_and_exits_2(tmp_path):
    result = run("--users", "-5", "--size", "many")
    assert result.exit_code == 2
    assert "users: must be between 0" in result.stderr and "size: not a size" in result.stderr
    assert run().exit_code == 2
    assert run("gatewy").exit_code == 2
    assert run("gateway", "--what-if", "users=5").exit_code == 2
    wrong = tmp_path / "perf.jsonl"
    wrong.write_text("{")
    assert run("gateway", "--measured", str(wrong)).exit_code == 2
    assert run("--users", "3", "--set", "nonsense=1").exit_code == 2


def test_list():
    assert "large-office" in run("--list").stdout


def test_measured_run_and_pictures(tmp_path):
    file = tmp_path / "perf.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in RUN))
    result = run("large-office", "--measured", str(file), "--simulate", "--svg", str(tmp_path / "img"))
    assert result.exit_code == 0, result.output
    assert "rates: measured" in result.stdout and "on one machine, 2 cores" in result.stdout and "they agree" in result.stdout
    assert {p.name for p in (tmp_path / "img").iterdir()} == {f"capacity-large-office-{n}.svg" for n in ("load", "against", "delay")}
    answer = json.loads(run("large-office", "--measured", str(file), "--simulate", "--json").stdout)
    assert answer["one_machine"]["cores"] == 2 and answer["knee"]["agrees"] and answer["knee"]["part"] in ("cpu", "disk")
    assert answer["paper_disagreements"] == [], "the paper speaks of its own machines"


def test_knee_of_the_papers_rates():
    answer = json.loads(run("large-office", "--simulate", "--json").stdout)
    assert answer["knee"]["part"] == "imap" and answer["knee"]["users"] == 576 and answer["knee"]["agrees"]
