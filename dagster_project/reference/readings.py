"""The hourly weather readings as the weather service gives them: typed, in order, page by page."""

from __future__ import annotations

import csv
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

INTEGERS = frozenset({"year", "month", "day", "hour"})
NUMBERS = frozenset(
    {"temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"}
)
#: How the file writes a value that was not measured.
MISSING = "NA"

Reading = dict[str, str | int | float | None]
#: What readings are ordered by, and unique in: the hour (UTC) and the airport.
Key = tuple[datetime, str]

# After every airport's code, so that a bound of (hour, _LAST) includes the whole hour.
_LAST = "\U0010ffff"


@dataclass(frozen=True, slots=True)
class Page:
    """Some readings in order, and the key to go on after; None on the last page."""

    readings: list[Reading]
    last: Key | None


@dataclass(frozen=True, slots=True)
class Readings:
    """All readings, ordered by (time_hour, origin)."""

    keys: list[Key]
    rows: list[Reading]

    @classmethod
    def read(cls, path: Path) -> Self:
        """The readings of the CSV file. Raises ValueError if a value is not of its type."""
        with path.open(newline="", encoding="utf-8") as file:
            rows = [_typed(row) for row in csv.DictReader(file)]
        keyed = sorted(
            ((_key(row), row) for row in rows),
            key=lambda pair: pair[0],
        )
        return cls([key for key, _ in keyed], [row for _, row in keyed])

    def page(
        self, since: datetime | None, until: datetime | None, after: Key | None, limit: int
    ) -> Page:
        """At most `limit` readings of the hours since to until, both included, after the key.

        A page begins after a key and not at an offset: readings that arrive between two requests
        make nothing come twice or go missing.
        """
        start = bisect_left(self.keys, (since, "")) if since else 0
        if after:
            start = max(start, bisect_right(self.keys, after))
        end = bisect_right(self.keys, (until, _LAST)) if until else len(self.keys)
        stop = min(start + limit, end)
        return Page(self.rows[start:stop], self.keys[stop - 1] if start < stop < end else None)


def _typed(row: dict[str, str]) -> Reading:
    return {name: _value(name, text) for name, text in row.items()}


def _value(name: str, text: str) -> str | int | float | None:
    if text == MISSING:
        return None
    if name in INTEGERS:
        return int(text)
    if name in NUMBERS:
        return float(text)
    return text


def _key(row: Reading) -> Key:
    return datetime.fromisoformat(str(row["time_hour"])).astimezone(UTC), str(row["origin"])
