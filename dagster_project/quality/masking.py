"""Results of a validation without the values of columns that hold personal data."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from dagster_project.domain import domain_names, read_domain
from dagster_project.identity import Table
from dagster_project.quality.outcome import MASK
from dagster_project.quality.suites import Suite

#: What a result tells of values. What is counted stays.
_VALUES = {
    "observed_value",
    "partial_unexpected_list",
    "partial_missing_list",
    "partial_unexpected_counts",
    "details",
}
_NAMES = ("column", "column_A", "column_B")


#: What a query reads: the word after these.
_RELATION = re.compile(r"\b(?:from|join)\s+(?:(?:lateral|only)\b\s*)*(\S+)", re.IGNORECASE)
#: A table with its schema, or a column with what it is of.
_QUALIFIED = re.compile(r"\b(\w+)\s*\.\s*(\w+)")


def personal_columns(suite: Suite) -> list[str]:
    """The columns of personal data of a suite's table, and of the tables that its queries name."""
    queries = [str(each.kwargs.get("unexpected_rows_query", "")) for each in suite.expectations]
    named = _QUALIFIED.findall("\n".join(queries).replace('"', "").lower())
    tables = {suite.table, *(Table(schema, name) for schema, name in named)}
    # A mistake in the declaration of a domain that is not named is not this suite's.
    domains = {table.domain for table in tables} & set(domain_names())
    declared = {domain: read_domain(domain).personal_data for domain in domains}
    found = [declared.get(table.domain, {}).get(str(table), ()) for table in tables]
    return sorted({column for columns in found for column in columns})


def may_show(query: str, personal: Collection[str]) -> bool:
    """Whether no value that a query selects can be one of these columns, under whatever name.

    `personal` are those of all tables that it reads. One that reads others than the table itself
    may select a whole row by any name.
    """
    others = any(not each.startswith(("{batch}", "(")) for each in _RELATION.findall(query))
    others = others or re.search(r"\{batch\}\s*,", query) is not None
    named = any(re.search(rf"\b{re.escape(name)}\b", query, re.IGNORECASE) for name in personal)
    # All columns; or a whole row, by the name of what it is of.
    whole = re.search(r"\*|\brow\b|\bto_json|\bbatch\b(?!\})", query, re.IGNORECASE)
    return not personal or not (named or whole or others)


def without_values(error: str) -> str:
    """An error's text without what it quotes, which can be a value of a row."""
    return re.sub(r"\"[^\"]*\"|'[^']*'", MASK, error.partition("\n")[0])


def masked_result(result: Mapping[str, Any], personal: Collection[str]) -> dict[str, Any]:
    """A suite's result, as JSON, in which no value of a personal column stands."""
    if not personal:
        return dict(result)
    return {**result, "results": [_masked(single, set(personal)) for single in result["results"]]}


def _masked(result: Mapping[str, Any], personal: set[str]) -> dict[str, Any]:
    kwargs = result["expectation_config"]["kwargs"]
    about = {kwargs.get(name) for name in _NAMES} | set(kwargs.get("column_list") or ())
    found = {name: _without(value, personal) for name, value in (result["result"] or {}).items()}
    result = {**result, "exception_info": _error(result.get("exception_info") or {})}
    if not may_show(str(kwargs.get("unexpected_rows_query", "")), personal):
        found = {name: value for name, value in found.items() if name != "unexpected_rows"}
    if not about & personal:
        return {**result, "result": found}
    hidden = dict.fromkeys(_VALUES & found.keys(), MASK)
    return {**result, "result": found | hidden}


def _error(info: Mapping[str, Any]) -> dict[str, Any]:
    """What was raised, in Great Expectations' shape for one error, without what it quotes."""
    shapes = [info] if "raised_exception" in info else list(info.values())
    for shape in shapes:
        if shape.get("raised_exception"):
            said = without_values(str(shape.get("exception_message")))
            return {"raised_exception": True, "exception_message": said, "exception_traceback": ""}
    return {}


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
