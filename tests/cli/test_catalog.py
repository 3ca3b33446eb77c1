"""`mesh catalog` and `mesh lineage`, as a person sees them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dagster_project.cli.app import app
from dagster_project.failures import CatalogError
from dagster_project.settings import Settings, get_settings
from dagster_project.transformation.compiled import read_compiled


@pytest.fixture(scope="session")
def parsed() -> Path:
    """A dbt project that is parsed and compiled already."""
    read_compiled()
    return get_settings().dbt_target


@pytest.fixture
def home(
    parsed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_settings: None
) -> Settings:
    shutil.copytree(parsed, tmp_path / "home" / "dbt")
    monkeypatch.setenv("MESH_HOME", str(tmp_path / "home"))
    get_settings.cache_clear()
    return get_settings()


def mesh(*arguments: str) -> Result:
    ended = CliRunner().invoke(app, arguments)
    if ended.exception and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    return ended


def test_what_is_emitted_is_checked_and_a_fault_is_named(home: Settings) -> None:
    with pytest.raises(CatalogError, match="`mesh catalog emit` writes it"):
        mesh("catalog", "check")

    told = mesh("catalog", "emit").output
    path = home.home / "catalog" / "local" / "metadata.json"
    records = json.loads(path.read_text())
    assert f"datasets of 4 domains in {len(records):,} records: {path}" in told
    assert f"{len(records):,} records, all valid" in mesh("catalog", "check").output

    gone = records[-1]["entityUrn"].replace("fct_", "gone_")
    path.write_text(json.dumps([*records, {**records[-1], "entityUrn": gone}]))
    assert (
        f"in {len(records):,} records, 1 of what is gone: {path}" in mesh("catalog", "emit").output
    )
    *same, last = json.loads(path.read_text())
    assert same == records
    assert (last["entityUrn"], last["aspect"]["json"]) == (gone, {"removed": True})
    assert f"{len(records) + 1:,} records, all valid" in mesh("catalog", "check").output

    path.write_text("{")
    told = mesh("catalog", "emit").output
    assert "not valid JSON" in told
    assert "What it told and is gone is not taken back" in told
    assert json.loads(path.read_text()) == records

    records[7]["aspectName"] = "ownerships"
    path.write_text(json.dumps(records))
    ended = mesh("catalog", "check")
    assert ended.exit_code == 1
    assert "record 8: ownerships of urn:li:" in ended.output
    assert "DataHub has no such aspect" in ended.output


def test_a_table_is_shown_with_all_that_it_comes_from_and_goes_into(home: Settings) -> None:
    both = mesh("lineage", "fleet.dim_airlines").output
    assert both.splitlines() == [
        "fleet.dim_airlines  table of fleet, fleet-data",
        "One row for each airline: its code and its name.",
        "",
        "made of",
        "└── fleet_staging.stg_fleet__airlines  view of fleet",
        "    └── fleet_raw.airlines  table of fleet",
        "        └── lake/fleet/register/airlines  objects of fleet",
        "            └── source/fleet/register/airlines  stream of fleet",
        "goes into",
        "├── flights.on_time_by_carrier  table of flights",
        "└── flights.reference_gaps  table of flights",
    ]
    up = mesh("lineage", "fleet.dim_airlines", "--up").output
    down = mesh("lineage", "fleet.dim_airlines", "--down").output
    assert "goes into" not in up
    assert "made of" not in down
    assert set(both.splitlines()) == {*up.splitlines(), *down.splitlines()}
    assert "goes into nothing" in mesh("lineage", "flights.reference_gaps", "--down").output


def test_columns_are_shown_one_by_one(home: Settings) -> None:
    shown = mesh("lineage", "commerce.revenue_by_month", "--up", "--columns").output
    assert "├── items_sold  no column\n" in shown
    assert "source/commerce/shop/products.price" in shown
    assert "see above" in shown
    used = mesh("lineage", "source/fleet/register/airlines", "--down", "--columns").output
    assert "└── name\n    └── lake/fleet/register/airlines.name\n" in used
    assert "flights.on_time_by_carrier.carrier_name" in used


def test_an_unknown_table_is_answered_with_those_that_are_near(home: Settings) -> None:
    with pytest.raises(
        CatalogError, match=r"no table fleet\.dim_airline: did you mean fleet\.dim_"
    ):
        mesh("lineage", "fleet.dim_airline")
