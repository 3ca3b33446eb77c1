"""What a look at a landing zone costs in which 10,000 files lie: on a disk, and on S3.

The S3 is a server on loopback, which answers a page of 1,000 objects a request, as S3 does; its own
slowness is left out by counting the processor time of the process that looks.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path

from rich.console import Console

from benchmarks.results import Benchmark
from dagster_project.ingestion.arrivals import Memory, look
from dagster_project.ingestion.feed import FeedDeclaration, read_feed
from dagster_project.lake.store import Lake
from dagster_project.orchestration.landing import LOOK, WATCH
from dagster_project.reference.delivery import FEED
from dagster_project.warehouse.connection import connect
from dagster_project.warehouse.embedded import MESH, WAREHOUSE, EmbeddedPostgres
from dagster_project.warehouse.ledger import LEDGER

FILES = 10_000
FIRST = date(1990, 1, 1)
RUNS = 5
_BUCKET = "landing"


def run(console: Console, runs: int) -> Benchmark:
    """Measure."""
    result = Benchmark("landing", f"A look at a landing zone with {FILES:,} files that wait")
    last = FIRST + timedelta(FILES)
    feed = read_feed(FEED.domain, FEED.name).model_copy(
        update={"first_day": FIRST, "last_day": last}
    )
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as name:
        folder = Path(name)
        console.print(f"{FILES:,} files …", style="dim")
        zone = folder / _BUCKET / FEED.prefix
        zone.mkdir(parents=True)
        for number in range(FILES):
            (zone / f"flights_{FIRST + timedelta(number)}.csv").write_bytes(b"x")
        with EmbeddedPostgres(folder / "home").lease() as endpoint:
            url = endpoint.url(MESH, WAREHOUSE)
            with connect(url, "the benchmark") as connection:
                LEDGER.prepare(connection)
            _measure(result, "on a disk", feed, Lake((folder / _BUCKET).as_uri()), url, runs)
            with _s3(folder) as lake:
                _measure(result, "on S3", feed, lake, url, runs)
    result.notes.append(
        f"A tick of the sensor looks every {LOOK} s for {WATCH} s, or less often where a look "
        "takes long: so that looking never takes more than a tenth of the time. Every look lists "
        "all: a file that was put in the place of another has the same name, and a listing that "
        "starts behind the newest name would not see it."
    )
    return result


def _measure(
    result: Benchmark, where: str, feed: FeedDeclaration, lake: Lake, url: str, runs: int
) -> None:
    began = time.process_time()
    memory = look(FEED.domain, feed, lake, url, Memory()).memory
    found = look(FEED.domain, feed, lake, url, memory)
    memory, first = found.memory, time.process_time() - began
    assert len(memory.asked) == FILES
    clock, used = [], []
    for _ in range(runs):
        began, cpu = time.perf_counter(), time.process_time()
        assert not look(FEED.domain, feed, lake, url, memory).days
        clock.append(time.perf_counter() - began)
        used.append(time.process_time() - cpu)
    took = statistics.median(used)
    result.add(f"{where}: the first two looks, which ask for all", f"{first:.2f} s of processor")
    result.add(
        f"{where}: each look after that, against 1 s of processor",
        f"{took:.2f} s of processor, {statistics.median(clock):.2f} s",
        took,
        1,
    )


@contextmanager
def _s3(root: Path) -> Iterator[Lake]:
    """An S3 that holds `root`'s folders as buckets."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "localbucket", str(root), "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_REGION": "eu-central-1",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
        }
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield Lake(f"s3://{_BUCKET}")
    finally:
        server.terminate()
        server.wait()
