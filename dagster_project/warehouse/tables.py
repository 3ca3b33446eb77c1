"""The table that a load fills, as declared: created, given new columns, its types widened."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from dagster_project.failures import WarehouseError
from dagster_project.identity import Table, quoted
from dagster_project.warehouse.arrow import ArrowSession
from dagster_project.warehouse.ledger import LEDGER
from dagster_project.warehouse.migrations import LOCK
from dagster_project.warehouse.target import Column, Mode, Target

#: Types that hold every value of another one, besides text, which holds all of them.
_WIDER = {
    ("bigint", "numeric"),
    ("double precision", "numeric"),
    ("date", "timestamp with time zone"),
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """What had to be done to have the table as declared; all are names of columns."""

    is_new: bool
    added: tuple[str, ...] = ()
    widened: tuple[str, ...] = ()


def lock(session: ArrowSession, name: str) -> None:
    """Until the transaction ends, nobody else loads what has this name."""
    session.run(
        "SELECT 1 FROM (SELECT pg_advisory_xact_lock($1::int, hashtext($2))) AS held",
        (LOCK, name),
    )


def try_lock(session: ArrowSession, name: str) -> bool:
    """As `lock`, unless somebody else holds it: whether nobody does."""
    statement = "SELECT pg_try_advisory_xact_lock($1::int, hashtext($2))"
    return bool(session.run(statement, (LOCK, name))[0][0])


def prepare_schemas(session: ArrowSession, table: Table) -> None:
    """Create the ledger and the table's schema, in a transaction of their own.

    Tables of one schema are loaded at once: the first must not hold up the others to its end.
    """
    is_new = LEDGER.prepare_in(session)
    there = session.run("SELECT to_regnamespace($1) IS NOT NULL", (quoted(table.schema),))
    if not there[0][0]:
        lock(session, "mesh")
        session.run(f"CREATE SCHEMA IF NOT EXISTS {quoted(table.schema)}")
        is_new = True
    if is_new:
        session.commit()


def prepare_table(session: ArrowSession, target: Target) -> Prepared:
    """Create the table, or add the columns it lacks and widen types, as declared.

    Raises WarehouseError if a column has a type that the declared one does not hold.
    """
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
        _create(session, target, wanted)
        return Prepared(is_new=True)
    retyped = [c for c in wanted if c.name in there and there[c.name] != _canonical(c.type)]
    narrowed = [
        f"{c.name} is {there[c.name]}, declared {c.type}"
        for c in retyped
        if c.type != "text" and (there[c.name], _canonical(c.type)) not in _WIDER
    ]
    if narrowed:
        raise WarehouseError(
            f"{table}: declared with types that do not hold what it has: {'; '.join(narrowed)}. "
            "Give the column a new name; the old one then stays as it is"
        )
    if retyped:
        _widen(session, table, retyped)
    added = [c for c in wanted if c.name not in there]
    for column in added:
        session.run(f"ALTER TABLE {table.relation} ADD COLUMN {quoted(column.name)} {column.type}")
    _key(session, target)
    return Prepared(False, tuple(c.name for c in added), tuple(c.name for c in retyped))


def _create(session: ArrowSession, target: Target, columns: tuple[Column, ...]) -> None:
    parts = [f"{quoted(c.name)} {c.type}" for c in columns]
    if target.mode is Mode.APPEND_DEDUP:
        parts.append(f"PRIMARY KEY ({', '.join(quoted(name) for name in target.primary_key)})")
    session.run(f"CREATE TABLE {target.table.relation} ({', '.join(parts)})")
    if target.partition:
        session.run(f"CREATE INDEX ON {target.table.relation} ({quoted(target.partition)})")


def _key(session: ArrowSession, target: Target) -> None:
    """Give the table the primary key that its mode asks for, if it has another one or none.

    Raises WarehouseError if rows of it have the same key.
    """
    table = target.table
    there = session.run(
        "SELECT conname::text, array_to_json(ARRAY(SELECT attname FROM unnest(conkey) "
        "WITH ORDINALITY AS k (number, place) JOIN pg_attribute a ON a.attrelid = conrelid "
        "AND a.attnum = k.number ORDER BY k.place))::text "
        "FROM pg_constraint WHERE contype = 'p' AND conrelid = to_regclass($1)",
        (table.relation,),
    )
    wanted = list(target.primary_key) if target.mode is Mode.APPEND_DEDUP else []
    found = orjson.loads(there[0][1]) if there else []
    if found == wanted:
        return
    if there:
        changes = [f"DROP CONSTRAINT {quoted(there[0][0])}"]
        changes += [f"ALTER COLUMN {quoted(name)} DROP NOT NULL" for name in found]
        session.run(f"ALTER TABLE {table.relation} {', '.join(changes)}")
    if not wanted:
        return
    key = ", ".join(quoted(name) for name in wanted)
    again = f"SELECT 1 FROM {table.relation} GROUP BY {key} HAVING count(*) > 1"
    nulls = " OR ".join(f"{quoted(name)} IS NULL" for name in wanted)
    for bad in (again, f"SELECT 1 FROM {table.relation} WHERE {nulls}"):
        if session.count(f"SELECT count(*) FROM ({bad} LIMIT 1) AS first"):
            raise WarehouseError(
                f"{table}: {', '.join(wanted)} is declared as its primary key, which rows that it "
                "has are without or share. Rename or drop the table: it is then loaded anew from "
                "the lake"
            )
    session.run(f"ALTER TABLE {table.relation} ADD PRIMARY KEY ({key})")


def _canonical(postgres_type: str) -> str:
    return {"timestamptz": "timestamp with time zone"}.get(postgres_type, postgres_type)


@dataclass(frozen=True, slots=True)
class _View:
    """A view that reads the table, with what has to be given back to it."""

    name: str
    definition: str
    #: What cannot be given back to it, in words; empty if all can.
    more: str
    options: str
    comments: list[str]
    grants: list[str]


def _widen(session: ArrowSession, table: Table, columns: list[Column]) -> None:
    """Change the types in place; views that read the table are made anew, as they were.

    PostgreSQL changes no column that a view reads.
    """
    views = _views(session, table)
    kept = [f"{view.name} ({view.more})" for view in views if view.more]
    if kept:
        raise WarehouseError(
            f"{table}: {', '.join(c.name for c in columns)} cannot become wider while "
            f"{', '.join(kept)} reads the table: drop it, and build it again after the load"
        )
    for view in reversed(views):
        session.run(f"DROP VIEW {view.name}")
    changes = ", ".join(
        # Through text, since a double becomes a numeric of 15 digits otherwise.
        f"ALTER COLUMN {quoted(c.name)} TYPE {c.type} USING {quoted(c.name)}::text::{c.type}"
        for c in columns
    )
    session.run(f"ALTER TABLE {table.relation} {changes}")
    for view in views:
        session.run(f"CREATE VIEW {view.name}{view.options} AS {view.definition}")
        for statement in (*view.comments, *view.grants):
            session.run(statement)


def _views(session: ArrowSession, table: Table) -> list[_View]:
    """The views that read the table, directly or not, each after those that it reads."""
    rows = session.run(
        """WITH RECURSIVE reads AS (
            SELECT r.ev_class AS oid, 1 AS depth FROM pg_depend d
            JOIN pg_rewrite r ON r.oid = d.objid AND d.classid = 'pg_rewrite'::regclass
            WHERE d.refobjid = to_regclass($1) AND r.ev_class <> d.refobjid
            UNION SELECT r.ev_class, reads.depth + 1 FROM reads
            JOIN pg_depend d ON d.refobjid = reads.oid AND d.classid = 'pg_rewrite'::regclass
            JOIN pg_rewrite r ON r.oid = d.objid AND r.ev_class <> reads.oid)
        SELECT c.oid::bigint, max(depth), c.oid::regclass::text, pg_get_viewdef(c.oid),
            concat_ws(', ',
                CASE WHEN c.relkind <> 'v' THEN 'a materialised view' END,
                CASE WHEN c.relhastriggers THEN 'with triggers' END,
                CASE WHEN c.relowner <> current_user::regrole THEN 'of another owner' END,
                CASE WHEN EXISTS (SELECT 1 FROM pg_attribute a
                    WHERE a.attrelid = c.oid AND a.attacl IS NOT NULL)
                THEN 'with privileges on columns' END),
            coalesce(' WITH (' || array_to_string(c.reloptions, ', ') || ')', '')
        FROM reads JOIN pg_class c USING (oid) GROUP BY c.oid ORDER BY 2""",
        (table.relation,),
    )
    return [
        _View(name, definition, more, options, _comments(session, oid), _grants(session, oid))
        for oid, _, name, definition, more, options in rows
    ]


def _comments(session: ArrowSession, view: int) -> list[str]:
    """Statements that give a view and its columns the comments that they have."""
    rows = session.run(
        """SELECT format(
            CASE d.objsubid WHEN 0 THEN 'COMMENT ON VIEW %s IS %3$L'
            ELSE 'COMMENT ON COLUMN %s.%2$I IS %3$L' END,
            d.objoid::regclass, coalesce(a.attname, ''), d.description)
        FROM pg_description d LEFT JOIN pg_attribute a
            ON a.attrelid = d.objoid AND a.attnum = d.objsubid AND d.objsubid > 0
        WHERE d.classoid = 'pg_class'::regclass AND d.objoid = $1::oid""",
        (view,),
    )
    return [statement for (statement,) in rows]


def _grants(session: ArrowSession, view: int) -> list[str]:
    """Statements that let those read a view who may."""
    rows = session.run(
        """SELECT format('GRANT %s ON %s TO %s', g.privilege_type, c.oid::regclass,
            CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::regrole::text END
            || CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
        FROM pg_class c, aclexplode(c.relacl) g
        WHERE c.oid = $1::oid AND g.grantee <> c.relowner""",
        (view,),
    )
    return [statement for (statement,) in rows]
