"""Real connectors that are killed in the middle of a stream, and where the next sync begins."""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import orjson
import psutil
import psycopg
import pytest

from dagster_project.failures import SourceError
from dagster_project.ingestion import engine, process
from dagster_project.ingestion.declaration import Connection, read_connections
from dagster_project.ingestion.environments import install_all
from dagster_project.ingestion.streams import load_stream
from dagster_project.lake.commits import CommitLog
from dagster_project.lake.store import Lake
from dagster_project.reference.server import running
from dagster_project.warehouse.ledger import Load
from tests.reference.gate import gate

Query = dict[str, str]
#: To where readings are asked for: four months, each a slice that ends with a state.
UNTIL = "2013-04-30T23:59:59Z"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the connectors and the reference data."""
    home = tmp_path_factory.mktemp("resume")
    needed = ["reference-data", "source-declarative-manifest", "source-faker"]
    install_all(home, needed, lambda _: None)
    return home


def query_of(path: str) -> Query:
    return {name: last for name, (*_, last) in parse_qs(urlsplit(path).query).items()}


def readings(source: str) -> list[dict[str, Any]]:
    """All that the weather service has until then, in order."""
    found: list[dict[str, Any]] = []
    after: Query = {}
    while True:
        query = urlencode({"limit": 5000, "until": UNTIL} | after)
        with urllib.request.urlopen(f"{source}/weather/readings?{query}", timeout=10) as answer:
            page = orjson.loads(answer.read())
        found += page["readings"]
        if not page["next"]:
            return found
        after = {"after": page["next"]}


def kill_connectors() -> None:
    """Kill what this process has started, but for the minders, which end by themselves."""
    for child in psutil.Process().children(recursive=True):
        command = child.cmdline()
        if "read" in command and not any(part.endswith("minder.py") for part in command):
            os.kill(child.pid, signal.SIGKILL)


def load(domain: str, connection: Connection, lake: Lake, url: str) -> Load:
    (stream,) = connection.streams
    return load_stream(domain, connection, stream, lake=lake, warehouse_url=url, run_id="r").load


def rows(url: str, table: str, columns: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(f"SELECT {columns} FROM {table} ORDER BY 1, 2").fetchall()


# On an S3 that fails now and then; on disk, test_checkpoints does it with a scripted connector.
@pytest.mark.parametrize("lake", ["s3"], indirect=True)
def test_a_low_code_stream_goes_on_from_its_last_committed_state(
    home: Path, lake: Lake, warehouse_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", 0.0)
    (connection,) = read_connections("weather")
    log = CommitLog(lake, "weather", connection.name)

    def kill_in_march(path: str) -> None:
        if query_of(path)["since"].startswith("2013-03-01"):
            deadline = time.monotonic() + 20
            while not log.numbers() and time.monotonic() < deadline:
                time.sleep(0.02)
            kill_connectors()

    def sync(url: str) -> Any:
        config = {"base_url": url, "end_date": UNTIL}
        return engine.sync("weather", connection, config=config, lake=lake, home=home, timeout=120)

    with running(home) as source:
        with (
            gate(source, kill_in_march) as url,
            pytest.raises(SourceError, match="SIGKILL") as caught,
        ):
            sync(url)
        wanted = readings(source)
        commits = log.since(0)
        assert commits
        assert not any(commit.complete for commit in commits)
        used = sum(commit.rows for commit in commits)
        assert f"its first {used:,} rows" in str(caught.value)
        cursor = commits[-1].state["weather"]["stream"]["stream_state"]["time_hour"]
        assert cursor in ("2013-01-31T23:00:00Z", "2013-02-28T23:00:00Z")

        asked: list[Query] = []
        with gate(source, lambda path: asked.append(query_of(path))) as url:
            synced = sync(url)
    assert min(query["since"] for query in asked) == asked[0]["since"] == cursor
    assert log.since(0)[-1].complete
    # The last hour's readings came once more, those of the three airports.
    assert synced.rows == len(wanted) - used + 3
    done = load("weather", connection, lake, warehouse_url)
    assert (done.new, done.duplicates, done.rejected) == (len(wanted), 3, 0)
    names = ("origin", "year", "month", "day", "hour", "temp", "wind_gust", "precip", "visib")
    hour = "to_char(time_hour AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')"
    there = rows(warehouse_url, "weather_raw.weather", f"{hour}, {', '.join(names)}")
    assert [tuple(map(_number, row)) for row in there] == [
        tuple(_number(reading.get(name)) for name in ("time_hour", *names))
        for reading in sorted(wanted, key=lambda each: (each["time_hour"], each["origin"]))
    ]


def _number(value: Any) -> Any:
    """The value, as a float if it is a number."""
    return value if value is None or isinstance(value, str) else float(value)


def test_faker_begins_its_stream_anew(
    home: Path, lake: Lake, warehouse_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state in the middle of a stream must not be committed: users would be lost."""
    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", 0.0)
    (shop,) = read_connections("commerce")
    connection = shop.model_copy(update={"streams": [shop.stream("users")]})
    config = {
        "count": 60,
        "seed": 1,
        "records_per_slice": 10,
        "always_updated": False,
        "parallelism": 1,
    }
    log = CommitLog(lake, "commerce", connection.name)
    output = process.ConnectorProcess.output
    heard: list[bytes] = []

    def sync() -> Any:
        return engine.sync("commerce", connection, config=config, lake=lake, home=home, timeout=120)

    def until_the_second_state(connector: process.ConnectorProcess) -> Iterator[bytes]:
        rest = b""
        for chunk in output(connector):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                heard.append(line)
                yield line + b"\n"
                if sum(b'"type":"STATE"' in each for each in heard) == 2:
                    kill_connectors()
                    return

    with monkeypatch.context() as killing:
        killing.setattr(process.ConnectorProcess, "output", until_the_second_state)
        with pytest.raises(SourceError, match="nothing of it is used"):
            sync()
    came = sum(b'"type":"RECORD"' in line for line in heard)
    assert 0 < came < 60, "it was killed in the middle"
    assert log.numbers() == []
    assert list(lake.list("commerce")) == []
    assert sync().rows == 60
    done = load("commerce", connection, lake, warehouse_url)
    assert (done.new, done.duplicates) == (60, 0)
    ids = rows(warehouse_url, "commerce_raw.users", "id, name")
    assert [number for number, _ in ids] == list(range(1, 61))
