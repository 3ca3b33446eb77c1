"""What DataHub has been told once the platform has run, and its command was asked to tell it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from dagster_project.catalog.graph import Graph, read_graph
from tests.catalog.gms import RecordingGms
from tests.e2e.platform import DAGSTER, Ended, Platform

TOKEN = "a-token-of-the-tests"
PLANES = "urn:li:dataset:(urn:li:dataPlatform:postgres,warehouse.fleet_raw.planes,DEV)"
#: Datasets that have something to do with each other: a shop, and flights.
CONTEXTS = [{"commerce"}, {"fleet", "flights", "weather"}]
RESULTS = {"SUCCESS": "SUCCESS", "FAILURE": "FAILURE"}


@dataclass(frozen=True)
class Told:
    """DataHub's server, and the commands that told it."""

    gms: RecordingGms
    deliveries: list[Ended]

    def aspects(self, name: str) -> dict[str, Any]:
        """By URN."""
        return {urn: said for (urn, aspect), said in self.gms.aspects.items() if aspect == name}

    def graph(self) -> Graph:
        return read_graph(
            {
                "entityType": urn.split(":")[2],
                "entityUrn": urn,
                "changeType": "UPSERT",
                "aspectName": aspect,
                "aspect": {"json": said},
            }
            for (urn, aspect), said in self.gms.aspects.items()
        )


@pytest.fixture(scope="module")
def told(platform: Platform, first_run: Ended) -> Iterator[Told]:
    with RecordingGms(TOKEN) as gms:
        to = {"MESH_DATAHUB_GMS_URL": gms.url, "MESH_DATAHUB_TOKEN": TOKEN}
        deliveries = [platform.mesh("catalog", "deliver", **to) for _ in range(2)]
        yield Told(gms, deliveries)


def test_all_is_taken_and_told_once(told: Told):
    first, second = told.deliveries
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "the declarations in 2," in first.out
    assert "refused" not in first.out
    assert second.out.startswith("nothing new: http://127.0.0.1:")
    assert told.gms.left_out == []


def test_what_it_refuses_is_listed_and_sent_again_when_asked(platform: Platform, told: Told):
    to = {"MESH_DATAHUB_GMS_URL": told.gms.url, "MESH_DATAHUB_TOKEN": TOKEN}
    told.gms.chokes_on.add(PLANES)
    # As if nothing had been delivered; the server knows all of it but this.
    platform.rows("UPDATE mesh.catalog_destinations SET event_id = 0 RETURNING 1", DAGSTER)
    again = platform.mesh("catalog", "deliver", **to)
    assert again.code == 1
    assert "refused, which `mesh catalog dead-letters` lists" in again.out
    listed = platform.mesh("catalog", "dead-letters", **to)
    assert "datasetProfile" in listed.out
    assert "fleet_raw.planes" in listed.out.replace("\n", "")
    unknown = platform.mesh("catalog", "replay", "999999", **to)
    assert (unknown.code, unknown.err) == (
        1,
        "mesh: no dead letter has the id 999999: `mesh catalog dead-letters` lists them\n",
    )
    told.gms.chokes_on.clear()
    replayed = platform.mesh("catalog", "replay", **to)
    assert (replayed.code, replayed.out) == (0, "2 records taken, 0 refused again\n")
    assert platform.mesh("catalog", "dead-letters", **to).out == "the catalog has refused nothing\n"


def test_every_dataset_has_an_owner_a_domain_and_a_description(told: Told):
    owners, domains = told.aspects("ownership"), told.aspects("domains")
    described = told.aspects("datasetProperties")
    assert len(described) > 80
    for urn, properties in described.items():
        assert properties["description"].strip(), urn
        assert owners[urn]["owners"], urn
        assert domains[urn]["domains"], urn


def test_the_datasets_of_a_context_are_one_graph(told: Told):
    graph = told.graph()
    waiting, found = set(graph.nodes), []
    while waiting:
        reached, next_ = set(), {waiting.pop()}
        while next_:
            reached |= next_
            near = {n for urn in next_ for n in graph.upstreams.get(urn, ())}
            near |= {n for urn in next_ for n in graph.downstreams.get(urn, ())}
            next_ = near - reached
        waiting -= reached
        found.append({graph.nodes[urn].domain for urn in reached})
    assert sorted(found, key=len) == CONTEXTS


def test_every_run_and_what_it_made_is_told(told: Told, platform: Platform):
    ends = {
        urn: [each["result"]["type"] for each in events if each["status"] == "COMPLETE"]
        for urn, events in told.aspects("dataProcessInstanceRunEvent").items()
    }
    prefix = "urn:li:dataProcessInstance:DEV."
    runs = {run: how for run, (_, how) in platform.runs().items()}
    assert {run: ends[f"{prefix}{run}"] for run in runs} == {
        run: [RESULTS[how]] for run, how in runs.items()
    }
    made = platform.rows(
        "SELECT DISTINCT run_id, asset_key FROM event_logs "
        "WHERE dagster_event_type = 'ASSET_MATERIALIZATION'",
        DAGSTER,
    )
    assert len(made) > 40
    jobs = told.aspects("dataJobInfo")
    relations = told.aspects("dataProcessInstanceRelationships")
    for run, key in made:
        urn = f"{prefix}{run}.{'/'.join(json.loads(key))}"
        assert ends[urn] == ["SUCCESS"], urn
        assert relations[urn]["parentTemplate"] in jobs
        assert relations[urn]["parentInstance"] == f"{prefix}{run}"


def test_every_verdict_is_of_an_assertion_that_is_told(told: Told, platform: Platform):
    evaluated = platform.events("ASSET_CHECK_EVALUATION")
    events = told.aspects("assertionRunEvent")
    verdicts = Counter(
        (each["result"]["type"] == "SUCCESS") for found in events.values() for each in found
    )
    passed = Counter(event["event_specific_data"]["success"] for event in evaluated)
    assert verdicts == passed
    assert events.keys() <= told.aspects("assertionInfo").keys()


def test_tables_have_the_rows_that_the_warehouse_has(told: Told, platform: Platform):
    profiles = told.aspects("datasetProfile")
    assert len(profiles) > 20
    for urn, found in profiles.items():
        name = urn.split(",")[1].partition(".")[2]
        ((rows,),) = platform.rows(f"SELECT count(*) FROM {name}")
        assert found[-1]["rowCount"] == rows, name


def test_no_personal_data_is_told(told: Told, platform: Platform):
    text = json.dumps(told.gms.requests)
    emails = platform.rows("SELECT email FROM commerce_raw.users")
    assert len(emails) > 90
    assert [email for (email,) in emails if email in text] == []
    for secret in platform.secrets():
        assert secret not in text
