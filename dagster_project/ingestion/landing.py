"""The landing zone: which files of a feed count, and loading them into the raw table by day."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING, NamedTuple

from dagster_project.failures import RefusedFilesError, SourceError
from dagster_project.identity import Feed
from dagster_project.ingestion.feed import FeedDeclaration
from dagster_project.ingestion.landed_file import file_batches
from dagster_project.ingestion.landed_rows import text_schema
from dagster_project.lake.store import Lake, Object
from dagster_project.warehouse.ledger import Load, PartitionState, TableState
from dagster_project.warehouse.loader import load
from dagster_project.warehouse.staging import Piece, Plan
from dagster_project.warehouse.target import Column, Mode, Target

if TYPE_CHECKING:
    import pyarrow as pa

#: Bytes of files that are kept from when their digest is taken until they are loaded. What is
#: beyond is read a second time: one large file at a time is in memory.
_KEPT = 64 << 20
#: Files that are read at once, of no more than _KEPT bytes together: over a network one waits.
_AHEAD = 3


class Ignored(NamedTuple):
    """A file in the landing zone that is never loaded."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class LandingZone:
    """The files that a feed has in the lake, as a listing shows them."""

    #: The file that counts for a day: of several the one written last, then the last by name.
    files: dict[str, Object] = field(default_factory=dict)
    #: The other files of the day.
    superseded: dict[str, list[Object]] = field(default_factory=dict)
    ignored: list[Ignored] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class FeedLoad:
    """What loading days of a feed did."""

    load: Load
    #: By day, the files that another one of the same day came in place of.
    superseded: dict[str, list[str]]
    ignored: list[Ignored]
    #: By day, another day whose file has the same content, byte for byte.
    repeated: dict[str, str]


def landing_zone(domain: str, feed: FeedDeclaration, lake: Lake) -> LandingZone:
    """What lies in the landing zone of a feed."""
    zone = LandingZone()
    pattern = re.compile(feed.pattern)
    # Those written at once stay in the order of their names.
    for item in sorted(lake.list(Feed(domain, feed.name).prefix), key=lambda item: item.modified):
        match = pattern.fullmatch(item.key.rsplit("/", 1)[-1])
        if not match:
            zone.ignored.append(Ignored(item.key, "its name is not of the feed's pattern"))
            continue
        day = _day(match["day"] or "")
        if not day:
            zone.ignored.append(Ignored(item.key, f"{match['day']} in its name is no date"))
        elif not feed.first_day <= day <= feed.last_day:
            days = f"{feed.first_day} to {feed.last_day}"
            zone.ignored.append(Ignored(item.key, f"its day is not of the feed's, {days}"))
        else:
            if before := zone.files.get(day.isoformat()):
                zone.superseded.setdefault(day.isoformat(), []).append(before)
            zone.files[day.isoformat()] = item
    return zone


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def landed(domain: str, feed: FeedDeclaration, lake: Lake) -> dict[str, Object]:
    """The files in the landing zone that count, by day."""
    return landing_zone(domain, feed, lake).files


def days_waiting(files: dict[str, Object], loaded: dict[str, PartitionState]) -> dict[str, Object]:
    """Of landed files, by day, those that the raw table does not hold as they are now."""
    return {day: item for day, item in files.items() if not _is_loaded(item, loaded.get(day))}


def _is_loaded(item: Object, held: PartitionState | None) -> bool:
    return held is not None and (held.object, held.object_version) == (item.key, item.version)


def target_of(domain: str, feed: FeedDeclaration) -> Target:
    """The raw table of a feed."""
    return Target(
        table=Feed(domain, feed.name).table,
        columns=tuple(
            Column(name, column.type, column.description) for name, column in feed.columns.items()
        ),
        mode=Mode.REPLACE_PARTITIONS,
        primary_key=tuple(feed.primary_key),
        partition=feed.partition_column,
    )


def load_feed(
    domain: str,
    feed: FeedDeclaration,
    days: Sequence[str],
    *,
    lake: Lake,
    warehouse_url: str,
    run_id: str,
    progress: Callable[[int], None] = lambda rows: None,
    say: Callable[[str], None] = lambda text: None,
) -> FeedLoad:
    """Load the landed files of these days, each in place of what its day held.

    A file whose content the table holds already is left alone, and so is a day whose file is gone.
    Raises SourceError if no file of a day is there that the table does not hold, RefusedFilesError
    with all of them if files are not what was declared; then nothing is loaded.
    """
    target = target_of(domain, feed)
    schema = text_schema(feed)
    zone = landing_zone(domain, feed, lake)
    repeated: dict[str, str] = {}
    pieces: list[Piece] = []
    refused: dict[str, SourceError] = {}

    def plan(state: TableState, loaded: dict[str, PartitionState]) -> Plan:
        if missing := sorted(set(days) - zone.files.keys() - loaded.keys()):
            more = f" and {len(missing) - 5} more" if missing[5:] else ""
            raise SourceError(
                f"{lake.address(Feed(domain, feed.name).prefix)}: no file has landed for "
                f"{', '.join(missing[:5])}{more}"
            )
        pieces.clear()
        confirmed = []
        kept = 0
        there = {day: zone.files[day] for day in sorted(set(days) & zone.files.keys())}
        other = list(days_waiting(there, loaded))
        # What a day held that is loaded anew says nothing.
        held = {before.digest: d for d, before in loaded.items() if before.rows and d not in other}
        contents = _read_ahead(lake, [zone.files[day] for day in other])
        for day, content in zip(other, contents, strict=True):
            item, before = zone.files[day], loaded.get(day)
            digest = _digest(content)
            if before and before.digest == digest:
                confirmed.append(replace(before, object=item.key, object_version=item.version))
                held.setdefault(digest, day)
                continue
            if held.setdefault(digest, day) != day:
                repeated[day] = held[digest]
            keeps = kept + len(content) <= _KEPT
            kept += len(content) if keeps else 0
            pieces.append(_piece(item, day, content if keeps else None, digest))
        return Plan(schema, list(pieces), state.position, confirmed=confirmed)

    def _piece(item: Object, day: str, content: bytes | None, digest: str) -> Piece:
        return Piece(
            item.key,
            lambda: batches(day, content or _again(lake, item.key, digest)),
            partition=day,
            object_version=item.version,
            digest=digest,
        )

    def batches(day: str, content: bytes) -> Iterator[pa.RecordBatch]:
        try:
            yield from file_batches(content, zone.files[day].key, feed)
        except SourceError as error:
            refused[day] = error
            raise

    try:
        done = load(warehouse_url, target, plan, run_id=run_id, progress=progress, say=say)
    except SourceError:
        if not refused:
            raise
        # Those that follow were not read yet.
        later = [piece.partition for piece in pieces if piece.partition > max(refused)]
        contents = _read_ahead(lake, [zone.files[day] for day in later])
        for day, content in zip(later, contents, strict=True):
            with suppress(SourceError):
                deque(batches(day, content), maxlen=0)
        why = str(next(iter(refused.values())))
        raise RefusedFilesError(why, {day: zone.files[day].key for day in refused}) from None
    superseded = {
        day: [item.key for item in zone.superseded[day]]
        for day in sorted(set(days) & zone.superseded.keys())
    }
    return FeedLoad(done, superseded, zone.ignored, repeated)


def _read_ahead(lake: Lake, files: Sequence[Object]) -> Iterator[bytes]:
    """What the files hold, in their order, while the next ones are being read."""
    waiting = deque(files)
    coming: deque[tuple[int, Future[bytes]]] = deque()
    with ThreadPoolExecutor(_AHEAD) as readers:
        while waiting or coming:
            while waiting and len(coming) < _AHEAD:
                size = waiting[0].size
                if coming and sum(before for before, _ in coming) + size > _KEPT:
                    break
                coming.append((size, readers.submit(lake.read, waiting.popleft().key)))
            yield coming.popleft()[1].result()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _again(lake: Lake, key: str, digest: str) -> bytes:
    content = lake.read(key)
    if _digest(content) != digest:
        raise SourceError(f"{key} was written anew while it was loaded: run again")
    return content
