"""Writing checks: `mesh expect` proposes a suite, `mesh lint` finds what is wrong in one."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import typer

from dagster_project.cli.services import prepare_home, query_url
from dagster_project.domain import domain_names, read_domain
from dagster_project.failures import DeclarationError, MeshError
from dagster_project.identity import Table
from dagster_project.ingestion.feed import read_feeds
from dagster_project.ingestion.replay import raw_tables
from dagster_project.quality.lint import Columns, lint
from dagster_project.quality.proposal import propose
from dagster_project.quality.suites import SuiteFile, open_suite
from dagster_project.settings import EXPECTATIONS, Settings
from dagster_project.transformation.project import read_manifest
from dagster_project.transformation.versions import node_table
from dagster_project.warehouse.embedded import MESH, WAREHOUSE, EmbeddedPostgres

#: What dbt makes tables and views of.
_RELATIONS = {"model", "seed", "snapshot"}
#: Arguments that say what an expectation is about.
_ABOUT = ("column", "column_A", "column_B", "column_list")


def propose_suite(settings: Settings, name: str, write: bool) -> None:
    """Print a suite for the table, or write it; checks that there are stay as they are.

    Raises MeshError if there is no such table, DeclarationError if its suite has faults.
    """
    try:
        table = Table.parse(name)
    except ValueError as error:
        raise MeshError(f"{error}: name the table as in `mesh expect fleet.dim_planes`") from None
    path = EXPECTATIONS / table.domain / f"{table}.json"
    there = _read(path)
    personal, key, partition = _declared(table)
    with query_url(settings) as url:
        proposed = propose(url, table, personal, key, partition, _say)
    if table.domain not in domain_names():
        raise MeshError(f"{table} is of no domain: they are {', '.join(domain_names())}")
    kept = there.get("expectations", [])
    new = [expectation for expectation in proposed if not _is_there(expectation, kept)]
    suite = {"name": name, **there, "expectations": [*kept, *new]}
    text = json.dumps(suite, indent=2, ensure_ascii=False) + "\n"
    if not write:
        print(text, end="")
        return
    if new:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    stay = f", the {len(kept)} that are there stay" if kept else ""
    print(f"{path}: {len(new)} checks added{stay}. Edit them, then `make lint`")


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _read(path: Path) -> dict[str, Any]:
    """The suite's file as it is; empty if there is none."""
    if not path.exists():
        return {}
    file = open_suite(path)
    if file.faults:
        raise DeclarationError("\n".join(file.faults))
    return dict(file.document)


def _declared(table: Table) -> tuple[Collection[str], tuple[str, ...], str | None]:
    """What is declared of a table: columns of personal data, key, partition's column."""
    if table.domain not in domain_names():
        return (), (), None
    personal = read_domain(table.domain).personal_data.get(str(table), ())
    if raw := raw_tables().get(str(table)):
        return personal, raw.target.primary_key, raw.target.partition
    if not read_feeds(table.domain):
        return personal, (), None
    from dagster_project.components.partitions import partitioned_tables

    partitioned = partitioned_tables(table.domain).get(table)
    return personal, (), partitioned.column if partitioned else None


def _is_there(expectation: Mapping[str, Any], others: Collection[Mapping[str, Any]]) -> bool:
    """Whether a suite has a check of this name, or one of this type about the same columns."""

    def about(one: Mapping[str, Any]) -> list[Any]:
        return [one["type"], *(one["kwargs"].get(name) for name in _ABOUT)]

    return any(
        other["meta"]["check"] == expectation["meta"]["check"] or about(other) == about(expectation)
        for other in others
    )


def lint_suites(settings: Settings) -> int:
    """Print what is wrong in the suites of all domains; the exit code.

    Expectations are evaluated on empty tables in a PostgreSQL that is started for that alone.
    """
    files = [open_suite(path) for path in sorted(EXPECTATIONS.glob("*/*.json"))]
    for file in files:
        if file.path.parent.name not in domain_names():
            file.refuse(
                (), f"lies in the folder of no domain: they are {', '.join(domain_names())}"
            )
    prepare_home(settings)
    with tempfile.TemporaryDirectory() as home, EmbeddedPostgres(Path(home)).lease() as endpoint:
        faults = lint(endpoint.url(MESH, WAREHOUSE), files, _tables(settings, files))
    for fault in faults:
        print(fault)
    checks = sum(len(file.suite.expectations) for file in files if file.suite)
    if faults:
        print(f"{len(faults)} faults in {len(files)} suites", file=sys.stderr)
        return 1
    print(f"{checks} expectations in {len(files)} suites can be evaluated")
    return 0


def _tables(settings: Settings, files: Collection[SuiteFile]) -> dict[Table, Columns]:
    """Every table that there is, or will be, with its columns where they are declared."""
    found: dict[Table, Columns] = {
        raw.target.table: {
            column.name: column.type for column in (*raw.target.own_columns, *raw.target.columns)
        }
        for raw in raw_tables().values()
    }
    for node in read_manifest(settings)["nodes"].values():
        if node["resource_type"] in _RELATIONS and node["config"]["materialized"] != "ephemeral":
            found[node_table(node)] = _contract(node)
    if any(file.suite and file.suite.table not in found for file in files):
        # The tables of assets in Python, which only Dagster knows.
        from dagster_project.definitions import defs

        for key in defs().resolve_all_asset_keys():
            if len(key.path) == 2:
                found.setdefault(Table(*key.path), None)
    return found


def _contract(node: Mapping[str, Any]) -> Columns:
    """The columns that a model promises; None without a contract, which may not name all."""
    if not (node["config"].get("contract") or {}).get("enforced"):
        return None
    return {column["name"]: column["data_type"] for column in node["columns"].values()}
