"""Which days of a feed have files that nobody has loaded yet, and nobody has been asked to load."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date, timedelta
from itertools import pairwise

import orjson

from dagster_project.identity import Feed
from dagster_project.ingestion.feed import FeedDeclaration
from dagster_project.ingestion.landing import landed
from dagster_project.lake.store import Lake
from dagster_project.warehouse.ledger import read_objects


@dataclass(frozen=True, slots=True)
class Memory:
    """What a look has to know of the looks before it. Of a feed's files only those that wait."""

    #: A digest of all files as the last look found them.
    listing: str = ""
    #: By day, files that the last look saw for the first time: they may still be written.
    settling: Mapping[str, str] = field(default_factory=dict)
    #: By day, files that a run was asked for, and that are not loaded yet.
    asked: Mapping[str, str] = field(default_factory=dict)
    #: How often runs were asked for. A file may come back as it was, and is asked for again.
    times: int = 0

    @classmethod
    def parse(cls, text: str | None) -> Memory:
        return cls(**orjson.loads(text)) if text else cls()

    def dump(self) -> str:
        return orjson.dumps(asdict(self)).decode()


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Days whose files came, or came anew, with what stands for each file."""

    days: Mapping[str, str]
    memory: Memory
    #: All days that can be loaded: a file of theirs has landed, or the raw table holds them.
    there: Collection[str] = ()

    def asking(self, days: Collection[str]) -> Memory:
        """The memory once runs of these days were asked for; the next look finds the others."""
        put_off = {day: file for day, file in self.days.items() if day not in days}
        return replace(
            self.memory,
            asked={d: file for d, file in self.memory.asked.items() if d not in put_off},
            settling={**self.memory.settling, **put_off},
            times=self.memory.times + 1,
        )


def look(
    domain: str, feed: FeedDeclaration, lake: Lake, warehouse_url: str, memory: Memory
) -> Arrivals:
    """The days whose files are whole, not loaded, and not asked for before as they are now.

    On a disk a file is taken for whole once two looks in a row found it the same; an object of an
    object store always is. Costs a listing, and a query of the ledger if anything changed.
    """
    files = {day: f"{item.key} {item.version}" for day, item in landed(domain, feed, lake).items()}
    listing = _digest(f"{day} {file}" for day, file in sorted(files.items()))
    if listing == memory.listing and not memory.settling:
        return Arrivals({}, memory)
    loaded = read_objects(warehouse_url, Feed(domain, feed.name).table)
    waiting = {day: file for day, file in files.items() if loaded.get(day) != file}
    asked = {day: file for day, file in memory.asked.items() if waiting.get(day) == file}
    new = {day: file for day, file in waiting.items() if day not in asked}
    came = new
    if lake.on_disk:
        came = {day: file for day, file in new.items() if memory.settling.get(day) == file}
    settling = {day: file for day, file in new.items() if day not in came}
    return Arrivals(
        came, Memory(listing, settling, asked | came, memory.times), files.keys() | loaded.keys()
    )


def _digest(parts: Iterable[str]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode())
        found.update(b"\n")
    return found.hexdigest()[:32]


def ranges(days: Sequence[str], at_most: int) -> list[tuple[str, str]]:
    """The days as ranges of days in a row; of many, those nearest to each other are joined."""
    found: list[tuple[date, date]] = []
    for day in sorted(map(date.fromisoformat, days)):
        if found and day - found[-1][1] == timedelta(1):
            found[-1] = (found[-1][0], day)
        else:
            found.append((day, day))
    while len(found) > at_most:
        gaps = [after[0] - before[1] for before, after in pairwise(found)]
        nearest = gaps.index(min(gaps))
        found[nearest : nearest + 2] = [(found[nearest][0], found[nearest + 1][1])]
    return [(first.isoformat(), last.isoformat()) for first, last in found]


def within(days: Collection[str], wanted: tuple[str, str]) -> set[str]:
    """Those of the days that are in the range."""
    first, last = wanted
    return {day for day in days if first <= day <= last}


def spans(days: Collection[str], among: Collection[str]) -> list[tuple[str, str]]:
    """The fewest ranges that hold these days, and others only `among` these."""
    stretches = ranges(list(among), at_most=len(among))
    inside = [within(days, stretch) for stretch in stretches]
    return [(min(each), max(each)) for each in inside if each]
