"""Drift: what is strange is told, what is usual is not, on made-up sales and on the real year."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import psycopg
import pytest

from dagster_project.identity import Table
from dagster_project.ingestion.environments import REFERENCE_DATA, install_all
from dagster_project.quality.deviation import STRANGE, WARM_UP, WINDOW, deviations
from dagster_project.quality.drift import examine
from dagster_project.quality.drift_report import DriftReport
from dagster_project.quality.outcome import Partitions
from dagster_project.reference.data import FLIGHTS, data_folder

SALES = Table("shop_raw", "sales")
#: Six weeks, from a Tuesday to a Monday.
DAYS = tuple((date(2013, 1, 1) + timedelta(days=i)).isoformat() for i in range(42))
LAST = DAYS[-1]


@pytest.fixture
def sales(warehouse_url: str) -> str:
    """Sales of six weeks: 300 a day, of Saturdays and Sundays 90."""
    with psycopg.connect(warehouse_url) as connection:
        connection.execute("CREATE SCHEMA shop_raw")
        connection.execute(
            "CREATE TABLE shop_raw.sales (day date, id int, month int, amount numeric, "
            "temperature double precision, status text, currency text, email text, price real, "
            "is_gift boolean, sold_at timestamptz)"
        )
        connection.execute("SELECT setseed(0.25)")
        connection.execute(
            """INSERT INTO shop_raw.sales
            SELECT day, number, extract(month FROM day), 50 + 20 * random(),
                50 + 10 * sin(extract(doy FROM day)) + 20 * random(),
                CASE WHEN random() < 0.8 THEN 'paid' WHEN random() < 0.7 THEN 'open'
                    ELSE 'void' END,
                'EUR', 'person' || number || '@example.com', 5 + number % 2, random() < 0.3,
                day + interval '8 hours' + random() * interval '10 hours'
            FROM generate_series(date '2013-01-01', '2013-02-11', '1 day') AS day,
                generate_series(1, CASE WHEN extract(isodow FROM day) > 5 THEN 90 ELSE 300 END)
                AS number"""
        )
    return warehouse_url


def change(url: str, *statements: str) -> None:
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def examined(
    url: str,
    days: Sequence[str],
    personal: Collection[str] = (),
    exclude: Collection[str] = ("id",),
) -> DriftReport:
    return examine(url, SALES, Partitions("day", tuple(days)), "1", personal, exclude)


def told(report: DriftReport) -> set[tuple[str, str, str]]:
    return {(alarm.key, alarm.column, alarm.what) for alarm in report.alarms}


def test_usual_days_are_quiet_and_the_first_are_not_judged(sales: str) -> None:
    report = examined(sales, DAYS)
    assert report.passed
    assert told(report) == set()
    assert report.warming_up == list(DAYS[:WARM_UP])
    assert report.judged == list(DAYS[WARM_UP:])
    assert report.description == (
        "as usual; not judged yet: 2013-01-01 to 2013-01-21 (a figure needs 21 before it)"
    )
    assert report.table == report.picture == ""


ON_LAST = f"WHERE day = '{LAST}'"


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (f"DELETE FROM shop_raw.sales {ON_LAST} AND id > 100", {("", "rows")}),
        (f"DELETE FROM shop_raw.sales {ON_LAST}", {("", "rows")}),
        (
            f"UPDATE shop_raw.sales SET amount = NULL {ON_LAST} AND id % 5 = 0",
            {("amount", "null share")},
        ),
        (
            f"UPDATE shop_raw.sales SET temperature = (temperature - 32) / 1.8 {ON_LAST}",
            {("temperature", "median")},
        ),
        (
            f"UPDATE shop_raw.sales SET status = 'lost' {ON_LAST} AND id = 7",
            {("status", "'lost' appeared")},
        ),
        (
            f"UPDATE shop_raw.sales SET status = 'paid' {ON_LAST} AND status = 'open'",
            {("status", "'open' vanished"), ("status", "share of 'paid'")},
        ),
        (
            f"UPDATE shop_raw.sales SET currency = 'USD' {ON_LAST}",
            {("currency", "'USD' appeared"), ("currency", "'EUR' vanished")},
        ),
        (
            f"UPDATE shop_raw.sales SET email = 'person@example.com' {ON_LAST} AND id % 4 = 0",
            {("email", "distinct share")},
        ),
        (f"UPDATE shop_raw.sales SET is_gift = true {ON_LAST}", {("is_gift", "share of 'true'")}),
        # Local time taken for UTC.
        (
            f"UPDATE shop_raw.sales SET sold_at = sold_at + interval '5 hours' {ON_LAST}",
            {("sold_at", "median")},
        ),
        # As a Sunday is.
        (f"DELETE FROM shop_raw.sales {ON_LAST} AND id > 90", {("", "rows")}),
        # Not worth an alarm, although it never was so before.
        (f"UPDATE shop_raw.sales SET price = price + 0.0001 {ON_LAST}", set()),
        (f"UPDATE shop_raw.sales SET amount = NULL {ON_LAST} AND id = 5", set()),
        (f"DELETE FROM shop_raw.sales {ON_LAST} AND id <= 20", set()),
    ],
)
def test_a_strange_day_is_told_with_what_is_strange(
    sales: str, statement: str, expected: set[tuple[str, str]]
) -> None:
    change(sales, statement)
    report = examined(sales, DAYS)
    found = {(column, what) for key, column, what in told(report) if key == LAST}
    quartiles = {"lower quartile", "upper quartile"}
    assert {(c, "median" if w in quartiles else w) for c, w in found} == expected
    assert {key for key, *_ in told(report)} <= {LAST}
    assert report.passed == (not expected)


def test_a_report_reads_as_a_sentence_a_table_and_a_picture(sales: str) -> None:
    change(sales, f"DELETE FROM shop_raw.sales {ON_LAST} AND id > 100")
    examined(sales, DAYS[:-1])
    report = examined(sales, (LAST,))
    assert report.description == (
        "11 Feb 2013: 100 rows came; 300 are usual on a Monday, 231 to 389 are not strange "
        "(z = -19.0)"
    )
    assert report.table.splitlines() == [
        "| when | column | what | observed | usual | not strange | z |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| 2013-02-11 Mon | (all rows) | rows | 100 | 300 | 231 to 389 | -19.0 |",
    ]
    title, bars, scale = report.picture.splitlines()
    assert title == "rows, the last 28 up to 2013-02-11 (100)"
    assert bars == "████▃▃█████▃▃█████▃▃█████▃▃▃"
    assert scale == "▁ 0, █ 300; not strange on a Monday: ▆ to █ (231 to 389)"


def test_a_table_of_alarms_is_bounded_and_holds_whatever_values_do(sales: str) -> None:
    change(
        sales,
        *(f"ALTER TABLE shop_raw.sales ADD c{i} text DEFAULT 'a'" for i in range(25)),
        *(f"UPDATE shop_raw.sales SET c{i} = E'x|y\\nz' {ON_LAST}" for i in range(25)),
    )
    report = examined(sales, DAYS)
    assert len(report.alarms) == 50
    lines = report.table.splitlines()
    assert len(lines) == 22
    assert "'x\\|y z' appeared" in report.table
    assert {line.replace("\\|", "").count("|") for line in lines} == {8}


def test_a_day_is_compared_with_its_weekday(sales: str) -> None:
    """As many rows on a Sunday as on other days are too many."""
    sunday = DAYS[-2]
    change(
        sales,
        f"INSERT INTO shop_raw.sales SELECT '{sunday}', id, month, amount, temperature, status, "
        f"currency, email, price, is_gift, sold_at - interval '1 day' "
        f"FROM shop_raw.sales {ON_LAST} AND id > 90",
    )
    report = examined(sales, DAYS)
    assert told(report) == {(sunday, "", "rows")}


def test_only_what_came_before_counts_and_a_strange_day_spoils_nothing(sales: str) -> None:
    """A day judged again after others has the same result, and is forgotten once it is mended."""
    strange = DAYS[30]
    change(
        sales,
        "CREATE TABLE shop_raw.kept AS SELECT * FROM shop_raw.sales",
        f"DELETE FROM shop_raw.sales WHERE day = '{strange}' AND id > 60",
    )
    report = examined(sales, DAYS)
    assert told(report) == {(strange, "", "rows")}
    again = examined(sales, (strange,))
    assert again.alarms == report.alarms
    change(
        sales,
        f"DELETE FROM shop_raw.sales WHERE day = '{strange}'",
        f"INSERT INTO shop_raw.sales SELECT * FROM shop_raw.kept WHERE day = '{strange}'",
    )
    assert examined(sales, (strange,)).passed


def test_a_new_level_is_told_for_some_days_and_then_known(sales: str) -> None:
    change(
        sales,
        f"UPDATE shop_raw.sales SET amount = amount / 2 WHERE day >= '{DAYS[30]}'",
    )
    report = examined(sales, DAYS)
    days = sorted({key for key, column, _ in told(report) if column == "amount"})
    assert days == list(DAYS[30:34])


def test_personal_values_are_neither_kept_nor_told(sales: str) -> None:
    personal = ["amount", "status", "email"]
    examined(sales, DAYS[:30])
    change(
        sales,
        f"UPDATE shop_raw.sales SET amount = 987654, status = 'secret' {ON_LAST}",
        f"UPDATE shop_raw.sales SET email = NULL {ON_LAST} AND id < 100",
    )
    report = examined(sales, DAYS[30:], personal)
    assert {(LAST, "email", "null share"), (LAST, "amount", "distinct share")} <= told(report)
    assert "987654" not in f"{report} {report.table} {report.picture} {report.description}"
    assert "secret" not in f"{report} {report.table}"
    with psycopg.connect(sales) as connection:
        kept = connection.execute(
            "SELECT column_name, bool_or(quantiles IS NOT NULL), bool_or(categories IS NOT NULL), "
            "sum(nulls) FROM mesh.profiles WHERE column_name = ANY(%s) GROUP BY 1 ORDER BY 1",
            [personal],
        ).fetchall()
    assert kept == [
        ("amount", False, False, 0),
        ("email", False, False, 99),
        ("status", False, False, 0),
    ]


def test_excluded_columns_are_left_out(sales: str) -> None:
    change(sales, f"UPDATE shop_raw.sales SET status = 'lost' {ON_LAST}")
    assert not examined(sales, DAYS).passed
    assert examined(sales, DAYS, exclude=["id", "status"]).passed


def test_columns_that_come_go_or_change_their_type_are_not_strange(sales: str) -> None:
    examined(sales, DAYS[:40])
    change(
        sales,
        "ALTER TABLE shop_raw.sales DROP COLUMN status",
        "ALTER TABLE shop_raw.sales ALTER COLUMN amount TYPE bigint USING (amount * 1000)::bigint",
        "ALTER TABLE shop_raw.sales ADD COLUMN note text DEFAULT 'new'",
        "ALTER TABLE shop_raw.sales ALTER COLUMN month TYPE text",
    )
    report = examined(sales, DAYS[40:])
    assert report.judged == list(DAYS[40:])
    assert told(report) == set()


def profiled_at(url: str, version: str) -> list[tuple[datetime]]:
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT DISTINCT profiled_at FROM mesh.profiles WHERE version = %s", [version]
        ).fetchall()


def test_versions_of_a_table_without_partitions(sales: str) -> None:
    """A table that grows is compared with its earlier versions."""
    products = Table("shop_raw", "products")
    change(
        sales,
        "CREATE TABLE shop_raw.products AS SELECT number AS id, 10.0 + number % 7 AS price, "
        "'tea' AS kind FROM generate_series(1, 1000) AS number",
    )
    for version in range(WARM_UP + 2):
        change(
            sales,
            "INSERT INTO shop_raw.products SELECT max(id) + 1, 12, 'tea' FROM shop_raw.products",
        )
        report = examine(sales, products, None, f"v{version}")
        assert report.passed
        assert report.warming_up == ([f"v{version}"] if version < WARM_UP else [])
        if version == 3:
            # The same version is no other.
            before = profiled_at(sales, "v3")
            examine(sales, products, None, "v3")
            assert profiled_at(sales, "v3") == before
    with psycopg.connect(sales) as connection:
        kept = connection.execute(
            "SELECT count(DISTINCT version), count(DISTINCT profiled_at), count(*) "
            "FROM mesh.profiles WHERE table_name = 'products'"
        ).fetchone()
    assert kept == (WARM_UP + 2, WARM_UP + 2, (WARM_UP + 2) * 4)
    change(sales, "DELETE FROM shop_raw.products WHERE id % 2 = 0")
    report = examine(sales, products, None, "half")
    assert [(alarm.column, alarm.what, alarm.observed) for alarm in report.alarms] == [
        ("", "rows", "512")
    ]
    assert not report.alarms[0].by_weekday or "usual on a" in report.description


@pytest.mark.parametrize(
    ("shape", "strange"),
    [("normal", 0.001), ("skewed", 0.01), ("trend", 0.001), ("weekends", 0.001)],
)
def test_ordinary_series_are_quiet(shape: str, strange: float) -> None:
    """Of a year of a hundred figures at most this share of the scores is strange."""
    generator, days = np.random.default_rng(7), np.arange(365)
    noise = generator.normal(size=(365, 100))
    values = {
        "normal": noise,
        "skewed": generator.exponential(size=(365, 100)),
        "trend": 0.1 * days[:, None] + 0.5 * noise,
        "weekends": 100 * (days[:, None] % 7 > 4) + noise,
    }[shape]
    scores = [
        deviations(
            values[t - WINDOW : t], days[t - WINDOW : t] % 7, values[t], t % 7, np.full(100, 0.01)
        ).scores
        for t in range(WINDOW, 365)
    ]
    assert np.mean(np.abs(scores) >= STRANGE) < strange


@pytest.fixture
def year(warehouse_url: str, tmp_path: Path) -> str:
    """The flights of 2013 as the model fct_flights has them."""
    install_all(tmp_path, [REFERENCE_DATA], lambda _: None)
    with psycopg.connect(warehouse_url) as connection:
        connection.execute("CREATE SCHEMA flights")
        archive = zipfile.ZipFile(data_folder(tmp_path) / FLIGHTS)
        with archive, archive.open("flights.csv") as file:
            names = file.readline().decode().strip().replace('"', "").split(",")
            texts = {"carrier", "tailnum", "origin", "dest", "time_hour"}
            columns = ", ".join(f"{n} {'text' if n in texts else 'int'}" for n in names)
            connection.execute(f"CREATE TEMPORARY TABLE csv ({columns})".encode())
            statement = "COPY csv FROM STDIN (FORMAT csv, NULL 'NA')"
            with connection.cursor().copy(statement) as copy:
                while block := file.read(1 << 20):
                    copy.write(block)
        connection.execute(
            """CREATE TABLE flights.fct_flights AS SELECT
                concat_ws('-', flight_date, sched_dep_time, carrier, flight, origin, dest)
                    AS flight_id,
                flight_date, carrier AS carrier_code, flight AS flight_number, tailnum,
                origin AS origin_code, dest AS destination_code, scheduled_departure_local,
                time_hour::timestamptz + make_interval(mins => minute) AS scheduled_departure_at,
                time_hour::timestamptz AS scheduled_hour_at,
                scheduled_departure_local + make_interval(mins => dep_delay)
                    AS actual_departure_local,
                make_time(sched_arr_time / 100 % 24, sched_arr_time % 100, 0)
                    AS scheduled_arrival_time,
                make_time(arr_time / 100 % 24, arr_time % 100, 0) AS actual_arrival_time,
                sched_arr_time < sched_dep_time AS is_overnight,
                dep_delay AS departure_delay_minutes, arr_delay AS arrival_delay_minutes,
                air_time AS air_time_minutes, distance AS distance_miles,
                dep_time IS NULL AS is_cancelled, coalesce(arr_delay < 15, false) AS is_on_time,
                CASE WHEN dep_time IS NULL THEN 'cancelled' WHEN arr_delay IS NULL THEN 'diverted'
                    WHEN arr_delay < 15 THEN 'on time' ELSE 'late' END AS outcome
            FROM csv, make_date(year, month, day) AS flight_date, make_timestamp(
                year, month, day, sched_dep_time / 100, sched_dep_time % 100, 0)
                AS scheduled_departure_local"""
        )
    return warehouse_url


#: Days of 2013 that are not as usual, and why by the calendar and the weather readings: all that
#: the year gives.
STRANGE_DAYS = {
    "2013-01-28": "snow and ice",
    "2013-01-30": "fog and wind; the first flights of OO",
    "2013-02-08": "the blizzard Nemo",
    "2013-02-09": "the blizzard Nemo",
    "2013-03-08": "a snow storm",
    "2013-04-10": "rain storms, many diverted",
    "2013-05-23": "rain storms, the third most cancelled",
    "2013-06-07": "the tropical storm Andrea, many diverted",
    "2013-07-04": "Independence Day",
    "2013-09-01": "the Sunday before Labor Day",
    "2013-10-07": "a line of storms",
    "2013-11-17": "fog, late flights",
    "2013-11-28": "Thanksgiving",
    "2013-11-29": "the day after Thanksgiving",
    "2013-12-05": "fog",
    "2013-12-08": "snow",
    "2013-12-09": "freezing rain",
    "2013-12-10": "snow",
    "2013-12-14": "snow",
    "2013-12-17": "snow",
    "2013-12-24": "Christmas Eve",
    "2013-12-25": "Christmas",
}


def test_the_storms_and_holidays_of_the_real_year_are_found_and_nothing_else(
    year: str, record_property: Callable[[str, object], None]
) -> None:
    days = tuple((date(2013, 1, 1) + timedelta(days=i)).isoformat() for i in range(365))
    table = Table("flights", "fct_flights")
    report = examine(year, table, Partitions("flight_date", days), "1")
    record_property(
        "told",
        f"{len(report.alarms)} alarms on {len({a.key for a in report.alarms})} of "
        f"{len(report.judged)} days",
    )
    assert report.warming_up == list(days[:WARM_UP])
    assert sorted({alarm.key for alarm in report.alarms}) == sorted(STRANGE_DAYS)
    assert len(report.alarms) == 79
    assert ("2013-01-30", "carrier_code", "'OO' appeared") in told(report)
    columns = {key: {a.column for a in report.alarms if a.key == key} for key in STRANGE_DAYS}
    for storm in ("2013-02-08", "2013-02-09"):
        assert {"is_cancelled", "outcome", "departure_delay_minutes"} <= columns[storm]
    for holiday in ("2013-07-04", "2013-09-01", "2013-11-28", "2013-12-24", "2013-12-25"):
        assert "" in columns[holiday], "fewer flights than usual"
    quiet = {date.fromisoformat(day).isocalendar().week for day in report.judged} - {
        date.fromisoformat(day).isocalendar().week for day in STRANGE_DAYS
    }
    assert len(quiet) == 35

    # A day by itself has the same result as in the year.
    blizzard = examine(year, table, Partitions("flight_date", ("2013-02-08",)), "1")
    assert blizzard.alarms == [alarm for alarm in report.alarms if alarm.key == "2013-02-08"]
    assert blizzard.description == (
        "8 Feb 2013: is_cancelled is 'true' in 50.8 % of the values; 1.2 % is usual on a Friday, "
        "0.0 % to 18.9 % is not strange (z = 9.0); also strange there: actual_arrival_time, "
        "actual_departure_local, air_time_minutes, arrival_delay_minutes, departure_delay_minutes "
        "and 3 more"
    )
