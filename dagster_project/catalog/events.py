"""What runs did, as plain records: read from Dagster's event log, told to DataHub.

Times are seconds since the epoch, in UTC. A partition is a key such as `2013-06-01`, a range such
as `2013-06-01 to 2013-06-07`, or None. Nothing in a record is a value of a column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, TypeAlias

#: Characters of a text; names and partitions have fewer.
_LONGEST = 1000


class Status(StrEnum):
    """Where a run is."""

    STARTED = "started"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


@dataclass(frozen=True, slots=True)
class RunTold:
    """A run that began or ended."""

    run_id: str
    domain: str
    job: str
    status: Status
    at: float
    #: When it began, of a run that has ended; None if it never did, or nobody knows.
    began: float | None
    partition: str | None
    #: The run that this one executes again.
    retries: str | None
    #: The schedule, sensor or other automation that asked for it, or the command of ours that a
    #: person did it with, such as `mesh run`; None if a person asked in Dagster's UI.
    started_by: str | None


@dataclass(frozen=True, slots=True)
class AssetTold:
    """What a run did of one asset, told when the run has ended, in whatever way."""

    run_id: str
    domain: str
    asset_key: tuple[str, ...]
    status: Status
    at: float
    #: When the asset's step began; None if it never did, or nobody knows.
    began: float | None
    partition: str | None


@dataclass(frozen=True, slots=True)
class Updated:
    """An asset that was materialised."""

    #: None if no run of Dagster did it.
    run_id: str | None
    domain: str
    asset_key: tuple[str, ...]
    at: float
    partition: str | None
    #: Of the whole table as it is then, not of the partition.
    rows: int | None
    columns: int | None
    #: Rows of the load: received, new, changed, duplicates, removed, rejected. Empty if not known.
    counts: Mapping[str, int]
    #: Whether the run found nothing to do.
    up_to_date: bool


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict of an asset check."""

    #: None if no run of Dagster judged.
    run_id: str | None
    domain: str
    asset_key: tuple[str, ...]
    check: str
    at: float
    partition: str | None
    passed: bool
    #: Whether it could be judged at all; if not, `passed` says nothing.
    evaluated: bool
    #: Rows that were looked at, and those of them that are not as expected.
    rows: int | None
    unexpected: int | None
    #: How much a failure matters: `critical`, or Dagster's ERROR, stops what is downstream.
    severity: str


Told: TypeAlias = RunTold | AssetTold | Updated | Judged


def fit(told: Told) -> Told:
    """The record with texts that can be told: of Unicode, without NUL, and not endless."""
    changed: dict[str, Any] = {}
    for each in fields(told):
        value = getattr(told, each.name)
        if isinstance(value, str) and not isinstance(value, Status):
            now: Any = _fit(value)
        elif isinstance(value, tuple):
            now = tuple(map(_fit, value))
        else:
            continue
        if now != value:
            changed[each.name] = now
    return replace(told, **changed) if changed else told


def _fit(text: str) -> str:
    if len(text) <= _LONGEST and text.isascii() and "\x00" not in text:
        return text
    sound = text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
    return sound if len(sound) <= _LONGEST else f"{sound[: _LONGEST - 1]}…"
