"""The whole `mesh run`, cold and warm, against its parts run by hand, and where its time goes.

By hand: each connector once, its output thrown away; one COPY of a CSV file a raw table, into a
table without indexes; one `dbt build` of the whole project with its tests. Nobody checks there what
the platform checks, keeps the files, or can run it again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import psycopg
from psycopg import sql
from rich.console import Console

from benchmarks.measure import Measured, measured, server_cpu
from benchmarks.results import Benchmark
from dagster_project.cli.services import services
from dagster_project.domain import domain_names
from dagster_project.identity import RAW_SUFFIX
from dagster_project.ingestion.declaration import (
    REFERENCE_URL,
    Connection,
    read_connections,
    resolve_config,
)
from dagster_project.ingestion.process import connector_command, manifest_arguments
from dagster_project.reference import server
from dagster_project.settings import DBT_PROJECT_DIR, Settings
from dagster_project.transformation.project import dbt_environment, dbt_executable
from dagster_project.warehouse.embedded import MESH, WAREHOUSE, EmbeddedPostgres

#: Once is minutes.
RUNS = 1
#: What a step does, by how its name begins.
STEPS = {
    "airbyte_": "connectors",
    "load_": "loads into the warehouse",
    "incremental_": "dbt, by the day",
    "transform_": "dbt",
    "expect_": "expectations",
}


def mesh(home: Path, command: str) -> None:
    """A command, as a user runs it."""
    environment = {**os.environ, "MESH_HOME": str(home)}
    program = Path(sys.executable).parent / "mesh"
    subprocess.run([program, command], env=environment, stdout=subprocess.DEVNULL, check=True)


def steps(home: Path, since: float) -> dict[str, float]:
    """Where a run that began at `since` spent its time, in seconds by kind of step.

    Those of steps side by side count in full. What precedes the first step is its own kind.
    """
    import dagster as dg

    with services(Settings(home=home)), dg.DagsterInstance.get() as instance:
        spent: defaultdict[str, float] = defaultdict(float)
        first = float("inf")
        for run in instance.get_runs():
            for step in instance.get_run_step_stats(run.run_id):
                if not step.start_time or not step.end_time or step.start_time < since:
                    continue
                kind = next((k for b, k in STEPS.items() if step.step_key.startswith(b)), "other")
                spent[kind] += step.end_time - step.start_time
                first = min(first, step.start_time)
        return {"until the first step starts": first - since, **spent}


def read_all(home: Path, url: str, folder: Path) -> None:
    """Every connector once, its output thrown away."""
    settings = Settings(home=home)
    for domain in domain_names():
        for connection in read_connections(domain):
            config = resolve_config(domain, connection, settings, {REFERENCE_URL: url})
            _read(domain, connection, config, home, folder)


def _read(domain: str, connection: Connection, config: Any, home: Path, folder: Path) -> None:
    arguments = []
    for name, value in (("config", config), ("catalog", connection.catalog())):
        path = folder / f"{name}.json"
        path.write_bytes(orjson.dumps(value))
        arguments += [f"--{name}", str(path)]
    program = connector_command(domain, connection, home)
    subprocess.run(
        [*program, "read", *arguments, *manifest_arguments(domain, connection)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )


def raw_tables(session: psycopg.Connection[Any]) -> list[tuple[str, str]]:
    """The raw tables that the run loaded."""
    rows = session.execute(
        "SELECT table_schema, table_name FROM information_schema.tables "
        "WHERE table_schema LIKE %s AND table_name NOT LIKE %s",
        (f"%\\{RAW_SUFFIX}", "%\\_\\_rejects"),
    )
    return [(schema, name) for schema, name in rows]


def dump(url: str, folder: Path) -> None:
    """Each raw table as a CSV file, for the COPY by hand."""
    with psycopg.connect(url) as session, session.cursor() as cursor:
        for schema, name in raw_tables(session):
            statement = sql.SQL("COPY {} TO STDOUT (FORMAT csv)").format(
                sql.Identifier(schema, name)
            )
            with (
                cursor.copy(statement) as rows,
                (folder / f"{schema}.{name}.csv").open("wb") as file,
            ):
                for block in rows:
                    file.write(block)


def copy_all(url: str, folder: Path) -> None:
    """COPY of every raw table's file into a table of the same columns."""
    with psycopg.connect(url) as session, session.cursor() as cursor:
        for schema, name in raw_tables(session):
            made = sql.SQL("CREATE TEMPORARY TABLE {} (LIKE {})").format(
                sql.Identifier(f"copy_{schema}_{name}"), sql.Identifier(schema, name)
            )
            cursor.execute(made)
            statement = sql.SQL("COPY {} FROM STDIN (FORMAT csv)").format(
                sql.Identifier(f"copy_{schema}_{name}")
            )
            with (
                cursor.copy(statement) as rows,
                (folder / f"{schema}.{name}.csv").open("rb") as file,
            ):
                while block := file.read(1 << 20):
                    rows.write(block)


def dbt_build(home: Path, url: str, folder: Path) -> None:
    """The whole project, every model anew, with its tests."""
    environment = {
        **os.environ,
        "MESH_HOME": str(home),
        **dbt_environment(url),
        "DBT_TARGET_PATH": str(folder / "target"),
        "DBT_LOG_PATH": str(folder / "target"),
    }
    subprocess.run(
        [str(dbt_executable()), "--quiet", "build", "--full-refresh"],
        cwd=DBT_PROJECT_DIR,
        env=environment,
        stdout=subprocess.DEVNULL,
        check=False,  # a warning test's failure is not its end
    )


class _Stopwatch:
    """Wall and processor seconds of pieces of work, the PostgreSQL server's share included."""

    def __init__(self, home: Path) -> None:
        pid = EmbeddedPostgres(home).status().pid
        assert pid
        self._server = pid

    def __call__(self, work: Callable[..., Any], *arguments: Any) -> Measured:
        before = server_cpu(self._server)
        done = measured(work, *arguments)
        return replace(done, cpu=done.cpu + server_cpu(self._server) - before)


def run(console: Console, runs: int) -> Benchmark:
    """Measure."""
    result = Benchmark("pipeline", "The whole `mesh run` against its parts run by hand")
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as name:
        folder = Path(name)
        home = folder / "home"
        if runs > 1:
            result.notes.append("Measured once, however many runs were asked for.")
        console.print("the connectors' environments …", style="dim")
        mesh(home, "install")
        with EmbeddedPostgres(home).lease() as endpoint:
            watch = _Stopwatch(home)
            console.print("a first run …", style="dim")
            began = time.time()
            cold = watch(mesh, home, "run")
            spent = {"the first": steps(home, began)}
            console.print("the same again …", style="dim")
            began = time.time()
            warm = watch(mesh, home, "run")
            spent["again"] = steps(home, began)
            console.print("its parts by hand …", style="dim")
            parts = _by_hand(home, folder, endpoint.url(MESH, WAREHOUSE), watch)
    total = sum(part.wall for part in parts.values())
    cpu = sum(part.cpu for part in parts.values())
    for what, part in parts.items():
        result.add(f"by hand: {what}", f"{part.wall:.1f} s, {part.cpu:.1f} s of processor time")
    result.add("by hand, one after the other", f"{total:.1f} s, {cpu:.1f} s of processor time")
    for what, whole in (("the first", cold), ("again, nothing new", warm)):
        result.add(
            f"`mesh run`, {what}",
            f"{whole.wall:.1f} s, {whole.cpu:.1f} s of processor time",
            whole.wall / total,
        )
    for which, kinds in spent.items():
        for kind, seconds in sorted(kinds.items(), key=lambda item: -item[1]):
            result.add(f"{which}: {kind}", f"{seconds:.1f} s")
    result.notes.append(
        "Steps run two at a time and wait for each other's processor: their seconds add up to more "
        "than the run's. Ratios are of seconds by the clock."
    )
    result.notes.append(
        "What was done about the largest. Dagster opened a connection to its storage for every "
        "statement, some 5,000 in a first run, a third of its processor time: a process keeps one. "
        "dbt was started as a program by each step, imported itself and, if the connection had "
        "changed, parsed the project again, 4 to 6 s of processor time before the first model: it "
        "is a fork of the step now, which has both already, and a model is built only if its code "
        "or its inputs changed. A forked process that collected garbage copied all that its parent "
        "had imported: that is exempt now. Connectors come next: each needs some 3 s of imports of "
        "its own, whatever it brings; those of different domains start side by side."
    )
    return result


def _by_hand(home: Path, folder: Path, url: str, watch: _Stopwatch) -> dict[str, Measured]:
    dump(url, folder)
    with server.running(home) as reference:
        return {
            "connectors": watch(read_all, home, reference, folder),
            "COPY": watch(copy_all, url, folder),
            "dbt build": watch(dbt_build, home, url, folder),
        }
