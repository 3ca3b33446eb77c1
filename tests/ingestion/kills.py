"""Kills a sync (SIGKILL) at its every step, each time in a lake of its own, and syncs again.

Run as a program with a folder: prints a line of JSON for each moment. A process is forked for each
sync before anything has started threads.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore  # noqa: F401 - imported once, for all forks
import pyarrow as pa
import pyarrow.parquet as pq

from dagster_project.ingestion import engine, objects, process
from dagster_project.lake.commits import CommitLog
from dagster_project.lake.store import Lake
from tests.ingestion.scripted import PRELUDE, connection, stream

#: Three streams; the second goes on from its state, of which there is one every ten records.
CONNECTOR = """
open(sys.argv[0] + ".pid", "w").write(str(os.getpid()))
at = {s["stream"]["stream_descriptor"]["name"]: s["stream"]["stream_state"] for s in state or []}
for number in range(25):
    record("users", id=number, name="x")
checkpoint("users", count=25)
status("users")
done = at.get("events", {}).get("at", 0)
for start in range(done, 40, 10):
    for number in range(start + 1, start + 11):
        record("events", id=number, at=number)
    checkpoint("events", count=10, at=start + 10)
if done >= 40:
    checkpoint("events", count=0, at=done)
status("events")
seen = at.get("visits", {}).get("at", 0)
for number in range(seen + 1, 13):
    record("visits", id=number, at=number)
checkpoint("visits", count=max(0, 12 - seen), at=12)
status("visits")
"""
VISITS = stream("visits", incremental=True, id="integer", at="integer")
CONNECTION = connection(
    stream("users", id="integer", name="string"),
    stream("events", incremental=True, id="integer", at="integer"),
    VISITS | {"destination_sync_mode": "append"},
    checkpoints=True,
)


def sync(folder: Path, kill_at: int) -> None:
    """Sync into the folder; end by SIGKILL at the step of this number, if it has so many."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def stepping(function: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments: Any, **options: Any) -> Any:
            step()
            result = function(*arguments, **options)
            step()
            return result

        return stepped

    Lake.create = stepping(Lake.create)  # type: ignore[method-assign]
    Lake.delete = stepping(Lake.delete)  # type: ignore[method-assign]
    objects.RecordBatches.build = stepping(objects.RecordBatches.build)  # type: ignore[method-assign]
    objects.OBJECT_ROWS, objects.BATCH_ROWS = 10, 5
    engine.CHECKPOINT_SECONDS = 0
    process.GRACE = 1.0
    script = folder / "connector.py"
    script.write_text(PRELUDE + CONNECTOR)
    engine.connector_command = lambda *_: [sys.executable, "-S", str(script)]
    lake = Lake((folder / "lake").as_uri())
    engine.sync("shop", CONNECTION, config={}, lake=lake, home=folder, timeout=30)


def forked(function: Callable[[], None]) -> int:
    """Run it in a process of its own: its exit code, or the number of a signal, negative."""
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def found(folder: Path) -> dict[str, Any]:
    """What is data in the lake, and what else lies there and in the home."""
    lake = Lake((folder / "lake").as_uri())
    commits = CommitLog(lake, "shop", "main").since(0)
    data: dict[str, list[int]] = {}
    named = set()
    for commit in commits:
        for name, part in commit.streams.items():
            keys = [item.key for item in part.objects]
            named |= set(keys)
            tables = [pq.read_table(pa.BufferReader(lake.read(key))) for key in keys]
            rows = [row for table in tables for row in table["id"].to_pylist()]
            data[name] = rows if name == "users" else data.get(name, []) + rows
    files = {str(p.relative_to(folder / "lake")) for p in (folder / "lake").rglob("*.*")}
    left = {key for key in files if "/_commits/" not in key} - named
    pid = folder / "connector.py.pid"
    return {
        "commits": len(commits),
        "complete": [commit.complete for commit in commits],
        "data": {name: sorted(rows) for name, rows in data.items()},
        "left": sorted(left),
        "secrets": [str(path) for path in folder.rglob("config.json")],
        "pid": int(pid.read_text()) if pid.exists() else None,
    }


def main(folder: Path) -> None:
    """One line a moment; the last is of a sync that was not killed."""
    # It imports pandas at its first array: once here, not in every fork.
    pa.array([0])
    moment, ended = 0, -9
    while ended == -9:
        moment += 1
        place = folder / str(moment)
        place.mkdir()
        ended = forked(lambda place=place, moment=moment: sync(place, moment))
        again = forked(lambda place=place: sync(place, 0))

        def tell(place: Path = place, ended: int = ended, again: int = again) -> None:
            line = {"ended": ended, "again": again, **found(place)}
            print(json.dumps(line), flush=True)

        forked(tell)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
