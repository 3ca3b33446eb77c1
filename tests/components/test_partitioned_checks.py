"""Checks of a partitioned table: a day that passes neither hides another's failure nor fails."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from dagster_project.components.expectation_suites import suite_checks
from dagster_project.components.partitions import PartitionedTable
from dagster_project.identity import Table
from dagster_project.quality import suites
from dagster_project.quality.blocking import Block, Why, blocks, reasons
from dagster_project.quality.standing import versions_held
from dagster_project.quality.suites import Suite
from dagster_project.settings import get_settings

pytestmark = pytest.mark.filterwarnings("ignore:`schema_name` is deprecated")
TABLE = Table("shop_raw", "visits")
KEY = dg.AssetKey(list(TABLE.asset_key))
DAYS = dg.DailyPartitionsDefinition("2013-02-01", end_date="2013-02-06")
SUITE = Suite.model_validate(
    {
        "name": str(TABLE),
        "expectations": [
            {
                "type": "expect_column_values_to_not_be_null",
                "kwargs": {"column": "page"},
                "severity": "critical",
                "description": "Every visit is of a page.",
                "meta": {"check": "page_there"},
            },
            {
                "type": "expect_table_row_count_to_be_between",
                "kwargs": {"min_value": 2},
                "severity": "critical",
                "description": "A day has visits.",
                "meta": {"check": "visits"},
            },
        ],
    }
)


@pytest.fixture
def visits(warehouse_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Five days of three visits; the second day has one that is of no page."""
    monkeypatch.setenv("MESH_WAREHOUSE_URL", warehouse_url)
    monkeypatch.setenv("MESH_HOME", str(tmp_path))
    folder = tmp_path / "expectations"
    (folder / "shop").mkdir(parents=True)
    (folder / "shop" / f"{TABLE}.json").write_text(SUITE.model_dump_json(exclude_defaults=True))
    monkeypatch.setattr(suites, "EXPECTATIONS", folder)
    get_settings.cache_clear()
    with psycopg.connect(warehouse_url) as connection:
        connection.execute("CREATE SCHEMA shop_raw")
        connection.execute("CREATE TABLE shop_raw.visits (id bigint, day date, page text)")
        connection.execute(
            "INSERT INTO shop_raw.visits SELECT i, date '2013-02-01' + (i / 3)::int, 'home' "
            "FROM generate_series(0, 14) AS i"
        )
        connection.execute("UPDATE shop_raw.visits SET page = NULL WHERE id = 4")
    yield warehouse_url
    get_settings.cache_clear()


def run(
    first: str, last: str = ""
) -> tuple[dg.ExecuteInProcessResult, dict[str, dg.AssetCheckEvaluation]]:
    """The table, its checks and what is downstream, for these days."""

    @dg.asset(key=KEY, partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
    def table() -> None: ...

    @dg.asset(
        key="facts",
        deps=[KEY],
        partitions_def=DAYS,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def facts() -> None: ...

    definitions = dg.Definitions(
        assets=[table, facts],
        asset_checks=[suite_checks(SUITE, PartitionedTable(TABLE, "day", DAYS))],
        jobs=[dg.define_asset_job("all", dg.AssetSelection.all())],
    )
    tags = {
        "dagster/asset_partition_range_start": f"2013-02-0{first}",
        "dagster/asset_partition_range_end": f"2013-02-0{last}",
    }
    result = definitions.resolve_job_def("all").execute_in_process(
        raise_on_error=False,
        **({"tags": tags} if last else {"partition_key": f"2013-02-0{first}"}),
    )
    return result, {check.check_name: check for check in result.get_asset_check_evaluations()}


def reached(result: dg.ExecuteInProcessResult) -> bool:
    """Whether what is downstream was made."""
    keys = {e.materialization.asset_key for e in result.get_asset_materialization_events()}
    return dg.AssetKey("facts") in keys


def test_a_day_that_fails_stops_its_own_run_and_stays_to_be_seen(visits: str) -> None:
    result, checks = run("2")
    assert not result.success
    assert not reached(result)
    assert checks["page_there"].severity is dg.AssetCheckSeverity.ERROR
    assert checks["page_there"].metadata["partitions"].value == "2013-02-02"
    assert checks["page_there"].metadata["unexpected rows"].value == 1
    assert checks["visits"].passed

    result, checks = run("3")
    assert result.success
    assert reached(result)
    # It passes, and what failed is not hidden by that.
    assert not checks["page_there"].passed
    assert checks["page_there"].severity is dg.AssetCheckSeverity.WARN
    assert (
        checks["page_there"].description == "2013-02-03 passes; what stands failed are 2013-02-02"
    )
    assert "fails since" in checks["page_there"].metadata
    assert checks["visits"].passed
    bad = [Block(TABLE, "page_there", ("2013-02-02",), Why.FAILED)]
    assert blocks(visits, [TABLE]) == bad
    assert blocks(visits, [TABLE], ["2013-02-03"]) == []
    assert blocks(visits, [TABLE], ["2013-02-02"]) == bad

    with psycopg.connect(visits) as connection:
        connection.execute("UPDATE shop_raw.visits SET page = 'home' WHERE id = 4")
    result, checks = run("2")
    assert result.success
    assert checks["page_there"].passed
    assert blocks(visits, [TABLE]) == []


def test_a_range_tells_the_days_that_fail(visits: str) -> None:
    with psycopg.connect(visits) as connection:
        connection.execute("DELETE FROM shop_raw.visits WHERE id IN (9, 10)")
    result, checks = run("1", "5")
    assert not result.success
    assert checks["page_there"].metadata["partitions"].value == "2013-02-01 to 2013-02-05"
    failing = {
        name: [record.data["partition"] for record in check.metadata["failing partitions"].records]
        for name, check in checks.items()
        if not check.passed
    }
    assert failing == {"page_there": ["2013-02-02"], "visits": ["2013-02-04"]}
    # The checks of one day more: the others stay as they were found.
    _, checks = run("1")
    assert not checks["visits"].passed
    assert checks["visits"].severity is dg.AssetCheckSeverity.WARN


def test_run_alone_the_checks_are_about_the_days_that_are_there(visits: str) -> None:
    partitioned = PartitionedTable(TABLE, "day", DAYS)
    definitions = dg.Definitions(
        asset_checks=[suite_checks(SUITE, partitioned)],
        jobs=[dg.define_asset_job("checks", dg.AssetSelection.all_asset_checks())],
    )
    result = definitions.resolve_job_def("checks").execute_in_process(raise_on_error=False)
    checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert checks["page_there"].metadata["partitions"].value == "2013-02-01 to 2013-02-05"
    assert not checks["page_there"].passed
    assert checks["visits"].passed


def test_days_that_were_loaded_and_are_the_feeds_no_more_can_be_looked_at(visits: str) -> None:
    def run_alone() -> dict[str, dg.AssetCheckEvaluation]:
        later = dg.DailyPartitionsDefinition("2013-02-03", end_date="2013-02-06")
        definitions = dg.Definitions(
            asset_checks=[suite_checks(SUITE, PartitionedTable(TABLE, "day", later))],
            jobs=[dg.define_asset_job("checks", dg.AssetSelection.all_asset_checks())],
        )
        result = definitions.resolve_job_def("checks").execute_in_process(raise_on_error=False)
        return {check.check_name: check for check in result.get_asset_check_evaluations()}

    run("2")
    assert not run_alone()["page_there"].passed
    with psycopg.connect(visits) as connection:
        connection.execute("UPDATE shop_raw.visits SET page = 'home' WHERE page IS NULL")
    assert run_alone()["page_there"].passed
    assert blocks(visits, [TABLE]) == []


def test_days_that_changed_since_they_were_checked_are_told(visits: str) -> None:
    versions_held(visits, TABLE)
    with psycopg.connect(visits) as connection:
        connection.execute(
            "INSERT INTO mesh.partitions (table_schema, table_name, partition, version, rows, "
            "object, object_version, load_id, changed_at) SELECT 'shop_raw', 'visits', "
            "to_char(date '2013-02-01' + i, 'YYYY-MM-DD'), 'as first loaded', 3, 'a file', '1', "
            "'a load', now() FROM generate_series(0, 4) AS i"
        )
    run("1", "5")
    assert reasons(blocks(visits, [TABLE])) == "shop_raw.visits: page_there failed (2013-02-02)"
    with psycopg.connect(visits) as connection:
        connection.execute(
            "UPDATE mesh.partitions SET version = 'corrected' "
            "WHERE partition IN ('2013-02-02', '2013-02-04')"
        )
    found = blocks(visits, [TABLE])
    assert found == [
        Block(TABLE, "page_there", ("2013-02-02",), Why.FAILED),
        Block(TABLE, "page_there", ("2013-02-04",), Why.CHANGED),
        Block(TABLE, "visits", ("2013-02-02", "2013-02-04"), Why.CHANGED),
    ]
    assert reasons(found) == (
        "shop_raw.visits: page_there failed (2013-02-02); shop_raw.visits: page_there, visits "
        "not run since the data changed (2013-02-02, 2013-02-04)"
    )
    run("4")
    assert blocks(visits, [TABLE], ["2013-02-03", "2013-02-04", "2013-02-05"]) == []
