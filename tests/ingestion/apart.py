"""A sync of `shop/main` in a process of its own: `apart.py <home> <lake> <connector's command>`.

Prints `ready` when it begins; when it has ended, the rows that came, and by how many megabytes the
process grew at most.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from dagster_project.ingestion import engine, process
from dagster_project.lake.store import Lake
from tests.ingestion.scripted import CONNECTION, SECRET


def peak() -> int:
    """The most memory that this process had so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(home: str, lake: str, *command: str) -> None:
    """Sync once."""
    # It imports pandas at its first array.
    pa.array([0])
    process.GRACE = 1.0
    engine.connector_command = lambda *_: list(command)
    before = peak()
    print("ready", flush=True)
    done = engine.sync(
        "shop",
        CONNECTION,
        config={"password": SECRET, "page_size": "1"},
        lake=Lake(lake),
        home=Path(home),
        timeout=60,
    )
    print(done.rows, (peak() - before) // 2**20, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
