"""Files in the landing zone: what waits, what is loaded, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import ValidationError

from dagster_project.failures import SourceError
from dagster_project.ingestion.landing import FeedDeclaration, days_waiting, load_feed
from dagster_project.lake.store import Lake
from dagster_project.warehouse.ledger import Load, read_partitions

DECLARED: dict[str, Any] = {
    "name": "trips",
    "source": "the tills",
    "description": "A trip.",
    "pattern": r"trips_(?P<day>\d{4}-\d{2}-\d{2})\.csv",
    "partition_column": "trip_date",
    "first_day": "2026-01-01",
    "last_day": "2026-01-31",
    "null_values": ["NA"],
    "columns": {
        "id": {"type": "bigint", "description": "Number of the trip."},
        "delay": {"type": "double precision", "description": "Minutes."},
        "code": {"type": "text", "description": "The operator."},
    },
}
FEED = FeedDeclaration.model_validate(DECLARED)
HEADER = "id,delay,code\n"


class Zone:
    """The landing zone of `city/trips`, and its table."""

    def __init__(self, lake: Lake, folder: Path, url: str) -> None:
        self.lake, self.url = lake, url
        self.folder = folder / "landing" / "city" / "trips"

    def drop(self, day: str, rows: str, header: str = HEADER, name: str = "") -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / (name or f"trips_{day}.csv")).write_text(header + rows)

    def waiting(self) -> list[str]:
        loaded = read_partitions(self.url, self.table)
        return sorted(days_waiting("city", FEED, self.lake, loaded))

    @property
    def table(self) -> Any:
        from dagster_project.ingestion.landing import target_of

        return target_of("city", FEED).table

    def load(self, *days: str) -> Load:
        return load_feed("city", FEED, days, lake=self.lake, warehouse_url=self.url, run_id="r")

    def rows(self, columns: str = "trip_date::text, id, delay, code") -> list[Any]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(
                f"SELECT {columns} FROM city_raw.trips ORDER BY trip_date, id"
            ).fetchall()


@pytest.fixture
def zone(lake: Lake, tmp_path: Path, warehouse_url: str) -> Zone:
    return Zone(lake, tmp_path / "lake", warehouse_url)


def test_days_wait_until_they_are_loaded(zone: Zone) -> None:
    assert zone.waiting() == []
    zone.drop("2026-01-01", "1,0.5,a\n")
    zone.drop("2026-01-02", "2,1.5,b\n")
    zone.drop("", "9,9,z\n", name="readme.csv")
    assert zone.waiting() == ["2026-01-01", "2026-01-02"]
    done = zone.load("2026-01-01")
    assert (done.new, [p.partition for p in done.partitions]) == (1, ["2026-01-01"])
    assert zone.waiting() == ["2026-01-02"]
    assert zone.rows() == [("2026-01-01", 1, 0.5, "a")]


def test_a_changed_file_replaces_its_day(zone: Zone) -> None:
    zone.drop("2026-01-01", "1,0.5,a\n2,0.5,a\n")
    zone.drop("2026-01-02", "3,0.5,a\n")
    zone.load("2026-01-01", "2026-01-02")
    zone.drop("2026-01-01", "7,7,g\n")
    assert zone.waiting() == ["2026-01-01"]
    done = zone.load("2026-01-01", "2026-01-02")
    assert (done.received, done.new, done.removed, done.rows) == (1, 1, 2, 2)
    assert zone.rows("id") == [(7,), (3,)]
    assert zone.waiting() == []


def test_a_file_dropped_again_with_the_same_content_changes_nothing_and_stops_waiting(
    zone: Zone,
) -> None:
    zone.drop("2026-01-01", "1,0.5,a\n")
    first = zone.load("2026-01-01")
    before = zone.rows("ctid::text, xmin::text")
    (zone.folder / "trips_2026-01-01.csv").unlink()
    zone.drop("2026-01-01", "1,0.5,a\n")
    assert zone.waiting() == ["2026-01-01"]
    again = zone.load("2026-01-01")
    assert not again.did_change
    assert again.version == first.version
    assert zone.rows("ctid::text, xmin::text") == before
    assert zone.waiting() == []


def test_a_day_asked_for_twice_is_loaded_once(zone: Zone) -> None:
    zone.drop("2026-01-01", "1,0.5,a\n")
    assert zone.load("2026-01-01", "2026-01-01").rows == 1
    assert zone.rows("id") == [(1,)]


def test_the_declared_null_values_are_null_unless_quoted(zone: Zone) -> None:
    zone.drop("2026-01-01", '1,NA,NA\n2,1,"NA"\n3,2,\n')
    zone.load("2026-01-01")
    assert zone.rows("id, delay, code") == [(1, None, None), (2, 1.0, "NA"), (3, 2.0, "")]


def test_a_value_that_is_not_of_its_type_is_rejected_and_the_rest_is_loaded(zone: Zone) -> None:
    zone.drop("2026-01-01", "1,soon,a\n2,2,b\n")
    done = zone.load("2026-01-01")
    assert (done.received, done.new, done.rejected) == (2, 1, 1)
    with psycopg.connect(zone.url) as connection:
        reasons = connection.execute("SELECT reason FROM city_raw.trips__rejects").fetchall()
    assert reasons == [("delay: not double precision",)]


@pytest.mark.parametrize(
    ("header", "rows", "said"),
    [
        ("id,delay,kode\n", "2,2,b\n", "missing ['code'], not declared ['kode']"),
        ("id,code,delay\n", "2,b,2\n", "in another order"),
        ("id,delay\n", "2,2\n", "missing ['code']"),
        (HEADER, "2,2,b\n3,3\n", "Expected 3 columns, got 2"),
        ("", "", "Empty CSV file"),
    ],
    ids=["renamed", "reordered", "column missing", "row cut off", "empty"],
)
def test_a_file_that_is_not_what_was_declared_is_refused_whole(
    zone: Zone, header: str, rows: str, said: str
) -> None:
    zone.drop("2026-01-01", "1,1,a\n")
    zone.load("2026-01-01")
    zone.drop("2026-01-01", "5,5,e\n")
    zone.drop("2026-01-02", rows, header)
    with pytest.raises(SourceError) as caught:
        zone.load("2026-01-01", "2026-01-02")
    assert "landing/city/trips/trips_2026-01-02.csv" in str(caught.value)
    assert said in str(caught.value)
    assert zone.rows("id") == [(1,)]
    assert zone.waiting() == ["2026-01-01", "2026-01-02"]


def test_a_day_without_a_file_is_named_and_nothing_is_loaded(zone: Zone) -> None:
    zone.drop("2026-01-01", "1,1,a\n")
    with pytest.raises(
        SourceError, match=r"no file has landed for 2026-01-02, 2026-01-03"
    ) as caught:
        zone.load("2026-01-01", "2026-01-03", "2026-01-02")
    assert "landing/city/trips" in str(caught.value)
    assert zone.waiting() == ["2026-01-01"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pattern": r"trips\.csv"}, "must have a group"),
        ({"pattern": "("}, "not a regular expression"),
        ({"columns": {"id": {"type": "serial", "description": "x"}}}, "serial is not of bigint"),
        ({"name": "Trips"}, "should match pattern"),
    ],
)
def test_a_feed_that_cannot_work_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        FeedDeclaration.model_validate(DECLARED | change)
