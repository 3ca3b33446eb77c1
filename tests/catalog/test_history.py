"""What runs did, as DataHub is told of it: whole, the same every time, and nothing twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_project.catalog.events import AssetTold, Judged, RunTold, Status, Told, Updated
from dagster_project.catalog.files import as_record, write
from dagster_project.catalog.history import told_proposals
from dagster_project.catalog.metadata import assets
from dagster_project.catalog.validation import faults
from dagster_project.identity import Table, Urns
from dagster_project.settings import get_settings

SHARED = Urns("PROD", "analytics", "s3://company-lake/mesh")
UI = "https://dagster.example.org"
RUN, RETRY = "4be6d5a2-71c3-4b55-a0bb-2ad2d1f3a7f1", "0a6d84de-9d55-4a38-94e0-3cf6ab3a76b1"
PLANES, LAKE = ("fleet", "dim_planes"), ("lake", "fleet", "register", "planes")
TABLE = Table(*PLANES)
READ = SHARED.table(Table("fleet_staging", "stg_fleet__planes"))
COUNTS = {"received": 9, "new": 3, "changed": 2, "duplicates": 3, "removed": 1, "rejected": 1}

BEGAN = RunTold(RUN, "fleet", "refresh", Status.STARTED, 1000.5, None, None, None, "hourly")
ENDED = replace(BEGAN, status=Status.SUCCEEDED, at=1002.75, began=1000.5)
ASSET = AssetTold(RUN, "fleet", PLANES, Status.SUCCEEDED, 1002.5, 1001.0, "2013-06-01")
LOADED = Updated(RUN, "fleet", PLANES, 1002.25, "2013-06-01", 3322, 9, COUNTS, False)
JUDGED = Judged(
    RUN, "fleet", PLANES, "seats_in_range", 1002.375, None, False, True, 3322, 7, "critical"
)
EVERY: tuple[Told, ...] = (
    BEGAN,
    ENDED,
    replace(ENDED, status=Status.FAILED, began=None, partition="2013-06-01 to 2013-06-07"),
    replace(ENDED, status=Status.CANCELED, run_id=RETRY, retries=RUN, started_by=None),
    ASSET,
    replace(ASSET, status=Status.FAILED, began=None, partition=None),
    replace(ASSET, status=Status.CANCELED, asset_key=LAKE),
    LOADED,
    replace(LOADED, up_to_date=True, counts={}, run_id=None),
    replace(LOADED, asset_key=LAKE, rows=None, columns=None, partition=None),
    JUDGED,
    replace(JUDGED, passed=True, unexpected=0, partition="2013-06-01"),
    replace(JUDGED, evaluated=False, rows=None, unexpected=None, run_id=None),
)


def dataset(asset_key: tuple[str, ...]) -> str | None:
    return SHARED.table(Table(*asset_key[-2:]))


def tell(
    told: Told,
    dataset: Callable[[tuple[str, ...]], str | None] = dataset,
    jobs: Mapping[str, Sequence[str]] = {SHARED.job("fleet", PLANES): [READ]},
    urns: Urns = SHARED,
) -> list[dict[str, Any]]:
    proposals = list(told_proposals(urns, told, UI, dataset, jobs))
    assert all(proposal.validate() for proposal in proposals)
    return [as_record(proposal) for proposal in proposals]


def aspects(told: Told, **how: Any) -> dict[str, list[dict[str, Any]]]:
    """By name, the aspects of one entity: nothing is told of another one."""
    found: dict[str, list[dict[str, Any]]] = {}
    records = tell(told, **how)
    assert len({record["entityUrn"] for record in records}) <= 1
    for record in records:
        found.setdefault(record["aspectName"], []).append(record["aspect"]["json"])
    return found


def place(record: dict[str, Any]) -> tuple[Any, ...]:
    """Where DataHub's server keeps an event: a second one of the same place replaces it."""
    event = record["aspect"]["json"]
    keys = (event["timestampMillis"], event.get("eventGranularity"), event.get("messageId"))
    return record["entityUrn"], record["aspectName"], *keys, event["partitionSpec"]["partition"]


def events(*told: Told) -> list[dict[str, Any]]:
    records = [record for each in told for record in tell(each)]
    return [record for record in records if "timestampMillis" in record["aspect"]["json"]]


# Runs


def test_a_run_is_an_instance_of_its_code_location_with_a_link_to_dagster() -> None:
    told = aspects(BEGAN)
    assert {record["entityUrn"] for record in tell(BEGAN)} == {SHARED.run(RUN)}
    (properties,) = told["dataProcessInstanceProperties"]
    assert properties == {
        "name": RUN,
        "type": "BATCH_SCHEDULED",
        "externalUrl": f"{UI}/runs/{RUN}",
        "created": {"time": 1000500, "actor": "urn:li:corpuser:datahub"},
        "customProperties": {"run_id": RUN, "job": "refresh", "started_by": "hourly"},
    }
    (related,) = told["dataProcessInstanceRelationships"]
    assert related == {"parentTemplate": SHARED.flow("fleet"), "upstreamInstances": []}
    (event,) = told["dataProcessInstanceRunEvent"]
    assert (event["status"], event["timestampMillis"], event["attempt"]) == ("STARTED", 1000500, 1)
    assert "result" not in event


@pytest.mark.parametrize("started_by", [None, "mesh run", "mesh retry"])
def test_a_run_that_a_person_asked_for_is_no_scheduled_one(started_by: str | None) -> None:
    (properties,) = aspects(replace(BEGAN, started_by=started_by))["dataProcessInstanceProperties"]
    assert properties["type"] == "BATCH_AD_HOC"


def test_a_run_that_ended_says_how_and_is_otherwise_told_as_it_was_when_it_began() -> None:
    told = aspects(ENDED)
    (event,) = told.pop("dataProcessInstanceRunEvent")
    assert (event["status"], event["timestampMillis"]) == ("COMPLETE", 1002750)
    assert event["result"] == {"type": "SUCCESS", "nativeResultType": "dagster"}
    assert event["durationMillis"] == 2250
    before = aspects(BEGAN)
    assert told == {name: before[name] for name in told}


@pytest.mark.parametrize(
    ("status", "result"),
    [
        (Status.SUCCEEDED, "SUCCESS"),
        (Status.FAILED, "FAILURE"),
        # DataHub's UI calls it cancelled.
        (Status.CANCELED, "SKIPPED"),
    ],
)
def test_every_end_has_a_result(status: Status, result: str) -> None:
    for told in (ENDED, ASSET):
        *_, event = aspects(replace(told, status=status))["dataProcessInstanceRunEvent"]
        assert event["result"]["type"] == result


def test_a_run_that_never_began_has_an_end_without_duration() -> None:
    told = aspects(replace(ENDED, status=Status.FAILED, began=None))
    (event,) = told["dataProcessInstanceRunEvent"]
    assert "durationMillis" not in event
    (properties,) = told["dataProcessInstanceProperties"]
    assert properties["created"]["time"] == 1002750


def test_a_retry_follows_the_run_that_it_repeats() -> None:
    told = aspects(replace(BEGAN, run_id=RETRY, retries=RUN, started_by=None))
    (related,) = told["dataProcessInstanceRelationships"]
    assert related["upstreamInstances"] == [SHARED.run(RUN)]
    (properties,) = told["dataProcessInstanceProperties"]
    assert properties["type"] == "BATCH_AD_HOC"
    assert properties["customProperties"]["retries"] == RUN
    (event,) = told["dataProcessInstanceRunEvent"]
    assert "attempt" not in event


@pytest.mark.parametrize("told", [ENDED, ASSET], ids=["run", "asset"])
@pytest.mark.parametrize("seconds", [0.0, 0.0001, 3.5], ids=["same", "nearly", "clocks differ"])
def test_the_end_of_a_run_is_its_newest_event(told: RunTold | AssetTold, seconds: float) -> None:
    at = told.at
    began = replace(BEGAN, at=at + seconds)
    (*_, end) = events(replace(told, at=at, began=at + seconds))
    assert end["aspect"]["json"]["status"] == "COMPLETE"
    assert end["aspect"]["json"]["durationMillis"] == 0
    for start in events(began, replace(told, at=at, began=at + seconds)):
        if start["aspect"]["json"]["status"] == "STARTED":
            assert (
                start["aspect"]["json"]["timestampMillis"]
                < end["aspect"]["json"]["timestampMillis"]
            )


# Assets


def test_what_a_run_did_of_an_asset_is_an_instance_of_its_job_and_part_of_the_run() -> None:
    told = aspects(ASSET)
    assert {record["entityUrn"] for record in tell(ASSET)} == {SHARED.run(RUN, PLANES)}
    (related,) = told["dataProcessInstanceRelationships"]
    assert related == {
        "parentTemplate": SHARED.job("fleet", PLANES),
        "parentInstance": SHARED.run(RUN),
        "upstreamInstances": [],
    }
    (properties,) = told["dataProcessInstanceProperties"]
    assert properties["externalUrl"] == f"{UI}/runs/{RUN}"
    assert properties["created"]["time"] == 1001000
    assert properties["customProperties"] == {
        "run_id": RUN,
        "dagster_asset": "fleet/dim_planes",
        "partition": "2013-06-01",
    }
    start, end = told["dataProcessInstanceRunEvent"]
    assert (start["status"], start["timestampMillis"]) == ("STARTED", 1001000)
    assert (end["status"], end["timestampMillis"]) == ("COMPLETE", 1002500)
    assert end["durationMillis"] == 1500
    # Runs are no nodes of the lineage.
    assert told["dataProcessInstanceInput"] == [{"inputs": [READ]}]
    assert told["dataProcessInstanceOutput"] == [{"outputs": [SHARED.table(TABLE)]}]


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELED])
def test_an_asset_that_was_not_made_has_no_output(status: Status) -> None:
    told = aspects(replace(ASSET, status=status, began=None))
    assert "dataProcessInstanceOutput" not in told
    (event,) = told["dataProcessInstanceRunEvent"]
    assert event["status"] == "COMPLETE"


def test_an_asset_without_a_job_is_part_of_the_run_all_the_same() -> None:
    (related,) = aspects(ASSET, jobs={})["dataProcessInstanceRelationships"]
    assert related == {"parentInstance": SHARED.run(RUN), "upstreamInstances": []}


def test_of_what_the_catalog_does_not_have_only_the_processes_are_told() -> None:
    unknown = {"dataset": lambda _: None}
    assert "dataProcessInstanceOutput" not in aspects(ASSET, **unknown)
    assert aspects(ASSET, **unknown)["dataProcessInstanceRunEvent"]
    assert tell(LOADED, **unknown) == tell(JUDGED, **unknown) == []


# Tables


def test_a_load_is_an_operation_with_its_counts_and_a_profile_of_the_table() -> None:
    told = aspects(LOADED)
    assert {record["entityUrn"] for record in tell(LOADED)} == {SHARED.table(TABLE)}
    (operation,) = told["operation"]
    assert operation.pop("partitionSpec")["partition"] == "2013-06-01"
    assert operation == {
        "timestampMillis": 1002250,
        "lastUpdatedTimestamp": 1002250,
        "operationType": "UPDATE",
        "numAffectedRows": 6,
        "messageId": RUN,
        "sourceType": "DATA_PROCESS",
        "customProperties": {
            "run_id": RUN,
            "received": "9",
            "new": "3",
            "changed": "2",
            "duplicates": "3",
            "removed": "1",
            "rejected": "1",
        },
    }
    (profile,) = told["datasetProfile"]
    # That of all rows is not one of the partition.
    assert profile.pop("partitionSpec")["partition"] == "FULL_TABLE_SNAPSHOT"
    assert profile == {
        "timestampMillis": 1002250,
        "rowCount": 3322,
        "columnCount": 9,
        "messageId": RUN,
    }


@pytest.mark.parametrize(
    ("counts", "operation"),
    [
        ({"received": 3, "new": 3}, ("INSERT", 3)),
        ({"received": 3, "changed": 2, "duplicates": 1}, ("UPDATE", 2)),
        ({"received": 0, "removed": 4}, ("DELETE", 4)),
        ({"received": 3, "new": 1, "changed": 2}, ("UPDATE", 3)),
        # Nothing is known of what a model's rows were before.
        ({}, ("UPDATE", None)),
    ],
)
def test_an_operation_is_what_the_load_did(
    counts: dict[str, int], operation: tuple[str, int | None]
) -> None:
    (told,) = aspects(replace(LOADED, counts=counts))["operation"]
    assert (told["operationType"], told.get("numAffectedRows")) == operation


@pytest.mark.parametrize(
    "told",
    [
        replace(LOADED, up_to_date=True, counts={}),
        replace(LOADED, counts={"received": 9, "duplicates": 8, "new": 0, "rejected": 1}),
    ],
    ids=["up to date", "all duplicates"],
)
def test_a_table_that_did_not_change_was_not_updated(told: Updated) -> None:
    assert aspects(told).keys() == {"datasetProfile"}


def test_rows_that_are_not_known_are_not_told() -> None:
    assert aspects(replace(LOADED, rows=None)).keys() == {"operation"}
    (profile,) = aspects(replace(LOADED, rows=0, columns=None))["datasetProfile"]
    assert (profile["rowCount"], profile.get("columnCount")) == (0, None)


# Checks


def test_a_verdict_is_a_result_of_the_assertion() -> None:
    (event,) = aspects(JUDGED)["assertionRunEvent"]
    assert {r["entityUrn"] for r in tell(JUDGED)} == {SHARED.check(PLANES, "seats_in_range")}
    assert event.pop("partitionSpec")["partition"] == "FULL_TABLE_SNAPSHOT"
    assert event == {
        "timestampMillis": 1002375,
        "assertionUrn": SHARED.check(PLANES, "seats_in_range"),
        "asserteeUrn": SHARED.table(TABLE),
        "runId": RUN,
        "messageId": RUN,
        "status": "COMPLETE",
        "result": {
            "type": "FAILURE",
            "severity": "HIGH",
            "rowCount": 3322,
            "unexpectedCount": 7,
            "externalUrl": f"{UI}/assets/fleet/dim_planes?view=checks&checkDetail=seats_in_range",
            "nativeResults": {"severity": "critical"},
        },
    }


@pytest.mark.parametrize(
    ("change", "result"),
    [
        ({"passed": True}, ("SUCCESS", None, None)),
        ({"passed": False, "severity": "ERROR"}, ("FAILURE", "HIGH", None)),
        ({"passed": False, "severity": "warning"}, ("FAILURE", "LOW", None)),
        ({"passed": False, "evaluated": False}, ("ERROR", None, {"type": "UNKNOWN_ERROR"})),
        ({"passed": True, "evaluated": False}, ("ERROR", None, {"type": "UNKNOWN_ERROR"})),
    ],
)
def test_what_could_not_be_judged_has_neither_passed_nor_failed(
    change: dict[str, Any], result: tuple[Any, ...]
) -> None:
    (event,) = aspects(replace(JUDGED, **change))["assertionRunEvent"]
    told = event["result"]
    assert (told["type"], told.get("severity"), told.get("error")) == result


def test_a_check_of_what_is_no_table_is_told_of_what_the_catalog_has() -> None:
    (record,) = tell(replace(JUDGED, asset_key=LAKE))
    assert record["entityUrn"] == SHARED.check(LAKE, JUDGED.check)
    assert tell(replace(JUDGED, asset_key=LAKE), dataset=lambda key: None) == []


# Idempotent


def test_a_record_told_again_is_the_same_to_the_byte(tmp_path: Path) -> None:
    once, again = tmp_path / "once.json", tmp_path / "again.json"
    write(once, [record for told in EVERY for record in tell(told)])
    turned = [
        replace(told, counts=dict(reversed(told.counts.items())))
        if isinstance(told, Updated)
        else replace(told)
        for told in EVERY
    ]
    write(again, [record for told in turned for record in tell(told)])
    assert once.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (LOADED, replace(LOADED, partition="2013-06-02", rows=None)),
        (LOADED, replace(LOADED, run_id=RETRY)),
        (JUDGED, replace(JUDGED, partition="2013-06-01")),
        (JUDGED, replace(JUDGED, run_id=RETRY)),
        (JUDGED, replace(JUDGED, check="seats_are_there")),
        (BEGAN, replace(ENDED, at=BEGAN.at, began=None)),
        (BEGAN, replace(BEGAN, run_id=RETRY)),
        (ASSET, replace(ASSET, asset_key=LAKE)),
    ],
)
def test_what_happens_at_the_same_moment_is_kept_beside_each_other(one: Told, other: Told) -> None:
    found = events(one, other)
    assert len({place(record) for record in found}) == len(found)
    assert {place(record) for record in events(one, other, one)} == set(map(place, found))


def test_a_table_has_one_number_of_rows_at_a_moment() -> None:
    days = [replace(LOADED, partition=day) for day in ("2013-06-01", "2013-06-02")]
    told = [record for record in events(*days) if record["aspectName"] == "datasetProfile"]
    assert len({place(record) for record in told}) == 1


def test_no_partition_has_both_key_and_window_which_the_server_refuses() -> None:
    for record in events(*EVERY):
        assert record["aspect"]["json"]["partitionSpec"].get("timePartition") is None


# Taken


def test_datahub_takes_every_record(tmp_path: Path) -> None:
    file = tmp_path / "history.json"
    write(file, [record for told in EVERY for record in tell(told)])
    assert list(faults(file)) == []


NAMES = st.text(st.sampled_from("a9_ ,()%/:.-é漢ß?&#'\"\u241f"), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(schema=NAMES, name=NAMES, check=NAMES, partition=NAMES)
def test_datahub_takes_any_name(
    tmp_path_factory: pytest.TempPathFactory, schema: str, name: str, check: str, partition: str
) -> None:
    key = (schema, name)
    file = tmp_path_factory.mktemp("names") / "history.json"
    told: list[Told] = [
        replace(ENDED, domain=schema, job=name, partition=partition),
        replace(ASSET, domain=schema, asset_key=key, partition=partition),
        replace(LOADED, asset_key=key, partition=partition),
        replace(JUDGED, asset_key=key, check=check, partition=partition),
    ]
    records = [r for each in told for r in tell(each, jobs={SHARED.job(schema, key): []})]
    write(file, records)
    assert list(faults(file)) == []
    assert {record["entityUrn"] for record in records} == {
        SHARED.run(RUN),
        SHARED.run(RUN, key),
        SHARED.table(Table(*key)),
        SHARED.check(key, check),
    }
    link = records[-1]["aspect"]["json"]["result"]["externalUrl"]
    assert link.isascii()
    assert link.count("?") == link.count("=") - 1 == link.count("&") == 1


# One graph


def test_runs_belong_to_the_flows_and_jobs_and_outputs_that_the_catalog_has(
    records: list[dict[str, Any]], urns: Urns
) -> None:
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        found.setdefault(record["aspectName"], {})[record["entityUrn"]] = record["aspect"]["json"]
    flows, jobs = found["dataFlowInfo"], found["dataJobInfo"]
    assert flows
    assert jobs
    read = {
        urn: [edge["destinationUrn"] for edge in edges["inputDatasetEdges"]]
        for urn, edges in found["dataJobInputOutput"].items()
    }
    assert assets(get_settings()).jobs == read
    by_key = {
        tuple(told["customProperties"]["dagster_asset"].split("/")): urn
        for urn, told in found["datasetProperties"].items()
        # A model speaks for its table, and what it did is told of the table.
        if ":dbt," not in urn
    }
    for urn, job in jobs.items():
        domain, key = flows[job["flowUrn"]]["name"], tuple(job["name"].split("/"))
        run = aspects(replace(BEGAN, domain=domain), urns=urns)
        assert run["dataProcessInstanceRelationships"][0]["parentTemplate"] == job["flowUrn"]
        told = replace(ASSET, domain=domain, asset_key=key)
        made = aspects(told, urns=urns, jobs=read, dataset=by_key.get)
        assert made["dataProcessInstanceRelationships"][0]["parentTemplate"] == urn
        assert made["dataProcessInstanceInput"] == [{"inputs": read[urn]}]
        edges = found["dataJobInputOutput"][urn]["outputDatasetEdges"]
        assert made["dataProcessInstanceOutput"][0]["outputs"] == [
            edge["destinationUrn"] for edge in edges
        ]


def test_verdicts_belong_to_the_assertions_that_the_catalog_has(
    records: list[dict[str, Any]], urns: Urns
) -> None:
    expectations = {
        record["entityUrn"]: record["aspect"]["json"]["customAssertion"]["entity"]
        for record in records
        if record["aspectName"] == "assertionInfo" and "customAssertion" in record["aspect"]["json"]
    }
    assert expectations
    for urn, table in expectations.items():
        schema, name, check = urn.removeprefix("urn:li:assertion:DEV.").split(".")
        told = replace(JUDGED, asset_key=(schema, name), check=check)
        (record,) = tell(told, urns=urns, dataset=lambda key: urns.table(Table(*key)))
        assert record["entityUrn"] == record["aspect"]["json"]["assertionUrn"] == urn
        assert record["aspect"]["json"]["asserteeUrn"] == table


def test_what_is_told_is_named_by_nothing_but_the_record() -> None:
    """A field that DataHub has for samples, values, queries or errors' texts stays empty."""
    text = json.dumps([record for told in EVERY for record in tell(told)])
    for field in ("query", "queries", "actualAggValue", "sampleValues", "fieldProfiles", "message"):
        assert f'"{field}":' not in text
