"""Profiles: what a table's partitions, or versions, held, kept in the warehouse.

They lie in `mesh.profiles`, one row a column and one, without a column's name, for the rows as a
whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, cast

from dagster_project.identity import Table
from dagster_project.warehouse.migrations import LOCK, Migrations

if TYPE_CHECKING:
    import psycopg

#: Versions of an unpartitioned table that are kept; of partitions all are.
VERSIONS_KEPT = 400

_FIRST = """CREATE TABLE IF NOT EXISTS mesh.profiles (
    table_schema text NOT NULL, table_name text NOT NULL,
    partition text NOT NULL, version text NOT NULL, column_name text NOT NULL,
    profiled_at timestamptz NOT NULL, rows bigint NOT NULL,
    column_type text NOT NULL, nulls bigint NOT NULL, looked_at bigint NOT NULL,
    distinct_values bigint, quantiles double precision[], categories jsonb,
    PRIMARY KEY (table_schema, table_name, partition, version, column_name))"""
PROFILES = Migrations("profiles", "the warehouse", ((_FIRST,),))
_COLUMNS = (
    "table_schema, table_name, partition, version, column_name, profiled_at, rows, column_type, "
    "nulls, looked_at, distinct_values, quantiles, categories"
)
_OF_TABLE = "table_schema = %(schema)s AND table_name = %(name)s"


@dataclass(frozen=True, slots=True)
class ColumnProfile:
    """Figures of a column."""

    #: PostgreSQL's name of its type.
    type: str
    nulls: int
    #: Values that the rest is of: those that are not null, of a sample where rows are many.
    looked_at: int
    #: Different ones among them; None for a type whose values are not compared.
    distinct: int | None = None
    #: Of numbers; or of times, in hours since the partition began, or since 1970.
    quantiles: Sequence[float] | None = None
    #: How often each of the most frequent is there.
    categories: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """A partition, or the whole table in a version."""

    #: An ISO date, or the version.
    key: str
    #: The partition's day; or that on which the version was profiled first, UTC.
    day: date
    rows: int


#: A slice's key, a column, and its figures.
Line = tuple[str, str, ColumnProfile]


class Profiles:
    """The profiles of a table, of its partitions or of its versions, on an open connection."""

    def __init__(
        self, connection: psycopg.Connection[Any], table: Table, are_partitions: bool
    ) -> None:
        self._connection = connection
        self._table = table
        self._are_partitions = are_partitions
        self._named: dict[str, Any] = {"schema": table.schema, "name": table.name}
        # Of the partitions or of the versions, whichever the table has had before.
        self._mine = f"{_OF_TABLE} AND partition {'<>' if are_partitions else '='} ''"
        self._order = "partition" if are_partitions else "profiled_at"

    def prepare(self) -> None:
        """Create what they lie in; while the connection lasts, nobody else profiles the table."""
        connection = self._connection
        PROFILES.prepare(connection)
        name = f"profiles of {self._table}"
        connection.commit()
        connection.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", [LOCK, name])
        connection.commit()

    def forget_values(self, personal: Collection[str]) -> None:
        """Remove the values of columns that were not declared personal when they were profiled."""
        self._connection.execute(
            f"UPDATE mesh.profiles SET quantiles = NULL, categories = NULL WHERE {_OF_TABLE} "
            "AND column_name = ANY(%(personal)s) "
            "AND (quantiles IS NOT NULL OR categories IS NOT NULL)",
            self._named | {"personal": list(personal)},
        )

    def remove(self, keys: Sequence[str]) -> datetime:
        """Remove those of these partitions, or of this version; gives the time of the new ones.

        The version that is the newest keeps the time it has.
        """
        column = "partition" if self._are_partitions else "version"
        newest = self._connection.execute(
            f"SELECT version, profiled_at FROM mesh.profiles WHERE {self._mine} "
            "AND column_name = '' ORDER BY profiled_at DESC LIMIT 1",
            self._named,
        ).fetchone()
        self._connection.execute(
            f"DELETE FROM mesh.profiles WHERE {self._mine} AND {column} = ANY(%(keys)s)",
            self._named | {"keys": list(keys)},
        )
        if self._are_partitions or not newest:
            return datetime.now(UTC)
        self._connection.execute(
            f"DELETE FROM mesh.profiles WHERE {self._mine} AND profiled_at < (SELECT profiled_at "
            f"FROM mesh.profiles WHERE {self._mine} AND column_name = '' "
            f"ORDER BY 1 DESC OFFSET {VERSIONS_KEPT - 2} LIMIT 1)",
            self._named,
        )
        return cast(datetime, newest[1]) if newest[0] == keys[0] else datetime.now(UTC)

    def add(self, at: datetime, rows: Mapping[str, int], lines: Sequence[Line]) -> None:
        """Add columns' figures, by the rows of each slice."""
        import orjson

        with (
            self._connection.cursor() as cursor,
            # Named: a newer release may have added some.
            cursor.copy(f"COPY mesh.profiles ({_COLUMNS}) FROM STDIN".encode()) as copy,
        ):
            for key, name, found in lines:
                categories = found.categories
                copy.write_row(
                    (
                        self._table.schema,
                        self._table.name,
                        *((key, "") if self._are_partitions else ("", key)),
                        name,
                        at,
                        rows[key],
                        found.type,
                        found.nulls,
                        found.looked_at,
                        found.distinct,
                        None if found.quantiles is None else list(found.quantiles),
                        None if categories is None else orjson.dumps(categories).decode(),
                    )
                )

    def slices(self) -> list[Slice]:
        """What there are profiles of, the earliest first."""
        rows = self._connection.execute(
            "SELECT partition, version, (profiled_at AT TIME ZONE 'UTC')::date, rows "
            f"FROM mesh.profiles WHERE {self._mine} AND column_name = '' ORDER BY {self._order}",
            self._named,
        )
        return [
            Slice(partition or version, date.fromisoformat(partition) if partition else day, number)
            for partition, version, day, number in rows
        ]

    def columns(self, keys: Sequence[str]) -> list[str]:
        """The columns that are in the profiles of these slices."""
        rows = self._connection.execute(
            f"SELECT DISTINCT column_name FROM mesh.profiles WHERE {self._mine} "
            "AND partition || version = ANY(%(keys)s) AND column_name <> '' ORDER BY 1",
            self._named | {"keys": list(keys)},
        )
        return [name for (name,) in rows]

    def read(self, keys: Sequence[str], columns: Sequence[str]) -> Iterable[Line]:
        """The figures of these columns in these slices."""
        rows = self._connection.execute(
            "SELECT partition || version, column_name, column_type, nulls, looked_at, "
            f"distinct_values, quantiles, categories FROM mesh.profiles WHERE {self._mine} "
            "AND partition || version = ANY(%(keys)s) AND column_name = ANY(%(columns)s)",
            self._named | {"keys": list(keys), "columns": list(columns)},
        )
        for key, name, *figures in rows:
            yield key, name, ColumnProfile(*figures)

    def first_seen(self, columns: Sequence[str]) -> dict[tuple[str, str], str]:
        """The first slice that has each category, by column and category."""
        rows = self._connection.execute(
            "SELECT DISTINCT ON (column_name, category) column_name, category, "
            "partition || version FROM mesh.profiles, jsonb_object_keys(categories) AS category "
            f"WHERE {self._mine} AND column_name = ANY(%(columns)s) "
            f"ORDER BY column_name, category, {self._order}",
            self._named | {"columns": list(columns)},
        )
        return {(name, category): key for name, category, key in rows}
