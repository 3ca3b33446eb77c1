"""What the warehouse knows of its own tables: which version each holds and what was loaded when.

The ledger lies in the warehouse's schema `mesh` and commits together with the rows it tells of, so
the two never disagree, whoever was killed when.
"""

from __future__ import annotations

from dataclasses import dataclass

from dagster_project.identity import Table, quoted
from dagster_project.warehouse.connection import connect

#: Created under a lock, statement by statement; each is harmless where the thing exists.
STATEMENTS = (
    "CREATE SCHEMA IF NOT EXISTS mesh",
    """CREATE TABLE IF NOT EXISTS mesh.tables (
        table_schema text NOT NULL, table_name text NOT NULL,
        version text NOT NULL, position bigint NOT NULL, rows bigint NOT NULL,
        load_id text NOT NULL, changed_at timestamptz NOT NULL,
        mark text NOT NULL DEFAULT '', PRIMARY KEY (table_schema, table_name))""",
    "ALTER TABLE mesh.tables ADD COLUMN IF NOT EXISTS mark text NOT NULL DEFAULT ''",
    """CREATE TABLE IF NOT EXISTS mesh.partitions (
        table_schema text NOT NULL, table_name text NOT NULL, partition text NOT NULL,
        version text NOT NULL, rows bigint NOT NULL,
        object text NOT NULL, object_version text NOT NULL,
        load_id text NOT NULL, changed_at timestamptz NOT NULL,
        PRIMARY KEY (table_schema, table_name, partition))""",
    """CREATE TABLE IF NOT EXISTS mesh.loads (
        load_id text PRIMARY KEY, table_schema text NOT NULL, table_name text NOT NULL,
        run_id text NOT NULL, mode text NOT NULL, objects bigint NOT NULL,
        received bigint NOT NULL, new bigint NOT NULL, changed bigint NOT NULL,
        duplicates bigint NOT NULL, removed bigint NOT NULL, rejected bigint NOT NULL,
        started_at timestamptz NOT NULL, ended_at timestamptz NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS mesh.models (
        table_schema text NOT NULL, table_name text NOT NULL, partition text NOT NULL DEFAULT '',
        version text NOT NULL, built_at timestamptz NOT NULL,
        PRIMARY KEY (table_schema, table_name, partition))""",
)

#: The advisory lock under which the ledger is created.
LOCK = 0x6D657368


@dataclass(frozen=True, slots=True)
class TableState:
    """What a table held after its last load."""

    #: Changes if and only if the table's rows did; empty before the first load.
    version: str = ""
    #: Up to where its source was loaded: the number of the last commit.
    position: int = 0
    rows: int = 0
    #: What identifies that place of its source, as another lake has the same numbers.
    mark: str = ""
    #: How it was loaded last.
    mode: str = ""


@dataclass(frozen=True, slots=True)
class PartitionState:
    """What one partition of a table holds."""

    partition: str
    version: str
    rows: int
    #: The object it came from, and that object's version when it was read.
    object: str
    object_version: str


def partitions_held(table: Table, column: str) -> str:
    """The query of a table's partitions, its schema and name as $1 and $2.

    One of which rows were removed or added by hand is not among them: it is loaded again.
    """
    return (
        "SELECT p.partition, p.version, p.rows, p.object, p.object_version FROM mesh.partitions p "
        f"LEFT JOIN (SELECT to_char({quoted(column)}, 'YYYY-MM-DD') AS partition, "
        f"count(*) AS rows FROM {table.relation} GROUP BY 1) AS held USING (partition) "
        "WHERE p.table_schema = $1 AND p.table_name = $2 AND p.rows = coalesce(held.rows, 0)"
    )


def read_partitions(url: str, table: Table, column: str) -> dict[str, PartitionState]:
    """What each partition of a table holds, by a column; empty for a table that is not there."""
    import psycopg

    with connect(url, f"reading what {table} holds") as connection:
        cursor = psycopg.RawCursor(connection)
        there = cursor.execute(
            "SELECT to_regclass('mesh.partitions') IS NOT NULL AND to_regclass($1) IS NOT NULL",
            (table.relation,),
        ).fetchone()
        if there != (True,):
            return {}
        rows = cursor.execute(partitions_held(table, column), (table.schema, table.name))
        return {row[0]: PartitionState(*row) for row in rows}


@dataclass(frozen=True, slots=True)
class Load:
    """What a load did; all counts are rows."""

    received: int
    new: int
    changed: int
    #: Came again as they were, or older than what is there.
    duplicates: int
    removed: int
    rejected: int
    objects: int
    #: The table after the load.
    rows: int
    version: str
    new_columns: tuple[str, ...] = ()
    #: Columns whose type became a wider one.
    widened: tuple[str, ...] = ()
    partitions: tuple[PartitionState, ...] = ()

    @property
    def did_change(self) -> bool:
        return bool(self.new or self.changed or self.removed)
