"""Rows of a landed file on their way to the loader: which are good, and what becomes of the rest.

Every column is text on this way; what is not of its column's type, the warehouse finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from dagster_project.failures import SourceError
from dagster_project.ingestion.feed import FeedDeclaration
from dagster_project.warehouse.arrays import array_of, scalar_of
from dagster_project.warehouse.staging import FAULT, RECORD

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows of a batch at most, so that memory stays flat.
BATCH_ROWS = 65_536


class Reject(NamedTuple):
    """A row that cannot be loaded: why, and the row as it came."""

    reason: str
    record: Mapping[str, Any]


class Fault(NamedTuple):
    """Which rows of a batch cannot be loaded (a boolean array), and why."""

    rows: pa.BooleanArray
    reason: str


def text_schema(feed: FeedDeclaration) -> pa.Schema:
    """The feed's columns, each as text."""
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in feed.columns])


def check_names(names: Sequence[str], key: str, feed: FeedDeclaration) -> None:
    """Refuse a file that has not just the declared columns, whatever their order."""
    missing = [name for name in feed.columns if name not in names]
    extra = [name for name in names if name not in feed.columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not (missing or extra or twice):
        return
    hint = ""
    if len(names) == 1 and len(feed.columns) > 1:
        hint = f" Are its values separated by {feed.delimiter!r}? See the feed's `delimiter`."
    raise SourceError(
        f"{key}: its columns are not the declared ones: missing {missing or 'none'}, not declared "
        f"{extra or 'none'}, there more than once {twice or 'none'}.{hint} Nothing of this load "
        "was kept; mend the file or the feed's declaration"
    )


def nul_faults(batch: pa.RecordBatch) -> list[Fault]:
    """The rows with a NUL character in a value, by column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    false = scalar_of(0, pa.bool_())
    faults = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        found = pc.fill_null(pc.match_substring(column, "\0"), false)
        if found.true_count:
            faults.append(Fault(found, f"{name}: a NUL character, which PostgreSQL cannot hold"))
    return faults


def set_aside(batch: pa.RecordBatch, faults: Sequence[Fault]) -> Iterator[pa.RecordBatch]:
    """The batch's good rows, and then those that have faults as rows for the rejects."""
    import pyarrow.compute as pc

    if not faults:
        yield batch
        return
    bad = faults[0].rows
    for fault in faults[1:]:
        bad = pc.or_(bad, fault.rows)
    yield batch.filter(pc.invert(bad))
    reasons = [
        [fault.reason if is_bad else "" for is_bad in fault.rows.filter(bad).to_pylist()]
        for fault in faults
    ]
    records = batch.filter(bad).to_pylist()
    yield rejects(
        batch.schema,
        [
            Reject("; ".join(filter(None, why)), record)
            for record, *why in zip(records, *reasons, strict=True)
        ],
    )


def rejects(schema: pa.Schema, rows: Sequence[Reject]) -> pa.RecordBatch:
    """Rows for the rejects: all columns null, then the reason and the record as JSON."""
    import pyarrow as pa

    columns = [pa.nulls(len(rows), field.type) for field in schema]
    faults = [array_of((row.reason for row in rows), pa.string())]
    records = [array_of((_json(row.record) for row in rows), pa.string())]
    names = [*schema.names, FAULT, RECORD]
    return pa.RecordBatch.from_arrays([*columns, *faults, *records], names=names)


def _json(record: Mapping[str, Any]) -> str:
    """As JSON; a NUL character, which jsonb cannot hold, as the replacement character."""
    text = orjson.dumps(record).decode()
    if "\\u0000" not in text:
        return text
    shown = {
        name: value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value
        for name, value in record.items()
    }
    return orjson.dumps(shown).decode()
