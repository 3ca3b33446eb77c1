"""No digit of a number is lost between the connector and the lake."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dagster_project.failures import SourceError
from dagster_project.ingestion.exact import Number, at_risk, dumps, keepable, loads
from dagster_project.ingestion.protocol import read_message
from tests.ingestion.scripted import Shop, connection, stream

DIGITS = "1234567890" * 4


@pytest.mark.parametrize(
    "text",
    [DIGITS, f"-{DIGITS}", f"0.{DIGITS}", f"{DIGITS}.5", "1e400", "1E-400", "123456789.123456789"],
)
def test_a_number_that_python_would_round_keeps_its_digits(text: str) -> None:
    document = f'{{"a":[{text},{{"b":{text}}}]}}'.encode()
    assert at_risk(document)
    assert loads(document)["a"][0] == Number(text)
    assert dumps(loads(document)) == document


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-0.5", -0.5),
        ("1.50", 1.5),
        ("1e22", 1e22),
        ("0.1", 0.1),
        ("0.30000000000000004", 0.30000000000000004),
        ("18446744073709551615", 2**64 - 1),
    ],
)
def test_a_number_that_python_can_hold_is_one(text: str, value: Any) -> None:
    found = loads(text.encode())
    assert (type(found), found) == (type(value), value)


numbers = st.one_of(
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.decimals(allow_nan=False, allow_infinity=False).map(lambda value: f"{value:f}"),
    st.builds("{}e{}".format, st.integers(-(10**20), 10**20), st.integers(-400, 400)),
)


@given(st.lists(st.tuples(st.text(max_size=20), numbers), max_size=4), st.booleans())
@example([("e1000", "1e-400"), ("", "0.1")], True)
@example([("", "1234567890123456e5"), ("1e1000", "1")], False)
def test_a_message_is_read_without_rounding(items: list[tuple[str, str]], spaced: bool) -> None:
    space = " " if spaced else ""
    values = f",{space}".join(f"[{json.dumps(text)},{space}{number}]" for text, number in items)
    line = f'{{"type":{space}"RECORD",{space}"values":{space}[{values}]}}'.encode()
    message = read_message(line, risky=at_risk(line))
    assert message
    for (text, number), (found_text, found) in zip(items, message["values"], strict=True):
        assert found_text == text
        exact = Decimal(found.text if isinstance(found, Number) else repr(found))
        assert exact == Decimal(number)


def test_what_is_kept_of_a_record_is_valid_for_jsonb() -> None:
    value = {"a\x00": [Number("NaN"), Number("1e200000"), Number(DIGITS)], "b": "\ud800"}
    kept = dumps(keepable(value)).decode()
    assert DIGITS in kept
    assert '"NaN","1e200000"' in kept
    assert "\\u0000" not in kept
    orjson.loads(kept)


def test_a_line_that_is_nested_too_deeply_is_an_error() -> None:
    line = b'{"type":"RECORD","record":' + b"[" * 100_000
    with pytest.raises(SourceError, match="a message that is not valid JSON"):
        read_message(line, risky=False)


# From a connector to the lake


def say(*values: str) -> str:
    """The body of a connector that sends records with these values of `v`, which are JSON text."""
    head, tail = '{"type":"RECORD","record":{"stream":"s","data":{"v":', '},"emitted_at":1}}'
    return f"for value in {list(values)!r}:\n    print({head!r} + value + {tail!r})\nstatus('s')\n"


def sent(shop: Shop, kind: Any, *values: str) -> list[pa.Table]:
    declared = stream("s", v="string") | {"primary_key": []}
    declared["json_schema"] = {"properties": {"v": kind}}
    shop.connection = connection(declared)
    return shop.tables(shop.sync(say(*values)), "s")


def test_numbers_are_doubles_in_the_lake_where_that_is_exact(shop: Shop) -> None:
    values = ["1", "2.50", "null", "0.30000000000000004", "1e22", "NaN", "-Infinity"]
    (table,) = sent(shop, {"type": "number"}, *values)
    assert table.schema.field("v").type == pa.float64()
    assert [str(value) for value in table["v"].to_pylist()] == [
        "1.0",
        "2.5",
        "None",
        "0.30000000000000004",
        "1e+22",
        "nan",
        "-inf",
    ]


def test_numbers_are_their_digits_in_the_lake_where_a_double_is_not_exact(shop: Shop) -> None:
    values = ["1.5", *["2"] * 600, DIGITS, f"0.{DIGITS}", "9007199254740993", "NaN", "Infinity"]
    (table,) = sent(shop, {"type": "number"}, *values)
    assert table.schema.field("v").type == pa.string()
    found = table["v"].to_pylist()
    assert found[-5:] == [DIGITS, f"0.{DIGITS}", "9007199254740993", "NaN", "Infinity"]
    assert [Decimal(text) for text in found[:601]] == [Decimal("1.5"), *[2] * 600]


def test_an_integer_of_more_than_64_bits_is_set_aside_with_its_digits(shop: Shop) -> None:
    (table,) = sent(shop, {"type": "integer"}, "1", DIGITS, "9223372036854775807")
    assert table["v"].to_pylist() == [1, None, 2**63 - 1]
    assert f'"record":{{"v":{DIGITS}}}' in table["_airbyte_meta"].to_pylist()[1]


def test_nested_numbers_keep_their_digits(shop: Shop) -> None:
    values = [f'{{"a":[{DIGITS},0.{DIGITS}]}}', '{"a":[NaN]}', '{"a":1.5}', '"\\ud800"']
    (table,) = sent(shop, {"type": "object"}, *values)
    assert table["v"].to_pylist() == [values[0], None, '{"a":1.5}', None]
    metas = table["_airbyte_meta"].to_pylist()
    assert "not jsonb: NaN" in metas[1]
    assert '"record":{"v":{"a":["NaN"]}}' in metas[1]


def test_text_of_several_types_keeps_the_digits(shop: Shop) -> None:
    (table,) = sent(shop, {"type": ["string", "number"]}, DIGITS, '"x"', "NaN", "1.5")
    assert table["v"].to_pylist() == [DIGITS, "x", "NaN", "1.5"]
