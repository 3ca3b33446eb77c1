"""Profiles: the figures that are kept of a table, and that they are kept once and whole."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from dagster_project.failures import WarehouseError
from dagster_project.identity import Table
from dagster_project.quality import profiles, profiling
from dagster_project.quality.outcome import Partitions
from dagster_project.quality.profiling import keep_profiles

READINGS = Table("weather_raw", "readings")
DAYS = ("2013-03-01", "2013-03-02", "2013-03-03")


@pytest.fixture
def readings(warehouse_url: str) -> str:
    """A hundred readings on each of two days, none on the third."""
    run(
        warehouse_url,
        "CREATE SCHEMA weather_raw",
        "CREATE TYPE weather_raw.sky AS ENUM ('clear', 'cloudy')",
        'CREATE TABLE weather_raw.readings (day date, "_object" text, number int, half numeric, '
        'station text, "odd ""name% {x}" text, at timestamptz, hour time, sky weather_raw.sky, '
        "is_wet boolean, raw json, several int[])",
        """INSERT INTO weather_raw.readings
        SELECT day, 'object', number, number / 2.0, 's' || number % 3, 'v' || number,
            (day + number * interval '6 minutes') AT TIME ZONE 'UTC',
            time '00:00' + number * interval '6 minutes',
            CASE WHEN number % 4 > 0 THEN 'clear' ELSE 'cloudy' END::weather_raw.sky,
            CASE WHEN number % 10 > 0 THEN number % 2 = 0 END, '{}', '{1}'
        FROM generate_series(0, 99) AS number,
            (VALUES (date '2013-03-01'), ('2013-03-02')) AS days (day)""",
    )
    return warehouse_url


def run(url: str, *statements: str) -> None:
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def kept(url: str) -> dict[tuple[str, str], tuple[Any, ...]]:
    """By partition or version, and column: rows, nulls, looked at, distinct, quantiles, ..."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT partition || version, column_name, rows, nulls, looked_at, distinct_values, "
            "quantiles, categories FROM mesh.profiles"
        ).fetchall()
    found = {(row[0], row[1]): row[2:] for row in rows}
    assert len(found) == len(rows)
    return found


def test_figures_of_each_type(readings: str) -> None:
    keep_profiles(readings, READINGS, Partitions("day", DAYS), "1")
    found = kept(readings)
    one = {name: figures for (day, name), figures in found.items() if day == DAYS[0]}
    assert one == {name: figures for (day, name), figures in found.items() if day == DAYS[1]}
    assert {key: f for key, f in found.items() if key[0] == DAYS[2]} == {
        (DAYS[2], ""): (0, 0, 0, None, None, None)
    }
    hours = [pytest.approx(0.1 * q) for q in (4.95, 24.75, 49.5, 74.25, 94.05)]
    assert one == {
        "": (100, 0, 100, None, None, None),
        "number": (100, 0, 100, 100, [4.95, 24.75, 49.5, 74.25, 94.05], None),
        "half": (100, 0, 100, 100, [2.475, 12.375, 24.75, 37.125, 47.025], None),
        "station": (100, 0, 100, 3, None, {"s0": 34, "s1": 33, "s2": 33}),
        'odd "name% {x}': (100, 0, 100, 100, None, None),
        "at": (100, 0, 100, 100, hours, None),
        "hour": (100, 0, 100, 100, hours, None),
        "sky": (100, 0, 100, 2, None, {"clear": 75, "cloudy": 25}),
        "is_wet": (100, 10, 90, 2, None, {"true": 40, "false": 50}),
        "raw": (100, 0, 100, None, None, None),
        "several": (100, 0, 100, None, None, None),
    }


def test_numbers_that_floats_do_not_hold_are_left_out_of_quantiles(readings: str) -> None:
    run(
        readings,
        "UPDATE weather_raw.readings SET half = CASE number % 4 WHEN 0 THEN NULL "
        "WHEN 1 THEN 'NaN' WHEN 2 THEN 1e400 ELSE 7 END",
    )
    keep_profiles(readings, READINGS, Partitions("day", DAYS), "1")
    assert kept(readings)[DAYS[0], "half"][:5] == (100, 25, 75, 3, [7] * 5)


def test_profiling_again_replaces_a_partition_and_leaves_the_others(readings: str) -> None:
    keep_profiles(readings, READINGS, Partitions("day", DAYS), "1")
    before = kept(readings)
    keep_profiles(readings, READINGS, Partitions("day", DAYS), "1")
    assert kept(readings) == before
    run(readings, "DELETE FROM weather_raw.readings WHERE number < 50")
    keep_profiles(readings, READINGS, Partitions("day", DAYS[1:2]), "2")
    after = kept(readings)
    assert after.keys() == before.keys()
    assert {key[0] for key in after if after[key] != before[key]} == {DAYS[1]}
    assert after[DAYS[1], ""][0] == 50
    # Days that do not follow one another.
    keep_profiles(readings, READINGS, Partitions("day", (DAYS[0], DAYS[2])), "2")
    assert kept(readings)[DAYS[0], ""][0] == 50


def test_what_fails_midway_leaves_what_was_there(
    readings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_profiles(readings, READINGS, Partitions("day", DAYS), "1")
    before = kept(readings)
    run(readings, "DELETE FROM weather_raw.readings")
    monkeypatch.setattr(profiling, "_SORTED_TOGETHER", 3)
    calls = []

    def fails(*arguments: object) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return figures(*arguments)

    figures: Any = profiling._figures
    monkeypatch.setattr(profiling, "_figures", fails)
    with pytest.raises(KeyboardInterrupt):
        keep_profiles(readings, READINGS, Partitions("day", DAYS), "2")
    assert kept(readings) == before


def test_categories_are_few_and_short(readings: str) -> None:
    run(
        readings,
        "UPDATE weather_raw.readings SET station = repeat('x', 100) || CASE WHEN number < 40 "
        "THEN '' ELSE '' || number % 3 END",
        "ALTER TABLE weather_raw.readings ADD thirty text, ADD fifty_one text",
        "UPDATE weather_raw.readings SET thirty = least(number, 29), fifty_one = number % 51",
    )
    keep_profiles(readings, READINGS, Partitions("day", DAYS), "1")
    found = kept(readings)
    assert found[DAYS[0], "station"][5] == {"x" * 60: 100}
    thirty = found[DAYS[0], "thirty"][5]
    assert len(thirty) == 20
    assert thirty["29"] == 71
    assert found[DAYS[0], "fifty_one"][3:] == (51, None, None)


def test_of_many_rows_values_are_looked_at_in_some(
    readings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(
        readings,
        "CREATE TABLE weather_raw.many AS SELECT number, CASE WHEN number % 5 > 0 THEN 'a' "
        "END AS kind FROM generate_series(1, 20000) AS number",
    )
    monkeypatch.setattr(profiling, "LOOKED_AT", 2000)
    many = Table("weather_raw", "many")
    for _ in range(2):
        keep_profiles(readings, many, None, "v")
    found = kept(readings)
    rows, nulls, looked_at, distinct, quantiles, _ = found["v", "number"]
    assert (rows, nulls) == (20000, 0)
    assert looked_at == distinct == pytest.approx(2000, rel=0.1)
    assert quantiles[2] == pytest.approx(10000, rel=0.1)
    assert found["v", "kind"][:2] == (20000, 4000)
    keep_profiles(readings, many, None, "w")
    assert kept(readings)["w", "number"] == found["v", "number"]


def test_old_versions_are_forgotten(readings: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "VERSIONS_KEPT", 3)
    for version in ("a", "b", "c", "d", "d", "e"):
        keep_profiles(readings, READINGS, None, version)
    assert {key for key, _ in kept(readings)} == {"c", "d", "e"}


def test_a_wide_table_takes_several_statements(readings: str) -> None:
    columns = ", ".join(f"{i} AS c{i}" for i in range(1200))
    run(readings, f"CREATE TABLE weather_raw.wide AS SELECT {columns}")
    keep_profiles(readings, Table("weather_raw", "wide"), None, "v")
    found = kept(readings)
    assert len(found) == 1201
    assert found["v", "c1199"] == (1, 0, 1, 1, [1199] * 5, None)


def test_a_view_is_profiled(readings: str) -> None:
    run(readings, "CREATE VIEW weather_raw.seen AS SELECT day, station FROM weather_raw.readings")
    keep_profiles(readings, Table("weather_raw", "seen"), Partitions("day", DAYS), "1")
    assert kept(readings)[DAYS[0], "station"][3] == 3


def test_a_table_that_is_not_there_is_named(readings: str) -> None:
    with pytest.raises(WarehouseError, match=r"weather_raw\.none cannot be profiled"):
        keep_profiles(readings, Table("weather_raw", "none"), None, "v")


def test_runs_that_profile_the_same_at_once_do_not_hurt_each_other(readings: str) -> None:
    days = [(DAYS[0],), DAYS, (DAYS[1],), DAYS]
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda keys: keep_profiles(readings, READINGS, Partitions("day", keys), "1"), days
            )
        )
    assert len({key for key, _ in kept(readings)}) == 3
