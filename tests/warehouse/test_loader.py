"""The loader on a real PostgreSQL: what each mode does, and that a failure leaves no trace."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from psycopg.errors import UniqueViolation

from dagster_project.failures import SourceError, WarehouseError
from dagster_project.identity import Table, quoted
from dagster_project.warehouse.ledger import Load, PartitionState, TableState, read_partitions
from dagster_project.warehouse.loader import load
from dagster_project.warehouse.staging import FAULT, RECORD, Piece, Plan
from dagster_project.warehouse.target import Column, Mode, Target

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
TABLE = Table("shop_raw", "orders")
COLUMNS = (
    Column("id", "bigint"),
    Column("updated", "bigint"),
    Column("note", "text"),
    Column("_airbyte_extracted_at", "timestamptz"),
)
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("updated", pa.int64()),
        ("note", pa.string()),
        ("_airbyte_extracted_at", pa.timestamp("us", tz="UTC")),
    ]
)
Row = dict[str, Any]


def row(key: int | None, updated: int | None = 1, note: str | None = "a", minutes: int = 0) -> Row:
    moment = NOON + timedelta(minutes=minutes)
    return {"id": key, "updated": updated, "note": note, "_airbyte_extracted_at": moment}


def target(mode: Mode = Mode.APPEND_DEDUP, **changes: Any) -> Target:
    dedup = mode is Mode.APPEND_DEDUP
    plain = Target(TABLE, COLUMNS, mode, primary_key=("id",) if dedup else (), cursor="updated")
    return replace(plain, **changes)


def piece(rows: list[Row], schema: pa.Schema = SCHEMA, **attributes: str) -> Piece:
    batch = pa.RecordBatch.from_pylist(rows, schema=schema)
    return Piece(attributes.pop("key", "an/object"), lambda: [batch], **attributes)


@dataclass
class Warehouse:
    """A warehouse, and the position up to which its one table was loaded."""

    url: str
    position: int = 0
    seen: list[TableState] = field(default_factory=list)

    def load(self, rows: list[Row], to: Target | None = None, schema: pa.Schema = SCHEMA) -> Load:
        stable = [{k: v for k, v in row.items() if k != "_airbyte_extracted_at"} for row in rows]
        content = repr(sorted(stable, key=repr))
        return self.load_pieces([piece(rows, schema)], to or target(), schema, content, len(rows))

    def load_pieces(
        self,
        pieces: list[Piece],
        to: Target,
        schema: pa.Schema = SCHEMA,
        content: str = "",
        rows: int = 0,
    ) -> Load:
        self.position += 1

        def plan(state: TableState, partitions: dict[str, PartitionState]) -> Plan:
            self.seen.append(state)
            return Plan(schema, pieces, self.position, rows=rows, content=content)

        return load(self.url, to, plan, run_id="run-1")

    def query(self, statement: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as connection:
            cursor = connection.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def rows(self, columns: str = "id, updated, note", table: Table = TABLE) -> list[Any]:
        return sorted(self.query(f"SELECT {columns} FROM {table.relation}"), key=repr)

    def tuples(self) -> list[Any]:
        """Where each row version lies and who wrote it: any update, even to the same, shows."""
        return sorted(self.query(f"SELECT ctid::text, xmin::text FROM {TABLE.relation}"))


@pytest.fixture
def warehouse(warehouse_url: str) -> Warehouse:
    return Warehouse(warehouse_url)


def counts(done: Load) -> dict[str, int]:
    """The counts that are not zero."""
    names = ("received", "new", "changed", "duplicates", "removed", "rejected")
    return {name: getattr(done, name) for name in names if getattr(done, name)}


# Overwrite


def test_overwrite_replaces_what_was_there(warehouse: Warehouse) -> None:
    first = warehouse.load([row(1), row(2)], target(Mode.OVERWRITE))
    second = warehouse.load([row(3)], target(Mode.OVERWRITE))
    assert counts(first) == {"received": 2, "new": 2}
    assert counts(second) == {"received": 1, "new": 1, "removed": 2}
    assert (first.rows, second.rows) == (2, 1)
    assert first.version != second.version
    assert warehouse.rows() == [(3, 1, "a")]


def test_overwrite_with_the_same_content_changes_no_row_and_keeps_the_version(
    warehouse: Warehouse,
) -> None:
    first = warehouse.load([row(1), row(2, note=None)], target(Mode.OVERWRITE))
    before = warehouse.tuples()
    again = warehouse.load(
        [row(2, note=None, minutes=5), row(1, minutes=5)], target(Mode.OVERWRITE)
    )
    assert counts(again) == {"received": 2, "duplicates": 2}
    assert not again.did_change
    assert again.version == first.version
    assert warehouse.tuples() == before


def test_overwrite_by_a_sync_without_records_empties_the_table(warehouse: Warehouse) -> None:
    warehouse.load([row(1)], target(Mode.OVERWRITE))
    done = warehouse.load_pieces([], target(Mode.OVERWRITE))
    assert counts(done) == {"removed": 1}
    assert warehouse.rows() == []


def test_a_load_of_nothing_new_leaves_an_overwritten_table_alone(warehouse: Warehouse) -> None:
    first = warehouse.load([row(1)], target(Mode.OVERWRITE))
    plan = Plan(SCHEMA, [], 2, brings=False)
    done = load(warehouse.url, target(Mode.OVERWRITE), lambda *_: plan, run_id="run-1")
    assert (counts(done), done.rows, done.version) == ({}, 1, first.version)
    assert warehouse.rows() == [(1, 1, "a")]


def test_rows_removed_by_hand_come_back_with_the_next_overwrite(warehouse: Warehouse) -> None:
    warehouse.load([row(1), row(2)], target(Mode.OVERWRITE))
    warehouse.query("DELETE FROM shop_raw.orders WHERE id = 1")
    done = warehouse.load([row(1), row(2)], target(Mode.OVERWRITE))
    assert counts(done) == {"received": 2, "new": 2, "removed": 1}
    assert warehouse.rows("id") == [(1,), (2,)]


def test_overwrite_deduplicates_by_a_declared_key(warehouse: Warehouse) -> None:
    to = target(Mode.OVERWRITE, primary_key=("id",))
    done = warehouse.load([row(1), row(1, updated=2, note="b"), row(None), row(2)], to)
    assert counts(done) == {"received": 4, "new": 2, "duplicates": 1, "rejected": 1}
    assert warehouse.rows() == [(1, 2, "b"), (2, 1, "a")]


def test_rejects_are_of_what_the_table_holds(warehouse: Warehouse) -> None:
    to = target(Mode.OVERWRITE, primary_key=("id",))
    for note in ("a", "b", "c"):
        warehouse.load([row(1, note=note), row(None)], to)
    assert len(rejects(warehouse)) == 1


# Append


def test_a_table_the_ledger_does_not_know_is_not_appended_to(warehouse: Warehouse) -> None:
    warehouse.load([row(1), row(2)], target(Mode.APPEND))
    warehouse.query("DROP SCHEMA mesh CASCADE")
    with pytest.raises(WarehouseError, match=r"has 2 rows of which the ledger.*knows nothing"):
        warehouse.load([row(1), row(2)], target(Mode.APPEND))
    assert len(warehouse.rows()) == 2
    # By its key nothing comes twice, and the ledger counts what is there.
    assert warehouse.load([row(2), row(3)], target()).rows == 3


def test_what_was_overwritten_is_read_anew_once_it_is_appended_to(warehouse: Warehouse) -> None:
    warehouse.load([row(1), row(2)], target(Mode.OVERWRITE))
    first = warehouse.load([row(1), row(2)], target(Mode.APPEND))
    assert counts(first) == {"received": 2, "new": 2, "removed": 2}
    assert warehouse.load([row(3)], target(Mode.APPEND)).rows == 3
    assert warehouse.rows("id") == [(1,), (2,), (3,)]


def test_append_keeps_everything_that_came(warehouse: Warehouse) -> None:
    first = warehouse.load([row(1), row(1)], target(Mode.APPEND))
    second = warehouse.load([row(1)], target(Mode.APPEND))
    assert (counts(first), counts(second)) == ({"received": 2, "new": 2}, {"received": 1, "new": 1})
    assert second.rows == 3
    assert first.version != second.version
    assert warehouse.rows() == [(1, 1, "a")] * 3


# Append with deduplication


def test_dedup_counts_new_changed_and_duplicates(warehouse: Warehouse) -> None:
    first = warehouse.load([row(1), row(2), row(3)])
    second = warehouse.load([row(1, updated=2, note="b"), row(2), row(4)])
    assert counts(first) == {"received": 3, "new": 3}
    assert counts(second) == {"received": 3, "new": 1, "changed": 1, "duplicates": 1}
    assert second.rows == 4
    assert warehouse.rows() == [(1, 2, "b"), (2, 1, "a"), (3, 1, "a"), (4, 1, "a")]


def test_dedup_of_the_same_content_changes_no_row_and_keeps_the_version(
    warehouse: Warehouse,
) -> None:
    first = warehouse.load([row(1), row(2, updated=None, note=None)])
    before = warehouse.tuples()
    again = warehouse.load([row(1, minutes=9), row(2, updated=None, note=None, minutes=9)])
    assert counts(again) == {"received": 2, "duplicates": 2}
    assert (again.version, again.rows) == (first.version, 2)
    assert warehouse.tuples() == before


def test_an_older_cursor_does_not_overwrite(warehouse: Warehouse) -> None:
    warehouse.load([row(1, updated=5, note="new")])
    done = warehouse.load([row(1, updated=4, note="old", minutes=60)])
    assert counts(done) == {"received": 1, "duplicates": 1}
    assert warehouse.rows() == [(1, 5, "new")]


def test_a_record_without_a_cursor_is_older_than_one_with(warehouse: Warehouse) -> None:
    warehouse.load([row(1, updated=None, note="first"), row(2, updated=1)])
    warehouse.load(
        [row(1, updated=1, note="then", minutes=-9), row(2, updated=None, note="no", minutes=9)]
    )
    assert warehouse.rows() == [(1, 1, "then"), (2, 1, "a")]


def test_equal_cursors_are_decided_by_the_extraction_time(warehouse: Warehouse) -> None:
    warehouse.load([row(1, note="first"), row(2, note="first"), row(3, updated=None)])
    done = warehouse.load(
        [
            row(1, note="later", minutes=1),
            row(2, note="earlier", minutes=-1),
            row(3, updated=None, note="earlier", minutes=-1),
        ]
    )
    assert counts(done) == {"received": 3, "changed": 1, "duplicates": 2}
    assert warehouse.rows() == [(1, 1, "later"), (2, 1, "first"), (3, None, "a")]


def test_duplicates_within_one_load_keep_the_newest(warehouse: Warehouse) -> None:
    done = warehouse.load(
        [
            *(row(1, 1, "old"), row(1, 3, "newest"), row(1, 2, "middle")),
            *(row(2, 1, "later", minutes=1), row(2, 1, "sooner")),
            *(row(3, 1, "null is oldest"), row(3, None, "null")),
        ]
    )
    assert counts(done) == {"received": 7, "new": 3, "duplicates": 4}
    assert warehouse.rows() == [(1, 3, "newest"), (2, 1, "later"), (3, 1, "null is oldest")]


def test_of_records_that_are_equally_new_the_last_wins(warehouse: Warehouse) -> None:
    rows = [row(key, note=f"{key}.{turn}") for turn in range(5) for key in range(50)]
    warehouse.load_pieces([piece(rows), piece([row(7, note="the last object")])], target())
    held = dict(warehouse.query(f"SELECT id, note FROM {TABLE.relation}"))
    assert held == {key: f"{key}.4" for key in range(50)} | {7: "the last object"}


def test_dedup_by_a_key_of_several_columns_without_a_cursor(warehouse: Warehouse) -> None:
    to = target(primary_key=("id", "updated"), cursor=None)
    warehouse.load([row(1, 1), row(1, 2)], to)
    done = warehouse.load([row(1, 2, "b", minutes=1)], to)
    assert counts(done) == {"received": 1, "changed": 1}
    assert warehouse.rows() == [(1, 1, "a"), (1, 2, "b")]


# Partitions

PARTITIONED = Target(
    TABLE,
    (Column("id", "bigint"), Column("note", "text")),
    Mode.REPLACE_PARTITIONS,
    partition="day",
)
TEXT = pa.schema([("id", pa.string()), ("note", pa.string())])


def day_piece(day: str, rows: list[tuple[str, str]], digest: str) -> Piece:
    return piece(
        [{"id": key, "note": note} for key, note in rows],
        TEXT,
        key=f"landing/{day}.csv",
        partition=day,
        object_version=f"v-{digest}",
        digest=digest,
    )


def test_a_partition_that_comes_again_replaces_its_rows_only(warehouse: Warehouse) -> None:
    first = warehouse.load_pieces(
        [
            day_piece("2026-01-01", [("1", "a"), ("2", "a")], "x"),
            day_piece("2026-01-02", [("3", "a")], "y"),
        ],
        PARTITIONED,
        TEXT,
    )
    second = warehouse.load_pieces([day_piece("2026-01-01", [("9", "b")], "z")], PARTITIONED, TEXT)
    assert counts(first) == {"received": 3, "new": 3}
    assert counts(second) == {"received": 1, "new": 1, "removed": 2}
    assert (first.rows, second.rows) == (3, 2)
    assert warehouse.rows("day::text, id, _object") == [
        ("2026-01-01", 9, "landing/2026-01-01.csv"),
        ("2026-01-02", 3, "landing/2026-01-02.csv"),
    ]
    held = read_partitions(warehouse.url, TABLE, "day")
    assert held["2026-01-01"] == PartitionState(
        "2026-01-01", "z", 1, "landing/2026-01-01.csv", "v-z"
    )
    assert held["2026-01-02"].version == "y"


def test_an_empty_partition_is_a_partition(warehouse: Warehouse) -> None:
    warehouse.load_pieces([day_piece("2026-01-01", [("1", "a")], "x")], PARTITIONED, TEXT)
    done = warehouse.load_pieces([day_piece("2026-01-01", [], "y")], PARTITIONED, TEXT)
    assert counts(done) == {"removed": 1}
    assert read_partitions(warehouse.url, TABLE, "day")["2026-01-01"].rows == 0


def test_dropping_a_partitioned_table_forgets_all_its_partitions(warehouse: Warehouse) -> None:
    days = ("2026-01-01", "2026-01-02")
    pieces = [day_piece(day, [("1", "a")], "x") for day in days]
    warehouse.load_pieces(pieces, PARTITIONED, TEXT)
    warehouse.query(f"DROP TABLE {TABLE.relation}")
    assert read_partitions(warehouse.url, TABLE, "day") == {}
    done = warehouse.load_pieces(pieces[:1], PARTITIONED, TEXT)
    assert done.rows == 1
    assert set(read_partitions(warehouse.url, TABLE, "day")) == {"2026-01-01"}


# Rejects


def rejects(warehouse: Warehouse) -> list[Any]:
    return warehouse.rows("run_id, object, reason, record", TABLE.rejects)


def test_a_null_primary_key_goes_to_the_rejects(warehouse: Warehouse) -> None:
    done = warehouse.load([row(None, note="nobody"), row(1)])
    assert counts(done) == {"received": 2, "new": 1, "rejected": 1}
    ((run_id, key, reason, record),) = rejects(warehouse)
    assert (run_id, key, reason) == ("run-1", "an/object", "id: null in the primary key")
    assert record["note"] == "nobody"


def test_what_cannot_be_cast_goes_to_the_rejects_with_every_reason(warehouse: Warehouse) -> None:
    to = replace(PARTITIONED, columns=(Column("id", "bigint"), Column("note", "date")))
    rows = [("one", "2026-02-30"), ("2", "2026-02-03"), ("3", "soon"), (str(2**63), "2026-02-03")]
    done = warehouse.load_pieces([day_piece("2026-01-01", rows, "x")], to, TEXT)
    assert counts(done) == {"received": 4, "new": 1, "rejected": 3}
    assert done.rows == 1
    found = {record["id"]: (run, key, why) for run, key, why, record in rejects(warehouse)}
    place = ("run-1", "landing/2026-01-01.csv")
    assert found == {
        "one": (*place, "id: not bigint; note: not date"),
        "3": (*place, "note: not date"),
        str(2**63): (*place, "id: not bigint"),
    }


def test_a_partition_of_which_every_row_is_bad_is_refused(warehouse: Warehouse) -> None:
    to = replace(PARTITIONED, columns=(Column("id", "bigint"), Column("note", "date")))
    good = [("1", "2026-02-03")]
    warehouse.load_pieces([day_piece("2026-01-01", good, "x")], to, TEXT)
    bad = day_piece("2026-01-02", [("1", "soon"), ("2", "later"), ("x", "soon")], "y")
    with pytest.raises(SourceError) as caught:
        warehouse.load_pieces([day_piece("2026-01-01", good * 2, "z"), bad], to, TEXT)
    assert "landing/2026-01-02.csv: none of its 3 rows can be loaded (note: not date / " in str(
        caught.value
    )
    assert warehouse.rows("id") == [(1,)]
    assert warehouse.query("SELECT to_regclass('shop_raw.orders__rejects')::text") == [(None,)]


def test_rows_that_the_reader_marked_are_rejected_with_the_record_as_it_came(
    warehouse: Warehouse,
) -> None:
    digits = "1234567890" * 4
    marked = pa.RecordBatch.from_pydict(
        {
            **pa.RecordBatch.from_pylist([row(1), row(2), row(None)], schema=SCHEMA).to_pydict(),
            FAULT: [None, "note: not text", "id: not bigint"],
            RECORD: [None, None, f'{{"id": {digits}, "note": ["\\u00e9"]}}'],
        },
        schema=pa.schema([*SCHEMA, (FAULT, pa.string()), (RECORD, pa.string())]),
    )
    whole = pa.RecordBatch.from_pylist([row(3)], schema=SCHEMA)
    pieces = [Piece("an/object", lambda: [marked, whole])]
    done = warehouse.load_pieces(pieces, target(), SCHEMA)
    assert counts(done) == {"received": 4, "new": 2, "rejected": 2}
    assert warehouse.rows("id") == [(1,), (3,)]
    kept = {why: record for _, _, why, record in rejects(warehouse)}
    assert kept["note: not text"]["id"] == 2
    assert "_mesh_fault" not in kept["note: not text"]
    assert kept["id: not bigint"] == {"id": int(digits), "note": ["é"]}


def test_a_key_too_long_for_an_index_goes_to_the_rejects(warehouse: Warehouse) -> None:
    to = Target(
        TABLE,
        (Column("id", "text"), Column("s", "text")),
        Mode.APPEND_DEDUP,
        primary_key=("id", "s"),
    )
    schema = pa.schema([("id", pa.string()), ("s", pa.string())])
    texts = "".join(chr(0x4E00 + number % 20000) for number in range(4000))
    rows = [{"id": texts, "s": "x"}, {"id": "a", "s": "x"}, {"id": None, "s": "x"}]
    done = warehouse.load(rows, to, schema)
    assert counts(done) == {"received": 3, "new": 1, "rejected": 2}
    assert sorted(reason for _, _, reason, _ in rejects(warehouse)) == [
        "a primary key of more than 2600 bytes",
        "id: null in the primary key",
    ]


@pytest.mark.parametrize(
    ("kind", "bad", "good"),
    [
        ("date", ["13/02/2013", "01/02/2013", "05.06.2013", "today", "infinity"], "2013-02-13"),
        ("timestamptz", ["now", "tomorrow", "02/01/2013 10:00"], "2013-02-13 10:00:00+01"),
        ("bigint", ["0x1F", "1_000", "0b11", "", "1.5"], " -12"),
    ],
)
def test_only_what_is_written_as_it_should_be_is_a_value(
    warehouse: Warehouse, kind: str, bad: list[str], good: str
) -> None:
    to = replace(PARTITIONED, columns=(Column("id", kind), Column("note", "text")))
    rows = [(text, "x") for text in (*bad, good)]
    done = warehouse.load_pieces([day_piece("2026-01-01", rows, "x")], to, TEXT)
    assert (done.new, done.rejected) == (1, len(bad))
    assert {record["id"] for _, _, _, record in rejects(warehouse)} == set(bad)
    assert {reason for _, _, reason, _ in rejects(warehouse)} == {f"id: not {kind}"}


def test_a_wide_table_is_loaded_and_its_bad_rows_are_found(warehouse: Warehouse) -> None:
    wide = [Column(f"c{number}", "bigint") for number in range(1200)]
    to = replace(PARTITIONED, columns=tuple(wide))
    schema = pa.schema([(column.name, pa.string()) for column in wide])
    rows = [{"c0": "1", "c1199": "2"}, {"c0": "x", "c1199": "y"}]
    batch = pa.RecordBatch.from_pylist(rows, schema=schema)
    done = warehouse.load_pieces(
        [Piece("wide", lambda: [batch], "2026-01-01", "1", "digest")], to, schema
    )
    assert counts(done) == {"received": 2, "new": 1, "rejected": 1}
    ((_, _, reason, _),) = rejects(warehouse)
    assert reason == "c0: not bigint; c1199: not bigint"


def test_a_row_too_wide_for_postgresql_says_what_to_do(warehouse: Warehouse) -> None:
    names = [f"c{number}" for number in range(1100)]
    to = Target(TABLE, tuple(Column(name, "bigint") for name in names), Mode.APPEND)
    schema = pa.schema([(name, pa.int64()) for name in names])
    with pytest.raises(WarehouseError, match=r"8,160 bytes.*leave columns.*out of.*declaration"):
        warehouse.load([dict.fromkeys(names, 1)], to, schema)
    columns = ", ".join(f"n{number} int" for number in range(1598))
    warehouse.query(f"CREATE TABLE shop_raw.orders ({columns})")
    with pytest.raises(WarehouseError, match=r"at most.*1,600 columns.*rename or drop"):
        warehouse.load([row(1)], target(Mode.OVERWRITE))


# Keys


def test_a_table_that_was_appended_to_gets_the_key_of_its_new_mode(warehouse: Warehouse) -> None:
    warehouse.load([row(1), row(2)], target(Mode.APPEND))
    done = warehouse.load([row(2, updated=2, note="b"), row(3)], target())
    assert counts(done) == {"received": 2, "new": 1, "changed": 1}
    with psycopg.connect(warehouse.url) as connection, pytest.raises(UniqueViolation):
        connection.execute("INSERT INTO shop_raw.orders (id) VALUES (3)")
    assert warehouse.load([row(3)], target(Mode.APPEND)).new == 1
    assert warehouse.rows("id") == [(1,), (2,), (3,), (3,)]


@pytest.mark.parametrize("second", [row(1, updated=2), row(None)])
def test_a_key_that_the_rows_do_not_have_is_refused(warehouse: Warehouse, second: Row) -> None:
    warehouse.load([row(1), second], target(Mode.APPEND))
    with pytest.raises(WarehouseError, match="id is declared as its primary key, which rows"):
        warehouse.load([row(4)], target())
    assert len(warehouse.rows()) == 2


def test_a_key_of_a_new_column_and_what_is_no_key_any_more(warehouse: Warehouse) -> None:
    warehouse.load([row(1)], target(Mode.APPEND))
    warehouse.query("DELETE FROM shop_raw.orders")
    schema = SCHEMA.append(pa.field("line", pa.int64()))
    to = target(columns=(*COLUMNS, Column("line", "bigint")), primary_key=("id", "line"))
    assert warehouse.load([row(1) | {"line": 1}, row(1) | {"line": 2}], to, schema).new == 2
    back = target(Mode.APPEND, columns=to.columns)
    assert warehouse.load([row(None) | {"line": None}], back, schema).new == 1


def test_another_key_replaces_the_first(warehouse: Warehouse) -> None:
    warehouse.load([row(1), row(2)])
    both = target(primary_key=("id", "updated"))
    assert warehouse.load([row(1, updated=2), row(1, note="b")], both).new == 1
    assert warehouse.rows() == [(1, 1, "b"), (1, 2, "a"), (2, 1, "a")]


# Columns


def test_a_new_column_is_added_and_reported(warehouse: Warehouse) -> None:
    warehouse.load([row(1)])
    schema = SCHEMA.append(pa.field("price", pa.float64()))
    to = target(columns=(*COLUMNS, Column("price", "double precision")))
    done = warehouse.load([row(2) | {"price": 9.5}], to, schema)
    assert done.new_columns == ("price",)
    assert warehouse.rows("id, price") == [(1, None), (2, 9.5)]


def test_a_narrower_type_is_refused_and_named(warehouse: Warehouse) -> None:
    warehouse.load([row(1)])
    columns = (COLUMNS[0], COLUMNS[1], Column("note", "bigint"), COLUMNS[3])
    with pytest.raises(WarehouseError) as caught:
        warehouse.load([row(2)], target(columns=columns))
    assert "shop_raw.orders" in str(caught.value)
    assert "note is text, declared bigint" in str(caught.value)
    assert "Give the column a new name" in str(caught.value)
    assert warehouse.rows() == [(1, 1, "a")]


WIDENED = pa.schema([SCHEMA.field("id"), ("updated", pa.string()), *list(SCHEMA)[2:]])


def test_a_wider_type_is_carried_with_the_views_that_read_the_column(warehouse: Warehouse) -> None:
    warehouse.load([row(1, updated=7)])
    warehouse.query(
        "CREATE VIEW shop_raw.first AS SELECT id, updated FROM shop_raw.orders;"
        'CREATE VIEW shop_raw."Second" AS SELECT f.*, o.note FROM shop_raw.first f '
        "JOIN shop_raw.orders o USING (id, updated);"
        "COMMENT ON VIEW shop_raw.first IS 'it''s the first';"
        "COMMENT ON COLUMN shop_raw.\"Second\".updated IS 'when';"
        'GRANT SELECT ON shop_raw."Second" TO PUBLIC'
    )
    columns = (COLUMNS[0], Column("updated", "numeric"), *COLUMNS[2:])
    huge = "1234567890" * 4 + ".125"
    done = warehouse.load([row(1) | {"updated": huge}], target(columns=columns), WIDENED)
    assert done.widened == ("updated",)
    assert counts(done) == {"received": 1, "changed": 1}
    assert warehouse.rows("updated::text", Table("shop_raw", "Second")) == [(huge,)]
    assert warehouse.query(
        "SELECT obj_description('shop_raw.first'::regclass), "
        "col_description('shop_raw.\"Second\"'::regclass, 2), "
        "(SELECT relacl::text FROM pg_class WHERE relname = 'Second')"
    )[0][:2] == ("it's the first", "when")
    grants = warehouse.query("SELECT relacl::text FROM pg_class WHERE relname = 'Second'")
    assert "=r/mesh" in grants[0][0]


def test_a_view_keeps_its_options_or_stops_the_widening(warehouse: Warehouse) -> None:
    warehouse.load([row(1)])
    warehouse.query(
        "CREATE VIEW shop_raw.safe WITH (security_invoker=true, security_barrier=true) AS "
        "SELECT id, updated FROM shop_raw.orders"
    )
    columns = (COLUMNS[0], Column("updated", "numeric"), *COLUMNS[2:])
    warehouse.load([row(2) | {"updated": "8"}], target(columns=columns), WIDENED)
    options = "SELECT reloptions::text FROM pg_class WHERE relname = 'safe'"
    assert warehouse.query(options) == [("{security_invoker=true,security_barrier=true}",)]
    warehouse.query("GRANT SELECT (id) ON shop_raw.safe TO PUBLIC")
    columns = (COLUMNS[0], Column("updated", "text"), *COLUMNS[2:])
    with pytest.raises(WarehouseError, match=r"shop_raw\.safe \(with privileges on columns\)"):
        warehouse.load([row(3) | {"updated": "9"}], target(columns=columns), WIDENED)


def test_doubles_that_become_numbers_keep_all_their_digits(warehouse: Warehouse) -> None:
    schema = pa.schema([SCHEMA.field("id"), ("updated", pa.float64()), *list(SCHEMA)[2:]])
    columns = (COLUMNS[0], Column("updated", "double precision"), *COLUMNS[2:])
    warehouse.load([row(1) | {"updated": 0.1 + 0.2}], target(columns=columns), schema)
    wider = (COLUMNS[0], Column("updated", "numeric"), *COLUMNS[2:])
    warehouse.load([], target(columns=wider), WIDENED)
    assert warehouse.rows("updated::text") == [("0.30000000000000004",)]


def test_a_materialised_view_that_would_be_lost_stops_widening(warehouse: Warehouse) -> None:
    warehouse.load([row(1)])
    warehouse.query("CREATE MATERIALIZED VIEW shop_raw.kept AS SELECT updated FROM shop_raw.orders")
    columns = (COLUMNS[0], Column("updated", "text"), *COLUMNS[2:])
    with pytest.raises(WarehouseError, match=r"updated cannot become wider while shop_raw\.kept"):
        warehouse.load([row(2) | {"updated": "8"}], target(columns=columns), WIDENED)
    assert warehouse.rows("updated", Table("shop_raw", "kept")) == [(1,)]


@pytest.mark.parametrize(
    "name", ["order", "select", 'a "quoted" name', "Größe", "it's; --", "x" * 63, "%s $1"]
)
def test_odd_names_are_only_names(warehouse: Warehouse, name: str) -> None:
    table = Table(name, name)
    columns = (Column("id", "bigint"), Column(name, "text"))
    schema = pa.schema([("id", pa.int64()), (name, pa.string())])
    to = Target(table, columns, Mode.APPEND_DEDUP, primary_key=("id",), cursor=name)
    warehouse.load([{"id": 1, name: "a"}], to, schema)
    done = warehouse.load([{"id": 1, name: "b"}, {"id": None, name: "c"}], to, schema)
    assert counts(done) == {"received": 2, "changed": 1, "rejected": 1}
    assert warehouse.rows(f"id, {quoted(name)}", table) == [(1, "b")]
    assert warehouse.rows("reason", table.rejects) == [("id: null in the primary key",)]


# Failure


def broken(rows: list[Row], failure: Exception) -> Callable[[], Iterator[pa.RecordBatch]]:
    def batches() -> Iterator[pa.RecordBatch]:
        for _ in range(3):
            yield pa.RecordBatch.from_pylist(rows * 1000, schema=SCHEMA)
        raise failure

    return batches


@pytest.mark.parametrize("mode", [Mode.OVERWRITE, Mode.APPEND, Mode.APPEND_DEDUP])
def test_a_failure_among_the_batches_leaves_the_table_as_it_was(
    warehouse: Warehouse, mode: Mode
) -> None:
    first = warehouse.load([row(1)], target(mode))
    before = warehouse.tuples()
    failure = SourceError("landing/x.csv is not the CSV file it should be")
    with pytest.raises(SourceError, match="is not the CSV file") as caught:
        warehouse.load_pieces([Piece("x", broken([row(2)], failure))], target(mode))
    assert caught.value is failure
    assert warehouse.tuples() == before
    again = warehouse.load([row(5)], target(mode))
    assert warehouse.seen[-1] == TableState(first.version, 1, 1, mode=mode.value)
    assert again.new == 1


def test_a_first_load_that_fails_leaves_no_table(warehouse: Warehouse) -> None:
    with pytest.raises(SourceError):
        warehouse.load_pieces([Piece("x", broken([row(2)], SourceError("gone")))], target())
    assert warehouse.query("SELECT to_regclass(%s)", (TABLE.relation,)) == [(None,)]
    assert warehouse.query("SELECT count(*) FROM mesh.tables") == [(0,)]
    assert warehouse.query("SELECT count(*) FROM mesh.loads") == [(0,)]


def test_a_wrong_password_is_refused_without_showing_it(warehouse: Warehouse) -> None:
    url = warehouse.url.replace("@", "s3cr3t-word@")
    with pytest.raises(WarehouseError) as caught:
        load(url, target(), lambda state, partitions: Plan(SCHEMA, [], 0), run_id="r")
    assert "s3cr3t-word" not in f"{caught.value} {caught.value.__cause__!r}"
    assert "password authentication failed" in str(caught.value)


def test_a_load_that_is_killed_leaves_the_table_as_it_was_and_free(warehouse: Warehouse) -> None:
    warehouse.load([row(1)])
    context = multiprocessing.get_context("fork")
    inside = context.Event()

    def batches() -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pylist([row(key) for key in range(5000)], schema=SCHEMA)
        inside.set()
        time.sleep(60)

    def endless() -> None:
        plan = Plan(SCHEMA, [Piece("x", batches)], 9)
        load(warehouse.url, target(), lambda state, _: plan, run_id="killed")

    process = context.Process(target=endless)
    process.start()
    assert inside.wait(20)
    process.kill()
    process.join(10)
    done = warehouse.load([row(1), row(2)])
    assert counts(done) == {"received": 2, "new": 1, "duplicates": 1}
    assert warehouse.rows() == [(1, 1, "a"), (2, 1, "a")]
    assert warehouse.query("SELECT count(*) FROM mesh.loads WHERE run_id = 'killed'") == [(0,)]


# Side by side


def test_two_loads_of_one_table_follow_each_other(warehouse: Warehouse) -> None:
    warehouse.load([row(0)], target(Mode.APPEND))
    inside = threading.Event()
    states: list[TableState] = []

    def slow(state: TableState, partitions: dict[str, PartitionState]) -> Plan:
        states.append(state)
        inside.set()
        time.sleep(0.5)
        return Plan(SCHEMA, [piece([row(1)])], 2)

    def quick(state: TableState, partitions: dict[str, PartitionState]) -> Plan:
        states.append(state)
        return Plan(SCHEMA, [piece([row(2)])], 3)

    with ThreadPoolExecutor() as pool:
        one = pool.submit(load, warehouse.url, target(Mode.APPEND), slow, run_id="one")
        assert inside.wait(10)
        two = pool.submit(load, warehouse.url, target(Mode.APPEND), quick, run_id="two")
        assert (one.result(30).rows, two.result(30).rows) == (2, 3)
    # The second saw what the first had loaded.
    assert [state.position for state in states] == [1, 2]


def _load_in_process(url: str, table: str, results: Any) -> None:
    to = target(table=Table("fresh_raw", table))
    rows = [row(key) for key in range(2000)]
    try:
        done = load(url, to, lambda state, _: Plan(SCHEMA, [piece(rows)], 1), run_id=table)
        results.put((table, done.new, done.duplicates))
    except Exception as error:  # noqa: BLE001 - the test shows it
        results.put((table, repr(error), 0))


def test_first_loads_of_tables_of_one_schema_do_not_get_in_each_others_way(
    warehouse_url: str,
) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    tables = ["a", "b", "c", "a"]
    processes = [
        context.Process(target=_load_in_process, args=(warehouse_url, table, results))
        for table in tables
    ]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(10)
    assert found == [("a", 0, 2000), ("a", 2000, 0), ("b", 2000, 0), ("c", 2000, 0)]


def test_a_long_load_does_not_hold_up_another_table_of_the_schema(warehouse: Warehouse) -> None:
    inside, release = threading.Event(), threading.Event()

    def held(state: TableState, partitions: dict[str, PartitionState]) -> Plan:
        inside.set()
        release.wait(20)
        return Plan(SCHEMA, [piece([row(1)])], 1)

    with ThreadPoolExecutor() as pool:
        long = pool.submit(load, warehouse.url, target(), held, run_id="long")
        assert inside.wait(10)
        other = target(table=Table(TABLE.schema, "other"))
        try:
            short = pool.submit(
                load,
                warehouse.url,
                other,
                lambda s, _: Plan(SCHEMA, [piece([row(1)])], 1),
                run_id="short",
            )
            assert short.result(10).rows == 1
            assert not long.done()
        finally:
            release.set()
        assert long.result(20).rows == 1


# What is noted


def test_a_dropped_table_is_loaded_from_the_beginning(warehouse: Warehouse) -> None:
    warehouse.load([row(1)])
    warehouse.query(f"DROP TABLE {TABLE.relation}")
    warehouse.load([row(1), row(2)])
    assert warehouse.seen[-1] == TableState()
    assert warehouse.rows() == [(1, 1, "a"), (2, 1, "a")]


def test_every_load_is_noted_with_its_counts(warehouse: Warehouse) -> None:
    warehouse.load([row(1), row(None)])
    ((run_id, mode, *numbers),) = warehouse.query(
        "SELECT run_id, mode, objects, received, new, rejected FROM mesh.loads"
    )
    assert (run_id, mode, numbers) == ("run-1", "append_dedup", [1, 2, 1, 1])


def test_progress_tells_the_rows_so_far(warehouse: Warehouse) -> None:
    told: list[int] = []
    pieces: Iterable[Piece] = [piece([row(1), row(2)]), piece([row(3)])]
    load(
        warehouse.url,
        target(),
        lambda state, partitions: Plan(SCHEMA, list(pieces), 1),
        run_id="r",
        progress=told.append,
    )
    assert told == [2, 3]
