"""Airbyte records to Arrow: the four `_airbyte_*` columns first, then the stream's columns.

A value that does not fit its column's type is set to null, and the row says so in `_airbyte_meta`
together with the record as it came: the loader puts such rows aside, nothing is dropped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    import pyarrow as pa

RAW_ID = "_airbyte_raw_id"
EXTRACTED_AT = "_airbyte_extracted_at"
META = "_airbyte_meta"
GENERATION_ID = "_airbyte_generation_id"
#: What the columns hold that Airbyte's own destinations write too.
AIRBYTE_DESCRIPTIONS = {
    RAW_ID: "Identifies the record as it was extracted.",
    EXTRACTED_AT: "When the connector read the record from its source.",
    META: "What had to be changed in the record's values to load it.",
    GENERATION_ID: "The sync that brought the record, by the number of its commit in the lake.",
}
AIRBYTE_COLUMNS = tuple(AIRBYTE_DESCRIPTIONS)
#: Their types in Parquet, in Airbyte's own destinations too.
AIRBYTE_PARQUET = {RAW_ID: "string", EXTRACTED_AT: "int64", META: "string", GENERATION_ID: "int64"}

#: As in Airbyte's own destinations.
_META_WHOLE = '{"changes":[]}'


def _aware(text: str) -> datetime:
    """An ISO 8601 timestamp; one without an offset is UTC, as in Airbyte's own destinations."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _exact(kind: type, *others: type) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if isinstance(value, bool) and kind is not bool:
            raise ValueError("a boolean")
        if isinstance(value, (kind, *others)):
            return kind(value)
        raise ValueError(f"of type {type(value).__name__}")

    return convert


def _integer(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    number: int = _exact(int)(value)
    if not -(2**63) <= number < 2**63:
        raise ValueError("outside 64 bits")
    return number


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    if "\x00" in text:
        raise ValueError("with a NUL character, which PostgreSQL cannot hold")
    return text


def _without_nul(value: Any) -> Any:
    """The value with every NUL character, which jsonb cannot hold, as the replacement character."""
    if isinstance(value, str):
        return value.replace("\x00", "\N{REPLACEMENT CHARACTER}")
    if isinstance(value, Mapping):
        return {_without_nul(key): _without_nul(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nul(item) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class Kind:
    """A type that a column can have: in Arrow, in PostgreSQL, and how a value becomes one."""

    arrow: str
    postgres: str
    convert: Callable[[Any], Any]


INTEGER = Kind("int64", "bigint", _integer)
NUMBER = Kind("float64", "double precision", _exact(float, int))
BOOLEAN = Kind("bool", "boolean", _exact(bool))
TEXT = Kind("string", "text", _text)
JSON = Kind("string", "jsonb", lambda value: _text(orjson.dumps(value).decode()))
DATE = Kind("date32", "date", date.fromisoformat)
TIMESTAMP = Kind("timestamptz", "timestamptz", _aware)


def json_type(schema: Mapping[str, Any]) -> str:
    """A property's type as its JSON schema says it, such as `string (date-time)`."""
    declared = schema.get("type", "string")
    types = [declared] if isinstance(declared, str) else [t for t in declared if t != "null"]
    form = f" ({schema['format']})" if "format" in schema else ""
    return " or ".join(types) + form


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


def columns_of(json_schema: Mapping[str, Any]) -> dict[str, Kind]:
    """The stream's columns, in the order of its JSON schema."""
    return {name: kind_of(schema) for name, schema in json_schema["properties"].items()}


def _arrow(name: str) -> pa.DataType:
    import pyarrow as pa

    if name == "timestamptz":
        return pa.timestamp("us", tz="UTC")
    return pa.type_for_alias(name)


def arrow_schema(json_schema: Mapping[str, Any]) -> pa.Schema:
    """The schema of a stream's Parquet objects."""
    import pyarrow as pa

    first = [pa.field(name, _arrow(kind), nullable=False) for name, kind in AIRBYTE_PARQUET.items()]
    columns = columns_of(json_schema)
    return pa.schema([*first, *(pa.field(n, _arrow(kind.arrow)) for n, kind in columns.items())])


class RecordBatches:
    """Turns records of one stream into Arrow record batches."""

    def __init__(self, json_schema: Mapping[str, Any], generation: int) -> None:
        self.schema = arrow_schema(json_schema)
        self._columns = columns_of(json_schema)
        self._generation = generation
        #: Fields that records had and the declared schema has not.
        self.undeclared: set[str] = set()

    def build(self, records: Sequence[Mapping[str, Any]], emitted: Sequence[int]) -> pa.RecordBatch:
        """A batch of the records' values; `emitted` are milliseconds since the epoch."""
        import pyarrow as pa

        rows = len(records)
        changes: dict[int, list[dict[str, str]]] = {}
        arrays = []
        for name, kind in self._columns.items():
            values = [record.get(name) for record in records]
            arrays.append(self._column(name, kind, values, changes))
        meta = [_META_WHOLE] * rows
        for row, faults in changes.items():
            kept = {"changes": faults, "record": _without_nul(records[row])}
            meta[row] = orjson.dumps(kept).decode()
        self.undeclared.update(set().union(*records) - self._columns.keys())
        random = os.urandom(16 * rows).hex()
        identifiers = [random[i : i + 32] for i in range(0, 32 * rows, 32)]
        first = [
            pa.array(identifiers, pa.string()),
            pa.array(emitted, pa.int64()),
            pa.array(meta, pa.string()),
            pa.repeat(pa.scalar(self._generation, pa.int64()), rows),
        ]
        return pa.RecordBatch.from_arrays([*first, *arrays], schema=self.schema)

    def _column(
        self,
        name: str,
        kind: Kind,
        values: list[Any],
        changes: dict[int, list[dict[str, str]]],
    ) -> pa.Array:
        import pyarrow as pa

        converted: list[Any] = []
        for row, value in enumerate(values):
            if value is None:
                converted.append(None)
                continue
            try:
                converted.append(kind.convert(value))
            except (ValueError, TypeError, OverflowError) as error:
                converted.append(None)
                reason = f"not {kind.postgres}: {error}"
                changes.setdefault(row, []).append(
                    {"field": name, "change": "NULLED", "reason": reason[:200]}
                )
        return pa.array(converted, _arrow(kind.arrow))
