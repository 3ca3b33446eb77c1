"""Parquet into PostgreSQL, against plain COPY of the same rows and columns as CSV.

The objects lie in the lake as a sync writes them: ten columns, of which the first four are the
platform's own. Each figure is the median of runs that follow each other in turn, so that what else
the machine does meets all of them alike. The server is the embedded one, as `mesh run` starts it.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
from rich.console import Console

from benchmarks.measure import Measured, measured
from benchmarks.results import Benchmark
from dagster_project.identity import Table
from dagster_project.ingestion.declaration import Connection
from dagster_project.ingestion.records import META_WHOLE, arrow_schema
from dagster_project.ingestion.streams import load_stream, table_columns
from dagster_project.lake.commits import Commit, CommitLog, LakeObject, StreamCommit
from dagster_project.lake.store import Lake
from dagster_project.warehouse.embedded import MESH, WAREHOUSE, EmbeddedPostgres
from dagster_project.warehouse.ledger import Load

ROWS = 1_000_000
MANY = 10_000_000
ROWS_AN_OBJECT = 50_000
RUNS = 3
DAY = 86_400_000
START = 1_700_000_000_000
TABLE = Table("bench_raw", "orders")


def connection(mode: str) -> Connection:
    """A connection whose stream is loaded in a mode."""
    incremental = mode != "overwrite"
    return Connection.model_validate(
        {
            "name": mode,
            "source": "a benchmark",
            "connector": {"environment": "none", "version": "1"},
            "streams": [
                {
                    "name": "orders",
                    "description": "An order.",
                    "sync_mode": "incremental" if incremental else "full_refresh",
                    "destination_sync_mode": mode,
                    "primary_key": ["id"],
                    "cursor_field": "updated_at",
                    "json_schema": {
                        "properties": {
                            "id": {"type": "integer"},
                            "customer": {"type": "integer"},
                            "amount": {"type": "number"},
                            "status": {"type": "string"},
                            "note": {"type": "string"},
                            "updated_at": {"type": "string", "format": "date-time"},
                        }
                    },
                }
            ],
        }
    )


def rows_of(first: int, count: int, total: int, version: int) -> pa.Table:
    """Rows of the stream; their keys come in no order, as those of real records."""
    import numpy as np

    random = np.random.default_rng([first, version])
    # A bijection of 0 … total - 1: keys are spread, and none comes twice.
    keys = (np.arange(first, first + count, dtype=np.int64) * 7_368_787) % total
    stamps = START + version * DAY + random.integers(0, DAY, count)
    amounts = (random.integers(100, 1_000_000, count) / 100).astype(np.float64)
    schema = arrow_schema(connection("append").streams[0].json_schema)
    columns = [
        pa.array([f"{key:016x}{version:016x}" for key in keys.tolist()]),
        pa.array(np.full(count, START + version * DAY)),
        pa.repeat(pa.scalar(META_WHOLE), count),
        pa.array(np.full(count, version, dtype=np.int64)),
        pa.array(keys),
        pa.array(random.integers(0, 50_000, count)),
        pa.array(amounts),
        pa.array(random.choice(np.array(["open", "paid", "sent"], dtype=object), count)),
        pa.array([f"order {key} of version {version}" for key in keys.tolist()]),
        pa.array(stamps, pa.timestamp("ms", tz="UTC")),
    ]
    return pa.table(
        [column.cast(field.type) for column, field in zip(columns, schema, strict=True)],
        schema=schema,
    )


def write(lake: Lake, mode: str, total: int, version: int) -> None:
    """A commit of the stream, as a sync leaves it."""
    objects = []
    for first in range(0, total, ROWS_AN_OBJECT):
        sink = io.BytesIO()
        pq.write_table(rows_of(first, ROWS_AN_OBJECT, total, version), sink, compression="zstd")
        key = f"bench/{mode}/orders/sync-{version}/{first:012d}.parquet"
        lake.create(key, sink.getvalue())
        objects.append(LakeObject(key=key, rows=ROWS_AN_OBJECT, size=sink.tell()))
    stream = StreamCommit(
        objects=objects,
        rows=total,
        sync_mode="incremental",
        destination_sync_mode=mode,
        generation=version,
        version=str(version),
    )
    CommitLog(lake, "bench", mode).append(
        Commit(
            number=version,
            sync=f"sync-{version}",
            connector="none",
            started_at="",
            ended_at="",
            streams={"orders": stream},
            state={},
        )
    )


def bring(url: str, lake: str, mode: str) -> Load:
    """Load what the lake has of the stream."""
    declared = connection(mode)
    return load_stream(
        "bench",
        declared,
        declared.streams[0],
        lake=Lake(lake),
        warehouse_url=url,
        run_id="benchmark",
    ).load


def copy(url: str, file: Path) -> None:
    """Plain COPY of a CSV file into an empty table without indexes, as a person would."""
    columns = table_columns(connection("append").streams[0])
    with psycopg.connect(url) as session, session.cursor() as cursor:
        cursor.execute(f"CREATE TABLE copied ({', '.join(f'{c.name} {c.type}' for c in columns)})")
        with cursor.copy("COPY copied FROM STDIN (FORMAT csv)") as target, file.open("rb") as rows:
            while block := rows.read(1 << 20):
                target.write(block)


def write_csv(file: Path, total: int) -> None:
    """The rows of the first commit as CSV."""
    with file.open("wb") as sink:
        for first in range(0, total, ROWS_AN_OBJECT):
            table = rows_of(first, ROWS_AN_OBJECT, total, 1)
            stamps = table.column(1).cast(pa.timestamp("ms", tz="UTC"))
            table = table.set_column(1, "_airbyte_extracted_at", stamps)
            pcsv.write_csv(table, sink, pcsv.WriteOptions(include_header=False))


def clear(url: str) -> None:
    """An empty warehouse."""
    with psycopg.connect(url) as session:
        session.execute("DROP SCHEMA IF EXISTS bench_raw, mesh CASCADE")
        session.execute("DROP TABLE IF EXISTS copied")


def taken(work: Callable[[], object]) -> float:
    """Seconds by the clock."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _once(url: str, folder: Path, lake: str) -> Iterator[tuple[str, float]]:
    """Each piece of work once, in turn."""
    clear(url)
    yield "copy", taken(lambda: copy(url, folder / "rows.csv"))
    clear(url)
    yield "append", taken(lambda: bring(url, lake, "append"))
    clear(url)
    yield "overwrite", taken(lambda: bring(url, lake, "overwrite"))
    clear(url)
    first = Lake((folder / "first").as_uri()).url
    yield "first", taken(lambda: bring(url, first, "append_dedup"))
    yield "update", taken(lambda: bring(url, lake, "append_dedup"))


def prepare(folder: Path) -> None:
    """The objects and the file."""
    write_csv(folder / "rows.csv", ROWS)
    lake = Lake((folder / "lake").as_uri())
    for mode in ("append", "overwrite", "append_dedup"):
        write(lake, mode, ROWS, 1)
    write(lake, "append_dedup", ROWS, 2)
    # The same first commit, in a lake that has no second one.
    write(Lake((folder / "first").as_uri()), "append_dedup", ROWS, 1)


def grow(url: str, folder: Path, total: int) -> Measured:
    """The memory of a first load with deduplication of so many rows."""
    lake = Lake((folder / f"lake-{total}").as_uri())
    write(lake, "append_dedup", total, 1)
    clear(url)
    return measured(bring, url, lake.url, "append_dedup")


def run(console: Console, runs: int) -> Benchmark:
    """Measure."""
    result = Benchmark(
        "warehouse", f"Parquet into PostgreSQL, {ROWS:,} rows of ten columns, against COPY of CSV"
    )
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as name:
        folder = Path(name)
        with EmbeddedPostgres(folder / "home").lease() as endpoint:
            url = endpoint.url(MESH, WAREHOUSE)
            console.print("writing the objects …", style="dim")
            prepare(folder)
            seconds: dict[str, list[float]] = {}
            for number in range(runs):
                console.print(f"run {number + 1} of {runs} …", style="dim")
                for what, spent in _once(url, folder, (folder / "lake").as_uri()):
                    seconds.setdefault(what, []).append(spent)
            _rows(result, seconds)
            console.print(f"{MANY:,} rows …", style="dim")
            small, large = grow(url, folder, ROWS), grow(url, folder, MANY)
            result.add(
                f"memory with {MANY:,} rows against {ROWS:,}, first load with deduplication",
                f"{large.memory:.0f} MB against {small.memory:.0f} MB; {large.wall:.0f} s",
                large.memory / small.memory,
                1.3,
            )
    return result


def _rows(result: Benchmark, seconds: dict[str, list[float]]) -> None:
    copied = seconds["copy"]
    result.add("COPY of the CSV file, no index", f"{statistics.median(copied):.2f} s")
    for what, title, limit in (
        ("append", "append", 1.2),
        ("overwrite", "overwrite (full refresh)", None),
        ("first", "first load with deduplication", 3.0),
        ("update", "update of every row", 5.0),
    ):
        result.add(
            title,
            f"{statistics.median(seconds[what]):.2f} s",
            statistics.median(a / b for a, b in zip(seconds[what], copied, strict=True)),
            limit,
        )
