"""What is found to be the matter with checks, tables, triggers and deliveries."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.freshness import FreshnessState, FreshnessStateChange
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._utils.error import SerializableErrorInfo

from dagster_project.identity import Feed
from dagster_project.ingestion.feed import read_feed
from dagster_project.lake.store import Lake
from dagster_project.orchestration.alerts import stuck_files
from dagster_project.orchestration.diagnosis import (
    broken_triggers,
    failed_checks,
    late_tables,
    stuck_deliveries,
)
from dagster_project.orchestration.problem import Kind, Problem
from dagster_project.orchestration.runs import location_origin
from dagster_project.settings import get_settings
from tests.orchestration.domain_runs import KEYS, planes, run, seats


def test_failed_checks_are_told_by_how_bad_they_are(instance: dg.DagsterInstance) -> None:
    run(instance, "both", "there")
    (problem,) = failed_checks(instance, KEYS)
    assert problem.key == "critical check failed: planes planes_there"
    assert problem.what == "7 unexpected rows"
    # A run that succeeded, too.
    assert instance.get_run_by_id(run(instance, "both", "counted")).is_success
    (problem,) = failed_checks(instance, KEYS)
    assert problem.key == "warning check failed: seats seats_counted"
    assert problem.path == "/assets/seats?view=checks&checkDetail=seats_counted"
    # In a run that ends before the check, it has said nothing.
    run(instance, "both", "planes")
    assert [each.key for each in failed_checks(instance, KEYS)] == [problem.key]
    run(instance)
    assert list(failed_checks(instance, KEYS)) == []


def test_a_table_that_is_older_than_promised_is_told_until_it_is_made_anew(
    instance: dg.DagsterInstance,
) -> None:
    assert list(late_tables(instance, [planes.key], "a day")) == []
    for state in (FreshnessState.FAIL, FreshnessState.PASS):
        change = FreshnessStateChange(
            key=planes.key,
            new_state=state,
            previous_state=FreshnessState.UNKNOWN,
            state_change_timestamp=time.time(),
        )
        instance._report_runless_asset_event(change)
        found = [
            (late.kind, late.name, late.what)
            for late in late_tables(instance, [planes.key, seats.key], "a day")
        ]
        late = (Kind.LATE, "planes", "not made anew for more than a day")
        assert found == ([late] if state is FreshnessState.FAIL else [])


@pytest.mark.parametrize(
    ("kind", "patience"), [(InstigatorType.SENSOR, 2), (InstigatorType.SCHEDULE, 1)]
)
def test_a_trigger_that_breaks_is_told_and_not_one_that_is_at_it(
    instance: dg.DagsterInstance, kind: InstigatorType, patience: int
) -> None:
    repository = RemoteRepositoryOrigin(location_origin("fleet"), "__repository__")
    origin = repository.get_instigator_origin("watch")
    data = (
        SensorInstigatorData()
        if kind is InstigatorType.SENSOR
        else ScheduleInstigatorData("* * * * *", time.time())
    )
    state = InstigatorState(origin, kind, InstigatorStatus.RUNNING, data)
    instance.add_instigator_state(state)

    def tick(status: TickStatus) -> list[tuple[str, str]]:
        error = SerializableErrorInfo("nobody\nanswers", [], None) if status is failed else None
        instance.create_tick(
            TickData(
                state.instigator_origin_id,
                "watch",
                kind,
                status,
                time.time(),
                selector_id=state.selector_id,
                error=error,
            )
        )
        return [
            (problem.name, problem.what)
            for problem in broken_triggers(instance, "fleet", ["watch"])
        ]

    failed, broken = TickStatus.FAILURE, [("watch", "answers")]
    assert tick(TickStatus.SKIPPED) == []
    for _ in range(patience - 1):
        assert tick(failed) == []
    assert tick(failed) == broken
    assert tick(TickStatus.STARTED) == broken
    assert list(broken_triggers(instance, "weather", ["watch"])) == []
    assert list(broken_triggers(instance, "fleet", ["listen"])) == []
    assert tick(TickStatus.SKIPPED) == []


def test_files_that_nobody_loads_are_told(warehouse_url: str, tmp_path: Path) -> None:
    lake, feed = Lake((tmp_path / "lake").as_uri()), read_feed("flights", "flights")
    folder = tmp_path / "lake" / Feed("flights", "flights").prefix
    folder.mkdir(parents=True)
    for name in ("flights_2013-02-01.csv", "flights_2013-02-02.csv", "notes.txt"):
        (folder / name).write_text("year,month,day\n")
    long_ago = time.time() - 3600
    os.utime(folder / "flights_2013-02-01.csv", (long_ago, long_ago))
    found = {
        problem.name.rpartition("/")[2]: problem.what
        for problem in stuck_deliveries("flights", [feed], lake, warehouse_url)
    }
    assert found == {
        "notes.txt": "it is never loaded: its name is not of the feed's pattern",
        "flights_2013-02-01.csv": "it waits to be loaded for 60 minutes",
    }


def test_a_lake_that_is_away_is_told_and_what_was_stuck_is_not_over(
    instance: dg.DagsterInstance, warehouse_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = read_feed("flights", "flights")
    stuck = Problem(Kind.STUCK, "landing/flights/flights/notes.txt", "it waits", "/", 1.0)
    monkeypatch.setenv("MESH_WAREHOUSE_URL", "postgresql://nobody@127.0.0.1:9/nothing")
    get_settings.cache_clear()
    away, still = stuck_files("flights", [feed], [stuck])
    assert (away.kind, away.name, still) == (Kind.TRIGGER, "flights landing zone", stuck)
    assert away.what.startswith("nobody can look at it: ")
    again, _ = stuck_files("flights", [feed], [stuck, replace(away, since=7.0)])
    assert again.since == 7.0
    monkeypatch.setenv("MESH_WAREHOUSE_URL", warehouse_url)
    get_settings.cache_clear()
    assert list(stuck_files("flights", [feed], [stuck, away])) == []
