"""Stock expectations whose figures come from few statements, none of which fetches a row.

Great Expectations bundles the aggregates of a table into one statement, but not the figures of
uniqueness, of sets of distinct values, of filtered rows and of queries for unexpected rows: each
is a statement or two more. Here an expectation asks for an equal figure under the same name that
is an aggregate too. The verdict is the stock expectation's own. What is only to be shown, as rows
and values, is not asked for here: that is the second look, where an expectation failed.

Imports Great Expectations.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from great_expectations.expectations import core
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.metrics.metric_provider import MetricProvider
from great_expectations.validator.metric_configuration import MetricConfiguration

from dagster_project.quality.figures import (
    DistinctValues,
    DuplicatedRows,
    NotNumbers,
    QueryOfUnexpectedRows,
    RowsOfDomain,
    SampleOfUnexpectedRows,
    UnexpectedOfDomain,
    UnexpectedRows,
    domain_of_every_row,
)

#: No row is left out by it.
_EVERY_ROW = (None, "never", "neither")

#: Figures that are only shown, and what stands in their place.
_SHOWN: dict[str, Any] = {
    "column.distinct_values.not_in_set": [],
    "column.distinct_values.missing_from_column": [],
    "unexpected_rows_query.table": [],
}

_UNEXPECTED = ".unexpected_count"
#: Figures that NaN leaves nothing of, and whether an infinite value leaves nothing of them either.
_OF_NUMBERS = {
    "column.mean": True,
    "column.standard_deviation": True,
    "column.sum": True,
    "column.histogram": True,
    f"column_values.z_score.under_threshold{_UNEXPECTED}": True,
    f"column_values.not_outliers{_UNEXPECTED}": True,
    "column.max": False,
    "column.median": False,
    "column.quantile_values": False,
}
_NOT_NUMBERS = NotNumbers.metric_name
#: Of a result: why there is none.
REASON = "mesh.reason"
_QUERY = QueryOfUnexpectedRows.metric_name
#: Whether a row meets these depends on others.
_OF_SEVERAL_ROWS = ("column_values.unique", "compound_columns.unique")
_DUPLICATES_SHOWN = {f"{name}.unexpected_values" for name in _OF_SEVERAL_ROWS}


def _substitute(name: str, metric: MetricConfiguration, every_row: Any) -> MetricConfiguration:
    """The figure to ask for in place of the one of this name."""
    domain, values = metric.metric_domain_kwargs, metric.metric_value_kwargs
    here = {"every_row": every_row}

    def figure(provider: type[MetricProvider], **more: Any) -> MetricConfiguration:
        return MetricConfiguration(provider.metric_name, domain, here | more)

    match name:
        case "column_values.unique.unexpected_count" | "compound_columns.unique.unexpected_count":
            return figure(DuplicatedRows)
        case "column.distinct_values.count":
            return figure(DistinctValues)
        case "column.distinct_values.not_in_set.count":
            return figure(DistinctValues, outside=values.get("value_set") or [])
        case "column.distinct_values.missing_from_column.count":
            return figure(DistinctValues, lacking=values.get("value_set") or [])
        case "unexpected_rows_query.row_count":
            return MetricConfiguration(
                UnexpectedRows.metric_name, {**domain, "row_condition": every_row}, here | values
            )
    counts = name == "table.row_count" or name.endswith(".filtered_row_count")
    if domain.get("ignore_row_if") in _EVERY_ROW and domain.get("row_condition") == every_row:
        if counts:
            return MetricConfiguration("table.row_count", domain_of_every_row(domain, here))
        if "column_list" not in domain and "column_A" not in domain:
            return metric
    if counts:
        return figure(RowsOfDomain)
    if name.endswith(_UNEXPECTED):
        return figure(
            UnexpectedOfDomain,
            condition=name.removesuffix(_UNEXPECTED) + ".condition",
            of=dict(values),
        )
    return metric


class _Look:
    """Mixed into an expectation: asks for figures in its own way."""

    meta: dict[str, Any]
    #: Of what is about one.
    column: str

    @property
    def every_row(self) -> Any:
        """The condition that all of a suite's expectations have."""
        return self.meta["every_row"]

    def get_validation_dependencies(self, *args: Any, **kwargs: Any) -> Any:
        needed = super().get_validation_dependencies(*args, **kwargs)  # type: ignore[misc]
        for name, metric in list(needed.metric_configurations.items()):
            if (other := self.instead(name, metric)) is None:
                needed.remove_metric_configuration(name)
            else:
                needed.set_metric_configuration(name, other)
            if query := self._query(name, metric):
                needed.set_metric_configuration(_QUERY, query)
            if name in _OF_NUMBERS:
                values = {"infinite": _OF_NUMBERS[name]}
                count = MetricConfiguration(_NOT_NUMBERS, metric.metric_domain_kwargs, values)
                needed.set_metric_configuration(_NOT_NUMBERS, count)
        return needed

    def instead(self, name: str, metric: MetricConfiguration) -> MetricConfiguration | None:
        """The figure to ask for in place of the one of this name; None for none."""
        raise NotImplementedError

    def _validate(self, metrics: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if count := metrics.get(_NOT_NUMBERS):
            reason = (
                f"{self.column} has NaN or infinite values, {count} of them: mend them, or leave "
                "their rows out by a row_condition"
            )
            return {"success": False, "result": {"unexpected_count": count, REASON: reason}}
        raw = super()._validate(metrics, *args, **kwargs)  # type: ignore[misc]
        if _QUERY in metrics:
            raw["result"] |= metrics[_QUERY]
        return raw

    def _query(self, name: str, metric: MetricConfiguration) -> MetricConfiguration | None:
        """The query of what this counts, if it counts the rows that the expectation refuses."""
        measured = name.removesuffix(_UNEXPECTED)
        if measured != getattr(self, "map_metric", None):
            return None
        of_single_rows = measured not in _OF_SEVERAL_ROWS
        values = {
            "condition": f"{measured}.condition" if of_single_rows else "",
            "of": dict(metric.metric_value_kwargs),
            "shown": self.meta["shown"],
        }
        return MetricConfiguration(_QUERY, metric.metric_domain_kwargs, values)


class _FirstLook(_Look):
    def instead(self, name: str, metric: MetricConfiguration) -> MetricConfiguration | None:
        if name in _SHOWN or name.endswith(".unexpected_values"):
            return None
        return _substitute(name, metric, self.every_row)

    def _validate(self, metrics: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return super()._validate(_SHOWN | metrics, *args, **kwargs)


class _SecondLook(_Look):
    """Fetches no more rows of a query for unexpected ones than are shown."""

    def instead(self, name: str, metric: MetricConfiguration) -> MetricConfiguration | None:
        if name in _DUPLICATES_SHOWN:
            return None
        if name != "unexpected_rows_query.table":
            return _substitute(name, metric, self.every_row)
        domain = {**metric.metric_domain_kwargs, "row_condition": self.every_row}
        return MetricConfiguration(
            SampleOfUnexpectedRows.metric_name, domain, metric.metric_value_kwargs
        )

    def _validate(self, metrics: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        raw = super()._validate(metrics, *args, **kwargs)
        if "unexpected_rows_query.table" in metrics:
            found = metrics["unexpected_rows_query.table"]
            raw["result"] |= {"unexpected_count": raw["result"]["observed_value"]} | found
        return raw


@cache
def _class(look: Any, stock: Any) -> Any:
    # Great Expectations finds a class by its name.
    name = f"{look.__name__.strip('_')}{stock.__name__}"
    return type(name, (look, stock), {"__module__": __name__})


def preload() -> None:
    """Make the classes of Great Expectations' own expectations, so that forks have them."""
    for name in dir(core):
        stock = getattr(core, name)
        if isinstance(stock, type) and issubclass(stock, Expectation):
            for look in (_FirstLook, _SecondLook):
                _class(look, stock)


def as_configured(condition: Any) -> Any:
    """A row condition as it stands in an expectation's configuration."""
    if condition is None:
        return None
    kwargs = core.ExpectTableRowCountToBeBetween(row_condition=condition).configuration.kwargs
    return kwargs["row_condition"]


def _looking(
    look: Any, stock: Expectation, every_row: Any, shown: Sequence[str] = ()
) -> Expectation:
    # In `meta`, as Great Expectations makes expectations anew from their configurations.
    meta = {"every_row": every_row, "shown": list(shown)}
    kind: Any = type(stock)
    made: Expectation = _class(look, kind)(**stock.configuration.kwargs, meta=meta)
    return made


def first_look(stock: Expectation, every_row: Any = None) -> Expectation:
    """The expectation as one to be validated with result format BASIC or less.

    `every_row` is the row condition that all of a suite's expectations have, `as_configured`;
    another one is a filter of the single expectation.
    """
    return _looking(_FirstLook, stock, every_row)


def second_look(
    stock: Expectation, every_row: Any = None, shown: Sequence[str] = ()
) -> Expectation:
    """The expectation as one to be validated for what there is to show: rows with these columns."""
    return _looking(_SecondLook, stock, every_row, shown)
