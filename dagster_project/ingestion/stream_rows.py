"""Rows of a stream on their way to the loader: as declared now, and what becomes of the rest."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import TYPE_CHECKING, Any

from dagster_project.ingestion import exact
from dagster_project.ingestion.declaration import StreamDeclaration
from dagster_project.ingestion.kinds import JSON, NUMBER, Kind
from dagster_project.ingestion.records import (
    EXTRACTED_AT,
    META,
    META_WHOLE,
    arrow_schema,
    column_names,
    columns_of,
    reject_of,
)
from dagster_project.warehouse.arrays import array_of, scalar_of
from dagster_project.warehouse.staging import FAULT, RECORD

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows that are in memory at once, twice over: as Arrow has them and as PostgreSQL takes them.
BATCH_ROWS, BATCH_VALUES = 16_384, 160_000
#: Digits that are surely a number of PostgreSQL's if there are no more than so many bytes of them.
_DIGITS = r"^(-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,3})?|NaN|-?Infinity)$"
_DIGITS_BYTES = 10_000


class StreamRows:
    """How the rows of a stream's objects are staged."""

    def __init__(self, stream: StreamDeclaration) -> None:
        import pyarrow as pa

        names, kinds = column_names(stream.json_schema), columns_of(stream.json_schema)
        #: By the warehouse's name of a column: that of the lake, and its kind.
        self.sources = {found: name for name, found in names.items()}
        self.kinds = {names[name]: kind for name, kind in kinds.items()}
        self.numbers = {name for name, kind in self.kinds.items() if kind is NUMBER}
        staged = {EXTRACTED_AT: pa.timestamp("us", tz="UTC")}
        staged |= dict.fromkeys(self.numbers, pa.string())
        #: As in the lake, with the extraction time as a timestamp and numbers as their digits.
        self.schema = pa.schema(
            (name, staged.get(name, field.type))
            for field in arrow_schema(stream.json_schema)
            for name in (names.get(field.name, field.name),)
        )

    @property
    def batch_rows(self) -> int:
        """Rows that are staged at once."""
        return max(1, min(BATCH_ROWS, BATCH_VALUES // len(self.schema)))

    def staged(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """A batch of the lake's as it is staged, those rows marked that cannot be loaded."""
        import pyarrow as pa

        columns, came = [], {}
        misfits: dict[int, list[str]] = {}
        for field in self.schema:
            index = batch.schema.get_field_index(self.sources.get(field.name, field.name))
            if index < 0:
                # Written before the stream had this column.
                columns.append(pa.nulls(batch.num_rows, field.type))
                continue
            column = batch.column(index)
            if field.name == EXTRACTED_AT:
                column = column.cast(pa.timestamp("ms", tz="UTC"))
            cast = _cast(column, field.type, field.name in self.numbers)
            columns.append(cast)
            if cast.null_count > column.null_count:
                came[field.name] = column
                for row in _lost(column, cast):
                    reason = f"{field.name}: not {self.kinds[field.name].postgres}"
                    misfits.setdefault(row, []).append(reason)
        staged = pa.RecordBatch.from_arrays(columns, schema=self.schema)
        return _marked(staged, misfits, lambda row: self._record(staged, came, row))

    def _record(self, staged: pa.RecordBatch, came: dict[str, pa.Array], row: int) -> str:
        """A row as JSON by the lake's names: what is not of its column's type as it came."""
        record = {
            source: _json_value(came.get(name, staged.column(name))[row].as_py(), kind)
            for (name, source), kind in zip(self.sources.items(), self.kinds.values(), strict=True)
        }
        return exact.dumps(exact.keepable(record)).decode()


def _json_value(value: Any, kind: Kind) -> Any:
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, str) and kind is NUMBER and _is_number(value):
        return exact.Number(value)
    if isinstance(value, str) and kind is JSON:
        try:
            return exact.loads(value.encode())
        except ValueError:
            return value
    return value


def _marked(
    batch: pa.RecordBatch, misfits: dict[int, list[str]], record_of: Callable[[int], str]
) -> pa.RecordBatch:
    """The batch with FAULT and RECORD of rows of which a value had to be changed, or is a misfit.

    `record_of` gives the record of such a row where its meta does not hold it.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    metas = batch.column(META)
    whole = pc.equal(metas, scalar_of(META_WHOLE, pa.string()))
    changed = pc.indices_nonzero(pc.invert(whole)).to_pylist()
    # Null stands for it, see META_DEFAULT.
    metas_staged = pc.if_else(whole, scalar_of(None, pa.string()), metas)
    batch = batch.set_column(batch.schema.get_field_index(META), META, metas_staged)
    rejects = {row: reject_of(metas[row].as_py()) for row in changed}
    if not misfits and not any(rejects.values()):
        return batch
    faults: list[str | None] = [None] * batch.num_rows
    records: list[str | None] = [None] * batch.num_rows
    for row, reasons in misfits.items():
        faults[row], records[row] = "; ".join(reasons), record_of(row)
    for row, reject in rejects.items():
        if reject:
            faults[row] = "; ".join([reject[0], *misfits.get(row, ())])
            records[row] = reject[1]
    for name, values in ((FAULT, faults), (RECORD, records)):
        batch = batch.append_column(name, array_of(values, pa.string()))
    return batch


# Columns that were written under another declaration


def _cast(column: pa.Array, to: pa.DataType, is_number: bool) -> pa.Array:
    """The column as its declared type, null where a value is not of it.

    The type can be another than when the object was written. Each distinct value is looked at once,
    and only in a column of which not all are of the type. A number is staged as its digits.
    """
    import pyarrow as pa

    kind = pa.types
    if is_number and kind.is_string(column.type):
        return _digits(column)
    if column.type == to:
        return column
    if is_number and not (kind.is_integer(column.type) or kind.is_floating(column.type)):
        return pa.nulls(len(column), to)
    try:
        return _converted(column, to)
    except pa.ArrowNotImplementedError:
        return pa.nulls(len(column), to)
    except pa.ArrowInvalid:
        encoded = column.dictionary_encode()
        return _fitting(encoded.dictionary, to).take(encoded.indices)


def _converted(values: pa.Array, to: pa.DataType) -> pa.Array:
    """Raises ArrowInvalid if one is not of the type, ArrowNotImplementedError if none can be."""
    import pyarrow as pa

    kind = pa.types
    if kind.is_string(values.type) and kind.is_timestamp(to):
        try:
            return values.cast(to)
        except pa.ArrowInvalid:
            # One without an offset is UTC's.
            return values.cast(pa.timestamp("us")).cast(to)
    is_text = kind.is_string(values.type) or kind.is_string(to)
    if not is_text and kind.is_temporal(values.type) != kind.is_temporal(to):
        raise pa.ArrowNotImplementedError("a number is no time")
    cast = values.cast(to)
    is_day = kind.is_timestamp(values.type) and kind.is_date(to)
    if is_day and not cast.cast(values.type).equals(values):
        raise pa.ArrowInvalid("a time of day")
    return cast


def _fitting(values: pa.Array, to: pa.DataType) -> pa.Array:
    """The values as the type, null for those that are not of it: found by halves."""
    import pyarrow as pa

    try:
        return _converted(values, to)
    except pa.ArrowInvalid:
        if len(values) == 1:
            return pa.nulls(1, to)
    half = len(values) // 2
    return pa.concat_arrays([_fitting(values[:half], to), _fitting(values[half:], to)])


def _digits(texts: pa.StringArray) -> pa.StringArray:
    """The texts that are numbers of PostgreSQL's, null for the others."""
    import pyarrow as pa
    import pyarrow.compute as pc

    short = pc.less_equal(pc.binary_length(texts), scalar_of(_DIGITS_BYTES, pa.int32()))
    surely = pc.and_(short, pc.match_substring_regex(texts, _DIGITS))
    if surely.false_count == 0:
        return texts
    others = texts.filter(pc.invert(surely)).unique().to_pylist()
    none = [text for text in others if not _is_number(text)]
    if not none:
        return texts
    return pc.if_else(
        pc.is_in(texts, array_of(none, pa.string())), scalar_of(None, pa.string()), texts
    )


def _is_number(text: str) -> bool:
    if text in {"NaN", "Infinity", "-Infinity"}:
        return True
    if not text.isascii() or not text[-1:].isdigit() or "_" in text:
        return False
    try:
        exact.Number(text).value()
    except ValueError:
        return False
    return True


def _lost(before: pa.Array, after: pa.Array) -> list[int]:
    """The rows that have a value before and none after."""
    import pyarrow.compute as pc

    found: list[int] = pc.indices_nonzero(pc.and_(before.is_valid(), after.is_null())).to_pylist()
    return found
