"""The landing zone of a feed, and the table that it is loaded into, as tests see them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psycopg

from dagster_project.ingestion.feed import FeedDeclaration
from dagster_project.ingestion.landing import FeedLoad, days_waiting, landed, load_feed, target_of
from dagster_project.lake.store import Lake
from dagster_project.warehouse.ledger import Load, read_partitions

DECLARED: dict[str, Any] = {
    "name": "trips",
    "source": "the tills",
    "description": "A trip.",
    "pattern": r"trips_(?P<day>\d{4}-\d{2}-\d{2})(-\w+)?\.(csv|csv\.gz|parquet)",
    "partition_column": "trip_date",
    "first_day": "2026-01-01",
    "last_day": "2026-01-31",
    "null_values": ["NA"],
    "columns": {
        "id": {"type": "bigint", "description": "Number of the trip."},
        "delay": {"type": "double precision", "description": "Minutes."},
        "code": {"type": "text", "description": "The operator."},
    },
}
HEADER = "id,delay,code\n"
DAY = "2026-01-01"


def feed_of(**declared: Any) -> FeedDeclaration:
    """The feed `trips`, but for what is said."""
    return FeedDeclaration.model_validate(DECLARED | declared)


def columns_of(**types: str) -> dict[str, Any]:
    """Columns of these types, as a feed declares them."""
    return {name: {"type": kind, "description": "x"} for name, kind in types.items()}


class Zone:
    """The landing zone of `city/trips`, and its table."""

    def __init__(self, lake: Lake, folder: Path, url: str) -> None:
        self.lake, self.url = lake, url
        self.prefix = "landing/city/trips"
        self.folder = folder / self.prefix
        self.feed = feed_of()

    def put(self, content: bytes, name: str = f"trips_{DAY}.csv", written: int = 0) -> None:
        """Drop a file; `written` are seconds since the epoch, of a lake on disk."""
        if self.lake.url.startswith("s3:"):
            self.lake.replace(f"{self.prefix}/{name}", content)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        if written:
            os.utime(path, (written, written))

    def drop(self, day: str, rows: str, header: str = HEADER, name: str = "") -> None:
        self.put((header + rows).encode(), name or f"trips_{day}.csv")

    def waiting(self) -> list[str]:
        table = target_of("city", self.feed).table
        loaded = read_partitions(self.url, table, self.feed.partition_column)
        return sorted(days_waiting(landed("city", self.feed, self.lake), loaded))

    def load_feed(self, *days: str) -> FeedLoad:
        return load_feed(
            *("city", self.feed, days or [DAY]), lake=self.lake, warehouse_url=self.url, run_id="r"
        )

    def load(self, *days: str) -> Load:
        return self.load_feed(*days).load

    def rows(self, columns: str = "trip_date::text, id, delay, code", table: str = "") -> list[Any]:
        order = "" if table else "ORDER BY trip_date, id"
        with psycopg.connect(self.url) as connection:
            return connection.execute(
                f"SELECT {columns} FROM city_raw.{table or 'trips'} {order}"
            ).fetchall()

    def ask(self, statement: str) -> list[Any]:
        with psycopg.connect(self.url) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def rejects(self) -> list[Any]:
        """The reason and the record of every rejected row."""
        return sorted(self.rows("reason, record", "trips__rejects"), key=str)
