"""A domain's whole pipeline: everything once, and of its feeds the days that are waiting."""

from __future__ import annotations

from datetime import date, timedelta

from dagster_project.components.partitions import daily_models, partitioned_tables
from dagster_project.identity import DBT_PROJECT, raw_table
from dagster_project.ingestion.feed import FeedDeclaration, read_feed, read_feeds
from dagster_project.ingestion.landing import days_waiting, landed
from dagster_project.lake.store import Lake
from dagster_project.locations.location import domain_definitions, job_name
from dagster_project.orchestration.runs import STARTED_BY, RunRequest, execute
from dagster_project.quality.blocking import blocks
from dagster_project.reference import delivery
from dagster_project.reference.data import data_folder
from dagster_project.settings import Settings, get_settings, warehouse_url
from dagster_project.transformation.project import read_manifest
from dagster_project.transformation.versions import decide_days, read_built
from dagster_project.warehouse.ledger import PartitionState, read_partitions


def prepare_pipeline(domain: str) -> tuple[str, str] | None:
    """Deliver the reference data's daily files, and say which days wait to be loaded.

    Talks to the lake and the warehouse, so it is called in a process of its own.
    """
    settings = get_settings()
    if domain == delivery.FEED.domain:
        _deliver_missing(settings)
    return waiting_range(domain)


def _deliver_missing(settings: Settings) -> None:
    """Deliver the days that never came. A file that is there may be a correction, and stays."""
    lake = Lake(settings.lake)
    feed = read_feed(delivery.FEED.domain, delivery.FEED.name)
    there = landed(delivery.FEED.domain, feed, lake)
    missing = [day for day in _days(feed) if day.isoformat() not in there]
    if missing:
        delivery.deliver(lake, data_folder(settings.home), missing)


def _days(feed: FeedDeclaration) -> list[date]:
    return [feed.first_day + timedelta(n) for n in range((feed.last_day - feed.first_day).days + 1)]


def waiting_range(domain: str) -> tuple[str, str] | None:
    """The first and the last day that waits to be loaded, built or checked; None if none does."""
    lake, url = Lake(get_settings().lake), warehouse_url()
    days: set[str] = set()
    loaded: dict[str, dict[str, PartitionState]] = {}
    for feed in read_feeds(domain):
        loaded[feed.name] = read_partitions(
            url, raw_table(domain, feed.name), feed.partition_column
        )
        days |= days_waiting(domain, feed, lake, loaded[feed.name]).keys()
    if daily := daily_models(domain):
        # A day that was loaded and then stopped, by a check or by a kill, is not loaded again.
        manifest, built = read_manifest(), read_built(url)
        for name in daily.models:
            raw = raw_table(domain, daily.feed)
            days |= decide_days(
                manifest, f"model.{DBT_PROJECT}.{name}", raw, loaded[daily.feed], built
            ).keys()
    tables = partitioned_tables(domain)
    for block in blocks(url, tables):
        # One that failed is looked at again, as its suite may have changed.
        days.update(block.partitions or tables[block.table].held(url))
    return (min(days), max(days)) if days else None


def load_pipeline(domain: str) -> None:
    """Load the domain's definitions, so that its run need not; opens no connection."""
    domain_definitions(domain).get_repository_def()


def run_pipeline(domain: str, run_id: str, partitions: tuple[str, str] | None) -> bool:
    """Run the domain's job once; whether it succeeded. Partitioned assets only if days wait."""
    assets = None
    if partitions is None and read_feeds(domain):
        graph = domain_definitions(domain).resolve_asset_graph()
        assets = [
            key.path
            for key in graph.materializable_asset_keys
            if graph.get(key).partitions_def is None
        ]
    request = RunRequest(domain, job_name(domain), assets, partitions, {STARTED_BY: "mesh run"})
    return execute(request, run_id)
