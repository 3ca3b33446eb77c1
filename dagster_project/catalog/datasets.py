"""Every dataset of the platform with its columns and what they come from, before anything has run.

A stream is three datasets, one after the other: in its source system, its objects in the lake, and
its raw table. A feed is two. A dbt model is two: the model, and the table or view that it makes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dagster_project.catalog.column_lineage import ModelColumns
from dagster_project.domain import Domain
from dagster_project.identity import Feed, Table, Urns
from dagster_project.ingestion.declaration import Connection, StreamDeclaration, identity
from dagster_project.ingestion.feed import FeedDeclaration
from dagster_project.ingestion.landing import target_of as feed_target
from dagster_project.ingestion.records import AIRBYTE_COLUMNS, column_names
from dagster_project.ingestion.streams import lake_columns, source_columns
from dagster_project.ingestion.streams import target_of as stream_target
from dagster_project.transformation.versions import domain_models, node_table
from dagster_project.warehouse.target import Column

#: By column, what it is made of: columns of other datasets, each with the dataset's URN.
MadeOf = Mapping[str, Collection[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Models:
    """The dbt project: its manifest, and by unique id each model's SQL and its columns' lineage."""

    manifest: Mapping[str, Any]
    compiled: Mapping[str, str]
    lineage: Mapping[str, ModelColumns]


@dataclass(frozen=True, slots=True)
class Query:
    """The SQL that makes a dataset: as it is written, and as it is run."""

    written: str
    compiled: str
    is_stored: bool


@dataclass(frozen=True, slots=True)
class Dataset:
    """What can be said of a dataset by its declarations alone."""

    urn: str
    #: Its asset in Dagster.
    asset_key: tuple[str, ...]
    domain: str
    name: str
    #: What people call a dataset of its kind, such as Table.
    kind: str
    description: str
    columns: tuple[Column, ...]
    primary_key: Collection[str] = ()
    #: Columns that hold personal data.
    personal: Collection[str] = ()
    upstreams: tuple[str, ...] = ()
    made_of: MadeOf = field(default_factory=dict)
    #: Whether it holds what its upstream holds, and nothing is computed.
    is_copy: bool = False
    #: Whether a system outside makes it, and no asset of ours.
    is_from_outside: bool = False
    #: The source system that it lies in.
    source: str | None = None
    query: Query | None = None
    #: The other dataset that is the same thing, and whether this is the one that speaks for both.
    sibling: str | None = None
    is_primary: bool = False
    properties: Mapping[str, str] = field(default_factory=dict)


def stream_datasets(
    urns: Urns, domain: str, declared: Domain, connection: Connection, stream: StreamDeclaration
) -> Iterator[Dataset]:
    """A stream in its source system, in the lake and in the warehouse."""
    name = identity(domain, connection, stream)
    target = stream_target(domain, connection, stream)
    source, objects, raw = urns.stream(name), urns.objects(name), urns.table(target.table)
    #: By the name of the source and the lake, that of the warehouse.
    names = column_names(stream.json_schema)
    personal = declared.personal_data.get(str(target.table), ())
    personal_there = [there for there, here in names.items() if here in personal]
    yield Dataset(
        urn=source,
        asset_key=name.source_key,
        domain=domain,
        name=stream.name,
        kind="Stream",
        description=stream.description,
        columns=tuple(source_columns(stream)),
        primary_key=stream.primary_key,
        personal=personal_there,
        is_from_outside=True,
        source=urns.source(name),
        properties={"source": connection.source, "connector": _connector(connection)},
    )
    yield Dataset(
        urn=objects,
        asset_key=name.asset_key,
        domain=domain,
        name=name.prefix,
        kind="Objects",
        description=f"{stream.description}\n\nAs the source gave it, in Parquet objects under "
        f"`{name.prefix}`.",
        columns=tuple(lake_columns(stream)),
        personal=personal_there,
        upstreams=(source,),
        made_of={there: [(source, there)] for there in names},
        is_copy=True,
        properties={"sync_mode": stream.sync_mode.value},
    )
    yield Dataset(
        urn=raw,
        asset_key=target.table.asset_key,
        domain=domain,
        name=target.table.name,
        kind="Table",
        description=f"{stream.description}\n\nAs the source gave it, loaded from the lake.",
        columns=target.columns,
        primary_key=target.primary_key,
        personal=personal,
        upstreams=(objects,),
        made_of={column: [(objects, column)] for column in AIRBYTE_COLUMNS}
        | {here: [(objects, there)] for there, here in names.items()},
        is_copy=True,
        properties={"load_mode": target.mode.value},
    )


def _connector(connection: Connection) -> str:
    return f"{connection.connector.environment} {connection.connector.version}"


def feed_datasets(
    urns: Urns, domain: str, declared: Domain, feed: FeedDeclaration
) -> Iterator[Dataset]:
    """A feed's files in the landing zone, and its table in the warehouse."""
    name, target = Feed(domain, feed.name), feed_target(domain, feed)
    landing, raw = urns.objects(name), urns.table(target.table)
    personal = declared.personal_data.get(str(target.table), ())
    yield Dataset(
        urn=landing,
        asset_key=name.asset_key,
        domain=domain,
        name=name.prefix,
        kind="Files",
        description=f"{feed.description}\n\nFiles dropped under `{name.prefix}` of the lake by "
        f"{feed.source}.",
        columns=target.columns,
        personal=[column.name for column in target.columns if column.name in personal],
        is_from_outside=True,
        properties={"source": feed.source, "file_pattern": feed.pattern},
    )
    yield Dataset(
        urn=raw,
        asset_key=target.table.asset_key,
        domain=domain,
        name=target.table.name,
        kind="Table",
        description=f"{feed.description}\n\nAs the source gave it, loaded from the lake.",
        columns=(*target.own_columns, *target.columns),
        primary_key=target.primary_key,
        personal=personal,
        upstreams=(landing,),
        made_of={column.name: [(landing, column.name)] for column in target.columns},
        is_copy=True,
        properties={"load_mode": target.mode.value},
    )


def model_datasets(urns: Urns, domain: str, declared: Domain, dbt: Models) -> Iterator[Dataset]:
    """The models of a domain, each with the table or view that it makes.

    An ephemeral model makes nothing: what reads it reads what it reads.
    """
    for unique_id, node in domain_models(dbt.manifest, domain).items():
        if node["config"]["materialized"] == "ephemeral":
            continue
        table = node_table(node)
        is_view = node["config"]["materialized"] == "view"
        lineage = dbt.lineage.get(unique_id, {})
        # A table that the SQL names without dbt's knowledge is read, too.
        reads = _reads(dbt.manifest, unique_id) | {
            read for made_of in lineage.values() for read, _ in made_of
        }
        both: dict[str, Any] = {
            "asset_key": table.asset_key,
            "domain": domain,
            "name": table.name,
            "description": node["description"],
            "columns": tuple(
                Column(column["name"], column["data_type"] or "", column["description"])
                for column in node["columns"].values()
            ),
            "primary_key": _primary_key(node),
            "personal": declared.personal_data.get(str(table), ()),
        }
        yield Dataset(
            urn=urns.model(table),
            kind="Model",
            upstreams=tuple(urns.table(read) for read in sorted(reads)),
            made_of={
                column: [(urns.table(read), theirs) for read, theirs in sorted(made_of)]
                for column, made_of in lineage.items()
            },
            query=Query(node["raw_code"], dbt.compiled.get(unique_id, ""), not is_view),
            sibling=urns.table(table),
            is_primary=True,
            properties={
                "dbt_unique_id": unique_id,
                "dbt_file": f"dbt_project/{node['original_file_path']}",
                "dbt_materialized": node["config"]["materialized"],
                "dbt_access": node["access"],
                "dbt_contract": "enforced" if node["contract"]["enforced"] else "none",
            },
            **both,
        )
        yield Dataset(
            urn=urns.table(table),
            kind="View" if is_view else "Table",
            upstreams=(urns.model(table),),
            made_of={name: [(urns.model(table), name)] for name in node["columns"]},
            is_copy=True,
            sibling=urns.model(table),
            **both,
        )


def _primary_key(node: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of the model's constraint, or one that is unique by itself.

    If there are several of these, dbt lists them all, as if they were one key together.
    """
    found = node.get("primary_key") or ()
    if any(constraint["type"] == "primary_key" for constraint in node.get("constraints", ())):
        return tuple(found)
    return tuple(column for column in node["columns"] if column in found)[:1]


def _reads(manifest: Mapping[str, Any], unique_id: str) -> set[Table]:
    """The tables and views that a model's SQL names."""
    found: set[Table] = set()
    for parent in manifest["nodes"][unique_id]["depends_on"]["nodes"]:
        node = manifest["nodes"].get(parent) or manifest["sources"].get(parent)
        if node is None:
            continue
        if node.get("config", {}).get("materialized") == "ephemeral":
            found |= _reads(manifest, parent)
        else:
            found.add(node_table(node))
    return found
