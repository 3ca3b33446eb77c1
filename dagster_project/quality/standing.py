"""Which checks stand failed, of which partition, since when: kept beside the tables they are of.

A later run of other partitions, or of other checks, changes nothing of it: what stands failed does
so until the same partition passes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from dagster_project.identity import Table
from dagster_project.quality.outcome import Outcome, Partitions
from dagster_project.quality.suites import Severity, read_suite
from dagster_project.settings import EXPECTATIONS
from dagster_project.warehouse.connection import connect
from dagster_project.warehouse.ledger import LOCK

_CREATE = (
    "CREATE SCHEMA IF NOT EXISTS mesh",
    """CREATE TABLE IF NOT EXISTS mesh.failures (
        table_schema text NOT NULL, table_name text NOT NULL, check_name text NOT NULL,
        partition text NOT NULL DEFAULT '', severity text NOT NULL,
        unexpected bigint, since timestamptz NOT NULL, run_id text NOT NULL,
        PRIMARY KEY (table_schema, table_name, check_name, partition))""",
)


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


def record(
    url: str,
    table: Table,
    outcomes: Sequence[Outcome],
    severities: dict[str, str],
    partitions: Partitions | None,
    run_id: str,
) -> dict[str, list[Failure]]:
    """Note what these outcomes change; what of the table's checks stands failed then, by check.

    `severities` are of all checks that the table has: what stands of others is forgotten.
    """
    keys = list(partitions.keys) if partitions else [""]
    with connect(url, f"noting the checks of {table}") as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        for statement in _CREATE:
            connection.execute(statement)
        where = "table_schema = %(schema)s AND table_name = %(name)s"
        named = {"schema": table.schema, "name": table.name}
        connection.execute(
            f"DELETE FROM mesh.failures WHERE {where} AND NOT check_name = ANY(%(checks)s)",
            named | {"checks": list(severities)},
        )
        for check, severity in severities.items():
            connection.execute(
                f"UPDATE mesh.failures SET severity = %(severity)s WHERE {where} "
                "AND check_name = %(check)s AND severity <> %(severity)s",
                named | {"check": check, "severity": severity},
            )
        for outcome in outcomes:
            connection.execute(
                f"DELETE FROM mesh.failures WHERE {where} AND check_name = %(check)s "
                # What was found of the whole table, when it had no partitions, does not hold now.
                "AND partition = ANY(%(keys)s) AND NOT partition = ANY(%(failed)s)",
                named
                | {
                    "check": outcome.check,
                    "keys": [*keys, ""],
                    "failed": list(outcome.failed),
                },
            )
            with connection.cursor() as cursor:
                cursor.executemany(
                    "INSERT INTO mesh.failures VALUES (%s, %s, %s, %s, %s, %s, now(), %s) "
                    "ON CONFLICT (table_schema, table_name, check_name, partition) DO UPDATE "
                    "SET unexpected = excluded.unexpected, severity = excluded.severity",
                    [
                        (
                            table.schema,
                            table.name,
                            outcome.check,
                            partition,
                            severities[outcome.check],
                            unexpected,
                            run_id,
                        )
                        for partition, unexpected in outcome.failed.items()
                    ],
                )
        rows = connection.execute(
            "SELECT check_name, partition, unexpected, since, run_id FROM mesh.failures "
            f"WHERE {where} ORDER BY check_name, partition",
            named,
        ).fetchall()
    standing: dict[str, list[Failure]] = {}
    for row in rows:
        standing.setdefault(row[0], []).append(Failure(*row))
    return standing


def blocked_tables(
    url: str, tables: Collection[Table], partitions: Collection[str] | None = None
) -> dict[Table, list[str]]:
    """Of these tables, those of which a critical check stands failed, with the checks' names.

    Of a partitioned one only what fails in these partitions counts, if any are given.
    """
    with connect(url, "reading which checks stand failed") as connection:
        there = connection.execute("SELECT to_regclass('mesh.failures') IS NOT NULL").fetchone()
        if there != (True,):
            return {}
        rows = connection.execute(
            "SELECT DISTINCT table_schema, table_name, check_name FROM mesh.failures "
            "WHERE severity = 'critical' AND table_schema || '.' || table_name = ANY(%s) "
            "AND (%s::text[] IS NULL OR partition = '' OR partition = ANY(%s)) ORDER BY 1, 2, 3",
            [[str(table) for table in tables], *[partitions and list(partitions)] * 2],
        ).fetchall()
    found: dict[Table, list[str]] = {}
    for schema, name, check in rows:
        table = Table(schema, name)
        # One that its suite does not have any more stands for nothing.
        if check in _critical(table):
            found.setdefault(table, []).append(check)
    return found


def _critical(table: Table) -> set[str]:
    """The critical checks that the table has now."""
    path = EXPECTATIONS / table.domain / f"{table}.json"
    if not path.exists():
        return set()
    expectations = read_suite(path).expectations
    return {e.check for e in expectations if e.severity is Severity.CRITICAL}
