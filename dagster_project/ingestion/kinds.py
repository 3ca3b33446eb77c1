"""The kinds of column that a stream can have: in Parquet, in PostgreSQL, and from JSON.

A column's values become an array all at once if all of them are surely of its type; else each is
looked at, and one that does not fit raises ValueError, TypeError or OverflowError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from dagster_project.ingestion.exact import Number, dumps

if TYPE_CHECKING:
    import pyarrow as pa

NUL = "with a NUL character, which PostgreSQL cannot hold"


@dataclass(frozen=True, slots=True)
class Kind:
    """A type that a column can have."""

    arrow: str
    postgres: str
    #: A value that is not null as the column's type.
    convert: Callable[[Any], Any]
    #: All values at once; None, or any of the errors above, if each has to be looked at.
    whole: Callable[[Sequence[Any]], pa.Array | None]


def arrow_type(name: str) -> pa.DataType:
    """The Arrow type of a kind."""
    import pyarrow as pa

    if name == "timestamptz":
        return pa.timestamp("us", tz="UTC")
    return pa.type_for_alias(name)


_NULL = type(None)


def _only(values: Sequence[Any], *types: type) -> bool:
    return set(map(type, values)) <= {*types, _NULL}


def _refused(value: Any) -> ValueError:
    return ValueError(f"of type {json_type_of(value)}")


def json_type_of(value: Any) -> str:
    """What JSON calls a value of this type."""
    names: dict[type, str] = {
        bool: "boolean",
        int: "integer",
        float: "number",
        Number: "number",
        str: "string",
        list: "array",
        dict: "object",
    }
    return names.get(type(value), "null")


# Integers


def _integer(value: Any) -> int:
    if isinstance(value, Number):
        exact = value.value()
        if exact != exact.to_integral_value():
            raise _refused(value)
        value = int(exact) if exact.adjusted() < 20 else 2**64
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int:
        raise _refused(value)
    if not -(2**63) <= value < 2**63:
        raise ValueError("outside 64 bits")
    return value


def _integers(values: Sequence[Any]) -> pa.Array | None:
    import pyarrow as pa

    return pa.array(values, pa.int64()) if _only(values, int) else None


# Numbers


def _number(value: Any) -> float | str:
    """A double if it is the very number, else its digits."""
    if isinstance(value, Number):
        if not value.finite:
            return float(value.text)
        value.value()
        return value.text
    if type(value) is int:
        double = float(value)
        return double if int(double) == value else str(value)
    if type(value) is float:
        return value
    raise _refused(value)


def _numbers(values: Sequence[Any]) -> pa.Array | None:
    import pyarrow as pa

    return pa.array(values, pa.float64()) if _only(values, float, int) else None


def digits(value: float | str | None) -> str | None:
    """A number as the shortest text that stands for it and no other."""
    if isinstance(value, float):
        return "NaN" if value != value else repr(value).replace("inf", "Infinity")  # noqa: PLR0124
    return value


# Booleans


def _boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise _refused(value)
    return value


def _booleans(values: Sequence[Any]) -> pa.Array | None:
    import pyarrow as pa

    return pa.array(values, pa.bool_())


# Text and JSON


def _text(value: Any) -> str:
    if isinstance(value, Number):
        return value.text
    text = value if isinstance(value, str) else dumps(value).decode()
    if "\x00" in text:
        raise ValueError(NUL)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("with characters that are not valid UTF-8") from None
    return text


def _texts(values: Sequence[Any]) -> pa.Array | None:
    import pyarrow as pa

    array = pa.array(values, pa.string())
    return None if _holds(array, b"\x00") else array


def _json(value: Any) -> str:
    text = dumps(value).decode()
    # It may only look like one: a backslash, itself escaped, and a u.
    if r"\u0000" in text and _has_nul(value):
        raise ValueError(NUL)
    return text


def _jsons(values: Sequence[Any]) -> pa.Array | None:
    import pyarrow as pa

    array = pa.array([None if v is None else dumps(v) for v in values], pa.string())
    return None if _holds(array, rb"\u0000") else array


def _holds(array: pa.StringArray, part: bytes) -> bool:
    """Whether the part is anywhere in the array's texts, or where one ends and the next begins."""
    content = array.buffers()[2]
    return content is not None and part in content.to_pybytes()


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\x00" in value
    if isinstance(value, Mapping):
        return any(_has_nul(key) or _has_nul(item) for key, item in value.items())
    return isinstance(value, list) and any(map(_has_nul, value))


# Dates and times


def _date(value: Any) -> date:
    if not isinstance(value, str):
        raise _refused(value)
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise ValueError("no date of the form 2013-11-03") from None


def _dates(values: Sequence[Any]) -> pa.Array:
    import pyarrow as pa

    return pa.array(values, pa.string()).cast(pa.date32())


def _moment(value: Any) -> datetime:
    """An ISO 8601 timestamp; one without an offset is UTC, as in Airbyte's own destinations."""
    if not isinstance(value, str):
        raise _refused(value)
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("no timestamp of the form 2013-11-03T01:30:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _moments(values: Sequence[Any]) -> pa.Array:
    import pyarrow as pa

    texts = pa.array(values, pa.string())
    try:
        return texts.cast(pa.timestamp("us", tz="UTC"))
    except pa.ArrowInvalid:
        # Perhaps all of them have no offset.
        return texts.cast(pa.timestamp("us")).cast(pa.timestamp("us", tz="UTC"))


INTEGER = Kind("int64", "bigint", _integer, _integers)
#: In an object with a number that no double holds, the column is of strings instead.
NUMBER = Kind("float64", "numeric", _number, _numbers)
BOOLEAN = Kind("bool", "boolean", _boolean, _booleans)
TEXT = Kind("string", "text", _text, _texts)
JSON = Kind("string", "jsonb", _json, _jsons)
DATE = Kind("date32", "date", _date, _dates)
TIMESTAMP = Kind("timestamptz", "timestamptz", _moment, _moments)


def kind_of(schema: Mapping[str, Any]) -> Kind:
    """The kind of column for a property's JSON schema (Airbyte's type mapping).

    A property of several types, other than null, is text: its values are kept as they came.
    """
    declared = schema.get("type", "string")
    types = {declared} if isinstance(declared, str) else set(declared)
    types.discard("null")
    if types == {"integer"}:
        return INTEGER
    if types and types <= {"number", "integer"}:
        return NUMBER
    if types == {"boolean"}:
        return BOOLEAN
    if types and types <= {"object", "array"}:
        return JSON
    if types == {"string"}:
        if schema.get("format") == "date":
            return DATE
        if schema.get("format") == "date-time":
            return TIMESTAMP
    return TEXT
