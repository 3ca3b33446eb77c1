"""Airbyte records become rows: every value as its column's type, or set aside with the reason."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import orjson
import pyarrow as pa
import pytest

from dagster_project.ingestion.records import (
    AIRBYTE_COLUMNS,
    BOOLEAN,
    DATE,
    INTEGER,
    JSON,
    NUMBER,
    TEXT,
    TIMESTAMP,
    Kind,
    RecordBatches,
    kind_of,
)

DATE_TIME = {"type": "string", "format": "date-time"}
WHOLE = '{"changes":[]}'


def build(schema: dict[str, Any], *values: Any) -> pa.RecordBatch:
    """One column `v` of this schema with these values."""
    batches = RecordBatches({"properties": {"v": schema}}, generation=7)
    return batches.build([{"v": value} for value in values], [1000] * len(values))


def column(batch: pa.RecordBatch, name: str = "v") -> list[Any]:
    return batch.column(batch.schema.get_field_index(name)).to_pylist()


def meta(batch: pa.RecordBatch) -> list[Any]:
    return [orjson.loads(text) for text in column(batch, "_airbyte_meta")]


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "integer"}, INTEGER),
        ({"type": ["null", "integer"]}, INTEGER),
        ({"type": "number"}, NUMBER),
        ({"type": ["number", "integer", "null"]}, NUMBER),
        ({"type": "boolean"}, BOOLEAN),
        ({"type": "string"}, TEXT),
        ({"type": ["string", "integer"]}, TEXT),
        ({"type": "string", "format": "date"}, DATE),
        (DATE_TIME, TIMESTAMP),
        ({"type": ["object", "null"]}, JSON),
        ({"type": "array"}, JSON),
        ({}, TEXT),
        ({"type": "null"}, TEXT),
    ],
)
def test_a_property_has_the_kind_of_its_json_schema(schema: dict[str, Any], kind: Kind) -> None:
    assert kind_of(schema) is kind


def test_the_four_airbyte_columns_come_first() -> None:
    batch = build({"type": "integer"}, 1, 2)
    assert tuple(batch.schema.names[:4]) == AIRBYTE_COLUMNS
    assert len(set(column(batch, "_airbyte_raw_id"))) == 2
    assert column(batch, "_airbyte_extracted_at") == [1000, 1000]
    assert column(batch, "_airbyte_generation_id") == [7, 7]
    assert column(batch, "_airbyte_meta") == [WHOLE, WHOLE]


@pytest.mark.parametrize(
    ("schema", "value", "expected"),
    [
        ({"type": "integer"}, 2**63 - 1, 2**63 - 1),
        ({"type": "integer"}, -(2**63), -(2**63)),
        ({"type": "integer"}, 3.0, 3),
        ({"type": "number"}, 3, 3.0),
        ({"type": "boolean"}, False, False),
        ({"type": "string"}, "", ""),
        ({"type": ["string", "integer"]}, 5, "5"),
        ({"type": "string"}, {"a": [1]}, '{"a":[1]}'),
        ({"type": "object"}, {"a": {"b": [1, None]}}, '{"a":{"b":[1,null]}}'),
        ({"type": "array"}, [], "[]"),
        ({"type": "string", "format": "date"}, "2013-11-03", date(2013, 11, 3)),
        (DATE_TIME, "2013-11-03T01:30:00", datetime(2013, 11, 3, 1, 30, tzinfo=UTC)),
        (DATE_TIME, "2013-11-03T01:30:00Z", datetime(2013, 11, 3, 1, 30, tzinfo=UTC)),
        (DATE_TIME, "2013-11-03T01:30:00.5-05:00", datetime(2013, 11, 3, 6, 30, 0, 500000, UTC)),
        (DATE_TIME, "2013-11-03", datetime(2013, 11, 3, tzinfo=UTC)),
        ({"type": "integer"}, None, None),
    ],
)
def test_a_value_that_fits_is_kept(schema: dict[str, Any], value: Any, expected: Any) -> None:
    batch = build(schema, value)
    assert column(batch) == [expected]
    assert column(batch, "_airbyte_meta") == [WHOLE]


@pytest.mark.parametrize(
    ("schema", "value", "reason"),
    [
        ({"type": "integer"}, 2**63, "not bigint: outside 64 bits"),
        ({"type": "integer"}, 1e30, "not bigint: outside 64 bits"),
        ({"type": "integer"}, 1.5, "not bigint: of type float"),
        ({"type": "integer"}, True, "not bigint: a boolean"),
        ({"type": "integer"}, "1", "not bigint: of type str"),
        ({"type": "integer"}, [1], "not bigint: of type list"),
        ({"type": "number"}, "NaN", "not double precision: of type str"),
        ({"type": "boolean"}, 1, "not boolean: of type int"),
        ({"type": "string", "format": "date"}, "03.11.2013", "not date: "),
        ({"type": "string", "format": "date"}, 20131103, "not date: "),
        (DATE_TIME, "tomorrow", "not timestamptz: "),
        (DATE_TIME, 1383442200, "not timestamptz: "),
    ],
)
def test_a_value_that_does_not_fit_is_null_and_the_row_says_why(
    schema: dict[str, Any], value: Any, reason: str
) -> None:
    batch = build(schema, value)
    assert column(batch) == [None]
    ((change,), record) = (meta(batch)[0]["changes"], meta(batch)[0]["record"])
    assert (change["field"], change["change"]) == ("v", "NULLED")
    assert change["reason"].startswith(reason)
    assert record == {"v": value}


def test_text_with_a_nul_is_set_aside_with_a_record_that_jsonb_can_hold() -> None:
    batch = build({"type": "string"}, "a\x00b")
    assert column(batch) == [None]
    assert meta(batch)[0]["record"] == {"v": "a\N{REPLACEMENT CHARACTER}b"}
    assert "\\u0000" not in column(batch, "_airbyte_meta")[0]


def test_a_fault_leaves_the_other_rows_and_columns_alone() -> None:
    schema = {"properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
    batches = RecordBatches(schema, generation=1)
    batch = batches.build([{"a": 1, "b": "x"}, {"a": "?", "b": "y", "c": 1}, {}], [1, 2, 3])
    assert column(batch, "a") == [1, None, None]
    assert column(batch, "b") == ["x", "y", None]
    assert [len(row["changes"]) for row in meta(batch)] == [0, 1, 0]
    assert batches.undeclared == {"c"}
