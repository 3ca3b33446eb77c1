"""The project's own tables, by version: who makes them, when, and what works with which of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from dagster_project.catalog.bookkeeping import books_of
from dagster_project.catalog.tables import BOOKS
from dagster_project.failures import NewerDatabaseError, NotMigratedError
from dagster_project.identity import Table
from dagster_project.quality import standing
from dagster_project.quality.blocking import blocks
from dagster_project.quality.profiles import PROFILES, ColumnProfile, Profiles
from dagster_project.quality.suites import Severity
from dagster_project.settings import PACKAGE, get_settings
from dagster_project.transformation.versions import read_built, record_built
from dagster_project.warehouse.ledger import LEDGER, TableState
from dagster_project.warehouse.loader import load
from dagster_project.warehouse.migrations import Migrations
from dagster_project.warehouse.staging import Piece, Plan
from dagster_project.warehouse.target import Column, Mode, Target

SETS = (LEDGER, PROFILES, BOOKS)
THINGS = Migrations(
    "things",
    "the warehouse",
    (
        ("CREATE TABLE IF NOT EXISTS mesh.things (id int)",),
        ("ALTER TABLE mesh.things ADD COLUMN name text NOT NULL DEFAULT ''",),
    ),
)
SCHEMA = pa.schema([("id", pa.int64())])
ORDERS = Table("shop_raw", "orders")
TARGET = Target(ORDERS, (Column("id", "bigint"),), Mode.APPEND)

#: Migrates as the program does, and stands still between the statements of two steps.
STANDS_STILL = """
import sys, time
import psycopg
from tests.warehouse.test_migrations import THINGS
from dataclasses import replace

class Waits:
    def __iter__(self):
        print("between", flush=True)
        time.sleep(600)
        yield "SELECT 1"

with psycopg.connect(sys.argv[1]) as connection:
    replace(THINGS, steps=(THINGS.steps[0], Waits())).migrate(connection)
"""


def ask(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def taken(url: str) -> list[tuple[str, int]]:
    return ask(url, "SELECT tables, step FROM mesh.migrations ORDER BY 1, 2")


def is_there(url: str, name: str) -> bool:
    return ask(url, f"SELECT to_regclass('{name}') IS NOT NULL") == [(True,)]


def migrate(url: str, tables: Migrations) -> int:
    with psycopg.connect(url) as connection:
        return tables.migrate(connection)


def bring(url: str, rows: int = 3, position: int = 1) -> None:
    """Load a table as a sync does."""

    def plan(state: TableState, _: object) -> Plan:
        def batches() -> Iterator[pa.RecordBatch]:
            yield pa.RecordBatch.from_pydict({"id": range(rows)}, schema=SCHEMA)

        pieces = [Piece("an/object", batches)] if state.position < position else []
        return Plan(SCHEMA, pieces, position, content=str(position))

    load(url, TARGET, plan, run_id="run")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, fresh_settings: None) -> None:
    """An environment that is no laptop."""
    monkeypatch.setenv("MESH_ENV", "staging")
    get_settings.cache_clear()


def test_steps_are_taken_in_their_order_and_once(warehouse_url: str) -> None:
    assert migrate(warehouse_url, replace(THINGS, steps=THINGS.steps[:1])) == 1
    ask(warehouse_url, "INSERT INTO mesh.things VALUES (1)")
    assert migrate(warehouse_url, THINGS) == 1
    assert migrate(warehouse_url, THINGS) == 0
    assert taken(warehouse_url) == [("things", 1), ("things", 2)]
    assert ask(warehouse_url, "SELECT * FROM mesh.things") == [(1, "")]


@pytest.mark.parametrize("attempt", range(3))
def test_of_many_that_migrate_at_once_one_does_it(warehouse_url: str, attempt: int) -> None:
    together = threading.Barrier(8)

    def begin(_: int) -> int:
        together.wait()
        return sum(migrate(warehouse_url, each) for each in (THINGS, LEDGER))

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(begin, range(8)))[:6] == [0] * 6
    assert taken(warehouse_url) == [("ledger", 1), ("things", 1), ("things", 2)]


def test_a_step_that_fails_leaves_nothing_of_any(warehouse_url: str) -> None:
    broken = replace(THINGS, steps=(*THINGS.steps, ("ALTER TABLE mesh.nothing ADD x int",)))
    with pytest.raises(psycopg.errors.UndefinedTable):
        migrate(warehouse_url, broken)
    assert not is_there(warehouse_url, "mesh.things")
    assert not is_there(warehouse_url, "mesh.migrations")
    assert migrate(warehouse_url, THINGS) == 2


def test_who_is_killed_between_two_steps_has_taken_none_and_the_next_one_takes_all(
    warehouse_url: str,
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STANDS_STILL, warehouse_url],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "between\n"
        assert not is_there(warehouse_url, "mesh.things"), "others see what is not whole"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    # The lock died with it, or this would never end.
    assert migrate(warehouse_url, THINGS) == 2
    assert taken(warehouse_url) == [("things", 1), ("things", 2)]


def test_tables_of_before_are_taken_over_with_what_they_hold(warehouse_url: str) -> None:
    bring(warehouse_url)
    ask(
        warehouse_url,
        "INSERT INTO mesh.verdicts (table_schema, table_name, check_name, severity, passed, "
        "version, since, run_id) VALUES ('s', 't', 'c', 'critical', true, 'v', now(), 'r')",
    )
    # As an older version has left them.
    for table, column in (("verdicts", "kind"), ("verdicts", "asked"), ("tables", "mark")):
        ask(warehouse_url, f"ALTER TABLE mesh.{table} DROP COLUMN {column}")
    ask(warehouse_url, "DROP TABLE mesh.migrations")
    assert blocks(warehouse_url, [Table("s", "t")]) == []
    assert taken(warehouse_url) == [("ledger", 1)]
    held = ask(warehouse_url, "SELECT check_name, kind, asked FROM mesh.verdicts")
    assert held == [("c", "expectation", "")]
    assert ask(warehouse_url, "SELECT table_name, rows, mark FROM mesh.tables") == [
        ("orders", 3, "")
    ]
    bring(warehouse_url, position=2)
    assert ask(warehouse_url, "SELECT rows FROM mesh.tables") == [(6,)]


def uses(url: str) -> None:
    """All that writes to the project's own tables, and reads them."""
    number = 1 + len(ask(url, "SELECT 1 FROM mesh.loads")) if is_there(url, "mesh.loads") else 1
    bring(url, position=number)
    read_built(url)
    record_built(url, Table("shop", "mart"), {"": f"v{number}"})
    verdict = standing.TestVerdict("a_test", Severity.WARNING, passed=True)
    standing.record_tests(url, {ORDERS: [verdict]}, "run")
    blocks(url, [ORDERS])
    with psycopg.connect(url) as connection:
        kept = Profiles(connection, ORDERS, are_partitions=False)
        kept.prepare()
        key = f"v{number}"
        line = (key, "id", ColumnProfile("bigint", 0, 3, 3, [1.0], {"1": 1}))
        kept.add(datetime.now(UTC), {key: 3}, [line])
        assert kept.columns([key]) == ["id"]
    with books_of(url, "http://gms") as books:
        books.told_events(number)
        books.told_declarations(str(number), [])


def test_elsewhere_nothing_is_made_by_who_uses_it(warehouse_url: str, elsewhere: None) -> None:
    with psycopg.connect(warehouse_url) as connection:
        for tables in SETS:
            with pytest.raises(NotMigratedError, match="Run `mesh deploy migrate`"):
                tables.prepare(connection)
    with pytest.raises(NotMigratedError, match="the ledger 0 of the 1 steps"):
        bring(warehouse_url)
    with pytest.raises(NotMigratedError):
        read_built(warehouse_url)
    with pytest.raises(NotMigratedError, match="catalog books"), books_of(warehouse_url, "gms"):
        pass
    assert ask(warehouse_url, "SELECT to_regnamespace('mesh')") == [(None,)]


def test_elsewhere_all_of_it_works_once_it_is_migrated(warehouse_url: str, elsewhere: None) -> None:
    for tables in SETS:
        migrate(warehouse_url, tables)
    uses(warehouse_url)
    assert ask(warehouse_url, "SELECT rows FROM mesh.tables") == [(3,)]


def test_this_code_works_on_tables_that_a_newer_release_has_added_to(
    warehouse_url: str, elsewhere: None
) -> None:
    for tables in SETS:
        migrate(warehouse_url, tables)
    uses(warehouse_url)
    # What a next step may do: columns with defaults, wherever it likes, and tables.
    ours = ask(warehouse_url, "SELECT tablename FROM pg_tables WHERE schemaname = 'mesh'")
    grown = tuple(
        f"ALTER TABLE mesh.{name} ADD COLUMN of_the_next_release text NOT NULL DEFAULT 'x'"
        for (name,) in ours
    )
    newer = replace(LEDGER, steps=(*LEDGER.steps, (*grown, "CREATE TABLE mesh.next (id int)")))
    assert migrate(warehouse_url, newer) == 1
    uses(warehouse_url)
    assert ask(warehouse_url, "SELECT rows FROM mesh.tables") == [(6,)]


def test_a_database_that_a_newer_release_migrated_is_not_migrated_by_this_one(
    warehouse_url: str,
) -> None:
    migrate(warehouse_url, replace(THINGS, steps=(*THINGS.steps, ("SELECT 1",))))
    with pytest.raises(NewerDatabaseError, match=r"3 steps of the things.* knows 2") as caught:
        migrate(warehouse_url, THINGS)
    assert "Nothing was changed" in str(caught.value)
    with psycopg.connect(warehouse_url) as connection:
        assert not THINGS.prepare(connection), "to run is not refused"
        assert THINGS.done(connection) == 3


def test_every_table_that_the_code_makes_for_itself_is_of_a_step(warehouse_url: str) -> None:
    text = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    made = set(re.findall(r"CREATE TABLE (?:IF NOT EXISTS )?mesh\.(\w+)", text))
    for tables in SETS:
        migrate(warehouse_url, tables)
    found = ask(warehouse_url, "SELECT tablename FROM pg_tables WHERE schemaname = 'mesh'")
    assert {name for (name,) in found} == made
    named = set(re.findall(r"(?:FROM|INTO|UPDATE|JOIN|COPY) mesh\.(\w+)", text))
    assert named <= made
