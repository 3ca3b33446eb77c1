"""Runs in forks of a server that has their code loaded: each once, and none lost.

The server is the real one, of a copy of the project with one small code location, whose module lies
where the server looks for changes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import psutil
import pytest
import yaml
from dagster._core.launcher import LaunchRunContext
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._daemon.monitoring.concurrency import execute_concurrency_slots_iteration
from dagster._daemon.monitoring.run_monitoring import execute_run_monitoring_iteration

from dagster_project.cli.sessions import end_session
from dagster_project.orchestration import launcher
from dagster_project.orchestration.prefork import LARGEST, address
from dagster_project.orchestration.problem import STARTED_BY
from dagster_project.orchestration.run_process import PROCESS, RunProcess
from dagster_project.orchestration.runs import report_killed
from dagster_project.settings import PROJECT, get_settings

CODE = """
import os, sys, time
from pathlib import Path

import dagster as dg

from dagster_project.orchestration.execution import forking_executor

VERSION = "first"

def mark(context: dg.AssetExecutionContext) -> None:
    marks = Path(os.environ["MARKS"])
    (marks / "validations").write_text(os.environ.get("_MESH_QUALITY_SERVER", "none"))
    (marks / "step").write_text(str(os.getpid()))
    (marks / f"{context.run_id}.program").write_text(" ".join(sys.orig_argv))
    with (marks / context.run_id).open("a") as file:
        file.write(VERSION + chr(10))
    while "slow" in context.run.tags:
        time.sleep(0.05)

@dg.asset
def marker(context: dg.AssetExecutionContext) -> None:
    mark(context)

@dg.asset(pool="warehouse")
def pooled(context: dg.AssetExecutionContext) -> None:
    mark(context)

defs = dg.Definitions(
    assets=[marker, pooled],
    jobs=[dg.define_asset_job("work", [marker]), dg.define_asset_job("load", [pooled])],
    executor=forking_executor,
)
"""
CONFIG = {
    "run_launcher": {
        "module": "dagster_project.orchestration.launcher",
        "class": "PreforkRunLauncher",
    },
    "run_monitoring": {"enabled": True, "free_slots_after_run_end_seconds": 1},
    "concurrency": {"pools": {"granularity": "op", "default_limit": 1}},
    "run_retries": {"enabled": True, "max_retries": 2},
    "telemetry": {"enabled": False},
}


@dataclass
class World:
    """A code location, an instance, and what was launched there."""

    folder: Path
    instance: dg.DagsterInstance
    workspace: WorkspaceProcessContext
    server: subprocess.Popen[bytes] | None = None

    @property
    def code(self) -> Path:
        return self.folder / "project" / "expectations" / "tiny.py"

    def start(self) -> None:
        """Start the server, and wait for it."""
        self.server = subprocess.Popen(
            [sys.executable, "-m", "dagster_project.orchestration.prefork"],
            cwd=self.folder / "project",
            env=os.environ | {"PYTHONPATH": f"{self.folder / 'project'}:{self.code.parent}"},
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self.wait_for_server()

    def wait_for_server(self) -> None:
        def answers() -> bool:
            assert self.server
            assert self.server.poll() is None
            with self.connected() as connection:
                return connection.fileno() > 0

        until(answers)

    def connected(self) -> socket.socket:
        """A connection to the server; closed if there is none."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(20)
        try:
            with address(get_settings().dagster_home) as path:
                connection.connect(path)
        except OSError:
            connection.close()
        return connection

    def create(self, name: str = "work", **tags: str) -> str:
        """A run of a job, that waits to be launched."""
        context = self.workspace.create_request_context()
        location = context.get_code_location("tiny")
        repository = next(iter(location.get_repositories().values()))
        job = repository.get_full_job(name)
        plan = location.get_execution_plan(job, {}, None, None, None)
        return self.instance.create_run(
            job_name=name,
            run_id=None,
            run_config={},
            status=None,
            tags=tags,
            root_run_id=None,
            parent_run_id=None,
            step_keys_to_execute=None,
            execution_plan_snapshot=plan.execution_plan_snapshot,
            job_snapshot=job.job_snapshot,
            parent_job_snapshot=job.parent_job_snapshot,
            asset_selection=None,
            asset_check_selection=None,
            resolved_op_selection=None,
            op_selection=None,
            remote_job_origin=job.get_remote_origin(),
            job_code_origin=job.get_python_origin(),
            asset_graph=repository.asset_graph,
        ).run_id

    def launch(self, job: str = "work", **tags: str) -> str:
        run = self.create(job, **tags)
        self.instance.launch_run(run, self.workspace.create_request_context())
        return run

    def run(self, run: str) -> dg.DagsterRun:
        found = self.instance.get_run_by_id(run)
        assert found
        return found

    def ended(self, run: str) -> str:
        """How the run ended."""
        until(lambda: self.run(run).is_finished)
        return self.run(run).status.value

    def process(self, run: str) -> RunProcess | None:
        return RunProcess.of(self.run(run))

    def is_forked(self, run: str) -> bool:
        """Whether a run that has a step was executed by a fork of the server."""
        return "prefork" in (self.folder / "marks" / f"{run}.program").read_text()

    def marks(self, run: str) -> list[str]:
        """What the run's step wrote, a line each time that it was executed."""
        path = self.folder / "marks" / run
        return path.read_text().split() if path.exists() else []

    def slow(self, job: str = "work") -> tuple[str, RunProcess]:
        """A run that is in its step, and its process.

        A server that loads itself anew, as somebody has just installed a package, is waited for.
        """
        for _ in range(5):
            self.wait_for_server()
            run = self.launch(job, slow="")
            until(lambda run=run: self.marks(run))
            if self.is_forked(run) and (process := self.process(run)):
                return run, process
            self.instance.run_launcher.terminate(run)
            self.ended(run)
        raise AssertionError("no run is forked")


def until(found: Callable[[], object], seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("prefork")
    ignored = shutil.ignore_patterns("__pycache__", "target", "logs")
    for name in ("dagster_project", "dbt_project", "expectations"):
        shutil.copytree(PROJECT / name, folder / "project" / name, ignore=ignored)
    location = {"module_name": "tiny", "location_name": "tiny"}
    workspace = folder / "project" / "workspace.yaml"
    workspace.write_text(yaml.safe_dump({"load_from": [{"python_module": location}]}))
    # Longer than a socket's path may be.
    home = folder / ("home" * 30)
    for new in (home / "dagster" / "prefork", folder / "marks"):
        new.mkdir(parents=True)
    (home / "dagster" / "dagster.yaml").write_text(yaml.safe_dump(CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MESH_HOME", str(home))
        patch.setenv("DAGSTER_HOME", str(home / "dagster"))
        patch.setenv("MARKS", str(folder / "marks"))
        get_settings.cache_clear()
        made = folder / "project" / "expectations" / "tiny.py"
        made.write_text(CODE)
        patch.setenv("PYTHONPATH", f"{PROJECT}:{made.parent}")
        with (
            dg.DagsterInstance.get() as instance,
            WorkspaceProcessContext(instance, WorkspaceFileTarget([str(workspace)])) as context,
        ):
            world = World(folder, instance, context)
            yield world
            if world.server:
                world.server.kill()
                world.server.wait()
                end_session(world.server.pid)
        # Dagster's own end by themselves: code servers, and what follows a run's output.
        try:
            until(lambda: not at_work(home))
        finally:
            for process in at_work(home):
                process.kill()
    get_settings.cache_clear()


def at_work(home: Path) -> list[psutil.Process]:
    """Whatever works in this home, but for this process."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            mine = process.environ().get("MESH_HOME") == str(home)
            if mine and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_a_run_that_a_command_executed_is_executed_again_as_any_other(world: World) -> None:
    inherited = {STARTED_BY: "mesh run", "dagster/max_retries": "0"}
    run = world.create(**inherited)
    world.instance.launch_run(run, world.workspace.create_request_context())
    assert world.ended(run) == "SUCCESS"
    told = {name: world.run(run).tags[name] for name in inherited}
    assert told == {STARTED_BY: "", "dagster/max_retries": "2"}


def test_without_a_server_dagster_starts_the_run(world: World) -> None:
    run = world.launch()
    assert world.ended(run) == "SUCCESS"
    assert not world.is_forked(run)
    assert world.marks(run) == ["first"]


def test_a_run_that_dagster_started_is_known_to_be_gone_too(world: World) -> None:
    run = world.launch(slow="")
    until(lambda: world.marks(run))
    process = world.process(run)
    assert process
    assert not world.is_forked(run)
    os.kill(process.pid, signal.SIGKILL)
    until(process.is_gone)
    # As it may be of a machine that lost its power.
    report_killed(world.instance)
    assert world.run(run).status is dg.DagsterRunStatus.FAILURE


def test_of_another_machines_processes_nothing_is_known(world: World) -> None:
    run = world.create()
    elsewhere = replace(RunProcess.current(run), host="elsewhere", started="long ago")
    world.instance.add_run_tags(run, {PROCESS: str(elsewhere)})
    assert world.process(run) == elsewhere
    assert not elsewhere.is_alive()
    assert not elsewhere.is_gone()
    report_killed(world.instance)
    assert world.run(run).status is dg.DagsterRunStatus.NOT_STARTED
    world.instance.delete_run(run)


def test_a_run_is_a_fork_of_the_server(world: World) -> None:
    world.start()
    assert world.server
    (folder,) = world.folder.glob("home*/dagster/prefork")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "socket").stat().st_mode & 0o777 == 0o600
    run, process = world.slow()
    assert psutil.Process(process.pid).ppid() == world.server.pid
    assert os.getpgid(process.pid) == process.pid
    assert world.instance.run_launcher.terminate(run)
    assert world.ended(run) == "CANCELED"
    until(lambda: not process.is_alive())
    assert not world.instance.run_launcher.terminate(run)


def test_where_no_run_is_forked_dagster_starts_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "sys", SimpleNamespace(platform="darwin"))
    run = world.launch()
    assert world.ended(run) == "SUCCESS"
    assert not world.is_forked(run)


def test_what_is_launched_twice_is_executed_once(world: World) -> None:
    run, process = world.slow()
    context = world.workspace.create_request_context()
    world.instance.run_launcher.launch_run(LaunchRunContext(world.run(run), context))
    assert world.process(run) == process
    os.kill(process.pid, signal.SIGINT)
    assert world.ended(run) == "FAILURE"
    assert world.marks(run) == ["first"]


def test_a_fork_whose_launcher_is_gone_executes_nothing(world: World) -> None:
    run = world.create()
    with world.connected() as connection:
        connection.send(run.encode())
        pid = int(connection.recv(LARGEST).decode().split(":")[1])
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")
    assert world.marks(run) == []


def test_a_run_that_was_killed_is_marked_as_failed(world: World) -> None:
    run, process = world.slow()
    look = list(execute_run_monitoring_iteration(world.workspace, logging.getLogger()))
    assert set(look) == {None}
    assert world.run(run).status is dg.DagsterRunStatus.STARTED
    os.killpg(process.pid, signal.SIGKILL)
    until(lambda: not process.is_alive())
    look = list(execute_run_monitoring_iteration(world.workspace, logging.getLogger()))
    assert set(look) == {None}
    assert world.run(run).status is dg.DagsterRunStatus.FAILURE


def test_the_steps_of_a_run_that_was_killed_end_with_it_and_its_slots_are_freed(
    world: World,
) -> None:
    storage, look = world.instance.event_log_storage, execute_concurrency_slots_iteration
    run, process = world.slow("load")
    step = psutil.Process(int((world.folder / "marks" / "step").read_text()))
    assert step.ppid() == process.pid
    (pool,) = storage.get_pool_limits()
    assert (pool.name, pool.limit, pool.from_default) == ("warehouse", 8, False)
    assert storage.get_concurrency_info("warehouse").active_slot_count == 1
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: not step.is_running() or step.status() == psutil.STATUS_ZOMBIE)
    list(execute_run_monitoring_iteration(world.workspace, logging.getLogger()))
    assert world.run(run).status is dg.DagsterRunStatus.FAILURE

    def is_free() -> bool:
        list(look(world.workspace, logging.getLogger()))
        return storage.get_concurrency_info("warehouse").active_slot_count == 0

    until(is_free)
    storage.set_concurrency_slots("warehouse", 3)
    assert world.ended(world.launch("load")) == "SUCCESS"
    assert storage.get_concurrency_info("warehouse").slot_count == 3


def test_a_step_that_waits_for_a_slot_takes_no_processor_time(world: World) -> None:
    storage = world.instance.event_log_storage
    storage.set_concurrency_slots("warehouse", 1)
    holder, _ = world.slow("load")
    waiting = world.launch("load")
    until(lambda: storage.get_concurrency_info("warehouse").pending_step_count == 1)
    process = world.process(waiting)
    assert process
    times, began = psutil.Process(process.pid).cpu_times(), time.monotonic()
    time.sleep(3)
    used = psutil.Process(process.pid).cpu_times()
    assert used.user + used.system - times.user - times.system < (time.monotonic() - began) / 4
    assert world.marks(waiting) == []
    assert world.instance.run_launcher.terminate(holder)
    assert world.ended(waiting) == "SUCCESS"
    assert storage.get_concurrency_run_ids() == set()


def test_new_code_is_run_at_once(world: World) -> None:
    server, (going, process) = world.server, world.slow()
    validations = (world.folder / "marks" / "validations").read_text()
    world.code.write_text(CODE.replace('"first"', '"second"'))
    run = world.launch()
    assert world.ended(run) == "SUCCESS"
    assert world.marks(run) == ["second"]
    world.wait_for_server()
    again = world.launch()
    assert world.ended(again) == "SUCCESS"
    assert world.is_forked(again)
    assert world.marks(again) == ["second"]
    assert (world.folder / "marks" / "validations").read_text() != validations
    # It is the same process, and what it forked before is at work still.
    assert server
    assert server.poll() is None
    assert process.is_alive()
    assert world.instance.run_launcher.terminate(going)
    assert world.ended(going) == "CANCELED"


def test_a_run_outlives_its_server(world: World) -> None:
    run, process = world.slow()
    assert world.server
    world.server.kill()
    world.server.wait()
    assert process.is_alive()
    other = world.launch()
    assert world.ended(other) == "SUCCESS"
    assert not world.is_forked(other)
    assert world.run(run).status is dg.DagsterRunStatus.STARTED
    assert world.instance.run_launcher.terminate(run)
    assert world.ended(run) == "CANCELED"
