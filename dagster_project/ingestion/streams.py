"""Loading a stream's committed objects into its raw table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
    arrow_schema,
    column_names,
    columns_of,
    json_type,
    reject_of,
)
from dagster_project.lake.commits import CommitLog, Drift, LakeObject, StreamCommit, merged
from dagster_project.lake.store import Lake
from dagster_project.warehouse.arrays import array_of, scalar_of
from dagster_project.warehouse.ledger import Load, PartitionState, TableState
from dagster_project.warehouse.loader import load
from dagster_project.warehouse.staging import FAULT, RECORD, Piece, Plan
from dagster_project.warehouse.target import Column, Mode, Target

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows that are in memory at once, twice over: as Arrow has them and as PostgreSQL takes them.
BATCH_ROWS, BATCH_VALUES = 16_384, 160_000

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


def _numbers(stream: StreamDeclaration) -> set[str]:
    """The warehouse's names of the columns that hold numbers."""
    names = column_names(stream.json_schema)
    kinds = columns_of(stream.json_schema).items()
    return {names[name] for name, kind in kinds if kind.postgres == "numeric"}


def _staged_schema(stream: StreamDeclaration) -> pa.Schema:
    """As in the lake, with the extraction time as a timestamp and numbers as their digits."""
    import pyarrow as pa

    names = column_names(stream.json_schema)
    staged = {EXTRACTED_AT: pa.timestamp("us", tz="UTC")}
    staged |= dict.fromkeys(_numbers(stream), pa.string())
    return pa.schema(
        (name, staged.get(name, field.type))
        for field in arrow_schema(stream.json_schema)
        for name in (names.get(field.name, field.name),)
    )


def _batches(
    lake: Lake, item: LakeObject, schema: pa.Schema, sources: Mapping[str, str]
) -> Iterator[pa.RecordBatch]:
    """An object's rows as they are staged, with those marked that are not as they came.

    `sources` has the lake's name of a column whose name in the warehouse is another.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(pa.BufferReader(lake.read(item.key))).iter_batches(
        _batch_rows(schema)
    ):
        columns = []
        for field in schema:
            index = batch.schema.get_field_index(sources.get(field.name, field.name))
            if index < 0:
                # Written before the stream had this column.
                columns.append(pa.nulls(batch.num_rows, field.type))
                continue
            column = batch.column(index)
            if field.name == EXTRACTED_AT:
                column = column.cast(pa.timestamp("ms", tz="UTC"))
            columns.append(_cast(column, field, item))
        yield _marked(pa.RecordBatch.from_arrays(columns, schema=schema))


def _batch_rows(schema: pa.Schema) -> int:
    return max(1, min(BATCH_ROWS, BATCH_VALUES // len(schema)))


def _marked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with FAULT and RECORD of rows of which a value had to be changed."""
    import pyarrow as pa
    import pyarrow.compute as pc

    metas = batch.column(META)
    whole = pc.equal(metas, scalar_of(META_WHOLE, pa.string()))
    changed = pc.indices_nonzero(pc.invert(whole)).to_pylist()
    # Null stands for it, see META_DEFAULT.
    metas_staged = pc.if_else(whole, scalar_of(None, pa.string()), metas)
    batch = batch.set_column(batch.schema.get_field_index(META), META, metas_staged)
    rejects = {row: reject_of(metas[row].as_py()) for row in changed}
    if not any(rejects.values()):
        return batch
    faults: list[str | None] = [None] * batch.num_rows
    records: list[str | None] = [None] * batch.num_rows
    for row, reject in rejects.items():
        if reject:
            faults[row], records[row] = reject
    for name, values in ((FAULT, faults), (RECORD, records)):
        batch = batch.append_column(name, array_of(values, pa.string()))
    return batch


def _cast(column: pa.Array, field: pa.Field, item: LakeObject) -> pa.Array:
    """The column as its declared type, which can be another than when the object was written."""
    import pyarrow as pa

    if column.type == field.type:
        return column
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise LakeError(
            f"{item.key} holds {field.name} as {column.type}, which is now declared as "
            f"{field.type}: {error}. Give the column its former type, or a new name"
        ) from None


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
    schema = _staged_schema(stream)
    names = column_names(stream.json_schema).items()
    sources = {name: source for source, name in names if name != source}
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
            Piece(item.key, lambda item=item: _batches(lake, item, schema, sources))  # type: ignore[misc]
            for commit in having
            for item in commit.objects
        ]
        return Plan(
            schema,
            pieces,
            position,
            mark,
            brings=bool(having),
            rows=sum(commit.rows for commit in having),
            content="\x1f".join(commit.version for commit in having),
            # What became text of a number, and what the platform itself writes.
            surely=frozenset({META, *_numbers(stream)}),
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
