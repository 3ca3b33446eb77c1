"""What Dagster's event log says of runs, assets and checks, as plain records for the catalog."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
from dagster._core.definitions.freshness import FreshnessState, FreshnessStateChange
from dagster._core.events.log import EventLogEntry
from dagster._core.execution.stats import StepEventStatus
from dagster._core.storage.tags import SCHEDULE_NAME_TAG, SENSOR_NAME_TAG
from dagster_postgres.utils import DagsterPostgresException
from sqlalchemy.exc import SQLAlchemyError

from dagster_project.catalog.assertions import FRESHNESS
from dagster_project.catalog.events import AssetTold, Judged, RunTold, Status, Told, Updated, fit
from dagster_project.catalog.history import CHANGES
from dagster_project.domain import domain_names
from dagster_project.identity import Table
from dagster_project.orchestration.diagnosis import domain_of
from dagster_project.orchestration.event_log import Event, EventLog
from dagster_project.orchestration.problem import STARTED_BY
from dagster_project.orchestration.undone import Days, days_of

_Kind = dg.DagsterEventType
_RUNS = {
    _Kind.RUN_START: Status.STARTED,
    _Kind.RUN_SUCCESS: Status.SUCCEEDED,
    _Kind.RUN_FAILURE: Status.FAILED,
    _Kind.RUN_CANCELED: Status.CANCELED,
}
#: The events that the catalog hears of.
KINDS = (
    *_RUNS,
    _Kind.ASSET_MATERIALIZATION,
    _Kind.ASSET_CHECK_EVALUATION,
    _Kind.FRESHNESS_STATE_CHANGE,
)
#: Who asked for a run, if it was no person in the UI.
_STARTED_BY = (SCHEDULE_NAME_TAG, SENSOR_NAME_TAG, STARTED_BY)
#: Whether a table is as fresh as promised; of other states nobody knows.
_FRESHNESS = {FreshnessState.PASS: True, FreshnessState.WARN: True, FreshnessState.FAIL: False}
#: What a load says of its rows.
_COUNTS = ("received", "new", "changed", "duplicates", "removed", "rejected")
#: Of assets that are not of the warehouse, the first part of the key; the second is the domain.
_PLACES = {"source", "lake", "landing"}


@dataclass(frozen=True, slots=True)
class Untellable:
    """An event that this code cannot tell, and why: a mistake of ours, which holds up no other."""

    reason: str


def told(
    instance: dg.DagsterInstance, log: EventLog, events: Sequence[Event]
) -> Iterator[tuple[int, Told | Untellable]]:
    """What each of these events says, with the event's number; of some it is nothing.

    Of a run that was deleted, and of one that is of no domain, nothing is told any more.
    """
    ids = sorted({event.entry.run_id for event in events if event.entry and event.entry.run_id})
    known = instance.get_runs(dg.RunsFilter(run_ids=ids)) if ids else []
    runs = {run.run_id: run for run in known}
    joined = _joined(events, runs)
    for event in events:
        if event.id in joined:
            continue
        if event.entry is None:
            yield event.id, Untellable(event.reason)
            continue
        try:
            found = list(_told(instance, log, event.entry, runs.get(event.entry.run_id)))
        except (SQLAlchemyError, DagsterPostgresException):
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the event
            yield event.id, Untellable(f"event {event.id}: {type(error).__name__}: {error}")
            continue
        for each in found:
            yield event.id, fit(each)


def _joined(events: Iterable[Event], runs: Mapping[str, dg.DagsterRun]) -> set[int]:
    """The numbers of events of whose load another one of these events says the same.

    A load of a year is one change of the table, and an event a day.
    """
    joined: set[int] = set()
    kept: dict[tuple[str, dg.AssetKey], tuple[int, bool]] = {}
    for event in events:
        happened = event.entry.dagster_event if event.entry else None
        if (
            event.entry is None
            or happened is None
            or happened.event_type is not _Kind.ASSET_MATERIALIZATION
        ):
            continue
        made = happened.step_materialization_data.materialization
        run = runs.get(event.entry.run_id)
        if run is None or made.partition is None:
            continue
        load = (run.run_id, made.asset_key)
        # Partitions that are no days come in any order.
        if other := kept.get(load):
            joined.add(event.id if other[1] else other[0])
        if not (other and other[1]):
            kept[load] = event.id, _is_last(made, run)
    return joined


def _is_last(made: dg.AssetMaterialization, run: dg.DagsterRun | None) -> bool:
    days = days_of(run) if run else None
    return made.partition is None or days is None or made.partition == days[1]


def _told(
    instance: dg.DagsterInstance,
    log: EventLog,
    entry: EventLogEntry,
    run: dg.DagsterRun | None,
) -> Iterator[Told]:
    event = entry.dagster_event
    if event is None:
        return
    if event.event_type is _Kind.ASSET_MATERIALIZATION:
        made = event.step_materialization_data.materialization
        yield from _updated(entry, made, run)
    elif event.event_type is _Kind.ASSET_CHECK_EVALUATION:
        yield from _judged(entry, event.asset_check_evaluation_data, run)
    elif event.event_type is _Kind.FRESHNESS_STATE_CHANGE:
        yield from _aged(event.event_specific_data)
    elif run is not None and domain_of(run) in domain_names():
        yield from _run(instance, log, entry, run, _RUNS[event.event_type])


def _run(
    instance: dg.DagsterInstance,
    log: EventLog,
    entry: EventLogEntry,
    run: dg.DagsterRun,
    status: Status,
) -> Iterator[Told]:
    """The run; of one that has ended, also what it did of each asset.

    That is told at its end, and by whoever saw it, so that of a run that was killed it is known.
    """
    domain, at, partition = domain_of(run) or "", entry.timestamp, _range(days_of(run))
    statistics = instance.get_run_stats(run.run_id)
    yield RunTold(
        run_id=run.run_id,
        domain=domain,
        job=run.job_name,
        status=status,
        at=at,
        began=statistics.start_time,
        partition=partition,
        retries=run.parent_run_id,
        started_by=next((run.tags[tag] for tag in _STARTED_BY if run.tags.get(tag)), None),
    )
    if status is Status.STARTED:
        return
    made = log.assets_made(run.run_id)
    steps = {stats.step_key: stats for stats in instance.get_run_step_stats(run.run_id)}
    for step, key in _planned(instance, run):
        stats = steps.get(step)
        if stats is None or stats.start_time is None or stats.status is StepEventStatus.SKIPPED:
            continue
        how = _asset_status(stats.status, status, key in made, partition)
        if how is not None:
            yield AssetTold(
                run_id=run.run_id,
                domain=domain,
                asset_key=tuple(key.path),
                status=how,
                at=stats.end_time or at,
                began=stats.start_time,
                partition=partition,
            )


def _asset_status(
    step: StepEventStatus | None, run: Status, made: bool, partition: str | None
) -> Status | None:
    """How it went with an asset; None of one that its step has left out."""
    if step is StepEventStatus.SUCCESS:
        return Status.SUCCEEDED if made else None
    if made and not partition:
        return Status.SUCCEEDED
    # A step without an end was ended with its run.
    is_canceled = step is not StepEventStatus.FAILURE and run is Status.CANCELED
    return Status.CANCELED if is_canceled else Status.FAILED


def _planned(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Iterator[tuple[str, dg.AssetKey]]:
    """The run's steps with the assets that they were to make."""
    if not run.execution_plan_snapshot_id:
        return
    plan = instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id)
    for step in plan.steps:
        if step.key not in plan.step_keys_to_execute:
            continue
        for output in step.outputs:
            if output.properties and output.properties.asset_key:
                yield step.key, output.properties.asset_key


def _updated(
    entry: EventLogEntry, made: dg.AssetMaterialization, run: dg.DagsterRun | None
) -> Iterator[Told]:
    key = tuple(made.asset_key.path)
    if not (domain := _domain(key, run)):
        return
    numbers = _numbers(made.metadata)
    days = days_of(run) if run else None
    # Every partition of a load says what the load did as a whole: so it is told with the last.
    is_last = _is_last(made, run)
    shape = made.metadata.get("dagster/column_schema")
    columns = shape.schema.columns if isinstance(shape, dg.TableSchemaMetadataValue) else None
    rows = numbers.get("dagster/row_count") if is_last else None
    counts = {name: numbers[name] for name in _COUNTS if name in numbers}
    if not is_last and any(counts.get(name) for name in CHANGES):
        counts = {}
    if rows is not None and key[0] == "lake":
        # What a sync brought; nobody counts what the objects hold.
        counts, rows = {"new": rows}, None
    yield Updated(
        run_id=entry.run_id or None,
        domain=domain,
        asset_key=key,
        at=entry.timestamp,
        partition=_range(days) if days and made.partition and is_last else made.partition,
        rows=rows,
        columns=len(columns) if columns is not None and is_last else None,
        counts=counts,
        up_to_date=bool("up to date" in made.metadata and made.metadata["up to date"].value),
    )


def _judged(
    entry: EventLogEntry, said: dg.AssetCheckEvaluation, run: dg.DagsterRun | None
) -> Iterator[Told]:
    key = tuple(said.asset_key.path)
    if not (domain := _domain(key, run)):
        return
    numbers = _numbers(said.metadata)
    about = said.metadata.get("partitions")
    yield Judged(
        run_id=entry.run_id or None,
        domain=domain,
        asset_key=key,
        check=said.check_name,
        at=entry.timestamp,
        partition=str(about.value) if about else None,
        passed=said.passed,
        evaluated="could not be evaluated" not in said.metadata,
        rows=numbers.get("rows"),
        unexpected=numbers.get("unexpected rows", numbers.get("rows rejected")),
        severity=said.severity.value,
    )


def _aged(change: Any) -> Iterator[Told]:
    """A table that became older than its domain promises, or is as fresh as that again."""
    assert isinstance(change, FreshnessStateChange)
    key = tuple(change.key.path)
    domain = _domain(key, None)
    if domain and change.new_state in _FRESHNESS:
        yield Judged(
            run_id=None,
            domain=domain,
            asset_key=key,
            check=FRESHNESS,
            at=change.state_change_timestamp,
            partition=None,
            passed=_FRESHNESS[change.new_state],
            evaluated=True,
            rows=None,
            unexpected=None,
            severity="warning",
        )


def _domain(key: tuple[str, ...], run: dg.DagsterRun | None) -> str | None:
    """The domain that the asset is of; None if it is of none of this project."""
    if run is not None and (domain := domain_of(run)):
        found = domain
    elif key[0] in _PLACES and len(key) > 2:
        found = key[1]
    else:
        found = Table(key[0], key[-1]).domain
    return found if found in domain_names() else None


def _range(days: Days) -> str | None:
    if days is None:
        return None
    first, last = days
    return first if first == last else f"{first} to {last}"


def _numbers(metadata: Mapping[str, dg.MetadataValue[Any]]) -> dict[str, int]:
    return {
        name: value.value
        for name, value in metadata.items()
        if isinstance(value, dg.IntMetadataValue) and value.value is not None
    }
