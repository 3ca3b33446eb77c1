"""What is the matter with a domain right now, as Dagster and the landing zone tell it.

Each problem is found anew at every look, from what there is: so one that began while nobody looked
is found, and one that is over is not. What it is called stays the same as long as it lasts.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
from dagster._core.definitions.freshness import FreshnessState
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import TickStatus
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.dagster_run import (
    FINISHED_STATUSES,
    RunRecord,
)
from dagster._core.storage.tags import (
    AUTO_RETRY_RUN_ID_TAG,
    REPOSITORY_LABEL_TAG,
    ROOT_RUN_ID_TAG,
    WILL_RETRY_TAG,
)

from dagster_project.identity import Feed
from dagster_project.ingestion.feed import FeedDeclaration
from dagster_project.ingestion.landing import landing_zone
from dagster_project.lake.store import Lake
from dagster_project.orchestration.problem import Kind, Problem, failed_days
from dagster_project.orchestration.undone import (
    Days,
    Deed,
    days_of,
    ended,
    failed_at,
    failed_steps,
    is_resumed,
    undone,
)
from dagster_project.warehouse.ledger import read_objects

RUN_PATH = "/runs/"
#: How far back failed runs are looked for that nobody has told of.
LOOKED_BACK = timedelta(days=14)
#: Runs that are read at once.
RUNS = 1000
#: Runs of a problem that are looked at for as long as it stands.
_REMEMBERED = 50
#: Failed runs of which it is known that they are made good, which they stay, and how many at most.
_MENDED: dict[str, None] = {}
_REMEMBERED_MENDED = 10_000
_EVALUATED = {
    AssetCheckExecutionRecordStatus.SUCCEEDED,
    AssetCheckExecutionRecordStatus.FAILED,
}
#: How long the daemon takes at most to start a run again.
RETRIED_WITHIN = timedelta(minutes=2)
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
    instance: dg.DagsterInstance,
    domain: str,
    told: Collection[str] = (),
    known: Collection[str] | None = None,
) -> Iterator[Problem]:
    """`standing_failures` as problems: those of the same steps and partitions are one."""
    same: dict[str, list[StandingFailure]] = {}
    for failure in standing_failures(instance, domain, told, known):
        same.setdefault(failure.name, []).append(failure)
    for name, failures in same.items():
        ids = [failure.run.run_id for failure in failures]
        runs = f"{len(ids)} runs, the last " if len(ids) > 1 else "run "
        yield Problem(
            *(Kind.RUN, name, f"{runs}{ids[-1][:8]}", f"{RUN_PATH}{ids[-1]}", failures[0].ended),
            runs=tuple(ids[-_REMEMBERED:]),
        )


@dataclass(frozen=True, slots=True)
class StandingFailure:
    """A failed run that has left something undone."""

    run: dg.DagsterRun
    #: Its failed steps, and the partitions.
    name: str
    undone: frozenset[Deed]
    #: In seconds since the epoch.
    ended: float


def standing_failures(
    instance: dg.DagsterInstance,
    domain: str,
    told: Collection[str] = (),
    known: Collection[str] | None = None,
) -> list[StandingFailure]:
    """Failed runs, of which no later ones have done all that they failed to do; the oldest first.

    `told` are the runs that somebody was told of: they are looked at however old they are. `known`
    are the domain's assets and checks (`units_of`), if the caller knows them.
    """
    since = datetime.now(UTC) - LOOKED_BACK
    failed, over = [dg.DagsterRunStatus.FAILURE], [*FINISHED_STATUSES]
    failures = _of_domain(instance, domain, run_ids=[*told]) if told else {}
    failures |= _of_domain(instance, domain, statuses=failed, updated_after=since)
    open_ = [
        record
        for record in failures.values()
        if record.dagster_run.status is dg.DagsterRunStatus.FAILURE
        and record.dagster_run.run_id not in _MENDED
        and not _is_retried(instance, record)
    ]
    if not open_:
        return []
    after = datetime.fromtimestamp(min(failed_at(instance, record) for record in open_), UTC)
    later = _of_domain(instance, domain, statuses=over, updated_after=after).values()
    found = []
    for record in sorted(open_, key=ended):
        run = record.dagster_run
        if left := undone(instance, record, later, known):
            name = called(run, failed_steps(instance, record))
            found.append(StandingFailure(run, name, left, ended(record)))
        else:
            _MENDED[run.run_id] = None
    while len(_MENDED) > _REMEMBERED_MENDED:
        _MENDED.pop(next(iter(_MENDED)))
    return found


def retries(
    instance: dg.DagsterInstance, run: dg.DagsterRun, unfinished_only: bool = False
) -> list[dg.DagsterRun]:
    """The later runs that do what this one failed to do, or what of that they failed to do; the
    newest first.
    """
    kin = instance.get_runs(dg.RunsFilter(tags={ROOT_RUN_ID_TAG: root_of(run)}))
    parents = {each.run_id: each.parent_run_id for each in kin if is_resumed(each)}

    def resumes(run_id: str | None) -> bool:
        while run_id in parents:
            run_id = parents[run_id]
            if run_id == run.run_id:
                return True
        return False

    found = [each for each in kin if resumes(each.run_id)]
    return [each for each in found if not (unfinished_only and each.is_finished)]


def _is_retried(instance: dg.DagsterInstance, record: RunRecord) -> bool:
    """Whether another run does what this one failed to do, and is judged instead.

    One that is to be retried may never be: the backfill that it is of may be over by then.
    """
    tags = record.dagster_run.tags
    if retry := tags.get(AUTO_RETRY_RUN_ID_TAG):
        found = instance.get_run_by_id(retry)
        # Who runs it again by hand in the UI has the tag too, which is of the first one.
        is_ours = found is not None and found.parent_run_id == record.dagster_run.run_id
        if is_ours and found is not None:
            return found.status is not dg.DagsterRunStatus.CANCELED
    is_recent = time.time() - ended(record) < RETRIED_WITHIN.total_seconds()
    return tags.get(WILL_RETRY_TAG) == "true" and is_recent


def called(run: dg.DagsterRun, failed: Collection[str]) -> str:
    """What a failure is called, however often it comes again."""
    name = ", ".join(sorted(failed)) or f"{run.job_name} before its first step"
    days = [each[0] if each[0] == each[1] else " to ".join(each) for each in _to_blame(run) if each]
    more = f" and {len(days) - _SHOWN} more" if days[_SHOWN:] else ""
    return f"{name} ({', '.join(days[:_SHOWN])}{more})" if days else name


def _to_blame(run: dg.DagsterRun) -> list[Days]:
    """The days that a run failed for, where that is known; else all that it is about."""
    return [(day, day) for day in failed_days(run.run_id, run.tags)] or [days_of(run)]


def _of_domain(instance: dg.DagsterInstance, domain: str, **wanted: Any) -> dict[str, RunRecord]:
    """The runs of a domain's code location, by a filter's fields, the newest first."""
    filters = dg.RunsFilter(tags={REPOSITORY_LABEL_TAG: f"__repository__@{domain}"}, **wanted)
    found: dict[str, RunRecord] = {}
    cursor: str | None = None
    while True:
        records = instance.get_run_records(filters, limit=RUNS, cursor=cursor)
        found |= {record.dagster_run.run_id: record for record in records}
        if len(records) < RUNS:
            return found
        cursor = records[-1].dagster_run.run_id


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
