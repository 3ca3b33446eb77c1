"""What a check asks in DataHub's standard words, as far as they tell the truth of it.

DataHub makes an assertion's title of them. Where none fits, or something of the check is beyond
them (rows that are left out, a share of rows that may differ), the operator is `_NATIVE_`: then
what the platform itself calls the check, and its parameters, say what is asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datahub.metadata.schema_classes import (
        AssertionStdParameterClass,
        AssertionStdParametersClass,
    )

COLUMN, ROWS, SCHEMA, NATIVE = "DATASET_COLUMN", "DATASET_ROWS", "DATASET_SCHEMA", "_NATIVE_"


@dataclass(frozen=True, slots=True)
class Asked:
    """Scope, aggregation and operator, by DataHub's names, and the operator's parameters."""

    scope: str
    aggregation: str = NATIVE
    operator: str = NATIVE
    #: By DataHub's names, which are value, minValue and maxValue.
    parameters: Mapping[str, Any] = field(default_factory=dict)


_EACH = "IDENTITY"
_NOT_NULL = Asked(COLUMN, _EACH, "NOT_NULL")
_UNIQUE = Asked(COLUMN, "UNIQUE_PROPORTION", "EQUAL_TO", {"value": 1.0})
#: Without parameters of their own.
_PLAIN = {
    "expect_column_values_to_not_be_null": _NOT_NULL,
    "expect_column_values_to_be_null": Asked(COLUMN, _EACH, "NULL"),
    "expect_column_values_to_be_unique": _UNIQUE,
    "not_null": _NOT_NULL,
    "unique": _UNIQUE,
}
#: With one, and the argument that it is.
_OF_VALUE = {
    "expect_column_values_to_be_in_set": (COLUMN, _EACH, "IN", "value_set"),
    "expect_column_values_to_not_be_in_set": (COLUMN, _EACH, "NOT_IN", "value_set"),
    "expect_column_values_to_match_regex": (COLUMN, _EACH, "REGEX_MATCH", "regex"),
    "expect_table_row_count_to_equal": (ROWS, "ROW_COUNT", "EQUAL_TO", "value"),
    "expect_table_column_count_to_equal": (SCHEMA, "COLUMN_COUNT", "EQUAL_TO", "value"),
    "expect_table_columns_to_match_set": (SCHEMA, "COLUMNS", "EQUAL_TO", "column_set"),
    "accepted_values": (COLUMN, _EACH, "IN", "values"),
}
#: With a least and a most.
_OF_RANGE = {
    "expect_column_values_to_be_between": (COLUMN, _EACH),
    "expect_column_min_to_be_between": (COLUMN, "MIN"),
    "expect_column_max_to_be_between": (COLUMN, "MAX"),
    "expect_column_mean_to_be_between": (COLUMN, "MEAN"),
    "expect_column_median_to_be_between": (COLUMN, "MEDIAN"),
    "expect_column_sum_to_be_between": (COLUMN, "SUM"),
    "expect_column_stdev_to_be_between": (COLUMN, "STDDEV"),
    "expect_column_unique_value_count_to_be_between": (COLUMN, "UNIQUE_COUNT"),
    "expect_column_proportion_of_unique_values_to_be_between": (COLUMN, "UNIQUE_PROPORTION"),
    "expect_table_row_count_to_be_between": (ROWS, "ROW_COUNT"),
    "expect_table_column_count_to_be_between": (SCHEMA, "COLUMN_COUNT"),
}
#: Of a table, not of a column; whatever else is of no column is of rows.
_OF_SCHEMA = ("expect_table_column", "expect_column_to_exist")
#: Arguments that DataHub's words have no place for, beside what is as if they were not there.
_BEYOND = {
    "mostly": (None, 1),
    "row_condition": (None, ""),
    "where": (None, ""),
    "limit": (None,),
    "fail_calc": (None,),
    "warn_if": (None,),
    "error_if": (None,),
    "strict_min": (None, False),
    "strict_max": (None, False),
}


def asked_by(kind: str, arguments: Mapping[str, Any], of_column: bool) -> Asked:
    """What an expectation or a test of dbt of this kind asks; `of_column` if it names columns."""
    found = _standard(kind, arguments)
    if found is None:
        if kind.startswith(_OF_SCHEMA):
            return Asked(SCHEMA)
        return Asked(COLUMN if of_column else ROWS)
    if any(arguments.get(name) not in ordinary for name, ordinary in _BEYOND.items()):
        return Asked(found.scope)
    return found


def _standard(kind: str, arguments: Mapping[str, Any]) -> Asked | None:
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind in _OF_VALUE:
        scope, aggregation, operator, name = _OF_VALUE[kind]
        found = Asked(scope, aggregation, operator, {"value": arguments.get(name)})
        # The columns may be more than these.
        is_open = arguments.get("exact_match") is False
        return replace(found, operator="CONTAIN") if is_open else found
    if kind in _OF_RANGE:
        return _in_range(*_OF_RANGE[kind], arguments.get("min_value"), arguments.get("max_value"))
    return None


def _in_range(scope: str, aggregation: str, least: Any, most: Any) -> Asked:
    if least is None:
        return Asked(scope, aggregation, "LESS_THAN_OR_EQUAL_TO", {"value": most})
    if most is None:
        return Asked(scope, aggregation, "GREATER_THAN_OR_EQUAL_TO", {"value": least})
    return Asked(scope, aggregation, "BETWEEN", {"minValue": least, "maxValue": most})


def standard_parameters(asked: Asked) -> AssertionStdParametersClass | None:
    """The operator's parameters as DataHub has them."""
    from datahub.metadata.schema_classes import AssertionStdParametersClass

    if not asked.parameters:
        return None
    return AssertionStdParametersClass(**{n: _parameter(v) for n, v in asked.parameters.items()})


def _parameter(value: Any) -> AssertionStdParameterClass:
    from datahub.metadata.schema_classes import AssertionStdParameterClass

    if isinstance(value, list | tuple):
        return AssertionStdParameterClass(value=json.dumps(value, default=str), type="SET")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return AssertionStdParameterClass(value=str(value), type="NUMBER" if is_number else "STRING")
