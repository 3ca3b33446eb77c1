"""The sensor of a feed: a file that is dropped starts the run of its day."""

# No `from __future__ import annotations`: Dagster reads the annotation of `context`.

import time
from collections.abc import Sequence

import dagster as dg
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
)

from dagster_project.ingestion.arrivals import Memory, look, spans, within
from dagster_project.ingestion.feed import FeedDeclaration
from dagster_project.lake.store import Lake
from dagster_project.settings import get_settings, warehouse_url

#: Seconds between two looks, and for how long a tick goes on looking: the daemon asks for the next
#: tick every five seconds, and no more often.
LOOK, WATCH = 0.8, 4.2
#: A look that takes long, at many files or over a network, is followed by a pause that many times
#: as long: so that looking never takes more than a tenth of the time.
_REST = 9
#: Runs that a tick asks for at most; the next one asks for what is left.
_RUNS = 10


def landing_sensor(
    domain: str, feed: FeedDeclaration, assets: Sequence[dg.AssetKey]
) -> dg.SensorDefinition:
    """Watches the landing zone; asks for runs of `assets`, which are partitioned by its days."""

    @dg.sensor(
        name=f"{feed.name}_landed",
        target=dg.AssetSelection.assets(*assets),
        minimum_interval_seconds=1,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"A file of {feed.name} that is dropped in the landing zone is loaded, and its "
        "day built and checked.",
    )
    def landed(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        lake, url = Lake(get_settings().lake), warehouse_url()
        memory = Memory.parse(context.cursor)
        until = time.monotonic() + WATCH
        while True:
            began = time.monotonic()
            found = look(domain, feed, lake, url, memory)
            memory = found.memory
            pause = max(LOOK, _REST * (time.monotonic() - began))
            if found.days or time.monotonic() + pause > until:
                break
            time.sleep(pause)
        if not found.days:
            context.update_cursor(memory.dump())
            return dg.SkipReason("no file came")
        # Of a day that is not there no run can be: so a range has none.
        chosen = spans(found.days, found.there)[:_RUNS]
        asked = set[str]().union(*(within(found.days, each) for each in chosen))
        cursor = found.asking(asked).dump()
        requests = [
            dg.RunRequest(
                # The same if the tick is repeated, as its runs may have been created.
                run_key=f"{memory.times} {first} {last}",
                tags={
                    ASSET_PARTITION_RANGE_START_TAG: first,
                    ASSET_PARTITION_RANGE_END_TAG: last,
                },
            )
            for first, last in chosen
        ]
        return dg.SensorResult(requests, cursor=cursor)

    return landed
