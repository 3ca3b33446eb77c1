"""From a table's rejects into the table once more, in one transaction."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

from dagster_project.failures import BusyError, WarehouseError
from dagster_project.warehouse.arrow import ArrowSession, connect_arrow
from dagster_project.warehouse.connection import connect
from dagster_project.warehouse.ledger import Load, PartitionState, TableState, revised
from dagster_project.warehouse.loader import prepare_session, read_state, record
from dagster_project.warehouse.moves import add
from dagster_project.warehouse.rejects import prepare_rejects, reject
from dagster_project.warehouse.staging import Piece, Plan, stage
from dagster_project.warehouse.tables import prepare_table, try_lock
from dagster_project.warehouse.target import Target

if TYPE_CHECKING:
    import pyarrow as pa

#: What the reasons say of rows that were kept otherwise than they came, by a regular expression:
#: what jsonb cannot hold, and text that is no row.
_ALTERED = (
    "a NUL character, which PostgreSQL cannot hold|characters that are not valid UTF-8|"
    "fields? where the header has"
)
#: What stands in such records, of streams, in place of what cannot be held.
_PLACEHOLDERS = "\N{REPLACEMENT CHARACTER}|\\(nested too deeply\\)"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row as the rejects have it, its JSON as text."""

    record: str
    #: Of a record as it came: the platform's own columns; None if the record has the table's.
    origin: str | None


@dataclass(frozen=True, slots=True)
class Rows:
    """How rejected rows become those of a load again."""

    schema: pa.Schema
    #: As many rows as there are rejected ones.
    batches: Callable[[Iterator[Rejected]], Iterable[pa.RecordBatch]]
    surely: frozenset[str] = frozenset()
    defaults: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay did; all are rows."""

    new: int
    changed: int
    #: The table has them, or newer ones; they are rejects no longer.
    duplicates: int
    #: Still cannot be loaded.
    rejected: int
    #: Not tried, as they were not kept as they came.
    altered: int

    @property
    def tried(self) -> int:
        return self.new + self.changed + self.duplicates + self.rejected


def replay(url: str, target: Target, rows: Rows, *, run_id: str, reason: str = "") -> Replayed:
    """Load rejected rows of a table, those of which the reason has a text in it.

    As in a load: a row is cast, goes in as the table's mode says, and is rejected again if it
    cannot be loaded; an older row never overwrites a newer one. What was loaded is a reject no
    longer. Raises BusyError if the table is being loaded, WarehouseError if it cannot be replayed.
    """
    table = target.table
    started = datetime.now(UTC)
    with connect_arrow(url, f"replaying the rejects of {table}") as session:
        prepare_session(session, table)
        _refuse_missing(session, target)
        prepare_rejects(session, table)
        # Rows are read by another session, which must not wait for this one.
        session.commit()
        prepare_session(session, table)
        if not try_lock(session, str(table)):
            raise BusyError(
                f"{table} is being loaded, or its rows quarantined or replayed: try again when "
                "that is done"
            )
        state = _state(session, target)
        prepared = prepare_table(session, target)
        groups, altered = _groups(session, target, reason)
        if not groups:
            return Replayed(0, 0, 0, 0, altered)
        plan, done, added = _bring(url, session, target, rows, groups, state, run_id, reason)
        load_id = str(uuid.uuid4())
        done = replace(
            done,
            objects=len({group.object for group in groups}),
            version=revised(state.version, load_id) if done.did_change else state.version,
            new_columns=prepared.added,
            widened=prepared.widened,
            partitions=_revised(session, target, added, load_id),
        )
        record(session, target, plan, done, load_id, run_id, started)
        session.commit()
    return Replayed(done.new, done.changed, done.duplicates, done.rejected, altered)


def _refuse_missing(session: ArrowSession, target: Target) -> None:
    for table, why in (
        (target.table, "is not there yet: it is loaded by `mesh run`"),
        (target.table.rejects, "is not there: none of the table's rows was rejected"),
    ):
        if not session.run("SELECT 1 WHERE to_regclass($1) IS NOT NULL", (table.relation,)):
            raise WarehouseError(f"{table} {why}")


def _state(session: ArrowSession, target: Target) -> TableState:
    state, _ = read_state(session, target)
    if state.mode not in ("", target.mode):
        raise WarehouseError(
            f"{target.table} was loaded as {state.mode} and is declared as {target.mode} now: load "
            "it once as it is declared (`mesh run`), then replay"
        )
    return state


@dataclass(frozen=True, slots=True)
class _Group:
    """Rejected rows of one object, rejected together."""

    object: str
    partition: str
    run_id: str
    rejected_at: str
    rows: int


_BY = "rejected_at, object, partition, run_id"


def _chosen(target: Target) -> str:
    """The condition of rows to replay: the text of their reason is $1."""
    asked = "position(lower($1::text) IN lower(reason)) > 0"
    return f"{asked} AND NOT ({_altered(target)})"


def _altered(target: Target) -> str:
    altered = f"reason ~ '{_ALTERED}' OR (origin IS NOT NULL AND record::text ~ '{_PLACEHOLDERS}')"
    # Of an earlier release: nobody knows of which partition the row is.
    return f"{altered} OR partition = ''" if target.partition else altered


def _groups(session: ArrowSession, target: Target, reason: str) -> tuple[list[_Group], int]:
    """The rows to replay by where they came from, in order; and how many cannot be."""
    rejects = target.table.rejects.relation
    found = session.run(
        f"SELECT object, partition, run_id, rejected_at::text, count(*) FROM {rejects} "
        f"WHERE {_chosen(target)} GROUP BY {_BY} ORDER BY {_BY}",
        (reason,),
    )
    altered = session.run(
        f"SELECT count(*) FROM {rejects} WHERE position(lower($1::text) IN lower(reason)) > 0 "
        f"AND ({_altered(target)})",
        (reason,),
    )
    return [_Group(*row) for row in found], int(altered[0][0])


def _bring(
    url: str,
    session: ArrowSession,
    target: Target,
    rows: Rows,
    groups: Sequence[_Group],
    state: TableState,
    run_id: str,
    reason: str,
) -> tuple[Plan, Load, dict[str, int]]:
    """Move the rows from the rejects into the table; with how many are new, by partition."""
    import psycopg

    table, rejects = target.table, target.table.rejects.relation
    with connect(url, f"reading the rejects of {table}") as reading:
        cursor = psycopg.RawServerCursor(reading, "rejects")
        cursor.execute(
            f"SELECT record::text, origin::text FROM {rejects} WHERE {_chosen(target)} "
            f"ORDER BY {_BY}",
            (reason,),
        )
        coming = (Rejected(*row) for row in cursor)

        def batches(number: int) -> Callable[[], Iterable[pa.RecordBatch]]:
            # The pieces are read one after the other.
            return lambda: rows.batches(islice(coming, number))

        pieces = [
            Piece(
                *(group.object, batches(group.rows), group.partition),
                rejected_by=group.run_id,
                rejected_at=group.rejected_at,
            )
            for group in groups
        ]
        plan = Plan(
            rows.schema,
            pieces,
            state.position,
            state.mark,
            surely=rows.surely,
            defaults=rows.defaults or {},
        )
        staged = stage(session, target, plan, lambda _: None)
    gone = session.run(
        f"WITH gone AS (DELETE FROM {rejects} WHERE {_chosen(target)} RETURNING 1) "
        "SELECT count(*) FROM gone",
        (reason,),
    )[0][0]
    if not gone == staged.received == sum(group.rows for group in groups):
        raise WarehouseError(
            f"{table.rejects}: somebody who is no load changed it meanwhile. Nothing was replayed: "
            "run again"
        )
    rejected = reject(session, target, plan, staged.marked, run_id)
    done, added = add(session, target, plan, state, staged.received - rejected)
    return plan, replace(done, received=staged.received, rejected=rejected), added


def _revised(
    session: ArrowSession, target: Target, added: Mapping[str, int], load_id: str
) -> tuple[PartitionState, ...]:
    """What the ledger is to have of the partitions that rows came to."""
    held = session.run(
        "SELECT partition, version, rows, object, object_version FROM mesh.partitions "
        "WHERE table_schema = $1 AND table_name = $2",
        (target.table.schema, target.table.name),
    )
    return tuple(
        replace(
            before,
            version=revised(before.version, load_id),
            rows=before.rows + added[before.partition],
        )
        for before in (PartitionState(*row) for row in held)
        if before.partition in added
    )
