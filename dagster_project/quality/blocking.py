"""Which tables must not be used, and why: their critical checks do not say that they are sound."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from dagster_project.identity import Table
from dagster_project.quality.standing import DBT_TEST, HELD, NOT_RUN
from dagster_project.quality.suites import Severity, critical_checks
from dagster_project.warehouse.connection import connect
from dagster_project.warehouse.ledger import LEDGER

#: Checks, and partitions, that are named at most.
_SHOWN = 5


class Why(StrEnum):
    """What a critical check says, if not that a table is sound."""

    FAILED = "failed"
    CHANGED = "not run since the data changed"
    EDITED = "not run since it was edited"
    NEVER = "never run"


@dataclass(frozen=True, slots=True)
class Block:
    """Why a table must not be used: a critical check."""

    table: Table
    check: str
    #: The partitions it is so of; none for a table as a whole.
    partitions: tuple[str, ...]
    why: Why

    @property
    def failed(self) -> bool:
        """It is known to be bad; else nobody has looked."""
        return self.why is Why.FAILED


def reasons(found: Iterable[Block]) -> str:
    """Blocks in words, those of one table together."""
    order = list(Why)
    by_table: dict[tuple[Table, Why], list[Block]] = {}
    for block in sorted(found, key=lambda b: (b.table, order.index(b.why), b.check)):
        by_table.setdefault((block.table, block.why), []).append(block)
    told = []
    for (table, why), of_table in by_table.items():
        checks = _listed([block.check for block in of_table])
        days = sorted({key for block in of_table for key in block.partitions})
        told.append(f"{table}: {checks} {why.value}{f' ({_listed(days)})' if days else ''}")
    return "; ".join(told)


def _listed(names: Sequence[str]) -> str:
    """Names, of many only the first."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class _Verdict:
    kind: str
    severity: str
    passed: bool
    version: str
    asked: str


def blocks(
    url: str, tables: Collection[Table], partitions: Collection[str] | None = None
) -> list[Block]:
    """Why some of these tables must not be used: a critical check failed, or has not looked yet.

    Of a partitioned one only what is so of these partitions counts, if any are given. A table of
    which nobody knows what it holds, as no load and no build made it, counts as looked at. A dbt
    test of severity `error` that failed, or was not run since its model was built, counts too.
    """
    names = [str(table) for table in tables]
    with connect(url, "reading which checks stand failed") as connection:
        LEDGER.prepare(connection)
        held: dict[Table, dict[str, str]] = {}
        for schema, name, partition, version in connection.execute(HELD, [names]):
            held.setdefault(Table(schema, name), {})[partition] = version
        rows = connection.execute(
            "SELECT table_schema, table_name, check_name, partition, kind, severity, passed, "
            "version, asked FROM mesh.verdicts WHERE table_schema || '.' || table_name = ANY(%s)",
            [names],
        ).fetchall()
    said: dict[Table, dict[str, dict[str, _Verdict]]] = {}
    for schema, name, check, partition, *verdict in rows:
        of_check = said.setdefault(Table(schema, name), {}).setdefault(check, {})
        of_check[partition] = _Verdict(*verdict)

    def meant(key: str) -> bool:
        return not key or partitions is None or key in partitions

    found = []
    for table in sorted(tables):
        verdicts = said.get(table, {})
        versions = {key: version for key, version in held.get(table, {}).items() if meant(key)}
        for check, asked in sorted(critical_checks(table).items()):
            of_check = {key: each for key, each in verdicts.get(check, {}).items() if meant(key)}
            found += _of_expectation(table, check, asked, of_check, versions)
        for test, of_test in sorted(verdicts.items()):
            found += _of_test(table, test, of_test.get(""), versions)
    return found


def _of_expectation(
    table: Table, check: str, asked: str, verdicts: dict[str, _Verdict], versions: dict[str, str]
) -> list[Block]:
    why: dict[Why, list[str]] = {}
    failed = {key for key, verdict in verdicts.items() if not verdict.passed}
    for key in failed:
        why.setdefault(Why.FAILED, []).append(key)
    for key in set() if "" in failed else versions.keys() - failed:
        verdict = verdicts.get(key)
        if verdict is None:
            why.setdefault(Why.CHANGED if verdicts else Why.NEVER, []).append(key)
        elif verdict.version != versions[key]:
            why.setdefault(Why.CHANGED, []).append(key)
        elif verdict.asked not in ("", asked):  # noted before it was noted what was asked
            why.setdefault(Why.EDITED, []).append(key)
    return [
        Block(table, check, tuple(sorted(key for key in keys if key)), each)
        for each in Why
        if (keys := why.get(each))
    ]


def _of_test(
    table: Table, test: str, verdict: _Verdict | None, versions: dict[str, str]
) -> list[Block]:
    if verdict is None or verdict.kind != DBT_TEST or verdict.severity != Severity.CRITICAL:
        return []
    if verdict.version == NOT_RUN:
        return [Block(table, test, (), Why.CHANGED)]
    if not verdict.passed:
        return [Block(table, test, (), Why.FAILED)]
    # Of a table that is built by partitions it is noted before a build that it has to be run.
    if "" in versions and verdict.version != versions[""]:
        return [Block(table, test, (), Why.CHANGED)]
    return []
