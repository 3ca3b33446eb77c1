"""`mesh sql`: one question to the warehouse, the answer as CSV."""

from __future__ import annotations

import csv
import json
import sys
from typing import IO, Any

from dagster_project.settings import Settings
from dagster_project.warehouse.connection import connect


def _text(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (dict, list)) else value


def answer(url: str, statement: str, out: IO[str] = sys.stdout) -> None:
    """Write the statement's rows as CSV with one header line. The session can only read."""
    with connect(url, "mesh sql", options="-c default_transaction_read_only=on") as connection:
        cursor = connection.cursor()
        cursor.execute(statement)  # type: ignore[call-overload]
        if cursor.description is None:
            return
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([column.name for column in cursor.description])
        while rows := cursor.fetchmany(10_000):
            writer.writerows([_text(value) for value in row] for row in rows)


def run_query(settings: Settings, statement: str) -> None:
    from dagster_project.cli.services import query_url

    with query_url(settings) as url:
        answer(url, statement)
