"""Data made bad in known ways, in the reference domains: what notices it, and what it stops.

Some weeks of the real data go through the real sources, loads, suites and models, with the kinds of
bad data of `tests.components.bad_data`; then everything is mended.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from psycopg import sql

from dagster_project.identity import Table
from dagster_project.locations.location import domain_definitions
from dagster_project.quality.blocking import Block, Why, blocks
from dagster_project.quality.suites import critical_checks, read_suites
from dagster_project.reference.data import AIRPORTS, PLANES
from dagster_project.settings import get_settings
from dagster_project.warehouse.embedded import MESH, WAREHOUSE, Endpoint
from tests.components.bad_data import (
    AIRPORT,
    AIRPORT_TEST,
    AS_IT_IS,
    CARRIER_TEST,
    DISTANCE_TEST,
    FACT,
    FIRST,
    FLIGHTS,
    GAPS,
    KINDS,
    LAST,
    LATE,
    MENDED_BY,
    PLANE,
    PLANE_TEST,
    READING,
    REAL,
    STILL,
    Kind,
    spoiled_airports,
    spoiled_planes,
    spoiled_readings,
)
from tests.components.reference_domains import (
    Domains,
    Failing,
    Ran,
    csv_of,
    days,
    reference_domains,
)

pytestmark = pytest.mark.filterwarnings("ignore:`schema_name` is deprecated")

VIEW = "flights_staging.stg_flights__flights"
MARTS = {
    f"flights.{name}"
    for name in (
        *("on_time_by_airport", "on_time_by_carrier", "on_time_by_day", "on_time_by_route"),
        *("delay_by_plane_age", "delay_by_weather", "reference_gaps"),
    )
}
#: All but the view, which is there after the first run.
TABLES = (FLIGHTS, FACT, *sorted(MARTS))
REGISTER = {"fleet_raw.airlines", "fleet_raw.airports", "fleet_raw.planes"}
AIRLINES = {"fleet_staging.stg_fleet__airlines", "fleet.dim_airlines"}
OTHERS = {
    *("fleet_staging.stg_fleet__airports", "fleet.dim_airports"),
    *("fleet_staging.stg_fleet__planes", "fleet.dim_planes"),
}
WEATHER = {
    *("weather_staging.stg_weather__weather", "weather_staging.int_weather__plausible_readings"),
    "weather.fct_weather_hourly",
}
#: What each run loads and builds.
MADE = {
    "fleet": REGISTER | AIRLINES,
    "fleet mended": REGISTER | OTHERS,
    "weather": {READING},
    # While the readings are stopped, which it needs none of.
    "first days": {FLIGHTS, VIEW, FACT},
    "weather mended": {READING} | WEATHER,
    "flights": {FLIGHTS, FACT} | MARTS,
    "days stopped": {FLIGHTS},
    # Days that are stopped hold up no other day.
    "another day": {FLIGHTS, VIEW, FACT},
    "cut off": set(),
    "days tested": {FLIGHTS, FACT},
    "flights mended": {FLIGHTS, FACT} | MARTS,
}
FAILED = {"fleet", "weather", "days stopped", "cut off", "days tested"}
BAD = list(MENDED_BY)
#: Flights by what nobody knows of them.
ORPHANS = f"""SELECT
    count(*) FILTER (WHERE p.tailnum IS NULL),
    count(*) FILTER (WHERE p.tailnum IS NULL AND f.tailnum IS NOT NULL),
    count(*) FILTER (WHERE f.tailnum = 'N0000X'),
    count(*) FILTER (WHERE a.faa IS NULL),
    count(*) FILTER (WHERE f.dest = 'ZZZ')
FROM {FLIGHTS} f LEFT JOIN {PLANE} p USING (tailnum) LEFT JOIN {AIRPORT} a ON a.faa = f.dest"""


@dataclass
class Story:
    """What came of the runs, and what the warehouse said right after them."""

    domains: Domains
    runs: dict[str, Ran] = field(default_factory=dict)
    #: Critical checks by which tables must not be used.
    blocked: dict[str, list[Block]] = field(default_factory=dict)
    answers: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)

    def run(self, name: str, domain: str, first: str = "", last: str = "", *assets: str) -> None:
        self.runs[name] = self.domains.run(domain, first, last, assets)
        self.blocked[name] = blocks(self.domains.url, self._tables(f"{domain}_raw", domain))

    def _tables(self, *schemas: str) -> list[Table]:
        found = self.domains.ask(
            "SELECT table_schema, table_name FROM information_schema.tables "
            f"WHERE table_schema IN ({', '.join(repr(each) for each in schemas)})"
        )
        return [Table(*row) for row in found]

    def ask(self, name: str, statement: str) -> None:
        self.answers[name] = self.domains.ask(statement)

    def noticed(self, run: str) -> dict[Failing, int | None]:
        """The checks that fail otherwise than once it is mended; not on days of other runs."""
        sound = self.runs[MENDED_BY[run]].failing
        others = {kind.day for kind in KINDS if kind.run != run and kind.day}
        return {
            (table, check, day): count
            for (table, check, day), count in self.runs[run].failing.items()
            # How many orphans all days together have is asked below.
            if day not in others
            and sound.get((table, check, day), "passes") != count
            and check not in {PLANE_TEST, AIRPORT_TEST}
        }


def expected(run: str) -> dict[Failing, int | None]:
    """The checks that the kinds of a run fail; what several fail counts the rows of all."""
    found: dict[Failing, int | None] = dict(STILL.get(run, {}))
    for kind in KINDS:
        for key, count in kind.fails.items() if kind.run == run else ():
            other = found.get(key)
            found[key] = count if other is None or count is None else other + count
    return found


def changed(domains: Domains, day: str) -> bytes:
    """The content of a day's file, as bad as it is to be."""
    kinds = {kind.day: kind.change for kind in KINDS}
    return csv_of(kinds.get(day, AS_IT_IS)(domains.flights, day))


def rejected(table: str) -> str:
    return f"SELECT reason, count(*) FROM {table}__rejects GROUP BY 1"


@pytest.fixture(scope="module")
def domains(postgres: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Domains]:
    """The reference domains on an empty warehouse."""
    url, base = postgres.url(MESH, WAREHOUSE), tmp_path_factory.getbasetemp()
    with psycopg.connect(url) as connection:
        schemas = connection.execute(
            "SELECT nspname FROM pg_namespace WHERE nspowner = current_user::regrole"
        ).fetchall()
        for (schema,) in schemas:
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MESH_WAREHOUSE_URL", url)
        environment.setenv("MESH_HOME", str(base / "dbt-home"))
        get_settings.cache_clear()
        folder = tmp_path_factory.mktemp("sources")
        with reference_domains(url, folder, environment, FIRST, LAST) as found:
            yield found
    get_settings.cache_clear()
    domain_definitions.cache_clear()


@pytest.fixture(scope="module")
def story(domains: Domains) -> Story:
    """All runs, in their order."""
    story = Story(domains)
    domains.serve({PLANES: spoiled_planes, AIRPORTS: spoiled_airports})
    story.run("fleet", "fleet")
    story.ask("planes rejected", rejected(PLANE))
    domains.serve()
    story.run("fleet mended", "fleet")

    domains.serve_readings(spoiled_readings(domains.readings))
    story.run("weather", "weather")
    story.ask("readings rejected", rejected(READING))

    for day in days(FIRST, LAST):
        if day != LATE:
            domains.deliver(day, changed(domains, day))
    story.run("first days", "flights", FIRST, "2013-04-15", FLIGHTS, VIEW, FACT)
    domains.serve_readings(domains.readings)
    # An incremental sync asks for nothing that it had, and does not hear of what is no more.
    domains.forget("weather", "readings")
    domains.ask(f"DELETE FROM {READING} WHERE origin = 'PHL'")
    domains.ask(f"DELETE FROM {READING}__rejects")
    story.run("weather mended", "weather")
    story.run("flights", "flights", "2013-04-17", "2013-05-07", *TABLES)
    story.ask("flights rejected", rejected(FLIGHTS))
    story.ask("rows", f"SELECT flight_date::text, count(*) FROM {FLIGHTS} GROUP BY 1")
    story.ask(
        "newest",
        f"SELECT count(*) FROM {FACT} "
        "WHERE departure_delay_minutes = 77 AND flight_date = '2013-05-02'",
    )
    story.ask("orphans", ORPHANS)
    story.run("days stopped", "flights", "2013-05-08", "2013-05-13")
    story.run("another day", "flights", LAST, LAST, FLIGHTS, VIEW, FACT)
    domains.deliver(LAST, csv_of(domains.flights[LAST])[:-20])
    story.run("cut off", "flights", LAST, LAST, FLIGHTS, VIEW, FACT)
    story.ask("of the day cut off", f"SELECT count(*) FROM {FLIGHTS} WHERE flight_date = '{LAST}'")
    for kind in KINDS:
        if kind.run == "days stopped":
            domains.deliver(kind.day)
    story.run("days tested", "flights", "2013-05-08", "2013-05-15", *TABLES)

    for day in days(LATE, LAST):
        domains.deliver(day)
    story.run("flights mended", "flights", LATE, LAST, *TABLES)
    story.ask("rows mended", f"SELECT flight_date::text, count(*) FROM {FACT} GROUP BY 1")
    return story


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_each_kind_fails_its_own_checks(story: Story, kind: Kind) -> None:
    noticed = story.noticed(kind.run)
    assert {key: noticed.get(key, "passes") for key in kind.fails} == {
        key: expected(kind.run)[key] for key in kind.fails
    }
    if kind.day:
        assert {key for key in noticed if key[2] == kind.day} == {
            key for key in kind.fails if key[2] == kind.day
        }


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.shows], ids=str)
def test_the_rows_are_shown(story: Story, kind: Kind) -> None:
    for (table, check), (column, values) in kind.shows.items():
        shown = story.runs[kind.run].rows(table, check)
        assert {row[column] for row in shown} == values, check


@pytest.mark.parametrize("run", BAD)
def test_no_other_check_fails(story: Story, run: str) -> None:
    assert story.noticed(run) == expected(run)


@pytest.mark.parametrize("run", BAD)
def test_all_checks_of_what_was_made_are_run(story: Story, run: str) -> None:
    # Tests of the model stop its checks.
    made = MADE[run] - ({FACT} if run == "days tested" else set())
    assert story.runs[run].checked >= {
        (str(suite.table), expectation.check)
        for domain in ("fleet", "weather", "flights")
        for suite in read_suites(domain)
        for expectation in suite.expectations
        if str(suite.table) in made
    }


@pytest.mark.parametrize("run", BAD)
def test_drift_tells_of_no_other_day(story: Story, run: str) -> None:
    kinds = [kind for kind in KINDS if kind.run == run and kind.strange]
    alarms = story.runs[run].alarms
    for kind in kinds:
        assert {(f"{table} {kind.day}", *what) for table, *what in kind.strange} <= alarms
    assert {where for where, *_ in alarms} == {
        f"{table} {kind.day}" for kind in kinds for table, *_ in kind.strange
    }


@pytest.mark.parametrize("run", BAD)
def test_the_tables_that_must_not_be_used_are_known(story: Story, run: str) -> None:
    days_of: dict[tuple[str, str], list[str]] = {}
    for kind in KINDS:
        for stop in kind.stops if kind.run == run else ():
            days_of.setdefault(stop, []).extend([kind.day] if kind.day else [])
    # Nobody looks at what is built if tests of the model stop it.
    unseen = critical_checks(Table(*FACT.split("."))) if run == "days tested" else []
    built = tuple(days("2013-05-08", "2013-05-15"))
    tests = [CARRIER_TEST, DISTANCE_TEST] if run == "days tested" else []
    assert story.blocked[run] == [
        *(Block(Table(*FACT.split(".")), check, built, Why.CHANGED) for check in sorted(unseen)),
        *(Block(Table(*FACT.split(".")), test, (), Why.FAILED) for test in sorted(tests)),
        *(
            Block(Table(*table.split(".")), check, tuple(blocked), Why.FAILED)
            for (table, check), blocked in sorted(days_of.items())
        ),
    ]


@pytest.mark.parametrize("run", MADE)
def test_what_does_not_need_them_is_built(story: Story, run: str) -> None:
    assert story.runs[run].made == MADE[run], story.runs[run].said
    assert story.runs[run].result.success is (run not in FAILED)


def test_what_did_not_change_is_left_as_it_is(story: Story) -> None:
    assert story.runs["fleet mended"].left_as_they_are == AIRLINES


def test_a_row_of_a_wrong_type_is_put_aside_and_the_others_are_loaded(story: Story) -> None:
    flights, rows = story.domains.flights, dict(story.answers["rows"])
    assert rows["2013-05-07"] == len(flights["2013-05-07"]) - 5
    assert dict(story.answers["flights rejected"]) == {"distance: not double precision": 5}
    assert dict(story.answers["planes rejected"]) == {
        "tailnum: null in the primary key": 1,
        "year: not bigint: of type string": 3,
    }
    assert dict(story.answers["readings rejected"]) == {"temp: not numeric: of type string": 3}


def test_a_duplicate_is_loaded_once_and_the_last_one_counts(story: Story) -> None:
    flights, rows = story.domains.flights, dict(story.answers["rows"])
    assert rows["2013-05-02"] == len(flights["2013-05-02"])
    assert story.answers["newest"] == [(3,)]
    counted = {("flights", FLIGHTS): 43, ("fleet", PLANE): 25, ("weather", READING): 6}
    assert {key: story.runs[key[0]].count(key[1], "duplicates") for key in counted} == counted


def test_orphans_are_counted_and_kept(story: Story) -> None:
    flights = story.runs["flights"]
    ((unknown, unregistered, ours, unlisted, nowhere),) = story.answers["orphans"]
    assert (ours, nowhere) == (12, 3)
    assert flights.failing[FACT, PLANE_TEST, ""] == unregistered
    assert flights.failing[FACT, AIRPORT_TEST, ""] == unlisted
    assert flights.rows(GAPS, "planes_known") == [{"flights_affected": str(unknown)}]
    assert flights.rows(GAPS, "destinations_known") == [{"flights_affected": str(unlisted)}]


def test_a_file_that_is_cut_off_in_a_row_changes_nothing(story: Story) -> None:
    assert f"flights_{LAST}.csv" in story.runs["cut off"].said
    assert story.answers["of the day cut off"] == [(len(story.domains.flights[LAST]),)]


@pytest.mark.parametrize("run", REAL)
def test_mended_all_is_as_the_real_data_is(story: Story, run: str) -> None:
    mended = story.runs[run]
    assert {(table, check) for table, check, _ in mended.failing} == REAL[run]
    assert mended.alarms == set()
    assert story.blocked[run] == []
    failed = {key[:2] for bad in BAD if MENDED_BY[bad] == run for key in story.noticed(bad)}
    assert failed - REAL[run] <= mended.passing


def test_mended_every_day_has_its_flights(story: Story) -> None:
    assert dict(story.answers["rows mended"]) == {
        day: len(rows) for day, rows in story.domains.flights.items()
    }
