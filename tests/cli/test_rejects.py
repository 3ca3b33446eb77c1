"""`mesh rejects`: what was put aside is shown without personal data, and loaded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dagster_project.cli.rejects import masked_record
from dagster_project.ingestion.declaration import StreamDeclaration
from dagster_project.ingestion.records import RecordBatches
from dagster_project.ingestion.replay import find_raw_table
from dagster_project.ingestion.stream_rows import StreamRows
from dagster_project.warehouse.loader import load
from dagster_project.warehouse.staging import Piece, Plan
from tests.e2e.platform import Platform

USERS = "commerce_raw.users"


def user(key: int, age: Any, **more: Any) -> dict[str, Any]:
    at = "2026-01-01T00:00:00Z"
    named = {"name": "Ada Lovelace", "email": "ada@example.org", "address": {"city": "London"}}
    return {"id": key, "age": age, "created_at": at, "updated_at": at, **named, **more}


@pytest.fixture
def rejected(postgres_home: Path, warehouse_url: str) -> Platform:
    """A home in whose warehouse two users of three were rejected."""
    raw = find_raw_table(USERS)
    assert isinstance(raw.source, StreamDeclaration)
    records = [user(1, 36), user(2, "old", phone="5550100"), user(3, 37, weight="some")]
    batch = RecordBatches(raw.source.json_schema, 1).build(records, [1, 1, 1])
    staged = StreamRows(raw.source).staged(batch)
    rows = raw.rows()
    plan = Plan(
        rows.schema,
        [Piece("commerce/shop/users/1.parquet", lambda: [staged])],
        1,
        surely=rows.surely,
        defaults=rows.defaults or {},
    )
    done = load(warehouse_url, raw.target, lambda *_: plan, run_id="run-7")
    assert (done.new, done.rejected) == (1, 2)
    return Platform(postgres_home)


def test_rejected_rows_are_shown_without_personal_data(rejected: Platform) -> None:
    ended = rejected.mesh("rejects", "show", USERS)
    assert ended.code == 0, ended.err
    assert "commerce_raw.users: 2 rejected rows" in ended.out
    assert "1  age: not bigint: of type string" in ended.out
    assert "of commerce/shop/users/1.parquet, run run-7" in ended.out
    chosen = rejected.mesh("rejects", "show", USERS, "--reason", "AGE:", "--json")
    (row,) = map(json.loads, chosen.out.splitlines())
    assert row["reason"] == "age: not bigint: of type string"
    assert (row["record"]["id"], row["record"]["age"]) == (2, "•••")
    assert row["record"]["created_at"] == "2026-01-01T00:00:00Z"
    for told in (ended.out, chosen.out):
        for secret in ("Ada", "ada@", "London", "old", "5550100"):
            assert secret not in told
    one = rejected.mesh("rejects", "show", USERS, "--json", "--limit", "1")
    assert len(one.out.splitlines()) == 1


def test_what_cannot_be_shown_or_replayed_says_why(rejected: Platform) -> None:
    unknown = rejected.mesh("rejects", "show", "commerce_raw.user")
    assert unknown.code == 1
    assert "commerce_raw.user is no raw table: did you mean commerce_raw.users" in unknown.err
    none = rejected.mesh("rejects", "show", "commerce_raw.products")
    assert (none.code, none.out) == (0, "commerce_raw.products: no rejected rows\n")
    nothing = rejected.mesh("rejects", "replay", USERS, "--reason", "xyz")
    assert nothing.code == 1
    assert "nothing to replay" in nothing.err


def test_a_replay_tells_how_many_rows_went_in(rejected: Platform, warehouse_url: str) -> None:
    with psycopg.connect(warehouse_url) as connection:
        connection.execute(
            "UPDATE commerce_raw.users__rejects SET record = record || '{\"age\": 35}' "
            "WHERE reason LIKE 'age:%'"
        )
    ended = rejected.mesh("rejects", "replay", USERS)
    assert ended.code == 0, ended.err
    assert "commerce_raw.users: 2 rejected rows replayed: 1 new; 1 still rejected" in ended.out
    assert "`mesh run -d commerce`" in ended.out
    with psycopg.connect(warehouse_url) as connection:
        rows = connection.execute("SELECT id, age FROM commerce_raw.users ORDER BY id").fetchall()
        assert rows == [(1, 36), (2, 35)]
        # While somebody loads the table nothing is replayed.
        connection.execute(
            "SELECT pg_advisory_xact_lock(1835365224, hashtext('commerce_raw.users'))"
        )
        busy = rejected.mesh("rejects", "replay", USERS)
    assert busy.code == 3
    assert "commerce_raw.users is being loaded" in busy.err


def test_fields_that_nobody_declared_are_masked_where_a_table_has_personal_data() -> None:
    record = {"id": 1, "name": "Ada", "phone": "1", "none": None}
    columns = {"id", "name"}
    assert masked_record(record, columns, ["name"]) == record | {"name": "•••", "phone": "•••"}
    assert masked_record(record, columns, []) == record
    long = "n" * 80
    shortened = find_shortened(long)
    assert masked_record({long: "Ada"}, {shortened}, [shortened]) == {long: "•••"}


def find_shortened(name: str) -> str:
    """What a column of this name is called in the warehouse."""
    from dagster_project.ingestion.records import column_names

    return column_names({"properties": {name: {}}})[name]
