"""What is the matter with a domain right now, as Dagster and the landing zone tell it.

Each problem is found anew at every look, from what there is: so one that began while nobody looked
is found, and one that is over is not. What it is called stays the same as long as it lasts.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
from dagster._core.definitions.freshness import FreshnessState
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.execution.stats import StepEventStatus
from dagster._core.scheduler.instigation import TickStatus
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES, RunRecord
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    ASSET_RESUME_RETRY_TAG,
    AUTO_RETRY_RUN_ID_TAG,
    PARTITION_NAME_TAG,
    REPOSITORY_LABEL_TAG,
    RESUME_RETRY_TAG,
    ROOT_RUN_ID_TAG,
    WILL_RETRY_TAG,
)

from dagster_project.identity import Feed
from dagster_project.ingestion.feed import FeedDeclaration
from dagster_project.ingestion.landing import landing_zone
from dagster_project.lake.store import Lake
from dagster_project.orchestration.problem import FAILED_DAYS, Kind, Problem
from dagster_project.warehouse.ledger import read_objects

RUN_PATH = "/runs/"
#: How far back failed runs are looked for that nobody has told of, and how many at most.
LOOKED_BACK, RUNS = timedelta(days=14), 1000
_EVALUATED = {
    AssetCheckExecutionRecordStatus.SUCCEEDED,
    AssetCheckExecutionRecordStatus.FAILED,
}
#: How long the daemon takes at most to start a run again.
RETRIED_WITHIN = timedelta(minutes=2)
#: Tags of runs that do only what another run has not done.
_RETRIED = {RESUME_RETRY_TAG, ASSET_RESUME_RETRY_TAG}
#: Characters of an error that are told at most.
LONGEST = 300
_OVER = [TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE]
#: Days that a problem names at most.
_SHOWN = 5
#: For how long a delivered file may wait to be loaded.
PATIENCE = timedelta(minutes=15)


def domain_of(run: dg.DagsterRun) -> str | None:
    """The domain whose code location the run is of."""
    origin = run.remote_job_origin
    return origin.location_name if origin else None


def root_of(run: dg.DagsterRun) -> str:
    """The first of the runs that this one is an execution of; itself, if it is the first."""
    return run.root_run_id or run.run_id


def asset_path(key: dg.AssetKey) -> str:
    """An asset's page in the UI."""
    return "/assets/" + "/".join(key.path)


def failed_checks(
    instance: dg.DagsterInstance, keys: Collection[dg.AssetCheckKey]
) -> Iterator[Problem]:
    """Checks whose last verdict is that they failed. One that is only planned has none yet."""
    storage = instance.event_log_storage
    for key, latest in storage.get_latest_asset_check_execution_by_key(list(keys)).items():
        record = latest
        if latest.status not in _EVALUATED:
            before = storage.get_asset_check_execution_history(key, limit=1, status=_EVALUATED)
            if not before:
                continue
            (record,) = before
        said = record.evaluation
        if record.status is not AssetCheckExecutionRecordStatus.FAILED or said is None:
            continue
        critical = said.severity is dg.AssetCheckSeverity.ERROR
        rows = said.metadata.get("unexpected rows")
        told = said.description or (f"{rows.value} unexpected rows" if rows else "failed")
        yield Problem(
            Kind.CRITICAL if critical else Kind.WARNING,
            f"{key.asset_key.to_user_string()} {key.name}",
            told,
            f"{asset_path(key.asset_key)}?view=checks&checkDetail={key.name}",
            record.create_timestamp,
        )


def failed_runs(
    instance: dg.DagsterInstance, domain: str, told: Collection[str] = ()
) -> Iterator[Problem]:
    """`standing_failures` as problems: those of the same steps and partitions are one."""
    for name, records in standing_failures(instance, domain, told).items():
        run_id = records[-1].dagster_run.run_id
        runs = f"{len(records)} runs, the last " if len(records) > 1 else "run "
        yield Problem(
            Kind.RUN, name, f"{runs}{run_id[:8]}", f"{RUN_PATH}{run_id}", _ended(records[0])
        )


def standing_failures(
    instance: dg.DagsterInstance, domain: str, told: Collection[str] = ()
) -> dict[str, list[RunRecord]]:
    """Failed runs, of which no later one has done what they failed to do; the oldest first.

    By what they are called: their failed steps, and partitions. `told` are the runs that somebody
    was told of: they are looked at however old they are.
    """
    since = datetime.now(UTC) - LOOKED_BACK
    failed, succeeded = [dg.DagsterRunStatus.FAILURE], [dg.DagsterRunStatus.SUCCESS]
    failures = _of_domain(instance, domain, run_ids=[*told]) if told else {}
    failures |= _of_domain(instance, domain, statuses=failed, updated_after=since)
    open_ = [
        record
        for record in failures.values()
        if record.dagster_run.status is dg.DagsterRunStatus.FAILURE
        and not _is_retried(instance, record)
    ]
    if not open_:
        return {}
    first = min(_ended(record) for record in open_)
    after = datetime.fromtimestamp(first, UTC)
    found = _of_domain(instance, domain, statuses=succeeded, updated_after=after)
    successes = list(found.values())
    same: dict[str, list[RunRecord]] = {}
    for record in sorted(open_, key=_ended):
        run = record.dagster_run
        if all(_made_good(instance, record, days, successes) for days in _wanted(run)):
            continue
        name = called(run, failed_steps(instance, run.run_id))
        same.setdefault(name, []).append(record)
    return same


def retries(
    instance: dg.DagsterInstance, run: dg.DagsterRun, unfinished_only: bool = False
) -> list[dg.DagsterRun]:
    """The later runs that do what a run, or one that it retries, failed to do; the newest first."""
    filters = dg.RunsFilter(
        tags={ROOT_RUN_ID_TAG: root_of(run)},
        statuses=[*NOT_FINISHED_STATUSES] if unfinished_only else None,
    )
    found = instance.get_runs(filters)
    ids = [each.run_id for each in found]
    later = found[: ids.index(run.run_id)] if run.run_id in ids else found
    return [each for each in later if each.tags.keys() & _RETRIED]


def _is_retried(instance: dg.DagsterInstance, record: RunRecord) -> bool:
    """Whether another run does what this one failed to do, and is judged instead.

    One that is to be retried may never be: the backfill that it is of may be over by then.
    """
    tags = record.dagster_run.tags
    if retry := tags.get(AUTO_RETRY_RUN_ID_TAG):
        found = instance.get_run_by_id(retry)
        return found is not None and found.status is not dg.DagsterRunStatus.CANCELED
    is_recent = time.time() - _ended(record) < RETRIED_WITHIN.total_seconds()
    return tags.get(WILL_RETRY_TAG) == "true" and is_recent


def failed_steps(instance: dg.DagsterInstance, run_id: str) -> frozenset[str]:
    """The steps that a run which has ended failed at; none if it failed before its first."""
    return _steps(instance, run_id, StepEventStatus.FAILURE)


def called(run: dg.DagsterRun, failed: Collection[str]) -> str:
    """What a failure is called, however often it comes again."""
    name = ", ".join(sorted(failed)) or f"{run.job_name} before its first step"
    days = [each[0] if each[0] == each[1] else " to ".join(each) for each in _wanted(run) if each]
    more = f" and {len(days) - _SHOWN} more" if days[_SHOWN:] else ""
    return f"{name} ({', '.join(days[:_SHOWN])}{more})" if days else name


def _of_domain(instance: dg.DagsterInstance, domain: str, **wanted: Any) -> dict[str, RunRecord]:
    """The newest runs of a domain's code location, by a filter's fields."""
    filters = dg.RunsFilter(tags={REPOSITORY_LABEL_TAG: f"__repository__@{domain}"}, **wanted)
    records = instance.get_run_records(filters, limit=RUNS)
    return {record.dagster_run.run_id: record for record in records}


def _ended(record: RunRecord) -> float:
    return record.end_time or record.update_timestamp.timestamp()


#: By run that has ended, how its steps did, which does not change. Not by instance: Dagster makes
#: one for each tick, which would be kept with its connections.
_ENDED_STEPS: dict[str, dict[str, StepEventStatus | None]] = {}
_KEPT = 1024


def _steps(instance: dg.DagsterInstance, run_id: str, status: StepEventStatus) -> frozenset[str]:
    """The steps of a run that has ended, that ended so."""
    steps = _ENDED_STEPS.get(run_id)
    if steps is None:
        if len(_ENDED_STEPS) >= _KEPT:
            _ENDED_STEPS.clear()
        steps = {stats.step_key: stats.status for stats in instance.get_run_step_stats(run_id)}
        _ENDED_STEPS[run_id] = steps
    return frozenset(key for key, ended in steps.items() if ended is status)


def _days(run: dg.DagsterRun) -> tuple[str, str] | None:
    """The first and the last partition of a run."""
    single = run.tags.get(PARTITION_NAME_TAG)
    first = run.tags.get(ASSET_PARTITION_RANGE_START_TAG, single)
    last = run.tags.get(ASSET_PARTITION_RANGE_END_TAG, single)
    return (first, last) if first and last else None


def _wanted(run: dg.DagsterRun) -> list[tuple[str, str] | None]:
    """The ranges of days that a failed run is about: those to blame, where that is known."""
    if to_blame := run.tags.get(FAILED_DAYS):
        return [(day, day) for day in to_blame.split(",")]
    return [_days(run)]


def _made_good(
    instance: dg.DagsterInstance,
    failure: RunRecord,
    days: tuple[str, str] | None,
    successes: Iterable[RunRecord],
) -> bool:
    """Whether later runs did what this one has not done, of these partitions at least."""
    before = failure.dagster_run
    done: set[str] = set()
    for success in successes:
        after = success.dagster_run
        if _ended(success) <= _ended(failure):
            continue
        if root_of(before) == root_of(after) and after.tags.keys() & _RETRIED:
            return True  # it did all that the one before it had not done
        covered = _days(after)
        if days and covered and not (covered[0] <= days[0] and days[1] <= covered[1]):
            continue
        same = (before.job_name, before.asset_selection) == (after.job_name, after.asset_selection)
        if same and (covered or not days) and not after.tags.keys() & _RETRIED:
            return True
        done |= _steps(instance, after.run_id, StepEventStatus.SUCCESS)
    planned = set(before.step_keys_to_execute or ()) | failed_steps(instance, before.run_id)
    left = planned - _steps(instance, before.run_id, StepEventStatus.SUCCESS)
    return bool(left) and left <= done


def late_tables(
    instance: dg.DagsterInstance, promised: Sequence[dg.AssetKey], freshness: str
) -> Iterator[Problem]:
    """Tables of data products that are older than the domain promises."""
    for key, record in instance.get_freshness_state_records(list(promised)).items():
        if record.freshness_state is FreshnessState.FAIL:
            yield Problem(
                Kind.LATE,
                key.to_user_string(),
                f"not made anew for more than {freshness}",
                asset_path(key),
                record.updated_at.timestamp(),
            )


def broken_triggers(
    instance: dg.DagsterInstance, domain: str, names: Collection[str]
) -> Iterator[Problem]:
    """Schedules whose last tick failed, and sensors, which look every few seconds, whose last two.

    Of those that are called so: Dagster knows also those that once were. A tick that is going says
    nothing yet.
    """
    for state in instance.all_instigator_state():
        location = state.origin.repository_origin.code_location_origin.location_name
        if location != domain or state.name not in names:
            continue
        is_schedule = state.instigator_type is InstigatorType.SCHEDULE
        looked_at = 1 if is_schedule else 2
        ticks = instance.get_ticks(
            state.instigator_origin_id, state.selector_id, limit=looked_at, statuses=_OVER
        )
        if len(ticks) < looked_at or any(tick.status is not TickStatus.FAILURE for tick in ticks):
            continue
        said = ticks[0].error.message.strip().splitlines() if ticks[0].error else ["failed"]
        kind = "schedules" if is_schedule else "sensors"
        yield Problem(
            Kind.TRIGGER,
            state.name,
            said[-1][:LONGEST],
            f"/locations/__repository__@{domain}/{kind}/{state.name}",
            ticks[-1].timestamp,
        )


def stuck_deliveries(
    domain: str, feeds: Iterable[FeedDeclaration], lake: Lake, warehouse_url: str
) -> Iterator[Problem]:
    """Files in the landing zone that nobody loads, or that nobody has loaded for a while."""
    now = time.time()
    for feed in feeds:
        name = Feed(domain, feed.name)
        zone = landing_zone(domain, feed, lake)
        path = asset_path(dg.AssetKey(list(name.asset_key)))
        for key, reason in zone.ignored:
            yield Problem(Kind.STUCK, key, f"it is never loaded: {reason}", path, now)
        loaded = read_objects(warehouse_url, name.table)
        for day, item in zone.files.items():
            waited = now - item.modified.timestamp()
            if (
                waited > PATIENCE.total_seconds()
                and loaded.get(day) != f"{item.key} {item.version}"
            ):
                what = f"it waits to be loaded for {waited / 60:,.0f} minutes"
                yield Problem(Kind.STUCK, item.key, what, path, item.modified.timestamp())
