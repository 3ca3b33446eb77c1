"""Running a suite on its table with Great Expectations: one validation, all expectations.

Two looks: the first asks for the figures that the verdicts need, in few statements. Only for what
failed a second one fetches the rows to show.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from dagster_project.failures import DeclarationError, WarehouseError
from dagster_project.quality.masking import masked_result
from dagster_project.quality.outcome import MASK, SAMPLE_ROWS, Outcome, Partitions, Validation
from dagster_project.quality.suites import Suite
from dagster_project.warehouse.connection import connect, failure, masked


@dataclass(frozen=True, slots=True)
class Request:
    """What to validate: these checks of a suite, on the whole table or on some partitions."""

    suite: Suite
    checks: Sequence[str]
    partitions: Partitions | None = None
    #: Columns whose values are never shown.
    personal: Collection[str] = ()


def validate(url: str, request: Request) -> Validation:
    """The outcomes of these checks, in the suite's order; all share one validation.

    Raises WarehouseError if the table cannot be read (TransientWarehouseError if the warehouse
    cannot be reached), DeclarationError if the suite has an expectation that Great Expectations
    does not know.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    from great_expectations.datasource.fluent.interfaces import TestConnectionError
    from great_expectations.exceptions import GreatExpectationsError
    from sqlalchemy.exc import SQLAlchemyError

    suite = request.suite
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    try:
        source = context.data_sources.add_postgres(
            "warehouse", connection_string=url.replace("postgresql://", "postgresql+psycopg2://", 1)
        )
    except TestConnectionError as error:
        raise failure(url, f"validating {suite.table}", error) from None
    try:
        asset = source.add_table_asset(
            "table", table_name=suite.table.name, schema_name=suite.table.schema
        )
        batch = asset.add_batch_definition_whole_table("all").get_batch()
        return _looked(url, request, batch)
    except (GreatExpectationsError, SQLAlchemyError, TestConnectionError) as error:
        raise WarehouseError(
            f"{suite.table} could not be validated: {masked(str(error))}"
        ) from None


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """An expectation of Great Expectations, for a check; for one partition or for all."""

    check: str
    stock: Any
    partition: str = ""


def _looked(url: str, request: Request, batch: Any) -> Validation:
    from great_expectations.core import ExpectationSuiteValidationResult

    from dagster_project.quality.pushdown import as_configured, first_look, second_look

    partitions = request.partitions
    condition = _range(partitions.keys, partitions) if partitions else None
    asked = list(_asked(request, condition))
    every_row = as_configured(condition)
    found = _validated(
        batch,
        {a: first_look(a.stock, every_row) for a in asked},
        {"result_format": "BASIC", "return_unexpected_index_query": True},
    )
    unmet = [a for a in asked if not found[a].success and not _error(found[a].exception_info)]
    if unmet:
        shown = [partitions.column] if partitions else []
        found |= _validated(
            batch,
            {a: second_look(a.stock, every_row) for a in unmet},
            {
                "result_format": "BASIC",
                "partial_unexpected_count": SAMPLE_ROWS,
                "return_unexpected_index_query": True,
                "unexpected_index_column_names": list(dict.fromkeys(shown + _key(url, request))),
            },
        )
    by_check: dict[str, dict[_Asked, Any]] = {}
    for a in asked:
        by_check.setdefault(a.check, {})[a] = found[a]
    outcomes = [_outcome(url, request, check, results) for check, results in by_check.items()]
    told = [
        result
        for results in by_check.values()
        for result in [r for r in results.values() if not r.success] or list(results.values())[:1]
    ]
    result = ExpectationSuiteValidationResult(
        success=all(outcome.passed for outcome in outcomes),
        results=told,
        suite_name=request.suite.name,
        statistics=_statistics(outcomes),
    )
    return Validation(outcomes, masked_result(result.to_json_dict(), request.personal))


def _statistics(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    passed = sum(outcome.passed for outcome in outcomes)
    return {
        "evaluated_expectations": len(outcomes),
        "successful_expectations": passed,
        "unsuccessful_expectations": len(outcomes) - passed,
        "success_percent": 100 * passed / len(outcomes) if outcomes else None,
    }


def _asked(request: Request, condition: Any) -> Iterator[_Asked]:
    """The suite's expectations; what is about a partition as a whole, one a partition."""
    partitions = request.partitions
    for expectation in request.suite.expectations:
        if expectation.check not in request.checks:
            continue
        stock = _built(request.suite, expectation.model_dump(mode="json", exclude_none=True))
        if not partitions or "row_condition" not in type(stock).__fields__:
            yield _Asked(expectation.check, stock)
        elif _is_about_rows(stock) or len(partitions.keys) == 1:
            yield _Asked(expectation.check, _within(stock, condition))
        else:
            for key in partitions.keys:
                within = _within(stock, _range([key], partitions))
                yield _Asked(expectation.check, within, key)


def _built(suite: Suite, configuration: Mapping[str, Any]) -> Any:
    """The expectation as Great Expectations has it. Raises DeclarationError if it does not."""
    from great_expectations.exceptions import GreatExpectationsError
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    try:
        return ExpectationConfiguration(**configuration).to_domain_obj()
    except (GreatExpectationsError, ValueError, TypeError) as error:
        raise DeclarationError(
            f"expectations/{suite.table.domain}/{suite.name}.json: the check "
            f"{configuration['meta']['check']} is not an expectation: {error}"
        ) from None


def _is_about_rows(stock: Any) -> bool:
    """Whether each row by itself, or with others of its value, meets it or does not."""
    from great_expectations.expectations.expectation import (
        ColumnMapExpectation,
        ColumnPairMapExpectation,
        MulticolumnMapExpectation,
    )

    return isinstance(
        stock, (ColumnMapExpectation, ColumnPairMapExpectation, MulticolumnMapExpectation)
    )


def _range(keys: Sequence[str], partitions: Partitions) -> Any:
    """The rows of these partitions, as a range that an index serves."""
    from great_expectations.expectations.row_conditions import Column

    column = Column(partitions.column)
    first, last = date.fromisoformat(keys[0]), date.fromisoformat(keys[-1])
    return (column >= first) & (column <= last)


def _within(stock: Any, condition: Any) -> Any:
    """The expectation on the rows of a condition, beside its own if it has one."""
    kept = {k: v for k, v in stock.configuration.kwargs.items() if k != "condition_parser"}
    own = stock.row_condition
    return type(stock)(
        **kept | {"row_condition": own & condition if own else condition},
        meta=stock.meta,
        description=stock.description,
        severity=stock.severity,
    )


def _validated(
    batch: Any, looks: Mapping[_Asked, Any], result_format: Mapping[str, Any]
) -> dict[_Asked, Any]:
    """One validation of these expectations, each result with the stock one's configuration."""
    from great_expectations.core.expectation_suite import ExpectationSuite

    asked = list(looks)
    for number, look in enumerate(looks.values()):
        look.meta = {"asked": number}
    suite = ExpectationSuite(name="suite", expectations=list(looks.values()))
    found = {}
    for result in batch.validate(suite, result_format=dict(result_format)).results:
        a = asked[result.expectation_config.meta["asked"]]
        result.expectation_config = a.stock.configuration
        found[a] = result
    return {a: found[a] for a in asked}


def _key(url: str, request: Request) -> list[str]:
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


def _outcome(url: str, request: Request, check: str, results: Mapping[_Asked, Any]) -> Outcome:
    """Of one check, from its result, or from one a partition."""
    refused = {a: result for a, result in results.items() if not result.success}
    a, result = next(iter((refused or results).items()))
    error = _error(result.exception_info)
    figures = result.result or {}
    about = _columns(a.stock) & set(request.personal)
    query = str(figures.get("unexpected_index_query") or "").strip()
    return Outcome(
        check=check,
        passed=not refused,
        error=MASK if error and about else error,
        observed=_observed(figures, about),
        unexpected_count=figures.get("unexpected_count"),
        unexpected_percent=figures.get("unexpected_percent"),
        rows=figures.get("element_count"),
        sample=_sample(url, request, figures, query) if refused else (),
        query=query,
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
    url: str, request: Request, figures: Mapping[str, Any], query: str
) -> list[dict[str, Any]]:
    """Unexpected rows, by what a person recognises them by."""
    rows = figures.get("unexpected_rows")
    if rows is None and query:
        from psycopg.rows import dict_row

        statement = f"SELECT * FROM ({query.rstrip(';')}) AS q LIMIT {SAMPLE_ROWS}"
        with connect(url, f"reading rows of {request.suite.table}") as connection:
            cursor = connection.cursor(row_factory=dict_row)
            rows = cursor.execute(statement.encode()).fetchall()
    return [
        {name: MASK if name in request.personal else value for name, value in row.items()}
        for row in rows or ()
    ]


def _failed(
    url: str, request: Request, refused: Mapping[_Asked, Any], query: str
) -> dict[str, int | None]:
    """The partitions that fail, with their unexpected rows; the empty one is the whole table."""
    if not refused:
        return {}
    if not request.partitions:
        (result,) = refused.values()
        return {"": (result.result or {}).get("unexpected_count")}
    if all(a.partition for a in refused):
        return {a.partition: None for a in refused}
    keys = request.partitions.keys
    (result,) = refused.values()
    if len(keys) == 1 or not _is_about_rows(next(iter(refused)).stock):
        return dict.fromkeys(keys, (result.result or {}).get("unexpected_count"))
    # The partition is the query's first column; by its name it might be there twice.
    statement = (
        "SELECT to_char(partition, 'YYYY-MM-DD'), count(*) "
        f"FROM ({query.rstrip(';')}) AS q(partition) GROUP BY 1 ORDER BY 1"
    )
    with connect(url, f"finding the days of {request.suite.table} that fail") as connection:
        return dict(connection.execute(statement.encode()).fetchall())


def _error(info: Mapping[str, Any] | None) -> str:
    """The message of an expectation that could not be evaluated.

    Great Expectations gives it in two shapes: one exception, or one a metric.
    """
    if not info:
        return ""
    shapes = [info] if "raised_exception" in info else list(info.values())
    messages = [s["exception_message"] for s in shapes if s.get("raised_exception")]
    return masked("; ".join(str(message) for message in dict.fromkeys(messages)))
