"""What a raw table's asset shows in the UI."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import dagster as dg

from dagster_project.identity import Table
from dagster_project.ingestion.synced import megabytes, rates
from dagster_project.lake.store import Lake
from dagster_project.orchestration.conditions import NEVER_ALONE
from dagster_project.quality.own_checks import (
    DECLARATION,
    DECLARATION_ASKS,
    REJECTS,
    rejects_asks,
)
from dagster_project.warehouse.ledger import Load
from dagster_project.warehouse.rejects import RejectsShare
from dagster_project.warehouse.target import Column

#: Reasons that the metadata lists at most.
_SHOWN = 20


def table_metadata(name: str, columns: Iterable[Column]) -> dict[str, Any]:
    """The name of a table, stream or feed where it lies, and its columns."""
    return {
        "dagster/table_name": name,
        "dagster/column_schema": dg.TableSchema(
            columns=[
                dg.TableColumn(column.name, column.type, column.description or None)
                for column in columns
            ]
        ),
    }


def load_step(table: Table) -> str:
    """The name of the step that loads a table."""
    return f"load_{table.schema}_{table.name}"


def declaration_check(table: Table) -> dg.AssetCheckSpec:
    """The check that what came was what is declared; it reports and stops nothing."""
    return dg.AssetCheckSpec(
        name=DECLARATION,
        asset=dg.AssetKey(list(table.asset_key)),
        description=DECLARATION_ASKS,
        automation_condition=NEVER_ALONE,
    )


def declaration_result(table: Table, done: Load, drift: Mapping[str, str]) -> dg.AssetCheckResult:
    """The verdict after a load; `drift` says in words what was other than declared."""
    found = dict(drift)
    if done.rejected:
        found["rows rejected"] = f"{done.rejected:,}, see {table.rejects}"
    return dg.AssetCheckResult(
        check_name=DECLARATION,
        asset_key=dg.AssetKey(list(table.asset_key)),
        passed=not found,
        severity=dg.AssetCheckSeverity.WARN,
        metadata=found,
    )


def rejects_check(table: Table) -> dg.AssetCheckSpec:
    """The check that no row of a raw table lies in its rejects; it reports and stops nothing.

    Its result is to be taken after rows were quarantined.
    """
    return dg.AssetCheckSpec(
        name=REJECTS,
        asset=dg.AssetKey(list(table.asset_key)),
        description=rejects_asks(table),
    )


def rejects_result(table: Table, share: RejectsShare) -> dg.AssetCheckResult:
    """The verdict on what `dagster_project.warehouse.rejects.rejects_share` found."""
    metadata: dict[str, Any] = {
        "rows": dg.MetadataValue.int(share.rows),
        "rows rejected": dg.MetadataValue.int(share.rejected),
        "rejected %": dg.MetadataValue.float(round(share.percent, 3)),
    }
    if share.rejected:
        metadata["reasons"] = dg.MetadataValue.md(_reasons(share.reasons))
        metadata["what to do"] = dg.MetadataValue.md(
            f"`mesh rejects show {table}` lists them; once the cause is mended, "
            f"`mesh rejects replay {table}` loads them again"
        )
    return dg.AssetCheckResult(
        check_name=REJECTS,
        asset_key=dg.AssetKey(list(table.asset_key)),
        passed=not share.rejected,
        severity=dg.AssetCheckSeverity.WARN,
        metadata=metadata,
    )


def _reasons(reasons: Mapping[str, int]) -> str:
    """Rows by reason, as a table of Markdown."""
    lines = ["| rows | reason |", "| ---: | :--- |"]
    for reason, count in list(reasons.items())[:_SHOWN]:
        shown = " ".join(reason.split()).replace("|", "\\|")
        lines.append(f"| {count:,} | {shown} |")
    if more := sum(list(reasons.values())[_SHOWN:]):
        lines.append(f"| {more:,} | for {len(reasons) - _SHOWN} other reasons |")
    return "\n".join(lines)


def load_metadata(table: Table, done: Load) -> dict[str, Any]:
    """The counts of a load; all are rows."""
    metadata: dict[str, Any] = {
        "dagster/row_count": done.rows,
        "received": done.received,
        "new": done.new,
        "changed": done.changed,
        "duplicates": done.duplicates,
        "removed": done.removed,
        "rejected": done.rejected,
        "objects": done.objects,
    }
    if done.new_columns:
        metadata["new columns"] = ", ".join(done.new_columns)
    if done.widened:
        metadata["widened columns"] = ", ".join(done.widened)
    if done.rejected:
        metadata["rejects"] = f"{table.rejects} holds them: `mesh rejects show {table}`"
    return metadata


class LoadProgress:
    """Says how far a load is, once it takes longer than some seconds.

    Bytes are of the objects that were read for it from the lake, a little ahead of the rows.
    """

    #: Seconds between two words of it.
    EVERY = 5.0

    def __init__(self, say: Callable[[str], None], lake: Lake) -> None:
        self._say = say
        self._lake, self._before = lake, lake.bytes_read
        self._began = self._told = time.monotonic()

    def __call__(self, rows: int) -> None:
        now = time.monotonic()
        if now - self._told >= self.EVERY:
            self._told = now
            size = self._lake.bytes_read - self._before
            so_far = rates(rows, size, now - self._began)
            self._say(f"{rows:,} rows so far, {megabytes(size)} ({so_far})")
