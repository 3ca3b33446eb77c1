"""Reading a landed Parquet file: its typed values as what their columns' types take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dagster_project.failures import SourceError
from dagster_project.ingestion.feed import FeedDeclaration
from dagster_project.ingestion.landed_rows import (
    BATCH_ROWS,
    Fault,
    check_names,
    nul_faults,
    set_aside,
    text_schema,
)
from dagster_project.warehouse.arrays import array_of, scalar_of

if TYPE_CHECKING:
    import pyarrow as pa

MAGIC = b"PAR1"


def parquet_batches(content: bytes, key: str, feed: FeedDeclaration) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file, as text. Raises SourceError if it is not what was declared.

    Values are those of the file, exactly; a timestamp without a zone is in UTC.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not content.endswith(MAGIC):
        raise SourceError(f"{key} is a Parquet file that ends too early: have it delivered again")
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        check_names(file.schema_arrow.names, key, feed)
        for batch in file.iter_batches(BATCH_ROWS):
            yield from _rows(batch, key, feed)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"{key} is a Parquet file that cannot be read ({error}): have it delivered again"
        ) from None


def _rows(batch: pa.RecordBatch, key: str, feed: FeedDeclaration) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    columns, faults = [], []
    for name, declared in feed.columns.items():
        column = batch.column(name)
        try:
            text, fault = _as_text(column, declared.type)
        except pa.ArrowNotImplementedError:
            raise SourceError(
                f"{key} holds {name} as {column.type}, which cannot become {declared.type}: have "
                "it delivered as another type"
            ) from None
        columns.append(text)
        if fault and fault.rows.true_count:
            faults.append(Fault(fault.rows, f"{name}: {fault.reason}"))
    texts = pa.RecordBatch.from_arrays(columns, schema=text_schema(feed))
    yield from set_aside(texts, [*faults, *nul_faults(texts)])


def _as_text(column: pa.Array, wanted: str) -> tuple[pa.StringArray, Fault | None]:
    """The values as text that PostgreSQL reads as the wanted type, or refuses.

    With the rows, if any, that it would take for something else than what they are.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = pa.types
    if kind.is_dictionary(column.type):
        column = column.dictionary_decode()
    if kind.is_floating(column.type):
        column = column.cast(pa.float64())
        text = column.cast(pa.string())
        return (_whole(column, text) if wanted == "bigint" else text), None
    if kind.is_decimal(column.type) and wanted == "bigint":
        return pc.replace_substring_regex(column.cast(pa.string()), r"\.0+$", ""), None
    if wanted == "timestamptz" and kind.is_timestamp(column.type) and column.type.tz:
        # In its own zone its text would lose what an offset of old has of seconds.
        column = column.cast(pa.timestamp(column.type.unit, "UTC"))
        return column.cast(pa.string()), None
    if wanted == "date" and kind.is_timestamp(column.type):
        if column.type.tz:
            column = pc.local_timestamp(column)
        days = column.cast(pa.date32(), safe=False)
        later = pc.fill_null(pc.not_equal(days.cast(column.type), column), scalar_of(0, pa.bool_()))
        text = pc.if_else(later, column.cast(pa.string()), days.cast(pa.string()))
        return text, Fault(later, "a time of day, where a date is declared")
    if _is_string(column.type):
        return _decoded(column)
    return column.cast(pa.string()), None


def _whole(numbers: pa.DoubleArray, text: pa.StringArray) -> pa.StringArray:
    """The numbers without a fraction as integers, the others as their text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    beyond = scalar_of(2**63, pa.float64())
    is_whole = pc.and_(pc.equal(numbers, pc.trunc(numbers)), pc.less(pc.abs(numbers), beyond))
    integers = pc.if_else(is_whole, numbers, scalar_of(None, pa.float64())).cast(pa.int64())
    return pc.coalesce(integers.cast(pa.string()), text)


def _is_string(kind: pa.DataType) -> bool:
    from pyarrow import types

    checks = (
        *(types.is_string, types.is_large_string, types.is_string_view),
        *(types.is_binary, types.is_large_binary, types.is_binary_view),
        types.is_fixed_size_binary,
    )
    return any(check(kind) for check in checks)


def _decoded(column: pa.Array) -> tuple[pa.StringArray, Fault | None]:
    """Strings, whose bytes nobody has looked at yet, as UTF-8."""
    import pyarrow as pa

    content = column.cast(pa.binary())
    try:
        return content.cast(pa.string()), None
    except pa.ArrowInvalid:
        values = content.to_pylist()
        texts = [None if value is None else value.decode(errors="replace") for value in values]
        bad = [
            value is not None and text is not None and text.encode() != value
            for value, text in zip(values, texts, strict=True)
        ]
        return array_of(texts, pa.string()), Fault(
            array_of(map(int, bad), pa.bool_()), "not valid UTF-8"
        )
