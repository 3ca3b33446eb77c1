"""Drift: the newest profiles of a table, compared with those before them.

A partition is judged by the partitions before it, a whole table by the versions before it, so that
a backfill of a year finds what a run a day would have found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dagster_project.identity import Table
from dagster_project.quality.deviation import (
    MOST,
    STRANGE,
    WARM_UP,
    WINDOW,
    Deviations,
    deviations,
    quantile,
)
from dagster_project.quality.drift_report import (
    PICTURE_VALUES,
    Alarm,
    DriftReport,
    Figure,
    Kind,
)
from dagster_project.quality.outcome import Partitions
from dagster_project.quality.profiles import ColumnProfile, Profiles, Slice
from dagster_project.quality.profiling import MOST_FREQUENT, QUANTILES, keep_profiles
from dagster_project.warehouse.connection import connect

if TYPE_CHECKING:
    import numpy as np

    from dagster_project.quality.deviation import Floats

#: Columns whose history is read at once.
_TOGETHER = 200
#: Least scales: of the rows' number relatively, of shares as angles (the arcsine of the root, whose
#: sampling error is the same everywhere; 0.02 from none is 0.04 %, from a half 2 %), of quantiles
#: by the distance from the 5 % to the 95 % quantile.
_ROWS_FLOOR, _SHARE_FLOOR, _QUANTILE_FLOOR = 0.05, 0.02, 0.05
#: The outer quantiles jump where values have two modes, hours around midnight say: they must go
#: beyond where any value usually is.
_OUTER_FLOOR = 0.25
#: A category has vanished if this share of the days had it, and so many rows of it would be due.
_ALWAYS, _DUE = 0.95, 15


def examine(
    url: str,
    table: Table,
    partitions: Partitions | None,
    version: str,
    personal: Collection[str] = (),
    exclude: Collection[str] = (),
) -> DriftReport:
    """Profile the partitions, or the table's version, and compare them with those before.

    Of columns in `personal` no value is kept or told, only counts and shares; those in `exclude`
    are left out. Raises WarehouseError if the table is not there.
    """
    keep_profiles(url, table, partitions, version, personal, exclude)
    keys = set(partitions.keys) if partitions else {version}
    with connect(url, f"reading the profiles of {table}") as connection:
        profiles = Profiles(connection, table, are_partitions=partitions is not None)
        slices = profiles.slices()
        places = [place for place, slice_ in enumerate(slices) if slice_.key in keys]
        first = max(places[0] - WINDOW, 0)
        window = slices[first : places[-1] + 1]
        judged = [place - first for place in places if place >= WARM_UP]
        alarms: list[Alarm] = []
        if judged:
            names = profiles.columns([window[place].key for place in judged])
            for begin in range(0, max(len(names), 1), _TOGETHER):
                series = _read(profiles, window, names[begin : begin + _TOGETHER], begin == 0)
                for place in judged:
                    alarms += _alarms(series, place)
    return DriftReport(
        alarms=sorted(alarms, key=lambda alarm: (alarm.day, -abs(alarm.score))),
        judged=[window[place].key for place in judged],
        warming_up=[slices[place].key for place in places if place < WARM_UP],
    )


@dataclass(frozen=True, slots=True)
class _Series:
    """Figures over time: all arrays are slices by figures, NaN where a slice has not a figure."""

    slices: Sequence[Slice]
    figures: Sequence[Figure]
    #: As they are told.
    values: Floats
    #: As they are compared.
    scaled: Floats
    #: Values, or rows, that a figure is of.
    numbers: Floats
    #: From the 5 % to the 95 % quantile of a quantile's column.
    spreads: Floats
    weekdays: np.ndarray[Any, np.dtype[np.int64]]
    #: The first slice that ever had a category.
    first_seen: Mapping[tuple[str, str], str]


def _read(
    profiles: Profiles, slices: Sequence[Slice], columns: Sequence[str], with_rows: bool
) -> _Series:
    """The figures of these columns, and of the rows as a whole."""
    import numpy as np

    places = {slice_.key: place for place, slice_ in enumerate(slices)}
    lines = list(profiles.read(list(places), columns))
    newest: dict[str, tuple[int, str]] = {}
    # By column, with the first place that has it.
    categories: dict[str, dict[str, int]] = {}
    for key, name, found in lines:
        newest[name] = max(newest.get(name, (-1, "")), (places[key], found.type))
        firsts = categories.setdefault(name, {})
        for category in found.categories or ():
            firsts[category] = min(firsts.get(category, places[key]), places[key])
    # What was there before any slice that is judged did not appear in one.
    late = [
        name for name, firsts in categories.items() if max(firsts.values(), default=0) >= WARM_UP
    ]
    cells: list[tuple[int, Figure, float, float, float]] = []
    for key, name, found in lines:
        # Figures of another type than the column has now are not comparable.
        if found.type == newest[name][1]:
            place = places[key]
            rows = slices[place].rows
            cells += [(place, *cell) for cell in _figures(name, found, rows, categories[name])]
    if with_rows:
        cells += [
            (place, Figure(Kind.ROWS), float(slice_.rows), float(slice_.rows), 0.0)
            for place, slice_ in enumerate(slices)
        ]
    figures = {figure: None for _, figure, *_ in cells}
    index = {figure: number for number, figure in enumerate(figures)}
    values, numbers, spreads = np.full((3, len(slices), len(index)), np.nan)
    for place, figure, *cell in cells:
        where = place, index[figure]
        values[where], numbers[where], spreads[where] = cell
    return _Series(
        slices,
        list(index),
        values,
        _scaled(list(index), values),
        numbers,
        spreads,
        np.array([slice_.day.weekday() for slice_ in slices]),
        profiles.first_seen(late) if late else {},
    )


def _figures(
    name: str, found: ColumnProfile, rows: int, categories: Collection[str]
) -> Iterator[tuple[Figure, float, float, float]]:
    """The figures of a column in a slice: value, what number it is of, and the column's spread."""
    yield Figure(Kind.NULLS, name), found.nulls / rows, rows, 0.0
    number = found.looked_at
    if not number or found.distinct is None:
        return
    if found.categories is not None:
        for category in categories:
            # Of two truths one tells all.
            if found.type != "bool" or category != "false":
                share = min(found.categories.get(category, 0) / number, 1.0)
                yield Figure(Kind.CATEGORY, name, category), share, number, 0.0
    else:
        yield Figure(Kind.DISTINCT, name), found.distinct / number, number, 0.0
    # A number that is the same in all rows, say the month, is about the slice and not its rows.
    if found.quantiles and found.distinct > 1:
        spread = found.quantiles[-1] - found.quantiles[0]
        for place, value in enumerate(found.quantiles):
            yield Figure(Kind.QUANTILE, name, place), value, number, spread


def _of_kind(figures: Sequence[Figure], *kinds: Kind) -> Any:
    import numpy as np

    return np.array([figure.kind in kinds for figure in figures], dtype=bool)


def _scaled(figures: Sequence[Figure], values: Floats) -> Floats:
    """Values as they are compared: the logarithm of rows, the angle of shares."""
    import numpy as np

    scaled = np.where(np.isfinite(values), values, np.nan)
    rows = _of_kind(figures, Kind.ROWS)
    shares = _of_kind(figures, Kind.NULLS, Kind.DISTINCT, Kind.CATEGORY)
    scaled[:, rows] = np.log(np.maximum(scaled[:, rows], 0.5))
    scaled[:, shares] = np.arcsin(np.sqrt(np.clip(scaled[:, shares], 0, 1)))
    return scaled


def _unscaled(figure: Figure, value: float) -> float:
    import math

    if figure.kind is Kind.ROWS:
        return math.exp(value)
    if figure.is_share:
        return math.sin(min(max(value, 0.0), math.pi / 2)) ** 2
    return value


def _floor(series: _Series, before: slice, place: int) -> Floats:
    """Each figure's least scale; also what sampling alone makes of it."""
    import numpy as np

    centre = quantile(series.scaled[before], 0.5)
    error = 1 / np.sqrt(np.maximum(np.nan_to_num(series.numbers[place]), 1))
    # Where most values are the same on most days, the days on which they are not have the spread.
    spread = quantile(series.spreads[before], 0.9)
    outer = np.array([f.of in (0, len(QUANTILES) - 1) for f in series.figures], dtype=bool)
    quantiles = np.maximum(np.where(outer, _OUTER_FLOOR, _QUANTILE_FLOOR), error) * spread
    quantiles = np.fmax(np.fmax(quantiles, _ROWS_FLOOR * np.abs(centre)), 1e-9)
    shares = np.maximum(_SHARE_FLOOR, error / 2)
    rows = np.fmax(_ROWS_FLOOR, np.exp(-np.clip(centre, 0, 100) / 2))
    found: Floats = np.select(
        [_of_kind(series.figures, Kind.QUANTILE), _of_kind(series.figures, Kind.ROWS)],
        [quantiles, rows],
        shares,
    )
    return found


def _alarms(series: _Series, place: int) -> Iterator[Alarm]:
    """Of a slice: of each column its strangest figure, and categories that appeared or vanished."""
    import numpy as np

    before = slice(max(place - WINDOW, 0), place)
    found = deviations(
        series.scaled[before],
        series.weekdays[before],
        series.scaled[place],
        int(series.weekdays[place]),
        _floor(series, before, place),
    )
    worst: dict[str, int] = {}
    events: dict[int, str] = {}
    for number, figure in enumerate(series.figures):
        event = _event(series, before, place, number)
        if event:
            events[number] = event
        elif abs(found.scores[number]) >= STRANGE:
            other = worst.get(figure.column)
            if other is None or abs(found.scores[number]) > abs(found.scores[other]):
                worst[figure.column] = number
    for number in (*worst.values(), *events):
        score = float(np.nan_to_num(found.scores[number]))
        if number in events:
            side = -1 if events[number] == "vanished" else 1
            score = side * min(max(abs(score), STRANGE), MOST)
        yield _alarm(series, place, number, found, score, events.get(number, ""))


def _event(series: _Series, before: slice, place: int, number: int) -> str:
    """Whether a category appeared, which was never there before, or vanished."""
    import numpy as np

    figure = series.figures[number]
    if figure.kind is not Kind.CATEGORY:
        return ""
    history = series.values[before, number]
    there = history[~np.isnan(history)]
    now = series.values[place, number]
    if len(there) < WARM_UP or np.isnan(now):
        return ""
    if now > 0:
        first = series.first_seen.get((figure.column, str(figure.of)))
        event = "appeared" if first == series.slices[place].key else ""
    else:
        due = float(np.median(there)) * float(series.numbers[place, number])
        event = "vanished" if np.mean(there > 0) >= _ALWAYS and due >= _DUE else ""
    return event if event and _is_complete(series, before, place, figure.column) else ""


def _is_complete(series: _Series, before: slice, place: int, column: str) -> bool:
    """Whether all values of a column are among its categories, then and now."""
    import numpy as np

    of_column = [
        number
        for number, figure in enumerate(series.figures)
        if figure.kind is Kind.CATEGORY and figure.column == column
    ]
    shares = series.values[before.start : place + 1, of_column]
    most = int((np.nan_to_num(shares) > 0).sum(axis=1).max())
    return most < MOST_FREQUENT


def _alarm(
    series: _Series, place: int, number: int, found: Deviations, score: float, event: str
) -> Alarm:
    figure = series.figures[number]
    usual = float(found.usual[number])
    values = series.values[max(place + 1 - PICTURE_VALUES, 0) : place + 1, number]
    return Alarm(
        key=series.slices[place].key,
        day=series.slices[place].day,
        figure=figure,
        score=score,
        values=[float(value) for value in values],
        usual=_unscaled(figure, usual),
        low=_unscaled(figure, usual - STRANGE * float(found.below[number])),
        high=_unscaled(figure, usual + STRANGE * float(found.above[number])),
        by_weekday=bool(found.by_weekday[number]),
        event=event,
    )
