"""Which days a run of a domain is about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from dagster_project.cli.pipeline import waiting_range
from dagster_project.components.partitions import partitioned_tables
from dagster_project.identity import Table
from dagster_project.quality.outcome import Outcome, Partitions
from dagster_project.quality.standing import record, versions_held
from dagster_project.quality.suites import EXPECTATIONS, Severity, read_suite
from dagster_project.settings import get_settings
from dagster_project.transformation.project import read_manifest
from dagster_project.transformation.versions import decide_days, read_built, record_built


@pytest.fixture
def flights(warehouse_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Three days of flights, loaded; no file waits in the landing zone."""
    monkeypatch.setenv("MESH_WAREHOUSE_URL", warehouse_url)
    monkeypatch.setenv("MESH_HOME", str(tmp_path))
    get_settings.cache_clear()
    read_built(warehouse_url)
    with psycopg.connect(warehouse_url) as connection:
        connection.execute("CREATE SCHEMA flights_raw")
        connection.execute("CREATE TABLE flights_raw.flights (flight_date date)")
        for day in (1, 2, 3):
            date = f"2013-02-0{day}"
            connection.execute("INSERT INTO flights_raw.flights VALUES (%s)", [date])
            connection.execute(
                "INSERT INTO mesh.partitions VALUES "
                "('flights_raw', 'flights', %s, 'v', 1, 'object', 'v', 'load', now())",
                [date],
            )
    yield warehouse_url
    get_settings.cache_clear()


def test_a_day_that_was_loaded_and_not_built_waits(flights: str) -> None:
    """A check stopped it, or a kill: nobody loads it again."""
    assert waiting_range("flights") == ("2013-02-01", "2013-02-03")


def checked(url: str, table: Table, *days: str, failed: str = "") -> None:
    """All critical checks of the table pass on these days, but for one on the day that fails."""
    suite = read_suite(EXPECTATIONS / table.domain / f"{table}.json")
    expectations = {e.check: e for e in suite.expectations if e.severity is Severity.CRITICAL}
    checks = list(expectations)
    outcomes = [Outcome(check, True) for check in checks[1:]]
    outcomes.append(Outcome(checks[0], not failed, failed={failed: 1} if failed else {}))
    partitions, versions = Partitions("flight_date", days), versions_held(url, table)[table]
    record(url, table, outcomes, expectations, partitions, versions, "a run")


def test_a_day_that_was_built_and_not_checked_waits(flights: str) -> None:
    raw, fact = Table("flights_raw", "flights"), Table("flights", "fct_flights")
    days = ("2013-02-01", "2013-02-02", "2013-02-03")
    with psycopg.connect(flights) as connection:
        connection.execute("CREATE SCHEMA flights")
        connection.execute("CREATE TABLE flights.fct_flights (flight_date date)")
    model = "model.mesh.fct_flights"
    stale = decide_days(read_manifest(), model, raw, days, read_built(flights))
    record_built(flights, fact, stale)
    assert waiting_range("flights") == (days[0], days[2])
    checked(flights, raw, *days)
    assert waiting_range("flights") == (days[0], days[2])
    checked(flights, fact, days[0])
    assert waiting_range("flights") == (days[1], days[2])
    checked(flights, fact, *days[1:])
    assert waiting_range("flights") is None
    # What failed may pass now, with another threshold.
    checked(flights, fact, days[1], failed=days[1])
    assert waiting_range("flights") == (days[1], days[1])


def test_the_partitioned_tables_of_a_domain_are_known(flights: str) -> None:
    found = partitioned_tables("flights")
    raw, fact = Table("flights_raw", "flights"), Table("flights", "fct_flights")
    assert {table: held.column for table, held in found.items()} == {
        raw: "flight_date",
        fact: "flight_date",
    }
    assert found[raw].held(flights) == ["2013-02-01", "2013-02-02", "2013-02-03"]
    assert found[fact].held(flights) == []
    assert partitioned_tables("fleet") == {}
