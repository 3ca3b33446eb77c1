"""What is told of a domain: what is the matter, once, and that it is over."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.freshness import FreshnessState, FreshnessStateChange
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.execution.api import execute_run
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

from dagster_project.failures import MeshError
from dagster_project.identity import Feed
from dagster_project.ingestion.feed import read_feed
from dagster_project.lake.store import Lake
from dagster_project.orchestration import alerts, diagnosis
from dagster_project.orchestration.alerts import Message, alert_sensor, stuck_files
from dagster_project.orchestration.diagnosis import (
    broken_triggers,
    failed_checks,
    failed_runs,
    late_tables,
    stuck_deliveries,
)
from dagster_project.orchestration.problem import (
    FAILED_DAYS,
    Kind,
    Problem,
    by_key,
    dump,
    parse,
    standing,
)
from dagster_project.orchestration.runs import location_origin
from dagster_project.settings import get_settings
from tests.orchestration.webhook import Webhook

BROKEN: set[str] = set()
DAYS = dg.DailyPartitionsDefinition("2013-02-01", end_date="2013-02-10")


@dg.asset
def planes() -> None:
    assert "planes" not in BROKEN


@dg.asset(deps=[planes])
def seats() -> None:
    assert "seats" not in BROKEN


@dg.asset(partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
def visits() -> None:
    assert "visits" not in BROKEN


@dg.asset_check(asset=planes, blocking=True)
def planes_there() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed="there" not in BROKEN, metadata={"unexpected rows": 7}, description=None
    )


@dg.asset_check(asset=seats)
def seats_counted() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed="counted" not in BROKEN,
        severity=dg.AssetCheckSeverity.WARN,
        description="<none> & nothing",
    )


DEFINITIONS = dg.Definitions(
    assets=[planes, seats, visits],
    asset_checks=[planes_there, seats_counted],
    jobs=[
        dg.define_asset_job("both", dg.AssetSelection.assets(planes, seats)),
        dg.define_asset_job("first", dg.AssetSelection.assets(planes)),
        dg.define_asset_job("rest", dg.AssetSelection.assets(seats)),
        dg.define_asset_job("daily", dg.AssetSelection.assets(visits)),
    ],
    executor=dg.in_process_executor,
)
KEYS = DEFINITIONS.resolve_asset_graph().asset_check_keys


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    BROKEN.clear()
    monkeypatch.setenv("MESH_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    get_settings.cache_clear()
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance
    get_settings.cache_clear()


def run(
    instance: dg.DagsterInstance,
    job: str = "both",
    *broken: str,
    days: tuple[str, str] = ("", ""),
    retries: tuple[str, str] | None = None,
    domain: str = "fleet",
) -> str:
    """A run of a domain's, in which these are broken; it `retries` one, of which the first is."""
    BROKEN.clear()
    BROKEN.update(broken)
    definition = DEFINITIONS.resolve_job_def(job)
    origin = RemoteRepositoryOrigin(location_origin(domain), "__repository__")
    tags = {}
    if days[0]:
        tags["dagster/asset_partition_range_start"] = days[0]
        tags["dagster/asset_partition_range_end"] = days[1]
    first, parent = retries or (None, None)
    if retries:
        tags["dagster/is_resume_retry"] = "true"
    created = instance.create_run_for_job(
        definition,
        tags=tags,
        remote_job_origin=origin.get_job_origin(job),
        root_run_id=first,
        parent_run_id=parent,
    )
    execute_run(InMemoryJob(definition), created, instance)
    return created.run_id


def runs(instance: dg.DagsterInstance) -> set[str]:
    return {problem.path.removeprefix("/runs/") for problem in failed_runs(instance, "fleet")}


def test_a_failed_run_is_a_problem_until_another_did_what_it_failed_to_do(
    instance: dg.DagsterInstance,
) -> None:
    assert runs(instance) == set()
    failed = run(instance, "both", "seats")
    (problem,) = failed_runs(instance, "fleet")
    assert problem == Problem(
        Kind.RUN, "seats", f"run {failed[:8]}", f"/runs/{failed}", problem.since
    )
    assert list(failed_runs(instance, "weather")) == []
    run(instance, "daily", days=("2013-02-01", "2013-02-02"))
    assert runs(instance) == {failed}
    run(instance)
    assert runs(instance) == set()


def test_runs_of_other_domains_hide_nothing(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "RUNS", 2)
    failed = run(instance, "both", "seats")
    for _ in range(2):
        run(instance, "both", "seats", domain="weather")
    assert runs(instance) == {failed}
    run(instance)
    for _ in range(2):
        run(instance, domain="weather")
    assert runs(instance) == set()


def test_retries_that_did_the_rest_together_make_a_run_good(instance: dg.DagsterInstance) -> None:
    first = run(instance, "both", "planes")
    second = run(instance, "rest", "seats", retries=(first, first))
    assert runs(instance) == {first, second}
    run(instance, "rest", retries=(first, second))
    assert runs(instance) == set()


def test_what_came_behind_the_step_that_failed_has_to_be_done_too(
    instance: dg.DagsterInstance,
) -> None:
    failed = run(instance, "both", "planes")
    run(instance, "first")
    assert runs(instance) == {failed}
    # By another run than the first: together they did it.
    run(instance, "rest")
    assert runs(instance) == set()


def test_a_run_that_failed_before_its_first_step_is_not_made_good_by_any_other(
    instance: dg.DagsterInstance,
) -> None:
    origin = RemoteRepositoryOrigin(location_origin("fleet"), "__repository__")
    failed = instance.create_run_for_job(
        DEFINITIONS.resolve_job_def("both"), remote_job_origin=origin.get_job_origin("both")
    )
    instance.report_run_failed(failed)
    run(instance, "daily", days=("2013-02-01", "2013-02-02"))
    assert runs(instance) == {failed.run_id}
    run(instance)
    assert runs(instance) == set()


def test_a_day_that_failed_is_not_made_good_by_another(instance: dg.DagsterInstance) -> None:
    failed = run(instance, "daily", "visits", days=("2013-02-03", "2013-02-03"))
    run(instance, "daily", days=("2013-02-04", "2013-02-06"))
    (problem,) = failed_runs(instance, "fleet")
    assert problem.name == "visits (2013-02-03)"
    again = run(instance, "daily", "visits", days=("2013-02-03", "2013-02-03"))
    (problem,) = failed_runs(instance, "fleet")
    assert problem.what == f"2 runs, the last {again[:8]}"
    failed = again
    assert runs(instance) == {failed}
    run(instance, "daily", days=("2013-02-02", "2013-02-06"))
    assert runs(instance) == set()


def test_of_a_range_whose_other_days_are_run_again_those_to_blame_are_judged(
    instance: dg.DagsterInstance,
) -> None:
    failed = run(instance, "daily", "visits", days=("2013-02-01", "2013-02-06"))
    instance.add_run_tags(failed, {FAILED_DAYS: "2013-02-02,2013-02-05"})
    (problem,) = failed_runs(instance, "fleet")
    assert problem.name == "visits (2013-02-02, 2013-02-05)"
    run(instance, "daily", days=("2013-02-02", "2013-02-03"))
    assert runs(instance) == {failed}
    run(instance, "daily", days=("2013-02-05", "2013-02-05"))
    assert runs(instance) == set()


def test_a_run_that_will_be_retried_is_judged_by_its_retry(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = run(instance, "both", "planes")
    instance.add_run_tags(failed, {"dagster/will_retry": "true"})
    assert runs(instance) == set()
    # Nobody did: the backfill that it is of was canceled.
    monkeypatch.setattr(diagnosis, "RETRIED_WITHIN", timedelta(0))
    assert runs(instance) == {failed}
    again = run(instance, "both", "planes", retries=(failed, failed))
    instance.add_run_tags(failed, {"dagster/auto_retry_run_id": again})
    assert runs(instance) == {again}


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


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    with Webhook() as webhook:
        monkeypatch.setenv("MESH_ALERTS_WEBHOOK", webhook.url)
        monkeypatch.setenv("MESH_UI_URL", "http://ui.example")
        get_settings.cache_clear()
        yield webhook


def look(instance: dg.DagsterInstance, cursor: str | None) -> tuple[str | None, str]:
    """A tick of the sensor: the cursor after it, and what it says."""
    sensor = alert_sensor("fleet", [])
    with dg.build_sensor_context(
        instance=instance, cursor=cursor, repository_def=DEFINITIONS.get_repository_def()
    ) as context:
        skipped = sensor(context)
        return context.cursor, skipped.skip_message


def test_what_is_new_and_what_is_over_is_told_once(
    instance: dg.DagsterInstance, webhook: Webhook
) -> None:
    cursor, _ = look(instance, None)
    assert webhook.messages == []
    failed = run(instance, "both", "seats", "there", "counted")
    cursor, said = look(instance, cursor)
    assert said == "2 problems, 2 new, 0 over"
    (message,) = webhook.messages
    assert message["text"] == "fleet (team:fleet-data): 2 new"
    shown = json.dumps(message["blocks"])
    assert f"<http://ui.example/runs/{failed}|" in shown
    assert "critical check failed" in shown
    assert {p.kind for p in standing(get_settings().home)["fleet"]} == {Kind.RUN, Kind.CRITICAL}

    cursor, said = look(instance, cursor)
    assert said == "2 problems, 0 new, 0 over"
    assert len(webhook.messages) == 1

    run(instance, "both", "counted")
    cursor, said = look(instance, cursor)
    assert said == "1 problems, 1 new, 2 over"
    shown = json.dumps(webhook.messages[1]["blocks"])
    assert "recovered" in shown
    assert "&lt;none&gt; &amp; nothing" in shown
    run(instance)
    look(instance, cursor)
    assert webhook.messages[2]["text"] == "fleet (team:fleet-data): 1 recovered"
    assert standing(get_settings().home) == {"fleet": []}
    log = (get_settings().home / "alerts" / "messages.log").read_text()
    assert log.count("team:fleet-data") == 3


def test_a_message_that_nobody_took_is_sent_again(
    instance: dg.DagsterInstance, webhook: Webhook
) -> None:
    run(instance, "both", "seats")
    webhook.status = 500
    with pytest.raises(MeshError, match="answered 500") as told:
        look(instance, None)
    assert "secret" not in str(told.value)
    # Whoever asks sees it nevertheless.
    assert len(standing(get_settings().home)["fleet"]) == 1
    webhook.status = 200
    look(instance, None)
    assert len(webhook.messages) == 1
    webhook.end()
    run(instance)
    cursor = dump([Problem(Kind.LATE, "table", "what", "/", 0)])
    with pytest.raises(MeshError, match="does not answer") as told:
        look(instance, cursor)
    assert "secret" not in str(told.value)


def test_many_at_once_are_one_message_of_bounded_length(instance: dg.DagsterInstance) -> None:
    many = by_key(
        Problem(Kind.WARNING, f"table check_{n:03}", "x" * 900, "/", 0) for n in range(500)
    )
    message = Message("fleet", "http://ui.example", many, {})
    assert message.title() == "fleet (team:fleet-data): 500 new"
    assert f"… and {500 - alerts.SHOWN} more" in message.plain()
    for block in message.slack()["blocks"]:
        assert len(block["text"]["text"]) <= 3000
    assert parse(dump(many.values())) == many
