"""Which failed runs `mesh retry` takes, and that one of them keeps no other from its turn."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.dagster_run import DagsterRunStatus

from dagster_project.cli import pipeline, retry
from dagster_project.cli.progress import RunStarted
from dagster_project.cli.retry import Failed, find_failed
from dagster_project.cli.workers import Work
from dagster_project.failures import DeclarationError, MeshError
from dagster_project.orchestration import runs
from dagster_project.orchestration.runs import Executed
from dagster_project.settings import get_settings
from tests.orchestration.domain_runs import BROKEN, DEFINITIONS, origin_of, run


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    BROKEN.clear()
    monkeypatch.setenv("MESH_HOME", str(tmp_path / "home"))
    get_settings.cache_clear()
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        monkeypatch.setattr(dg.DagsterInstance, "get", lambda: nullcontext(instance))
        yield instance
    get_settings.cache_clear()


def chosen(*asked: str) -> list[str]:
    return [failed.run_id for failed in find_failed(asked)]


def going_on(instance: dg.DagsterInstance, job: str, failed: str, root: str = "") -> str:
    """A retry that has not ended."""
    created = instance.create_run_for_job(
        DEFINITIONS.resolve_job_def(job),
        tags={"dagster/is_resume_retry": "true", "dagster/root_run_id": root or failed},
        status=DagsterRunStatus.STARTED,
        remote_job_origin=origin_of(job),
        root_run_id=root or failed,
        parent_run_id=failed,
    )
    return created.run_id


def test_of_runs_that_failed_alike_those_that_do_all_of_it(instance: dg.DagsterInstance) -> None:
    run(instance, "parts", "engines", assets=["engines"])
    wings = run(instance, "parts", "wings", assets=["wings"])
    again = run(instance, "parts", "engines", assets=["engines"])
    # The same steps failed in all of them, but they were asked for different assets.
    assert chosen() == [wings, again]
    whole = run(instance, "parts", "engines")
    assert chosen() == [whole]
    second = run(instance, "parts", "engines", retries=(whole, whole))
    assert chosen() == [second]
    run(instance, "parts", retries=(whole, second))
    assert chosen() == []


def test_a_retry_that_is_going_is_waited_for(instance: dg.DagsterInstance) -> None:
    failed = run(instance, "both", "seats")
    assert chosen(failed[:8]) == chosen() == [failed]
    going = going_on(instance, "both", failed)
    assert chosen() == []
    with pytest.raises(MeshError, match=f"the run {going[:8]} is retrying {failed[:8]}: wait"):
        chosen(failed[:8])


def test_of_a_run_that_was_retried_the_last_retry(instance: dg.DagsterInstance) -> None:
    failed = run(instance, "both", "seats")
    again = run(instance, "both", "seats", retries=(failed, failed))
    assert chosen(failed) == [again]
    run(instance, "both", retries=(failed, again))
    with pytest.raises(MeshError, match="has been done since, by other runs"):
        chosen(failed)


def test_a_retry_of_another_run_of_the_same_root_is_none_of_this_one(
    instance: dg.DagsterInstance,
) -> None:
    whole = run(instance, "parts", "engines")
    part = run(instance, "parts", "wings", assets=["wings"], retries=(whole, whole), resumed=False)
    going = going_on(instance, "parts", part, root=whole)
    assert chosen() == chosen(whole) == [whole]
    with pytest.raises(MeshError, match=f"{going[:8]} is retrying"):
        chosen(part)


def test_what_another_run_has_done_is_not_done_again(instance: dg.DagsterInstance) -> None:
    failed = run(instance, "both", "seats")
    run(instance, "rest")
    with pytest.raises(MeshError, match="has been done since, by other runs"):
        chosen(failed)


def test_a_range_and_its_days_are_one_retry(instance: dg.DagsterInstance) -> None:
    whole = run(instance, "daily", "visits", days=("2013-02-01", "2013-02-03"))
    for day in ("2013-02-01", "2013-02-02"):
        run(instance, "daily", "visits", days=(day, day))
    assert chosen() == [whole]
    run(instance, "daily", days=("2013-02-03", "2013-02-03"))
    assert len(chosen()) == 2


def test_a_run_of_which_nobody_knows_what_it_was_to_do_cannot_be_retried(
    instance: dg.DagsterInstance,
) -> None:
    with pytest.raises(DeclarationError, match="nobody knows what it was to do, as it was deleted"):
        runs.execute_again("gone", "new", {})


def test_a_run_whose_steps_succeeded_is_not_retried(instance: dg.DagsterInstance) -> None:
    done = instance.get_run_by_id(run(instance))
    assert done
    instance.report_run_failed(done)
    with pytest.raises(MeshError, match="has been done since"):
        chosen(done.run_id)


def test_one_that_cannot_be_retried_keeps_no_other_from_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def execute(failed: str, run_id: str, tags: dict[str, str]) -> Executed:
        if failed == "changed":
            raise DeclarationError("its code has changed")
        return Executed(run_id, True)

    monkeypatch.setattr(pipeline, "load_pipeline", lambda domain: None)
    monkeypatch.setattr(runs, "execute_again", execute)
    ours, theirs = multiprocessing.Pipe()
    ours.send("run")
    failed = [Failed("fleet", run_id, "seats") for run_id in ("changed", "other")]
    assert not retry._retry(failed, Work("fleet", tmp_path / "log", theirs))
    theirs.close()
    first, error, second = (ours.recv() for _ in range(3))
    assert error == "run changed: its code has changed"
    assert isinstance(first, RunStarted)
    # Though the last of them succeeded, the domain has not.
    assert (second.part, second.last) == ("seats", False)
