"""Runs of ingestion that are killed at a chosen moment, each in a process of its own.

A lane is a process that has imported everything and opened nothing; it forks a child for each run.
In the child, whatever can be seen after its death is made to pass through `Moments`: what it does
to the lake, to the warehouse and to its home, the start and the end of its connector, and each line
that is heard of it. The product knows nothing of this.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import adbc_driver_manager
import adbc_driver_postgresql
import obstore
import obstore.store
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from dagster_project.ingestion import engine, landing, objects, process, streams
from dagster_project.ingestion.declaration import Connection
from dagster_project.ingestion.feed import FeedDeclaration
from dagster_project.lake.store import Lake
from dagster_project.warehouse import loader
from dagster_project.warehouse.arrow import ArrowSession

#: What a run needs, imported before the first fork.
IMPORTED = (adbc_driver_manager, adbc_driver_postgresql, pd, pyarrow.compute, pyarrow.parquet)
#: Seconds that a connector gets between SIGTERM and SIGKILL.
GRACE = 0.5
#: Rows of a batch and of an object, so that few rows are several objects.
ROWS = 4


# The source, its streams and its files

#: Speaks the Airbyte protocol. What it has to send depends on the turn alone, what it sends also on
#: the state that it is given: a position in a stream's log of changes. As a low-code connector, it
#: gives the last change of `orders` once more.
CONNECTOR = """\
import json, os, signal, sys, time

plan = json.loads(sys.argv[1])
inputs = dict(zip(sys.argv[3::2], sys.argv[4::2]))
states = json.load(open(inputs["--state"])) if "--state" in inputs else []
reached = {s["stream"]["stream_descriptor"]["name"]: s["stream"]["stream_state"] for s in states}
catalog = json.load(open(inputs["--catalog"]))
turn, said = plan["turn"], 0
open(plan["starts"], "a").write(".")
if plan["deaf"]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

def say(kind, **body):
    global said
    print(json.dumps({"type": kind, kind.lower(): body}, separators=(",", ":")), flush=True)
    said += 1
    if said == plan["stops_after"]:
        if plan["stops"] == "hangs":
            time.sleep(600)
        os.kill(os.getpid() if plan["stops"] == "dies" else os.getppid(), signal.SIGKILL)
    time.sleep(plan["pause"])

def rows(pairs):
    return [dict(zip(("id", "at", "note"), row)) for row in pairs]

users = rows([(n, turn, f"user {n} in {turn}") for n in range(3 * turn, 3 * turn + 7)])
users[2]["at"] = "no number"
visits = rows([(n, turn, f"visit {n} in {turn}") for n in range(5)])
visits[1]["at"] = "no number"
events = rows([(n, n, f"event {n}") for n in range(7 * turn)])
for n in range(2, len(events), 7):
    events[n]["at"] = "no number"
orders = rows([(n, 10 * n, "first") for n in range(8)])
if turn > 1:
    orders += rows([
        (2, 25, "newer"), (3, 5, "older"), (8, 80, "new"), (8, 81, "new, changed"),
        (5, "no number", "bad"), (4, 40, "as new, and later"), (9, 90, "new"), (9, 90, "new"),
        (None, 95, "no key"), (10, 100, "new"), (2, 24, "older than the newer"), (1, 12, "newer"),
    ])

time.sleep(plan["begins_after"])
logs = {"users": users, "visits": visits, "events": events, "orders": orders}
for stream in [entry["stream"]["name"] for entry in catalog["streams"]]:
    name, log = {"name": stream}, logs[stream]
    first = reached.get(stream, {}).get("position", -1) + (stream != "orders")
    count, last = 0, len(log) - 1
    for position in range(max(first, 0), len(log)):
        emitted = int(time.time() * 1000)
        say("RECORD", stream=stream, data=log[position], emitted_at=emitted)
        count += 1
        if position % 4 == 3 and position != last:
            at = {"stream_descriptor": name, "stream_state": {"position": position}}
            say("STATE", type="STREAM", stream=at, sourceStats={"recordCount": count})
            count = 0
    at = {"stream_descriptor": name, "stream_state": {"position": last}}
    say("STATE", type="STREAM", stream=at, sourceStats={"recordCount": count})
    status = {"stream_descriptor": name, "status": "COMPLETE"}
    say("TRACE", type="STREAM_STATUS", emitted_at=1, stream_status=status)
"""


def _stream(name: str, sync_mode: str, destination_sync_mode: str) -> dict[str, Any]:
    columns = {"id": "integer", "at": "integer", "note": "string"}
    return {
        "name": name,
        "description": "x",
        "sync_mode": sync_mode,
        "destination_sync_mode": destination_sync_mode,
        "primary_key": ["id"],
        "cursor_field": "at",
        "json_schema": {"properties": {name: {"type": kind} for name, kind in columns.items()}},
    }


def _connection(checkpoints: bool) -> Connection:
    """A stream in each of the sync modes, or only those that know how far they came."""
    streams = [
        _stream("users", "full_refresh", "overwrite"),
        _stream("visits", "full_refresh", "append"),
        _stream("events", "incremental", "append"),
        _stream("orders", "incremental", "append_dedup"),
    ]
    return Connection.model_validate(
        {
            "name": "main",
            "source": "a test",
            "connector": {
                "environment": "source-test",
                "version": "1.0",
                "checkpoints": checkpoints,
            },
            "streams": streams[2:] if checkpoints else streams,
        }
    )


FEED = FeedDeclaration.model_validate(
    {
        "name": "trips",
        "source": "the tills",
        "description": "A trip.",
        "pattern": r"trips_(?P<day>\d{4}-\d{2}-\d{2})\.csv",
        "partition_column": "trip_date",
        "first_day": "2026-01-01",
        "last_day": "2026-01-31",
        "primary_key": ["id"],
        "columns": {
            "id": {"type": "bigint", "description": "Number of the trip."},
            "at": {"type": "bigint", "description": "When, in minutes."},
        },
    }
)
#: The files of each day that have landed by the first turn and by the second, which corrects one
#: and adds one. Each has a row that is rejected, and one that comes twice.
DAYS = {
    "2026-01-01": {1: "id,at\n1,1\n2,x\n3,3\n3,4\n"},
    "2026-01-02": {1: "id,at\n1,1\n2,2\n3,x\n1,2\n", 2: "id,at\n2,20\n4,x\n5,50\n5,51\n"},
    "2026-01-03": {2: "id,at\n7,7\n8,8\n9,x\n7,8\n"},
}


def days_by(turn: int) -> list[str]:
    """The days of which a file has landed."""
    return [day for day, files in DAYS.items() if min(files) <= turn]


# One run, and what becomes of it


@dataclass(frozen=True, slots=True)
class Job:
    """A run that a lane is to make."""

    #: "sync", "checkpoints" (a sync whose states in the middle are committed), "feed", or "run":
    #: a sync of what is appended and its load, as a run of Dagster.
    kind: str
    domain: str
    #: Holds the home, and what the connector notes.
    folder: str
    lake: str
    warehouse: str
    turn: int
    #: Whether the tables are loaded after the sync; whether a "run" begins with the sync.
    loads: bool = True
    syncs: bool = True
    #: The moment at which it is killed, by number; the name that it must have then, if any.
    moment: int | None = None
    named: str = ""
    #: Seconds after which it is killed, with nothing in its way.
    killed_after: float | None = None
    #: Where the names of its moments are written.
    trace: str = ""
    #: After how many lines the connector "dies", "hangs" or "loses its minder".
    stops: str = "dies"
    stops_after: int = 0
    #: Whether the connector is deaf to SIGTERM.
    deaf: bool = False
    #: Seconds before the connector's first line, and after each.
    begins_after: float = 0.0
    pause: float = 0.0
    environment: dict[str, str] = field(default_factory=dict)

    def but(self, **changes: Any) -> Job:
        return replace(self, **changes)

    @property
    def home(self) -> Path:
        return Path(self.folder) / "home"

    @property
    def synced(self) -> Path:
        """Is there when the sync has returned: a step that ended is not done again."""
        return Path(self.folder) / "synced"

    @property
    def starts(self) -> Path:
        """Has a character for each time that the connector was started."""
        return Path(self.folder) / "starts"

    @property
    def script(self) -> Path:
        return Path(self.folder) / "connector.py"

    @property
    def connection(self) -> Connection:
        connection = _connection(checkpoints=self.kind == "checkpoints")
        if self.kind != "run":
            return connection
        return connection.model_copy(update={"streams": [connection.stream("visits")]})


def do(job: Job) -> None:
    """Make the run, as its caller would: a sync and then the loads, or the load of a feed."""
    lake = Lake(job.lake)
    if job.kind == "feed":
        landing.load_feed(
            job.domain, FEED, days_by(job.turn), lake=lake, warehouse_url=job.warehouse, run_id="r"
        )
        return
    if job.kind == "run":
        _dagster().make(job)
        return
    if not job.synced.exists():
        engine.sync(
            *(job.domain, job.connection),
            config={},
            lake=lake,
            home=job.home,
            timeout=60,
            run_id=f"turn {job.turn}",
            # If it had heard of this turn's, it would not be here.
            heard=lambda commit: commit.run != f"turn {job.turn}",
            say=_say,
        )
        job.synced.touch()
    for stream in job.connection.streams if job.loads else ():
        streams.load_stream(
            *(job.domain, job.connection, stream),
            lake=lake,
            warehouse_url=job.warehouse,
            run_id="r",
            say=_say,
        )


def _dagster() -> ModuleType:
    """What makes a run of Dagster, which takes seconds to import."""
    return importlib.import_module("tests.ingestion.runs")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Database(adbc_driver_manager.AdbcDatabase):
    """What the driver learnt of a server's types; it holds no connection."""

    def __exit__(self, *_: object) -> None:
        pass


@cache
def _database(url: str) -> _Database:
    """Once a lane, as it costs more than a whole load here."""
    return _Database(driver=adbc_driver_postgresql._driver_path(), uri=url)


def _set_up(job: Job) -> None:
    """Small objects, checkpoints at every state, the scripted connector."""
    os.environ.update(job.environment)
    known = ("turn", "stops", "stops_after", "deaf", "begins_after", "pause")
    plan = {name: getattr(job, name) for name in known} | {"starts": str(job.starts)}
    command = [sys.executable, "-S", str(job.script), json.dumps(plan)]
    for module, name, value in (
        (adbc_driver_postgresql, "connect", lambda url: _database(job.warehouse)),
        (engine, "connector_command", lambda *_: command),
        (engine, "CHECKPOINT_SECONDS", 0.0),
        (objects, "OBJECT_ROWS", ROWS),
        (objects, "BATCH_ROWS", ROWS),
        (process, "GRACE", GRACE),
        (process, "PAUSE", 0.001),
        (loader, "PAUSES", (0.2,) * 10),
    ):
        assert hasattr(module, name)
        setattr(module, name, value)


class Moments:
    """Counts the moments of a run, and ends it at one of them."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._trace = Path(job.trace).open("w") if job.trace else None  # noqa: SIM115 - to the end
        self._count = 0

    def come(self, what: str) -> bool:
        """A moment has come, and this process ends if it is its last."""
        if self.is_last(what):
            _die()
        return False

    def is_last(self, what: str) -> bool:
        """A moment has come; whether it is the last one."""
        name = what.replace(self._job.domain, "D")
        if self._trace:
            print(name, file=self._trace, flush=True)
        self._count += 1
        if self._count - 1 != self._job.moment:
            return False
        if self._job.named not in ("", name):
            _say(f"moment {self._job.moment} is {name}, and was {self._job.named}")
            os._exit(DIVERGED)
        return True

    def watch(self) -> None:
        """Have all that can be seen from without pass through here."""
        self._watch_lake()
        self._watch_warehouse()
        self._watch_connector()
        self._watch_home()
        if self._job.kind == "run":
            self._watch(*_dagster().EVENTS)

    def _watch_lake(self) -> None:
        """What is written and deleted there; what is only looked at leaves no trace."""
        put, delete = obstore.put, obstore.delete

        def watched_put(store: Any, path: str, content: bytes, **options: Any) -> Any:
            kind = _kind(path)
            self.come(f"write {kind}")
            if self._job.lake.startswith("file:") and self.is_last(f"write half of {kind}"):
                # As the store does it: under another name, which becomes the object's at the end.
                there = Path(self._job.lake.removeprefix("file://")) / f"{path}#1"
                there.parent.mkdir(parents=True, exist_ok=True)
                there.write_bytes(content[: len(content) // 2])
                _die()
            return put(store, path, content, **options)

        def watched_delete(store: Any, paths: Any) -> Any:
            first = paths if isinstance(paths, str) else next(iter(paths), "")
            self.come(f"delete {_kind(first)}")
            return delete(store, paths)

        setattr(obstore, "put", watched_put)  # noqa: B010 - mypy allows no assignment
        setattr(obstore, "delete", watched_delete)  # noqa: B010

    def _watch_warehouse(self) -> None:
        def statement(session: ArrowSession, sql: str, *_: Any) -> str:
            return " ".join(sql.split())[:60]

        self._watch(loader, "connect_arrow", lambda *_: "connect to the warehouse")
        for name in ("run", "change"):
            self._watch(ArrowSession, name, statement, within=True)
        self._watch(ArrowSession, "commit", lambda _: "COMMIT", within=True)
        ingest = ArrowSession.ingest

        def watched_ingest(session: ArrowSession, name: str, batches: Any) -> None:
            def each() -> Iterator[pa.RecordBatch]:
                for batch in batches:
                    self.come(f"COPY a batch to {name}")
                    yield batch
                self.come(f"COPY the end to {name}")

            ingest(session, name, pa.RecordBatchReader.from_batches(batches.schema, each()))

        setattr(ArrowSession, "ingest", watched_ingest)  # noqa: B010

    def _watch_connector(self) -> None:
        output = process.ConnectorProcess.output

        def watched_output(connector: process.ConnectorProcess) -> Iterator[bytes]:
            """One line at a time, however they came."""
            rest = b""
            for chunk in output(connector):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    found = re.search(rb'"(?:stream|name)":"(\w+)"', line)
                    kind = json.loads(line)["type"]
                    self.come(f"hear {kind} of {found[1].decode() if found else '-'}")
                    yield line + b"\n"
            self.come("hear the end")

        setattr(process.ConnectorProcess, "output", watched_output)  # noqa: B010

    def _watch_home(self) -> None:
        """What Python itself does to files, and to other processes."""
        home = str(self._job.home)
        written = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        changes = {"os.mkdir", "os.rmdir", "os.remove", "os.link", "os.rename", "shutil.rmtree"}

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event in ("subprocess.Popen", "os.killpg"):
                self.come("start the connector" if "Popen" in event else "signal the connector")
            elif event == "fcntl.flock":
                self.come("lock")
            elif event in changes or (event == "open" and arguments[2] & written):
                path = os.fspath(arguments[0]) if not isinstance(arguments[0], int) else ""
                if str(path).startswith(home):
                    self.come(f"{event} {re.sub('-[0-9a-f]{8}', '-X', Path(path).name)}")

        sys.addaudithook(hook)

    def _watch(
        self, owner: Any, name: str, named: Callable[..., str], within: bool = False
    ) -> None:
        """A call of this function is a moment; another one is a little `within` it."""
        call = getattr(owner, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            what = named(*arguments, **options)
            self.come(what)
            if within and self.is_last(f"within {what}"):
                threading.Timer(0.0005, _die).start()
                call(*arguments, **options)
                time.sleep(60)
            return call(*arguments, **options)

        setattr(owner, name, watched)


def _kind(path: str) -> str:
    """What an object of the lake is, whatever its name."""
    if "/_commits" in path:
        return "a commit"
    if "/_syncs" in path:
        return "a marker"
    return f"an object of {path.split('/')[2]}" if path.count("/") > 1 else path


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL was survived")


#: Exit codes of a run that failed, and of one whose moments are not those of the run before.
FAILED, DIVERGED = 1, 3


def _child(job: Job) -> None:
    """Make the run of a forked process, with what it says in a file."""
    log = os.open(Path(job.folder) / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = FAILED
    try:
        _set_up(job)
        if job.killed_after is None:
            moments = Moments(job)
            moments.watch()
            do(job)
            moments.come("the end")
        else:
            do(job)
        code = 0
    except Exception as error:  # noqa: BLE001 - who waits for it reads the log
        _say(f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)


def serve() -> None:
    """A lane: one job a line on standard input; one exit status a line on standard output."""
    for line in sys.stdin:
        job = Job(**json.loads(line))
        _database(job.warehouse)
        if job.kind == "run":
            _dagster()
        child = os.fork()
        if not child:
            _child(job)
        if job.killed_after is not None:
            # Its parent kills it: until it is waited for, its id is nobody else's.
            time.sleep(job.killed_after)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


class Lane:
    """A process that makes runs, one after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.ingestion.crashes"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, job: Job) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        self._process.stdin.flush()

    def wait(self) -> int:
        """The exit code of the run; the signal's number, negative, if one ended it."""
        assert self._process.stdout
        return int(self._process.stdout.readline())

    def run(self, job: Job) -> int:
        self.start(job)
        return self.wait()

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()


if __name__ == "__main__":
    serve()
