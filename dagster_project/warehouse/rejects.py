"""Rows that were put aside instead of loaded, each with the reason: a table's rejects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dagster_project.identity import Table, quoted
from dagster_project.warehouse.arrow import ArrowSession, connect_arrow
from dagster_project.warehouse.ledger import TableState
from dagster_project.warehouse.staging import FAULT, PIECE, PIECES, RECORD, STAGE, Plan, is_cast
from dagster_project.warehouse.target import VOLATILE, Mode, Target

_META = "_airbyte_meta"
_COLUMNS = {
    "rejected_at": "timestamptz NOT NULL DEFAULT now()",
    "run_id": "text NOT NULL",
    "object": "text NOT NULL",
    "reason": "text NOT NULL",
    # As it came, or, if there is no origin, as the table would have it.
    "record": "jsonb NOT NULL",
    # Of which day's object; empty if the table has no partitions.
    "partition": "text NOT NULL DEFAULT ''",
    # Of a record as it came: what the platform's own columns of its row would hold.
    "origin": "jsonb",
}


def prepare_rejects(session: ArrowSession, table: Table) -> None:
    """Have the table of a table's rejects there, whichever release made it."""
    if _is_there(session, table):
        return
    columns = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
    session.run(f"CREATE TABLE {table.rejects.relation} ({columns})")


def _is_there(session: ArrowSession, table: Table) -> bool:
    """Whether a table has rejects, and all their columns; those that it lacks are added."""
    there = {
        name
        for (name,) in session.run(
            "SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass($1) "
            "AND attnum > 0 AND NOT attisdropped",
            (table.rejects.relation,),
        )
    }
    missing = [f"ADD COLUMN {n} {kind}" for n, kind in _COLUMNS.items() if n not in there]
    if there and missing:
        session.run(f"ALTER TABLE {table.rejects.relation} {', '.join(missing)}")
    return bool(there)


def reject(session: ArrowSession, target: Target, plan: Plan, marked: int, run_id: str) -> int:
    """Move rows that cannot be loaded to the rejects table, found set-wise; how many."""
    faults = []
    for column in target.columns:
        if column.name not in plan.surely and is_cast(plan, column.type, column.name):
            staged = f"s.{quoted(column.name)}"
            reason = _literal(f"{column.name}: not {column.type}")
            faults.append(
                f"CASE WHEN NOT pg_input_is_valid({staged}, {_literal(column.type)}) "
                f"AND s.{FAULT} IS DISTINCT FROM {reason} THEN {reason} END"
            )
    if not faults and not marked:
        return 0
    own = f"s.{FAULT}"
    found = f"SELECT s.ctid AS place FROM {STAGE} s WHERE coalesce({', '.join([own, *faults])}) "
    found += "IS NOT NULL"
    if not marked and not session.count(f"SELECT count(*) FROM ({found} LIMIT 1) AS found"):
        return 0
    # An array, since a function takes no more than 100 arguments.
    reasons = f"array_to_string(ARRAY[{', '.join([own, *faults])}]::text[], '; ')"
    prepare_rejects(session, target.table)
    rejects = target.table.rejects.relation
    names = "rejected_at, run_id, object, reason, record, partition, origin"
    kept, same = f"SELECT {names} FROM bad_rows", ""
    if target.mode is Mode.APPEND_DEDUP:
        # What comes again of a record that has a key is the same reject.
        kept = f"SELECT DISTINCT ON (content) {names} FROM bad_rows ORDER BY content, piece DESC"
        same = (
            f", same AS (DELETE FROM {rejects} r USING bad_rows b "
            f"WHERE {content('r.record')} = b.content)"
        )
    moved = session.run(
        f"WITH bad AS ({found}), gone AS (DELETE FROM {STAGE} s USING bad "
        f"WHERE s.ctid = bad.place RETURNING s.*), bad_rows AS (SELECT *, "
        f"{content('record')} AS content FROM ("
        "SELECT coalesce(p.rejected_at::timestamptz, now()) AS rejected_at, "
        f"coalesce(p.rejected_by, $1) AS run_id, p.key AS object, {reasons} AS reason, "
        f"coalesce(s.{RECORD}::jsonb, {_staged_row(target, plan)}) AS record, p.partition, "
        f"p.piece, {_origin(target)} AS origin FROM gone s JOIN {PIECES} p ON p.piece = s.{PIECE}"
        f") AS came){same}, kept AS (INSERT INTO {rejects} ({names}) {kept} RETURNING 1) "
        "SELECT (SELECT count(*) FROM gone) FROM (SELECT count(*) FROM kept) AS done",
        (run_id,),
    )
    return int(moved[0][0])


def content(record: str) -> str:
    """A record, an expression of SQL, without what differs although it is the same one."""
    passing = ", ".join(f"'{name}'" for name in (*VOLATILE, "_object", "_loaded_at"))
    return f"jsonb_strip_nulls({record} - ARRAY[{passing}])"


def _staged_row(target: Target, plan: Plan) -> str:
    """The staged row as JSON; what is JSON itself stands in it as such."""
    row = " - ".join(["to_jsonb(s.*)", *(f"'{name}'" for name in (PIECE, FAULT, RECORD))])
    for column in target.columns:
        if column.type == "jsonb" and is_cast(plan, column.type, column.name):
            staged = f"s.{quoted(column.name)}"
            row += (
                f" || CASE WHEN pg_input_is_valid({staged}, 'jsonb') THEN "
                f"jsonb_build_object({_literal(column.name)}, {staged}::jsonb) ELSE '{{}}' END"
            )
    return row


def _origin(target: Target) -> str:
    names = [c.name for c in target.columns if c.name in VOLATILE and c.name != _META]
    if not names:
        return "NULL::jsonb"
    pairs = ", ".join(f"{_literal(name)}, s.{quoted(name)}" for name in names)
    return f"CASE WHEN s.{RECORD} IS NOT NULL THEN jsonb_build_object({pairs}) END"


def forget_rejects(session: ArrowSession, target: Target, state: TableState) -> None:
    """Remove rejected rows that what is staged comes in place of."""
    rejects = target.table.rejects.relation
    if Mode.OVERWRITE in (target.mode, state.mode):
        forget_all_rejects(session, target.table)
    elif target.mode is Mode.REPLACE_PARTITIONS and _is_there(session, target.table):
        session.change(
            f"DELETE FROM {rejects} WHERE object IN (SELECT key FROM {PIECES}) "
            f"OR partition IN (SELECT partition FROM {PIECES})"
        )


def forget_all_rejects(session: ArrowSession, table: Table) -> None:
    """Remove all rejected rows of a table."""
    if _is_there(session, table):
        session.change(f"DELETE FROM {table.rejects.relation}")


@dataclass(frozen=True, slots=True)
class RejectsShare:
    """How many of a table's rows lie in its rejects."""

    #: Rows that the table holds.
    rows: int
    rejected: int
    #: Rejected rows by reason, the most frequent first.
    reasons: Mapping[str, int]

    @property
    def percent(self) -> float:
        """Of all rows, those in the table and those in its rejects."""
        return 100 * self.rejected / max(1, self.rows + self.rejected)


def rejects_share(url: str, table: Table) -> RejectsShare:
    """What share of a table's rows lies in its rejects; none of a table that is not there."""
    with connect_arrow(url, f"counting the rejects of {table}") as session:
        there = session.run(
            "SELECT to_regclass($1) IS NOT NULL, to_regclass($2) IS NOT NULL",
            (table.relation, table.rejects.relation),
        )[0]
        rows = session.count(f"SELECT count(*) FROM {table.relation}") if there[0] else 0
        reasons = (
            session.run(
                f"SELECT reason, count(*) FROM {table.rejects.relation} "
                "GROUP BY reason ORDER BY 2 DESC, 1"
            )
            if there[1]
            else []
        )
    return RejectsShare(rows, sum(count for _, count in reasons), dict(reasons))


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
