"""`mesh replay`: a feed's days dropped in the landing zone one after the other, as they came."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import date, timedelta

import typer

from dagster_project.cli.run import install
from dagster_project.cli.services import services
from dagster_project.failures import MeshError
from dagster_project.identity import Feed
from dagster_project.ingestion.feed import read_feed
from dagster_project.ingestion.landing import target_of
from dagster_project.lake.store import Lake
from dagster_project.reference import delivery
from dagster_project.reference.data import data_folder
from dagster_project.settings import Settings, get_settings, warehouse_url
from dagster_project.warehouse.ledger import read_objects
from dagster_project.warehouse.partitions import forget


def replay(
    settings: Settings, domain: str, first: date, days: int, every: float, again: bool
) -> None:
    """Drop so many days of the reference data from `first` on, `every` so many seconds.

    Raises MeshError for a domain that has no reference data, or a day that it does not have.
    """
    feed = delivery.FEED
    if domain != feed.domain:
        raise MeshError(f"only {feed.domain} has daily files to replay, not {domain}")
    wanted = [first + timedelta(day) for day in range(days)]
    install(settings, [domain], typer.echo)
    files = delivery.daily_files(data_folder(settings.home))
    if missing := [day.isoformat() for day in wanted if day not in files]:
        raise MeshError(
            f"the reference data have no flights on {', '.join(missing[:5])}: their days are "
            f"{min(files)} to {max(files)}"
        )
    with services(settings):
        lake = Lake(get_settings().lake)
        if again:
            forget_days(feed, lake, wanted)
        loaded = read_objects(warehouse_url(), feed.table)
        for number, day in enumerate(wanted, start=1):
            key = delivery.object_path(day)
            lake.replace(key, files[day])
            rows = files[day].count(b"\n") - 1
            known = (
                "; it was loaded before: --again lets it come as new"
                if day.isoformat() in loaded
                else ""
            )
            typer.echo(f"{number} of {days}: {key}, {rows:,} flights{known}")
            if number < days:
                time.sleep(every)


def forget_days(feed: Feed, lake: Lake, days: Sequence[date]) -> None:
    """Take the days' files and rows away: the raw table holds what their files say, no more."""
    lake.delete([delivery.object_path(day) for day in days])
    target = target_of(feed.domain, read_feed(feed.domain, feed.name))
    assert target.partition
    forget(warehouse_url(), target.table, target.partition, [day.isoformat() for day in days])
