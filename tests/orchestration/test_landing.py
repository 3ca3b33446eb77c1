"""The runs that a landing zone's sensor asks for: of which days, and under which keys."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from dagster_project.lake.store import Lake
from dagster_project.orchestration import landing
from dagster_project.orchestration.landing import landing_sensor
from dagster_project.settings import get_settings
from tests.ingestion.zone import Zone

DAYS = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-02-01")


@dg.asset(partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
def trips() -> None: ...


@pytest.fixture
def zone(tmp_path: Path, warehouse_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Zone]:
    lake = tmp_path / "lake"
    monkeypatch.setenv("MESH_LAKE_URL", lake.as_uri())
    monkeypatch.setenv("MESH_WAREHOUSE_URL", warehouse_url)
    monkeypatch.setattr(landing, "LOOK", 0.05)
    monkeypatch.setattr(landing, "WATCH", 0.4)
    get_settings.cache_clear()
    yield Zone(Lake(lake.as_uri()), lake, warehouse_url)
    get_settings.cache_clear()


def tick(zone: Zone, cursor: str | None) -> tuple[str | None, dict[str, str]]:
    """A tick of the sensor: the cursor after it, and the keys of the runs by their days."""
    sensor = landing_sensor("city", zone.feed, [trips.key])
    repository = dg.Definitions(assets=[trips], sensors=[sensor]).get_repository_def()
    with dg.build_sensor_context(cursor=cursor, repository_def=repository) as context:
        asked = sensor(context)
        if isinstance(asked, dg.SkipReason):
            return context.cursor, {}
    ends = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
    return asked.cursor, {
        " to ".join(request.tags[end] for end in ends): request.run_key
        for request in asked.run_requests
    }


def test_a_file_that_comes_back_as_it_was_is_asked_for_under_another_key(zone: Zone) -> None:
    # Dagster starts nothing under a key that it knows.
    keys, cursor = [], None
    for rows in ("1,0.5,a\n", "1,0.75,a\n", "1,0.5,a\n"):
        zone.drop("2026-01-01", rows)
        os.utime(zone.folder / "trips_2026-01-01.csv", (1e9, 1e9))
        before = cursor
        cursor, asked = tick(zone, before)
        keys += asked.values()
        # A tick that was killed is repeated, and its runs may have been started.
        assert tick(zone, before) == (cursor, asked)
        zone.load("2026-01-01")
    assert len(set(keys)) == 3
    assert tick(zone, cursor)[1] == {}


def test_days_with_gaps_are_runs_without_them_and_the_rest_waits_for_the_next_tick(
    zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landing, "_RUNS", 2)
    for day in (1, 2, 4, 7, 8, 9):
        zone.drop(f"2026-01-{day:02}", f"{day},0.5,a\n")
    cursor, asked = tick(zone, None)
    assert list(asked) == ["2026-01-01 to 2026-01-02", "2026-01-04 to 2026-01-04"]
    cursor, asked = tick(zone, cursor)
    assert list(asked) == ["2026-01-07 to 2026-01-09"]
    assert tick(zone, cursor)[1] == {}
