"""What each check last said, of which partition and which version of it: kept beside the tables.

A later run of other partitions, or of other checks, changes nothing of it: what stands failed does
so until the same partition passes. What changed since it was checked is not known to be sound.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dagster_project.identity import Table
from dagster_project.quality.outcome import Outcome, Partitions
from dagster_project.quality.suites import Expectation, Severity
from dagster_project.warehouse.connection import connect
from dagster_project.warehouse.ledger import LEDGER
from dagster_project.warehouse.migrations import LOCK

if TYPE_CHECKING:
    import psycopg

#: What these tables hold: a version each, or one a partition.
HELD = """SELECT table_schema, table_name, partition, version FROM (
    SELECT table_schema, table_name, partition, version FROM mesh.partitions
    UNION ALL SELECT table_schema, table_name, partition, version FROM mesh.models
    UNION ALL SELECT table_schema, table_name, '', version FROM mesh.tables t WHERE NOT EXISTS (
        SELECT 1 FROM mesh.partitions p
        WHERE (p.table_schema, p.table_name) = (t.table_schema, t.table_name))
    ) AS held WHERE table_schema || '.' || table_name = ANY(%s)"""
#: What said a verdict.
EXPECTATION, DBT_TEST = "expectation", "dbt test"
#: The version of which a test's verdict is that has not been found yet.
NOT_RUN = "not run"
_OF_TABLE = "table_schema = %(schema)s AND table_name = %(name)s"


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


def versions_held(url: str, *tables: Table) -> dict[Table, dict[str, str]]:
    """What tables hold, by partition; the empty one is the whole table. None if none knows.

    To be read before a check looks at a table: what is loaded meanwhile then is not taken for
    checked.
    """
    names = [str(table) for table in tables]
    held: dict[Table, dict[str, str]] = {table: {} for table in tables}
    if not tables:
        return held
    with connect(url, f"reading what {', '.join(names)} holds") as connection:
        LEDGER.prepare(connection)
        for schema, name, partition, version in connection.execute(HELD, [names]):
            held[Table(schema, name)][partition] = version
    return held


def partitions_known(url: str, table: Table) -> set[str]:
    """The partitions that the ledger, or a verdict, knows of a table, with rows or without."""
    with connect(url, f"reading the partitions of {table}") as connection:
        LEDGER.prepare(connection)
        rows = connection.execute(
            f"SELECT partition FROM ({HELD}) AS held UNION SELECT partition FROM mesh.verdicts "
            "WHERE (table_schema, table_name) = (%s, %s)",
            [[str(table)], table.schema, table.name],
        )
        return {partition for (partition,) in rows if partition}


def record(
    url: str,
    table: Table,
    outcomes: Sequence[Outcome],
    expectations: Mapping[str, Expectation],
    partitions: Partitions | None,
    versions: Mapping[str, str],
    run_id: str,
) -> dict[str, list[Failure]]:
    """Note these outcomes; what of the table's checks stands failed then, by check.

    `expectations` are all that the table has: what is known of others is forgotten. `versions` are
    what `versions_held` said before the checks looked: an outcome of what the table holds no more
    takes no place of one of what it holds now.
    """
    named = {"schema": table.schema, "name": table.name}
    with connect(url, f"noting the checks of {table}") as connection:
        LEDGER.prepare(connection)
        _lock(connection, table)
        connection.execute(
            f"DELETE FROM mesh.verdicts WHERE {_OF_TABLE} AND kind = %(kind)s "
            "AND NOT check_name = ANY(%(checks)s)",
            named | {"kind": EXPECTATION, "checks": list(expectations)},
        )
        connection.execute(
            "UPDATE mesh.verdicts v SET severity = said.severity "
            "FROM unnest(%(checks)s::text[], %(severities)s::text[]) AS said (name, severity) "
            f"WHERE {_OF_TABLE} AND check_name = said.name AND v.severity <> said.severity",
            named
            | {
                "checks": list(expectations),
                "severities": [each.severity.value for each in expectations.values()],
            },
        )
        now = {key: version for _, _, key, version in connection.execute(HELD, [[str(table)]])}
        for outcome in outcomes:
            # What could not be found out of a partition by itself is told of all: nothing else is
            # known.
            whole = "" in outcome.failed or not partitions
            keys = [""] if whole or not partitions else list(partitions.keys)
            if "" not in outcome.failed:
                # As the table has partitions now, or has none now.
                connection.execute(
                    f"DELETE FROM mesh.verdicts WHERE {_OF_TABLE} "
                    "AND check_name = %(check)s AND (partition = '') <> %(whole)s",
                    named | {"check": outcome.check, "whole": whole},
                )
            expectation = expectations[outcome.check]
            _note(
                connection,
                table,
                outcome.check,
                {
                    "kind": EXPECTATION,
                    "severity": expectation.severity.value,
                    "asked": expectation.asked,
                    "run": run_id,
                    "keys": keys,
                    "passed": [key not in outcome.failed for key in keys],
                    "unexpected": [outcome.failed.get(key) for key in keys],
                    "versions": [versions.get(key, "") for key in keys],
                    "now": [now.get(key, "") for key in keys],
                },
            )
        rows = connection.execute(
            "SELECT check_name, partition, unexpected, since, run_id FROM mesh.verdicts "
            f"WHERE {_OF_TABLE} AND NOT passed AND kind = %(kind)s ORDER BY check_name, partition",
            named | {"kind": EXPECTATION},
        ).fetchall()
    standing: dict[str, list[Failure]] = {}
    for row in rows:
        standing.setdefault(row[0], []).append(Failure(*row))
    return standing


@dataclass(frozen=True, slots=True)
class TestVerdict:
    """What one of dbt's tests said of the table that it is a check of."""

    test: str
    severity: Severity
    passed: bool
    #: The version of the table that it is about; NOT_RUN before it has said anything.
    version: str = NOT_RUN


def record_tests(
    url: str,
    verdicts: Mapping[Table, Collection[TestVerdict]],
    run_id: str,
    existing: Mapping[Table, Collection[str]] | None = None,
) -> None:
    """Note what dbt's tests of tables said, or, before they are run, that nobody knows.

    `existing` are all tests that tables have, if given: what is known of others is forgotten.
    """
    with connect(url, "noting what dbt's tests said") as connection:
        LEDGER.prepare(connection)
        for table in sorted({*verdicts, *(existing or ())}):
            _lock(connection, table)
        for table, tests in (existing or {}).items():
            connection.execute(
                f"DELETE FROM mesh.verdicts WHERE {_OF_TABLE} AND kind = %(kind)s "
                "AND NOT check_name = ANY(%(tests)s)",
                {
                    "schema": table.schema,
                    "name": table.name,
                    "kind": DBT_TEST,
                    "tests": list(tests),
                },
            )
        for table, found in verdicts.items():
            for verdict in found:
                said = {
                    "kind": DBT_TEST,
                    "severity": verdict.severity.value,
                    "asked": "",
                    "run": run_id,
                    "keys": [""],
                    "passed": [verdict.passed],
                    "unexpected": [None],
                    "versions": [verdict.version],
                    "now": [""],
                }
                _note(connection, table, verdict.test, said)


def tests_not_run(url: str, tables: Collection[Table]) -> set[str]:
    """dbt's tests of these tables that were to be run, and of which nobody noted what they said."""
    with connect(url, "reading which of dbt's tests were not run") as connection:
        LEDGER.prepare(connection)
        rows = connection.execute(
            "SELECT check_name FROM mesh.verdicts WHERE (kind, version) = (%s, %s) "
            "AND table_schema || '.' || table_name = ANY(%s)",
            [DBT_TEST, NOT_RUN, [str(table) for table in tables]],
        )
        return {test for (test,) in rows}


def _lock(connection: psycopg.Connection[Any], table: Table) -> None:
    """Two runs that check the same table note it one after the other."""
    connection.execute(
        "SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [LOCK, f"verdicts of {table}"]
    )


def _note(
    connection: psycopg.Connection[Any], table: Table, check: str, said: Mapping[str, Any]
) -> None:
    connection.execute(
        "INSERT INTO mesh.verdicts AS v (table_schema, table_name, check_name, partition, "
        "severity, passed, unexpected, version, since, run_id, kind, asked) "
        "SELECT %(schema)s, %(name)s, %(check)s, said.partition, %(severity)s, said.passed, "
        "said.unexpected, said.version, now(), %(run)s, %(kind)s, %(asked)s "
        "FROM unnest(%(keys)s::text[], %(passed)s::boolean[], %(unexpected)s::bigint[], "
        "%(versions)s::text[], %(now)s::text[]) AS said (partition, passed, unexpected, version, "
        "now) LEFT JOIN mesh.verdicts AS stands ON (stands.table_schema, stands.table_name, "
        "stands.check_name, stands.partition, stands.asked) "
        "= (%(schema)s, %(name)s, %(check)s, said.partition, %(asked)s) "
        # Somebody checked what came meanwhile.
        "WHERE said.now = '' OR said.version = said.now "
        "OR stands.version IS DISTINCT FROM said.now "
        "ON CONFLICT (table_schema, table_name, check_name, partition) DO UPDATE SET "
        "severity = excluded.severity, passed = excluded.passed, version = excluded.version, "
        "unexpected = excluded.unexpected, kind = excluded.kind, asked = excluded.asked, "
        "since = CASE WHEN v.passed = excluded.passed THEN v.since ELSE excluded.since END, "
        "run_id = CASE WHEN v.passed = excluded.passed THEN v.run_id ELSE excluded.run_id END "
        "WHERE (v.severity, v.passed, v.version, v.kind, v.asked) <> (excluded.severity, "
        "excluded.passed, excluded.version, excluded.kind, excluded.asked) "
        "OR v.unexpected IS DISTINCT FROM excluded.unexpected",
        {"schema": table.schema, "name": table.name, "check": check, **said},
    )
