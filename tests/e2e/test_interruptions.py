"""A run that is killed or interrupted: nothing works on, nothing is half done, the next one mends.

The tests follow on each other, in their order, in a home of their own; the connectors are borrowed.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.e2e.platform import Ended, Platform, until

DOMAINS = ("-d", "fleet", "-d", "weather")
TABLES = {
    "fleet_raw.planes": 3_322,
    "fleet_raw.airports": 1_458,
    "fleet_raw.airlines": 16,
    "weather_raw.weather": 26_115,
}


@pytest.fixture(scope="module")
def home(
    platform: Platform, first_run: Ended, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    """A home in which nothing has run yet, with a PostgreSQL that stays up."""
    home = Platform(tmp_path_factory.mktemp("interrupted") / "home")
    home.home.mkdir()
    (home.home / "connectors").symlink_to(platform.home / "connectors")
    assert home.mesh("up").code == 0
    yield home
    assert home.mesh("clean", "-y").code == 0
    assert (platform.home / "connectors").is_dir()


def held(home: Platform) -> dict[str, int]:
    """The rows of the raw tables that exist."""
    found = home.rows("SELECT format('%s.%s', schemaname, tablename) FROM pg_tables")
    there = {name for (name,) in found} & TABLES.keys()
    return {name: home.rows(f"SELECT count(*) FROM {name}")[0][0] for name in there}


def whole(home: Platform) -> bool:
    """Whether each raw table holds nothing or all."""
    return all(rows in (0, TABLES[name]) for name, rows in held(home).items())


def test_when_the_command_is_killed_its_processes_end(home: Platform):
    process = home.start("run", *DOMAINS)
    until(process, "sync ")
    time.sleep(1)
    assert len(home.processes()) > 3
    process.kill()
    process.wait()
    home.wait_until_quiet(20)
    assert whole(home)
    # Its runs do not look as if they still went on.
    assert {status for _, status in home.runs().values()} <= {"FAILURE", "CANCELED"}


def test_ctrl_c_ends_everything_and_marks_the_runs(home: Platform):
    process = home.start("run", *DOMAINS)
    until(process, "sync ")
    time.sleep(1)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode == 130
    assert err.startswith("mesh: interrupted")
    assert "Traceback" not in out + err
    home.wait_until_quiet(5)
    assert {status for _, status in home.runs().values()} <= {"FAILURE", "CANCELED"}


def test_when_all_its_processes_are_killed_nothing_is_left(home: Platform):
    process = home.start("run", *DOMAINS)
    until(process, "(fleet|weather) +load ")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    home.wait_until_quiet(20)
    assert whole(home)


def test_the_next_run_mends_it_all(home: Platform):
    ended = home.run(*DOMAINS)
    assert held(home) == TABLES
    assert {row[-1] for row in ended.table().values()} == {"succeeded"}
    # Those that were killed with all their processes are known for what they are.
    assert {status for _, status in home.runs().values()} <= {"FAILURE", "CANCELED", "SUCCESS"}
    ((stations, readings),) = home.rows(
        "SELECT count(DISTINCT airport_code), count(*) FROM weather.fct_weather_hourly"
    )
    assert (stations, readings) == (3, 26_115)
    home.wait_until_quiet(10)


def test_the_catalog_knows_how_each_of_them_ended(home: Platform):
    delivered = home.mesh("catalog", "deliver")
    assert delivered.code == 0, delivered.err
    told = {
        run: ["SKIPPED" if how == "CANCELED" else how]
        for run, (_, how) in home.runs().items()
        if how in ("SUCCESS", "FAILURE", "CANCELED")
    }
    assert {"SUCCESS", "FAILURE"} <= {how for (how,) in told.values()}
    ends: dict[str, list[str]] = {}
    for path in sorted((home.home / "catalog" / "local" / "events").glob("*.json")):
        for record in json.loads(path.read_text()):
            run = record["entityUrn"].removeprefix("urn:li:dataProcessInstance:DEV.")
            said = record["aspect"]["json"]
            if run in told and record["aspectName"] == "dataProcessInstanceRunEvent":
                ends.setdefault(run, []).extend(
                    [said["result"]["type"]] if "result" in said else []
                )
    assert ends == told
