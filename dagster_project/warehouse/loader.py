"""From the lake into the warehouse: one transaction a load.

Rows, the record of what was loaded and the counts commit together. Arrow record batches stream into
a temporary table of the same session; from there one statement moves what changed, so readers see
the table before or after, never between. A row that cannot be loaded goes to the table's rejects.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from dagster_project.failures import TransientWarehouseError, WarehouseError
from dagster_project.identity import Table
from dagster_project.warehouse.arrow import ArrowSession, connect_arrow
from dagster_project.warehouse.ledger import (
    Load,
    PartitionState,
    TableState,
    as_loaded,
    partitions_held,
)
from dagster_project.warehouse.moves import move, nothing, version_after
from dagster_project.warehouse.rejects import forget_all_rejects, forget_rejects, reject
from dagster_project.warehouse.staging import Plan, stage
from dagster_project.warehouse.tables import Prepared, lock, prepare_schemas, prepare_table
from dagster_project.warehouse.target import Mode, Target

#: Seconds to wait before each further attempt, while the warehouse is away.
PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0)

#: Decides what to load, given what the table holds; called while nobody else loads the table.
Planner = Callable[[TableState, dict[str, PartitionState]], Plan]


def load(
    url: str,
    target: Target,
    plan: Planner,
    *,
    run_id: str,
    progress: Callable[[int], None] = lambda rows: None,
    say: Callable[[str], None] = lambda text: None,
) -> Load:
    """Load what `plan` asks for into the target, in one transaction.

    Nothing is written if nothing changed. `progress` is told the rows that went in so far, `say`
    that the warehouse is away and waited for, up to half a minute. Raises WarehouseError; then the
    table is as it was.
    """
    load_id = str(uuid.uuid4())
    pauses = iter(PAUSES)
    while True:
        try:
            with connect_arrow(url, f"loading {target.table}") as session:
                # An earlier attempt whose commit was not answered has done it all.
                result = _recorded(session, load_id)
                if result is None:
                    result = _load(session, target, plan, load_id, run_id, progress)
                    session.commit()
                return result
        except TransientWarehouseError as error:
            pause = next(pauses, None)
            if pause is None:
                raise
            say(f"{error} Trying again in {pause:.0f} s.")
            time.sleep(pause)


def _load(
    session: ArrowSession,
    target: Target,
    plan: Planner,
    load_id: str,
    run_id: str,
    progress: Callable[[int], None],
) -> Load:
    started = datetime.now(UTC)
    prepare_session(session, target.table)
    lock(session, str(target.table))
    prepared = prepare_table(session, target)
    state, partitions = read_state(session, target)
    if prepared.is_new:
        # The table was dropped since, or never there: what the ledger says of it is void, and what
        # was put aside comes again.
        _forget(session, target.table)
        forget_all_rejects(session, target.table)
        state, partitions = TableState(), {}
    wanted = plan(state, partitions)
    result = replace(
        _bring(session, target, wanted, state, run_id, progress),
        objects=len(wanted.pieces),
        new_columns=prepared.added,
        widened=prepared.widened,
    )
    if _is_news(prepared, wanted, state, result):
        record(session, target, wanted, result, load_id, run_id, started)
    return result


def prepare_session(session: ArrowSession, table: Table) -> None:
    """Have the schemas there, and texts read as they are meant."""
    prepare_schemas(session, table)
    # A timestamp without an offset is UTC's, and a date begins with its year.
    session.run("SET LOCAL timezone TO 'UTC'")
    session.run("SET LOCAL datestyle TO 'ISO, YMD'")


def _is_news(prepared: Prepared, plan: Plan, state: TableState, done: Load) -> bool:
    """Whether the ledger has to know of it."""
    moved_on = plan.position != state.position or plan.confirmed
    return bool(prepared.is_new or plan.pieces or moved_on or done.did_change)


def _bring(
    session: ArrowSession,
    target: Target,
    plan: Plan,
    state: TableState,
    run_id: str,
    progress: Callable[[int], None],
) -> Load:
    """Stage what the plan names, put aside what cannot be loaded, move the rest."""
    is_overwrite = target.mode is Mode.OVERWRITE
    if not plan.brings or not (plan.pieces or is_overwrite):
        return nothing(state)
    if (
        is_overwrite
        and version_after(target, plan, state) == as_loaded(state.version)
        and session.count(f"SELECT count(*) FROM {target.table.relation}") == state.rows
    ):
        # The source gave again what the table holds.
        return replace(nothing(state), received=plan.rows, duplicates=plan.rows)
    staged = stage(session, target, plan, progress)
    forget_rejects(session, target, state)
    rejected = reject(session, target, plan, staged.marked, run_id)
    done = move(session, target, plan, state, staged, rejected)
    return replace(done, received=staged.received, rejected=rejected)


def read_state(
    session: ArrowSession, target: Target
) -> tuple[TableState, dict[str, PartitionState]]:
    """What the ledger knows of a table. Raises WarehouseError if that is not enough."""
    table = target.table
    rows = session.run(
        "SELECT t.version, t.position, t.rows, t.mark, coalesce(l.mode, '') FROM mesh.tables t "
        "LEFT JOIN mesh.loads l USING (load_id) WHERE t.table_schema = $1 AND t.table_name = $2",
        (table.schema, table.name),
    )
    if not rows:
        held = session.count(f"SELECT count(*) FROM {table.relation}")
        if held and target.mode is Mode.APPEND:
            raise WarehouseError(
                f"{table} has {held:,} rows of which the ledger, the schema mesh, knows nothing: "
                "they would be appended again. Rename or drop the table to have it loaded anew"
            )
        rows = [("", 0, held, "", "")]
    partitions = []
    if target.partition:
        held_now = partitions_held(table, target.partition)
        partitions = session.run(held_now, (table.schema, table.name))
    return TableState(*rows[0]), {row[0]: PartitionState(*row) for row in partitions}


def _forget(session: ArrowSession, table: Table) -> None:
    for ledgered in ("mesh.tables", "mesh.partitions"):
        session.run(
            f"DELETE FROM {ledgered} WHERE table_schema = $1 AND table_name = $2",
            (table.schema, table.name),
        )


def _recorded(session: ArrowSession, load_id: str) -> Load | None:
    """What this load did, if it was committed."""
    if not session.run("SELECT 1 WHERE to_regclass('mesh.models') IS NOT NULL"):
        return None
    rows = session.run(
        "SELECT l.received, l.new, l.changed, l.duplicates, l.removed, l.rejected, l.objects, "
        "t.rows, t.version FROM mesh.loads l JOIN mesh.tables t USING (table_schema, table_name) "
        "WHERE l.load_id = $1",
        (load_id,),
    )
    if not rows:
        return None
    partitions = session.run(
        "SELECT partition, version, rows, object, object_version FROM mesh.partitions "
        "WHERE load_id = $1 ORDER BY partition",
        (load_id,),
    )
    done = Load(*rows[0])
    return replace(done, partitions=tuple(PartitionState(*row) for row in partitions))


def record(
    session: ArrowSession,
    target: Target,
    plan: Plan,
    done: Load,
    load_id: str,
    run_id: str,
    started: datetime,
) -> None:
    """Note what a load did, in its own transaction."""
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
        "INSERT INTO mesh.tables AS t (table_schema, table_name, version, position, rows, "
        "load_id, mark, changed_at) SELECT $1, $2, $3, $4, $5, $6, $7, now() "
        "ON CONFLICT (table_schema, table_name) DO UPDATE SET version = excluded.version, "
        "position = excluded.position, rows = excluded.rows, load_id = excluded.load_id, "
        "mark = excluded.mark, "
        "changed_at = CASE WHEN t.version = excluded.version THEN t.changed_at ELSE now() END",
        (*table, done.version, plan.position, done.rows, load_id, plan.mark),
    )
    if not target.partition:
        # Of a table that was loaded by partitions before.
        session.run(
            "DELETE FROM mesh.partitions WHERE table_schema = $1 AND table_name = $2", table
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
