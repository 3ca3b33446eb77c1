"""Arguments of an expectation that nothing can meet, that everything meets, or that make no sense.

Great Expectations takes them, and PostgreSQL has nothing against them without rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time
from string import Formatter
from typing import Any

from dagster_project.declarations import Location

#: The name of the warehouse among Great Expectations' data sources.
SOURCE = "warehouse"
#: Arguments that hold what is looked for.
_SETS = ("value_set", "value_pairs_set", "type_list", "column_set", "column_list")


def judge(stock: Any, columns: Mapping[str, str] | None) -> Iterator[tuple[Location, str]]:
    """What is wrong with the arguments of an expectation of Great Expectations, by their place.

    `columns` are the types of the table's columns by name; None where nobody declares them.
    """
    for name in _SETS:
        if name in stock.__fields__ and not getattr(stock, name):
            yield (name,), f"{name} is empty, so that nothing is looked for: name at least one"
    if {"min_value", "max_value"} <= stock.__fields__.keys():
        yield from _bounds(stock)
        yield from _zones(stock, (columns or {}).get(getattr(stock, "column", ""), ""))
    if "quantile_ranges" in stock.__fields__:
        # As it is written: what does not fit is taken for a parameter.
        yield from _quantiles(stock.configuration.kwargs["quantile_ranges"])
    query = getattr(stock, "unexpected_rows_query", "{batch}")
    if isinstance(query, str) and "batch" not in {name for _, name, *_ in Formatter().parse(query)}:
        yield (
            ("unexpected_rows_query",),
            (
                "it does not say {batch}, so that it would look at all rows, whichever partition "
                "is checked: write {batch} where the table's name stands, as in "
                "select id from {batch} where …"
            ),
        )
    source = getattr(stock, "comparison_data_source_name", SOURCE)
    if source != SOURCE:
        yield (
            ("comparison_data_source_name",),
            f"there is no data source {source}: write {SOURCE}, which is the only one",
        )


def _bounds(stock: Any) -> Iterator[tuple[Location, str]]:
    low, high = stock.min_value, stock.max_value
    if low is None and high is None and not hasattr(stock, "threshold"):
        yield (), "neither min_value nor max_value is given, so that it cannot fail: give one"
    try:
        upside_down, same = _instant(low) > _instant(high), _instant(low) == _instant(high)
    except TypeError:
        # One is not given, or they are not of a kind.
        return
    if upside_down:
        yield (
            ("min_value",),
            (
                f"min_value {low} is greater than max_value {high}, so that nothing is between "
                "them: exchange them"
            ),
        )
    strict = [name for name in ("strict_min", "strict_max") if getattr(stock, name, False)]
    if same and strict:
        yield (
            (strict[0],),
            (
                f"nothing is between {low} and {high} without being {low}: "
                f"take {' and '.join(strict)} away, or give two values"
            ),
        )


def _instant(value: Any) -> Any:
    """A value as what can be compared with others of its kind: a date is its first moment."""
    of_day = isinstance(value, date) and not isinstance(value, datetime)
    return datetime.combine(value, time()) if of_day else value


def _zones(stock: Any, kind: str) -> Iterator[tuple[Location, str]]:
    """Times of day with a zone for a column without, and the other way round."""
    if not kind.lower().startswith("timestamp"):
        return
    zoned = kind.lower().startswith("timestamptz") or "with time zone" in kind.lower()
    for name in ("min_value", "max_value"):
        value = getattr(stock, name)
        if not isinstance(value, datetime) or (value.tzinfo is not None) == zoned:
            continue
        written = value.isoformat()
        if zoned:
            message = (
                f"{written} names no zone, but the column {stock.column} is {kind}: "
                f"write {written}+00:00 if UTC is meant"
            )
        else:
            message = (
                f"{written} names a zone, but the column {stock.column} is {kind}, which has none: "
                f"write {value.replace(tzinfo=None).isoformat()}"
            )
        yield (name,), message


def _quantiles(ranges: Any) -> Iterator[tuple[Location, str]]:
    def listed(name: str) -> Sequence[Any] | None:
        value = ranges.get(name) if isinstance(ranges, Mapping) else None
        return value if isinstance(value, list) and value else None

    at: Location = ("quantile_ranges",)
    quantiles, values = listed("quantiles"), listed("value_ranges")
    if quantiles is None or values is None:
        yield (
            at,
            (
                'it has to name quantiles and their ranges: {"quantiles": [0.5], '
                '"value_ranges": [[1, 2]]}'
            ),
        )
        return
    if len(quantiles) != len(values):
        yield (
            at,
            (
                f"there are {len(quantiles)} quantiles, but {len(values)} value_ranges: give each "
                "quantile its own range, in the same order"
            ),
        )
    for place, quantile in enumerate(quantiles):
        if not isinstance(quantile, (int, float)) or not 0 <= quantile <= 1:
            yield (*at, "quantiles", place), f"{quantile} is no quantile: write one from 0 to 1"
    for place, pair in enumerate(values):
        where: Location = (*at, "value_ranges", place)
        bounds = [each for each in pair if each is not None] if isinstance(pair, list) else []
        if not bounds or len(pair) != 2 or not all(isinstance(b, (int, float)) for b in bounds):
            yield where, f"{pair} is no range: write [least, most], one of which can be null"
        elif bounds[0] > bounds[-1]:
            yield where, f"{bounds[0]} is greater than {bounds[-1]}: exchange them"
