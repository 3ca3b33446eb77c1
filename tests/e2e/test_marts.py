"""The marts against pandas on the CSV files: two ways to the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import psycopg
import pytest

from tests.e2e.platform import Ended, Platform

MEASURES = [
    "flights_scheduled",
    "flights_cancelled",
    "flights_diverted",
    "flights_arrived",
    "flights_on_time",
    "on_time_rate",
    "cancellation_rate",
    "average_departure_delay_minutes",
    "average_arrival_delay_minutes",
    "p90_arrival_delay_minutes",
]


def measured(flights: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """On-time performance by the rules of the doc block `on_time_performance`."""
    rows = flights.assign(
        cancelled=flights["dep_time"].isna(),
        diverted=flights["dep_time"].notna() & flights["arr_delay"].isna(),
        on_time=flights["arr_delay"] < 15,
    )
    return (
        rows.groupby(by, dropna=False)
        .agg(
            flights_scheduled=("year", "size"),
            flights_cancelled=("cancelled", "sum"),
            flights_diverted=("diverted", "sum"),
            flights_arrived=("arr_delay", "count"),
            flights_on_time=("on_time", "sum"),
            on_time_rate=("on_time", "mean"),
            cancellation_rate=("cancelled", "mean"),
            average_departure_delay_minutes=("dep_delay", "mean"),
            average_arrival_delay_minutes=("arr_delay", "mean"),
            p90_arrival_delay_minutes=("arr_delay", lambda delays: delays.quantile(0.9)),
        )
        .sort_index()
    )


def mart(platform: Platform, name: str, by: list[str], columns: list[str]) -> pd.DataFrame:
    with psycopg.connect(platform.url()) as connection:
        cursor = connection.execute(
            f"SELECT {', '.join([*by, *columns])} FROM flights.{name}".encode()
        )
        frame = pd.DataFrame(cursor.fetchall(), columns=[*by, *columns])
    assert not frame.duplicated(by).any()
    return frame.set_index(by).sort_index()


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """The same rows, counts exactly, floats to 1e-9."""
    assert list(found.index) == list(expected.index)
    for column in expected.columns:
        wanted = expected[column].to_numpy(dtype=float)
        got = found[column].to_numpy(dtype=float)
        if column.startswith("flights_") or column == "planes":
            assert (got == wanted).all(), column
        else:
            np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9, err_msg=column)


@pytest.fixture(scope="module")
def flights(data: Path) -> pd.DataFrame:
    return pd.read_csv(data / "flights.csv.zip", parse_dates=["time_hour"], low_memory=False)


def test_on_time_performance_by_carrier(platform: Platform, flights: pd.DataFrame, data: Path):
    expected = measured(flights, ["carrier"])
    found = mart(platform, "on_time_by_carrier", ["carrier_code"], [*MEASURES, "carrier_name"])
    assert len(found) == 16
    assert_same(found, expected)
    names = pd.read_csv(data / "airlines.csv", keep_default_na=False).set_index("carrier")["name"]
    assert found["carrier_name"].to_dict() == names.to_dict()


def test_cancellations_and_delays_by_day(platform: Platform, flights: pd.DataFrame):
    days = pd.to_datetime(flights[["year", "month", "day"]]).dt.date
    expected = measured(flights.assign(flight_date=days), ["flight_date"])
    found = mart(platform, "on_time_by_day", ["flight_date"], [*MEASURES, "day_of_week"])
    assert len(found) == 365
    assert_same(found, expected)
    assert all(name == day.strftime("%A") for day, name in found["day_of_week"].items())
    assert found["flights_cancelled"].sum() == 8_255


def test_on_time_performance_by_route(platform: Platform, flights: pd.DataFrame):
    expected = measured(flights, ["origin", "dest"])
    expected["distance_miles"] = flights.groupby(["origin", "dest"])["distance"].max()
    by = ["origin_code", "destination_code"]
    assert_same(mart(platform, "on_time_by_route", by, [*MEASURES, "distance_miles"]), expected)


def test_on_time_performance_by_airport_and_role(platform: Platform, flights: pd.DataFrame):
    roles = [
        flights.assign(airport=flights["origin"], role="origin"),
        flights.assign(airport=flights["dest"], role="destination"),
    ]
    expected = measured(pd.concat(roles), ["airport", "role"])
    by = ["airport_code", "airport_role"]
    assert_same(mart(platform, "on_time_by_airport", by, MEASURES), expected)


def _weather(data: Path) -> pd.DataFrame:
    """The readings with the condition and the wind band of their hour."""
    weather = pd.read_csv(data / "weather.csv", parse_dates=["time_hour"])
    # Above 150 mph it is the instrument.
    wind = weather["wind_speed"].where(weather["wind_speed"] <= 150)
    wet = weather["precip"] > 0
    condition = np.select(
        [wet & (weather["temp"] <= 32), weather["visib"] < 3, wet, wind >= 25],
        ["freezing precipitation", "low visibility", "rain", "strong wind"],
        "fair",
    )
    band = np.select(
        [wind.isna(), wind < 10, wind < 20, wind < 30],
        ["not measured", "under 10 mph", "10 to 20 mph", "20 to 30 mph"],
        "30 mph and over",
    )
    visibility = np.select(
        [
            weather["visib"].isna(),
            weather["visib"] < 1,
            weather["visib"] < 3,
            weather["visib"] < 10,
        ],
        ["not measured", "under 1 mile", "1 to 3 miles", "3 to 10 miles"],
        "10 miles",
    )
    return weather[["origin", "time_hour"]].assign(
        condition=condition, wind=band, visibility=visibility
    )


@pytest.mark.parametrize("factor", ["condition", "wind", "visibility"])
def test_delay_by_weather(platform: Platform, flights: pd.DataFrame, data: Path, factor: str):
    joined = flights.merge(
        _weather(data), how="left", on=["origin", "time_hour"], validate="many_to_one"
    )
    joined[factor] = joined[factor].fillna("no reading")
    expected = measured(joined, [factor])
    found = mart(platform, "delay_by_weather", ["weather_factor", "band"], MEASURES).loc[factor]
    assert_same(found, expected)
    assert found["flights_scheduled"].sum() == 336_776


def test_delay_by_plane_age(platform: Platform, flights: pd.DataFrame, data: Path):
    planes = pd.read_csv(data / "planes.csv")[["tailnum", "year"]]
    joined = flights.merge(
        planes.rename(columns={"year": "made"}), how="left", on="tailnum", indicator="known"
    )
    age = joined["year"] - joined["made"]
    joined["band"] = np.select(
        [
            joined["tailnum"].isna(),
            joined["known"] == "left_only",
            age.isna(),
            *(age < limit for limit in (5, 10, 15, 20, 25)),
        ],
        [
            "no tail number",
            "plane not in fleet",
            "year not recorded",
            "under 5 years",
            "5 to 9 years",
            "10 to 14 years",
            "15 to 19 years",
            "20 to 24 years",
        ],
        "25 years and over",
    )
    expected = measured(joined, ["band"])
    expected["planes"] = joined.groupby("band")["tailnum"].nunique()
    columns = [*MEASURES, "planes"]
    assert_same(mart(platform, "delay_by_plane_age", ["plane_age_band"], columns), expected)


def test_revenue_by_month(platform: Platform, first_run: Ended):
    """Sales in the month of the purchase, refunds in the month of the return, at list price."""
    columns = ["purchased_at", "returned_at", "price"]
    purchases = pd.DataFrame(
        platform.rows(
            "SELECT purchased_at AT TIME ZONE 'UTC', returned_at AT TIME ZONE 'UTC', "
            "price::numeric "
            "FROM commerce_raw.purchases LEFT JOIN commerce_raw.products "
            "ON products.id = purchases.product_id"
        ),
        columns=columns,
    )
    assert purchases["price"].notna().all()
    sums = {}
    for when, what in (("purchased_at", "gross"), ("returned_at", "refunded")):
        booked = purchases[purchases[when].notna()]
        months = pd.to_datetime(booked[when]).dt.strftime("%Y-%m-01")
        sums[what] = booked.groupby(months)["price"].agg(["sum", "count"])
    found = platform.rows(
        "SELECT month::text, gross_revenue, refunded_revenue, items_sold, items_returned "
        "FROM commerce.revenue_by_month ORDER BY month"
    )
    nothing = {"sum": 0, "count": 0}
    sold, returned = (sums[what].to_dict("index") for what in ("gross", "refunded"))
    assert {month for month, *_ in found} == sold.keys() | returned.keys()
    for month, gross, refunded, items_sold, items_returned in found:
        assert round(sold.get(month, nothing)["sum"], 2) == gross, month
        assert round(returned.get(month, nothing)["sum"], 2) == refunded, month
        assert sold.get(month, nothing)["count"] == items_sold, month
        assert returned.get(month, nothing)["count"] == items_returned, month
