"""Loading a stream's committed objects into its raw table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dagster_project.failures import LakeError
from dagster_project.identity import Table
from dagster_project.ingestion.declaration import (
    Connection,
    DestinationSyncMode,
    StreamDeclaration,
    identity,
)
from dagster_project.ingestion.drift import in_words
from dagster_project.ingestion.records import (
    AIRBYTE_DESCRIPTIONS,
    AIRBYTE_PARQUET,
    EXTRACTED_AT,
    GENERATION_ID,
    META,
    META_WHOLE,
    RAW_ID,
    column_names,
    columns_of,
    json_type,
)
from dagster_project.ingestion.stream_rows import StreamRows
from dagster_project.lake.commits import CommitLog, Drift, LakeObject, StreamCommit, merged
from dagster_project.lake.store import Lake
from dagster_project.warehouse.ledger import Load, PartitionState, TableState
from dagster_project.warehouse.loader import load
from dagster_project.warehouse.staging import Piece, Plan
from dagster_project.warehouse.target import Column, Mode, Target

if TYPE_CHECKING:
    import pyarrow as pa

AIRBYTE_COLUMNS = (
    Column(RAW_ID, "text", AIRBYTE_DESCRIPTIONS[RAW_ID]),
    Column(EXTRACTED_AT, "timestamptz", AIRBYTE_DESCRIPTIONS[EXTRACTED_AT]),
    Column(META, "jsonb", AIRBYTE_DESCRIPTIONS[META]),
    Column(GENERATION_ID, "bigint", AIRBYTE_DESCRIPTIONS[GENERATION_ID]),
)


#: What the warehouse has as the meta of a row that is whole: nearly all of them.
META_DEFAULT = f"'{META_WHOLE}'::jsonb"


def table_columns(stream: StreamDeclaration) -> tuple[Column, ...]:
    """The raw table's columns: the four `_airbyte_*` columns, then the stream's own."""
    descriptions, names = stream.column_descriptions(), column_names(stream.json_schema)
    own = (
        Column(names[name], kind.postgres, descriptions[name])
        for name, kind in columns_of(stream.json_schema).items()
    )
    return (*AIRBYTE_COLUMNS, *own)


def source_columns(stream: StreamDeclaration) -> list[Column]:
    """The stream's fields in its source system, with the types of its JSON schema."""
    descriptions = stream.column_descriptions()
    return [
        Column(name, json_type(schema), descriptions[name])
        for name, schema in stream.json_schema["properties"].items()
    ]


def lake_columns(stream: StreamDeclaration) -> list[Column]:
    """The columns of the stream's objects in the lake, with their types in Parquet."""
    descriptions = stream.column_descriptions()
    return [
        *(Column(c.name, AIRBYTE_PARQUET[c.name], c.description) for c in AIRBYTE_COLUMNS),
        *(
            Column(name, kind.arrow, descriptions[name])
            for name, kind in columns_of(stream.json_schema).items()
        ),
    ]


def target_of(domain: str, connection: Connection, stream: StreamDeclaration) -> Target:
    """The raw table of a stream, and how it is loaded."""
    is_append = stream.destination_sync_mode is DestinationSyncMode.APPEND
    names = column_names(stream.json_schema)
    return Target(
        table=identity(domain, connection, stream).table,
        columns=table_columns(stream),
        mode=Mode(stream.destination_sync_mode.value),
        # What is appended to keeps everything that ever came.
        primary_key=() if is_append else tuple(names[name] for name in stream.primary_key),
        cursor=names[stream.cursor_field] if stream.cursor_field else None,
    )


def surely(rows: StreamRows) -> frozenset[str]:
    """Columns that are staged as text and are of their type: digits, what the platform writes."""
    return frozenset({META, *rows.numbers})


def _batches(lake: Lake, item: LakeObject, rows: StreamRows) -> Iterator[pa.RecordBatch]:
    """An object's rows as they are staged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(pa.BufferReader(lake.read(item.key)))
    for batch in file.iter_batches(rows.batch_rows):
        yield rows.staged(batch)


@dataclass(frozen=True, slots=True)
class StreamLoad:
    """What loading a stream did, and in what the records were other than declared, in words."""

    load: Load
    drift: dict[str, str]


def load_stream(
    domain: str,
    connection: Connection,
    stream: StreamDeclaration,
    *,
    lake: Lake,
    warehouse_url: str,
    run_id: str,
    progress: Callable[[int], None] = lambda rows: None,
    say: Callable[[str], None] = lambda text: None,
) -> StreamLoad:
    """Load every commit of the stream that its raw table does not hold yet.

    A table that is new to this warehouse is loaded from all that the lake has.
    """
    target = target_of(domain, connection, stream)
    rows = StreamRows(stream)
    log = CommitLog(lake, domain, connection.name)
    came: list[Drift] = []

    def plan(state: TableState, _: dict[str, PartitionState]) -> Plan:
        if state.position:
            _same_lake(lake, log, state, target.table)
        commits = log.since(state.position)
        position = commits[-1].number if commits else state.position
        mark = commits[-1].sync if commits else state.mark
        found = [c.streams[stream.table] for c in commits if stream.table in c.streams]
        having = _of_mode(found, target.mode)
        came[:] = [part.drift for part in found]
        pieces = [
            Piece(item.key, lambda item=item: _batches(lake, item, rows))  # type: ignore[misc]
            for commit in having
            for item in commit.objects
        ]
        return Plan(
            rows.schema,
            pieces,
            position,
            mark,
            brings=bool(having),
            rows=sum(commit.rows for commit in having),
            content="\x1f".join(commit.version for commit in having),
            surely=surely(rows),
            defaults={META: META_DEFAULT},
        )

    done = load(warehouse_url, target, plan, run_id=run_id, progress=progress, say=say)
    return StreamLoad(done, in_words(merged(came or _last_drift(log, stream))))


def _same_lake(lake: Lake, log: CommitLog, state: TableState, table: Table) -> None:
    """Raises LakeError if the table was not loaded from this log: commits would be skipped."""
    found = log.find(state.position)
    # A table that an earlier release loaded has no mark.
    if found is not None and state.mark in (found.sync, ""):
        return
    has = "another one" if found else "none"
    raise LakeError(
        f"{table} was loaded up to commit {state.position} ({state.mark}) of {log.prefix}, of "
        f"which {lake.url} has {has}: the lake or the warehouse is not the one it was, or was "
        "restored from a backup. Find out which is the older one before you do anything; a table "
        "that is renamed or dropped is loaded anew from what this lake has"
    )


def _of_mode(parts: list[StreamCommit], mode: Mode) -> list[StreamCommit]:
    """What counts of what came, after a declaration may have given the stream another mode.

    The last one that overwrites stands for all before it; and what is incremental now was read from
    its beginning after it.
    """
    overwriting = [i for i, p in enumerate(parts) if p.destination_sync_mode == Mode.OVERWRITE]
    if mode is Mode.OVERWRITE:
        return [parts[overwriting[-1]]] if overwriting else []
    return parts[overwriting[-1] + 1 :] if overwriting else parts


def _last_drift(log: CommitLog, stream: StreamDeclaration) -> list[Drift]:
    """Of the last commit that has the stream."""
    for number in reversed(log.numbers()):
        part = log.read(number).streams.get(stream.table)
        if part is not None:
            return [part.drift]
    return []
