"""The component of a feed: files dropped in the landing zone, loaded a partition each."""

# No `from __future__ import annotations`: Dagster reads the annotation of `context`.

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Self

import dagster as dg

from dagster_project.components.column_lineage import of_load
from dagster_project.components.data_versions import version_before
from dagster_project.components.folder import domain_of
from dagster_project.components.loading import (
    LoadProgress,
    declaration_check,
    declaration_result,
    load_metadata,
    load_step,
    table_metadata,
)
from dagster_project.failures import RefusedFilesError
from dagster_project.identity import Feed
from dagster_project.ingestion.feed import FeedDeclaration
from dagster_project.ingestion.landing import FeedLoad, load_feed, target_of
from dagster_project.lake.store import Lake
from dagster_project.orchestration.pools import WAREHOUSE
from dagster_project.orchestration.retries import retried
from dagster_project.settings import get_settings, warehouse_url

#: In the metadata of a load's failure: the days whose files were refused.
REFUSED = "refused"
#: Files that the metadata names at most, of each kind of finding.
_SHOWN = 20


def feed_partitions(feed: FeedDeclaration) -> dg.DailyPartitionsDefinition:
    """A partition a day, from the feed's first day to its last."""
    return dg.DailyPartitionsDefinition(
        start_date=feed.first_day.isoformat(),
        end_date=(feed.last_day + timedelta(days=1)).isoformat(),
    )


def feed_findings(done: FeedLoad) -> dict[str, str]:
    """Files of the landing zone that a person should look at, by what is the matter with them."""
    findings = {
        "ignored": [f"{key} ({reason})" for key, reason in done.ignored],
        "superseded": [
            f"{key} (another file of {day} was written later)"
            for day, keys in done.superseded.items()
            for key in keys
        ],
        "repeated": [
            f"the file of {day} holds the same as that of {other}"
            for day, other in done.repeated.items()
        ],
    }
    return {found: _shown(files) for found, files in findings.items() if files}


def _shown(files: list[str]) -> str:
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return "; ".join(files[:_SHOWN]) + more


class LandingFeed(dg.Component):
    """A feed of daily files, with the raw table they are loaded into, partitioned by day.

    Attributes: see `dagster_project.ingestion.feed.FeedDeclaration`.
    """

    def __init__(self, feed: FeedDeclaration) -> None:
        self.feed = feed

    @classmethod
    def get_model_cls(cls) -> type[FeedDeclaration]:
        return FeedDeclaration

    @classmethod
    def load(cls, attributes: Any, context: dg.ComponentLoadContext) -> Self:
        return cls(attributes)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        domain = domain_of(context.path)
        feed = self.feed
        name = Feed(domain, feed.name)
        target = target_of(domain, feed)
        landing = dg.AssetSpec(
            key=dg.AssetKey(list(name.asset_key)),
            description=f"{feed.description}\n\nFiles dropped under `{name.prefix}` of the lake by "
            f"{feed.source}.",
            kinds={"source", "file"},
            metadata=table_metadata(name.prefix, target.columns),
        )

        columns = of_load(name.asset_key, {each.name: each.name for each in target.columns})
        spec = dg.AssetSpec(
            key=dg.AssetKey(list(target.table.asset_key)),
            deps=[landing.key],
            description=f"{feed.description}\n\nAs the source gave it, loaded from the lake.",
            kinds={"postgres", "table"},
            partitions_def=feed_partitions(feed),
            metadata={
                **table_metadata(str(target.table), (*target.own_columns, *target.columns)),
                "dagster/partition_expr": feed.partition_column,
            },
        )

        @dg.multi_asset(
            name=load_step(target.table),
            specs=[spec],
            check_specs=[declaration_check(target.table)],
            backfill_policy=dg.BackfillPolicy.single_run(),
            pool=WAREHOUSE,
        )
        @retried
        def raw(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
            lake = Lake(get_settings().lake)
            try:
                done = load_feed(
                    domain,
                    feed,
                    context.partition_keys,
                    lake=lake,
                    warehouse_url=warehouse_url(),
                    run_id=context.run.run_id,
                    progress=LoadProgress(context.log.info, lake),
                    say=context.log.warning,
                )
            except RefusedFilesError as error:
                refused = dg.MetadataValue.json(list(error.partitions))
                raise dg.Failure(str(error), {REFUSED: refused}, allow_retries=False) from None
            load, findings = done.load, feed_findings(done)
            for found, files in findings.items():
                context.log.warning(f"{found}: {files}")
            for partition in load.partitions:
                context.add_asset_metadata(
                    {"dagster/partition_row_count": partition.rows, "object": partition.object},
                    partition_key=partition.partition,
                )
            # With the last day alone: there is an event a day, and the UI shows that of the last.
            context.add_asset_metadata(columns, partition_key=context.partition_keys[-1])
            before = None
            if not (load.new or load.changed or load.removed):
                before = version_before(context.instance, spec.key, context.partition_keys)
            yield dg.MaterializeResult(
                metadata={**load_metadata(target.table, load), **findings},
                data_version=dg.DataVersion(before or load.version),
                check_results=[declaration_result(target.table, load, findings)],
            )

        return dg.Definitions(assets=[landing, raw])
