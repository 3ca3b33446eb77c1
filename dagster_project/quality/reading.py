"""Great Expectations' results, as outcomes that an asset check shows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date
from decimal import Decimal
from typing import Any

from dagster_project.identity import quoted
from dagster_project.quality.asked import Asked, Request, is_about_rows
from dagster_project.quality.masking import may_show, without_values
from dagster_project.quality.outcome import MASK, SAMPLE_ROWS, Outcome
from dagster_project.warehouse.connection import connect, masked

#: Python's errors that do not say what to mend in a suite.
_CLEARER = {
    "can't compare offset-naive and offset-aware datetimes": (
        "of the column and min_value or max_value one has a time zone and the other has "
        "none: write the zone, as in 2013-01-01T00:00:00+00:00, for a column of the type "
        "timestamptz, and none for a timestamp"
    )
}


def key_of(url: str, request: Request) -> list[str]:
    """What a person recognises a row by: the primary key, or what the suite says is unique."""
    table = request.suite.table
    with connect(url, f"reading the key of {table}") as connection:
        rows = connection.execute(
            "SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid "
            "AND a.attnum = ANY(i.indkey) WHERE i.indisprimary AND i.indrelid = to_regclass(%s) "
            "ORDER BY array_position(i.indkey::int2[], a.attnum)",
            [table.relation],
        ).fetchall()
    if rows:
        return [row[0] for row in rows]
    for expectation in request.suite.expectations:
        if expectation.type == "expect_column_values_to_be_unique":
            return [expectation.kwargs["column"]]
        if expectation.type == "expect_compound_columns_to_be_unique":
            return list(expectation.kwargs["column_list"])
    return []


def outcome_of(url: str, request: Request, check: str, results: Mapping[Asked, Any]) -> Outcome:
    """Of one check, from its result, or from one a partition."""
    refused = {a: result for a, result in results.items() if not result.success}
    a, result = next(iter((refused or results).items()))
    error = error_of(result.exception_info)
    if request.personal:
        error = without_values(error)
    figures = result.result or {}
    about = _columns(a.stock) & set(request.personal)
    query = figures.get("query", "")
    return Outcome(
        check=check,
        passed=not refused,
        error=error,
        observed=_observed(figures, about),
        unexpected_count=figures.get("unexpected_count"),
        unexpected_percent=figures.get("unexpected_percent"),
        rows=figures.get("element_count"),
        sample=_sample(url, request, a.stock, figures, query) if refused else (),
        query=query,
        condition=figures.get("condition", ""),
        failed=_failed(url, request, refused, query),
    )


def _columns(stock: Any) -> set[str]:
    """The columns an expectation names."""
    kwargs = stock.configuration.kwargs
    names = {kwargs.get(name) for name in ("column", "column_A", "column_B")}
    return {name for name in names | set(kwargs.get("column_list") or ()) if name}


def _observed(figures: Mapping[str, Any], about: Collection[str]) -> Any:
    observed = figures.get("observed_value")
    if observed is None:
        observed = {
            words: figures[name]
            for name, words in (
                ("partial_unexpected_list", "unexpected"),
                ("partial_missing_list", "missing"),
            )
            if figures.get(name) and "element_count" not in figures
        } or None
    return MASK if about and observed is not None else observed


def _sample(
    url: str, request: Request, stock: Any, figures: Mapping[str, Any], query: str
) -> list[dict[str, Any]]:
    """Unexpected rows, by what a person recognises them by."""
    own = stock.configuration.kwargs.get("unexpected_rows_query")
    if own and not may_show(own, request.personal):
        return []
    rows = figures.get("unexpected_rows")
    if rows is None and query:
        from psycopg.rows import dict_row

        statement = f"SELECT * FROM ({query}) AS q LIMIT {SAMPLE_ROWS}"
        with connect(url, f"reading rows of {request.suite.table}") as connection:
            cursor = connection.cursor(row_factory=dict_row)
            rows = cursor.execute(statement.encode()).fetchall()
    return [
        {name: MASK if name in request.personal else plain(value) for name, value in row.items()}
        for row in rows or ()
    ]


def plain(value: Any) -> Any:
    """A value that JSON has, or text."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, (bytes, memoryview)):
        return "\\x" + bytes(value).hex()
    if isinstance(value, Decimal) and value.is_finite():
        # Great Expectations looks through the whole stack, 60 ms, for each that it makes JSON of.
        number = float(value)
        if Decimal(repr(number)) != value:
            return str(value)
        return int(number) if number.is_integer() and abs(number) < 1e15 else number
    known = value is None or isinstance(value, (bool, int, float, str, Decimal, date))
    return value if known else str(value)


def _failed(
    url: str, request: Request, refused: Mapping[Asked, Any], query: str
) -> dict[str, int | None]:
    """The partitions that fail, with their unexpected rows; the empty one is the whole table."""
    if not refused:
        return {}
    ((a, result),) = list(refused.items())[:1]
    of_rows = is_about_rows(a.stock) or "unexpected_rows_query" in type(a.stock).__fields__
    of_a_part = of_rows or "row_condition" in type(a.stock).__fields__
    counted = (result.result or {}).get("unexpected_count")
    # What is about the table itself is so for all its partitions, as is what could not be found
    # out, unless it is for some of the rows.
    lost = error_of(result.exception_info) and counted is None
    if not request.partitions or not of_a_part or lost:
        return {"": counted}
    if all(a.partition for a in refused):
        return {a.partition: None for a in refused}
    partitions = request.partitions
    figures = result.result or {}
    selected = _selects_partition(a.stock, figures, partitions.column)
    if len(partitions.keys) == 1 or not selected:
        return dict.fromkeys(partitions.keys, counted)
    statement = (
        f"SELECT to_char({selected}, 'YYYY-MM-DD'), count(*) FROM ({query}) AS q GROUP BY 1 "
        "ORDER BY 1"
    )
    with connect(url, f"finding the partitions of {request.suite.table} that fail") as connection:
        found = dict(connection.execute(statement.encode()).fetchall())
    failed: dict[str, int | None] = {key: found[key] for key in partitions.keys if key in found}
    # Rows of other days only, or of none: which of these days they are against, nobody knows.
    return failed or dict.fromkeys(partitions.keys)


def _selects_partition(stock: Any, figures: Mapping[str, Any], column: str) -> str:
    """The partition's column in the query of unexpected rows, quoted; empty if it is not there."""
    if is_about_rows(stock):
        return quoted(column) if figures.get("query") else ""
    rows = figures.get("unexpected_rows") or [{}]
    return quoted(column) if column in rows[0] else ""


def error_of(info: Mapping[str, Any] | None) -> str:
    """The message of an expectation that could not be evaluated.

    Great Expectations gives it in two shapes: one exception, or one a metric.
    """
    if not info:
        return ""
    shapes = [info] if "raised_exception" in info else list(info.values())
    messages = [str(s["exception_message"]) for s in shapes if s.get("raised_exception")]
    return masked("; ".join(_CLEARER.get(message, message) for message in dict.fromkeys(messages)))
