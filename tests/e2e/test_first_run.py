"""The first run: what a person sees of it, and what the warehouse holds afterwards."""

from __future__ import annotations

import pytest

from tests.e2e.platform import USERS, Ended, Platform

COUNTS = {
    "fleet_raw.planes": 3_322,
    "fleet_raw.airports": 1_458,
    "fleet_raw.airlines": 16,
    "weather_raw.weather": 26_115,
    "flights_raw.flights": 336_776,
    "commerce_raw.users": USERS,
    "commerce_raw.products": 100,
}


def test_every_raw_table_holds_exactly_what_its_source_has(platform: Platform, first_run: Ended):
    counts = ", ".join(f'(SELECT count(*) FROM {name}) AS "{name}"' for name in COUNTS)
    answer = platform.mesh(
        "sql", f"SELECT {counts}, (SELECT count(*) > 0 FROM commerce_raw.purchases) AS some"
    )
    assert answer.code == 0, answer.err
    header, values = answer.out.splitlines()
    assert header == ",".join([*COUNTS, "some"])
    assert values == ",".join([*map(str, COUNTS.values()), "t"])


def test_the_table_at_the_end_tells_what_was_done(platform: Platform, first_run: Ended):
    ((purchases,),) = platform.rows("SELECT count(*) FROM commerce_raw.purchases")
    shop = USERS + 100 + purchases
    streams = {
        "commerce": ["3", f"{shop:,}", f"{shop:,}"],
        "fleet": ["3", "4,796", "4,796"],
        "weather": ["1", "26,115", "26,115"],
        "flights": ["0", "0", "336,776"],
    }
    models = platform.rows(
        "SELECT regexp_replace(table_schema, '_staging$', ''), count(*)::text "
        "FROM information_schema.tables "
        "WHERE table_schema ~ '^(commerce|fleet|weather|flights)(_staging)?$' GROUP BY 1"
    )
    built = dict(models)
    table = first_run.table()
    assert table.keys() == streams.keys()
    for domain, row in table.items():
        assert row[:3] == streams[domain], domain
        assert row[3] == built[domain], domain
        passed, _, failed, seconds, state = row[4:]
        assert int(passed) > 10, domain
        assert (failed, state) == ("0", "succeeded"), domain
        assert 0 < float(seconds) < first_run.seconds, domain


def test_the_table_counts_the_checks_that_dagster_recorded(platform: Platform, first_run: Ended):
    of_domain = {run: domain for run, (domain, _) in platform.runs().items()}
    counted: dict[str, list[int]] = {domain: [0, 0, 0] for domain in of_domain.values()}
    for run, domain in of_domain.items():
        for event in platform.events("ASSET_CHECK_EVALUATION", run):
            check = event["event_specific_data"]
            warns = check["severity"]["__enum__"] == "AssetCheckSeverity.WARN"
            counted[domain][0 if check["success"] else 1 if warns else 2] += 1
    shown = {domain: [int(cell) for cell in row[4:7]] for domain, row in first_run.table().items()}
    assert shown == counted


def test_progress_is_told_while_it_works_in_plain_lines(first_run: Ended):
    assert "\x1b" not in first_run.out + first_run.err
    for said in (
        "source-faker: installed in",
        "s  weather    sync readings",
        "s  fleet      load ",
        "s  flights    load flights",
        "s  flights    succeeded",
        "mesh sql",
    ):
        assert said in first_run.out
    assert first_run.err == ""


@pytest.mark.parametrize("domain", ["fleet", "weather"])
def test_a_domain_runs_before_those_that_use_it(first_run: Ended, domain: str):
    lines = first_run.out.splitlines()
    ended = next(n for n, line in enumerate(lines) if f"{domain:10} succeeded" in line)
    began = next(n for n, line in enumerate(lines) if "flights    load" in line)
    assert ended < began


def test_rows_of_the_lake_and_of_the_raw_tables_are_the_same(platform: Platform, first_run: Ended):
    lake, raw = {}, {}
    for event in platform.events("ASSET_MATERIALIZATION"):
        found = event["event_specific_data"]["materialization"]
        path = found["asset_key"]["path"]
        entries = {entry["label"]: entry["entry_data"] for entry in found["metadata_entries"]}
        rows = entries.get("dagster/row_count", {}).get("value")
        if path[0] == "lake":
            lake[path[1], path[3]] = rows
        elif path[0].endswith("_raw"):
            raw[path[0].removesuffix("_raw"), path[1]] = rows
    del raw["flights", "flights"]
    assert lake == raw
