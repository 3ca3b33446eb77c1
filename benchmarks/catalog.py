"""What the catalog costs a run, and how fast it is told what happened.

A run of a domain that finds nothing new is timed without anybody who delivers, and with one that
follows the event log at the same time, one after the other. Then the log is made long, of copies of
the events that the platform's own first run has left, and is delivered to files from the start.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import psycopg
from rich.console import Console

from benchmarks.measure import Measured, measured
from benchmarks.pipeline import mesh
from benchmarks.results import Benchmark
from dagster_project.cli.services import services
from dagster_project.settings import get_settings
from dagster_project.warehouse.embedded import DAGSTER, EmbeddedPostgres

#: Pairs of runs, with and without.
RUNS = 5
#: Events of the long log.
EVENTS = int(os.environ.get("BENCH_CATALOG_EVENTS", "100000"))
DOMAIN = "weather"
#: Seconds in which what waits is delivered.
_CATCHES_UP = 8
_RUNS = """
    INSERT INTO runs (run_id, snapshot_id, pipeline_name, status, run_body, start_time, end_time)
    SELECT md5(run_id || %(number)s), snapshot_id, pipeline_name, status,
        replace(run_body, run_id, md5(run_id || %(number)s)), start_time, end_time
    FROM runs WHERE run_id LIKE '%%-%%'"""
_EVENTS = """
    INSERT INTO event_logs
        (run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)
    SELECT md5(run_id || %(number)s), replace(event, run_id, md5(run_id || %(number)s)),
        dagster_event_type, timestamp, step_key, asset_key, partition
    FROM event_logs WHERE id <= %(first)s ORDER BY id"""
_PROGRAM = Path(sys.executable).parent / "mesh"


def run(console: Console, runs: int) -> Benchmark:
    """Measure."""
    result = Benchmark("catalog", "The catalog: what a run costs with it, and catching up")
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as name:
        home = Path(name) / "home"
        console.print("a first run …", style="dim")
        mesh(home, "up")
        try:
            mesh(home, "run")
            _beside(console, result, home, runs)
            _catching_up(console, result, home)
        finally:
            mesh(home, "down")
    result.notes.append(
        "A run sends nothing: what is measured is that somebody reads the log at the same time. "
        f"The long log has the events of a first run, {EVENTS / 1000:,.0f} thousand of all kinds, "
        "of which the catalog hears of a third."
    )
    return result


def _beside(console: Console, result: Benchmark, home: Path, runs: int) -> None:
    alone, followed = [], []
    with _follower(home) as follower:
        _timed(home)
        for number in range(runs):
            console.print(f"run {number + 1} of {runs}, without and with …", style="dim")
            follower.suspend()
            alone.append(_timed(home))
            follower.resume()
            time.sleep(_CATCHES_UP)
            followed.append(_timed(home))
    without, with_ = statistics.median(alone), statistics.median(followed)
    result.add(f"`mesh run --domain {DOMAIN}`, nothing new, nobody delivers", f"{without:.2f} s")
    result.add("the same while what happens is delivered", f"{with_:.2f} s", with_ / without, 1.05)


def _timed(home: Path) -> float:
    began = time.perf_counter()
    subprocess.run(
        [_PROGRAM, "run", "--domain", DOMAIN],
        env={**os.environ, "MESH_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - began


@contextmanager
def _follower(home: Path) -> Iterator[psutil.Process]:
    """The process that delivers, which has caught up."""
    process = subprocess.Popen(
        [_PROGRAM, "catalog", "deliver", "--follow"],
        env={**os.environ, "MESH_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    log = home / "logs" / "catalog.log"
    try:
        limit = time.monotonic() + 120
        while not (log.exists() and "events in" in log.read_text()):
            assert time.monotonic() < limit
            time.sleep(0.5)
        time.sleep(_CATCHES_UP)
        children = psutil.Process(process.pid).children()
        (follower,) = (c for c in children if "dagster_project.cli.delivering" in c.cmdline())
        yield follower
        follower.resume()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def _catching_up(console: Console, result: Benchmark, home: Path) -> None:
    console.print(f"{EVENTS:,} events …", style="dim")
    with EmbeddedPostgres(home).lease() as endpoint:
        url = endpoint.url(DAGSTER, DAGSTER)
        with psycopg.connect(url, autocommit=True) as connection:
            row = connection.execute("SELECT count(*), max(id) FROM event_logs").fetchone()
            assert row
            there, first = row
            # Of other runs each time: what is read of a run when it has ended is all its events.
            for number in range(EVENTS // there + 1):
                connection.execute(_RUNS, {"number": number})
                connection.execute(_EVENTS, {"number": number, "first": first})
            connection.execute("DELETE FROM event_logs WHERE id > %s", (first + EVENTS,))
            connection.execute("ANALYZE event_logs")
            connection.execute(
                "UPDATE mesh.catalog_destinations SET event_id = %s, event_mark = NULL", (first,)
            )
    os.environ["MESH_HOME"] = str(home)
    get_settings.cache_clear()
    took: Measured = measured(deliver)
    told, records = took.result
    result.add("events in the log", f"{EVENTS:,}; the catalog is told of {told:,}")
    result.add("delivered to files", f"{took.wall:.0f} s; {records:,} records")
    result.add("events of the log a second", f"{EVENTS / took.wall:,.0f}")
    result.add("events told a second", f"{told / took.wall:,.0f}")
    result.add("memory of who delivers", f"{took.memory:.0f} MB")


def deliver() -> tuple[int, int]:
    """Deliver all that there is: events told, and records."""
    with services(get_settings()):
        import dagster as dg

        from dagster_project.catalog.bookkeeping import books_of
        from dagster_project.catalog.destination import destination_of
        from dagster_project.cli.in_python import in_python
        from dagster_project.orchestration.delivery import Delivered, Deliverer

        settings = get_settings()
        assert settings.dagster_url
        url = settings.dagster_url.get_secret_value()
        total = Delivered()
        with (
            closing(destination_of(settings)) as destination,
            books_of(url, destination.name, destination.former) as books,
            dg.DagsterInstance.get() as instance,
        ):
            arguments = settings, instance, destination, books, print, in_python
            for done in Deliverer(*arguments).catch_up():
                total.add(done)
    return total.events, total.records
