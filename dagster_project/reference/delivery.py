"""The airport's delivery of flights: one CSV file a day, dropped into the lake's landing zone."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from dagster_project.failures import SourceError
from dagster_project.identity import Feed
from dagster_project.lake.store import Lake
from dagster_project.reference import data

FEED = Feed("flights", "flights")

#: Objects compared or written at once: enough to hide an object store's latency.
_AT_ONCE = 8

# A day's rows stand together: one match is all of them. The first three columns are the date.
_DAY = re.compile(rb"((\d+),(\d+),(\d+),).*\n(?:\1.*\n)*")


@dataclass(frozen=True, slots=True)
class Delivery:
    """How many files a delivery found missing, changed, and already there."""

    new: int
    replaced: int
    unchanged: int


def object_path(day: date) -> str:
    """Where the file of a day's flights is dropped."""
    return f"{FEED.prefix}/flights_{day.isoformat()}.csv"


def daily_files(folder: Path) -> dict[date, bytes]:
    """The year's flights as the content of one CSV file a day, in order of the day.

    Each has the source's header, and the source's rows byte for byte, in the source's order. Raises
    SourceError if the source cannot be read or is not what it was known to be.
    """
    path = folder / data.FLIGHTS
    try:
        with zipfile.ZipFile(path) as archive:
            content = archive.read("flights.csv")
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"{path} cannot be read ({error}): install the reference data again with `mesh install`"
        ) from error
    header, newline, rows = content.partition(b"\n")
    if not header.startswith(b"year,month,day,"):
        raise SourceError(f"{path}: the columns do not begin with year,month,day")
    if b'"' in rows:
        raise SourceError(f"{path}: a quoted value: rows can no longer be told apart by line")
    days: dict[date, bytes] = {}
    end = 0
    for match in _DAY.finditer(rows):
        if match.start() != end:
            break
        end = match.end()
        day = date(int(match[2]), int(match[3]), int(match[4]))
        days[day] = days.get(day, header + newline) + match[0]
    if end != len(rows):
        line = rows.count(b"\n", 0, end) + 2
        raise SourceError(
            f"{path}: line {line} of flights.csv does not begin with a date, or is cut"
        )
    return dict(sorted(days.items()))


def deliver(
    lake: Lake,
    folder: Path,
    days: Iterable[date] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Delivery:
    """Drop the files of the days (None: all of the year) into the landing zone of the lake.

    A file that is there with the same content is not written again, so that delivering twice
    starts nothing. `progress` is called with the files done and the files in all. Raises
    SourceError for a day without flights, LakeError if the lake refuses.
    """
    files = daily_files(folder)
    if days is not None:
        wanted = sorted(set(days))
        unknown = [day.isoformat() for day in wanted if day not in files]
        if unknown:
            raise SourceError(
                f"the source has no flights on {', '.join(unknown)}: its days are "
                f"{min(files)} to {max(files)}"
            )
        files = {day: files[day] for day in wanted}

    counts = {"new": 0, "replaced": 0, "unchanged": 0}
    sizes = {item.key: item.size for item in lake.list(FEED.prefix)}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        outcomes = pool.map(
            lambda item: _drop(lake, object_path(item[0]), item[1], sizes), files.items()
        )
        for done, outcome in enumerate(outcomes, start=1):
            counts[outcome] += 1
            if progress:
                progress(done, len(files))
    return Delivery(**counts)


def _drop(lake: Lake, path: str, content: bytes, sizes: dict[str, int]) -> str:
    known = path in sizes
    if known and sizes[path] == len(content) and lake.read(path) == content:
        return "unchanged"
    lake.replace(path, content)
    return "replaced" if known else "new"
