"""`mesh retry`: of runs that failed, what they have not done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from dagster_project.cli.progress import Display, RunStarted
from dagster_project.cli.run import install
from dagster_project.cli.services import prepare_home, services
from dagster_project.cli.workers import Work, in_a_fork, in_order, only_one, work
from dagster_project.failures import MeshError
from dagster_project.quality.server import validation_server
from dagster_project.settings import Settings, get_settings

if TYPE_CHECKING:
    import dagster as dg

    from dagster_project.orchestration.diagnosis import StandingFailure
    from dagster_project.orchestration.undone import Deed

#: Of a run's id, what everybody shows and asks for.
SHORT = 8
#: Fewest characters by which a run is asked for, among how many; and of several, how many are told.
_FEWEST, _LOOKED_AT, _SHOWN = 4, 5000, 5


@dataclass(frozen=True, slots=True)
class Failed:
    """A failed run."""

    domain: str
    run_id: str
    #: The steps that failed, and the partitions they were about.
    what: str


def retry_runs(settings: Settings, asked: Sequence[str]) -> bool:
    """Execute again what these runs failed to do, or all that stand failed; all succeeded?

    Steps that succeeded are not repeated. Domains and runs come in the order of `mesh run`.
    """
    prepare_home(settings)
    display = Display()
    with only_one(settings.home), services(settings):
        settings = get_settings()
        logs = settings.home / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        display.note("looking for runs that stand failed")
        failed = in_a_fork(partial(find_failed, asked), logs / "retry.log", "looking")
        if not failed:
            display.note("no run stands failed: there is nothing to retry")
            return True
        for each in failed:
            display.note(f"{each.domain}: run {each.run_id[:SHORT]} failed: {each.what}")
        domains = {each.domain for each in failed}
        with validation_server():
            install(settings, sorted(domains), display.note)
            tasks = {
                domain: partial(_retry, [each for each in failed if each.domain == domain])
                for domain in domains
            }
            return work(settings, tasks, display)


def find_failed(asked: Sequence[str]) -> list[Failed]:
    """These runs, or all that stand failed; of runs that retry each other the last.

    `asked` has ids of runs, or how they begin. Raises MeshError if there is no such run, or several
    are, or it did not fail. Talks to Dagster's storage, so it is called in a process of its own.
    """
    import dagster as dg

    with dg.DagsterInstance.get() as instance:
        if asked:
            return list(dict.fromkeys(_named(instance, name) for name in asked))
        return [failed for domain in in_order() for failed in _standing(instance, domain)]


def _standing(instance: dg.DagsterInstance, domain: str) -> list[Failed]:
    """Of the runs that stand failed those which, retried, do what all of them have not done."""
    from dagster_project.orchestration.diagnosis import retries, standing_failures

    chosen: list[StandingFailure] = []
    for failure in reversed(standing_failures(instance, domain)):
        if retries(instance, failure.run, unfinished_only=True):
            continue
        if not failure.undone <= _all(chosen):
            chosen.append(failure)
    # An older one may do what several newer ones do.
    for failure in list(chosen):
        others = [each for each in chosen if each is not failure]
        if failure.undone <= _all(others):
            chosen = others
    return [Failed(domain, each.run.run_id, each.name) for each in reversed(chosen)]


def _all(failures: Sequence[StandingFailure]) -> frozenset[Deed]:
    return frozenset[Any]().union(*(failure.undone for failure in failures))


def _named(instance: dg.DagsterInstance, asked: str) -> Failed:
    """The failed run whose id begins so; of runs that retried it, and each other, the last."""
    import dagster as dg

    from dagster_project.orchestration.diagnosis import domain_of, retries, standing_failures

    runs = [run for run in instance.get_runs(limit=_LOOKED_AT) if run.run_id.startswith(asked)]
    if len(asked) < _FEWEST or not runs:
        raise MeshError(
            f"no run's id begins with {asked!r} (of the last {_LOOKED_AT:,}; {_FEWEST} characters "
            "or more): `mesh status` and the UI's Runs have the ids"
        )
    if len(runs) > 1:
        ids = ", ".join(run.run_id for run in runs[:_SHOWN])
        raise MeshError(f"{len(runs)} runs' ids begin with {asked!r}: {ids}. Give more of one")
    (run,) = runs
    domain = domain_of(run)
    if domain not in in_order():
        raise MeshError(f"the run {asked} is of no domain of this project ({domain})")
    if not run.is_finished:
        raise MeshError(f"the run {asked} has not ended: wait for it, or end it in the UI")
    if run.status is dg.DagsterRunStatus.SUCCESS:
        raise MeshError(f"the run {asked} did not fail (it is in state: success): nothing to retry")
    later = retries(instance, run)
    if going := next((each for each in later if not each.is_finished), None):
        raise MeshError(f"the run {going.run_id[:SHORT]} is retrying {asked}: wait for it to end")
    last = later[0] if later else run
    if last.status is dg.DagsterRunStatus.CANCELED:
        return Failed(domain, last.run_id, f"{last.job_name}, canceled")
    standing = standing_failures(instance, domain, told=[run.run_id, last.run_id])
    names = {failure.run.run_id: failure.name for failure in standing}
    if not names.keys() & {run.run_id, last.run_id}:
        raise MeshError(
            f"what the run {asked} failed to do has been done since, by other runs: nothing to "
            "retry"
        )
    which = last.run_id if last.run_id in names else run.run_id
    return Failed(domain, which, names[which])


def _retry(runs: Sequence[Failed], work: Work) -> bool:
    """In a domain's process: the runs, one after the other; whether all succeeded."""
    from dagster_project.cli.pipeline import load_pipeline
    from dagster_project.orchestration.problem import STARTED_BY
    from dagster_project.orchestration.runs import execute_again

    load_pipeline(work.domain)
    if not work.may_begin():
        return True
    succeeded = True
    for number, failed in enumerate(runs, start=1):
        run_id = str(uuid4())
        last = succeeded and number == len(runs)
        work.announce(RunStarted(run_id, failed.what if len(runs) > 1 else "", last=last))
        try:
            done = execute_again(failed.run_id, run_id, {STARTED_BY: "mesh retry"})
            succeeded = succeeded and done.succeeded
        except MeshError as error:
            # That of one run nothing is left to retry keeps none of the others from it.
            work.tell(f"run {failed.run_id[:SHORT]}: {error}")
            succeeded = False
    return succeeded
