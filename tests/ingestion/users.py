"""A stream in the lake and in the warehouse, as tests fill and load it."""

from __future__ import annotations

from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq

from dagster_project.ingestion.declaration import Connection
from dagster_project.ingestion.records import RecordBatches
from dagster_project.ingestion.replay import RawTable
from dagster_project.ingestion.streams import load_stream, target_of
from dagster_project.lake.commits import Commit, CommitLog, LakeObject, StreamCommit
from dagster_project.lake.store import Lake
from dagster_project.warehouse.ledger import Load
from dagster_project.warehouse.replay import Replayed, replay

PROPERTIES = {"id": {"type": "integer"}, "at": {"type": "integer"}, "name": {"type": "string"}}


class Users:
    """The stream `users` of `shop/main`, in the lake and in the warehouse."""

    def __init__(self, lake: Lake, url: str, mode: str = "append_dedup") -> None:
        self.lake, self.url, self.mode = lake, url, mode
        self.properties: dict[str, Any] = PROPERTIES
        self.number = 0

    @property
    def connection(self) -> Connection:
        stream = {
            "name": "users",
            "description": "x",
            "sync_mode": "full_refresh",
            "destination_sync_mode": self.mode,
            "primary_key": ["id"],
            "cursor_field": "at",
            "json_schema": {"properties": self.properties},
        }
        connector = {"environment": "source-test", "version": "1"}
        return Connection.model_validate(
            {"name": "main", "source": "x", "connector": connector, "streams": [stream]}
        )

    def sync(self, *records: dict[str, Any]) -> None:
        """Commit these records, an object each."""
        self._commit([[record] for record in records])

    def sync_batch(self, *records: dict[str, Any]) -> None:
        """Commit these records, in one object."""
        self._commit([list(records)])

    def sync_same(self) -> None:
        """Commit what the last commit has, once more."""
        log = CommitLog(self.lake, "shop", "main")
        last = log.last()
        assert last
        self.number += 1
        log.append(last.model_copy(update={"number": self.number, "sync": str(self.number)}))

    def _commit(self, parts: list[list[dict[str, Any]]]) -> None:
        self.number += 1
        batches = RecordBatches({"properties": self.properties}, self.number)
        objects = []
        for position, records in enumerate(parts):
            batch = batches.build(records, [self.number * 1000] * len(records))
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_batches([batch]), sink)
            key = f"shop/main/users/{self.number}/{position}.parquet"
            self.lake.create(key, sink.getvalue().to_pybytes())
            objects.append(LakeObject(key=key, rows=len(records), size=1))
        stream = StreamCommit(
            objects=objects,
            rows=sum(item.rows for item in objects),
            sync_mode="full_refresh",
            destination_sync_mode=self.mode,
            generation=self.number,
            version=str(self.number),
        )
        commit = Commit(
            number=self.number,
            sync=str(self.number),
            connector="source-test 1",
            started_at="",
            ended_at="",
            streams={"users": stream},
            state={},
        )
        CommitLog(self.lake, "shop", "main").append(commit)

    def load(self) -> Load:
        connection = self.connection
        return load_stream(
            "shop",
            connection,
            connection.streams[0],
            lake=self.lake,
            warehouse_url=self.url,
            run_id="r",
        ).load

    def replay(self, reason: str = "") -> Replayed:
        connection = self.connection
        stream = connection.streams[0]
        raw = RawTable(target_of("shop", connection, stream), stream)
        return replay(self.url, raw.target, raw.rows(), run_id="replay", reason=reason)

    def ledger(self) -> tuple[str, int]:
        """The table's version, and how many rows the ledger says that it has."""
        ((version, rows),) = self.query("SELECT version, rows FROM mesh.tables")
        return version, rows

    def query(self, statement: str) -> list[Any]:
        with psycopg.connect(self.url) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def rows(self, columns: str = "id, at, name") -> list[Any]:
        return self.query(f"SELECT {columns} FROM shop_raw.users ORDER BY id, at")

    def rejects(self, columns: str) -> list[Any]:
        return self.query(f"SELECT {columns} FROM shop_raw.users__rejects ORDER BY record -> 'id'")


def user(key: int, at: int, name: str = "x", **more: Any) -> dict[str, Any]:
    return {"id": key, "at": at, "name": name, **more}
