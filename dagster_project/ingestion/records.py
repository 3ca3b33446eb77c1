"""Airbyte records to Arrow: the four `_airbyte_*` columns first, then the stream's columns.

A value that does not fit its column's type is set to null, and the row says so in `_airbyte_meta`
together with the record as it came: the loader puts such rows aside, nothing is dropped.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from dagster_project.identity import NAME_BYTES, fitting
from dagster_project.ingestion import exact
from dagster_project.ingestion.kinds import Kind, arrow_type, digits, json_type_of, kind_of

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
    GENERATION_ID: "The sync that brought the record, by the number of its first commit in the "
    "lake.",
}
AIRBYTE_COLUMNS = tuple(AIRBYTE_DESCRIPTIONS)
#: Their types in Parquet, in Airbyte's own destinations too.
AIRBYTE_PARQUET = {RAW_ID: "string", EXTRACTED_AT: "int64", META: "string", GENERATION_ID: "int64"}

#: The meta of a row that is whole, as in Airbyte's own destinations.
META_WHOLE = '{"changes":[]}'
_KEPT = ',"record":'
#: Columns that PostgreSQL has in every table.
_SYSTEM_COLUMNS = {"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"}
#: Names of undeclared fields that are remembered, lest records with ever new ones fill the memory.
REMEMBERED = 10_000


def json_type(schema: Mapping[str, Any]) -> str:
    """A property's type as its JSON schema says it, such as `string (date-time)`."""
    declared = schema.get("type", "string")
    types = [declared] if isinstance(declared, str) else [t for t in declared if t != "null"]
    form = f" ({schema['format']})" if "format" in schema else ""
    return " or ".join(types) + form


def columns_of(json_schema: Mapping[str, Any]) -> dict[str, Kind]:
    """The stream's columns by the names that the source and the lake have for them, in order."""
    return {name: kind_of(schema) for name, schema in json_schema["properties"].items()}


def column_names(json_schema: Mapping[str, Any]) -> dict[str, str]:
    """The warehouse's name of each of the stream's columns, by the source's name.

    The same unless PostgreSQL cannot have it. Raises ValueError if two become one.
    """
    sources: dict[str, str] = {}
    for name in json_schema["properties"]:
        found = fitting(f"{name}_" if name in _SYSTEM_COLUMNS else name)
        other = sources.setdefault(found, name)
        if other != name:
            raise ValueError(
                f"{other} and {name} would both be the column {found}, as PostgreSQL's names have "
                f"at most {NAME_BYTES} bytes: declare one of them"
            )
    return {name: found for found, name in sources.items()}


def arrow_schema(json_schema: Mapping[str, Any]) -> pa.Schema:
    """The schema of a stream's Parquet objects.

    A number's column is of strings in an object with a number that no double holds.
    """
    import pyarrow as pa

    first = [
        pa.field(name, arrow_type(kind), nullable=False) for name, kind in AIRBYTE_PARQUET.items()
    ]
    columns = columns_of(json_schema)
    return pa.schema(
        [*first, *(pa.field(n, arrow_type(kind.arrow)) for n, kind in columns.items())]
    )


def reject_of(meta: str) -> tuple[str, str] | None:
    """Of a row's meta: why the row cannot be loaded, and the record as it came, as JSON.

    None if the row is whole. The record's text is as jsonb can hold it, with all its digits.
    """
    if meta == META_WHOLE:
        return None
    # Within a JSON string the quotes would be escaped.
    head, kept, record = meta.partition(_KEPT)
    changes = exact.loads((head + "}" if kept else head).encode())["changes"]
    if not changes:
        return None
    return "; ".join(f"{c['field']}: {c['reason']}" for c in changes), record[:-1] or "{}"


@dataclass(slots=True)
class Observed:
    """What the records of a stream were like, against its declared columns."""

    #: How many there were.
    records: int = 0
    #: Declared columns that a record had, if only as null.
    present: set[str] = field(default_factory=set)
    #: Declared columns of which a value was of the column's type.
    fitted: set[str] = field(default_factory=set)
    #: Fields that records had and the declaration has not.
    undeclared: set[str] = field(default_factory=set)
    #: Records with at least one value that was refused.
    refused: int = 0
    #: Values that were refused, by column; and the JSON type of one of them.
    refused_values: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)


class RecordBatches:
    """Turns records of one stream into Arrow record batches."""

    def __init__(self, json_schema: Mapping[str, Any], generation: int) -> None:
        self.schema = arrow_schema(json_schema)
        self.observed = Observed()
        self._columns = columns_of(json_schema)
        self._generation = generation
        self._pick = itemgetter(*self._columns)

    def build(self, records: Sequence[Mapping[str, Any]], emitted: Sequence[int]) -> pa.RecordBatch:
        """A batch of the records' values; `emitted` are milliseconds since the epoch.

        Its schema is `schema`, but a number's column is of strings if a double cannot hold one.
        """
        import pyarrow as pa

        rows = len(records)
        faults: dict[int, list[dict[str, str]]] = {}
        arrays = [
            self._array(name, kind, values, faults)
            for (name, kind), values in zip(
                self._columns.items(), self._values(records), strict=True
            )
        ]
        self.observed.records += rows
        self.observed.refused += len(faults)
        first = [
            _identifiers(rows),
            pa.array(emitted, pa.int64()),
            _metas(records, faults),
            pa.repeat(pa.scalar(self._generation, pa.int64()), rows),
        ]
        return pa.RecordBatch.from_arrays(
            [*first, *arrays],
            schema=pa.schema(
                field if field.type == values.type else field.with_type(values.type)
                for field, values in zip(self.schema, [*first, *arrays], strict=True)
            ),
        )

    def _values(self, records: Sequence[Mapping[str, Any]]) -> list[Sequence[Any]]:
        """The values of each column; takes note of which fields there are."""
        names, observed = self._columns.keys(), self.observed
        if len(names) > 1:
            try:
                columns: list[Sequence[Any]] = list(zip(*map(self._pick, records), strict=True))
            except KeyError:
                pass
            else:
                observed.present |= names
                if max(map(len, records)) > len(names):
                    self._note_undeclared(set().union(*records) - names)
                return columns
        there = set[str]().union(*records)
        observed.present |= there & names
        self._note_undeclared(there - names)
        return [[record.get(name) for record in records] for name in names]

    def _note_undeclared(self, fields: set[str]) -> None:
        if len(self.observed.undeclared) < REMEMBERED:
            self.observed.undeclared |= fields

    def _array(
        self,
        name: str,
        kind: Kind,
        values: Sequence[Any],
        faults: dict[int, list[dict[str, str]]],
    ) -> pa.Array:
        import pyarrow as pa

        try:
            converted = kind.whole(values)
        except (ValueError, TypeError, OverflowError):
            converted = None
        if converted is None:
            each = self._each(name, kind, values, faults)
            if kind.arrow == "float64" and any(isinstance(value, str) for value in each):
                converted = pa.array(map(digits, each), pa.string())
            else:
                converted = pa.array(each, arrow_type(kind.arrow))
        if converted.null_count < len(values):
            self.observed.fitted.add(name)
        return converted

    def _each(
        self,
        name: str,
        kind: Kind,
        values: Sequence[Any],
        faults: dict[int, list[dict[str, str]]],
    ) -> list[Any]:
        """The values one by one, null for one that does not fit, with its row among the faults."""
        converted: list[Any] = []
        for row, value in enumerate(values):
            if value is None:
                converted.append(None)
                continue
            try:
                converted.append(kind.convert(value))
            except (ValueError, TypeError, OverflowError) as error:
                converted.append(None)
                reason = f"not {kind.postgres}: {error}"[:200]
                faults.setdefault(row, []).append(
                    {"field": name, "change": "NULLED", "reason": reason}
                )
                self.observed.refused_values[name] += 1
                self.observed.examples.setdefault(name, json_type_of(value))
        return converted


def _identifiers(rows: int) -> pa.Array:
    """Random identifiers of 32 hexadecimal digits."""
    import pyarrow as pa

    offsets = array("i", range(0, 32 * rows + 1, 32))
    content = os.urandom(16 * rows).hex().encode()
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(content))


def _metas(
    records: Sequence[Mapping[str, Any]], faults: Mapping[int, list[dict[str, str]]]
) -> pa.Array:
    import pyarrow as pa

    if not faults:
        return pa.repeat(pa.scalar(META_WHOLE), len(records))
    metas = [META_WHOLE] * len(records)
    for row, changes in faults.items():
        record = exact.dumps(exact.keepable(records[row])).decode()
        metas[row] = f'{{"changes":{exact.dumps(exact.keepable(changes)).decode()}{_KEPT}{record}}}'
    return pa.array(metas, pa.string())
