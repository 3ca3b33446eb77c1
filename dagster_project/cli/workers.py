"""A process a domain, which works when its turn has come, and who follows it."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from graphlib import TopologicalSorter
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from filelock import FileLock, Timeout

from dagster_project.cli.progress import Display, DomainProgress, RunStarted
from dagster_project.domain import domain_names, read_domain
from dagster_project.failures import BusyError, MeshError
from dagster_project.parent import end_with_parent
from dagster_project.settings import Settings

if TYPE_CHECKING:
    from multiprocessing.context import ForkProcess

    from dagster_project.cli.follow import Follower

_POLL = 0.4
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Work:
    """What a domain's process has around it."""

    domain: str
    log: Path
    pipe: Pipe

    def apart(self, function: Callable[[str], ResultT]) -> ResultT:
        """The function's result for the domain; what it opens is not there to inherit."""
        return in_a_fork(lambda: function(self.domain), self.log, function.__name__)

    def may_begin(self) -> bool:
        """Wait for the domain's turn. False if it does not come, as what it depends on failed."""
        return bool(self.pipe.recv() == "run")

    def announce(self, run: RunStarted) -> None:
        """Tell who follows which run comes now."""
        self.pipe.send(run)

    def tell(self, error: str) -> None:
        """Tell who follows of an error that ends nothing."""
        self.pipe.send(error)


#: What a domain's process does: whatever can be before its turn, and then its runs. Whether all
#: that succeeded.
Task = Callable[[Work], bool]


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """One command that runs domains in a home at a time."""
    lock = FileLock(home / "run.lock", timeout=0)
    who = home / "run.pid"
    try:
        lock.acquire()
    except Timeout:
        pid = who.read_text().strip() if who.exists() else "unknown"
        raise BusyError(
            f"another `mesh run` or `mesh retry` is going in {home} (process {pid}): wait for it "
            "to end, or stop it"
        ) from None
    try:
        who.write_text(f"{os.getpid()}\n")
        yield
    finally:
        who.unlink(missing_ok=True)
        lock.release()


def in_order() -> list[str]:
    """The domains, each after those that it depends on."""
    names = {name: read_domain(name).depends_on for name in domain_names()}
    return list(TopologicalSorter(names).static_order())


def work(settings: Settings, tasks: Mapping[str, Task], display: Display) -> bool:
    """Do the domains' tasks, each in a process of its own, and show how they go; all succeeded?

    A domain's turn comes when those it depends on have succeeded; it does not if one has failed.
    """
    runs = [DomainProgress(name) for name in in_order() if name in tasks]
    display.domains = runs
    workers = _fork_workers(settings, runs, tasks)
    try:
        _drive(runs, workers, display)
    finally:
        _end(workers)
    display.summary()
    return all(run.succeeded for run in runs)


@dataclass
class Worker:
    """A domain's process."""

    progress: DomainProgress
    process: ForkProcess
    pipe: Pipe
    log: Path


def _fork_workers(
    settings: Settings, runs: Sequence[DomainProgress], tasks: Mapping[str, Task]
) -> list[Worker]:
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
    workers: list[Worker] = []
    for run in runs:
        ours, theirs = context.Pipe()
        log = logs / f"{run.domain}.log"
        process = context.Process(
            target=serve,
            args=(
                tasks[run.domain],
                Work(run.domain, log, theirs),
                [ours, *(worker.pipe for worker in workers)],
            ),
            name=f"mesh {run.domain}",
        )
        process.start()
        theirs.close()
        workers.append(Worker(run, process, ours, log))
    return workers


def serve(task: Task, work: Work, others: Sequence[Pipe]) -> None:
    """In a domain's process: do the task. Its output goes to its log.

    What runs, and errors that no run tells of, go by the pipe. `others` are ends of pipes that the
    process has only inherited.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for other in others:
        other.close()
    with work.log.open("w", buffering=1) as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        sys.stdout = sys.stderr = out
        try:
            end_with_parent()
            succeeded = task(work)
        except (EOFError, ConnectionError):
            # Nobody follows any more.
            sys.exit(1)
        except MeshError as error:
            work.pipe.send(str(error))
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception as error:  # noqa: BLE001 - the log is closed when Python would print it
            work.pipe.send(_unforeseen(error, work.log))
            sys.exit(1)
        sys.exit(0 if succeeded else 1)


def _unforeseen(error: Exception, log: Path) -> str:
    """An error that is nobody's mistake but ours, in a line; its traceback goes to the log."""
    traceback.print_exception(error)
    last = traceback.format_exception_only(error)[-1].strip()
    return f"{last} (not foreseen; the traceback is in {log})"


def in_a_fork(function: Callable[[], ResultT], log: Path, name: str) -> ResultT:
    """The function's result, from a process of its own: what it opens is not there to inherit.

    Raises what it raises if that is a MeshError, and one that names the log for other errors.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def answer() -> None:
        try:
            theirs.send((function(), None))
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
        raise MeshError(f"{name} ended without an answer; its output: {log}") from None
    finally:
        process.join()
        ours.close()
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]


def _drive(runs: Sequence[DomainProgress], workers: Sequence[Worker], display: Display) -> None:
    """Start each worker when its turn has come, and follow all until they ended."""
    import dagster as dg

    from dagster_project.cli.follow import Follower
    from dagster_project.orchestration.runs import report_killed

    by_name = {run.domain: run for run in runs}
    with ExitStack() as stack:
        instance = stack.enter_context(dg.DagsterInstance.get())
        report_killed(instance)
        followers = {run.domain: Follower(instance, run) for run in runs}
        stack.enter_context(display.showing())
        while True:
            for worker in workers:
                advance(worker, by_name, followers[worker.progress.domain])
            display.update()
            if all(run.is_over() for run in runs):
                return
            time.sleep(_POLL)


def advance(worker: Worker, runs: Mapping[str, DomainProgress], follower: Follower) -> None:
    """Take in what the domain's process told, and tell it when its turn has come."""
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


def _end(workers: Sequence[Worker]) -> None:
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
