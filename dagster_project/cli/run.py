"""`mesh run`: the reference pipelines, each in runs of its own code location, side by side."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

from filelock import FileLock, Timeout

from dagster_project.cli.progress import Display, DomainProgress, RunStarted
from dagster_project.cli.services import prepare_home, services
from dagster_project.domain import domain_folder, domain_names, read_domain
from dagster_project.failures import BusyError, MeshError
from dagster_project.parent import end_with_parent
from dagster_project.quality.server import validation_server
from dagster_project.settings import Settings, get_settings

if TYPE_CHECKING:
    from multiprocessing.context import ForkProcess

    from dagster_project.cli.follow import Follower

_POLL = 0.4
ResultT = TypeVar("ResultT")


def run_domains(settings: Settings, chosen: Sequence[str]) -> bool:
    """Run these domains (all, if none is named) in the order of their dependencies; all succeeded?

    A domain runs when those it depends on have succeeded; one whose upstream failed is not run.
    """
    names = [name for name in _ordered() if not chosen or name in chosen]
    for name in chosen:
        domain_folder(name)
    prepare_home(settings)
    runs = [DomainProgress(name) for name in names]
    display = Display(runs)
    with _only_one(settings.home), services(settings), validation_server():
        settings = get_settings()
        display.note("loading the domains")
        install(settings, names, display.note)
        workers = _fork_workers(settings, runs)
        try:
            _drive(runs, workers, display)
        finally:
            _end(workers)
    display.summary()
    _say_next(display)
    return all(run.succeeded for run in runs)


def _ordered() -> list[str]:
    from graphlib import TopologicalSorter

    return list(
        TopologicalSorter({n: read_domain(n).depends_on for n in domain_names()}).static_order()
    )


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """One `mesh run` a home at a time."""
    lock = FileLock(home / "run.lock", timeout=0)
    who = home / "run.pid"
    try:
        lock.acquire()
    except Timeout:
        pid = who.read_text().strip() if who.exists() else "unknown"
        raise BusyError(
            f"another `mesh run` is going in {home} (process {pid}): wait for it to end, or stop it"
        ) from None
    try:
        who.write_text(f"{os.getpid()}\n")
        yield
    finally:
        who.unlink(missing_ok=True)
        lock.release()


def install(settings: Settings, names: Sequence[str], report: Callable[[str], None]) -> None:
    """The connectors' environments and the dbt manifest, made where they are missing."""
    from dagster_project.ingestion.declaration import REFERENCE_URL, read_connections
    from dagster_project.ingestion.environments import REFERENCE_DATA, install_all
    from dagster_project.transformation.project import ensure_manifest

    connections = [connection for name in names for connection in read_connections(name)]
    environments = {connection.connector.environment for connection in connections}
    if "flights" in names or any(REFERENCE_URL in c.needs() for c in connections):
        environments.add(REFERENCE_DATA)
    faults: list[BaseException] = []

    def parse() -> None:
        try:
            ensure_manifest(settings)
        except BaseException as error:  # noqa: BLE001 - raised below, in the main thread
            faults.append(error)

    parsing = Thread(target=parse)
    parsing.start()
    try:
        install_all(settings.home, sorted(environments), report)
    finally:
        parsing.join()
    if faults:
        raise faults[0]


@dataclass
class _Worker:
    """A process that waits to be told to run its domain."""

    progress: DomainProgress
    process: ForkProcess
    pipe: Pipe
    log: Path


def _fork_workers(settings: Settings, runs: Sequence[DomainProgress]) -> list[_Worker]:
    """A process a domain, forked after everything is imported and before anything is connected."""
    gc.disable()  # until `preload` has ended
    import dagster._utils.test.definitions  # noqa: F401 - which each run would import

    import dagster_project.components
    import dagster_project.locations.location
    import dagster_project.orchestration.runs  # noqa: F401
    from dagster_project.orchestration.execution import preload

    preload()
    logs = settings.home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    workers: list[_Worker] = []
    for run in runs:
        ours, theirs = context.Pipe()
        log = logs / f"{run.domain}.log"
        process = context.Process(
            target=_work,
            args=(run.domain, theirs, log, [ours, *(worker.pipe for worker in workers)]),
            name=f"mesh run {run.domain}",
        )
        process.start()
        theirs.close()
        workers.append(_Worker(run, process, ours, log))
    return workers


def _work(domain: str, pipe: Pipe, log: Path, others: Sequence[Pipe]) -> None:
    """In a domain's process: wait for the word, then run. Its output goes to its log.

    What runs, and errors that no run tells of, go by the pipe. `others` are ends of pipes that the
    process has only inherited.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for other in others:
        other.close()
    with log.open("w", buffering=1) as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        sys.stdout = sys.stderr = out
        try:
            from dagster_project.cli.pipeline import load_pipeline, prepare_pipeline, run_pipeline
            from dagster_project.cli.waiting import read_waiting

            end_with_parent()
            waiting = _in_a_fork(prepare_pipeline, domain, log)
            load_pipeline(domain)
            if pipe.recv() != "run":
                return
            look = partial(_in_a_fork, read_waiting, domain, log)
            succeeded = run_pipeline(domain, waiting, look, pipe.send)
        except (EOFError, ConnectionError):
            # Nobody follows any more.
            sys.exit(1)
        except MeshError as error:
            pipe.send(str(error))
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception as error:  # noqa: BLE001 - the log is closed when Python would print it
            pipe.send(_unforeseen(error, log))
            sys.exit(1)
        sys.exit(0 if succeeded else 1)


def _unforeseen(error: Exception, log: Path) -> str:
    """An error that is nobody's mistake but ours, in a line; its traceback goes to the log."""
    traceback.print_exception(error)
    last = traceback.format_exception_only(error)[-1].strip()
    return f"{last} (not foreseen; the traceback is in {log})"


def _in_a_fork(function: Callable[[str], ResultT], argument: str, log: Path) -> ResultT:
    """The function's result, from a process of its own: what it opens is not there to inherit.

    Raises what it raises if that is a MeshError, and one that names the log for other errors.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def answer() -> None:
        try:
            theirs.send((function(argument), None))
        except MeshError as error:
            theirs.send((None, error))
        except Exception as error:  # noqa: BLE001 - told by the process that waits
            theirs.send((None, MeshError(_unforeseen(error, log))))

    process = context.Process(target=answer)
    process.start()
    theirs.close()
    try:
        result, error = ours.recv()
    except EOFError:
        raise MeshError(
            f"{function.__name__} of {argument} ended without an answer; its output: {log}"
        ) from None
    finally:
        process.join()
        ours.close()
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]


def _drive(runs: Sequence[DomainProgress], workers: Sequence[_Worker], display: Display) -> None:
    """Start each worker when its turn has come, and follow all until they ended."""
    import dagster as dg

    from dagster_project.cli.follow import Follower
    from dagster_project.orchestration.runs import report_killed

    by_name = {run.domain: run for run in runs}
    with ExitStack() as stack:
        instance = stack.enter_context(dg.DagsterInstance.get())
        # There is one `mesh run` at a time: what an earlier one left unfinished was killed with it.
        report_killed(instance, "mesh run")
        followers = {run.domain: Follower(instance, run) for run in runs}
        stack.enter_context(display.showing())
        while True:
            for worker in workers:
                _advance(worker, by_name, followers[worker.progress.domain])
            display.update()
            if all(run.is_over() for run in runs):
                return
            time.sleep(_POLL)


def _advance(worker: _Worker, runs: dict[str, DomainProgress], follower: Follower) -> None:
    run = worker.progress
    if run.is_over():
        return
    if run.state == "waiting":
        upstream = [runs[n] for n in read_domain(run.domain).depends_on if n in runs]
        if any(up.is_over() and not up.succeeded for up in upstream):
            run.state, run.ended = "not run", time.time()
            run.errors.append("not run, since what it depends on failed")
            with contextlib.suppress(OSError):
                worker.pipe.send("skip")
        elif all(up.succeeded for up in upstream):
            run.state, run.started = "starting", time.time()
            with contextlib.suppress(OSError):  # it has ended, which the next look finds
                worker.pipe.send("run")
        return
    alive = worker.process.is_alive()
    with contextlib.suppress(EOFError, OSError):
        while worker.pipe.poll():
            told = worker.pipe.recv()
            if isinstance(told, RunStarted):
                follower.follow(told)
            else:
                run.errors.append(told)
    follower.read()
    if alive:
        return
    code = worker.process.exitcode
    if not run.is_over() or code not in (0, 1):
        run.state = "failed" if code else "succeeded"
        run.ended = run.ended or time.time()
    if not run.succeeded and not run.errors:
        run.errors.append(f"its process ended with exit code {code}; its output: {worker.log}")


def _end(workers: Sequence[_Worker]) -> None:
    """End what still runs: asked first, then made to."""
    for worker in workers:
        with contextlib.suppress(OSError):
            worker.pipe.close()
        if worker.process.is_alive():
            os.kill(worker.process.pid or 0, signal.SIGINT)
    for worker in workers:
        worker.process.join(timeout=20)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _say_next(display: Display) -> None:
    display.note("")
    display.note("Browse it:  make ui        (or .venv/bin/mesh ui)")
    display.note('Ask it:     .venv/bin/mesh sql "SELECT * FROM flights.on_time_by_carrier"')
