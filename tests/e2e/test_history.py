"""What the first run leaves in Dagster's storage and on disk."""

from __future__ import annotations

import json
from collections import Counter

from tests.e2e.platform import DAGSTER, Ended, Platform

DAYS = 365
DAILY = {("flights_raw", "flights"), ("flights", "fct_flights")}


def _counted(platform: Platform, kind: str) -> Counter[tuple[tuple[str, ...], bool]]:
    """The events of the run of flights: by asset, and whether they name a partition."""
    rows = platform.rows(
        "SELECT asset_key, event_logs.partition IS NOT NULL "
        "FROM event_logs JOIN runs USING (run_id) "
        f"WHERE dagster_event_type = '{kind}' AND pipeline_name = 'flights_pipeline'",
        DAGSTER,
    )
    return Counter((tuple(json.loads(key)), partitioned) for key, partitioned in rows)


def test_each_run_belongs_to_its_code_location(platform: Platform, first_run: Ended):
    bodies = platform.rows("SELECT pipeline_name, run_body FROM runs ORDER BY id", DAGSTER)
    found = {}
    for job, body in bodies:
        origin = json.loads(body)["external_pipeline_origin"]["external_repository_origin"]
        location = origin["repository_location_origin"]
        found[job] = (location["location_name"], location["loadable_target_origin"]["module_name"])
    assert found == {
        f"{name}_pipeline": (name, f"dagster_project.locations.{name}")
        for name in ("commerce", "fleet", "weather", "flights")
    }
    assert {status for _, status in platform.runs().values()} == {"SUCCESS"}


def test_the_two_daily_assets_are_materialised_for_every_day(platform: Platform, first_run: Ended):
    counted = _counted(platform, "ASSET_MATERIALIZATION")
    daily = {asset: n for (asset, partitioned), n in counted.items() if partitioned}
    assert daily == dict.fromkeys(DAILY, DAYS)
    whole = {asset: n for (asset, partitioned), n in counted.items() if not partitioned}
    assert len(whole) >= 8
    assert set(whole.values()) == {1}


def test_only_what_is_partitioned_is_planned_by_the_day(platform: Platform, first_run: Ended):
    planned = _counted(platform, "ASSET_MATERIALIZATION_PLANNED")
    assert {key: n for key, n in planned.items() if n != 1} == {
        (asset, True): DAYS for asset in DAILY
    }


def test_each_day_is_recorded_with_its_own_rows(platform: Platform, first_run: Ended):
    recorded = {}
    for event in platform.events("ASSET_MATERIALIZATION"):
        found = event["event_specific_data"]["materialization"]
        if found["asset_key"]["path"] == ["flights_raw", "flights"]:
            entries = {entry["label"]: entry["entry_data"] for entry in found["metadata_entries"]}
            recorded[found["partition"]] = entries["dagster/partition_row_count"]["value"]
    actual = platform.rows("SELECT flight_date::text, count(*) FROM flights_raw.flights GROUP BY 1")
    assert recorded == dict(actual)


def test_what_raw_columns_are_made_of_is_recorded_with_the_last_day(
    platform: Platform, first_run: Ended
):
    told: dict[str, list[str]] = {}
    for event in platform.events("ASSET_MATERIALIZATION"):
        found = event["event_specific_data"]["materialization"]
        entries = {entry["label"]: entry["entry_data"] for entry in found["metadata_entries"]}
        if lineage := entries.get("dagster/column_lineage"):
            table = ".".join(found["asset_key"]["path"])
            columns = lineage["column_lineage"]["deps_by_column"]
            told[table] = [found["partition"], *sorted(columns)]
    assert told["fleet_raw.airlines"] == [None, "carrier", "name"]
    day, *columns = told["flights_raw.flights"]
    assert day == "2013-12-31"
    assert "tailnum" in columns


def test_every_materialisation_says_how_many_rows(platform: Platform, first_run: Ended):
    without = set()
    for event in platform.events("ASSET_MATERIALIZATION"):
        found = event["event_specific_data"]["materialization"]
        entries = {entry["label"]: entry["entry_data"] for entry in found["metadata_entries"]}
        if not isinstance(entries.get("dagster/row_count", {}).get("value"), int):
            without.add("/".join(found["asset_key"]["path"]))
    assert without == set()


def test_row_counts_are_those_of_the_tables(platform: Platform, first_run: Ended):
    wrong = {}
    for event in platform.events("ASSET_MATERIALIZATION"):
        found = event["event_specific_data"]["materialization"]
        path = found["asset_key"]["path"]
        if len(path) == 2 and not found["partition"]:
            entries = {entry["label"]: entry["entry_data"] for entry in found["metadata_entries"]}
            said = entries["dagster/row_count"]["value"]
            ((actual,),) = platform.rows(f'SELECT count(*) FROM "{path[0]}"."{path[1]}"')
            if said != actual:
                wrong["/".join(path)] = (said, actual)
    assert wrong == {}


def test_checks_are_recorded_with_their_severity(platform: Platform, first_run: Ended):
    checks = [event["event_specific_data"] for event in platform.events("ASSET_CHECK_EVALUATION")]
    assert {check["severity"]["__enum__"] for check in checks} == {
        "AssetCheckSeverity.ERROR",
        "AssetCheckSeverity.WARN",
    }
    expectations = [check for check in checks if "severity" in check["metadata"]]
    for check in expectations:
        told = check["metadata"]["severity"]["text"]
        blocking = told == "critical"
        assert check["blocking"] is blocking, check["check_name"]
        assert check["severity"]["__enum__"].endswith("ERROR" if blocking else "WARN")
    # Of raw tables and of data products alike.
    schemas = {check["asset_key"]["path"][0] for check in expectations}
    assert {"fleet_raw", "weather_raw", "flights_raw", "commerce_raw"} <= schemas
    assert {"fleet", "weather", "flights", "commerce"} <= schemas


def test_no_password_is_written_anywhere_but_where_it_belongs(platform: Platform, first_run: Ended):
    secrets = platform.secrets()
    assert all(len(secret) > 20 for secret in secrets)
    for secret in secrets:
        told = platform.rows(
            f"SELECT count(*) FROM event_logs WHERE position('{secret}' IN event) > 0", DAGSTER
        )
        assert told == [(0,)]
        told = platform.rows(
            f"SELECT count(*) FROM runs WHERE position('{secret}' IN run_body) > 0", DAGSTER
        )
        assert told == [(0,)]
    needles = [secret.encode() for secret in secrets]
    leaking = []
    for path in platform.home.rglob("*"):
        inside = path.relative_to(platform.home).parts
        skipped = inside[0] in ("connectors", "lake") or inside[:2] == ("postgres", "data")
        if skipped or not path.is_file() or path.name == "passwords.json":
            continue
        content = path.read_bytes()
        if any(needle in content for needle in needles):
            leaking.append(str(path))
    assert leaking == []
    assert (platform.home / "postgres" / "passwords.json").stat().st_mode & 0o077 == 0
    assert not any(secret in first_run.out + first_run.err for secret in secrets)
