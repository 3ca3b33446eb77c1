"""Ingestion through an S3 that fails now and then: the tables are those of a lake on disk."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import psycopg
import pytest

from dagster_project.failures import SourceError, TransientLakeError
from dagster_project.ingestion import engine, objects
from dagster_project.ingestion.declaration import Connection
from dagster_project.ingestion.feed import FeedDeclaration
from dagster_project.ingestion.landing import load_feed
from dagster_project.ingestion.streams import load_stream
from dagster_project.lake import s3, store
from dagster_project.lake.commits import CommitLog
from dagster_project.lake.store import Lake
from tests.lake.s3 import Fault, S3Server

#: A connector that sends 60 rows of each stream, the half of them anew in each turn.
CONNECTOR = """\
import json, sys

def say(kind, **body):
    print(json.dumps({"type": kind, kind.lower(): body}), flush=True)

turn, fails = int(sys.argv[1]), sys.argv[2] == "fails"
for stream in ("users", "events", "visits"):
    for number in range(turn * 30, turn * 30 + 60):
        data = {"id": number, "at": turn, "name": f"{stream} {number} in {turn}"}
        say("RECORD", stream=stream, data=data, emitted_at=1000 * turn)
    if fails:
        sys.exit("the source is gone")
    name = {"name": stream}
    say("STATE", type="STREAM", stream={"stream_descriptor": name, "stream_state": {"at": turn}})
    status = {"stream_descriptor": name, "status": "COMPLETE"}
    say("TRACE", type="STREAM_STATUS", emitted_at=1, stream_status=status)
"""


def stream(name: str, sync_mode: str, destination_sync_mode: str) -> dict[str, Any]:
    return {
        "name": name,
        "description": "x",
        "sync_mode": sync_mode,
        "destination_sync_mode": destination_sync_mode,
        "primary_key": ["id"],
        "cursor_field": "at",
        "json_schema": {
            "properties": {
                "id": {"type": "integer"},
                "at": {"type": "integer"},
                "name": {"type": "string"},
            }
        },
    }


CONNECTION = Connection.model_validate(
    {
        "name": "main",
        "source": "a test",
        "connector": {"environment": "source-test", "version": "1.0"},
        "streams": [
            stream("users", "full_refresh", "overwrite"),
            stream("events", "incremental", "append_dedup"),
            stream("visits", "incremental", "append"),
        ],
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
        "columns": {"id": {"type": "bigint", "description": "Number of the trip."}},
    }
)
DAYS = ["2026-01-01", "2026-01-02"]

Sync = Callable[..., Any]
Rows = dict[str, list[Any]]


@pytest.fixture
def sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sync:
    """Syncs the connection of a domain; four objects a stream."""
    monkeypatch.setattr(objects, "OBJECT_ROWS", 15)
    monkeypatch.setattr(objects, "BATCH_ROWS", 15)
    script = tmp_path / "connector.py"
    script.write_text(CONNECTOR)

    def sync(domain: str, lake: Lake, turn: int, how: str = "") -> Any:
        command = [sys.executable, "-S", str(script), str(turn), how]
        monkeypatch.setattr(engine, "connector_command", lambda *_: command)
        return engine.sync(domain, CONNECTION, config={}, lake=lake, home=tmp_path, timeout=60)

    return sync


def load(domain: str, lake: Lake, url: str) -> None:
    for declared in CONNECTION.streams:
        load_stream(domain, CONNECTION, declared, lake=lake, warehouse_url=url, run_id="r")


def drop(domain: str, lake: Lake, day: str, *ids: int) -> None:
    content = "\n".join(["id", *map(str, ids)]) + "\n"
    obstore.put(lake.store, f"landing/{domain}/trips/trips_{day}.csv", content.encode())


def ingest(domain: str, lake: Lake, url: str, sync: Sync) -> Rows:
    """What the tables hold after syncs, one of which fails, and files, one of them corrected."""

    def feed() -> None:
        load_feed(domain, FEED, DAYS, lake=lake, warehouse_url=url, run_id="r")

    sync(domain, lake, 1)
    load(domain, lake, url)
    for number, day in enumerate(DAYS):
        drop(domain, lake, day, number, number + 10)
    feed()
    with pytest.raises(SourceError, match="the source is gone"):
        sync(domain, lake, 2, "fails")
    sync(domain, lake, 2)
    drop(domain, lake, DAYS[1], 77)
    feed()
    load(domain, lake, url)
    load(domain, lake, url)
    assert CommitLog(lake, domain, "main").numbers() == [1, 2]
    assert len(list(lake.list(f"{domain}/main/users"))) >= 8
    return tables(domain, url) | tables(domain, url, {"trips": "trip_date::text, id"})


STREAMS = {stream.name: "id, at, name, _airbyte_generation_id" for stream in CONNECTION.streams}


def tables(domain: str, url: str, columns: dict[str, str] = STREAMS) -> Rows:
    """The rows of these raw tables of the domain, without what differs from load to load."""
    with psycopg.connect(url) as connection:
        return {
            table: connection.execute(
                f"SELECT {names} FROM {domain}_raw.{table} ORDER BY 1, 2"
            ).fetchall()
            for table, names in columns.items()
        }


@pytest.mark.usefixtures("in_haste")
def test_the_tables_are_those_of_a_lake_on_disk(
    lake: Lake, s3_server: S3Server, s3_lake: Lake, warehouse_url: str, sync: Sync
) -> None:
    expected = ingest("disk", lake, warehouse_url, sync)
    assert [len(rows) for rows in expected.values()] == [60, 90, 120, 3]
    assert ingest("quiet", s3_lake, warehouse_url, sync) == expected
    for seed in (1, 2):
        s3_server.storm(seed, share=0.25)
        assert ingest(f"storm{seed}", s3_lake, warehouse_url, sync) == expected
        assert len(set(s3_server.faults)) > 4


def test_a_lake_that_stays_away_stops_the_sync_and_nothing_of_it_is_used(
    s3_server: S3Server,
    s3_lake: Lake,
    warehouse_url: str,
    sync: Sync,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(s3, "retry_config", lambda: {"max_retries": 0})
    monkeypatch.setattr(store, "PATIENCE", 0.3)
    sync("shop", s3_lake, 1)
    load("shop", s3_lake, warehouse_url)
    before = tables("shop", warehouse_url)
    # All that it writes after the first two objects.
    s3_server.fail(None, None, *[Fault.UNAVAILABLE] * 1000, on="PUT")
    with pytest.raises(TransientLakeError, match="could not be written"):
        sync("shop", s3_lake, 2)
    s3_server.fail()
    load("shop", s3_lake, warehouse_url)
    assert tables("shop", warehouse_url) == before
    sync("shop", s3_lake, 2)
    assert CommitLog(s3_lake, "shop", "main").numbers() == [1, 2]
    load("shop", s3_lake, warehouse_url)
    after = tables("shop", warehouse_url)
    assert [len(rows) for rows in after.values()] == [60, 90, 120]
