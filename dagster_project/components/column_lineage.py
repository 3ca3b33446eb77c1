"""Which columns a table's columns are made of, as the Dagster UI shows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import dagster as dg

from dagster_project.catalog.kept_lineage import kept_lineage
from dagster_project.identity import Table
from dagster_project.settings import get_settings

_NAME = "dagster/column_lineage"


def of_model(table: Table) -> dict[str, Any]:
    """The metadata of a dbt model's table; none as long as nobody has read the project's SQL.

    Reading it takes seconds, so no run does: who tells the catalog of it has.
    """
    made_of = kept_lineage(get_settings()).get(table, {})
    return _metadata(
        {
            column: [(read.asset_key, theirs) for read, theirs in sorted(origins)]
            for column, origins in made_of.items()
        }
    )


def of_load(place: tuple[str, ...], names: Mapping[str, str]) -> dict[str, Any]:
    """The metadata of a raw table: `names` of its columns, by those in the asset at `place`."""
    return _metadata({here: [(place, there)] for there, here in names.items()})


def _metadata(made_of: Mapping[str, Iterable[tuple[tuple[str, ...], str]]]) -> dict[str, Any]:
    deps = {
        column: [dg.TableColumnDep(dg.AssetKey(list(key)), theirs) for key, theirs in origins]
        for column, origins in made_of.items()
    }
    return {_NAME: dg.TableColumnLineage(deps)} if deps else {}
