"""Parquet files in the landing zone: typed values are those of the file, exactly."""

from __future__ import annotations

import io
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dagster_project.failures import SourceError
from dagster_project.ingestion.landed_file import file_batches
from dagster_project.lake.store import Lake
from tests.ingestion.zone import DAY, Zone, columns_of, feed_of

NAME = f"trips_{DAY}.parquet"


@pytest.fixture
def zone(lake: Lake, tmp_path: Path, warehouse_url: str) -> Zone:
    return Zone(lake, tmp_path / "lake", warehouse_url)


def parquet(**columns: pa.Array) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def naive(*moments: str | None, unit: str = "us") -> pa.Array:
    """Timestamps without a zone."""
    return pa.array(moments).cast(pa.timestamp(unit))


ROWS = st.tuples(
    *(
        st.none() | values
        for values in (
            st.integers(-(2**63), 2**63 - 1),
            st.floats(allow_nan=False),
            st.decimals(places=9, min_value=-(10**28), max_value=10**28),
            st.booleans(),
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
            st.dates(),
            st.datetimes(timezones=st.just(UTC)),
        )
    )
)


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rows=st.lists(ROWS, min_size=1, max_size=8))
def test_what_a_parquet_writer_wrote_is_what_the_table_holds(
    zone: Zone, rows: list[tuple[Any, ...]]
) -> None:
    kinds = {
        "n": ("bigint", pa.int64()),
        "x": ("double precision", pa.float64()),
        "d": ("numeric", pa.decimal128(38, 9)),
        "b": ("boolean", pa.bool_()),
        "t": ("text", pa.string()),
        "day": ("date", pa.date32()),
        "at": ("timestamptz", pa.timestamp("us", "UTC")),
    }
    columns = {
        name: pa.array(values, kind)
        for (name, (_, kind)), values in zip(kinds.items(), zip(*rows, strict=True), strict=True)
    }
    declared = {name: kind for name, (kind, _) in kinds.items()}
    zone.feed = feed_of(columns=columns_of(id="bigint", **declared))
    zone.put(parquet(**columns, id=pa.array(range(len(rows)))), NAME)
    zone.load()
    assert zone.rows(", ".join(kinds)) == rows


NEW_YORK = timezone(timedelta(hours=-5))


@pytest.mark.parametrize(
    ("column", "declared", "held", "rejected"),
    [
        # What pandas makes of integers among which one is missing.
        (pa.array([1.0, None, 2.0**53, 1e16]), "bigint", [1, None, 2**53, 10**16], []),
        (pa.array([1.0, 1.5, 1e20]), "bigint", [1], ["v: not bigint"] * 2),
        (pa.array([Decimal("7.00"), Decimal("7.01")]), "bigint", [7], ["v: not bigint"]),
        (pa.array([1, 2**64 - 1], pa.uint64()), "bigint", [1], ["v: not bigint"]),
        (pa.array([2**64 - 1], pa.uint64()), "numeric", [Decimal(2**64 - 1)], []),
        (pa.array([0.1], pa.float32()), "double precision", [0.10000000149011612], []),
        (pa.array([float("-inf")]), "double precision", [float("-inf")], []),
        (pa.array([0, 1, 2]), "boolean", [False, True], ["v: not boolean"]),
        (
            naive("2026-01-01T05:00:00", unit="ns"),
            *("timestamptz", [datetime(2026, 1, 1, 5, tzinfo=UTC)], []),
        ),
        (
            pa.array([datetime(2026, 1, 1, 5, tzinfo=NEW_YORK)], pa.timestamp("us", "-05:00")),
            *("timestamptz", [datetime(2026, 1, 1, 10, tzinfo=UTC)], []),
        ),
        (
            pa.array([datetime(1880, 1, 1, tzinfo=UTC)], pa.timestamp("us", "America/New_York")),
            *("timestamptz", [datetime(1880, 1, 1, tzinfo=UTC)], []),
        ),
        (
            pa.array([date(2026, 1, 1)]),
            *("timestamptz", [datetime(2026, 1, 1, tzinfo=UTC)], []),
        ),
        (
            naive("2026-01-01T00:00:00", "2026-01-01T05:00:00", None),
            *("date", [date(2026, 1, 1), None]),
            ["v: a time of day, where a date is declared"],
        ),
        (pa.array(["a", None, "a"]).dictionary_encode(), "text", ["a", None, "a"], []),
        (pa.array(["1", "x"]), "bigint", [1], ["v: not bigint"]),
        (pa.array([b"\xc3\xa9", b"\xff"]), "text", ["é"], ["v: not valid UTF-8"]),
        (
            pa.array(["a\0b", "c"]),
            *("text", ["c"], ["v: a NUL character, which PostgreSQL cannot hold"]),
        ),
        (pa.array(["NA", ""]), "text", ["NA", ""], []),
    ],
    ids=str,
)
def test_values_become_what_the_column_takes_or_are_rejected(
    zone: Zone, column: pa.Array, declared: str, held: list[Any], rejected: list[str]
) -> None:
    zone.feed = feed_of(columns=columns_of(v=declared, id="bigint"))
    # By name, in any order; the file's name says nothing.
    zone.put(parquet(id=pa.array(range(len(column))), v=column), f"trips_{DAY}.csv")
    done = zone.load()
    assert [value for (value,) in zone.rows("v")] == held
    assert done.rejected == len(rejected)
    if rejected:
        assert [reason for reason, _ in zone.rejects()] == rejected


def test_a_rejected_row_is_kept_as_it_came(zone: Zone) -> None:
    zone.feed = feed_of(columns=columns_of(id="bigint", day="date", name="text"))
    zone.put(
        parquet(
            id=pa.array([1, 2]),
            day=naive("2026-01-01T05:00:00", "2026-01-01T00:00:00"),
            name=pa.array([b"a\0\xff", b"b"]),
        ),
        NAME,
    )
    zone.load()
    reason = "day: a time of day, where a date is declared; name: not valid UTF-8; "
    reason += "name: a NUL character, which PostgreSQL cannot hold"
    record = {"id": "1", "day": "2026-01-01 05:00:00.000000", "name": "a\ufffd\ufffd"}
    assert zone.rejects() == [(reason, record)]


WHOLE = parquet(id=pa.array([1]), delay=pa.array([1.0]), code=pa.array(["a"]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (WHOLE[:-1], "ends too early"),
        (WHOLE[:100], "ends too early"),
        (WHOLE[:40] + WHOLE[-40:], "cannot be read"),
        (parquet(id=pa.array([1]), kode=pa.array(["a"])), r"\['delay', 'code'\].*\['kode'\]"),
        (
            parquet(id=pa.array([[1]]), delay=pa.array([1.0]), code=pa.array(["a"])),
            r"holds id as list<.*>, which cannot become bigint",
        ),
        (
            parquet(id=pa.array([], pa.int64()), delay=pa.array([]), code=pa.array([])),
            "no rows.*`may_be_empty: true`",
        ),
        (
            parquet(id=pa.array([1]), delay=pa.array([1.0]), code=pa.array([b"\xff"])),
            "none of its 1 rows can be loaded; of the first: code: not valid UTF-8",
        ),
    ],
    ids=["cut", "cut in the middle", "damaged", "renamed", "nested", "no rows", "all rows bad"],
)
def test_a_file_that_is_not_what_was_declared_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(SourceError, match=f"^landing/trips.parquet.*{said}"):
        list(file_batches(content, "landing/trips.parquet", feed_of()))


def test_csv_and_parquet_files_are_loaded_together(zone: Zone) -> None:
    zone.drop("2026-01-01", "1,0.5,a\n")
    zone.put(WHOLE, "trips_2026-01-02.parquet")
    zone.load("2026-01-01", "2026-01-02")
    assert zone.rows() == [("2026-01-01", 1, 0.5, "a"), ("2026-01-02", 1, 1.0, "a")]
