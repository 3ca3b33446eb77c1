"""Results of a validation without the values of columns that hold personal data."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from dagster_project.quality.outcome import MASK

#: What a result tells of values. What is counted stays.
_VALUES = {
    "observed_value",
    "partial_unexpected_list",
    "partial_missing_list",
    "partial_unexpected_counts",
    "details",
}
_NAMES = ("column", "column_A", "column_B")


def masked_result(result: Mapping[str, Any], personal: Collection[str]) -> dict[str, Any]:
    """A suite's result, as JSON, in which no value of a personal column stands."""
    if not personal:
        return dict(result)
    return {**result, "results": [_masked(single, set(personal)) for single in result["results"]]}


def _masked(result: Mapping[str, Any], personal: set[str]) -> dict[str, Any]:
    kwargs = result["expectation_config"]["kwargs"]
    about = {kwargs.get(name) for name in _NAMES} | set(kwargs.get("column_list") or ())
    found = {name: _without(value, personal) for name, value in (result["result"] or {}).items()}
    if not about & personal:
        return {**result, "result": found}
    hidden = dict.fromkeys(_VALUES & found.keys(), MASK)
    return {**result, "result": found | hidden, "exception_info": {}}


def _without(value: Any, personal: set[str]) -> Any:
    """Rows, which are by column."""
    if isinstance(value, list):
        return [_without(item, personal) for item in value]
    if isinstance(value, Mapping):
        return {
            name: MASK if name in personal else _without(item, personal)
            for name, item in value.items()
        }
    return value
