"""From a file in the landing zone to the first step of its run, and to its last check.

The platform is the real one, after a `mesh run`: `mesh ui` with its daemon, webserver and four code
locations. A day of flights comes when the run of the day before it is over; what follows from that,
the run of the marts, is still going then. At last some days without the prefork server, so that
each run's process is one that Dagster starts.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TypeVar

import dagster as dg
import psutil
from rich.console import Console

from benchmarks.pipeline import mesh
from benchmarks.results import Benchmark
from dagster_project.cli.replay import forget_days
from dagster_project.cli.services import services
from dagster_project.lake.store import Lake
from dagster_project.orchestration import prefork
from dagster_project.orchestration.run_process import RunProcess
from dagster_project.reference import delivery
from dagster_project.reference.data import data_folder
from dagster_project.settings import Settings

#: Events.
RUNS = 50
#: Of those without the server, at most.
COMPARED = 10
FIRST = date(2013, 6, 1)
#: The module of the server, whose forks have its command line.
PREFORK = "dagster_project.orchestration.prefork"
ResultT = TypeVar("ResultT")
#: Seconds that an event may take before it counts as lost.
_LOST = 300
_POLL = 0.1


@dataclass(frozen=True, slots=True)
class Event:
    """Seconds from a file's delivery on."""

    created: float
    first_step: float
    last_check: float
    #: Private memory of the run's own process as its first step begins, in MB; of forks only.
    memory: float | None


@contextmanager
def serving(home: Path) -> Iterator[psutil.Process]:
    """`mesh ui`, once it forks runs."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [Path(sys.executable).parent / "mesh", "ui", "--port", str(port)],
        env={**os.environ, "MESH_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not answers(home):
            if process.poll() is not None:
                raise SystemExit("`mesh ui` ended: run it to see why")
            time.sleep(0.5)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def answers(home: Path) -> bool:
    """Whether the prefork server is there. It forks nothing for who asks nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            with prefork.address(home / "dagster") as path:
                connection.connect(path)
        except OSError:
            return False
        return True


def deliver(lake: Lake, home: Path, instance: dg.DagsterInstance, day: date) -> Event:
    """A day's file, which comes as new, and what it starts, up to its end."""
    content = delivery.daily_files(data_folder(home))[day]
    forget_days(delivery.FEED, lake, [day])
    known = {run.run_id for run in instance.get_runs(limit=20)}
    # Anywhere between two ticks of the sensor, which begin every five seconds.
    time.sleep(1 + 5 * (day.toordinal() * 0.618 % 1))

    began = time.time()
    lake.replace(delivery.object_path(day), content)
    run = _until(lambda: _new(instance, known, day), began)
    record = instance.get_run_record_by_id(run)
    assert record
    first = _until(lambda: _first_step(instance, run), began)
    memory = _memory(instance, run)
    _until(lambda: (found := instance.get_run_by_id(run)) and found.is_finished, began)
    ended = [step.end_time or 0.0 for step in instance.get_run_step_stats(run)]
    return Event(
        created=record.create_timestamp.timestamp() - began,
        first_step=first - began,
        last_check=max(ended) - began,
        memory=memory,
    )


def _until(look: Callable[[], ResultT | None], began: float) -> ResultT:
    while not (found := look()):
        if time.time() > began + _LOST:
            raise SystemExit("a file was delivered, and its run did not come or end")
        time.sleep(_POLL)
    return found


def _new(instance: dg.DagsterInstance, known: set[str], day: date) -> str | None:
    for run in instance.get_runs(limit=10):
        if run.run_id not in known and day.isoformat() in run.tags.values():
            return run.run_id
    return None


def _first_step(instance: dg.DagsterInstance, run: str) -> float | None:
    starts = [step.start_time for step in instance.get_run_step_stats(run) if step.start_time]
    return min(starts, default=None)


def _memory(instance: dg.DagsterInstance, run: str) -> float | None:
    found = instance.get_run_by_id(run)
    process = RunProcess.of(found) if found else None
    if not process or PREFORK not in psutil.Process(process.pid).cmdline():
        return None
    return private(process.pid)


def private(pid: int) -> float:
    """Memory that a process shares with no other, in MB."""
    return float(psutil.Process(pid).memory_full_info().uss / 1024**2)


def _servers(ui: psutil.Process) -> Iterator[tuple[str, float]]:
    """The private memory of the processes that runs share, by their modules."""
    for process in ui.children(recursive=True):
        with suppress(psutil.Error):  # it is ending
            for who in (PREFORK, "dagster_project.quality.server"):
                if who in process.cmdline():
                    yield who.partition(".")[2], private(process.pid)


def measure(home: Path, console: Console, days: Sequence[date]) -> list[Event]:
    """The days, one after the other; one before them that does not count."""
    events = []
    settings = Settings(home=home)
    with services(settings), dg.DagsterInstance.get() as instance:
        lake = Lake(settings.lake)
        for day in (days[0] - timedelta(1), *days):
            events.append(deliver(lake, home, instance, day))
            console.print(f"{day}: first step after {events[-1].first_step:.1f} s", style="dim")
    return events[1:]


def run(console: Console, runs: int) -> Benchmark:
    """Measure."""
    result = Benchmark("events", f"From a file to the first step of its run: {runs} events")
    days = [FIRST + timedelta(number) for number in range(runs)]
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as name:
        home = Path(name) / "home"
        console.print("a first run …", style="dim")
        mesh(home, "run")
        with serving(home) as ui:
            console.print("forked runs …", style="dim")
            forked = measure(home, console, days)
            memory = dict(_servers(ui))
            console.print("runs that Dagster starts …", style="dim")
            (home / "dagster" / "prefork" / "socket").unlink()
            started = measure(home, console, days[:COMPARED])
    if any(event.memory is None for event in forked) or any(event.memory for event in started):
        raise SystemExit("runs were not launched as they were to be")
    for how, events in (("forked", forked), ("started by Dagster", started)):
        for what, seconds in (
            ("run created", [event.created for event in events]),
            ("first step starts", [event.first_step for event in events]),
            ("last check has ended", [event.last_check for event in events]),
        ):
            median, late = statistics.median(seconds), percentile(seconds)
            figures = f"median {median:.1f} s, 95th percentile {late:.1f} s"
            if (how, what) == ("forked", "first step starts"):
                result.add(f"{how}: {what}, against 5 s", figures, median / 5, 1)
            else:
                result.add(f"{how}: {what}", figures)
    for who, megabytes in memory.items():
        result.add(f"private memory of {who}", f"{megabytes:.0f} MB")
    own = statistics.median(event.memory or 0.0 for event in forked)
    result.add("private memory of a forked run's process at its first step", f"{own:.0f} MB")
    result.notes.append(
        f"{len(started)} of the events again without the server. Seconds from when the file is "
        "written on. The sensor looks every second, and so does what takes runs from the queue."
    )
    return result


def percentile(seconds: Sequence[float]) -> float:
    """The 95th; of few figures the largest."""
    return max(seconds) if len(seconds) < 20 else statistics.quantiles(seconds, n=20)[-1]
