"""What drift detection tells an analyst: alarms in words, as a table, and as a small picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from math import isnan

from dagster_project.quality.deviation import WARM_UP

#: Alarms in the table, and values in the picture.
TABLE_ROWS = 20
PICTURE_VALUES = 28
#: Columns that a description names beside the worst.
_NAMED = 5
_BARS = "▁▂▃▄▅▆▇█"
_QUANTILES = ("5 % quantile", "lower quartile", "median", "upper quartile", "95 % quantile")


class Kind(StrEnum):
    """What a figure is of."""

    ROWS = "rows"
    NULLS = "nulls"
    DISTINCT = "distinct"
    QUANTILE = "quantile"
    CATEGORY = "category"


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a column, or of the rows as a whole, that is followed over time."""

    kind: Kind
    #: Empty for the rows as a whole.
    column: str = ""
    #: The category; or the quantile's place among those kept.
    of: str | int = ""

    def __str__(self) -> str:
        match self.kind:
            case Kind.ROWS:
                return "rows"
            case Kind.NULLS:
                return "null share"
            case Kind.DISTINCT:
                return "distinct share"
            case Kind.QUANTILE:
                return _QUANTILES[int(self.of)]
            case Kind.CATEGORY:
                return f"share of '{self.of}'"

    @property
    def is_share(self) -> bool:
        return self.kind in (Kind.NULLS, Kind.DISTINCT, Kind.CATEGORY)

    def shown(self, value: float) -> str:
        """A value of it, for people."""
        if self.is_share:
            return f"{100 * value:.1f} %"
        if self.kind is Kind.ROWS or 100 <= abs(value) < 1e9:
            return f"{value:,.0f}"
        return f"{value:.3g}"

    def told(self, value: float) -> str:
        """A sentence of what it is, without an end."""
        match self.kind:
            case Kind.ROWS:
                return f"{self.shown(value)} rows came"
            case Kind.NULLS:
                return f"{self.column} is missing in {self.shown(value)} of the rows"
            case Kind.DISTINCT:
                return f"{self.shown(value)} of the values of {self.column} are different ones"
            case Kind.QUANTILE:
                return f"the {self} of {self.column} is {self.shown(value)}"
            case Kind.CATEGORY:
                return f"{self.column} is '{self.of}' in {self.shown(value)} of the values"


@dataclass(frozen=True, slots=True)
class Alarm:
    """A figure that is not as usual."""

    #: The partition, an ISO date; or the version.
    key: str
    day: date
    figure: Figure
    #: How many standard deviations from the usual, if it were normally distributed.
    score: float
    #: The newest values up to this one, the earliest first; NaN where there was none.
    values: Sequence[float]
    #: What is usual, and between what it raises no alarm.
    usual: float
    low: float
    high: float
    #: Whether that is of this weekday.
    by_weekday: bool
    #: A category that was never there before, or one that always was and is not.
    event: str = ""

    @property
    def column(self) -> str:
        return self.figure.column

    @property
    def what(self) -> str:
        return f"'{self.figure.of}' {self.event}" if self.event else str(self.figure)

    @property
    def observed(self) -> str:
        return self.figure.shown(self.values[-1])

    @property
    def band(self) -> str:
        return f"{self.figure.shown(self.low)} to {self.figure.shown(self.high)}"

    @property
    def weekday(self) -> str:
        return f" on a {self.day:%A}" if self.by_weekday else ""

    def __str__(self) -> str:
        told = f"{_date(self.day)}: {self.figure.told(self.values[-1])}"
        if self.event == "appeared":
            return f"{told}; it was never there before"
        be = "are" if self.figure.kind is Kind.ROWS else "is"
        usual = f"{self.figure.shown(self.usual)} {be} usual{self.weekday}"
        return f"{told}; {usual}, {self.band} {be} not strange (z = {self.score:.1f})"


@dataclass(frozen=True, slots=True)
class DriftReport:
    """What came of comparing partitions, or a version, with those before."""

    #: By date; worst first within one.
    alarms: Sequence[Alarm]
    #: The partitions that were judged, or the version.
    judged: Sequence[str]
    #: Those that have too little history to be judged.
    warming_up: Sequence[str]

    @property
    def passed(self) -> bool:
        return not self.alarms

    @property
    def worst(self) -> Sequence[Alarm]:
        # Of the equally strange those first that say most by themselves.
        kinds = [Kind.ROWS, Kind.CATEGORY, Kind.NULLS, Kind.QUANTILE, Kind.DISTINCT]
        return sorted(
            self.alarms,
            key=lambda alarm: (-round(abs(alarm.score), 1), kinds.index(alarm.figure.kind)),
        )

    @property
    def description(self) -> str:
        """What an analyst reads first."""
        parts = []
        if self.alarms:
            worst = self.worst[0]
            strange = {alarm.key for alarm in self.alarms}
            if len(self.judged) > 1:
                parts.append(f"{len(strange)} of {len(self.judged)} partitions are not as usual")
            parts.append(str(worst))
            there = {alarm.column or "rows" for alarm in self.alarms if alarm.key == worst.key}
            others = sorted(there - {worst.column or "rows"})
            if others:
                more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
                parts.append(f"also strange there: {', '.join(others[:_NAMED])}{more}")
        elif self.judged:
            parts.append("as usual")
        if self.warming_up:
            first, last = self.warming_up[0], self.warming_up[-1]
            which = first if first == last else f"{first} to {last}"
            parts.append(f"not judged yet: {which} (a figure needs {WARM_UP} before it)")
        return "; ".join(parts)

    @property
    def table(self) -> str:
        """The worst alarms, in Markdown; empty if there are none."""
        if not self.alarms:
            return ""
        head = ("when", "column", "what", "observed", "usual", "not strange", "z")
        rows = [
            (
                f"{alarm.day} {alarm.day:%a}",
                alarm.column or "(all rows)",
                alarm.what,
                alarm.observed,
                alarm.figure.shown(alarm.usual),
                alarm.band,
                f"{alarm.score:.1f}",
            )
            for alarm in self.worst[:TABLE_ROWS]
        ]
        lines = [head, ("---",) * len(head), *rows]
        return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)

    @property
    def picture(self) -> str:
        """The figure of the worst alarm over time, up to it; empty if there is none."""
        if not self.alarms:
            return ""
        alarm = self.worst[0]
        there = [value for value in alarm.values if not isnan(value)]
        # Of numbers that are never negative the bars begin at nothing.
        least = min(there) if alarm.figure.kind is Kind.QUANTILE else 0.0
        most = max(there)

        def bar(value: float) -> str:
            if isnan(value):
                return " "
            share = (value - least) / (most - least) if most > least else 0.0
            return _BARS[round(min(max(share, 0.0), 1.0) * (len(_BARS) - 1))]

        of = f"{alarm.column}: {alarm.what}" if alarm.column else alarm.what
        shown = alarm.figure.shown
        title = f"{of}, the last {len(alarm.values)} up to {alarm.day} ({alarm.observed})"
        bars = "".join(bar(value) for value in alarm.values)
        scale = f"{_BARS[0]} {shown(least)}, {_BARS[-1]} {shown(most)}"
        band = f"{bar(alarm.low)} to {bar(alarm.high)} ({alarm.band})"
        return f"{title}\n{bars}\n{scale}; not strange{alarm.weekday}: {band}"


def _date(day: date) -> str:
    return f"{day.day} {day:%b %Y}"


def _cell(text: str) -> str:
    """Text that cannot end a cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())
