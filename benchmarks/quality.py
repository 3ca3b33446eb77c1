"""A table's expectations against one hand-written query that computes the same figures.

Ten expectations that all pass: rows, missing values, ranges, sets, a pattern, a mean, two
uniquenesses. The validation is a run's own: in a process of its own, Great Expectations imported
before (a run imports it once, while the data are still coming). Statements that read the table are
counted in the server's log. At last a thousand expectations over a hundred tables.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console

from benchmarks.measure import server_cpu
from benchmarks.results import Benchmark
from dagster_project.quality.asked import Request
from dagster_project.quality.server import validate_here_or_there, validation_server
from dagster_project.quality.suites import Suite
from dagster_project.warehouse.cluster import SUPERUSER
from dagster_project.warehouse.embedded import MESH, WAREHOUSE, EmbeddedPostgres, Endpoint

SIZES = (100_000, 1_000_000, 10_000_000)
TABLES = 100
RUNS = 3
STATUS = ["new", "paid", "sent", "done"]
#: The ten, each with the figures that a query by hand computes for it.
EXPECTATIONS: dict[str, tuple[str, dict[str, Any], str]] = {
    "rows": ("expect_table_row_count_to_be_between", {"min_value": 1}, "count(*)"),
    "id_there": (
        "expect_column_values_to_not_be_null",
        {"column": "id"},
        "count(*) FILTER (WHERE id IS NULL)",
    ),
    "id_unique": ("expect_column_values_to_be_unique", {"column": "id"}, "count(DISTINCT id)"),
    "amount_range": (
        "expect_column_values_to_be_between",
        {"column": "amount", "min_value": 0, "max_value": 1000},
        "count(*) FILTER (WHERE NOT (amount >= 0 AND amount <= 1000))",
    ),
    "status_known": (
        "expect_column_values_to_be_in_set",
        {"column": "status", "value_set": STATUS},
        "count(*) FILTER (WHERE status NOT IN ('new', 'paid', 'sent', 'done'))",
    ),
    "status_all": (
        "expect_column_distinct_values_to_equal_set",
        {"column": "status", "value_set": STATUS},
        "count(DISTINCT status)",
    ),
    "email_form": (
        "expect_column_values_to_match_regex",
        {"column": "email", "regex": "^[^@]+@"},
        "count(*) FILTER (WHERE NOT email ~ '^[^@]+@')",
    ),
    "score_mean": (
        "expect_column_mean_to_be_between",
        {"column": "score", "min_value": 0.4, "max_value": 0.6},
        "avg(score)",
    ),
    "note_mostly": (
        "expect_column_values_to_not_be_null",
        {"column": "note", "mostly": 0.8},
        "count(*) FILTER (WHERE note IS NULL)",
    ),
    "day_customer": (
        "expect_compound_columns_to_be_unique",
        {"column_list": ["customer", "day"]},
        "count(DISTINCT (customer, day))",
    ),
}


def suite(table: str) -> Suite:
    """The ten as a suite."""
    return Suite.model_validate(
        {
            "name": table,
            "expectations": [
                {
                    "type": kind,
                    "kwargs": kwargs,
                    "severity": "critical",
                    "description": check,
                    "meta": {"check": check},
                }
                for check, (kind, kwargs, _) in EXPECTATIONS.items()
            ],
        }
    )


def create(connection: psycopg.Connection[Any], table: str, rows: int) -> None:
    """A table of so many sound orders, with a primary key."""
    schema, _, name = table.partition(".")
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}".encode())
    connection.execute(
        f"CREATE TABLE {schema}.{name} AS SELECT i::bigint AS id, (i / 365)::bigint AS customer, "
        "(i % 365)::int AS day, (array['new', 'paid', 'sent', 'done'])[1 + i % 4] AS status, "
        "(i % 1000)::numeric AS amount, 'user' || i || '@example.com' AS email, "
        "CASE WHEN i % 10 = 0 THEN NULL ELSE 'x' || i END AS note, "
        "(i % 1000) / 1000.0::double precision AS score, now() AS at "
        f"FROM generate_series(1, {rows}) AS i".encode()
    )
    connection.execute(f"ALTER TABLE {schema}.{name} ADD PRIMARY KEY (id)".encode())
    connection.execute(f"VACUUM ANALYZE {schema}.{name}".encode())


class Warehouse:
    """The embedded PostgreSQL, with its log of statements."""

    def __init__(self, home: Path, endpoint: Endpoint) -> None:
        self.url = endpoint.url(MESH, WAREHOUSE)
        self._server = EmbeddedPostgres(home)
        administrator = Endpoint(endpoint.host, endpoint.port, self._server._passwords())
        with psycopg.connect(administrator.url(SUPERUSER, "postgres"), autocommit=True) as known:
            known.execute("ALTER SYSTEM SET log_statement = 'all'")
            known.execute("SELECT pg_reload_conf()")
        self._log = next(home.rglob("*.log"))

    def cpu(self) -> float:
        pid = self._server.status().pid
        assert pid
        return server_cpu(pid)

    def logged(self) -> int:
        """How long the log is."""
        return self._log.stat().st_size

    def scans(self, since: int, table: str) -> int:
        """Statements since then that read the table's rows, catalogue look-ups left out."""
        with self._log.open("rb") as log:
            log.seek(since)
            statements = log.read().decode().split("statement: ")[1:]
        return sum(table in each and "LIMIT 1" not in each for each in statements)


def validated(warehouse: Warehouse, table: str) -> None:
    """One validation of the ten, which all pass."""
    checks = suite(table)
    found = validate_here_or_there(warehouse.url, Request(checks, list(EXPECTATIONS)))
    assert all(outcome.passed for outcome in found.outcomes), found.outcomes


def by_hand(warehouse: Warehouse, table: str) -> None:
    """The same figures by one query."""
    figures = ", ".join(figure for _, _, figure in EXPECTATIONS.values())
    with psycopg.connect(warehouse.url) as connection:
        connection.execute(f"SELECT {figures} FROM {table}".encode()).fetchone()


def seconds(function: Any, *arguments: Any) -> float:
    """What it takes by the clock."""
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


def run(console: Console, runs: int) -> Benchmark:
    """Measure."""
    result = Benchmark("quality", "Expectations against one query by hand")
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as name, validation_server():
        home = Path(name)
        with EmbeddedPostgres(home).lease() as endpoint:
            warehouse = Warehouse(home, endpoint)
            with psycopg.connect(warehouse.url, autocommit=True) as connection:
                for rows in SIZES:
                    console.print(f"{rows:,} rows …", style="dim")
                    create(connection, f"bench.rows_{rows}", rows)
                    _one_table(result, warehouse, rows, runs)
                console.print(f"{TABLES} tables …", style="dim")
                for number in range(TABLES):
                    create(connection, f"bench.small_{number}", 1000)
            _many_tables(result, warehouse)
    result.notes.append(
        "The figures of uniqueness and of sets of values are subqueries, which PostgreSQL computes "
        "by an index or with several processes; in the query by hand `count(DISTINCT …)` sorts, "
        "and keeps all of it to one process. What is left is reading the table three times."
    )
    return result


def _one_table(result: Benchmark, warehouse: Warehouse, rows: int, runs: int) -> None:
    table = f"bench.rows_{rows}"
    validated(warehouse, table)  # the server's imports, and the cache
    since = warehouse.logged()
    validated(warehouse, table)
    scans = warehouse.scans(since, table)
    hand, ours = [], []
    for _ in range(runs if rows < SIZES[-1] else 1):
        hand.append(seconds(by_hand, warehouse, table))
        ours.append(seconds(validated, warehouse, table))
    limit = 1.5 if rows == 1_000_000 else None
    result.add(
        f"{len(EXPECTATIONS)} expectations, {rows:,} rows",
        f"{statistics.median(ours):.2f} s against {statistics.median(hand):.2f} s",
        statistics.median(a / b for a, b in zip(ours, hand, strict=True)),
        limit,
    )
    result.add(f"statements that read the {rows:,} rows, against 4", str(scans), scans / 4, 1)


def _many_tables(result: Benchmark, warehouse: Warehouse) -> None:
    tables = [f"bench.small_{number}" for number in range(TABLES)]
    validated(warehouse, tables[0])
    since, used = warehouse.logged(), warehouse.cpu()
    took = sum(seconds(validated, warehouse, table) for table in tables)
    used = warehouse.cpu() - used
    scans = sum(warehouse.scans(since, table + " ") for table in tables)
    result.add(
        f"{TABLES * len(EXPECTATIONS):,} expectations over {TABLES} tables, one after the other",
        f"{took:.1f} s, {took / TABLES * 1000:.0f} ms a table, {used:.1f} s of the server's, "
        f"{scans / TABLES:.1f} statements a table",
    )
