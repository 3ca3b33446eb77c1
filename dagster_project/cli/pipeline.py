"""A domain's whole pipeline: everything once, and of its feeds the days that are waiting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import dagster as dg

from dagster_project.cli.progress import RunStarted
from dagster_project.cli.waiting import DayRange, Waiting, read_waiting
from dagster_project.cli.workers import Work
from dagster_project.components.landing_feed import REFUSED, feed_partitions
from dagster_project.failures import MeshError
from dagster_project.identity import raw_table
from dagster_project.ingestion.arrivals import ranges, within
from dagster_project.ingestion.feed import FeedDeclaration, read_feed, read_feeds
from dagster_project.ingestion.landing import landed
from dagster_project.lake.store import Lake
from dagster_project.locations.location import domain_definitions, job_name
from dagster_project.orchestration.problem import STARTED_BY
from dagster_project.orchestration.runs import Executed, RunRequest, blame, execute
from dagster_project.reference import delivery
from dagster_project.reference.data import data_folder
from dagster_project.settings import Settings, get_settings

#: Ranges of days that are named at most.
_SHOWN = 10


def whole_pipeline(work: Work) -> bool:
    """In a domain's process: what waits, whether all runs succeeded."""
    waiting = work.apart(prepare_pipeline)
    load_pipeline(work.domain)
    if not work.may_begin():
        return True
    look = partial(work.apart, read_waiting)
    return run_pipeline(work.domain, waiting, look, work.announce)


def prepare_pipeline(domain: str) -> list[Waiting]:
    """Deliver the reference data's daily files, and say which days wait to be loaded.

    Talks to the lake and the warehouse, so it is called in a process of its own.
    """
    settings = get_settings()
    if domain == delivery.FEED.domain:
        _deliver_missing(settings)
    return read_waiting(domain)


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


def load_pipeline(domain: str) -> None:
    """Load the domain's definitions, so that its run need not; opens no connection."""
    domain_definitions(domain).get_repository_def()


@dataclass(frozen=True, slots=True)
class _Part:
    """A range of a feed's days."""

    feed: str
    days: DayRange


def run_pipeline(
    domain: str,
    waiting: Sequence[Waiting],
    look: Callable[[], list[Waiting]],
    announce: Callable[[RunStarted], None],
) -> bool:
    """Run the domain's job, in as few runs as its waiting days need; whether all succeeded.

    Where one range of days waits, or none does, everything is one run. Else each range is a run of
    what is partitioned, with what that needs, and what is built whole comes in one more at the end,
    of whatever could be loaded: each model asks itself whether that is sound.

    A range fails as a whole. Which of its days are to blame is told by the files that the run
    refused, or else, once `look` has read again what waits, by the checks that stand failed; the
    other days of the range are run again without these. What is to blame is found all at once, so
    there are few such rounds. If no day is to blame, the same would fail again, and is not run.

    Raises MeshError if days wait on after all that.
    """
    parts = [_Part(each.feed, days) for each in waiting for days in each.ranges()]
    alone = not parts or (len(parts) == 1 and len(waiting) == 1)

    def start(told: str, assets: list[list[str]] | None, days: DayRange | None = None) -> Executed:
        run_id = str(uuid4())
        announce(RunStarted(run_id, "" if alone else told, last=alone))
        tags = {STARTED_BY: "mesh run"}
        return execute(RunRequest(domain, job_name(domain), assets, days, tags), run_id)

    if not parts:
        return start("", _built_whole(domain) if waiting else None).succeeded
    succeeded, bad = True, {each.feed: set[str]() for each in waiting}
    while parts:
        failed: dict[_Part, Executed] = {}
        for part in parts:
            assets = None if alone else _by_day(domain, part.feed)
            done = start(_told([part.days]), assets, part.days)
            if not done.succeeded:
                failed[part] = done
        if not failed:
            break
        succeeded = False
        parts = _without_bad(look(), failed, bad)
        alone = alone and not any(bad.values())
    if not alone:
        done = start("all else", _built_whole(domain))
        succeeded = succeeded and done.succeeded
    elif succeeded:
        return True
    # Not those whose files came meanwhile.
    asked = {each.feed: each.days for each in waiting}
    left = [sorted(each.days & asked[each.feed]) for each in look()]
    if told := [_told(ranges(days, at_most=len(days))) for days in left if days]:
        raise MeshError(f"days that wait on: {'; '.join(told)}. Mend what failed, then run again")
    return succeeded


def _without_bad(
    waiting: Sequence[Waiting], failed: Mapping[_Part, Executed], bad: dict[str, set[str]]
) -> list[_Part]:
    """What to run again of the parts that failed; the days to blame are added to `bad`, by feed."""
    again = []
    for each in waiting:
        days: set[str] = set()
        for part, done in failed.items():
            if part.feed != each.feed:
                continue
            refused = {day for said in done.failures for day in _refused(said)}
            if to_blame := refused or within(each.doubtful, part.days):
                blame(done.run_id, to_blame)
                bad[each.feed] |= to_blame
                days |= within(each.days, part.days)
        blamed = frozenset(bad[each.feed])
        rest = replace(each, days=frozenset(days - blamed), there=each.there - blamed)
        again += [_Part(each.feed, found) for found in rest.ranges()]
    return again


def _refused(said: Mapping[str, dg.MetadataValue[Any]]) -> list[str]:
    """The days whose files a step refused, by the metadata of its failure."""
    return said[REFUSED].value if REFUSED in said else []


def _told(found: Sequence[DayRange]) -> str:
    told = [first if first == last else f"{first} to {last}" for first, last in found]
    more = f" and {len(told) - _SHOWN} more" if told[_SHOWN:] else ""
    return ", ".join(told[:_SHOWN]) + more


def _built_whole(domain: str) -> list[list[str]]:
    """The assets that have no partitions."""
    graph = domain_definitions(domain).resolve_asset_graph()
    keys = graph.materializable_asset_keys
    return sorted(list(key.path) for key in keys if graph.get(key).partitions_def is None)


def _by_day(domain: str, name: str) -> list[list[str]]:
    """The assets that are partitioned by a feed's days, and those built whole that they need."""
    graph = domain_definitions(domain).resolve_asset_graph()
    keys = graph.materializable_asset_keys
    days = feed_partitions(read_feed(domain, name))
    feeds = {
        dg.AssetKey(list(raw_table(domain, feed.name).asset_key)): feed.name
        for feed in read_feeds(domain)
    }
    found = {
        key
        for key in keys
        if graph.get(key).partitions_def == days and feeds.get(key, name) == name
    }
    unseen = list(found)
    while unseen:
        for key in graph.get(unseen.pop()).parent_keys & keys:
            if key not in found and graph.get(key).partitions_def is None:
                found.add(key)
                unseen.append(key)
    return sorted(list(key.path) for key in found)
