"""What a table holds, as a suite of expectations for a person to edit.

PostgreSQL counts. What is proposed holds of the table as it is, with room for what comes; of a
column with personal data no value is looked at.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import TYPE_CHECKING, Any

from dagster_project.failures import MeshError
from dagster_project.identity import Table, fitting, quoted
from dagster_project.quality.suites import Severity
from dagster_project.warehouse.connection import connect

if TYPE_CHECKING:
    import psycopg

#: Different texts that a column of categories has at most, and characters of each.
MOST_CATEGORIES = 15
_CATEGORY_LENGTH = 60
#: Rows that a category stands in on average, at least; else it is a column of any texts.
_ROWS_A_CATEGORY = 10
#: Rows looked at first, for which columns a look at all rows is worth its time.
_SAMPLE = 10_000
#: Columns a statement counts.
_COUNTED_TOGETHER = 400
#: How far beyond what is there a value may lie, as a share of the span.
_SLACK = Decimal("0.1")

_INTEGERS = frozenset({"int2", "int4", "int8"})
_NUMBERS = _INTEGERS | {"float4", "float8", "numeric"}
_TIMES = frozenset({"date", "timestamp", "timestamptz"})
_TEXTS = frozenset({"text", "varchar", "bpchar", "enum"})
#: Types that a table's rows are told apart by.
_KEYS = _INTEGERS | _TEXTS | {"uuid", "date"}
_KEY_NAME = re.compile(r"(^|_)(id|key|code|number|no)$")
#: Numbers without a scale: a range of them says nothing.
_NAMES_SOMETHING = re.compile(r"(^|_)(id|key|code)$")
_ROWS_OF_TABLE = "It has at least half of the rows of today, and at most ten times as many."
_ROWS_OF_PART = (
    "A part has at least half of the rows of today's smallest, and at most ten times as many as "
    "today's largest."
)
#: A time of our era, as PostgreSQL writes it.
_TIME = re.compile(r"(\d{4})-\d\d-\d\d( [\d:.+]+)?")


@dataclass
class _Column:
    """A column, and what is in it."""

    name: str
    #: PostgreSQL's name of its type; `enum` for any enumeration.
    type: str
    is_personal: bool
    nulls: int = 0
    #: Of numbers and times; None where there are none, or not all are ordinary ones.
    least: str | None = None
    most: str | None = None
    is_unique: bool = False
    categories: Sequence[str] = ()

    @property
    def sql(self) -> str:
        return quoted(self.name)

    @property
    def bounds(self) -> str:
        """The SQL of the least and the most."""
        if self.is_personal or self.type not in _NUMBERS | _TIMES:
            return "NULL::text, NULL::text"
        return f"min({self.sql})::text, max({self.sql})::text"

    @property
    def distinct(self) -> str:
        if self.type in _TEXTS:
            # Comparing texts takes several times as long as comparing their hashes.
            return f"count(DISTINCT hashtextextended({self.sql}::text, 0))"
        return f"count(DISTINCT {self.sql})"


@dataclass
class _Found:
    """What a table holds."""

    table: Table
    rows: int
    columns: list[_Column]
    #: Rows of the smallest partition and of the largest; of the table where it has none.
    fewest: int
    largest: int
    #: What no two rows share; empty if nobody says.
    key: Sequence[str]
    #: Whether that has been found to be so.
    key_holds: bool


def propose(
    url: str,
    table: Table,
    personal: Collection[str] = (),
    key: Sequence[str] = (),
    partition: str | None = None,
    say: Any = lambda text: None,
) -> list[dict[str, Any]]:
    """Expectations that the table meets, as they stand in a suite's file.

    `key` are the columns that are declared to tell its rows apart, `partition` is the column that
    it is checked by a part at a time. `say` is told what is being looked at. Raises MeshError, with
    near matches, if the table is not in the warehouse, or holds no row.
    """
    with connect(url, f"profiling {table}") as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        connection.execute("SET LOCAL timezone TO 'UTC'; SET LOCAL datestyle TO 'ISO'")
        found = _profile(connection, table, personal, key, partition, say)
    names: set[str] = set()
    proposed = []
    for kind, kwargs, check, severity, description in _expectations(found):
        name = _check_name(check, names)
        proposed.append(
            {
                "type": kind,
                "kwargs": dict(kwargs),
                "severity": severity.value,
                "description": description,
                "meta": {"check": name},
            }
        )
    return proposed


def _check_name(words: str, taken: set[str]) -> str:
    """A name that a check can have and no other has."""
    plain = unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
    if not slug[:1].isalpha():
        slug = f"column_{slug}"
    name, number = fitting(slug), 1
    while name in taken:
        number += 1
        name = fitting(slug, f"_{number}")
    taken.add(name)
    return name


# What is there


def _run(connection: psycopg.Connection[Any], statement: str) -> list[tuple[Any, ...]]:
    return connection.execute(statement.encode()).fetchall()


def _profile(
    connection: psycopg.Connection[Any],
    table: Table,
    personal: Collection[str],
    key: Sequence[str],
    partition: str | None,
    say: Any,
) -> _Found:
    columns = _columns(connection, table, personal)
    if not columns:
        raise MeshError(_not_there(connection, table))
    (rows,) = _run(connection, f"SELECT count(*) FROM {table.relation}")[0]
    if not rows:
        raise MeshError(
            f"{table} holds no row, so there is nothing to propose from: "
            f"`mesh run -d {table.domain}` fills what is declared"
        )
    say(f"{table}: {rows:,} rows, {len(columns)} columns")
    fewest = largest = rows
    if partition:
        fewest, largest = _run(
            connection,
            f"SELECT min(n), max(n) FROM (SELECT count(*) AS n FROM {table.relation} "
            f"GROUP BY {quoted(partition)}) AS parts",
        )[0]
    for first in range(0, len(columns), _COUNTED_TOGETHER):
        some = columns[first : first + _COUNTED_TOGETHER]
        figures = ", ".join(f"count(*) - count({c.sql}), {c.bounds}" for c in some)
        counted = _run(connection, f"SELECT {figures} FROM {table.relation}")[0]
        for place, column in enumerate(some):
            column.nulls, column.least, column.most = counted[3 * place : 3 * place + 3]
    _look_closer(connection, table, rows, columns, say)
    key = [name for name in key or _index(connection, table) if name in {c.name for c in columns}]
    return _Found(table, rows, columns, fewest, largest, key, _holds(connection, table, key))


def _columns(
    connection: psycopg.Connection[Any], table: Table, personal: Collection[str]
) -> list[_Column]:
    rows = connection.execute(
        "SELECT a.attname::text, CASE t.typtype WHEN 'e' THEN 'enum' ELSE t.typname::text END "
        "FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid "
        "WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped "
        "ORDER BY a.attnum",
        [table.relation],
    ).fetchall()
    # What the platform adds begins with an underscore.
    return [_Column(name, kind, name in personal) for name, kind in rows if name[:1] != "_"]


def _not_there(connection: psycopg.Connection[Any], table: Table) -> str:
    there = [
        f"{schema}.{name}"
        for schema, name in _run(
            connection,
            "SELECT n.nspname::text, c.relname::text FROM pg_class c "
            "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r','p','v','m','f')"
            " AND n.nspname !~ '^(pg_|information_schema$|mesh$)' "
            "AND c.relname !~ '__rejects$' ORDER BY 1, 2",
        )
    ]
    near = difflib.get_close_matches(str(table), there, n=3)
    near += [name for name in there if name.endswith(f".{table.name}") and name not in near]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{table} is not in the warehouse: {hint}`mesh run -d <domain>` builds what is declared"


def _look_closer(
    connection: psycopg.Connection[Any],
    table: Table,
    rows: int,
    columns: Sequence[_Column],
    say: Any,
) -> None:
    """Find what is unique, and what has few values: among some rows first, then among all."""
    eligible = [c for c in columns if c.type in _KEYS and c.nulls < rows]
    if not eligible:
        return
    figures = ", ".join(f"count({c.sql}), {c.distinct}" for c in eligible)
    names = ", ".join(c.sql for c in eligible)
    counted = _run(
        connection,
        f"SELECT {figures} FROM (SELECT {names} FROM {table.relation} LIMIT {_SAMPLE}) AS sample",
    )[0]
    for place, column in enumerate(eligible):
        values, distinct = counted[2 * place : 2 * place + 2]
        if not column.nulls and distinct == values:
            say(f"is {column.name} unique?")
            column.is_unique = (
                rows > 1
                and _run(connection, f"SELECT {column.distinct} FROM {table.relation}")[0][0]
                == rows
            )
        elif column.type in _TEXTS and not column.is_personal and distinct <= MOST_CATEGORIES:
            say(f"which values has {column.name}?")
            found = _run(
                connection,
                f"SELECT {column.sql}::text FROM {table.relation} WHERE {column.sql} IS NOT NULL "
                f"GROUP BY {column.sql} LIMIT {MOST_CATEGORIES + 1}",
            )
            values = sorted(value for (value,) in found)
            repeated = (rows - column.nulls) / max(len(values), 1) >= _ROWS_A_CATEGORY
            short = all(len(value) <= _CATEGORY_LENGTH for value in values)
            if len(values) <= MOST_CATEGORIES and repeated and short:
                column.categories = values


def _index(connection: psycopg.Connection[Any], table: Table) -> list[str]:
    """The columns of the primary key, or of a unique index over columns alone."""
    rows = connection.execute(
        "SELECT array_agg(a.attname::text ORDER BY k.place) FROM pg_index i "
        "CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(number, place) "
        "JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number "
        "WHERE i.indrelid = to_regclass(%s) AND i.indisunique AND i.indpred IS NULL "
        "AND i.indexprs IS NULL AND i.indnatts = i.indnkeyatts "
        "GROUP BY i.indexrelid, i.indisprimary ORDER BY i.indisprimary DESC, i.indexrelid LIMIT 1",
        [table.relation],
    ).fetchall()
    return list(rows[0][0]) if rows else []


def _holds(connection: psycopg.Connection[Any], table: Table, key: Sequence[str]) -> bool:
    names = ", ".join(map(quoted, key))
    return bool(key) and not _run(
        connection,
        f"SELECT 1 FROM {table.relation} GROUP BY {names} HAVING count(*) > 1 LIMIT 1",
    )


# What is proposed

_Proposed = tuple[str, Mapping[str, Any], str, Severity, str]


def _expectations(found: _Found) -> Iterator[_Proposed]:
    critical, warning = Severity.CRITICAL, Severity.WARNING
    yield (
        "expect_table_columns_to_match_set",
        {"column_set": [c.name for c in found.columns], "exact_match": False},
        "columns_present",
        warning,
        "The columns that there are today are there.",
    )
    parts = (found.fewest, found.largest) != (found.rows, found.rows)
    least, most = max(1, _rounded(found.fewest // 2)), _rounded(found.largest * 10)
    yield (
        "expect_table_row_count_to_be_between",
        {"min_value": least, "max_value": most},
        "row_count",
        warning,
        _ROWS_OF_PART if parts else _ROWS_OF_TABLE,
    )
    key = _key(found)
    for column in found.columns:
        if not column.nulls:
            yield (
                "expect_column_values_to_not_be_null",
                {"column": column.name},
                f"{column.name}_present",
                critical if column.name in key else warning,
                f"Every row has its {column.name}.",
            )
    if len(key) > 1:
        yield (
            "expect_compound_columns_to_be_unique",
            {"column_list": list(key)},
            "key_unique",
            critical,
            f"No two rows share {', '.join(key[:-1])} and {key[-1]}.",
        )
    for column in found.columns:
        if not _tells_apart(column, key):
            yield from _about_values(column)
        else:
            yield (
                "expect_column_values_to_be_unique",
                {"column": column.name},
                f"{column.name}_unique",
                critical if key == [column.name] else warning,
                f"No two rows share a {column.name}.",
            )


def _key(found: _Found) -> list[str]:
    """What tells the rows apart: as declared, or the first column that seems to be made for it."""
    columns = {column.name: column for column in found.columns}
    if found.key:
        whole = found.key_holds and not any(columns[name].nulls for name in found.key)
        return list(found.key) if whole else []
    for place, column in enumerate(found.columns):
        if column.is_unique and (place == 0 or _KEY_NAME.search(column.name)):
            return [column.name]
    return []


def _tells_apart(column: _Column, key: Sequence[str]) -> bool:
    """Whether it is unique, and not by chance, as an amount can be in a small table."""
    named = column.type in {*_TEXTS, "uuid"} or bool(_KEY_NAME.search(column.name))
    return column.is_unique and (key == [column.name] or (named and column.name not in key))


def _about_values(column: _Column) -> Iterator[_Proposed]:
    if column.categories:
        yield (
            "expect_column_values_to_be_in_set",
            {"column": column.name, "value_set": list(column.categories)},
            f"{column.name}_known",
            Severity.WARNING,
            f"{column.name} is one of those that are known.",
        )
    if column.least is None or column.most is None:
        return
    if column.type in _TIMES:
        if day := _TIME.fullmatch(column.least):
            yield (
                "expect_column_values_to_be_between",
                {"column": column.name, "min_value": f"{day[1]}-01-01"},
                f"{column.name}_plausible",
                Severity.WARNING,
                f"No {column.name} is before {day[1]}.",
            )
        return
    least, most = Decimal(column.least), Decimal(column.most)
    if not (least.is_finite() and most.is_finite()) or _NAMES_SOMETHING.search(column.name):
        return
    low, high = _room(least, most)
    yield (
        "expect_column_values_to_be_between",
        {"column": column.name, "min_value": low, "max_value": high},
        f"{column.name}_plausible",
        Severity.WARNING,
        f"{column.name} lies between {low} and {high}.",
    )


def _room(least: Decimal, most: Decimal) -> tuple[int | float, int | float]:
    """Round bounds a little beyond these; what is never negative does not become so."""
    span = max(most - least, abs(most) / 10) or Decimal(1)
    slack = span * _SLACK
    step = Decimal(10) ** slack.adjusted()
    low = ((least - slack) / step).to_integral_value(ROUND_FLOOR) * step
    high = ((most + slack) / step).to_integral_value(ROUND_CEILING) * step
    return _number(max(low, Decimal(0)) if least >= 0 else low), _number(high)


def _number(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() else float(value)


def _rounded(rows: int) -> int:
    """A number of rows to one digit."""
    unit = int("1" + "0" * (len(str(rows)) - 1))
    return rows // unit * unit
