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
from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository
from dagster._core.definitions.repository_definition.valid_definitions import (
    SINGLETON_REPOSITORY_NAME,
)
from dagster._core.events import RunFailureReason
from dagster._core.execution.api import create_execution_plan, execute_run
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.origin import DEFAULT_DAGSTER_ENTRY_POINT
from dagster._core.remote_origin import (
    CodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.snap import snapshot_from_execution_plan
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    MAX_RETRIES_TAG,
    PARENT_RUN_ID_TAG,
    RESUME_RETRY_TAG,
    ROOT_RUN_ID_TAG,
    TAGS_TO_MAYBE_OMIT_ON_RETRY,
)
from dagster._core.workspace.autodiscovery import loadable_targets_from_python_module
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster_shared.check import CheckError

from dagster_project.failures import DeclarationError, MeshError
from dagster_project.orchestration.diagnosis import domain_of, root_of
from dagster_project.orchestration.problem import STARTED_BY, failed_days_tag
from dagster_project.orchestration.run_process import PROCESS, RunProcess
from dagster_project.settings import WORKSPACE

#: Tags of a failed run that a run which does the rest does not have.
_NOT_INHERITED = {
    *TAGS_TO_MAYBE_OMIT_ON_RETRY,
    *(STARTED_BY, PROCESS),
}
_UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def report_killed(instance: dg.DagsterInstance) -> None:
    """Mark the unfinished runs as failed whose processes are known to be gone; free their slots.

    A run that was killed with all its processes could not do so itself. A daemon would some time
    later, if there was one.
    """
    storage = instance.event_log_storage
    for run in instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED)):
        process = RunProcess.of(run)
        if process and process.is_gone():
            instance.report_run_failed(run, process.gone())
    for run_id in storage.get_concurrency_run_ids():
        holder = instance.get_run_by_id(run_id)
        if holder is None or holder.is_finished:
            storage.free_concurrency_slots_for_run(run_id)


def blame(run_id: str, days: Collection[str]) -> None:
    """Note which days a run failed for: what becomes of its others does not say it is mended."""
    with dg.DagsterInstance.get() as instance:
        instance.add_run_tags(run_id, failed_days_tag(run_id, days))


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
    job = _job(request.domain, request.job)
    keys = None
    if request.assets is not None:
        keys = frozenset(dg.AssetKey(list(path)) for path in request.assets)
        job = job.get_subset(asset_selection=keys)
    tags = dict(request.tags or {})
    if request.partitions:
        first, last = request.partitions
        tags |= {ASSET_PARTITION_RANGE_START_TAG: first, ASSET_PARTITION_RANGE_END_TAG: last}
    with dg.DagsterInstance.get() as instance:
        run = instance.create_run_for_job(
            job_def=job.get_definition(),
            run_id=run_id,
            tags=tags | _own_tags(run_id),
            asset_selection=keys,
            remote_job_origin=_origin(request.domain, request.job),
            job_code_origin=job.get_python_origin(),
        )
        return _execute(job, run, instance)


def execute_again(failed: str, run_id: str, tags: Mapping[str, str]) -> Executed:
    """Execute what a failed run has not done: the steps that failed, and those that follow.

    What the UI calls a re-execution from failure. Raises KeyboardInterrupt if it is interrupted,
    DeclarationError if the code has no such steps any more, and MeshError if all have succeeded.
    """
    with dg.DagsterInstance.get() as instance:
        parent = instance.get_run_by_id(failed)
        domain = domain_of(parent) if parent else None
        if parent is None or domain is None or not parent.execution_plan_snapshot_id:
            raise DeclarationError(
                f"of the run {failed[:8]} nobody knows what it was to do"
                f"{'' if parent else ', as it was deleted'}: run that anew, as `mesh run` does"
            )
        job = _job(domain, parent.job_name)
        try:
            if parent.asset_selection is not None or parent.asset_check_selection is not None:
                job = job.get_subset(
                    asset_selection=parent.asset_selection,
                    asset_check_selection=parent.asset_check_selection,
                )
            elif parent.op_selection:
                job = job.get_subset(op_selection=parent.op_selection)
            steps, known = KnownExecutionState.build_resume_retry_reexecution(instance, parent)
            plan = create_execution_plan(
                job,
                run_config=parent.run_config,
                step_keys_to_execute=steps,
                known_state=known,
                tags=parent.tags,
            )
            if not plan.step_keys_to_execute:
                raise MeshError(f"every step of the run {failed[:8]} succeeded: nothing to retry")
        except (dg.DagsterError, CheckError) as error:
            raise DeclarationError(
                f"the run {failed[:8]} is of code that has changed since ({error}): run what it "
                "was about anew, as `mesh run` does"
            ) from error
        kept = {k: v for k, v in parent.tags.items() if k not in _NOT_INHERITED}
        # By these the UI, and whoever looks for a run's retries, finds them.
        kin = {ROOT_RUN_ID_TAG: root_of(parent), PARENT_RUN_ID_TAG: parent.run_id}
        definition = job.get_definition()
        run = instance.create_run(
            job_name=parent.job_name,
            run_id=run_id,
            run_config=parent.run_config,
            status=None,
            tags={**kept, **kin, **tags, RESUME_RETRY_TAG: "true", **_own_tags(run_id)},
            root_run_id=root_of(parent),
            parent_run_id=parent.run_id,
            step_keys_to_execute=plan.step_keys_to_execute,
            execution_plan_snapshot=snapshot_from_execution_plan(
                plan, definition.get_job_snapshot_id()
            ),
            job_snapshot=definition.get_job_snapshot(),
            parent_job_snapshot=definition.get_parent_job_snapshot(),
            asset_selection=parent.asset_selection,
            asset_check_selection=parent.asset_check_selection,
            resolved_op_selection=parent.resolved_op_selection,
            op_selection=parent.op_selection,
            remote_job_origin=_origin(domain, parent.job_name),
            job_code_origin=job.get_python_origin(),
            asset_graph=definition.asset_layer.asset_graph,
        )
        return _execute(job, run, instance)


def _job(domain: str, name: str) -> ReconstructableJob:
    module = f"dagster_project.locations.{domain}"
    (target,) = loadable_targets_from_python_module(module, None)
    repository = ReconstructableRepository(
        pointer=CodePointer.from_module(module, target.attribute, None),
        executable_path=sys.executable,
        entry_point=DEFAULT_DAGSTER_ENTRY_POINT,
    )
    return repository.get_reconstructable_job(name)


def _origin(domain: str, job: str) -> RemoteJobOrigin:
    return RemoteRepositoryOrigin(
        code_location_origin=location_origin(domain), repository_name=SINGLETON_REPOSITORY_NAME
    ).get_job_origin(job)


def _own_tags(run_id: str) -> dict[str, str]:
    """Of a run that this process executes: by them the UI can end it, and it is known if it died.

    Whoever started it sees that it failed, so no daemon starts it again.
    """
    return {MAX_RETRIES_TAG: "0", PROCESS: str(RunProcess.current(run_id))}


def _execute(job: ReconstructableJob, run: dg.DagsterRun, instance: dg.DagsterInstance) -> Executed:
    result = execute_run(job, run, instance)
    for event in result.filter_events(lambda event: event.is_run_failure):
        # Dagster takes the interrupt, and fails the run for it.
        if event.job_failure_data.failure_reason is RunFailureReason.UNEXPECTED_TERMINATION:
            raise KeyboardInterrupt
    if result.dagster_run.status is dg.DagsterRunStatus.CANCELED:
        raise KeyboardInterrupt
    failed = [event.step_failure_data for event in result.get_step_failure_events()]
    said = [each.user_failure_data.metadata for each in failed if each.user_failure_data]
    return Executed(run.run_id, result.success, said)
