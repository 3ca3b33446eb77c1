"""What a raw table's asset shows in the UI."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import dagster as dg

from dagster_project.identity import Table
from dagster_project.warehouse.ledger import Load
from dagster_project.warehouse.loader import Column


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
    if done.rejected:
        metadata["rejects"] = f"{table.rejects} holds the rejected rows with the reason"
    return metadata
