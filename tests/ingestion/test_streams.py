"""From a stream's commits in the lake to its raw table."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from dagster_project.failures import LakeError
from dagster_project.lake.commits import CommitLog
from dagster_project.lake.store import Lake
from tests.ingestion.users import PROPERTIES, Users, user

ON_S3_TOO = True


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


@pytest.mark.usefixtures("on_disk")
def test_values_that_are_not_of_a_columns_new_type_are_rejected_with_their_rows(
    users: Callable[..., Users],
) -> None:
    it = users()
    names = ["12", "Ada", "-3", None, "2013-02-30", "1e3"]
    it.sync(*(user(key, 1, name) for key, name in enumerate(names)))  # type: ignore[arg-type]
    it.properties = PROPERTIES | {"name": {"type": "integer"}}
    done = it.load()
    assert (done.new, done.rejected) == (3, 3)
    assert it.rows("id, name") == [(0, 12), (2, -3), (3, None)]
    assert it.rejects("object, reason, record") == [
        (f"shop/main/users/1/{key}.parquet", "name: not bigint", user(key, 1, names[key] or ""))
        for key in (1, 4, 5)
    ]


NARROWED: list[tuple[dict[str, Any], list[Any], dict[str, Any], list[Any], list[Any]]] = [
    # Declared as; what came; declared as since; what is loaded as text; what is not.
    (
        {"type": "string"},
        ["1.50", "-2e400", "NaN", "x", "1_0", "", "0x1"],
        {"type": "number"},
        ["1.50", "-2" + 400 * "0", "NaN"],
        ["x", "1_0", "", "0x1"],
    ),
    ({"type": "boolean"}, [True], {"type": "number"}, [], [True]),
    (
        {"type": "string"},
        ["2013-11-03T01:30:00Z", "2013-11-03T01:30:00", "later"],
        {"type": "string", "format": "date-time"},
        ["2013-11-03 01:30:00+00"] * 2,
        ["later"],
    ),
    (
        {"type": "string", "format": "date-time"},
        ["2013-11-03T00:00:00Z", "2013-11-03T00:00:01Z"],
        {"type": "string", "format": "date"},
        ["2013-11-03"],
        ["2013-11-03T00:00:01+00:00"],
    ),
    ({"type": "integer"}, [12], {"type": "string", "format": "date-time"}, [], [12]),
    ({"type": "string"}, ['{"a": 1}', "x"], {"type": "object"}, ['{"a": 1}'], ["x"]),
    ({"type": "number"}, [1.0, 1.5, None], {"type": "integer"}, ["1", None], [1.5]),
]


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize(("before", "came", "after", "loaded", "refused"), NARROWED)
def test_of_another_declaration_each_value_is_loaded_or_rejected(
    users: Callable[..., Users],
    before: dict[str, Any],
    came: list[Any],
    after: dict[str, Any],
    loaded: list[Any],
    refused: list[Any],
) -> None:
    it = users("append")
    it.properties = PROPERTIES | {"name": before}
    it.sync_batch(*({"id": key, "at": 1, "name": value} for key, value in enumerate(came)))
    it.properties = PROPERTIES | {"name": after}
    done = it.load()
    assert (done.new, done.rejected) == (len(loaded), len(refused))
    assert [value for (value,) in it.rows("name::text")] == loaded
    assert [record["name"] for (record,) in it.rejects("record")] == refused


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize(
    ("mode", "rejects"), [("append_dedup", 3), ("append", 4), ("overwrite", 3)]
)
def test_a_record_that_is_rejected_again_is_no_other_reject_if_it_has_a_key(
    users: Callable[..., Users], mode: str, rejects: int
) -> None:
    it = users(mode)
    for _ in range(2):
        it.sync({"id": 1, "at": "soon"}, {"at": 1}, {"id": 2, "at": "soon"}, user(3, 1))
        assert it.load().rejected == (2 if mode == "append" else 3)
    assert len(it.rejects("1")) == rejects
    # Nor is it if the table is loaded anew.
    it.query("DROP TABLE shop_raw.users")
    it.load()
    assert len(it.rejects("1")) == rejects


@pytest.mark.usefixtures("on_disk")
def test_what_was_rejected_is_forgotten_once_it_is_read_from_its_beginning(
    users: Callable[..., Users],
) -> None:
    it = users("overwrite")
    it.sync({"id": 1, "at": "soon"}, user(2, 1))
    it.load()
    it.mode = "append"
    it.sync({"id": 1, "at": "soon"}, user(2, 1))
    it.load()
    assert len(it.rejects("1")) == 1


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
from tests.ingestion.users import Users
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
