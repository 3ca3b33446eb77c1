"""A shop's records from the connector to the raw tables, against the connector alone.

`source-faker` with 100,000 users sends some 200,100 records. Processor time counts everything: the
connector, the platform and, apart, the PostgreSQL server's share.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from benchmarks.measure import Measured, measured, server_cpu
from benchmarks.results import Benchmark
from dagster_project.ingestion import engine
from dagster_project.ingestion.declaration import Connection, read_connections
from dagster_project.ingestion.environments import ensure_environment
from dagster_project.ingestion.streams import load_stream
from dagster_project.lake.store import Lake
from dagster_project.settings import get_settings
from dagster_project.warehouse.embedded import MESH, WAREHOUSE, EmbeddedPostgres

USERS = 100_000
RUNS = 3
DOMAIN = "commerce"


def shop() -> Connection:
    """The connection of the domain commerce."""
    return read_connections(DOMAIN)[0]


def config() -> dict[str, Any]:
    """Its configuration, with so many users."""
    return dict(shop().config) | {"count": USERS}


def program(home: Path) -> str:
    """The connector's program."""
    return str(ensure_environment(shop().connector.environment, home) / "bin" / "source-faker")


def alone(home: Path, folder: Path) -> None:
    """The connector by itself, its output thrown away."""
    arguments = []
    for name, value in (("config", config()), ("catalog", shop().catalog())):
        path = folder / f"{name}.json"
        path.write_bytes(orjson.dumps(value))
        arguments += [f"--{name}", str(path)]
    command = [program(home), "read", *arguments]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


def bring(home: Path, folder: Path) -> int:
    """A sync into the lake: the records that came."""
    lake = Lake((folder / "lake").as_uri())
    synced = engine.sync(DOMAIN, shop(), config=config(), lake=lake, home=home, timeout=3600)
    return synced.rows


def load(folder: Path, url: str) -> None:
    """A load of its streams."""
    connection, lake = shop(), Lake((folder / "lake").as_uri())
    for stream in connection.streams:
        load_stream(DOMAIN, connection, stream, lake=lake, warehouse_url=url, run_id="benchmark")


@dataclass(frozen=True, slots=True)
class Round:
    """One round: the connector alone, and the steps of a run, each in a process of its own."""

    alone: Measured
    sync: Measured
    load: Measured
    #: Processor seconds of the PostgreSQL server.
    server: float

    @property
    def cpu(self) -> float:
        return self.sync.cpu + self.load.cpu


def run(console: Console, runs: int) -> Benchmark:
    """Measure."""
    home = get_settings().home.absolute()
    program(home)
    rounds = []
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as name:
        for number in range(runs):
            console.print(f"run {number + 1} of {runs} …", style="dim")
            folder = Path(name) / str(number)
            folder.mkdir()
            base, synced = measured(alone, home, folder), measured(bring, home, folder)
            with EmbeddedPostgres(folder / "home").lease() as endpoint:
                server = EmbeddedPostgres(folder / "home").status().pid
                assert server
                before = server_cpu(server)
                loaded = measured(load, folder, endpoint.url(MESH, WAREHOUSE))
                rounds.append(Round(base, synced, loaded, server_cpu(server) - before))
    return _result(rounds)


def _result(rounds: list[Round]) -> Benchmark:
    def median(figure: Callable[[Round], float]) -> float:
        return statistics.median(map(figure, rounds))

    records = rounds[0].sync.result
    result = Benchmark("sync", f"{records:,} records of source-faker, from connector to table")
    result.add(
        "the connector alone, into nothing",
        f"{median(lambda r: r.alone.cpu):.1f} s of processor time",
    )
    result.add(
        "the sync into the lake",
        f"{median(lambda r: r.sync.cpu):.1f} s of processor time",
        median(lambda r: r.sync.cpu / r.alone.cpu),
    )
    result.add(
        "sync and load",
        f"{median(lambda r: r.cpu):.1f} s of processor time",
        median(lambda r: r.cpu / r.alone.cpu),
        1.15,
    )
    result.add(
        "sync and load with the PostgreSQL server's share",
        f"{median(lambda r: r.cpu + r.server):.1f} s of processor time",
        median(lambda r: (r.cpu + r.server) / r.alone.cpu),
    )
    result.add(
        "sync and load by the clock",
        f"{median(lambda r: r.sync.wall + r.load.wall):.1f} s against "
        f"{median(lambda r: r.alone.wall):.1f} s",
        median(lambda r: (r.sync.wall + r.load.wall) / r.alone.wall),
    )
    for what, memory in (
        ("sync", max(r.sync.memory for r in rounds)),
        ("load", max(r.load.memory for r in rounds)),
    ):
        result.add(f"memory of the {what}, against 250 MB", f"{memory:.0f} MB", memory / 250, 1)
    return result
