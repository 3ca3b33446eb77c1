"""What a step that reads tables asks before: whether their critical checks say that they are sound.

A run's own checks stop its steps by themselves. This is about what other runs left.
"""

from __future__ import annotations

import dagster as dg

from dagster_project.identity import Table
from dagster_project.quality.blocking import blocks, reasons
from dagster_project.settings import warehouse_url

#: Seconds between the looks of a step that waits for another run's checks, and how often it looks.
WAIT, WAITS = 5, 12


def require_sound(*tables: str) -> None:
    """In a step of one's own: go on only if these tables, as `schema.table`, are sound.

    Raises dagster.Failure if a critical check of one failed, or was not run since it changed. Where
    another run may be about to check it, the step is tried again some seconds later.
    """
    found = blocks(warehouse_url(), [Table.parse(name) for name in tables])
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


def wait_for_checks(
    context: dg.OpExecutionContext | dg.AssetExecutionContext, failure: dg.Failure
) -> None:
    """Have the step tried again, if another run is under way that may be about to check."""
    under_way = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])
    if context.instance.get_runs_count(under_way) > 1:
        context.log.info(f"it waits for another run's checks: {failure.description}")
        raise dg.RetryRequested(max_retries=WAITS, seconds_to_wait=WAIT) from failure
