"""Deduplication by primary key and cursor, against a model of it that fits on a screen."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import psycopg
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dagster_project.identity import Table
from dagster_project.warehouse.loader import load
from dagster_project.warehouse.staging import Piece, Plan
from dagster_project.warehouse.target import Column, Mode, Target

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("updated", pa.int64()),
        ("note", pa.string()),
        ("_airbyte_extracted_at", pa.timestamp("us", tz="UTC")),
    ]
)
COLUMNS = (
    Column("id", "bigint"),
    Column("updated", "bigint"),
    Column("note", "text"),
    Column("_airbyte_extracted_at", "timestamptz"),
)
numbers = itertools.count()

Record = tuple[int | None, int | None, str, int]
#: Key (null is rejected), cursor, content, minute of extraction: few values, so that they collide.
records = st.tuples(
    st.one_of(st.none(), st.integers(1, 4), st.integers(1, 4)),
    st.one_of(st.none(), st.integers(1, 3)),
    st.sampled_from("ab"),
    st.integers(0, 2),
)
loads = st.lists(st.lists(st.lists(records, max_size=5), max_size=3), min_size=1, max_size=4)


def age(record: Record) -> tuple[int, int]:
    _, cursor, _, extracted = record
    return (-1 if cursor is None else cursor, extracted)


@dataclass
class Model:
    held: dict[int, Record] = field(default_factory=dict)

    def load(self, pieces: Sequence[Sequence[Record]]) -> dict[str, int]:
        came = [record for piece in pieces for record in piece]
        whole = [record for record in came if record[0] is not None]
        newest: dict[int, Record] = {}
        for record in whole:
            key = record[0]
            if key not in newest or age(record) >= age(newest[key]):
                newest[key] = record
        new = changed = 0
        for key, record in newest.items():
            before = self.held.get(key)
            if before is None:
                new += 1
            elif age(record) >= age(before) and record[1:3] != before[1:3]:
                changed += 1
            else:
                continue
            self.held[key] = record
        return {
            "received": len(came),
            "rejected": len(came) - len(whole),
            "new": new,
            "changed": changed,
            "duplicates": len(whole) - new - changed,
            "rows": len(self.held),
        }


def piece_of(number: int, rows: Sequence[Record]) -> Piece:
    values = [
        {
            "id": key,
            "updated": cursor,
            "note": note,
            "_airbyte_extracted_at": EPOCH + timedelta(minutes=minute),
        }
        for key, cursor, note, minute in rows
    ]
    batch = pa.RecordBatch.from_pylist(values, schema=SCHEMA)
    return Piece(f"object-{number}", lambda: [batch])


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(loads)
def test_deduplication_is_as_the_model_says(
    warehouse_url: str, loads: list[list[list[Record]]]
) -> None:
    table = Table("model_raw", f"t{next(numbers)}")
    target = Target(table, COLUMNS, Mode.APPEND_DEDUP, primary_key=("id",), cursor="updated")
    model = Model()
    version = ""
    for position, pieces in enumerate(loads, start=1):
        staged = [piece_of(i, rows) for i, rows in enumerate(pieces)]
        plan = Plan(SCHEMA, staged, position, content=f"load {position}")
        done = load(warehouse_url, target, lambda state, _, plan=plan: plan, run_id="r")
        expected = model.load(pieces)
        assert {name: getattr(done, name) for name in expected} == expected
        assert (done.version != version) == bool(expected["new"] or expected["changed"])
        version = done.version
        with psycopg.connect(warehouse_url) as connection:
            rows = connection.execute(
                "SELECT id, updated, note, "
                f"extract(epoch FROM _airbyte_extracted_at - %s)::int / 60 FROM {table.relation}",
                (EPOCH,),
            ).fetchall()
        assert {row[0]: row for row in rows} == model.held
