"""What a failed run has left undone, and whether later runs have done it since.

A run makes assets and evaluates checks, for days or without any, and which of them depends on its
selection: a step of many assets may be run in part. So these are compared, asset by asset and day
by day, with what other runs have done after it failed; not runs, nor steps.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TypeAlias

import dagster as dg
from dagster._core.execution.stats import StepEventStatus
from dagster._core.snap.execution_plan_snapshot import ExecutionStepSnap
from dagster._core.storage.dagster_run import RunRecord
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    ASSET_RESUME_RETRY_TAG,
    PARTITION_NAME_TAG,
    RESUME_RETRY_TAG,
)

#: The first and the last partition of a range; None of what has no partitions.
Days: TypeAlias = tuple[str, str] | None
#: An asset, a check or a step, and the day that it is about; empty of what is about none.
Deed: TypeAlias = tuple[str, str]

#: Tags of runs that do only what another run has not done.
_RESUMED = {RESUME_RETRY_TAG, ASSET_RESUME_RETRY_TAG}
#: Seconds after its end from which on nothing is added to what a run did: a step of a run that was
#: marked as failed may end a little later.
_SETTLED = 60
_KEPT = 4096
#: Before the name of a step that makes no asset and evaluates no check, and of a run without steps.
_STEP, _RUN = "step ", "run "


@dataclass(frozen=True, slots=True)
class Deeds:
    """What a run that has ended was to do, and did."""

    #: By step, the assets and checks of it; the step itself, if it has none.
    planned: Mapping[str, frozenset[str]]
    #: Whether it was to do all that its job does.
    is_whole: bool
    #: By step that failed, and that succeeded, when it ended, in seconds since the epoch.
    failed: Mapping[str, float]
    succeeded: Mapping[str, float]
    #: Of steps that failed, what they had made before that.
    made: frozenset[Deed]

    def done(self, after: float) -> frozenset[str]:
        """What it did once that time had come, of all days that it is about."""
        steps = [step for step, ended in self.succeeded.items() if ended > after]
        return frozenset[str]().union(*(self.planned.get(step, ()) for step in steps))

    def left(self, days: Collection[str]) -> set[Deed]:
        """What it did not do of these days. Of a step that failed having made all: all of it."""
        found: set[Deed] = set()
        for step, units in self.planned.items():
            if step not in self.succeeded:
                whole = {(unit, day) for unit in units for day in days}
                found |= (whole - self.made) or whole
        return found


def ended(record: RunRecord) -> float:
    """When the run ended, in seconds since the epoch."""
    return record.end_time or record.update_timestamp.timestamp()


def is_resumed(run: dg.DagsterRun) -> bool:
    """Whether the run does only what its parent had not done."""
    return bool(run.tags.keys() & _RESUMED)


def days_of(run: dg.DagsterRun) -> Days:
    """The first and the last partition that a run is about."""
    single = run.tags.get(PARTITION_NAME_TAG)
    first = run.tags.get(ASSET_PARTITION_RANGE_START_TAG, single)
    last = run.tags.get(ASSET_PARTITION_RANGE_END_TAG, single)
    return (first, last) if first and last else None


def failed_steps(instance: dg.DagsterInstance, record: RunRecord) -> frozenset[str]:
    """The steps that a run which has ended failed at; none if it failed before its first."""
    return frozenset(_deeds(instance, record).failed)


def failed_at(instance: dg.DagsterInstance, record: RunRecord) -> float:
    """When its first step failed, in seconds since the epoch; else when the run ended."""
    return min(_deeds(instance, record).failed.values(), default=ended(record))


def units_of(graph: dg.AssetGraph) -> set[str]:
    """The assets and checks of a code location, as they are called in what is undone."""
    assets = {key.to_user_string() for key in graph.get_all_asset_keys()}
    return assets | {_check(key) for key in graph.asset_check_keys}


def undone(
    instance: dg.DagsterInstance,
    failure: RunRecord,
    later: Iterable[RunRecord],
    known: Collection[str] | None = None,
) -> frozenset[Deed]:
    """What a failed run has not done, and no other run has since it failed; empty if nothing.

    `later` are runs of the same code location that ended after `failed_at`, however they ended.
    `known` are its units now, if the caller knows: what has been deleted nobody can do any more.
    """
    failed, since = failure.dagster_run, failed_at(instance, failure)
    deeds = _deeds(instance, failure)
    if not deeds.planned:
        # Nobody knows what it was to do; only the same one, once more, has done it.
        again = (record for record in later if record.start_time and record.start_time >= since)
        mended = any(_is_same_whole(instance, failed, record) for record in again)
        return frozenset() if mended else frozenset({(f"{_RUN}{failed.job_name}", "")})
    days = _single(days_of(failed)) or [""]
    left = deeds.left(days)
    if known is not None:
        left = {
            (unit, day) for unit, day in left if unit.startswith(_STEP) or _asset(unit) in known
        }
    for record in later:
        if not left:
            break
        run = record.dagster_run
        if run.run_id == failed.run_id or ended(record) <= since or not _may_do(run, left):
            continue
        # A run of no days is of all of them; and what is of no days, any run of it has done.
        covered = set(_single(days_of(run)))
        done = _deeds(instance, record).done(since)
        left = {
            (unit, day)
            for unit, day in left
            if unit not in done or (day and covered and day not in covered)
        }
    return frozenset(left)


def _may_do(run: dg.DagsterRun, left: Iterable[Deed]) -> bool:
    """Whether a run of this selection can do any of it; what it did is read only then."""
    if run.asset_selection is None and run.asset_check_selection is None:
        return True
    chosen = {key.to_user_string() for key in run.asset_selection or ()}
    chosen |= {key.asset_key.to_user_string() for key in run.asset_check_selection or ()}
    return any(unit.startswith(_STEP) or _asset(unit) in chosen for unit, _ in left)


def _is_same_whole(instance: dg.DagsterInstance, failed: dg.DagsterRun, later: RunRecord) -> bool:
    run = later.dagster_run
    if run.status is not dg.DagsterRunStatus.SUCCESS or is_resumed(run):
        return False
    asked = (
        (
            each.job_name,
            each.asset_selection,
            each.asset_check_selection,
            each.op_selection,
            days_of(each),
        )
        for each in (failed, run)
    )
    return len(set(asked)) == 1 and _deeds(instance, later).is_whole


def _single(days: Days) -> list[str]:
    """Each day of a range; of partitions that are no days, both ends."""
    if days is None:
        return []
    try:
        first, last = map(date.fromisoformat, days)
    except ValueError:
        return list(dict.fromkeys(days))
    return [(first + timedelta(n)).isoformat() for n in range((last - first).days + 1)]


#: By run that has ended, what it did, which does not change. Not by instance: Dagster makes one for
#: each tick, which would be kept with its connections.
_ENDED: dict[str, Deeds] = {}


def _deeds(instance: dg.DagsterInstance, record: RunRecord) -> Deeds:
    run_id = record.dagster_run.run_id
    deeds = _ENDED.get(run_id)
    if deeds is None:
        deeds = _read_deeds(instance, record.dagster_run)
        if time.time() - ended(record) >= _SETTLED:
            if len(_ENDED) >= _KEPT:
                _ENDED.clear()
            _ENDED[run_id] = deeds
    return deeds


def _read_deeds(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Deeds:
    steps = instance.get_run_step_stats(run.run_id)
    planned: dict[str, frozenset[str]] = {}
    is_whole = False
    if run.execution_plan_snapshot_id:
        plan = instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id)
        chosen = set(plan.step_keys_to_execute)
        planned = {step.key: _units(step) for step in plan.steps if step.key in chosen}
        is_whole = len(planned) == len(plan.steps)
    failed = {s.step_key: s.end_time or 0 for s in steps if s.status is StepEventStatus.FAILURE}
    return Deeds(
        planned | {key: frozenset({f"{_STEP}{key}"}) for key in failed.keys() - planned.keys()},
        is_whole,
        failed,
        {s.step_key: s.end_time or 0 for s in steps if s.status is StepEventStatus.SUCCESS},
        _made(instance, run, failed),
    )


def _units(step: ExecutionStepSnap) -> frozenset[str]:
    outputs = [output.properties for output in step.outputs if output.properties]
    assets = {each.asset_key.to_user_string() for each in outputs if each.asset_key}
    checks = {_check(each.asset_check_key) for each in outputs if each.asset_check_key}
    return frozenset(assets | checks) or frozenset({f"{_STEP}{step.key}"})


def _made(
    instance: dg.DagsterInstance, run: dg.DagsterRun, failed: Collection[str]
) -> frozenset[Deed]:
    """What failed steps did before."""
    if not failed:
        return frozenset()
    kinds = {dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.ASSET_CHECK_EVALUATION}
    made: set[Deed] = set()
    for entry in instance.all_logs(run.run_id, of_type=kinds):
        event = entry.dagster_event
        if event is None or event.step_key not in failed:
            continue
        if event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            check = _check(event.asset_check_evaluation_data.asset_check_key)
            made |= {(check, day) for day in _single(days_of(run)) or [""]}
        elif event.asset_key:
            made.add((event.asset_key.to_user_string(), event.partition or ""))
    return frozenset(made)


def _check(key: dg.AssetCheckKey) -> str:
    return f"{key.asset_key.to_user_string()}:{key.name}"


def _asset(unit: str) -> str:
    """The asset of a unit that is an asset or a check of one."""
    return unit.partition(":")[0]
