"""Which days of a domain's feeds wait, and in which ranges of days they are run."""

from __future__ import annotations

from dataclasses import dataclass

from dagster_project.components.landing_feed import feed_partitions
from dagster_project.components.partitions import daily_models, daily_tables, partitioned_tables
from dagster_project.identity import DBT_PROJECT, raw_table
from dagster_project.ingestion.arrivals import spans, within
from dagster_project.ingestion.feed import FeedDeclaration, read_feeds
from dagster_project.ingestion.landing import days_waiting, landed
from dagster_project.lake.store import Lake
from dagster_project.quality.blocking import blocks
from dagster_project.settings import get_settings, warehouse_url
from dagster_project.transformation.project import read_manifest
from dagster_project.transformation.versions import decide_days, read_built
from dagster_project.warehouse.ledger import read_partitions

#: A first and a last day.
DayRange = tuple[str, str]
#: Ranges of a feed that are run at most: one whose files come on working days has 53 a year.
AT_MOST = 60


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits of a feed; every day is one of its partitions."""

    feed: str
    #: Days that wait to be loaded, built or checked, and can be.
    days: frozenset[str]
    #: Days on which a critical check stands failed.
    doubtful: frozenset[str]
    #: Days that can be in a run: a file of theirs has landed, or the raw table holds them.
    there: frozenset[str]

    def ranges(self) -> list[DayRange]:
        """The ranges of days to run, so that every waiting day is in one.

        A range fails as a whole. So those of sound days have no doubtful one between them; what is
        doubtful is looked at again in ranges of its own, after them: whatever else lies in these
        has been run by then. Dagster's runs are of days in a row, and of a day that is not there
        none can be; apart from that a range is as long as it can be, as days in it that do not wait
        cost next to nothing, and a run some seconds. So there is one where all is well, and one
        more for each gap between the files and for each doubtful day. Of more than AT_MOST those
        with the most days are run; the other days wait on.
        """
        sound = self.there - self.doubtful
        found = [*spans(self.days & sound, sound), *spans(self.days - sound, self.there)]
        by_days = sorted(found, key=lambda each: len(within(self.days, each)), reverse=True)
        return [each for each in found if each in by_days[:AT_MOST]]


def read_waiting(domain: str) -> list[Waiting]:
    """What waits of each of the domain's feeds. Talks to the lake and to the warehouse."""
    return [_of_feed(domain, feed) for feed in read_feeds(domain)]


def _of_feed(domain: str, feed: FeedDeclaration) -> Waiting:
    url, raw = warehouse_url(), raw_table(domain, feed.name)
    files = landed(domain, feed, Lake(get_settings().lake))
    loaded = read_partitions(url, raw, feed.partition_column)
    days = set(days_waiting(files, loaded))
    tables = {raw}
    daily = daily_models(domain)
    if daily and daily.feed == feed.name:
        # A day that was loaded and then stopped, by a check or by a kill, is not loaded again.
        tables.update(daily_tables(daily))
        manifest, built = read_manifest(), read_built(url)
        for name in daily.models:
            days |= decide_days(manifest, f"model.{DBT_PROJECT}.{name}", raw, loaded, built).keys()
    partitioned = partitioned_tables(domain)
    doubtful: set[str] = set()
    for block in blocks(url, tables):
        # One that failed is looked at again, as its suite may have changed.
        days.update(block.partitions or partitioned[block.table].held(url))
        if block.failed:
            doubtful.update(block.partitions)
    # The table may hold, and checks may tell of, days that were the feed's before it was edited.
    there = (files.keys() | loaded.keys()) & set(feed_partitions(feed).get_partition_keys())
    return Waiting(
        feed.name, frozenset(days & there), frozenset(doubtful & there), frozenset(there)
    )
