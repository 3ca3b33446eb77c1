"""Feeds: files that others drop into the lake's landing zone, one a partition."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from dagster_project.declarations import Declared, parse, validate
from dagster_project.failures import DeclarationError, SourceError
from dagster_project.identity import Feed
from dagster_project.ingestion.declaration import declaration_path
from dagster_project.lake.store import Lake, Object
from dagster_project.warehouse.ledger import Load, PartitionState, TableState
from dagster_project.warehouse.loader import Column, Mode, Piece, Plan, Target, load

if TYPE_CHECKING:
    import pyarrow as pa

FEED_TYPE = "dagster_project.components.LandingFeed"
_TYPES = ("bigint", "double precision", "numeric", "boolean", "text", "date", "timestamptz")


class FeedColumn(Declared):
    """A column of a feed's files."""

    type: str
    description: str = Field(min_length=1, description="What it holds, with its unit.")

    @field_validator("type")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in _TYPES:
            raise ValueError(f"{kind} is not of {', '.join(_TYPES)}")
        return kind


class FeedDeclaration(Declared):
    """A feed of daily CSV files, as declared in a domain's `ingest/defs.yaml`."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,47}$")
    source: str = Field(min_length=1, description="The source system, in words.")
    description: str = Field(min_length=1, description="What a row is, in business terms.")
    pattern: str = Field(
        description="A regular expression for file names, with a group `day` (YYYY-MM-DD)."
    )
    partition_column: str = Field(description="The column that holds a row's partition, a date.")
    first_day: date
    last_day: date = Field(description="The last day there is data for.")
    null_values: list[str] = Field(default_factory=lambda: [""])
    columns: dict[str, FeedColumn] = Field(
        min_length=1, description="The columns of the files, in order."
    )

    @field_validator("pattern")
    @classmethod
    def _has_day(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groupindex
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        if "day" not in groups:
            raise ValueError("must have a group (?P<day>...)")
        return pattern


def read_feeds(domain: str) -> list[FeedDeclaration]:
    """The feeds that a domain declares; none if it has no `ingest/defs.yaml`."""
    path = declaration_path(domain)
    if not path.exists():
        return []
    return [
        validate(path, FeedDeclaration, document.get("attributes"), node, at=("attributes",))
        for document, node in parse(path)
        if isinstance(document, dict) and document.get("type") == FEED_TYPE
    ]


def read_feed(domain: str, name: str) -> FeedDeclaration:
    """A feed of a domain by its name. Raises DeclarationError if there is none."""
    for feed in read_feeds(domain):
        if feed.name == name:
            return feed
    raise DeclarationError(f"{declaration_path(domain)} declares no feed {name}")


def days_waiting(
    domain: str, feed: FeedDeclaration, lake: Lake, loaded: dict[str, PartitionState]
) -> dict[str, Object]:
    """The files in the landing zone that the raw table does not hold as they are now, by day."""
    found = landed(domain, feed, lake)
    return {
        day: item
        for day, item in found.items()
        if day not in loaded
        or (loaded[day].object, loaded[day].object_version) != (item.key, item.version)
    }


def landed(domain: str, feed: FeedDeclaration, lake: Lake) -> dict[str, Object]:
    """The files in the landing zone by day; of several for one day the last by name."""
    pattern = re.compile(feed.pattern)
    found: dict[str, Object] = {}
    for item in lake.list(Feed(domain, feed.name).prefix):
        match = pattern.fullmatch(item.key.rsplit("/", 1)[-1])
        if match:
            found[match["day"]] = item
    return found


def target_of(domain: str, feed: FeedDeclaration) -> Target:
    """The raw table of a feed."""
    return Target(
        table=Feed(domain, feed.name).table,
        columns=tuple(
            Column(name, column.type, column.description) for name, column in feed.columns.items()
        ),
        mode=Mode.REPLACE_PARTITIONS,
        partition=feed.partition_column,
    )


def _schema(feed: FeedDeclaration) -> pa.Schema:
    """Everything as text: the warehouse finds what cannot be cast, set-wise."""
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in feed.columns])


def _batches(
    content: bytes, key: str, feed: FeedDeclaration, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    from pyarrow import csv

    options = csv.ConvertOptions(
        column_types=schema,
        null_values=feed.null_values,
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    try:
        table = csv.read_csv(
            io.BytesIO(content),
            convert_options=options,
            parse_options=csv.ParseOptions(newlines_in_values=True),
        )
    except pa.ArrowInvalid as error:
        raise SourceError(f"{key} is not the CSV file it should be: {error}") from None
    if table.column_names != schema.names:
        missing = [name for name in schema.names if name not in table.column_names]
        extra = [name for name in table.column_names if name not in schema.names]
        raise SourceError(
            f"{key}: its header is not the declared one: missing {missing or 'none'}, not declared "
            f"{extra or 'none'}, or in another order. Nothing of this load was kept; mend the file "
            "or the feed's declaration"
        )
    yield from table.to_batches()


def load_feed(
    domain: str,
    feed: FeedDeclaration,
    days: Sequence[str],
    *,
    lake: Lake,
    warehouse_url: str,
    run_id: str,
    progress: Callable[[int], None] = lambda rows: None,
) -> Load:
    """Load the landed files of these days, each in place of what its day held.

    A file whose content the table holds already is left alone. Raises SourceError if no file of a
    day is there, or if one is not what was declared; then nothing is loaded.
    """
    target = target_of(domain, feed)
    schema = _schema(feed)
    found = landed(domain, feed, lake)
    missing = sorted(set(days) - found.keys())
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if missing[5:] else "")
        raise SourceError(
            f"{lake.address(Feed(domain, feed.name).prefix)}: no file has landed for {shown}"
        )

    def plan(state: TableState, loaded: dict[str, PartitionState]) -> Plan:
        pieces, confirmed = [], []
        for day in sorted(set(days)):
            item = found[day]
            before = loaded.get(day)
            if before and (before.object, before.object_version) == (item.key, item.version):
                continue
            content = lake.read(item.key)
            digest = hashlib.sha256(content).hexdigest()[:32]
            if before and before.version == digest and before.object == item.key:
                confirmed.append(replace(before, object_version=item.version))
                continue
            pieces.append(_piece(item, day, content, digest))
        return Plan(schema, pieces, state.position, confirmed)

    def _piece(item: Object, day: str, content: bytes, digest: str) -> Piece:
        return Piece(
            item.key,
            lambda: _batches(content, item.key, feed, schema),
            partition=day,
            object_version=item.version,
            digest=digest,
        )

    return load(warehouse_url, target, plan, run_id=run_id, progress=progress)
