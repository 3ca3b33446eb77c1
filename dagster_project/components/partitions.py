"""Which of a domain's tables are partitioned, and by which column."""

from __future__ import annotations

from dataclasses import dataclass

import dagster as dg
from pydantic import Field

from dagster_project.components.landing_feed import feed_partitions
from dagster_project.declarations import Declared, parse, validate
from dagster_project.domain import domain_folder
from dagster_project.identity import DBT_PROJECT, Table, quoted, raw_table
from dagster_project.ingestion.feed import FeedDeclaration, read_feed, read_feeds
from dagster_project.transformation.groups import read_tables
from dagster_project.transformation.project import read_manifest
from dagster_project.transformation.versions import models, node_table
from dagster_project.warehouse.connection import connect

DBT_MODELS_TYPE = "dagster_project.components.DbtModels"


class DailyModels(Declared):
    """Incremental models that are built by the day; each has the feed's partition column."""

    feed: str = Field(description="The feed whose days they are partitioned by.")
    models: list[str] = Field(min_length=1)


class DbtModelsDeclaration(Declared):
    """What a domain says of its dbt models, which lie in dbt_project/models/<domain>/."""

    daily: DailyModels | None = None


def daily_models(domain: str) -> DailyModels | None:
    """What the domain declares of models that are built by the day."""
    path = domain_folder(domain) / "transform" / "defs.yaml"
    if not path.exists():
        return None
    for document, node in parse(path):
        if isinstance(document, dict) and document.get("type") == DBT_MODELS_TYPE:
            attributes = document.get("attributes") or {}
            return validate(path, DbtModelsDeclaration, attributes, node, at=("attributes",)).daily
    return None


def daily_tables(daily: DailyModels) -> list[Table]:
    """The tables of models that are built by the day."""
    nodes = models(read_manifest())
    return [
        node_table(node)
        for name in daily.models
        if (node := nodes.get(f"model.{DBT_PROJECT}.{name}"))
    ]


def tables_of_a_day(domain: str, feed: FeedDeclaration) -> list[Table]:
    """What a file of a feed is carried through: its raw table, views of it, and daily models."""
    found = {raw_table(domain, feed.name)}
    daily = daily_models(domain)
    if daily and daily.feed == feed.name:
        manifest = read_manifest()
        for name in daily.models:
            read = read_tables(manifest, f"model.{DBT_PROJECT}.{name}")
            found |= {table for table in read if table.domain == domain and not table.is_raw}
        found.update(daily_tables(daily))
    return sorted(found)


@dataclass(frozen=True, slots=True)
class PartitionedTable:
    """A table that is loaded, or built, a partition at a time."""

    table: Table
    #: A date, by which the rows are partitioned.
    column: str
    definition: dg.DailyPartitionsDefinition

    def held(self, url: str) -> list[str]:
        """Its partitions that it has rows of, in order; none if it is not there yet.

        Rows of other days, which were the feed's before its declaration was edited, are of none.
        """
        with connect(url, f"reading the partitions of {self.table}") as connection:
            there = connection.execute(
                "SELECT to_regclass(%s) IS NOT NULL", [self.table.relation]
            ).fetchone()
            if there != (True,):
                return []
            rows = connection.execute(
                f"SELECT DISTINCT to_char({quoted(self.column)}, 'YYYY-MM-DD') "
                f"FROM {self.table.relation} WHERE {quoted(self.column)} IS NOT NULL ORDER BY 1"
            )
            keys = set(self.definition.get_partition_keys())
            return [row[0] for row in rows if row[0] in keys]


def partitioned_tables(domain: str) -> dict[Table, PartitionedTable]:
    """The raw tables of feeds, and the models that are built by the day of one."""
    found = {
        raw_table(domain, feed.name): PartitionedTable(
            raw_table(domain, feed.name), feed.partition_column, feed_partitions(feed)
        )
        for feed in read_feeds(domain)
    }
    daily = daily_models(domain)
    if daily:
        feed = read_feed(domain, daily.feed)
        for table in daily_tables(daily):
            found[table] = PartitionedTable(table, feed.partition_column, feed_partitions(feed))
    return found
