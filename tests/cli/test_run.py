"""A domain's process and who follows it: its runs add up, and no error is lost."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from dagster_project.cli import pipeline
from dagster_project.cli.follow import Follower
from dagster_project.cli.progress import DomainProgress, RunStarted
from dagster_project.cli.workers import Work, Worker, advance, serve
from dagster_project.failures import MeshError


def _raise(error: Exception) -> Callable[..., object]:
    def function(*_: object) -> object:
        raise error

    return function


def _follow(log: Path) -> DomainProgress:
    """Run a domain in a process, as `mesh run` does, to its end."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    work = Work("fleet", log, theirs)
    process = context.Process(target=serve, args=(pipeline.whole_pipeline, work, [ours]))
    process.start()
    theirs.close()
    progress = DomainProgress("fleet")
    worker = Worker(progress, process, ours, log)
    with dg.DagsterInstance.ephemeral() as instance:
        follower = Follower(instance, progress)
        while not progress.is_over():
            advance(worker, {"fleet": progress}, follower)
            process.join(0.1)
    return progress


@pytest.mark.parametrize("where", ["prepare_pipeline", "load_pipeline", "run_pipeline"])
def test_an_error_that_nobody_foresaw_is_told_and_its_traceback_is_in_the_log(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipeline, "prepare_pipeline", lambda domain: [])
    monkeypatch.setattr(pipeline, "load_pipeline", lambda domain: None)
    monkeypatch.setattr(pipeline, where, _raise(KeyError("what is this")))
    log = tmp_path / "fleet.log"
    progress = _follow(log)
    assert progress.state == "failed"
    (error,) = progress.errors
    assert error.startswith("KeyError: 'what is this'")
    assert str(log) in error
    assert "Traceback" not in error
    assert "Traceback (most recent call last)" in log.read_text()
    assert "KeyError: 'what is this'" in log.read_text()


@pytest.mark.parametrize("where", ["prepare_pipeline", "run_pipeline"])
def test_an_error_that_was_foreseen_is_told_alone(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipeline, "prepare_pipeline", lambda domain: [])
    monkeypatch.setattr(pipeline, "load_pipeline", lambda domain: None)
    monkeypatch.setattr(pipeline, where, _raise(MeshError("mend it")))
    progress = _follow(tmp_path / "fleet.log")
    assert (progress.state, progress.errors) == ("failed", ["mend it"])
    assert (tmp_path / "fleet.log").read_text() == ""


@dg.asset(key=["fleet_raw", "planes"])
def _planes() -> dg.MaterializeResult:
    return dg.MaterializeResult(metadata={"received": 7, "new": 2, "changed": 3})


@dg.asset(key=["fleet_raw", "airlines"])
def _airlines() -> None:
    raise dg.Failure("it has no wings")


def _execute(instance: dg.DagsterInstance, *assets: dg.AssetsDefinition) -> str:
    return dg.materialize(list(assets), instance=instance, raise_on_error=False).run_id


def test_the_runs_of_a_domain_add_up_and_its_process_tells_the_end():
    progress = DomainProgress("fleet", state="starting")
    with dg.DagsterInstance.ephemeral() as instance:
        follower = Follower(instance, progress)
        follower.read()
        follower.follow(RunStarted(_execute(instance, _planes), "2013-01-01", last=False))
        # Nobody looked before the next one.
        follower.follow(RunStarted(_execute(instance, _planes, _airlines), "all else", last=False))
        assert progress.done == 1
        follower.read()
        assert (progress.planned, progress.done, progress.part) == (3, 3, "all else")
        assert (progress.rows(), sum(progress.loaded.values())) == (14, 10)
        assert progress.errors == ["fleet_raw__airlines: it has no wings"]
        assert (progress.state, progress.is_over()) == ("running", False)
        follower.follow(RunStarted(_execute(instance, _planes), last=True))
        follower.read()
    assert (progress.state, progress.is_over()) == ("succeeded", True)


def test_of_several_runs_the_present_one_is_told():
    progress = DomainProgress("flights", state="running", part="2013-01-01 to 2013-01-31")
    assert progress.doing() == ""
    progress.steps = {"load_flights_raw_flights": 0.0}
    assert progress.doing() == "2013-01-01 to 2013-01-31: load flights"
