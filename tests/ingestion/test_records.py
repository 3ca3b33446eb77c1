"""Airbyte records become rows: every value as its column's type, or set aside with the reason."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import orjson
import pyarrow as pa
import pytest

from dagster_project.ingestion.exact import Number
from dagster_project.ingestion.kinds import (
    BOOLEAN,
    DATE,
    INTEGER,
    JSON,
    NUMBER,
    TEXT,
    TIMESTAMP,
    Kind,
    kind_of,
)
from dagster_project.ingestion.records import (
    AIRBYTE_COLUMNS,
    META_WHOLE,
    REMEMBERED,
    RecordBatches,
    column_names,
    reject_of,
)

DATE_TIME = {"type": "string", "format": "date-time"}


def build(schema: dict[str, Any], *values: Any) -> pa.RecordBatch:
    """One column `v` of this schema with these values."""
    batches = RecordBatches({"properties": {"v": schema}}, generation=7)
    return batches.build([{"v": value} for value in values], [1000] * len(values))


def column(batch: pa.RecordBatch, name: str = "v") -> list[Any]:
    return batch.column(batch.schema.get_field_index(name)).to_pylist()


def meta(batch: pa.RecordBatch) -> list[Any]:
    return [orjson.loads(text) for text in column(batch, "_airbyte_meta")]


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


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
    assert column(batch, "_airbyte_meta") == [META_WHOLE, META_WHOLE]


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
        (DATE_TIME, "9999-12-31T23:59:59Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ({"type": "string", "format": "date"}, "9999-12-31", date(9999, 12, 31)),
        ({"type": "integer"}, None, None),
        ({"type": "integer"}, Number("9007199254740993.0"), 2**53 + 1),
        ({"type": "number"}, 2**60, float(2**60)),
        ({"type": "number"}, 2**60 + 1, str(2**60 + 1)),
        ({"type": "number"}, Number("0." + "1" * 40), "0." + "1" * 40),
        ({"type": "number"}, Number("-Infinity"), float("-inf")),
        ({"type": ["string", "number"]}, Number("NaN"), "NaN"),
        ({"type": ["string", "number"]}, Number("1" * 40), "1" * 40),
        ({"type": "object"}, {"a": Number("1" * 40)}, '{"a":' + "1" * 40 + "}"),
        ({"type": "object"}, {"a": "\\u0000"}, r'{"a":"\\u0000"}'),
        ({"type": "string"}, "\\u0000", "\\u0000"),
    ],
)
def test_a_value_that_fits_is_kept(schema: dict[str, Any], value: Any, expected: Any) -> None:
    batch = build(schema, value)
    assert column(batch) == [expected]
    assert column(batch, "_airbyte_meta") == [META_WHOLE]


@pytest.mark.parametrize(
    ("schema", "value", "reason"),
    [
        ({"type": "integer"}, 2**63, "not bigint: outside 64 bits"),
        ({"type": "integer"}, 1e30, "not bigint: outside 64 bits"),
        ({"type": "integer"}, 1.5, "not bigint: of type number"),
        ({"type": "integer"}, True, "not bigint: of type boolean"),
        ({"type": "integer"}, "1", "not bigint: of type string"),
        ({"type": "integer"}, [1], "not bigint: of type array"),
        ({"type": "number"}, "NaN", "not numeric: of type string"),
        ({"type": "number"}, True, "not numeric: of type boolean"),
        ({"type": "boolean"}, 1, "not boolean: of type integer"),
        ({"type": "boolean"}, {}, "not boolean: of type object"),
        ({"type": "string", "format": "date"}, "03.11.2013", "not date: no date of the form"),
        ({"type": "string", "format": "date"}, 20131103, "not date: of type integer"),
        (DATE_TIME, "tomorrow", "not timestamptz: no timestamp of the form"),
        (DATE_TIME, "10000-01-01T00:00:00Z", "not timestamptz: no timestamp of the form"),
        (DATE_TIME, 1383442200, "not timestamptz: of type integer"),
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


@pytest.mark.parametrize(
    ("schema", "value", "reason", "kept"),
    [
        ({"type": "integer"}, Number("1" * 40), "outside 64 bits", "1" * 40),
        ({"type": "integer"}, Number("1" * 20 + ".5"), "of type number", "1" * 20 + ".5"),
        ({"type": "integer"}, Number("NaN"), "NaN", '"NaN"'),
        ({"type": "number"}, Number("1e200000"), "more digits than", '"1e200000"'),
        ({"type": "number"}, Number("1e-20000"), "more digits than", '"1e-20000"'),
        ({"type": "number"}, Number("1e9999999999999999999999"), "", '"1e9999999999999999999999"'),
        ({"type": "object"}, {"a": [Number("NaN")]}, "not jsonb: NaN", '{"a":["NaN"]}'),
        ({"type": "object"}, {"a": Number("1e200000")}, "more digits", '{"a":"1e200000"}'),
        ({"type": "string"}, "a\x00b", "a NUL character", '"a\N{REPLACEMENT CHARACTER}b"'),
        ({"type": "array"}, [{"\x00": 1}], "a NUL", '[{"\N{REPLACEMENT CHARACTER}":1}]'),
        ({"type": "string"}, "a\udcff", "not valid UTF-8", None),
        ({"type": "object"}, {"a": "\ud800"}, "surrogates not allowed", None),
        (
            {"type": "array"},
            nested(300),
            "Recursion limit",
            "[" * 199 + '"(nested too deeply)"' + "]" * 199,
        ),
    ],
)
def test_a_row_that_is_set_aside_keeps_its_record_as_jsonb_can_hold_it(
    schema: dict[str, Any], value: Any, reason: str, kept: str | None
) -> None:
    batch = build(schema, value, None)
    assert column(batch) == [None, None]
    first, second = column(batch, "_airbyte_meta")
    reject = reject_of(first)
    assert reject
    assert reason in reject[0]
    if kept is None:
        assert "\N{REPLACEMENT CHARACTER}" in reject[1]
    else:
        assert reject[1] == '{"v":' + kept + "}"
    assert reject_of(second) is None


def test_the_reason_and_the_record_are_told_apart_whatever_they_hold() -> None:
    schema = {"properties": {'a,"record":': {"type": "integer"}, "b": {"type": "integer"}}}
    records = [{'a,"record":': "x", "b": 'y,"record":'}]
    (meta,) = column(RecordBatches(schema, 1).build(records, [1]), "_airbyte_meta")
    reject = reject_of(meta)
    assert reject
    assert reject[0].count("not bigint: of type string") == 2
    assert orjson.loads(reject[1]) == records[0]
    # As Airbyte's own destinations write it.
    airbytes = '{"changes":[{"field":"v","change":"NULLED","reason":"X"}]}'
    assert reject_of(airbytes) == ("v: X", "{}")


def test_a_fault_leaves_the_other_rows_and_columns_alone() -> None:
    schema = {"properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
    batches = RecordBatches(schema, generation=1)
    batch = batches.build([{"a": 1, "b": "x"}, {"a": "?", "b": "y", "c": 1}, {}], [1, 2, 3])
    assert column(batch, "a") == [1, None, None]
    assert column(batch, "b") == ["x", "y", None]
    assert [len(row["changes"]) for row in meta(batch)] == [0, 1, 0]


def test_a_number_that_no_double_holds_makes_the_column_text_with_all_digits() -> None:
    values = [1, 2.5, None, Number("12345678901234567.25"), float("nan"), 10**17, "x"]
    batch = build({"type": "number"}, *values)
    assert batch.schema.field("v").type == pa.string()
    texts = column(batch)
    assert texts == ["1.0", "2.5", None, "12345678901234567.25", "NaN", "1e+17", None]
    assert build({"type": "number"}, *values[:3]).schema.field("v").type == pa.float64()


def test_moments_at_the_ends_of_time_are_kept() -> None:
    # Beyond what Python's datetime can hold once they are in UTC.
    values = ["9999-12-31T23:00:00-05:00", "0001-01-01T00:00:00+05:00"]
    micros = [253402315200000000, -62135614800000000]
    whole, each = build(DATE_TIME, *values), build(DATE_TIME, *values, "?")
    assert whole.column(4).cast(pa.int64()).to_pylist() == micros
    assert each.column(4).cast(pa.int64()).to_pylist() == [*micros, None]


@pytest.mark.parametrize(
    ("schema", "values"),
    [
        (DATE_TIME, ["2013-11-03T01:30:00Z", "2013-11-03", "2013-11-03 01:30:00.25+0500"]),
        (DATE_TIME, ["2013-11-03", "2013-11-03T01:30", "2013-11-03T01:30:00.123456"]),
        ({"type": "string", "format": "date"}, ["2013-11-03", "0001-01-01"]),
        ({"type": "integer"}, [1, -(2**63), 2**63 - 1]),
        ({"type": "number"}, [1, 2.5, -1e300, 2**53]),
        ({"type": "object"}, [{"a": "ü"}, {"b": [1.5, None]}, "text"]),
        ({"type": "string"}, ["", "ü", "a" * 300]),
        ({"type": "boolean"}, [True, False]),
    ],
)
def test_all_values_at_once_are_what_each_of_them_is(
    schema: dict[str, Any], values: list[Any]
) -> None:
    whole = build(schema, *values, None)
    each = [build(schema, value).column(4) for value in values]
    assert whole.column(4).to_pylist() == [*pa.concat_arrays(each).to_pylist(), None]
    # With one that does not fit among them, each is looked at.
    faulty = build(schema, *values, "\x00").column(4)
    assert faulty.to_pylist() == whole.column(4).to_pylist()


def test_what_the_records_were_like_is_observed() -> None:
    schema = {"properties": {name: {"type": "integer"} for name in "abcd"}}
    batches = RecordBatches(schema, generation=1)
    batches.build([{"a": 1, "b": "x", "c": None}, {"a": "y", "b": 1.5, "z": 1}], [1, 2])
    batches.build([{"a": None, "b": True, "c": None, "x": 1, "d": None}], [3])
    found = batches.observed
    assert (found.records, found.refused) == (3, 3)
    assert found.present == {"a", "b", "c", "d"}
    assert found.fitted == {"a"}
    assert found.undeclared == {"x", "z"}
    assert found.refused_values == {"a": 1, "b": 3}
    assert found.examples == {"a": "string", "b": "string"}


def test_ever_new_fields_do_not_fill_the_memory() -> None:
    batches = RecordBatches({"properties": {"a": {}, "b": {}}}, generation=1)
    for start in range(0, 3 * REMEMBERED, 1000):
        batches.build([{str(number): 1 for number in range(start, start + 1000)}], [1])
    assert len(batches.observed.undeclared) < REMEMBERED + 1000


# Names


def test_a_column_keeps_its_name_if_postgresql_can_have_it() -> None:
    long = "x" * 64
    declared = ["id", "ID", "Order Items", "select", "xmin", long]
    schema: dict[str, Any] = {"properties": {name: {} for name in declared}}
    names = column_names(schema)
    assert list(names) == list(schema["properties"])
    assert names.pop("xmin") == "xmin_"
    fitted = names.pop(long)
    assert all(source == name for source, name in names.items())
    assert len(fitted) == 63
    assert fitted.startswith("x" * 54 + "_")


def test_two_columns_that_would_become_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"xmin and xmin_ would both be the column xmin_"):
        column_names({"properties": {"xmin": {}, "xmin_": {}}})
