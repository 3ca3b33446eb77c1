"""How far figures lie from what is usual of them: robust, by weekday, and from the past alone.

The usual value is the median of the same weekday where there are enough of it, or else of all days.
The scale is the larger of two: the median absolute deviation of all days from the usual value of
their weekday, and how far the outer quarter of the deviations to the same side lies. The second
keeps a figure quiet that is skewed, or has two modes; up to a quarter of strange days to a side
changes little of either. And what more than a tenth of the days came near to is usual, however
strange: a new level is told some days long, and then known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

#: Profiles that a new one is compared with: the newest before it, eight weeks of days.
WINDOW = 56
#: Of these a figure must have so many before it is judged,
WARM_UP = 21
#: and so many of one weekday before that is compared with itself alone.
SAME_WEEKDAY = 4
#: Robust z-score from which a figure is strange. A table has some hundred figures a day; with a
#: real year of them this leaves what a person would ask about.
STRANGE = 4.5
#: Scores say nothing more beyond.
MOST = 99.0
#: Of a normal distribution the standard deviation is so many median absolute deviations,
_MAD = 1.4826
#: and this quantile of the deviations to a side is so many standard deviations.
_OUTER, _OUTER_DEVIATIONS = 0.75, 1.1503
#: What more than this share of the days came near to, by this share of the deviation, is usual.
_KNOWN, _NEAR = 0.1, 0.8


@dataclass(frozen=True, slots=True)
class Deviations:
    """Of one day's figures; all arrays are one number a figure."""

    #: Robust z-scores; NaN where there is too little history, or no figure.
    scores: Floats
    usual: Floats
    #: Scales to either side.
    below: Floats
    above: Floats
    #: Whether it was compared with days of its weekday alone.
    by_weekday: NDArray[np.bool_]


def deviations(
    history: Floats, weekdays: NDArray[np.int64], now: Floats, weekday: int, floor: Floats
) -> Deviations:
    """Of `now` from `history`, days by figures, NaN where a day has not a figure.

    `floor` is each figure's least scale: what is never strange, whatever the history.
    """
    import numpy as np

    usual = quantile(history, 0.5)
    by_weekday = np.zeros(now.shape, dtype=bool)
    residuals = history - usual
    for day in np.unique(weekdays):
        of_day = weekdays == day
        enough = seen_of(history[of_day]) >= SAME_WEEKDAY
        centre = np.where(enough, quantile(history[of_day], 0.5), quantile(history, 0.5))
        residuals[of_day] = history[of_day] - centre
        if day == weekday:
            usual, by_weekday = centre, enough
    seen = seen_of(history)
    spread = np.fmax(_MAD * quantile(np.abs(residuals), 0.5), floor)
    below = np.fmax(_outer(-residuals), spread)
    above = np.fmax(_outer(residuals), spread)
    deviation = now - usual
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = np.clip(deviation / np.where(deviation < 0, below, above), -MOST, MOST)
        near = residuals * np.sign(deviation) >= _NEAR * np.abs(deviation)
    known = near.sum(axis=0) > _KNOWN * seen
    scores = np.where(known, np.clip(scores, -1, 1), scores)
    return Deviations(np.where(seen < WARM_UP, np.nan, scores), usual, below, above, by_weekday)


def seen_of(values: Floats) -> Any:
    """How many rows have each column."""
    import numpy as np

    return (~np.isnan(values)).sum(axis=0)


def quantile(values: Floats, share: float) -> Floats:
    """Of each column, over the rows that have it; there must be a row.

    NaNs sort last; numpy's own function goes through the columns one by one.
    """
    import numpy as np

    ordered = np.sort(values, axis=0)
    place = np.maximum(seen_of(values) - 1, 0) * share
    lower, upper = np.floor(place).astype(int), np.ceil(place).astype(int)
    columns = np.arange(values.shape[1])
    low, high = ordered[lower, columns], ordered[upper, columns]
    found: Floats = low + (high - low) * (place - lower)
    return found


def _outer(residuals: Floats) -> Floats:
    """The scale by the deviations to one side; 0 where there are too few."""
    import numpy as np

    side = np.where(residuals > 0, residuals, np.nan)
    scale = quantile(side, _OUTER) / _OUTER_DEVIATIONS
    found: Floats = np.where(seen_of(side) >= SAME_WEEKDAY, scale, 0.0)
    return found
