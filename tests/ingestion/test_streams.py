"""From a stream's commits in the lake to its raw table."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dagster_project.failures import LakeError
from dagster_project.ingestion.declaration import Connection
from dagster_project.ingestion.records import RecordBatches
from dagster_project.ingestion.streams import load_stream
from dagster_project.lake.commits import Commit, CommitLog, LakeObject, StreamCommit
from dagster_project.lake.store import Lake
from dagster_project.warehouse.ledger import Load

ON_S3_TOO = True

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
        self.number += 1
        batches = RecordBatches({"properties": self.properties}, self.number)
        objects = []
        for position, record in enumerate(records):
            batch = batches.build([record], [self.number * 1000])
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_batches([batch]), sink)
            key = f"shop/main/users/{self.number}/{position}.parquet"
            self.lake.create(key, sink.getvalue().to_pybytes())
            objects.append(LakeObject(key=key, rows=1, size=1))
        stream = StreamCommit(
            objects=objects,
            rows=len(objects),
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

    def query(self, statement: str) -> list[Any]:
        with psycopg.connect(self.url) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def rows(self, columns: str = "id, at, name") -> list[Any]:
        return self.query(f"SELECT {columns} FROM shop_raw.users ORDER BY id, at")


def user(key: int, at: int, name: str = "x", **more: Any) -> dict[str, Any]:
    return {"id": key, "at": at, "name": name, **more}


@pytest.fixture
def users(lake: Lake, warehouse_url: str) -> Callable[..., Users]:
    return lambda mode="append_dedup": Users(lake, warehouse_url, mode)


def test_each_commit_is_loaded_once(users: Callable[..., Users]) -> None:
    it = users("append")
    it.sync(user(1, 1))
    it.sync(user(2, 1), user(3, 1))
    first = it.load()
    again = it.load()
    it.sync(user(1, 2))
    third = it.load()
    assert [(load.received, load.objects) for load in (first, again, third)] == [
        (3, 3),
        (0, 0),
        (1, 1),
    ]
    assert it.rows("id, at") == [(1, 1), (1, 2), (2, 1), (3, 1)]


def test_a_dropped_table_is_loaded_anew_from_all_commits(users: Callable[..., Users]) -> None:
    it = users()
    for position in (1, 2, 3):
        it.sync(user(1, position, f"n{position}"), user(position + 10, 1))
        it.load()
    before = it.rows()
    it.query("DROP TABLE shop_raw.users")
    assert it.load().received == 6
    assert it.rows() == before == [(1, 3, "n3"), (11, 1, "x"), (12, 1, "x"), (13, 1, "x")]


def test_a_lake_that_is_not_the_one_it_was_is_refused(users: Callable[..., Users]) -> None:
    it = users()
    it.sync(user(1, 1))
    it.sync(user(2, 1))
    it.load()
    second = "shop/main/_commits/000000000002.json"
    content = it.lake.read(second)
    # As an earlier backup has it, and as a sync that follows then makes it.
    it.lake.delete([second])
    with pytest.raises(LakeError, match=r"shop_raw\.users was loaded up to commit 2 .* has none"):
        it.load()
    it.lake.create(second, content.replace(b'"sync": "2"', b'"sync": "another"'))
    with pytest.raises(LakeError, match=r"has another one.*the older one"):
        it.load()
    assert it.rows("id") == [(1,), (2,)]
    it.query("DROP TABLE shop_raw.users")
    assert it.load().rows == 2


def test_a_checkpoint_of_another_stream_leaves_an_overwritten_table_alone(
    users: Callable[..., Users],
) -> None:
    it = users("overwrite")
    it.sync(user(1, 1), user(2, 1))
    it.load()
    log = CommitLog(it.lake, "shop", "main")
    last = log.last()
    assert last
    other = last.model_copy(update={"number": 2, "sync": "2", "streams": {}, "complete": False})
    log.append(other)
    done = it.load()
    assert (done.removed, done.rows) == (0, 2)
    assert it.rows("id") == [(1,), (2,)]


def test_of_a_stream_whose_mode_was_changed_only_the_last_mode_counts(
    users: Callable[..., Users],
) -> None:
    it = users("overwrite")
    it.sync(user(1, 1), user(2, 1))
    it.sync(user(1, 1), user(2, 1), user(3, 1))
    it.load()
    it.mode = "append"
    it.sync(user(1, 1), user(2, 1), user(3, 1), user(4, 1))
    it.sync(user(5, 1))
    it.load()
    assert it.rows("id") == [(1,), (2,), (3,), (4,), (5,)]
    it.query("DROP TABLE shop_raw.users")
    it.load()
    assert it.rows("id") == [(1,), (2,), (3,), (4,), (5,)]


def test_of_full_refreshes_the_last_is_the_table(users: Callable[..., Users]) -> None:
    it = users("overwrite")
    it.sync(user(1, 1), user(2, 1))
    it.sync(user(3, 1))
    done = it.load()
    assert (done.received, done.rows) == (1, 1)
    it.sync()
    assert it.load().removed == 1
    assert it.rows() == []


def test_the_four_airbyte_columns_come_first(users: Callable[..., Users]) -> None:
    it = users()
    it.sync(user(1, 1))
    it.load()
    columns = it.query(
        "SELECT attname, atttypid::regtype::text FROM pg_attribute WHERE attnum > 0 "
        "AND attrelid = 'shop_raw.users'::regclass ORDER BY attnum"
    )
    assert columns == [
        ("_airbyte_raw_id", "text"),
        ("_airbyte_extracted_at", "timestamp with time zone"),
        ("_airbyte_meta", "jsonb"),
        ("_airbyte_generation_id", "bigint"),
        ("id", "bigint"),
        ("at", "bigint"),
        ("name", "text"),
    ]
    assert it.rows("extract(epoch FROM _airbyte_extracted_at)::int, _airbyte_meta") == [
        (1, {"changes": []})
    ]


def test_objects_from_before_a_column_was_declared_have_null_there(
    users: Callable[..., Users],
) -> None:
    it = users()
    it.sync(user(1, 1))
    it.load()
    it.sync(user(2, 1))
    it.properties = PROPERTIES | {"address": {"type": "object"}}
    it.sync(user(3, 1, address={"city": {"name": "Köln"}}))
    done = it.load()
    assert done.new_columns == ("address",)
    assert it.rows("id, address") == [(1, None), (2, None), (3, {"city": {"name": "Köln"}})]


def test_objects_that_cannot_be_of_a_columns_new_type_are_named(
    users: Callable[..., Users],
) -> None:
    it = users()
    it.sync(user(1, 1, "Ada"))
    it.properties = PROPERTIES | {"name": {"type": "integer"}}
    with pytest.raises(LakeError) as caught:
        it.load()
    message = str(caught.value)
    assert "shop/main/users/1/0.parquet holds name as string, which is now declared" in message
    assert it.query("SELECT to_regclass('shop_raw.users')") == [(None,)]


def test_an_object_that_is_gone_is_named(users: Callable[..., Users], lake: Lake) -> None:
    import obstore

    it = users()
    it.sync(user(1, 1), user(2, 1))
    obstore.delete(lake.store, "shop/main/users/1/1.parquet")
    with pytest.raises(LakeError, match=r"users/1/1\.parquet could not be read"):
        it.load()


APART = """
import sys
from dagster_project.ingestion.streams import Lake
from tests.ingestion.test_streams import Users
done = Users(Lake(sys.argv[1]), sys.argv[2], "append").load()
import pyarrow
print(done.new, done.rejected, pyarrow.default_memory_pool().backend_name, "pandas" in sys.modules)
"""


def test_a_load_takes_little_memory(
    users: Callable[..., Users],
) -> None:
    """Without pandas, and from the allocator that keeps least; seen in a process of its own."""
    it = users("append")
    it.sync(user(1, 1), user(2, 1, "a\0b"), {"id": 3, "at": "soon"})
    unset = {name: os.environ[name] for name in os.environ if name != "ARROW_DEFAULT_MEMORY_POOL"}
    done = subprocess.run(
        [sys.executable, "-c", APART, it.lake.url, it.url],
        env=unset,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["1", "2", "system", "False"], done.stdout + done.stderr
