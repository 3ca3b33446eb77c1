"""Rejected rows of raw tables, as the sources of these tables are declared now."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from dagster_project.domain import domain_names
from dagster_project.failures import MeshError
from dagster_project.ingestion import exact
from dagster_project.ingestion.declaration import (
    Connection,
    StreamDeclaration,
    read_connections,
)
from dagster_project.ingestion.feed import FeedDeclaration, read_feeds
from dagster_project.ingestion.kinds import NUMBER
from dagster_project.ingestion.landed_rows import BATCH_ROWS, Fault, set_aside, text_schema
from dagster_project.ingestion.landing import target_of as feed_target
from dagster_project.ingestion.records import (
    EXTRACTED_AT,
    GENERATION_ID,
    META,
    RAW_ID,
    RecordBatches,
)
from dagster_project.ingestion.stream_rows import StreamRows
from dagster_project.ingestion.streams import META_DEFAULT, surely
from dagster_project.ingestion.streams import target_of as stream_target
from dagster_project.warehouse.arrays import array_of, scalar_of
from dagster_project.warehouse.replay import Rejected, Rows
from dagster_project.warehouse.target import Target

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class RawTable:
    """A raw table, and what its rows come from."""

    target: Target
    source: StreamDeclaration | FeedDeclaration

    def rows(self) -> Rows:
        """How its rejected rows are loaded again."""
        if isinstance(self.source, FeedDeclaration):
            return _feed_rows(self.source)
        return _stream_rows(self.source)


def raw_tables() -> dict[str, RawTable]:
    """The raw tables of all domains, by name."""
    found = [
        RawTable(stream_target(domain, connection, stream), stream)
        for domain, connection, stream in _streams()
    ]
    found += [
        RawTable(feed_target(domain, feed), feed)
        for domain in domain_names()
        for feed in read_feeds(domain)
    ]
    return {str(raw.target.table): raw for raw in found}


def _streams() -> Iterator[tuple[str, Connection, StreamDeclaration]]:
    for domain in domain_names():
        for connection in read_connections(domain):
            for stream in connection.streams:
                yield domain, connection, stream


def find_raw_table(name: str) -> RawTable:
    """The raw table of this name. Raises MeshError with near matches if there is none."""
    known = raw_tables()
    if name in known:
        return known[name]
    by_words = {word: full for full in known for word in (full, full.partition(".")[2])}
    near = difflib.get_close_matches(name, by_words, n=3, cutoff=0.5)
    near += difflib.get_close_matches(name.rpartition(".")[2], by_words, n=2)
    named = list(dict.fromkeys(by_words[word] for word in near))
    hint = f"did you mean {' or '.join(named)}?" if named else f"they are {', '.join(known)}"
    raise MeshError(f"{name} is no raw table: {hint}")


# Streams


def _stream_rows(stream: StreamDeclaration) -> Rows:
    rows = StreamRows(stream)

    def batches(rejected: Iterator[Rejected]) -> Iterator[pa.RecordBatch]:
        while some := list(islice(rejected, rows.batch_rows)):
            yield rows.staged(_as_written(stream, rows, some))

    return Rows(rows.schema, batches, surely(rows), {META: META_DEFAULT})


def _as_written(
    stream: StreamDeclaration, rows: StreamRows, rejected: Sequence[Rejected]
) -> pa.RecordBatch:
    """The rows as a sync would write them to the lake now, but for what the platform gave them."""
    records, origins = [], []
    for each in rejected:
        record: dict[str, Any] = exact.loads(each.record.encode())
        if each.origin is None:
            origins.append(record)
            record = _as_sent(rows, record)
        else:
            origins.append(exact.loads(each.origin.encode()))
        records.append(record)
    emitted = [_milliseconds(origin.get(EXTRACTED_AT)) for origin in origins]
    batch = RecordBatches(stream.json_schema, 0).build(records, emitted)
    for name in (RAW_ID, GENERATION_ID):
        index = batch.schema.get_field_index(name)
        column = batch.column(index)
        values = (
            value if origin.get(name) is None else origin[name]
            for origin, value in zip(origins, column.to_pylist(), strict=True)
        )
        batch = batch.set_column(index, batch.schema.field(index), array_of(values, column.type))
    return batch


def _as_sent(rows: StreamRows, row: dict[str, Any]) -> dict[str, Any]:
    """A row that the table had, or would have had, as a record of the source."""
    return {
        source: exact.Number(value) if isinstance(value, str) and kind is NUMBER else value
        for (name, source), kind in zip(rows.sources.items(), rows.kinds.values(), strict=True)
        if (value := row.get(name)) is not None
    }


def _milliseconds(moment: str | None) -> int:
    """Since the epoch; a record of which nobody knows when it was extracted is older than all."""
    return round(datetime.fromisoformat(moment).timestamp() * 1000) if moment else 0


# Feeds


def _feed_rows(feed: FeedDeclaration) -> Rows:
    schema = text_schema(feed)

    def batches(rejected: Iterator[Rejected]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        while some := list(islice(rejected, BATCH_ROWS)):
            records = [exact.loads(each.record.encode()) for each in some]
            columns = [
                array_of((_text(record.get(name)) for record in records), pa.string())
                for name in schema.names
            ]
            batch = pa.RecordBatch.from_arrays(columns, schema=schema)
            yield from set_aside(batch, list(_times_of_day(feed, batch)))

    return Rows(schema, batches)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return exact.dumps(value).decode()


def _times_of_day(feed: FeedDeclaration, batch: pa.RecordBatch) -> Iterator[Fault]:
    """PostgreSQL takes a time for a date, silently."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for name, column in feed.columns.items():
        if column.type == "date":
            found = pc.match_substring(batch.column(name), ":")
            if pc.any(found).as_py():
                found = pc.fill_null(found, scalar_of(0, pa.bool_()))
                yield Fault(found, f"{name}: a time of day, where a date is declared")
