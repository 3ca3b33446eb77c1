"""Profiling: the figures of a table's partitions, or of the whole table, for `mesh.profiles`.

PostgreSQL aggregates all partitions of a run at once. Rows and nulls are counted; of values at most
some hundred thousand a partition are looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from dagster_project.failures import WarehouseError
from dagster_project.identity import Table, quoted
from dagster_project.quality.outcome import Partitions
from dagster_project.quality.profiles import ColumnProfile, Line, Profiles
from dagster_project.warehouse.connection import connect
from dagster_project.warehouse.target import VOLATILE

if TYPE_CHECKING:
    import psycopg

#: The quantiles of a column of numbers or times.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
#: Different values that a column of categories has at most, and those that are kept of them.
MOST_DISTINCT = 50
MOST_FREQUENT = 20
#: Characters kept of a category.
CATEGORY_LENGTH = 60
#: Rows of a slice that values are looked at of.
LOOKED_AT = 100_000
#: Columns that a statement counts, and columns whose values a statement sorts.
_COUNTED_TOGETHER = 400
_SORTED_TOGETHER = 24

_INTEGERS = frozenset({"int2", "int4", "int8"})
_NUMBERS = _INTEGERS | {"float4", "float8", "numeric"}
_SPANS = frozenset({"time", "interval"})
_TIMES = _SPANS | {"date", "timestamp", "timestamptz"}
_TEXTS = frozenset({"text", "varchar", "bpchar", "uuid", "enum"})
#: What the loader adds to rows.
_LOADERS = frozenset({*VOLATILE, "_object", "_loaded_at"})
_EPOCH = date(1970, 1, 1)
#: Beside the table's own columns.
_SLICE = '"_mesh slice"'


def keep_profiles(
    url: str,
    table: Table,
    partitions: Partitions | None,
    version: str,
    personal: Collection[str] = (),
    exclude: Collection[str] = (),
) -> None:
    """Profile these partitions, or the whole table as this version, in place of what is kept.

    Of `personal` columns no value is kept, only counts; `exclude` are columns left out. Raises
    WarehouseError if the table is not there.
    """
    import psycopg

    keys = partitions.keys if partitions else (version,)
    with connect(url, f"profiling {table}") as connection:
        profiles = Profiles(connection, table, are_partitions=partitions is not None)
        profiles.prepare()
        # What is counted and what is looked at are the same rows, whoever loads meanwhile.
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        # Several columns are sorted at once.
        connection.execute("SET LOCAL work_mem = '4MB'")
        columns = _columns(connection, table, partitions, personal, exclude)
        profiles.forget_values(personal)
        at = profiles.remove(keys)
        everything = _Rows(table, partitions, version)
        counted, nulls = _counts(connection, everything, columns)
        rows = {key: counted.get(key, 0) for key in keys}
        profiles.add(at, rows, [(key, "", ColumnProfile("", 0, rows[key])) for key in keys])
        share = min(1.0, LOOKED_AT * len(keys) / max(sum(rows.values()), 1))
        sample = _Rows(table, partitions, version, share)
        for first in range(0, len(columns), _SORTED_TOGETHER):
            together = columns[first : first + _SORTED_TOGETHER]
            profiles.add(at, rows, list(_figures(connection, sample, together, nulls)))


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    #: PostgreSQL's name of its type; `enum` for any enumeration.
    type: str
    personal: bool

    @property
    def sql(self) -> str:
        return quoted(self.name)

    @property
    def is_ordered(self) -> bool:
        return self.type in _NUMBERS or self.type in _TIMES

    @property
    def aggregates(self) -> str:
        """Values, different values, quantiles."""
        return f"count({self.sql}), {self._distinct}, {self._quantiles}"

    @property
    def _distinct(self) -> str:
        if self.type == "bool":
            differ = f"bool_or({self.sql}) IS DISTINCT FROM bool_and({self.sql})"
            return f"(count({self.sql}) > 0)::int + ({differ})::int"
        if self.is_ordered:
            return f"count(DISTINCT {self.sql})"
        if self.type in _TEXTS:
            # Comparing texts takes several times as long as comparing their hashes.
            return f"count(DISTINCT hashtextextended({self.sql}::text, 0))"
        return "NULL::bigint"

    @property
    def _quantiles(self) -> str:
        if self.personal or not self.is_ordered:
            return "NULL::float8[]"
        if self.type in _TIMES:
            value = f"date_part('epoch', {self.sql})"
        elif self.type == "numeric":
            # Others have no place among floats; NaN is not less than anything.
            value = f"CASE WHEN abs({self.sql}) < 1e300 THEN {self.sql}::float8 END"
        else:
            value = f"{self.sql}::float8"
        return f"percentile_cont(ARRAY{list(QUANTILES)}) WITHIN GROUP (ORDER BY {value})"

    @property
    def category(self) -> str:
        if self.type in ("text", "varchar", "bpchar"):
            return f"left({self.sql}, {CATEGORY_LENGTH})"
        return self.sql

    def in_hours(self, slice_: date, quantiles: Sequence[float] | None) -> Sequence[float] | None:
        """Quantiles of times in hours; of dates since the slice began."""
        if quantiles is None or self.type not in _TIMES:
            return quantiles
        began = 0 if self.type in _SPANS else (slice_ - _EPOCH).days * 24
        return [seconds / 3600 - began for seconds in quantiles]

    def has_categories(self, distinct: int) -> bool:
        """Whether it is kept how often it has each value, of so many in a slice at most."""
        if self.personal or not 0 < distinct <= MOST_DISTINCT:
            return False
        # A number that is the same in all rows, say the month, is about the slice, not its rows.
        if self.type in _INTEGERS:
            return distinct > 1
        return self.type in _TEXTS or self.type == "bool"


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows that are profiled, by slice: a partition's date, or 1970's first day for all."""

    table: Table
    partitions: Partitions | None
    version: str
    #: The share of the rows that is looked at.
    share: float = 1.0

    def sql(self, columns: Sequence[_Column]) -> str:
        """The subquery of these columns, beside the slice."""
        if self.partitions:
            column, keys = quoted(self.partitions.column), sorted(self.partitions.keys)
            slice_ = f"{column}::date"
            where = f"{column} >= date '{keys[0]}' AND {column} < date '{keys[-1]}' + 1"
            if (date.fromisoformat(keys[-1]) - date.fromisoformat(keys[0])).days >= len(keys):
                where += f" AND {slice_} = ANY(ARRAY{keys}::date[])"
        else:
            slice_, where = "date '1970-01-01'", "true"
        if self.share < 1:
            where += f" AND random() < {self.share:.9f}"
        names = "".join(f", {column.sql}" for column in columns)
        selected = f"SELECT {slice_} AS {_SLICE}{names} FROM {self.table.relation}"
        return f"({selected} WHERE {where}) AS rows"

    def key(self, slice_: date) -> str:
        return slice_.isoformat() if self.partitions else self.version


def _run(connection: psycopg.Connection[Any], statement: str) -> list[tuple[Any, ...]]:
    return connection.execute(statement.encode()).fetchall()


def _columns(
    connection: psycopg.Connection[Any],
    table: Table,
    partitions: Partitions | None,
    personal: Collection[str],
    exclude: Collection[str],
) -> list[_Column]:
    rows = connection.execute(
        "SELECT a.attname::text, CASE b.typtype WHEN 'e' THEN 'enum' ELSE b.typname::text END "
        "FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid "
        "JOIN pg_type b ON b.oid = coalesce(nullif(t.typbasetype, 0), t.oid) "
        "WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped "
        "ORDER BY a.attnum",
        [table.relation],
    ).fetchall()
    if not rows:
        raise WarehouseError(
            f"{table} cannot be profiled: it is not in the warehouse. Load or build it, and run "
            "its checks again"
        )
    left_out = {*_LOADERS, *exclude, *([partitions.column] if partitions else [])}
    return [_Column(name, kind, name in personal) for name, kind in rows if name not in left_out]


def _counts(
    connection: psycopg.Connection[Any], source: _Rows, columns: Sequence[_Column]
) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """Rows by slice, and nulls by slice and column."""
    rows: dict[str, int] = {}
    nulls: dict[tuple[str, str], int] = {}
    for first in range(0, max(len(columns), 1), _COUNTED_TOGETHER):
        together = columns[first : first + _COUNTED_TOGETHER]
        counts = "".join(f", count({column.sql})" for column in together)
        statement = f"SELECT {_SLICE}, count(*){counts} FROM {source.sql(together)} GROUP BY 1"
        for slice_, number, *present in _run(connection, statement):
            key = source.key(slice_)
            rows[key] = number
            for column, count in zip(together, present, strict=True):
                nulls[key, column.name] = number - count
    return rows, nulls


def _figures(
    connection: psycopg.Connection[Any],
    source: _Rows,
    columns: Sequence[_Column],
    nulls: Mapping[tuple[str, str], int],
) -> Iterator[Line]:
    """The columns' figures by slice; none of a slice without rows."""
    rows = source.sql(columns)
    if source.share < 1:
        # The same rows again, if they lie as they did.
        connection.execute("SELECT setseed(0.5)")
        connection.execute("DROP TABLE IF EXISTS pg_temp.mesh_sample")
        connection.execute(
            f"CREATE TEMPORARY TABLE mesh_sample ON COMMIT DROP AS SELECT * FROM {rows}".encode()
        )
        rows = "pg_temp.mesh_sample AS rows"
    aggregates = "".join(f", {column.aggregates}" for column in columns)
    found = _run(connection, f"SELECT {_SLICE}{aggregates} FROM {rows} GROUP BY 1")
    chosen = [
        column
        for place, column in enumerate(columns)
        if column.has_categories(max((row[3 * place + 2] or 0 for row in found), default=0))
    ]
    categories = {
        (source.key(slice_), chosen[place].name): frequencies
        for (place, slice_), frequencies in _categories(connection, rows, chosen).items()
    }
    for slice_, *figures in found:
        key = source.key(slice_)
        for place, column in enumerate(columns):
            looked_at, distinct, quantiles = figures[3 * place : 3 * place + 3]
            yield (
                key,
                column.name,
                ColumnProfile(
                    column.type,
                    nulls[key, column.name],
                    looked_at,
                    distinct,
                    column.in_hours(slice_, quantiles),
                    categories.get((key, column.name), {}) if column in chosen else None,
                ),
            )


def _categories(
    connection: psycopg.Connection[Any], rows: str, columns: Sequence[_Column]
) -> dict[tuple[int, date], dict[str, int]]:
    """How often the most frequent values are there, by the column's place and slice."""
    if not columns:
        return {}
    counted = " UNION ALL ".join(
        f"SELECT {place} AS place, slice, value::text, number FROM (SELECT {_SLICE} AS slice, "
        f"{column.category} AS value, count(*) AS number FROM {rows} "
        f"WHERE {column.sql} IS NOT NULL GROUP BY 1, 2) AS counted"
        for place, column in enumerate(columns)
    )
    ranked = (
        "SELECT *, row_number() OVER (PARTITION BY place, slice ORDER BY number DESC, value) "
        f"AS rank FROM ({counted}) AS counted"
    )
    statement = (
        f"SELECT place, slice, value, number FROM ({ranked}) AS ranked "
        f"WHERE rank <= {MOST_FREQUENT}"
    )
    found: dict[tuple[int, date], dict[str, int]] = {}
    for place, slice_, value, number in _run(connection, statement):
        found.setdefault((place, slice_), {})[value] = number
    return found
