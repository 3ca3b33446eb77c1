"""Rows of a raw table that an expectation refuses, moved to the table's rejects.

They come back by a replay, see `dagster_project.ingestion.replay`, or with the next object that
holds them; what is still refused then is put aside again.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

from dagster_project.failures import DeclarationError, WarehouseError
from dagster_project.identity import RAW_SUFFIX, Table, quoted
from dagster_project.quality.outcome import Partitions
from dagster_project.warehouse.arrow import ArrowSession, connect_arrow
from dagster_project.warehouse.ledger import revise
from dagster_project.warehouse.rejects import content, prepare_rejects
from dagster_project.warehouse.tables import lock, prepare_schemas

#: The temporary table of the refused rows.
_REFUSED = "mesh_refused"


def quarantine(
    url: str,
    table: Table,
    conditions: Mapping[str, tuple[str, str]],
    partitions: Partitions | None,
    run_id: str,
    expected: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Move the rows that meet a condition from a raw table to its rejects, in one transaction.

    Conditions are by check: an expression of SQL over the table's columns, true for a refused row,
    and what the check says of itself. Gives the rows that each refuses; a row that several refuse
    is moved once, with all reasons. Rows of other partitions than these stay. `expected` are the
    rows that each check counted: where more meet its condition, the two are not about the same.
    Raises WarehouseError then, or if a condition cannot be evaluated, DeclarationError if the
    table is not a raw one; then nothing is moved.
    """
    if not table.schema.endswith(RAW_SUFFIX):
        raise DeclarationError(
            f"{table}: only rows of a raw table can be quarantined, as they can be loaded again: "
            "take `quarantine` from the expectations of a table that is built"
        )
    if not conditions:
        return {}
    with connect_arrow(url, f"quarantining rows of {table}") as session:
        prepare_schemas(session, table)
        session.run("SET LOCAL timezone TO 'UTC'")
        lock(session, str(table))
        columns = _columns(session, table)
        found = dict.fromkeys(conditions, 0)
        if not columns:
            return found
        _find(session, table, columns, conditions, partitions)
        places = range(1, len(conditions) + 1)
        counts = session.run(
            "SELECT count(*), "
            + ", ".join(f"count(*) FILTER (WHERE met[{place}])" for place in places)
            + f" FROM {_REFUSED}"
        )[0]
        if not counts[0]:
            return found
        for check, met in zip(conditions, counts[1:], strict=True):
            if expected and check in expected and met > expected[check]:
                raise WarehouseError(
                    f"{table}: the check {check} refused {expected[check]} rows, and {met} meet "
                    "its condition now: the table changed meanwhile. Nothing was set aside; run "
                    "the checks again"
                )
        if not partitions and _has_partitions(session, table):
            raise WarehouseError(f"{table} is loaded by partitions: say of which to quarantine")
        _move(session, table, conditions, run_id)
        revise(session, table, _changes(session))
        session.commit()
        return dict(zip(conditions, map(int, counts[1:]), strict=True))


def _columns(session: ArrowSession, table: Table) -> set[str]:
    rows = session.run(
        "SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass($1) "
        "AND attnum > 0 AND NOT attisdropped",
        (table.relation,),
    )
    return {name for (name,) in rows}


def _has_partitions(session: ArrowSession, table: Table) -> bool:
    return bool(
        session.run(
            "SELECT 1 FROM mesh.partitions WHERE table_schema = $1 AND table_name = $2 LIMIT 1",
            (table.schema, table.name),
        )
    )


def _find(
    session: ArrowSession,
    table: Table,
    columns: set[str],
    conditions: Mapping[str, tuple[str, str]],
    partitions: Partitions | None,
) -> None:
    """Note where the refused rows are, which conditions they meet, and what they are of."""
    # A condition can end with a comment.
    met = [f"(\n{condition}\n) IS TRUE" for condition, _ in conditions.values()]
    within, partition, source = "", "''", "''"
    if partitions:
        keys = ", ".join(f"'{date.fromisoformat(key)}'::date" for key in partitions.keys)
        within = f"{quoted(partitions.column)} IN ({keys}) AND "
        partition = f"to_char({quoted(partitions.column)}, 'YYYY-MM-DD')"
    if "_object" in columns:
        source = "_object"
    elif "_airbyte_generation_id" in columns:
        # A stream's rows do not say of which object they are; the record's id is in the record.
        source = "coalesce('generation ' || _airbyte_generation_id, '')"
    session.run(
        f"CREATE TEMPORARY TABLE {_REFUSED} ON COMMIT DROP AS SELECT mesh_row.ctid AS place, "
        f"ARRAY[{', '.join(met)}] AS met, {source} AS object, {partition} AS partition, "
        f"{content('to_jsonb(mesh_row.*)')} AS content "
        f"FROM {table.relation} AS mesh_row WHERE {within}({' OR '.join(met)})"
    )


def _move(
    session: ArrowSession,
    table: Table,
    conditions: Mapping[str, tuple[str, str]],
    run_id: str,
) -> None:
    prepare_rejects(session, table)
    rejects = table.rejects.relation
    has_key = session.run(
        "SELECT 1 FROM pg_constraint WHERE contype = 'p' AND conrelid = to_regclass($1)",
        (table.relation,),
    )
    if has_key:
        # The same row as came before, which only a key tells from one that is alike.
        session.run(
            f"DELETE FROM {rejects} r USING {_REFUSED} q WHERE r.origin IS NULL "
            f"AND {content('r.record')} = q.content"
        )
    reasons = ", ".join(
        f"CASE WHEN q.met[{place}] THEN ${place + 1}::text END"
        for place in range(1, len(conditions) + 1)
    )
    told = [f"{check}: {description}" for check, (_, description) in conditions.items()]
    moved = session.run(
        f"WITH gone AS (DELETE FROM {table.relation} t USING {_REFUSED} q WHERE t.ctid = q.place "
        f"RETURNING q.*, to_jsonb(t.*) AS record), kept AS (INSERT INTO {rejects} "
        "(run_id, object, reason, record, partition) SELECT $1, q.object, "
        f"array_to_string(ARRAY[{reasons}], '; '), q.record, q.partition FROM gone q RETURNING 1) "
        f"SELECT count(*) = (SELECT count(*) FROM {_REFUSED}) FROM kept",
        (run_id, *told),
    )
    if not moved[0][0]:
        raise WarehouseError(
            f"{table}: rows changed while they were quarantined, by somebody who is not a load. "
            "Nothing was moved: run again"
        )


def _changes(session: ArrowSession) -> dict[str, tuple[int, str]]:
    """By partition: by how many rows the table changed, and a digest of what they hold."""
    rows = session.run(
        "SELECT partition, -count(*), md5(string_agg(md5(content::text), '' "
        f"ORDER BY md5(content::text))) FROM {_REFUSED} GROUP BY 1 ORDER BY 1"
    )
    return {partition: (int(number), content) for partition, number, content in rows}
