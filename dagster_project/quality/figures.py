"""Figures of a table's rows as aggregates of Great Expectations, and what is shown of rows.

An aggregate is part of the one statement for all aggregates of a table. Those here are scalar
subqueries, which PostgreSQL plans each by itself (by an index, in parallel), and which leave the
other aggregates of the statement parallel.

Imports Great Expectations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import sqlalchemy as sa
from great_expectations.core.metric_domain_types import MetricDomainTypes
from great_expectations.core.metric_function_types import MetricPartialFunctionTypes
from great_expectations.execution_engine import SqlAlchemyExecutionEngine
from great_expectations.expectations.metrics.column_aggregate_metric_provider import (
    ColumnAggregateMetricProvider,
    column_aggregate_partial,
)
from great_expectations.expectations.metrics.metric_provider import (
    MetricProvider,
    metric_partial,
    metric_value,
)
from great_expectations.expectations.metrics.query_metric_provider import QueryMetricProvider
from great_expectations.validator.metric_configuration import MetricConfiguration
from sqlalchemy.dialects import postgresql

from dagster_project.quality.outcome import SAMPLE_ROWS

#: What says which rows of the batch an expectation is about.
_ROWS = ("row_condition", "condition_parser", "column_list", "column_A", "column_B")
_DOMAIN = ("batch_id", "table", *_ROWS, "ignore_row_if")
#: PostgreSQL's, for text: names are not cut, percent signs not doubled.
_TEXT = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
_TEXT.max_identifier_length = 9999
_TEXT._backslash_escapes = False  # as a server says on connecting: a backslash is itself

_TYPES = "table.column_types"
#: How types begin that have NaN.
_OF_NAN = ("NUMERIC", "DOUBLE PRECISION", "REAL")

Values = Mapping[str, Any]


def domain_of_every_row(domain: Values, values: Values) -> dict[str, Any]:
    """The domain of every row, as Great Expectations has it for a column's aggregates."""
    condition = values.get("every_row")
    parser = domain.get("condition_parser") if condition else None
    return {
        "batch_id": domain["batch_id"],
        "table": None,
        "row_condition": condition,
        "condition_parser": parser,
    }


def _aggregate(figure: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """Makes the statement one row, whatever else it asks for, and however few the table has."""
    return figure + sa.func.count() * 0


def _text(clause: sa.ClauseElement) -> str:
    """SQL to be read, and run as it stands."""
    return str(clause.compile(dialect=_TEXT, compile_kwargs={"literal_binds": True}))


class _Subquery(MetricProvider):
    """A figure of the batch's rows as a subquery of the statement with the other aggregates."""

    domain_keys = (*_DOMAIN, "column")
    value_keys: tuple[str, ...] = ("every_row",)

    @metric_partial(
        engine=SqlAlchemyExecutionEngine,
        partial_fn_type=MetricPartialFunctionTypes.AGGREGATE_FN,
        domain_type=MetricDomainTypes.TABLE,
    )
    def _figure(
        cls,
        execution_engine: SqlAlchemyExecutionEngine,
        metric_domain_kwargs: dict[str, Any],
        metric_value_kwargs: dict[str, Any] | None,
        metrics: dict[str, Any],
        runtime_configuration: dict[str, Any],
    ) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        domain = {k: v for k, v in metric_domain_kwargs.items() if k in _DOMAIN}
        rows = execution_engine.get_domain_records(domain)
        source = rows.subquery() if isinstance(rows, sa.Select) else rows
        values = metric_value_kwargs or {}
        query = cls.figure(source, metric_domain_kwargs, values, metrics)
        # Over rows of its own, not those of the statement that it becomes a part of.
        return (
            _aggregate(query.correlate(None).scalar_subquery()),
            domain_of_every_row(domain, values),
            {},
        )

    @classmethod
    def figure(cls, rows: Any, domain: Values, values: Values, metrics: Values) -> sa.Select[Any]:
        raise NotImplementedError


class RowsOfDomain(_Subquery):
    """Rows that are left by a condition, or by what is missing in them."""

    metric_name = "mesh.rows"

    @classmethod
    def figure(cls, rows: Any, domain: Values, values: Values, metrics: Values) -> sa.Select[Any]:
        return sa.select(sa.func.count()).select_from(rows)


class DuplicatedRows(_Subquery):
    """Rows whose value, or whose values together, other rows have too."""

    metric_name = "mesh.duplicated_rows"

    @classmethod
    def figure(cls, rows: Any, domain: Values, values: Values, metrics: Values) -> sa.Select[Any]:
        single = domain.get("column")
        columns: list[sa.ColumnClause[Any]] = [
            sa.column(name) for name in ([single] if single else domain["column_list"])
        ]
        groups = sa.select(sa.func.count().label("number")).select_from(rows)
        if single:
            groups = groups.where(columns[0].is_not(None))
        several = groups.group_by(*columns).having(sa.func.count() > 1).subquery()
        return sa.select(sa.cast(sa.func.coalesce(sa.func.sum(several.c.number), 0), sa.BigInteger))


class DistinctValues(_Subquery):
    """How many values a column has; or has outside a set; or lacks of a set."""

    metric_name = "mesh.distinct_values"
    value_keys = ("every_row", "outside", "lacking")

    @classmethod
    def figure(cls, rows: Any, domain: Values, values: Values, metrics: Values) -> sa.Select[Any]:
        column: sa.ColumnClause[Any] = sa.column(domain["column"])
        distinct = sa.select(column).select_from(rows).where(column.is_not(None)).distinct()
        if values.get("outside"):
            distinct = distinct.where(column.not_in(values["outside"]))
        lacking = values.get("lacking")
        if lacking is None:
            return sa.select(sa.func.count()).select_from(distinct.subquery())
        within = distinct.where(column.in_(lacking)).subquery()
        return sa.select(len(set(lacking)) - sa.func.count()).select_from(within)


class NotNumbers(ColumnAggregateMetricProvider):
    """Values of a column of numbers that are NaN, or with `infinite` infinite too.

    Great Expectations takes a figure that is NaN for one that is missing, as it is of no rows.
    """

    metric_name = "mesh.not_numbers"
    value_keys = ("infinite",)

    @column_aggregate_partial(engine=SqlAlchemyExecutionEngine)
    def _sqlalchemy(cls, column: sa.ColumnClause[Any], infinite: bool, **kwargs: Any) -> Any:
        name = str(kwargs["_column_name"]).strip('"')
        types = {str(each["name"]): str(each["type"]) for each in kwargs["_metrics"][_TYPES]}
        if not types.get(name, "").upper().startswith(_OF_NAN):
            return sa.func.count(sa.null())
        # Times 0 each of them is NaN, which PostgreSQL has for a number that equals itself.
        strange = column * 0 != 0 if infinite else column == sa.literal_column("'NaN'")
        return sa.func.count().filter(strange)

    @classmethod
    def _get_evaluation_dependencies(
        cls, metric: MetricConfiguration, *args: Any, **kwargs: Any
    ) -> dict[str, MetricConfiguration]:
        found: dict[str, MetricConfiguration] = super()._get_evaluation_dependencies(
            metric, *args, **kwargs
        )
        domain = {k: v for k, v in metric.metric_domain_kwargs.items() if k != "column"}
        return found | {_TYPES: MetricConfiguration(_TYPES, domain, {"include_nested": True})}


def condition_of(metric: MetricConfiguration) -> MetricConfiguration:
    """The condition of unexpected rows that a figure has as its value `condition`."""
    values = metric.metric_value_kwargs
    return MetricConfiguration(values["condition"], metric.metric_domain_kwargs, values["of"])


class UnexpectedOfDomain(_Subquery):
    """Rows against a condition, among those that are left by another."""

    metric_name = "mesh.unexpected"
    value_keys = ("every_row", "condition", "of")

    @classmethod
    def _get_evaluation_dependencies(
        cls, metric: MetricConfiguration, *args: Any, **kwargs: Any
    ) -> dict[str, MetricConfiguration]:
        found: dict[str, MetricConfiguration] = super()._get_evaluation_dependencies(
            metric, *args, **kwargs
        )
        return found | {"condition": condition_of(metric)}

    @classmethod
    def figure(cls, rows: Any, domain: Values, values: Values, metrics: Values) -> sa.Select[Any]:
        unexpected, _, _ = metrics["condition"]
        return sa.select(sa.func.count()).select_from(rows).where(unexpected)


class UnexpectedRows(QueryMetricProvider):
    """How many rows a query for unexpected rows finds."""

    metric_name = "mesh.unexpected_rows"
    domain_keys = _DOMAIN
    value_keys = ("every_row", "unexpected_rows_query")
    query_param_name: ClassVar[str] = "unexpected_rows_query"

    @metric_partial(
        engine=SqlAlchemyExecutionEngine,
        partial_fn_type=MetricPartialFunctionTypes.AGGREGATE_FN,
        domain_type=MetricDomainTypes.TABLE,
    )
    def _figure(
        cls,
        execution_engine: SqlAlchemyExecutionEngine,
        metric_domain_kwargs: dict[str, Any],
        metric_value_kwargs: dict[str, Any],
        metrics: dict[str, Any],
        runtime_configuration: dict[str, Any],
    ) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        query = _query(cls, execution_engine, metric_domain_kwargs, metric_value_kwargs)
        figure: sa.ColumnElement[Any] = sa.literal_column(f"(SELECT count(*) FROM ({query}) AS q)")
        return (
            _aggregate(figure),
            domain_of_every_row(metric_domain_kwargs, metric_value_kwargs),
            {},
        )


class QueryOfUnexpectedRows(MetricProvider):
    """Finds the rows that an expectation refuses: text, which is not run.

    A mapping: `query`, with the columns of the value `shown` before those of the expectation, and
    `condition`, over the table's columns, where it is about single rows. Great Expectations' own
    query leaves out the conditions on which rows the expectation is about.
    """

    metric_name = "mesh.query"
    domain_keys = (*_DOMAIN, "column")
    value_keys = ("condition", "of", "shown")

    @metric_value(engine=SqlAlchemyExecutionEngine)
    def _sqlalchemy(
        cls,
        execution_engine: SqlAlchemyExecutionEngine,
        metric_domain_kwargs: dict[str, Any],
        metric_value_kwargs: dict[str, Any],
        metrics: dict[str, Any],
        runtime_configuration: dict[str, Any],
    ) -> dict[str, str]:
        names = _columns(metric_domain_kwargs)
        shown: list[sa.ColumnClause[Any]] = [
            sa.column(name) for name in dict.fromkeys([*metric_value_kwargs["shown"], *names])
        ]
        domain = {k: v for k, v in metric_domain_kwargs.items() if k in _DOMAIN}
        rows = execution_engine.get_domain_records(domain)
        source = rows.subquery() if isinstance(rows, sa.Select) else rows
        try:
            return cls._texts(execution_engine, domain, source, shown, names, metrics)
        except sa.exc.CompileError:  # a value that has no literal: it is not to be shown then
            return {}

    @classmethod
    def _texts(
        cls,
        engine: SqlAlchemyExecutionEngine,
        domain: Values,
        source: Any,
        shown: list[sa.ColumnClause[Any]],
        names: list[str],
        metrics: Values,
    ) -> dict[str, str]:
        if "condition" not in metrics:
            number = sa.func.count().over(partition_by=[sa.column(name) for name in names])
            counted = sa.select(*shown, number.label("same")).select_from(source).subquery()
            query = sa.select(*(counted.c[c.name] for c in shown)).where(counted.c.same > 1)
            if len(names) == 1:
                query = query.where(counted.c[names[0]].is_not(None))
            return {"query": _text(query)}
        unexpected, _, _ = metrics["condition"]
        condition = sa.and_(*_about(engine, domain), unexpected)
        table = engine.get_domain_records({"batch_id": domain["batch_id"]})
        query = sa.select(*shown).select_from(table).where(condition)
        return {"query": _text(query), "condition": _text(condition)}

    @classmethod
    def _get_evaluation_dependencies(
        cls, metric: MetricConfiguration, *args: Any, **kwargs: Any
    ) -> dict[str, MetricConfiguration]:
        whole = metric.metric_value_kwargs["condition"]
        return {"condition": condition_of(metric)} if whole else {}


def _about(engine: SqlAlchemyExecutionEngine, domain: Values) -> list[sa.ColumnElement[bool]]:
    """The conditions on which rows an expectation is about."""
    names = ("batch_id", "row_condition", "condition_parser")
    rows = engine.get_domain_records({name: domain[name] for name in names if name in domain})
    left = rows.whereclause if isinstance(rows, sa.Select) else None
    found = [] if left is None else [left]
    missing = [sa.column(name).is_(None) for name in _columns(domain)]
    if domain.get("ignore_row_if") in ("both_values_are_missing", "all_values_are_missing"):
        found.append(sa.not_(sa.and_(*missing)))
    if domain.get("ignore_row_if") in ("either_value_is_missing", "any_value_is_missing"):
        found.append(sa.not_(sa.or_(*missing)))
    return found


def _columns(domain: Values) -> list[str]:
    """The columns that an expectation is about."""
    pair = [domain[name] for name in ("column", "column_A", "column_B") if domain.get(name)]
    return pair or list(domain.get("column_list") or ())


class SampleOfUnexpectedRows(QueryMetricProvider):
    """Some of the rows that a query for unexpected rows finds, and the query as it was run."""

    metric_name = "mesh.unexpected_rows.sample"
    domain_keys = _DOMAIN
    value_keys = ("unexpected_rows_query",)
    query_param_name: ClassVar[str] = "unexpected_rows_query"

    @metric_value(engine=SqlAlchemyExecutionEngine)
    def _sqlalchemy(
        cls,
        execution_engine: SqlAlchemyExecutionEngine,
        metric_domain_kwargs: dict[str, Any],
        metric_value_kwargs: dict[str, Any],
        metrics: dict[str, Any],
        runtime_configuration: dict[str, Any],
    ) -> dict[str, Any]:
        query = _query(cls, execution_engine, metric_domain_kwargs, metric_value_kwargs)
        limited = sa.text(f"SELECT * FROM ({query.replace(':', chr(92) + ':')}) AS q LIMIT :rows")
        rows = execution_engine.execute_query(limited.bindparams(rows=SAMPLE_ROWS)).mappings()
        return {"unexpected_rows": [dict(row) for row in rows], "query": query}


def _query(
    cls: type[QueryMetricProvider],
    engine: SqlAlchemyExecutionEngine,
    domain: Values,
    values: Values,
) -> str:
    """A query for unexpected rows, with the batch's rows in the place of {batch}."""
    return str(
        cls._get_substituted_batch_subquery_from_query_and_batch_selectable(
            query=cls._get_query_from_metric_value_kwargs(dict(values)),
            batch_selectable=engine.get_domain_records(dict(domain)),
            execution_engine=engine,
        )
    )
