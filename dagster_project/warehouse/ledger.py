"""What the warehouse knows of its own tables: which version each holds and what was loaded when.

The ledger lies in the warehouse's schema `mesh` and commits together with the rows it tells of, so
the two never disagree, whoever was killed when.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dagster_project.identity import Table, quoted
from dagster_project.warehouse.connection import connect
from dagster_project.warehouse.migrations import Migrations

if TYPE_CHECKING:
    from dagster_project.warehouse.arrow import ArrowSession

_FIRST = (
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
    # `kind` is what said it; `asked` a digest of what was asked.
    """CREATE TABLE IF NOT EXISTS mesh.verdicts (
        table_schema text NOT NULL, table_name text NOT NULL, check_name text NOT NULL,
        partition text NOT NULL DEFAULT '', severity text NOT NULL, passed boolean NOT NULL,
        unexpected bigint, version text NOT NULL, since timestamptz NOT NULL, run_id text NOT NULL,
        PRIMARY KEY (table_schema, table_name, check_name, partition))""",
    "ALTER TABLE mesh.verdicts ADD COLUMN IF NOT EXISTS kind text NOT NULL DEFAULT 'expectation'",
    "ALTER TABLE mesh.verdicts ADD COLUMN IF NOT EXISTS asked text NOT NULL DEFAULT ''",
)
LEDGER = Migrations("ledger", "the warehouse", (_FIRST,))


def digest(*parts: str) -> str:
    """What stands for these texts together, in their order."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:32]


def revised(version: str, change: str) -> str:
    """The version of what was loaded, once rows of it were put aside or came back from there."""
    loaded, _, before = version.partition("+")
    return f"{loaded}+{digest(before, change)}"


def as_loaded(version: str) -> str:
    """The version before any such revision."""
    return version.partition("+")[0]


def revise(session: ArrowSession, table: Table, changes: Mapping[str, tuple[int, str]]) -> None:
    """Note in the session's transaction that rows were put aside, or came back, since the load.

    `changes` are by partition, the empty one for a table without: by how many rows it changed, and
    what stands for what changed.
    """
    name = (table.schema, table.name)
    where = "table_schema = $1 AND table_name = $2"
    held = {"": session.run(f"SELECT version FROM mesh.tables WHERE {where}", name)}
    held |= {
        partition: session.run(
            f"SELECT version FROM mesh.partitions WHERE {where} AND partition = $3",
            (*name, partition),
        )
        for partition in changes
        if partition
    }
    whole = sum(number for number, _ in changes.values())
    what = digest(*(f"{partition}={change}" for partition, (_, change) in sorted(changes.items())))
    for partition, (number, change) in {**changes, "": (whole, what)}.items():
        for (version,) in held[partition]:
            ledgered, key = ("mesh.partitions", (partition,)) if partition else ("mesh.tables", ())
            session.run(
                f"UPDATE {ledgered} SET version = $3, rows = rows + $4, changed_at = now() "
                f"WHERE {where}" + (" AND partition = $5" if partition else ""),
                (*name, revised(version, change), number, *key),
            )


@dataclass(frozen=True, slots=True)
class TableState:
    """What a table holds."""

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

    @property
    def digest(self) -> str:
        """Of what the object held."""
        return as_loaded(self.version)


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


def read_objects(url: str, table: Table) -> dict[str, str]:
    """The object that each partition of a table came from, with its version: `key version`."""
    with connect(url, f"reading what {table} was loaded from") as connection:
        there = connection.execute("SELECT to_regclass('mesh.partitions') IS NOT NULL").fetchone()
        if there != (True,):
            return {}
        rows = connection.execute(
            "SELECT partition, object || ' ' || object_version FROM mesh.partitions "
            "WHERE (table_schema, table_name) = (%s, %s)",
            [table.schema, table.name],
        )
        return {row[0]: row[1] for row in rows}


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
