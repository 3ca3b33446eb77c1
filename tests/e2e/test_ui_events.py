"""What events start, with the real daemon: files that are dropped, and a source that reports.

The tests follow on each other, in their order.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.platform import Ended, Platform
from tests.e2e.ui import Ui, serving
from tests.orchestration.webhook import Webhook
from tests.readme import python

BACKFILL = """mutation ($assets: [AssetKeyInput!], $days: [String!]) { launchPartitionBackfill(
    backfillParams: {assetSelection: $assets, partitionNames: $days}) {
        __typename ... on PythonError { message } } }"""
BEFORE, DAY = "2013-03-05", "2013-03-06"
#: How a run is called in DataHub, before its id.
INSTANCE = "urn:li:dataProcessInstance:DEV."
#: What the file of a day goes through, in this order.
STEPS = [
    "load_flights_raw_flights",
    "expect_flights_raw_flights",
    "transform_flights_flights",
    "incremental_fct_flights",
    "expect_flights_fct_flights",
]
MARTS = {
    "delay_by_plane_age",
    "delay_by_weather",
    "on_time_by_airport",
    "on_time_by_carrier",
    "on_time_by_day",
    "on_time_by_route",
    "reference_gaps",
}


def landing(platform: Platform, day: str) -> Path:
    return platform.home / "lake" / "landing" / "flights" / "flights" / f"flights_{day}.csv"


def lose_a_flight(platform: Platform, day: str) -> None:
    """Drop a corrected file: without the day's last flight."""
    path = landing(platform, day)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def flights(platform: Platform, day: str) -> tuple[int, int]:
    """Of a day, in the raw table and in the mart."""
    ((raw,),) = platform.rows(
        f"SELECT count(*) FROM flights_raw.flights WHERE flight_date = '{day}'"
    )
    ((mart,),) = platform.rows(
        f"SELECT flights_scheduled FROM flights.on_time_by_day WHERE flight_date = '{day}'"
    )
    return raw, mart


def days_of(run: dict[str, Any]) -> tuple[str | None, str | None]:
    """The first and the last day that a run is about."""
    tags = {tag["key"]: tag["value"] for tag in run["tags"]}
    start, end = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
    return tags.get(start), tags.get(end)


def steps(run: dict[str, Any]) -> list[str]:
    """In the order in which they started."""
    ordered = sorted(run["stepStats"], key=lambda step: step["startTime"] or 0)
    return [step["stepKey"] for step in ordered]


def selected(run: dict[str, Any]) -> set[str]:
    return {asset["path"][-1] for asset in run["assetSelection"] or ()}


@pytest.fixture(scope="module")
def known(platform: Platform, first_run: Ended) -> set[str]:
    """The runs that were there before any file came."""
    return set(platform.runs())


@pytest.fixture(scope="module")
def before(platform: Platform, known: set[str]) -> dict[str, tuple[int, int]]:
    """Flights of the days. Of both files came while nothing ran: the one a day that is replayed,
    the other a correction.
    """
    there = {day: flights(platform, day) for day in (BEFORE, DAY)}
    lose_a_flight(platform, DAY)
    ended = platform.mesh(
        *("replay", "flights", "--from", BEFORE, "--days", "1", "--every", "1s", "--again")
    )
    assert ended.code == 0, ended.err
    assert f"1 of 1: landing/flights/flights/flights_{BEFORE}.csv" in ended.out
    raw = f"SELECT count(*) FROM flights_raw.flights WHERE flight_date = '{BEFORE}'"
    assert platform.rows(raw) == [(0,)]
    return there


@pytest.fixture(scope="module")
def webhook() -> Iterator[Webhook]:
    with Webhook() as webhook:
        yield webhook


@pytest.fixture(scope="module")
def ui(platform: Platform, before: dict[str, tuple[int, int]], webhook: Webhook) -> Iterator[Ui]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setitem(platform.environment, "MESH_ALERTS_WEBHOOK", webhook.url)
        with serving(platform) as ui:
            yield ui


def until(found: Callable[[], object], seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < limit
        time.sleep(0.5)


def unknown(ui: Ui, known: set[str]) -> list[dict[str, Any]]:
    """The runs that are not known yet, the last one first."""
    return [run for run in ui.runs() if run["runId"] not in known]


def new(ui: Ui, known: set[str]) -> list[dict[str, Any]]:
    """The runs that came, the first one first; they are known from then on."""
    came = [run for run in reversed(ui.quiet()) if run["runId"] not in known]
    known.update(run["runId"] for run in came)
    return came


def test_files_that_came_while_nothing_ran_run_their_days_and_then_what_is_made_of_them(
    ui: Ui, known: set[str], before: dict[str, tuple[int, int]]
) -> None:
    came = new(ui, known)
    shown = [(run["jobName"], sorted(selected(run)), days_of(run), steps(run)) for run in came]
    assert len(came) == 2, shown
    days, marts = came
    assert days_of(days) == (BEFORE, DAY)
    assert [step for step in steps(days) if step in STEPS] == STEPS
    assert selected(marts) == MARTS
    assert {run["status"] for run in (days, marts)} == {"SUCCESS"}
    assert flights(ui.platform, BEFORE) == before[BEFORE]
    raw, mart = before[DAY]
    assert flights(ui.platform, DAY) == (raw - 1, mart - 1)


def test_what_comes_again_or_is_reported_starts_nothing_else_if_nothing_is_new(
    ui: Ui, known: set[str]
) -> None:
    loads = "SELECT count(*) FROM mesh.loads WHERE new + changed + removed > 0"
    builds = "SELECT count(*), max(built_at) FROM mesh.models"
    before = ui.platform.rows(loads), ui.platform.rows(builds)
    path = landing(ui.platform, DAY)
    path.write_bytes(path.read_bytes())
    (example,) = python()
    exec(example.replace(":3000/", f":{ui.port}/"), {})
    until(lambda: any(selected(run) == {"planes"} for run in unknown(ui, known)))
    came = new(ui, known)
    assert {run["status"] for run in came} == {"SUCCESS"}
    shown = [(run["jobName"], selected(run), days_of(run)) for run in came]
    assert len(came) == 2, shown
    assert sum(days_of(run) == (DAY, DAY) for run in came) == 1, shown
    (synced,) = [run for run in came if selected(run) == {"planes"}]
    assert steps(synced) == [
        "airbyte_fleet_register",
        "load_fleet_raw_planes",
        "expect_fleet_raw_planes",
    ]
    assert (ui.platform.rows(loads), ui.platform.rows(builds)) == before, shown


def test_what_must_not_be_loaded_is_told_and_nothing_else_happens(
    ui: Ui, known: set[str], webhook: Webhook
) -> None:
    file = landing(ui.platform, DAY)
    content, folder = file.read_bytes(), file.parent
    before = flights(ui.platform, DAY)
    never = {
        folder / "flights_2014-07-01.csv": "its day is not of the feed's",
        folder / "flights_2013-02-30.csv": "2013-02-30 in its name is no date",
        folder / "Flüge vom März 2013.csv": "its name is not of the feed's pattern",
        folder / "weather_2013-03-06.csv": "its name is not of the feed's pattern",
        folder / "flights_2013-03-07.csv.d" / "part": "its name is not of the feed's pattern",
    }
    for path in never:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    file.write_bytes(b"")
    (run,) = new(ui, known)
    assert (run["status"], days_of(run)) == ("FAILURE", (DAY, DAY))
    failed = f"*run failed* <http://127.0.0.1:{ui.port}/runs/{run['runId']}|"
    told(webhook, *(f"{path.name}>: it is never loaded: {why}" for path, why in never.items()))
    told(webhook, failed)
    assert "landing/flights/flights/flights_2013-02-30.csv" in ui.platform.mesh("status").out
    assert flights(ui.platform, DAY) == before

    for path in never:
        path.unlink()
    file.write_bytes(content)
    (run,) = new(ui, known)
    assert (run["status"], days_of(run)) == ("SUCCESS", (DAY, DAY))
    told(webhook, f"delivery stuck: landing/flights/flights/{next(iter(never)).name}")
    told(webhook, f"run failed: load_flights_raw_flights ({DAY})")
    assert webhook.text().count(failed) == 1
    assert flights(ui.platform, DAY) == before


def test_a_backfill_is_one_run_that_repeats_nothing(ui: Ui, known: set[str]) -> None:
    loads = "SELECT count(*) FROM mesh.loads WHERE new + changed + removed > 0"
    builds = "SELECT count(*), max(built_at) FROM mesh.models"
    before = ui.platform.rows(loads), ui.platform.rows(builds)
    days = [f"2013-04-{day:02}" for day in range(1, 11)]
    keys = [{"path": ["flights_raw", "flights"]}, {"path": ["flights", "fct_flights"]}]
    launched = ui.ask(BACKFILL, assets=keys, days=days)["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    # The daemon looks for backfills now and then.
    until(lambda: unknown(ui, known))
    (run,) = new(ui, known)
    assert (run["status"], days_of(run)) == ("SUCCESS", (days[0], days[-1]))
    assert [step for step in steps(run) if step in STEPS] == [
        step for step in STEPS if not step.startswith("transform_")
    ]
    assert (ui.platform.rows(loads), ui.platform.rows(builds)) == before


def test_a_code_server_that_is_killed_comes_back_and_misses_nothing(
    ui: Ui, known: set[str]
) -> None:
    raw, mart = flights(ui.platform, BEFORE)
    killed = [each for each in ui.processes() if "api grpc" in " ".join(each.cmdline())]
    assert len(killed) == 4
    for process in killed:
        process.kill()
    lose_a_flight(ui.platform, BEFORE)
    until(lambda: unknown(ui, known))
    assert days_of(unknown(ui, known)[-1]) == (BEFORE, BEFORE)
    # The sensors of a location that was loaded anew begin anew.
    came = new(ui, known)
    assert [(run["status"], days_of(run), selected(run)) for run in came] == [
        ("SUCCESS", (BEFORE, BEFORE), selected(came[0])),
        ("SUCCESS", (None, None), MARTS),
    ]
    assert flights(ui.platform, BEFORE) == (raw - 1, mart - 1)


def test_a_daemon_and_a_webserver_that_are_killed_come_back_and_miss_nothing(
    ui: Ui, known: set[str]
) -> None:
    raw, mart = flights(ui.platform, BEFORE)
    for program in ("dagster._daemon", "dagster_webserver"):
        (process,) = (p for p in ui.processes() if program in p.cmdline())
        process.kill()
    lose_a_flight(ui.platform, BEFORE)
    until(lambda: [entry["loadStatus"] for entry in ui.locations()] == ["LOADED"] * 4)
    assert ui.process.poll() is None
    until(lambda: unknown(ui, known))
    came = new(ui, known)
    assert [(run["status"], days_of(run), selected(run)) for run in came] == [
        ("SUCCESS", (BEFORE, BEFORE), selected(came[0])),
        ("SUCCESS", (None, None), MARTS),
    ]
    assert flights(ui.platform, BEFORE) == (raw - 1, mart - 1)


def ends_told(platform: Platform) -> dict[str, str]:
    """How runs ended, by what was delivered to files."""
    ends = {}
    for path in sorted((platform.home / "catalog" / "local" / "events").glob("*.json")):
        for record in json.loads(path.read_text()):
            said, urn = record["aspect"]["json"], record["entityUrn"].removeprefix(INSTANCE)
            if record["aspectName"] == "dataProcessInstanceRunEvent" and said.get("result"):
                ends[urn] = said["result"]["type"]
    return ends


def test_the_catalog_is_told_of_all_of_it_whoever_is_killed(ui: Ui) -> None:
    names = [each for each in ui.processes() if "cli.delivering" in " ".join(each.cmdline())]
    (follower,) = names
    follower.kill()
    ends = {"SUCCESS": "SUCCESS", "FAILURE": "FAILURE", "CANCELED": "SKIPPED"}
    runs = {run: ends[how] for run, (_, how) in ui.platform.runs().items() if how in ends}
    assert len(runs) > 5
    until(lambda: runs.items() <= ends_told(ui.platform).items())


def told(webhook: Webhook, *parts: str) -> None:
    """Until all of this was said."""
    limit = time.monotonic() + 60
    while missing := [part for part in parts if part not in webhook.text()]:
        assert time.monotonic() < limit, (missing, webhook.text())
        time.sleep(0.5)


def test_a_replay_of_what_there_is_not_is_refused(platform: Platform, first_run: Ended) -> None:
    refused = platform.mesh("replay", "flights", "--from", "2014-01-01")
    assert refused.code == 1
    assert "have no flights on 2014-01-01" in refused.err
    refused = platform.mesh("replay", "flights", "--from", BEFORE, "--every", "100ms")
    assert refused.code == 2
    assert "must be a number with s, m, h or d after it" in refused.err
