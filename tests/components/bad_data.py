"""Kinds of bad data in the reference domains: what is changed, and what is to come of it.

Each kind has a day of its own, or rows of its own, so that what fails tells which kind it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dagster_project.reference.readings import Reading
from tests.components.reference_domains import Failing, Row, day_of, edited

#: The days that the sources have.
FIRST, LAST = "2013-04-11", "2013-05-16"
#: Of this day no file of flights comes until all others have.
LATE = "2013-04-16"
#: Of the weather's days one has faults here and there, and the next is in Celsius.
FAULTY, CELSIUS = "2013-05-15", "2013-05-16"

FLIGHTS, FACT, BY_DAY = "flights_raw.flights", "flights.fct_flights", "flights.on_time_by_day"
PLANE, AIRPORT, READING = "fleet_raw.planes", "fleet_raw.airports", "weather_raw.weather"
GAPS = "flights.reference_gaps"
A_DAY = "flights_a_day_plausible"
CARRIER_TEST = "relationships_fct_flights_carrier_code__carrier_code__ref_dim_airlines_"
DISTANCE_TEST = "not_null_fct_flights_distance_miles"
PLANE_TEST = "relationships_fct_flights_tailnum__tailnum__ref_dim_planes_"
AIRPORT_TEST = "relationships_fct_flights_destination_code__airport_code__ref_dim_airports_"

#: Makes the rows of a day's file out of all flights, by day.
Change = Callable[[Mapping[str, list[Row]], str], list[Row]]


def of_day(change: Callable[[list[Row]], list[Row]]) -> Change:
    """A change of the day's own rows."""
    return lambda flights, day: change(flights[day])


AS_IT_IS = of_day(list)


def fails(
    tables: Mapping[str, Mapping[str, int | None]], day: str = ""
) -> dict[Failing, int | None]:
    """Checks of tables that fail, with the number of rows that they refuse."""
    return {
        (table, check, day): count
        for table, checks in tables.items()
        for check, count in checks.items()
    }


@dataclass(frozen=True)
class Kind:
    """Bad data of a kind."""

    name: str
    #: The run that meets it; of flights the day of the file, and what is changed in it.
    run: str
    day: str = ""
    change: Change = AS_IT_IS
    #: The checks that it fails, with the number of rows that they refuse.
    fails: Mapping[Failing, int | None] = field(default_factory=dict)
    #: What checks show of these rows: a column, and its values.
    shows: Mapping[tuple[str, str], tuple[str, set[str]]] = field(default_factory=dict)
    #: The critical checks, by table, by which the table must not be used.
    stops: tuple[tuple[str, str], ...] = ()
    #: What drift tells of that day: table, column, and figure.
    strange: tuple[tuple[str, str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.run}: {self.name}"


def places_of_united(rows: Sequence[Row]) -> list[int]:
    """The places of flights that arrived, of planes that are registered."""
    return [n for n, row in enumerate(rows) if row["carrier"] == "UA" and row["arr_delay"] != "NA"]


def orphaned(rows: list[Row]) -> list[Row]:
    """Twelve flights of a plane, and three to an airport, that nobody knows."""
    places = places_of_united(rows)
    return edited(edited(rows, places[:12], tailnum="N0000X"), places[12:15], dest="ZZZ")


def spoiled_planes(rows: list[Row]) -> list[Row]:
    """Of the kinds of the run `fleet`, those of planes."""
    rows = edited(edited(rows, (10, 11), seats="5000"), (20, 21, 22), year="unknown")
    return edited(rows, (30,), tailnum="NA") + rows[100:125]


def spoiled_airports(rows: list[Row]) -> list[Row]:
    """Of the kinds of the run `fleet`, those of airports."""
    return edited(rows, (5, 6), dst="X")


def _celsius(fahrenheit: float) -> float:
    return round((fahrenheit - 32) / 1.8, 2)


def _spoiled(reading: Reading) -> Reading:
    if day_of(reading) == CELSIUS:
        return reading | {name: _celsius(float(reading[name] or 0)) for name in ("temp", "dewp")}
    if day_of(reading) == FAULTY:
        match reading["origin"], reading["hour"]:
            case "EWR", 1 | 2 | 3:
                return reading | {"temp": "warm"}
            case "EWR", 4 | 5:
                return reading | {"humid": 120.0}
            case "EWR", 6:
                return reading | {"wind_speed": 400.0}
            case "LGA", 8 | 9 | 10 | 11:
                return reading | {"visib": None}
    return reading


def spoiled_readings(readings: Sequence[Reading]) -> list[Reading]:
    """The kinds of the run `weather`."""
    kennedy = [row for row in readings if (row["origin"], day_of(row)) == ("JFK", FAULTY)]
    again, elsewhere = kennedy[:6], [row | {"origin": "PHL"} for row in kennedy[10:15]]
    return [*map(_spoiled, readings), *again, *elsewhere]


KINDS = [
    # The register: a file of planes, and one of airports.
    Kind("duplicates", "fleet"),
    Kind(
        "nulls in the key",
        "fleet",
        fails=fails({PLANE: {"rejects": 1, "matches_declaration": None}}),
    ),
    Kind(
        "wrong type",
        "fleet",
        fails=fails({PLANE: {"rejects": 3, "matches_declaration": None}}),
    ),
    Kind(
        "out of range",
        "fleet",
        fails=fails({PLANE: {"seats_plausible": 2}}),
        shows={(PLANE, "seats_plausible"): ("tailnum", {"N11106", "N11107"})},
        stops=((PLANE, "seats_plausible"),),
    ),
    Kind(
        "a category appears",
        "fleet",
        fails=fails({AIRPORT: {"daylight_saving_known_rule": 2}}),
        shows={(AIRPORT, "daylight_saving_known_rule"): ("faa", {"0A9", "0G6"})},
        stops=((AIRPORT, "daylight_saving_known_rule"),),
    ),
    # The weather service: the readings of two days.
    Kind("duplicates", "weather"),
    Kind(
        "nulls",
        "weather",
        fails=fails({READING: {"measurements_present": 4}}),
        shows={(READING, "measurements_present"): ("origin", {"LGA"})},
    ),
    Kind(
        "wrong type, and so hours without a reading",
        "weather",
        fails=fails(
            {
                READING: {
                    "rejects": 3,
                    "matches_declaration": None,
                    "hours_without_gap": 1,
                }
            }
        ),
        shows={(READING, "hours_without_gap"): ("gap_before", {"2013-05-15 08:00:00+00:00"})},
    ),
    Kind(
        "out of range",
        "weather",
        fails=fails({READING: {"humidity_in_range": 2, "wind_speed_plausible": 1}}),
        shows={(READING, "humidity_in_range"): ("humid", {"120"})},
        stops=((READING, "humidity_in_range"),),
    ),
    Kind(
        "a category appears",
        "weather",
        fails=fails({READING: {"origin_in_new_york": 5}}),
        shows={(READING, "origin_in_new_york"): ("origin", {"PHL"})},
        stops=((READING, "origin_in_new_york"),),
    ),
    Kind(
        "Celsius",
        "weather",
        fails=fails({READING: {"temperatures_in_fahrenheit": 72}}),
        stops=((READING, "temperatures_in_fahrenheit"),),
    ),
    # Files of flights that are loaded and built, and told of.
    Kind(
        "late: a day's file comes after those of later days",
        "flights",
        LATE,
        fails=fails({BY_DAY: {"days_without_gap": 1}}),
        shows={(BY_DAY, "days_without_gap"): ("flight_date", {"2013-04-17"})},
    ),
    Kind(
        "duplicates",
        "flights",
        "2013-05-02",
        of_day(lambda rows: [*rows, *rows[:40], *edited(rows[40:43], range(3), dep_delay="77")]),
    ),
    Kind(
        "nulls",
        "flights",
        "2013-05-03",
        of_day(lambda rows: edited(rows, places_of_united(rows)[:60], tailnum="NA")),
        fails({FLIGHTS: {"tailnum_present": 62}, FACT: {"tailnum_present": 62}}, "2013-05-03"),
    ),
    Kind(
        "orphan keys",
        "flights",
        "2013-05-04",
        of_day(orphaned),
        # Five and nine with those that the list of airports always lacked.
        fails(
            {
                "flights.on_time_by_airport": {"airport_known": 5},
                "flights.on_time_by_route": {"destination_known": 9},
            }
        ),
    ),
    Kind(
        "truncated: half of the day is missing",
        "flights",
        "2013-05-05",
        of_day(lambda rows: rows[: len(rows) // 2]),
        fails({FLIGHTS: {A_DAY: 1, "departed_flights_arrive": 2}, FACT: {A_DAY: 1}}, "2013-05-05")
        | fails({BY_DAY: {A_DAY: 1}}),
        shows={(BY_DAY, A_DAY): ("flight_date", {"2013-05-05"})},
        strange=((FLIGHTS, "(all rows)", "rows"), (FACT, "(all rows)", "rows")),
    ),
    Kind(
        "out of range",
        "flights",
        "2013-05-06",
        of_day(lambda rows: edited(rows, (11, 12), dep_delay="5000")),
        fails({FACT: {"departure_delay_plausible": 2}}, "2013-05-06"),
    ),
    Kind(
        "wrong type",
        "flights",
        "2013-05-07",
        of_day(lambda rows: edited(rows, places_of_united(rows)[:5], distance="far")),
        fails({FLIGHTS: {"rejects": 5, "matches_declaration": None}}),
    ),
    # Files of flights that are stopped before anything is made of them.
    Kind(
        "nulls",
        "days stopped",
        "2013-05-08",
        of_day(lambda rows: edited(rows, range(4), time_hour="NA")),
        fails({FLIGHTS: {"flight_key_present": 4}}, "2013-05-08"),
        stops=((FLIGHTS, "flight_key_present"),),
    ),
    Kind(
        "out of range",
        "days stopped",
        "2013-05-09",
        of_day(lambda rows: edited(rows, range(3), sched_dep_time="2575")),
        fails({FLIGHTS: {"scheduled_times_are_clock_times": 3}}, "2013-05-09"),
        shows={(FLIGHTS, "scheduled_times_are_clock_times"): ("sched_dep_time", {"2575"})},
        stops=((FLIGHTS, "scheduled_times_are_clock_times"),),
    ),
    Kind(
        "a category appears",
        "days stopped",
        "2013-05-10",
        of_day(lambda rows: edited(rows, range(5), origin="PHL")),
        fails({FLIGHTS: {"origin_in_new_york": 5}}, "2013-05-10"),
        shows={(FLIGHTS, "origin_in_new_york"): ("origin", {"PHL"})},
        stops=((FLIGHTS, "origin_in_new_york"),),
        strange=((FLIGHTS, "origin", "'PHL' appeared"),),
    ),
    Kind(
        "late: flights of the day before",
        "days stopped",
        "2013-05-11",
        lambda flights, day: flights[day] + flights["2013-05-10"][100:110],
        fails({FLIGHTS: {"partition_is_local_date": 10, "flight_unique": 10}}, "2013-05-11"),
        shows={(FLIGHTS, "flight_unique"): ("day", {"10"})},
        stops=((FLIGHTS, "flight_unique"), (FLIGHTS, "partition_is_local_date")),
    ),
    Kind(
        "truncated: nearly all of the day is missing",
        "days stopped",
        "2013-05-12",
        of_day(lambda rows: rows[:60]),
        fails({FLIGHTS: {"row_count": None, A_DAY: 1}}, "2013-05-12"),
        stops=((FLIGHTS, "row_count"),),
        strange=((FLIGHTS, "(all rows)", "rows"),),
    ),
    Kind(
        "duplicates: the file of another day",
        "days stopped",
        "2013-05-13",
        lambda flights, day: flights["2013-04-30"],
        fails(
            {FLIGHTS: {"partition_is_local_date": 960, "departed_flights_arrive": 5}}, "2013-05-13"
        )
        | fails({FLIGHTS: {"matches_declaration": None}}),
        stops=((FLIGHTS, "partition_is_local_date"),),
        strange=((FLIGHTS, "time_hour", "lower quartile"),),
    ),
    # Files of flights that tests of the model stop.
    Kind(
        "an orphan key, and so a category that appears",
        "days tested",
        "2013-05-14",
        of_day(lambda rows: edited(rows, range(4), carrier="ZZ")),
        fails({FACT: {CARRIER_TEST: 4}}),
        strange=((FLIGHTS, "carrier", "'ZZ' appeared"),),
    ),
    Kind(
        "nulls",
        "days tested",
        "2013-05-15",
        of_day(lambda rows: edited(rows, range(3), distance="NA")),
        fails({FACT: {DISTANCE_TEST: 3}}),
    ),
]
#: Rows among the rejects of an earlier run, until their day is mended.
STILL = {
    "days stopped": fails({FLIGHTS: {"rejects": 5}}),
    "days tested": fails({FLIGHTS: {"rejects": 5}}),
}
#: The checks that fail on the real data, as something is known to be the matter with it.
REAL = {
    "fleet mended": {
        (PLANE, "year_present"),
        (AIRPORT, "time_zone_present"),
        ("fleet.dim_planes", "manufacture_year_present"),
    },
    "weather mended": set(),
    "flights mended": {
        (FLIGHTS, "departed_flights_arrive"),
        (FLIGHTS, "tailnum_present"),
        (FACT, "tailnum_present"),
        (FACT, PLANE_TEST),
        (FACT, AIRPORT_TEST),
        ("flights.delay_by_plane_age", "plane_age_known"),
        ("flights.on_time_by_airport", "airport_known"),
        ("flights.on_time_by_route", "destination_known"),
        (GAPS, "destinations_known"),
        (GAPS, "planes_known"),
    },
}
#: By the run that meets bad data, the one in which it is mended.
MENDED_BY = {
    "fleet": "fleet mended",
    "weather": "weather mended",
    "flights": "flights mended",
    "days stopped": "flights mended",
    "days tested": "flights mended",
}
