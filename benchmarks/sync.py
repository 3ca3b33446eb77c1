"""A shop's records from the connector to the raw tables, against the connector alone.

`source-faker` with 100,000 users sends some 200,100 records. Processor time counts everything: the
connector, the platform and, apart, the PostgreSQL server's share.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
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


def whole(home: Path, folder: Path, url: str) -> int:
    """A sync into the lake and a load of its streams: the records that came."""
    connection, lake = shop(), Lake((folder / "lake").as_uri())
    synced = engine.sync(DOMAIN, connection, config=config(), lake=lake, home=home, timeout=3600)
    for stream in connection.streams:
        load_stream(DOMAIN, connection, stream, lake=lake, warehouse_url=url, run_id="benchmark")
    return synced.rows


def run(console: Console) -> Benchmark:
    """Measure."""
    home = get_settings().home.absolute()
    program(home)
    pairs: list[tuple[Measured, Measured, float]] = []
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as name:
        for number in range(RUNS):
            console.print(f"run {number + 1} of {RUNS} …", style="dim")
            folder = Path(name) / str(number)
            folder.mkdir()
            base = measured(alone, home, folder)
            with EmbeddedPostgres(folder / "home").lease() as endpoint:
                server = EmbeddedPostgres(folder / "home").status().pid
                assert server
                before = server_cpu(server)
                url = endpoint.url(MESH, WAREHOUSE)
                pairs.append((base, measured(whole, home, folder, url), 0.0))
                used = server_cpu(server) - before
            pairs[-1] = (*pairs[-1][:2], used)
    return _result(pairs)


def _result(pairs: list[tuple[Measured, Measured, float]]) -> Benchmark:
    rows = pairs[0][1].result
    result = Benchmark(
        "sync", f"{rows:,} records of source-faker, from the connector to the tables"
    )
    base = statistics.median(alone.cpu for alone, _, _ in pairs)
    result.add("the connector alone, into nothing", f"{base:.1f} s of processor time")
    result.add(
        "connector, lake and load",
        f"{statistics.median(whole.cpu for _, whole, _ in pairs):.1f} s of processor time",
        statistics.median(whole.cpu / alone.cpu for alone, whole, _ in pairs),
        1.15,
    )
    result.add(
        "the same with the PostgreSQL server's share",
        f"{statistics.median(whole.cpu + server for _, whole, server in pairs):.1f} s of "
        "processor time",
        statistics.median((whole.cpu + server) / alone.cpu for alone, whole, server in pairs),
    )
    result.add(
        "by the clock",
        f"{statistics.median(whole.wall for _, whole, _ in pairs):.1f} s against "
        f"{statistics.median(alone.wall for alone, _, _ in pairs):.1f} s",
        statistics.median(whole.wall / alone.wall for alone, whole, _ in pairs),
    )
    memory = max(whole.memory for _, whole, _ in pairs)
    result.add(
        "memory of the platform's process, against 250 MB", f"{memory:.0f} MB", memory / 250, 1
    )
    return result
