"""DataHub's standard words are used of a check where they tell the whole truth of it."""

from __future__ import annotations

from typing import Any

import pytest
from datahub.metadata.schema_classes import (
    AssertionStdAggregationClass,
    AssertionStdOperatorClass,
    DatasetAssertionScopeClass,
)

from dagster_project.catalog.operators import asked_by, standard_parameters

Words = tuple[str, str, str]
COLUMN, ROWS, SCHEMA, NATIVE = "DATASET_COLUMN", "DATASET_ROWS", "DATASET_SCHEMA", "_NATIVE_"
EACH, SHARE = "IDENTITY", "UNIQUE_PROPORTION"
BETWEEN = "expect_column_values_to_be_between"
NOT_NULL = "expect_column_values_to_not_be_null"
MATCH_SET = "expect_table_columns_to_match_set"


def said(kind: str, arguments: dict[str, Any]) -> tuple[Words, dict[str, tuple[str, str]]]:
    """The words, and by name each parameter's value and type."""
    asked = asked_by(kind, arguments, any(name.startswith("column") for name in arguments))
    for word, of in zip(
        (asked.scope, asked.aggregation, asked.operator),
        (DatasetAssertionScopeClass, AssertionStdAggregationClass, AssertionStdOperatorClass),
        strict=True,
    ):
        assert getattr(of, word) == word
    found = standard_parameters(asked)
    parameters = found.to_obj() if found else {}
    return (
        (asked.scope, asked.aggregation, asked.operator),
        {name: (each["value"], each["type"]) for name, each in parameters.items()},
    )


@pytest.mark.parametrize(
    ("kind", "arguments", "words", "parameters"),
    [
        (NOT_NULL, {"column": "a"}, (COLUMN, EACH, "NOT_NULL"), {}),
        (NOT_NULL, {"column": "a", "mostly": 1.0}, (COLUMN, EACH, "NOT_NULL"), {}),
        ("not_null", {"column_name": "a"}, (COLUMN, EACH, "NOT_NULL"), {}),
        (
            "unique",
            {"column_name": "a"},
            (COLUMN, SHARE, "EQUAL_TO"),
            {"value": ("1.0", "NUMBER")},
        ),
        (
            "accepted_values",
            {"column_name": "a", "values": ["x", 'y"']},
            (COLUMN, EACH, "IN"),
            {"value": ('["x", "y\\""]', "SET")},
        ),
        (
            BETWEEN,
            {"column": "a", "min_value": 0, "max_value": 1.5},
            (COLUMN, EACH, "BETWEEN"),
            {"minValue": ("0", "NUMBER"), "maxValue": ("1.5", "NUMBER")},
        ),
        (
            BETWEEN,
            {"column": "a", "min_value": "2013-01-01", "max_value": None},
            (COLUMN, EACH, "GREATER_THAN_OR_EQUAL_TO"),
            {"value": ("2013-01-01", "STRING")},
        ),
        (
            "expect_table_row_count_to_be_between",
            {"max_value": 9},
            (ROWS, "ROW_COUNT", "LESS_THAN_OR_EQUAL_TO"),
            {"value": ("9", "NUMBER")},
        ),
        (
            MATCH_SET,
            {"column_set": ["a", "b"]},
            (SCHEMA, "COLUMNS", "EQUAL_TO"),
            {"value": ('["a", "b"]', "SET")},
        ),
        (
            MATCH_SET,
            {"column_set": ["a"], "exact_match": False},
            (SCHEMA, "COLUMNS", "CONTAIN"),
            {"value": ('["a"]', "SET")},
        ),
    ],
)
def test_what_has_a_standard_word_says_it(
    kind: str,
    arguments: dict[str, Any],
    words: Words,
    parameters: dict[str, tuple[str, str]],
) -> None:
    assert said(kind, arguments) == (words, parameters)


@pytest.mark.parametrize(
    ("kind", "arguments", "scope"),
    [
        (NOT_NULL, {"column": "a", "mostly": 0.9}, COLUMN),
        (NOT_NULL, {"column": "a", "row_condition": "b > 0"}, COLUMN),
        (BETWEEN, {"column": "a", "min_value": 0, "max_value": 1, "strict_max": True}, COLUMN),
        ("not_null", {"column_name": "a", "where": "b > 0"}, COLUMN),
        ("unique", {"column_name": "a", "error_if": "> 10"}, COLUMN),
        ("relationships", {"column_name": "a", "to": "ref('b')", "field": "c"}, COLUMN),
        ("expect_compound_columns_to_be_unique", {"column_list": ["a", "b"]}, COLUMN),
        ("expect_table_columns_to_match_ordered_list", {"column_list": ["a"]}, SCHEMA),
        ("unexpected_rows_expectation", {}, ROWS),
        ("singular", {}, ROWS),
    ],
)
def test_what_standard_words_would_not_tell_whole_is_left_to_the_platform_s_own(
    kind: str, arguments: dict[str, Any], scope: str
) -> None:
    assert said(kind, arguments) == ((scope, NATIVE, NATIVE), {})
