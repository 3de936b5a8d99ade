"""docs/capacity.md and its pictures are what the tool makes."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from iems.capacity.site import MEANING, Site, scenario_names
from iems.cli.capacity import capacity

DOCS = Path(__file__).parents[3] / "docs"


def test_fields_are_those_of_the_program():
    made = CliRunner().invoke(capacity, ["--fields"]).stdout.strip()
    page = (DOCS / "capacity.md").read_text()
    begun = page.index("<!-- made by: iemsctl capacity --fields -->")
    assert page[begun : page.index("<!-- end -->")].split("\n", 1)[1].strip() == made
    assert set(MEANING) == set(Site.__struct_fields__)


def test_every_scenario_is_told_of():
    page = (DOCS / "capacity.md").read_text()
    assert all(f"| {name} |" in page for name in scenario_names())


@pytest.mark.parametrize("name", ["load", "against"])
def test_pictures_are_made_by_the_tool(tmp_path, name):
    assert CliRunner().invoke(capacity, ["large-office", "--svg", str(tmp_path)]).exit_code == 0
    file = f"capacity-large-office-{name}.svg"
    assert (tmp_path / file).read_text() == (DOCS / "img" / file).read_text()


def test_the_site_of_the_page_is_one(tmp_path):
    page = (DOCS / "capacity.md").read_text()
    text = page.split("```toml\n", 1)[1].split("```", 1)[0]
    (tmp_path / "site.toml").write_text(text)
    result = CliRunner().invoke(capacity, ["--file", str(tmp_path / "site.toml"), "--json"])
    assert result.exit_code == 0, result.stderr
