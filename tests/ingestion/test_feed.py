"""What a feed can declare, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from dagster_project.ingestion.feed import read_feed
from tests.ingestion.zone import feed_of


def column(name: str) -> dict[str, Any]:
    """The change to a feed that has this column."""
    return {"columns": {name: {"type": "text", "description": "x"}}, "primary_key": []}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pattern": r"trips\.csv"}, "must have a group"),
        ({"pattern": "("}, "not a regular expression"),
        ({"columns": {"id": {"type": "serial", "description": "x"}}}, "serial is not of bigint"),
        ({"name": "Trips"}, "should match pattern"),
        ({"encoding": "utf-9"}, "Python knows no text encoding utf-9"),
        ({"encoding": "hex"}, "Python knows no text encoding hex"),
        ({"delimiter": ""}, "must be one ASCII character"),
        ({"delimiter": '"'}, "must be one ASCII character"),
        ({"delimiter": "\n"}, "must be one ASCII character"),
        ({"delimiter": "||"}, "must be one ASCII character"),
        ({"primary_key": ["id", "day"]}, "no column is declared as day"),
        ({"primary_key": ["id", "id"]}, "names a column twice"),
        (column("ctid"), "'ctid' cannot be a column: PostgreSQL"),
        (column(""), "'' cannot be a column: PostgreSQL"),
        (column("a\0"), "cannot be a column: PostgreSQL"),
        (column("x" * 64), "xxx' cannot be a column: PostgreSQL"),
        (column("_object"), "_object cannot be a column: the platform"),
        (column("_loaded_at"), "_loaded_at cannot be a column: the platform"),
        (column("_mesh_piece"), "_mesh_piece cannot be a column: the platform"),
        (column("trip_date"), "trip_date is the partition_column"),
        ({"partition_column": "_object"}, "_object cannot be a column: the platform"),
        ({"final_newline": "never"}, "'required' or 'optional'"),
    ],
)
def test_a_feed_that_cannot_work_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        feed_of(**change)


def test_flights_of_a_day_land_as_csv_as_gzip_and_as_parquet() -> None:
    import re

    feed = read_feed("flights", "flights")
    for ending in ("csv", "csv.gz", "parquet"):
        match = re.fullmatch(feed.pattern, f"flights_2013-01-31.{ending}")
        assert match
        assert match["day"] == "2013-01-31"
    assert not re.fullmatch(feed.pattern, "flights_2013-01-31.csv.tmp")
