"""What a step that reads tables asks before: whether their critical checks say that they are sound.

A run's own checks stop its steps by themselves. This is about what other runs left.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import dagster as dg

from dagster_project.identity import Table
from dagster_project.quality.blocking import Block, blocks, reasons
from dagster_project.settings import warehouse_url
from dagster_project.transformation.groups import products_of
from dagster_project.transformation.project import read_manifest

#: Seconds between the looks of a step that waits for another run's checks, and how often it looks.
WAIT, WAITS = 5, 12


def require_sound(*tables: str) -> None:
    """In a step of one's own: go on only if these tables, as `schema.table`, are sound.

    Raises dagster.Failure if a critical check of one failed, or was not run since it changed. Where
    another run may be about to check it, the step is tried again some seconds later.
    """
    read = {Table.parse(name) for name in tables}
    because = unsound(warehouse_url(), read_manifest(), read)
    found = list(dict.fromkeys(block for of_table in because.values() for block in of_table))
    if not found:
        return
    failed = any(block.failed for block in found)
    mend = "Mend the data, then run" if failed else "Run"
    why = reasons(found)
    failure = dg.Failure(
        f"not made: critical checks of what it reads do not say that it is sound: {why}. {mend} "
        "these checks, and then this asset",
        metadata={"because": why},
        allow_retries=False,
    )
    if not failed:
        wait_for_checks(dg.OpExecutionContext.get(), failure)
    raise failure


def unsound(
    url: str,
    manifest: Mapping[str, Any],
    tables: Collection[Table],
    days: Collection[str] | None = None,
) -> dict[Table, list[Block]]:
    """Why each of these tables must not be used, for all of them.

    A critical check of it says so, or one that stands failed of a model of its domain that it was
    made of. What such a model was made of and changed since is not in it yet.
    """
    made_of = {table: products_of(manifest, table) for table in tables}
    found = blocks(url, set().union(*made_of.values()), days)
    return {
        table: [b for b in found if b.table == table or (b.failed and b.table in products)]
        for table, products in made_of.items()
    }


def wait_for_checks(
    context: dg.OpExecutionContext | dg.AssetExecutionContext, failure: dg.Failure
) -> None:
    """Have the step tried again, if another run is under way that may be about to check."""
    under_way = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])
    if context.instance.get_runs_count(under_way) > 1:
        context.log.info(f"it waits for another run's checks: {failure.description}")
        raise dg.RetryRequested(max_retries=WAITS, seconds_to_wait=WAIT) from failure
