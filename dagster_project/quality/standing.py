"""What each check last said, of which partition and which version of it: kept beside the tables.

A later run of other partitions, or of other checks, changes nothing of it: what stands failed does
so until the same partition passes. What changed since it was checked is not known to be sound.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dagster_project.identity import Table
from dagster_project.quality.outcome import Outcome, Partitions
from dagster_project.quality.suites import critical_checks
from dagster_project.warehouse.connection import connect
from dagster_project.warehouse.ledger import LOCK, STATEMENTS

if TYPE_CHECKING:
    import psycopg

_CREATE = """CREATE TABLE IF NOT EXISTS mesh.verdicts (
    table_schema text NOT NULL, table_name text NOT NULL, check_name text NOT NULL,
    partition text NOT NULL DEFAULT '', severity text NOT NULL, passed boolean NOT NULL,
    unexpected bigint, version text NOT NULL, since timestamptz NOT NULL, run_id text NOT NULL,
    PRIMARY KEY (table_schema, table_name, check_name, partition))"""
#: What tables hold: a version each, or one a partition.
_HELD = """SELECT table_schema, table_name, partition, version FROM (
    SELECT table_schema, table_name, partition, version FROM mesh.partitions
    UNION ALL SELECT table_schema, table_name, partition, version FROM mesh.models
    UNION ALL SELECT table_schema, table_name, '', version FROM mesh.tables t WHERE NOT EXISTS (
        SELECT 1 FROM mesh.partitions p
        WHERE (p.table_schema, p.table_name) = (t.table_schema, t.table_name))
    ) AS held WHERE table_schema || '.' || table_name = ANY(%s)"""
#: Checks, and partitions, that are named at most.
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Failure:
    """A check that stands failed."""

    check: str
    #: Empty for a table as a whole.
    partition: str
    #: Unexpected rows, where the check is about rows.
    unexpected: int | None
    since: datetime
    #: The run that found it first.
    run_id: str


@dataclass(frozen=True, slots=True)
class Block:
    """Why a table must not be used: a critical check."""

    table: Table
    check: str
    #: The partitions it is so of; none for a table as a whole.
    partitions: tuple[str, ...]
    #: It failed; else nobody looked since the data changed.
    failed: bool


def reasons(found: Iterable[Block]) -> str:
    """Blocks in words, those of one table together."""
    by_table: dict[tuple[Table, bool], list[Block]] = {}
    for block in sorted(found, key=lambda block: (block.table, not block.failed, block.check)):
        by_table.setdefault((block.table, block.failed), []).append(block)
    told = []
    for (table, failed), of_table in by_table.items():
        checks = _listed([block.check for block in of_table])
        days = sorted({key for block in of_table for key in block.partitions})
        words = "failed" if failed else "not run since the data changed"
        told.append(f"{table}: {checks} {words}{f' ({_listed(days)})' if days else ''}")
    return "; ".join(told)


def _listed(names: Sequence[str]) -> str:
    """Names, of many only the first."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _prepare(connection: psycopg.Connection[Any]) -> None:
    there = connection.execute("SELECT to_regclass('mesh.verdicts') IS NOT NULL").fetchone()
    if there == (True,):
        return
    connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext('mesh'))", [LOCK])
    for statement in (*STATEMENTS, _CREATE):
        connection.execute(statement.encode())


def versions_held(url: str, table: Table) -> dict[str, str]:
    """What a table holds, by partition; the empty one is the whole table. None if none knows.

    To be read before a check looks at the table: what is loaded meanwhile then is not taken for
    checked.
    """
    with connect(url, f"reading what {table} holds") as connection:
        _prepare(connection)
        return {row[2]: row[3] for row in connection.execute(_HELD, [[str(table)]])}


def record(
    url: str,
    table: Table,
    outcomes: Sequence[Outcome],
    severities: Mapping[str, str],
    partitions: Partitions | None,
    versions: Mapping[str, str],
    run_id: str,
) -> dict[str, list[Failure]]:
    """Note these outcomes; what of the table's checks stands failed then, by check.

    `severities` are of all checks that the table has: what is known of others is forgotten.
    `versions` are what `versions_held` said before the checks looked.
    """
    where = "table_schema = %(schema)s AND table_name = %(name)s"
    named = {"schema": table.schema, "name": table.name}
    with connect(url, f"noting the checks of {table}") as connection:
        _prepare(connection)
        # Two runs that check the same table note it one after the other.
        connection.execute(
            "SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [LOCK, f"verdicts of {table}"]
        )
        connection.execute(
            f"DELETE FROM mesh.verdicts WHERE {where} AND NOT check_name = ANY(%(checks)s)",
            named | {"checks": list(severities)},
        )
        for check, severity in severities.items():
            connection.execute(
                f"UPDATE mesh.verdicts SET severity = %(severity)s WHERE {where} "
                "AND check_name = %(check)s AND severity <> %(severity)s",
                named | {"check": check, "severity": severity},
            )
        for outcome in outcomes:
            _note(
                connection, table, outcome, severities[outcome.check], partitions, versions, run_id
            )
        rows = connection.execute(
            "SELECT check_name, partition, unexpected, since, run_id FROM mesh.verdicts "
            f"WHERE {where} AND NOT passed ORDER BY check_name, partition",
            named,
        ).fetchall()
    standing: dict[str, list[Failure]] = {}
    for row in rows:
        standing.setdefault(row[0], []).append(Failure(*row))
    return standing


def _note(
    connection: psycopg.Connection[Any],
    table: Table,
    outcome: Outcome,
    severity: str,
    partitions: Partitions | None,
    versions: Mapping[str, str],
    run_id: str,
) -> None:
    # What could not be found out of a partition by itself is told of all: nothing else is known.
    keys = [""] if "" in outcome.failed or not partitions else list(partitions.keys)
    if "" not in outcome.failed:
        # As the table has partitions now, or has none now.
        connection.execute(
            "DELETE FROM mesh.verdicts WHERE (table_schema, table_name, check_name) = (%s, %s, %s) "
            "AND (partition = '') <> %s",
            [table.schema, table.name, outcome.check, not partitions],
        )
    connection.execute(
        "INSERT INTO mesh.verdicts AS v SELECT %(schema)s, %(name)s, %(check)s, said.partition, "
        "%(severity)s, said.passed, said.unexpected, said.version, now(), %(run)s "
        "FROM unnest(%(keys)s::text[], %(passed)s::boolean[], %(unexpected)s::bigint[], "
        "%(versions)s::text[]) AS said (partition, passed, unexpected, version) "
        "ON CONFLICT (table_schema, table_name, check_name, partition) DO UPDATE SET "
        "severity = excluded.severity, passed = excluded.passed, version = excluded.version, "
        "unexpected = excluded.unexpected, "
        "since = CASE WHEN v.passed = excluded.passed THEN v.since ELSE excluded.since END, "
        "run_id = CASE WHEN v.passed = excluded.passed THEN v.run_id ELSE excluded.run_id END "
        "WHERE (v.severity, v.passed, v.version) <> "
        "(excluded.severity, excluded.passed, excluded.version) "
        "OR v.unexpected IS DISTINCT FROM excluded.unexpected",
        {
            "schema": table.schema,
            "name": table.name,
            "check": outcome.check,
            "severity": severity,
            "run": run_id,
            "keys": keys,
            "passed": [key not in outcome.failed for key in keys],
            "unexpected": [outcome.failed.get(key) for key in keys],
            "versions": [versions.get(key, "") for key in keys],
        },
    )


def blocks(
    url: str, tables: Collection[Table], partitions: Collection[str] | None = None
) -> list[Block]:
    """Why some of these tables must not be used: a critical check failed, or has not looked yet.

    Of a partitioned one only what is so of these partitions counts, if any are given. A table of
    which nobody knows what it holds, as no load and no build made it, counts as looked at.
    """
    critical = {each: checks for each in tables if (checks := critical_checks(each))}
    if not critical:
        return []
    names = [str(table) for table in critical]
    with connect(url, "reading which checks stand failed") as connection:
        _prepare(connection)
        held: dict[Table, dict[str, str]] = {}
        for schema, name, partition, version in connection.execute(_HELD, [names]):
            held.setdefault(Table(schema, name), {})[partition] = version
        rows = connection.execute(
            "SELECT table_schema, table_name, check_name, partition, passed, version "
            "FROM mesh.verdicts WHERE table_schema || '.' || table_name = ANY(%s)",
            [names],
        ).fetchall()
    said: dict[tuple[Table, str], dict[str, tuple[bool, str]]] = {}
    for schema, name, check, partition, passed, version in rows:
        said.setdefault((Table(schema, name), check), {})[partition] = (passed, version)

    def meant(key: str) -> bool:
        return not key or partitions is None or key in partitions

    found = []
    for table, check in sorted(
        (each, check) for each, checks in critical.items() for check in checks
    ):
        verdicts = said.get((table, check), {})
        failed = {key for key, (passed, _) in verdicts.items() if not passed and meant(key)}
        unseen = {
            key
            for key, version in held.get(table, {}).items()
            if meant(key) and not {key, ""} & failed and verdicts.get(key) != (True, version)
        }
        found += [
            Block(table, check, tuple(sorted(key for key in keys if key)), keys is failed)
            for keys in (failed, unseen)
            if keys
        ]
    return found
