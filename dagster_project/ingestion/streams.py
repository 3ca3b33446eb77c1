"""Loading a stream's committed objects into its raw table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from dagster_project.failures import LakeError
from dagster_project.identity import Stream
from dagster_project.ingestion.declaration import Connection, DestinationSyncMode, StreamDeclaration
from dagster_project.ingestion.records import (
    AIRBYTE_DESCRIPTIONS,
    AIRBYTE_PARQUET,
    EXTRACTED_AT,
    GENERATION_ID,
    META,
    RAW_ID,
    arrow_schema,
    columns_of,
    json_type,
)
from dagster_project.lake.commits import CommitLog, LakeObject
from dagster_project.lake.store import Lake
from dagster_project.warehouse.ledger import Load, PartitionState, TableState
from dagster_project.warehouse.loader import Column, Mode, Piece, Plan, Target, load

if TYPE_CHECKING:
    import pyarrow as pa

AIRBYTE_COLUMNS = (
    Column(RAW_ID, "text", AIRBYTE_DESCRIPTIONS[RAW_ID]),
    Column(EXTRACTED_AT, "timestamptz", AIRBYTE_DESCRIPTIONS[EXTRACTED_AT]),
    Column(META, "jsonb", AIRBYTE_DESCRIPTIONS[META]),
    Column(GENERATION_ID, "bigint", AIRBYTE_DESCRIPTIONS[GENERATION_ID]),
)


def table_columns(stream: StreamDeclaration) -> tuple[Column, ...]:
    """The raw table's columns: the four `_airbyte_*` columns, then the stream's own."""
    descriptions = stream.column_descriptions()
    own = (
        Column(name, kind.postgres, descriptions[name])
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
    dedup = stream.destination_sync_mode is DestinationSyncMode.APPEND_DEDUP
    return Target(
        table=Stream(domain, connection.name, stream.name).table,
        columns=table_columns(stream),
        mode=Mode(stream.destination_sync_mode.value),
        primary_key=tuple(stream.primary_key) if dedup else (),
        cursor=stream.cursor_field,
    )


def _staged_schema(stream: StreamDeclaration) -> pa.Schema:
    """As in the lake, with the extraction time as a timestamp."""
    import pyarrow as pa

    schema = arrow_schema(stream.json_schema)
    position = schema.get_field_index(EXTRACTED_AT)
    return schema.set(position, pa.field(EXTRACTED_AT, pa.timestamp("us", tz="UTC")))


def _batches(lake: Lake, item: LakeObject, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(pa.BufferReader(lake.read(item.key))).iter_batches(65_536):
        columns = []
        for field in schema:
            index = batch.schema.get_field_index(field.name)
            if index < 0:
                # Written before the stream had this column.
                columns.append(pa.nulls(batch.num_rows, field.type))
                continue
            column = batch.column(index)
            if field.name == EXTRACTED_AT:
                column = column.cast(pa.timestamp("ms", tz="UTC"))
            columns.append(_cast(column, field, item))
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


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


def load_stream(
    domain: str,
    connection: Connection,
    stream: StreamDeclaration,
    *,
    lake: Lake,
    warehouse_url: str,
    run_id: str,
    progress: Callable[[int], None] = lambda rows: None,
) -> Load:
    """Load every commit of the stream that its raw table does not hold yet.

    A table that is new to this warehouse is loaded from all that the lake has.
    """
    target = target_of(domain, connection, stream)
    schema = _staged_schema(stream)
    log = CommitLog(lake, domain, connection.name)

    def plan(state: TableState, _: dict[str, PartitionState]) -> Plan:
        commits = log.since(state.position)
        position = commits[-1].number if commits else state.position
        having = [c.streams[stream.name] for c in commits if stream.name in c.streams]
        if target.mode is Mode.OVERWRITE:
            having = having[-1:]
        pieces = [
            Piece(item.key, lambda item=item: _batches(lake, item, schema))  # type: ignore[misc]
            for commit in having
            for item in commit.objects
        ]
        return Plan(schema, pieces, position)

    return load(warehouse_url, target, plan, run_id=run_id, progress=progress)
