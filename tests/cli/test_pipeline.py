"""Which days wait, in which runs a domain is run, and what follows when some of them fail."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from dagster_project.cli import pipeline, waiting
from dagster_project.cli.pipeline import run_pipeline
from dagster_project.cli.progress import RunStarted
from dagster_project.cli.waiting import AT_MOST, Waiting, read_waiting
from dagster_project.components import partitions as partitions_of
from dagster_project.components.landing_feed import REFUSED
from dagster_project.components.partitions import partitioned_tables
from dagster_project.failures import MeshError
from dagster_project.identity import Table
from dagster_project.ingestion.feed import read_feed
from dagster_project.lake.store import Lake
from dagster_project.orchestration.runs import Executed, RunRequest
from dagster_project.quality.outcome import Outcome, Partitions
from dagster_project.quality.standing import record, versions_held
from dagster_project.quality.suites import EXPECTATIONS, Severity, read_suite
from dagster_project.reference.delivery import object_path
from dagster_project.settings import get_settings
from dagster_project.transformation.project import read_manifest
from dagster_project.transformation.versions import decide_days, read_built, record_built


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home for all tests here: dbt reads its project once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def flights(
    warehouse_url: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Three days of flights, loaded; no file waits in the landing zone."""
    monkeypatch.setenv("MESH_WAREHOUSE_URL", warehouse_url)
    monkeypatch.setenv("MESH_HOME", str(home))
    monkeypatch.setenv("MESH_LAKE_URL", tmp_path.as_uri())
    get_settings.cache_clear()
    read_built(warehouse_url)
    with psycopg.connect(warehouse_url) as connection:
        connection.execute("CREATE SCHEMA flights_raw")
        connection.execute("CREATE TABLE flights_raw.flights (flight_date date)")
        for day in (1, 2, 3):
            date = f"2013-02-0{day}"
            connection.execute("INSERT INTO flights_raw.flights VALUES (%s)", [date])
            connection.execute(
                "INSERT INTO mesh.partitions VALUES "
                "('flights_raw', 'flights', %s, 'v', 1, 'object', 'v', 'load', now())",
                [date],
            )
    yield warehouse_url
    get_settings.cache_clear()


def ranges() -> list[tuple[str, str]]:
    """Of flights, as they would be run now."""
    (found,) = read_waiting("flights")
    return found.ranges()


DAYS = ("2013-02-01", "2013-02-02", "2013-02-03")
RAW, FACT = Table("flights_raw", "flights"), Table("flights", "fct_flights")


def test_a_day_that_was_loaded_and_not_built_waits(flights: str) -> None:
    """A check stopped it, or a kill: nobody loads it again."""
    assert ranges() == [(DAYS[0], DAYS[2])]


def checked(url: str, table: Table, *days: str, failed: str = "") -> None:
    """All critical checks of the table pass on these days, but for one on the day that fails."""
    suite = read_suite(EXPECTATIONS / table.domain / f"{table}.json")
    expectations = {e.check: e for e in suite.expectations if e.severity is Severity.CRITICAL}
    checks = list(expectations)
    outcomes = [Outcome(check, True) for check in checks[1:]]
    outcomes.append(Outcome(checks[0], not failed, failed={failed: 1} if failed else {}))
    partitions, versions = Partitions("flight_date", days), versions_held(url, table)[table]
    record(url, table, outcomes, expectations, partitions, versions, "a run")


def built(url: str) -> None:
    """The fact, of all days."""
    with psycopg.connect(url) as connection:
        connection.execute("CREATE SCHEMA flights")
        connection.execute("CREATE TABLE flights.fct_flights (flight_date date)")
    stale = decide_days(read_manifest(), "model.mesh.fct_flights", RAW, DAYS, read_built(url))
    record_built(url, FACT, stale)


def test_a_day_that_was_built_and_not_checked_waits(flights: str) -> None:
    built(flights)
    assert ranges() == [(DAYS[0], DAYS[2])]
    checked(flights, RAW, *DAYS)
    assert ranges() == [(DAYS[0], DAYS[2])]
    checked(flights, FACT, DAYS[0])
    assert ranges() == [(DAYS[1], DAYS[2])]
    checked(flights, FACT, *DAYS[1:])
    assert ranges() == []
    # What failed may pass now, with another threshold.
    checked(flights, FACT, DAYS[1], failed=DAYS[1])
    assert ranges() == [(DAYS[1], DAYS[1])]


def test_files_are_run_apart_from_days_that_stand_failed_and_days_without_any(flights: str) -> None:
    built(flights)
    checked(flights, RAW, *DAYS, failed=DAYS[1])
    checked(flights, FACT, *DAYS)
    lake = Lake(get_settings().lake)
    # The third is of a day that the table holds; before the last two a file is missing.
    for day in ("2013-01-31", DAYS[0], DAYS[2], "2013-02-04", "2013-02-06", "2013-02-07"):
        lake.replace(object_path(date.fromisoformat(day)), b"whatever")
    assert ranges() == [
        ("2013-01-31", DAYS[0]),
        (DAYS[2], "2013-02-04"),
        ("2013-02-06", "2013-02-07"),
        (DAYS[1], DAYS[1]),
    ]


def test_days_that_are_no_longer_the_feeds_are_left_alone(
    flights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first day was moved past two that are held, one of which stands failed."""
    built(flights)
    checked(flights, RAW, *DAYS, failed=DAYS[0])
    feed = read_feed("flights", "flights").model_copy(
        update={"first_day": date.fromisoformat(DAYS[2])}
    )
    for module in (waiting, partitions_of):
        monkeypatch.setattr(module, "read_feeds", lambda domain: [feed])
    monkeypatch.setattr(partitions_of, "read_feed", lambda domain, name: feed)
    assert ranges() == [(DAYS[2], DAYS[2])]
    assert partitioned_tables("flights")[RAW].held(flights) == [DAYS[2]]


def of_january(*numbers: int) -> frozenset[str]:
    return frozenset(f"2013-01-{number:02}" for number in numbers)


def waits(days: Sequence[int], doubtful: Sequence[int] = (), there: Sequence[int] = ()) -> Waiting:
    """Days of January; of all of them there are files unless others are named."""
    there = there or range(1, 32)
    return Waiting("flights", of_january(*days), of_january(*doubtful), of_january(*there))


def numbers(found: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
    return [(int(first[-2:]), int(last[-2:])) for first, last in found]


@pytest.mark.parametrize(
    ("waiting", "found"),
    [
        (waits([]), []),
        (waits(range(1, 32)), [(1, 31)]),
        # Days between that do not wait cost less than a run does.
        (waits([3, 20]), [(3, 20)]),
        (waits([3, 20], there=[*range(1, 10), *range(12, 31)]), [(3, 3), (20, 20)]),
        (waits([3, 4, 5], doubtful=[4]), [(3, 3), (5, 5), (4, 4)]),
        # Those to be looked at again are few runs, whatever lies between them.
        (waits([3, 4, 5, 8, 9], doubtful=[4, 8]), [(3, 3), (5, 5), (9, 9), (4, 8)]),
        (waits([4, 8], doubtful=[4, 8]), [(4, 8)]),
        (waits([4, 8], doubtful=[4, 8], there=[4, 5, 7, 8]), [(4, 4), (8, 8)]),
        # One that stands failed and does not wait: it was dealt with before.
        (waits([3, 5], doubtful=[4]), [(3, 3), (5, 5)]),
    ],
)
def test_days_become_few_ranges_of_what_can_be_run_together(
    waiting: Waiting, found: list[tuple[int, int]]
) -> None:
    assert numbers(waiting.ranges()) == found


def test_the_number_of_ranges_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert AT_MOST >= 53
    monkeypatch.setattr(waiting, "AT_MOST", 2)
    there = [1, 3, 4, 6, 7, 8, 10]
    assert numbers(waits(there, there=there).ranges()) == [(3, 4), (6, 8)]


@dataclass
class Script:
    """Runs that do nothing, and what each of them is told to come to."""

    comes_to: Callable[[RunRequest], Executed]
    #: What waits at each look.
    looks: list[Waiting] = field(default_factory=list)
    requests: list[RunRequest] = field(default_factory=list)
    announced: list[RunStarted] = field(default_factory=list)
    #: The days that each failed run is said to have failed for.
    blamed: list[list[int]] = field(default_factory=list)

    def execute(self, request: RunRequest, run_id: str) -> Executed:
        assert self.announced[-1].run_id == run_id
        self.requests.append(request)
        return replace(self.comes_to(request), run_id=run_id)

    def blame(self, run_id: str, days: Collection[str]) -> None:
        assert run_id in {run.run_id for run in self.announced}
        self.blamed.append(sorted(int(day[-2:]) for day in days))

    def look(self) -> list[Waiting]:
        return [self.looks.pop(0)]

    def run(self, waiting: Waiting) -> bool:
        return run_pipeline("flights", [waiting], self.look, self.announced.append)

    @property
    def ran(self) -> list[tuple[int, int] | None]:
        """The days of each run; None for one of what is built whole."""
        return [r.partitions and numbers([r.partitions])[0] for r in self.requests]

    @property
    def assets(self) -> list[set[str] | None]:
        """The assets of each run; None for one of everything."""
        return [
            None if r.assets is None else {".".join(key) for key in r.assets} for r in self.requests
        ]


def refusing(*refused: int) -> Callable[[RunRequest], Executed]:
    """A run of any of these days fails, and says which files it refused."""

    def comes_to(request: RunRequest) -> Executed:
        first, last = request.partitions or ("", "")
        days = sorted(day for day in of_january(*refused) if first <= day <= last)
        said: Mapping[str, dg.MetadataValue[object]] = {REFUSED: dg.MetadataValue.json(days)}
        return Executed("", not days, [said] if days else [])

    return comes_to


def failing(*failed: int) -> Callable[[RunRequest], Executed]:
    """A run of any of these days fails, and does not say why."""
    return lambda request: Executed("", refusing(*failed)(request).succeeded)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Script]:
    def make(comes_to: Callable[[RunRequest], Executed], *looks: Waiting) -> Script:
        script = Script(comes_to, list(looks))
        monkeypatch.setattr(pipeline, "execute", script.execute)
        monkeypatch.setattr(pipeline, "blame", script.blame)
        return script

    return make


BY_DAY = {"flights_raw.flights", "flights_staging.stg_flights__flights", "flights.fct_flights"}


def test_days_of_one_range_are_one_run_of_everything(script: Callable[..., Script]) -> None:
    runs = script(failing())
    assert runs.run(waits(range(1, 32)))
    assert (runs.ran, runs.assets) == ([(1, 31)], [None])
    assert [(run.part, run.last) for run in runs.announced] == [("", True)]


def test_where_no_day_waits_what_is_built_whole_is_one_run(script: Callable[..., Script]) -> None:
    runs = script(failing())
    assert runs.run(waits([]))
    assert runs.ran == [None]
    assert runs.assets[0]
    assert not runs.assets[0] & {"flights_raw.flights", "flights.fct_flights"}
    assert "flights.on_time_by_day" in runs.assets[0]


def test_several_ranges_are_runs_of_their_days_and_one_of_all_else(
    script: Callable[..., Script],
) -> None:
    runs = script(failing(), waits([]))
    assert runs.run(waits([1, 2, 4], there=[1, 2, 4]))
    assert runs.ran == [(1, 2), (4, 4), None]
    # The view between the two is made with them: nothing has made it before a first run.
    assert runs.assets[:2] == [BY_DAY, BY_DAY]
    assert "flights.on_time_by_day" in (runs.assets[2] or ())
    assert [(run.part, run.last) for run in runs.announced] == [
        ("2013-01-01 to 2013-01-02", False),
        ("2013-01-04", False),
        ("all else", False),
    ]


def test_a_range_that_fails_holds_up_no_other(script: Callable[..., Script]) -> None:
    """Nobody knows which day is to blame, so it is not tried again."""
    left = waits([1, 2], there=[1, 2, 4])
    runs = script(failing(2), left, left)
    with pytest.raises(MeshError, match=r"wait on: 2013-01-01 to 2013-01-02\. "):
        runs.run(waits([1, 2, 4], there=[1, 2, 4]))
    assert runs.ran == [(1, 2), (4, 4), None]


def test_a_file_that_is_refused_holds_up_no_other_day(script: Callable[..., Script]) -> None:
    runs = script(refusing(3, 5), waits(range(1, 8)), waits([3, 5]))
    with pytest.raises(MeshError, match=r"wait on: 2013-01-03, 2013-01-05\. "):
        runs.run(waits(range(1, 8)))
    assert runs.ran == [(1, 7), (1, 2), (4, 4), (6, 7), None]
    assert runs.blamed == [[3, 5]]
    assert runs.assets[:2] == [None, BY_DAY]


def test_a_day_that_fails_a_check_holds_up_no_other_day(script: Callable[..., Script]) -> None:
    """It is looked at once, also if it stood failed before."""
    runs = script(failing(3), waits(range(1, 8), doubtful=[3]), waits([3], doubtful=[3]))
    with pytest.raises(MeshError, match=r"wait on: 2013-01-03\. "):
        runs.run(waits(range(1, 8)))
    assert runs.ran == [(1, 7), (1, 2), (4, 7), None]

    still = waits([3], doubtful=[3])
    again = script(failing(3), still, still)
    with pytest.raises(MeshError, match=r"wait on: 2013-01-03\. "):
        again.run(waits([2, 3], doubtful=[3]))
    assert again.ran == [(2, 2), (3, 3), None]
    assert (runs.blamed, again.blamed) == ([[3]], [[3]])


def test_a_refused_file_does_not_hide_another_day_that_is_to_be_looked_at(
    script: Callable[..., Script],
) -> None:
    doubtful = waits([3, 6], doubtful=[3, 6])
    runs = script(refusing(3), doubtful, waits([3], doubtful=[3]))
    with pytest.raises(MeshError, match=r"wait on: 2013-01-03\. "):
        runs.run(doubtful)
    assert runs.ran == [(3, 6), (6, 6), None]


def test_what_fails_for_no_day_is_not_tried_again(script: Callable[..., Script]) -> None:
    """A mart that cannot be built, say."""
    runs = script(failing(5), waits([]), waits([]))
    assert not runs.run(waits(range(1, 8)))
    assert runs.ran == [(1, 7)]


def test_the_partitioned_tables_of_a_domain_are_known(flights: str) -> None:
    found = partitioned_tables("flights")
    raw, fact = Table("flights_raw", "flights"), Table("flights", "fct_flights")
    assert {table: held.column for table, held in found.items()} == {
        raw: "flight_date",
        fact: "flight_date",
    }
    assert found[raw].held(flights) == ["2013-02-01", "2013-02-02", "2013-02-03"]
    assert found[fact].held(flights) == []
    assert partitioned_tables("fleet") == {}
