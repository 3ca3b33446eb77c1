"""Running a domain's job as a run of its own code location, in this process.

The run is recorded with the origin that `workspace.yaml` gives its location, so that the UI finds
it there and can execute it again, whoever started it.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
from dagster._core.code_pointer import CodePointer
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.definitions.repository_definition.valid_definitions import (
    SINGLETON_REPOSITORY_NAME,
)
from dagster._core.events import RunFailureReason
from dagster._core.execution.api import execute_run
from dagster._core.origin import DEFAULT_DAGSTER_ENTRY_POINT
from dagster._core.remote_origin import CodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    MAX_RETRIES_TAG,
)
from dagster._core.workspace.autodiscovery import loadable_targets_from_python_module
from dagster._core.workspace.load_target import WorkspaceFileTarget

from dagster_project.failures import DeclarationError
from dagster_project.orchestration.problem import FAILED_DAYS
from dagster_project.settings import WORKSPACE

#: The tag of runs that have a process of ours, not one of Dagster's launcher.
STARTED_BY = "mesh/started_by"
_UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def report_killed(instance: dg.DagsterInstance, started_by: str) -> None:
    """Mark the unfinished runs of `started_by` as failed, whose processes are known to be gone.

    A run that was killed with all its processes could not say so itself.
    """
    filters = dg.RunsFilter(statuses=_UNFINISHED, tags={STARTED_BY: started_by})
    for run in instance.get_runs(filters):
        if run.parent_run_id:
            continue  # it was executed again, by a launcher, and has the tags of the first
        instance.report_run_failed(run, "Its process was killed before the run had ended.")
        # A daemon would do so some time later, if there was one.
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def blame(run_id: str, days: Collection[str]) -> None:
    """Note which days a run failed for: what becomes of its others does not say it is mended."""
    with dg.DagsterInstance.get() as instance:
        instance.add_run_tags(run_id, {FAILED_DAYS: ",".join(sorted(days))})


@dataclass(frozen=True)
class RunRequest:
    """What to run of a domain: everything, or some assets; some days of the partitioned ones."""

    domain: str
    job: str
    #: Asset keys; everything if None. Their checks run with them.
    assets: Sequence[Sequence[str]] | None = None
    #: The first and the last partition.
    partitions: tuple[str, str] | None = None
    tags: Mapping[str, str] | None = None


def location_origin(domain: str) -> CodeLocationOrigin:
    """The origin of a domain's code location, as workspace.yaml gives it."""
    origins = WorkspaceFileTarget(paths=[str(WORKSPACE)]).create_origins()
    for origin in origins:
        if origin.location_name == domain:
            return origin
    raise DeclarationError(f"{WORKSPACE} has no code location {domain}: add one")


@dataclass(frozen=True)
class Executed:
    """What came of a run."""

    run_id: str
    succeeded: bool
    #: What each step that failed says of it, if it says more than a text.
    failures: Sequence[Mapping[str, dg.MetadataValue[Any]]] = ()


def execute(request: RunRequest, run_id: str) -> Executed:
    """Create the run and execute it to its end. Raises KeyboardInterrupt if it is interrupted."""
    module = f"dagster_project.locations.{request.domain}"
    (target,) = loadable_targets_from_python_module(module, None)
    repository = ReconstructableRepository(
        pointer=CodePointer.from_module(module, target.attribute, None),
        executable_path=sys.executable,
        entry_point=DEFAULT_DAGSTER_ENTRY_POINT,
    )
    job = repository.get_reconstructable_job(request.job)
    keys = None
    if request.assets is not None:
        keys = frozenset(dg.AssetKey(list(path)) for path in request.assets)
        job = job.get_subset(asset_selection=keys)
    # Whoever started it sees that it failed: the daemon does not start it again.
    tags = {MAX_RETRIES_TAG: "0", **(request.tags or {})}
    if request.partitions:
        first, last = request.partitions
        tags |= {ASSET_PARTITION_RANGE_START_TAG: first, ASSET_PARTITION_RANGE_END_TAG: last}
    origin = RemoteRepositoryOrigin(
        code_location_origin=location_origin(request.domain),
        repository_name=SINGLETON_REPOSITORY_NAME,
    )
    with dg.DagsterInstance.get() as instance:
        run = instance.create_run_for_job(
            job_def=job.get_definition(),
            run_id=run_id,
            tags=tags,
            asset_selection=keys,
            remote_job_origin=origin.get_job_origin(request.job),
            job_code_origin=job.get_python_origin(),
        )
        result = execute_run(job, run, instance)
    for event in result.filter_events(lambda event: event.is_run_failure):
        # Dagster takes the interrupt, and fails the run for it.
        if event.job_failure_data.failure_reason is RunFailureReason.UNEXPECTED_TERMINATION:
            raise KeyboardInterrupt
    failed = [event.step_failure_data for event in result.get_step_failure_events()]
    said = [each.user_failure_data.metadata for each in failed if each.user_failure_data]
    return Executed(run_id, result.success, said)
