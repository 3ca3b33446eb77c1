"""Which models have to be built: those whose code or inputs changed since they were built.

A model's version is a digest of its code and of the versions of what it reads. The versions of what
was built lie in the warehouse beside the tables, so another warehouse has its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from dagster_project.identity import DBT_PROJECT, Table, quoted
from dagster_project.warehouse.connection import connect
from dagster_project.warehouse.ledger import LEDGER, digest
from dagster_project.warehouse.migrations import LOCK

#: The version of what is being built, or was when a build was ended: no check has seen it.
BUILDING = "building"


def node_table(node: Mapping[str, Any]) -> Table:
    """The relation of a dbt model or source."""
    name = node.get("identifier") or node.get("alias") or node["name"]
    return Table(node["schema"], name)


def models(manifest: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The project's models, by unique id."""
    return {
        unique_id: node
        for unique_id, node in manifest["nodes"].items()
        if node["resource_type"] == "model"
    }


def domain_models(manifest: Mapping[str, Any], domain: str) -> dict[str, Mapping[str, Any]]:
    """The models in a domain's folder of the dbt project, by unique id."""
    return {
        unique_id: node
        for unique_id, node in models(manifest).items()
        if node["fqn"][:2] == [DBT_PROJECT, domain]
    }


def code_versions(manifest: Mapping[str, Any]) -> dict[str, str]:
    """A digest of each model's code: its SQL, its configuration and the macros that it uses."""
    macros = {
        unique_id: macro
        for unique_id, macro in manifest["macros"].items()
        if macro["package_name"] == DBT_PROJECT
    }
    hooks = _hooks(manifest, macros)
    return {
        unique_id: digest(
            *_used(node, hooks, macros),
            node["checksum"]["checksum"],
            orjson.dumps(node["unrendered_config"], option=orjson.OPT_SORT_KEYS).decode(),
            orjson.dumps(
                {name: column.get("data_type") for name, column in node["columns"].items()}
            ).decode(),
        )
        for unique_id, node in models(manifest).items()
    }


def _hooks(manifest: Mapping[str, Any], macros: Mapping[str, Any]) -> set[str]:
    """The project's macros that nothing calls: dbt itself does, for every model.

    Materializations and the naming of schemas are of this kind.
    """
    called = {
        used
        for caller in (*manifest["nodes"].values(), *manifest["macros"].values())
        for used in caller["depends_on"]["macros"]
    }
    return set(macros) - called


def _used(node: Mapping[str, Any], hooks: set[str], macros: Mapping[str, Any]) -> list[str]:
    """The SQL of the project's macros that building this model runs, directly or not."""
    found: set[str] = set()
    waiting = {*hooks, *node["depends_on"]["macros"]} & set(macros)
    while waiting:
        unique_id = waiting.pop()
        found.add(unique_id)
        waiting |= set(macros[unique_id]["depends_on"]["macros"]) & set(macros) - found
    return [macros[unique_id]["macro_sql"] for unique_id in sorted(found)]


@dataclass
class Built:
    """What a warehouse holds: versions of raw tables, of models, and of models' partitions."""

    raw: dict[Table, str] = field(default_factory=dict)
    raw_partitions: dict[Table, dict[str, str]] = field(default_factory=dict)
    models: dict[Table, str] = field(default_factory=dict)
    model_partitions: dict[Table, dict[str, str]] = field(default_factory=dict)
    relations: set[Table] = field(default_factory=set)

    def version(self, table: Table, partitions: Collection[str] | None = None) -> str:
        """Of what the table holds now, or these partitions of it; empty if nothing is known."""
        if table in self.model_partitions:
            held = sorted(self.model_partitions[table].items())
            return digest(*(f"{d}={v}" for d, v in held if partitions is None or d in partitions))
        return self.models.get(table) or self.raw.get(table, "")


def read_built(url: str) -> Built:
    """What the warehouse holds, by its ledger and its catalog."""
    built = Built()
    with connect(url, "reading what the warehouse holds") as connection:
        LEDGER.prepare(connection)
        # A table that was dropped by hand is not built, whatever was noted of it.
        connection.execute(
            "DELETE FROM mesh.models m WHERE to_regclass("
            "quote_ident(m.table_schema) || '.' || quote_ident(m.table_name)) IS NULL"
        )
        cursor = connection.execute("SELECT table_schema, table_name, version FROM mesh.tables")
        built.raw = {Table(schema, name): version for schema, name, version in cursor}
        cursor = connection.execute(
            "SELECT table_schema, table_name, partition, version FROM mesh.partitions"
        )
        for schema, name, partition, version in cursor:
            built.raw_partitions.setdefault(Table(schema, name), {})[partition] = version
        cursor = connection.execute(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n "
            "ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'v', 'm', 'p', 'f')"
        )
        built.relations = {Table(schema, name) for schema, name in cursor}
        cursor = connection.execute(
            "SELECT table_schema, table_name, partition, version FROM mesh.models"
        )
        for schema, name, partition, version in cursor:
            table = Table(schema, name)
            if partition:
                built.model_partitions.setdefault(table, {})[partition] = version
            else:
                built.models[table] = version
    return built


@dataclass(frozen=True)
class Decision:
    """What to do with the selected models."""

    #: The version that each selected model has after the build.
    versions: Mapping[str, str]
    #: Those to build, parents first.
    stale: tuple[str, ...]

    @property
    def up_to_date(self) -> list[str]:
        """Those not to build, parents first."""
        return [unique_id for unique_id in self.versions if unique_id not in self.stale]


def _ordered(manifest: Mapping[str, Any], selected: Collection[str]) -> Iterator[str]:
    """Parents first."""
    done: set[str] = set()

    def visit(unique_id: str) -> Iterator[str]:
        if unique_id in done:
            return
        done.add(unique_id)
        for parent in manifest["parent_map"].get(unique_id, []):
            yield from visit(parent)
        if unique_id in selected:
            yield unique_id

    for unique_id in sorted(selected):
        yield from visit(unique_id)


def decide(manifest: Mapping[str, Any], selected: Collection[str], built: Built) -> Decision:
    """Which of the selected models to build, given what the warehouse holds."""
    nodes = models(manifest)
    codes = code_versions(manifest)
    versions: dict[str, str] = {}
    stale = []
    for unique_id in _ordered(manifest, selected):
        inputs = _input_versions(manifest, unique_id, built, versions)
        table = node_table(nodes[unique_id])
        versions[unique_id] = digest(codes[unique_id], *inputs)
        if table not in built.relations or built.models.get(table) != versions[unique_id]:
            stale.append(unique_id)
    return Decision(versions, tuple(stale))


def _input_versions(
    manifest: Mapping[str, Any], unique_id: str, built: Built, versions: Mapping[str, str]
) -> list[str]:
    inputs = []
    for parent in sorted(manifest["nodes"][unique_id]["depends_on"]["nodes"]):
        node = manifest["nodes"].get(parent) or manifest["sources"].get(parent)
        if node is None:
            continue
        table = node_table(node)
        inputs.append(f"{table}={versions.get(parent) or built.version(table)}")
    return inputs


def decide_days(
    manifest: Mapping[str, Any],
    unique_id: str,
    raw: Table,
    days: Iterable[str],
    built: Built,
) -> dict[str, str]:
    """The days of a partitioned model to build, with the version each has after the build.

    A day's version follows from the model's code and from the day's rows in `raw` alone: a change
    of other inputs does not rebuild the past.
    """
    table = node_table(models(manifest)[unique_id])
    code = code_versions(manifest)[unique_id]
    holds = built.model_partitions.get(table, {})
    loaded = built.raw_partitions.get(raw, {})
    wanted = {day: digest(code, loaded.get(day, "")) for day in days}
    return {day: version for day, version in wanted.items() if holds.get(day) != version}


def make_schemas(url: str, tables: Iterable[Table]) -> None:
    """Make the schemas of these tables, one step at a time.

    dbt looks whether a schema is there and then makes it: of two that do so at once, one fails.
    """
    with connect(url, "making the schemas of models") as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext('schemas'))", (LOCK,))
        for schema in sorted({table.schema for table in tables}):
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}".encode())


def record_built(url: str, table: Table, versions: Mapping[str, str]) -> None:
    """Note what was built: the version by partition, with the empty partition for a whole table."""
    with (
        connect(url, f"noting that {table} was built") as connection,
        connection.cursor() as cursor,
    ):
        # What is built by partitions now and was built whole before, or the other way round.
        cursor.execute(
            "DELETE FROM mesh.models WHERE (table_schema, table_name) = (%s, %s) "
            "AND (partition = '') <> %s",
            [table.schema, table.name, "" in versions],
        )
        cursor.executemany(
            "INSERT INTO mesh.models VALUES (%s, %s, %s, %s, now()) "
            "ON CONFLICT (table_schema, table_name, partition) "
            "DO UPDATE SET version = excluded.version, built_at = now()",
            [(table.schema, table.name, part, version) for part, version in versions.items()],
        )


def record_building(url: str, tables: Mapping[Table, Iterable[str]]) -> None:
    """Note that tables, or partitions of them, are about to be built, before dbt touches them.

    Whatever happens from then on, they do not count as what they were, which was checked.
    """
    for table, partitions in tables.items():
        record_built(url, table, dict.fromkeys(partitions, BUILDING))


@dataclass(frozen=True, slots=True)
class Shape:
    """A table or view as it is: how many rows, and its columns with their types in order."""

    rows: int
    columns: tuple[tuple[str, str], ...]


def read_shape(url: str, table: Table) -> Shape:
    """The shape of a table or view."""
    with connect(url, f"reading the shape of {table}") as connection:
        row = connection.execute(f"SELECT count(*) FROM {table.relation}").fetchone()
        assert row
        columns = connection.execute(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
            "WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            [table.relation],
        ).fetchall()
        return Shape(int(row[0]), tuple(columns))
