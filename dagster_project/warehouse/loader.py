"""From the lake into the warehouse: one transaction a load.

Rows, the record of what was loaded and the counts commit together. Arrow record batches stream into
a temporary table of the same session; from there one statement moves what changed, so readers see
the table before or after, never between. A row that cannot be loaded goes to the table's rejects.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from dagster_project.failures import WarehouseError
from dagster_project.identity import Table, quoted
from dagster_project.warehouse import ledger
from dagster_project.warehouse.arrow import ArrowSession, connect_arrow
from dagster_project.warehouse.ledger import Load, PartitionState, TableState

if TYPE_CHECKING:
    import pyarrow as pa

STAGE = "mesh_stage"
PIECES = "mesh_pieces"
PIECE = "_mesh_piece"
PLACE = "_mesh_place"
META = "_airbyte_meta"
#: What `_airbyte_meta` holds of a row that was whole.
WHOLE = '{"changes":[]}'
#: Columns that differ although the record is the same one.
VOLATILE = ("_airbyte_raw_id", "_airbyte_extracted_at", "_airbyte_meta", "_airbyte_generation_id")


class Mode(StrEnum):
    """What a load does with what was there."""

    OVERWRITE = "overwrite"
    APPEND = "append"
    APPEND_DEDUP = "append_dedup"
    #: The rows of each partition that comes replace those that were there.
    REPLACE_PARTITIONS = "replace_partitions"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the target, with its PostgreSQL type."""

    name: str
    type: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """The table that is loaded, and how."""

    table: Table
    columns: tuple[Column, ...]
    mode: Mode
    primary_key: tuple[str, ...] = ()
    cursor: str | None = None
    #: For REPLACE_PARTITIONS: the column that holds the partition, of type date.
    partition: str | None = None

    @property
    def own_columns(self) -> tuple[Column, ...]:
        """Columns that the loader fills itself."""
        if self.mode is not Mode.REPLACE_PARTITIONS:
            return ()
        assert self.partition
        return (
            Column("_object", "text", "The object of the lake that the row was loaded from."),
            Column("_loaded_at", "timestamptz", "When the object was loaded."),
            Column(self.partition, "date", "The partition: the day of the object."),
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """An object of the lake that is to be loaded."""

    key: str
    batches: Callable[[], Iterable[pa.RecordBatch]]
    #: For REPLACE_PARTITIONS: the partition, the version of the object and a digest of its content.
    partition: str = ""
    object_version: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a load is to bring: the pieces, and the position after them."""

    schema: pa.Schema
    pieces: Sequence[Piece]
    position: int
    #: Partitions whose object was written anew with the content that the table holds already.
    confirmed: Sequence[PartitionState] = ()


#: Decides what to load, given what the table holds; called while nobody else loads the table.
Planner = Callable[[TableState, dict[str, PartitionState]], Plan]


def load(
    url: str,
    target: Target,
    plan: Planner,
    *,
    run_id: str,
    progress: Callable[[int], None] = lambda rows: None,
) -> Load:
    """Load what `plan` asks for into the target, in one transaction.

    Nothing is written if nothing changed. `progress` is told the rows that went in so far. Raises
    WarehouseError; then the table is as it was.
    """
    doing = f"loading {target.table}"
    with connect_arrow(url, doing) as session:
        result = _load(session, target, plan, run_id, progress)
        session.commit()
        return result


def _load(
    session: ArrowSession,
    target: Target,
    plan: Planner,
    run_id: str,
    progress: Callable[[int], None],
) -> Load:
    started = datetime.now(UTC)
    _prepare_schemas(session, target.table)
    _lock(session, str(target.table))
    new_columns = _prepare_table(session, target)
    fresh = new_columns is None
    state, partitions = _state(session, target.table)
    if fresh:
        # The table was dropped since, or never there: what the ledger says of it is void.
        _forget(session, target.table)
        state, partitions = TableState(), {}
    wanted = plan(state, partitions)
    load_id = str(uuid.uuid4())
    received = _stage(session, wanted, progress)
    rejected = _reject(session, target, wanted.schema, run_id)
    move = {
        Mode.OVERWRITE: _overwrite,
        Mode.APPEND: _append,
        Mode.APPEND_DEDUP: _merge,
        Mode.REPLACE_PARTITIONS: _replace_partitions,
    }[target.mode]
    moved = move(session, target, wanted, state)
    result = replace(
        moved,
        received=received,
        rejected=rejected,
        objects=len(wanted.pieces),
        new_columns=tuple(new_columns or ()),
    )
    moved_on = wanted.position != state.position or wanted.confirmed
    if wanted.pieces or result.did_change or moved_on or fresh:
        _record(session, target, wanted, result, load_id, run_id, started)
    return result


def _lock(session: ArrowSession, name: str) -> None:
    """Until the transaction ends, nobody else loads what has this name."""
    session.run(
        "SELECT 1 FROM (SELECT pg_advisory_xact_lock($1::int, hashtext($2))) AS held",
        (ledger.LOCK, name),
    )


def _prepare_schemas(session: ArrowSession, table: Table) -> None:
    """Create the ledger and the table's schema, in a transaction of their own.

    Tables of one schema are loaded at once: the first must not hold up the others to its end.
    """
    there = session.run(
        "SELECT to_regclass('mesh.models') IS NOT NULL AND to_regnamespace($1) IS NOT NULL",
        (quoted(table.schema),),
    )
    if there[0][0]:
        return
    _lock(session, "mesh")
    for statement in (*ledger.STATEMENTS, f"CREATE SCHEMA IF NOT EXISTS {quoted(table.schema)}"):
        session.run(statement)
    session.commit()


def _prepare_table(session: ArrowSession, target: Target) -> list[str] | None:
    """Create the table or add what columns it lacks: the added ones, or None if it is new."""
    table = target.table
    wanted = (*target.own_columns, *target.columns)
    there = dict(
        session.run(
            "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a "
            "WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped",
            (table.relation,),
        )
    )
    if not there:
        columns = [f"{quoted(c.name)} {c.type}" for c in wanted]
        if target.primary_key:
            columns.append(f"PRIMARY KEY ({_names(target.primary_key)})")
        session.run(f"CREATE TABLE {table.relation} ({', '.join(columns)})")
        if target.partition:
            session.run(f"CREATE INDEX ON {table.relation} ({quoted(target.partition)})")
        return None
    retyped = [
        f"{c.name} is {there[c.name]}, declared {c.type}"
        for c in wanted
        if c.name in there and there[c.name] != _canonical(c.type)
    ]
    if retyped:
        raise WarehouseError(
            f"{table}: declared with other types than it has: {'; '.join(retyped)}. Give the "
            "column a new name, or drop the table to have it loaded anew from the lake"
        )
    added = [c for c in wanted if c.name not in there]
    for column in added:
        session.run(f"ALTER TABLE {table.relation} ADD COLUMN {quoted(column.name)} {column.type}")
    return [column.name for column in added]


def _canonical(postgres_type: str) -> str:
    return {"timestamptz": "timestamp with time zone"}.get(postgres_type, postgres_type)


def _state(session: ArrowSession, table: Table) -> tuple[TableState, dict[str, PartitionState]]:
    rows = session.run(
        "SELECT version, position, rows FROM mesh.tables WHERE table_schema=$1 AND table_name=$2",
        (table.schema, table.name),
    )
    partitions = session.run(
        "SELECT partition, version, rows, object, object_version FROM mesh.partitions "
        "WHERE table_schema=$1 AND table_name=$2",
        (table.schema, table.name),
    )
    state = TableState(*rows[0]) if rows else TableState()
    return state, {row[0]: PartitionState(*row) for row in partitions}


def _forget(session: ArrowSession, table: Table) -> None:
    for ledgered in ("mesh.tables", "mesh.partitions"):
        session.run(
            f"DELETE FROM {ledgered} WHERE table_schema = $1 AND table_name = $2",
            (table.schema, table.name),
        )


def _stage(session: ArrowSession, plan: Plan, progress: Callable[[int], None]) -> int:
    """Stream the pieces into a temporary table; the number of rows."""
    import pyarrow as pa

    schema = plan.schema.append(pa.field(PIECE, pa.int32()))
    received = 0
    failed: list[Exception] = []

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal received
        try:
            for index, piece in enumerate(plan.pieces):
                for batch in piece.batches():
                    number = pa.repeat(pa.scalar(index, pa.int32()), batch.num_rows)
                    yield pa.RecordBatch.from_arrays([*batch.columns, number], schema=schema)
                    received += batch.num_rows
                    progress(received)
        except Exception as error:
            failed.append(error)
            raise

    try:
        session.ingest(STAGE, pa.RecordBatchReader.from_batches(schema, batches()))
    except Exception as error:
        if failed:
            # The driver knows only that its input ended; this is why.
            raise failed[0] from error
        raise
    pieces = pa.RecordBatch.from_pydict(
        {
            "piece": pa.array(range(len(plan.pieces)), pa.int32()),
            "key": pa.array([piece.key for piece in plan.pieces], pa.string()),
            "partition": pa.array([piece.partition for piece in plan.pieces], pa.string()),
        }
    )
    session.ingest(PIECES, pa.RecordBatchReader.from_batches(pieces.schema, [pieces]))
    session.run(f"ANALYZE {STAGE}")
    return received


def _is_text(schema: pa.Schema, name: str) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(schema.field(name).type))


def _reject(session: ArrowSession, target: Target, schema: pa.Schema, run_id: str) -> int:
    """Move rows that cannot be loaded to the rejects table, found set-wise; how many."""
    faults = []
    for column in target.columns:
        staged = f"s.{quoted(column.name)}"
        if column.type != "text" and _is_text(schema, column.name):
            kind = column.type.replace("'", "''")
            faults.append(
                f"CASE WHEN NOT pg_input_is_valid({staged}, '{kind}') "
                f"THEN {_literal(f'{column.name}: not {column.type}')} END"
            )
        if column.name in target.primary_key:
            fault = _literal(f"{column.name}: null in the primary key")
            faults.append(f"CASE WHEN {staged} IS NULL THEN {fault} END")
    has_meta = META in schema.names
    if has_meta:
        faults.append(
            f"CASE WHEN s.{META} <> '{WHOLE}' THEN (SELECT string_agg("
            f"(fault.change->>'field') || ': ' || (fault.change->>'reason'), '; ') FROM "
            f"jsonb_array_elements(s.{META}::jsonb->'changes') AS fault(change)) END"
        )
    if not faults:
        return 0
    record = f"to_jsonb(s) - '{PIECE}'"
    if has_meta:
        record = f"coalesce(s.{META}::jsonb->'record', {record})"
    bad = f"SELECT s.ctid AS place FROM {STAGE} s WHERE coalesce({', '.join(faults)}) IS NOT NULL"
    if not session.count(f"SELECT count(*) FROM ({bad} LIMIT 1) AS found"):
        return 0
    rejects = target.table.rejects.relation
    session.run(
        f"CREATE TABLE IF NOT EXISTS {rejects} (rejected_at timestamptz NOT NULL DEFAULT now(), "
        "run_id text NOT NULL, object text NOT NULL, reason text NOT NULL, record jsonb NOT NULL)"
    )
    reasons = f"concat_ws('; ', {', '.join(faults)})"
    moved = session.run(
        f"WITH bad AS ({bad}), gone AS (DELETE FROM {STAGE} s USING bad "
        f"WHERE s.ctid = bad.place RETURNING s.*), kept AS ("
        f"INSERT INTO {rejects} (run_id, object, reason, record) "
        f"SELECT $1, p.key, {reasons}, {record} FROM gone s JOIN {PIECES} p "
        f"ON p.piece = s.{PIECE} RETURNING 1) SELECT count(*) FROM kept",
        (run_id,),
    )
    return int(moved[0][0])


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _names(columns: Iterable[str], prefix: str = "") -> str:
    return ", ".join(prefix + quoted(name) for name in columns)


def _selected(target: Target, schema: pa.Schema) -> str:
    """The staged columns, each as its target's type."""
    return ", ".join(
        f"s.{quoted(c.name)}::{c.type} AS {quoted(c.name)}"
        if c.type != "text" and _is_text(schema, c.name)
        else f"s.{quoted(c.name)}"
        for c in target.columns
    )


def _content(target: Target) -> str:
    """A digest of the staged rows, whatever their order; the volatile columns do not count."""
    stable = [c.name for c in target.columns if c.name not in VOLATILE]
    return (
        f"SELECT count(*), coalesce(sum(hashtextextended(ROW({_names(stable, 's.')})::text, 0)"
        f"::numeric), 0)::text FROM {STAGE} s"
    )


def _chained(before: str, *parts: str) -> str:
    return hashlib.sha256("\x1f".join((before, *parts)).encode()).hexdigest()[:32]


def _nothing(state: TableState, duplicates: int = 0) -> Load:
    return Load(0, 0, 0, duplicates, 0, 0, 0, rows=state.rows, version=state.version)


def _overwrite(session: ArrowSession, target: Target, plan: Plan, state: TableState) -> Load:
    if not plan.pieces and plan.position == state.position:
        return _nothing(state)
    count, digest = session.run(_content(target))[0]
    version = _chained("", str(count), digest)
    if version == state.version:
        return _nothing(state, duplicates=int(count))
    removed = _affected(session, f"DELETE FROM {target.table.relation}")
    columns = [c.name for c in target.columns]
    _affected(
        session,
        f"INSERT INTO {target.table.relation} ({_names(columns)}) "
        f"SELECT {_selected(target, plan.schema)} FROM {STAGE} s",
    )
    return replace(
        _nothing(state), new=int(count), removed=removed, rows=int(count), version=version
    )


def _affected(session: ArrowSession, statement: str) -> int:
    return session.count(f"WITH done AS ({statement} RETURNING 1) SELECT count(*) FROM done")


def _append(session: ArrowSession, target: Target, plan: Plan, state: TableState) -> Load:
    count, digest = session.run(_content(target))[0]
    if not count:
        return _nothing(state)
    columns = [c.name for c in target.columns]
    _affected(
        session,
        f"INSERT INTO {target.table.relation} ({_names(columns)}) "
        f"SELECT {_selected(target, plan.schema)} FROM {STAGE} s",
    )
    return replace(
        _nothing(state),
        new=int(count),
        rows=state.rows + int(count),
        version=_chained(state.version, str(count), digest),
    )


def _merge(session: ArrowSession, target: Target, plan: Plan, state: TableState) -> Load:
    """By primary key; updated only if newer by cursor, then by extraction time, and different."""
    staged = session.count(f"SELECT count(*) FROM {STAGE}")
    if not staged:
        return _nothing(state)
    columns = [c.name for c in target.columns]
    key = _names(target.primary_key)
    others = [c for c in columns if c not in target.primary_key]
    stable = [c for c in others if c not in VOLATILE]
    age = [c for c in (target.cursor, "_airbyte_extracted_at") if c in columns]
    newest = "".join(f"{quoted(name)} DESC NULLS LAST, " for name in age)
    newer = _is_newer(age)
    differs = (
        f"({_names(stable, 'excluded.')}) IS DISTINCT FROM ({_names(stable, 't.')})"
        if stable
        else "false"
    )
    assignments = ", ".join(f"{quoted(c)} = excluded.{quoted(c)}" for c in others)
    conflict = (
        f"DO UPDATE SET {assignments} WHERE {newer} AND {differs}" if others else "DO NOTHING"
    )
    new, changed, digest = session.run(
        f"WITH done AS (INSERT INTO {target.table.relation} AS t ({_names(columns)}) "
        f"SELECT DISTINCT ON ({key}) {_names(columns)} FROM (SELECT "
        f"{_selected(target, plan.schema)}, s.ctid AS {PLACE} FROM {STAGE} s) AS typed "
        # Of rows that are equally new, the one that came last.
        f"ORDER BY {key}, {newest}{PLACE} DESC "
        f"ON CONFLICT ({key}) {conflict} "
        f"RETURNING t.xmax = 0 AS is_new, hashtextextended(ROW({_names(columns, 't.')})::text, 0) "
        "AS digest) SELECT count(*) FILTER (WHERE is_new), count(*) FILTER (WHERE NOT is_new), "
        "coalesce(sum(digest::numeric), 0)::text FROM done"
    )[0]
    version = _chained(state.version, digest) if new or changed else state.version
    return replace(
        _nothing(state, duplicates=staged - int(new) - int(changed)),
        new=int(new),
        changed=int(changed),
        rows=state.rows + int(new),
        version=version,
    )


def _is_newer(age: Sequence[str]) -> str:
    """Whether `excluded` is at least as new as `t`, column by column; null is older than all."""
    if not age:
        return "true"
    first, rest = quoted(age[0]), _is_newer(age[1:])
    return (
        f"(excluded.{first} > t.{first} "
        f"OR (t.{first} IS NULL AND excluded.{first} IS NOT NULL) "
        f"OR (excluded.{first} IS NOT DISTINCT FROM t.{first} AND {rest}))"
    )


def _replace_partitions(
    session: ArrowSession, target: Target, plan: Plan, state: TableState
) -> Load:
    if not plan.pieces:
        return _nothing(state)
    assert target.partition
    own = _names(c.name for c in target.own_columns)
    columns = _names(c.name for c in target.columns)
    removed = _affected(
        session,
        f"DELETE FROM {target.table.relation} WHERE {quoted(target.partition)} IN "
        f"(SELECT partition::date FROM {PIECES})",
    )
    counts = {
        int(piece): int(rows)
        for piece, rows in session.run(
            f"WITH done AS (INSERT INTO {target.table.relation} ({own}, {columns}) "
            f"SELECT p.key, now(), p.partition::date, {_selected(target, plan.schema)} "
            f"FROM {STAGE} s JOIN {PIECES} p ON p.piece = s.{PIECE} RETURNING _object) "
            f"SELECT p.piece, count(done._object) FROM {PIECES} p "
            "LEFT JOIN done ON done._object = p.key GROUP BY p.piece"
        )
    }
    partitions = tuple(
        PartitionState(piece.partition, piece.digest, counts[i], piece.key, piece.object_version)
        for i, piece in enumerate(plan.pieces)
    )
    new = sum(counts.values())
    return replace(
        _nothing(state),
        new=new,
        removed=removed,
        rows=state.rows + new - removed,
        version=_chained(state.version, *(f"{p.partition}={p.version}" for p in partitions)),
        partitions=partitions,
    )


def _record(
    session: ArrowSession,
    target: Target,
    plan: Plan,
    done: Load,
    load_id: str,
    run_id: str,
    started: datetime,
) -> None:
    table = (target.table.schema, target.table.name)
    session.run(
        "INSERT INTO mesh.loads SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, "
        "$13::timestamptz, clock_timestamp()",
        (
            *(load_id, *table, run_id, target.mode.value, done.objects, done.received, done.new),
            *(done.changed, done.duplicates, done.removed, done.rejected, started.isoformat()),
        ),
    )
    session.run(
        "INSERT INTO mesh.tables AS t SELECT $1, $2, $3, $4, $5, $6, now() "
        "ON CONFLICT (table_schema, table_name) DO UPDATE SET version = excluded.version, "
        "position = excluded.position, rows = excluded.rows, load_id = excluded.load_id, "
        "changed_at = CASE WHEN t.version = excluded.version THEN t.changed_at ELSE now() END",
        (*table, done.version, plan.position, done.rows, load_id),
    )
    for partition in (*done.partitions, *plan.confirmed):
        session.run(
            "INSERT INTO mesh.partitions AS p SELECT $1, $2, $3, $4, $5, $6, $7, $8, now() "
            "ON CONFLICT (table_schema, table_name, partition) DO UPDATE SET "
            "version = excluded.version, rows = excluded.rows, object = excluded.object, "
            "object_version = excluded.object_version, load_id = excluded.load_id, "
            "changed_at = CASE WHEN p.version = excluded.version THEN p.changed_at ELSE now() END",
            (
                *(*table, partition.partition, partition.version, partition.rows),
                *(partition.object, partition.object_version, load_id),
            ),
        )
