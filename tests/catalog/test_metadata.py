"""What is told of the reference domains: complete, ours to tell, and the same every time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datahub.cli.json_file import check_mce_file

from dagster_project.catalog import metadata
from dagster_project.catalog.aspects import ASSET
from dagster_project.catalog.files import as_record
from dagster_project.catalog.graph import Graph
from dagster_project.catalog.metadata import static_metadata, urns_of
from dagster_project.catalog.validation import faults
from dagster_project.domain import domain_names, read_domain
from dagster_project.identity import Table, Urns
from dagster_project.locations.location import domain_definitions
from dagster_project.quality.suites import critical_checks
from dagster_project.settings import PROJECT, Environment, Settings, get_settings

#: Aspects that people edit in DataHub, of which what they write must stay.
SHARED = {"ownership", "globalTags", "dataProductProperties"}
THEIRS = {
    "editableDatasetProperties",
    "editableSchemaMetadata",
    "glossaryTerms",
    "institutionalMemory",
    "structuredProperties",
}


def of_type(records: list[dict[str, Any]], kind: str, aspect: str) -> dict[str, Any]:
    """By URN, this aspect of all entities of a type."""
    return {
        record["entityUrn"]: record["aspect"]["json"]
        for record in records
        if (record["entityType"], record["aspectName"]) == (kind, aspect)
    }


# Whole


def test_every_asset_that_is_declared_is_told_of(datasets: dict[str, dict[str, Any]]) -> None:
    graphs = [domain_definitions(name).resolve_asset_graph() for name in domain_names()]
    assets = {
        "/".join(key.path)
        for graph in graphs
        for key in graph.get_all_asset_keys()
        # What an asset in Python reads and makes, nobody has declared.
        if "python" not in graph.get(key).kinds
    }
    told = {d["datasetProperties"]["customProperties"][ASSET] for d in datasets.values()}
    assert told == assets


def test_every_dataset_has_owner_domain_description_and_columns(
    datasets: dict[str, dict[str, Any]], urns: Urns
) -> None:
    assert len(datasets) > 80
    for urn, aspects in datasets.items():
        (domain,) = aspects["domains"]["domains"]
        (owner,) = [added["value"]["owner"] for added in aspects["ownership"]["patch"]]
        assert owner == urns.owner(read_domain(domain.rpartition(":")[2]).owner), urn
        assert len(aspects["datasetProperties"]["description"]) > 20, urn
        assert aspects["subTypes"]["typeNames"], urn
        assert aspects["status"] == {"removed": False}, urn
        fields = aspects["schemaMetadata"]["fields"]
        assert fields, urn
        for field in fields:
            assert field["description"], (urn, field["fieldPath"])
            assert field["nativeDataType"], (urn, field["fieldPath"])
            (kind,) = field["type"]["type"]
            assert not kind.endswith("NullType"), (urn, field["nativeDataType"])


def test_a_model_and_its_table_are_one_dataset_of_which_the_model_speaks(
    datasets: dict[str, dict[str, Any]],
) -> None:
    siblings = {urn: d["siblings"] for urn, d in datasets.items() if "siblings" in d}
    assert siblings
    for urn, told in siblings.items():
        (other,) = told["siblings"]
        assert siblings[other] == {"siblings": [urn], "primary": not told["primary"]}
        model = urn if told["primary"] else other
        assert ":dbt," in model
        sql = datasets[model]["viewProperties"]
        assert "{{" in sql["viewLogic"]
        assert "{{" not in sql["formattedViewLogic"]


def test_a_domain_offers_its_data_products_and_their_tables(
    records: list[dict[str, Any]], datasets: dict[str, dict[str, Any]], urns: Urns
) -> None:
    domains = of_type(records, "domain", "domainProperties")
    assert domains.keys() == {urns.domain(name) for name in domain_names()}
    products = of_type(records, "dataProduct", "dataProductProperties")
    memberships = of_type(records, "dataProduct", "domains")
    for name in domain_names():
        declared = read_domain(name)
        assert domains[urns.domain(name)]["description"] == declared.purpose
        for product in declared.data_products:
            urn = urns.product(name, product.name)
            assert memberships[urn] == {"domains": [urns.domain(name)]}
            values = [operation["value"] for operation in products.pop(urn)]
            assert values[:2] == [product.name, product.description]
            assert len(values[2:]) == len(product.tables)
            assert {asset["destinationUrn"] for asset in values[2:]} <= datasets.keys()
    assert not products


def test_a_table_of_a_data_product_that_is_not_there_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, urns: Urns
) -> None:
    fleet = read_domain("fleet")
    product = fleet.data_products[0].model_copy(update={"tables": ["dim_planes", "dim_plains"]})
    mistaken = fleet.model_copy(update={"data_products": [product]})
    monkeypatch.setattr(
        metadata, "read_domain", lambda name: mistaken if name == "fleet" else read_domain(name)
    )
    said: list[str] = []
    records = [as_record(each) for each in static_metadata(get_settings(), said.append)]
    assert said == ["fleet.dim_plains, which a data product of fleet names, is no table of fleet"]
    told = of_type(records, "dataProduct", "dataProductProperties")
    assets = told[urns.product("fleet", product.name)][2:]
    assert [added["value"]["destinationUrn"] for added in assets] == [
        urns.table(Table("fleet", "dim_planes"))
    ]


def test_every_table_that_is_promised_has_a_contract_of_checks_that_are_told_of(
    records: list[dict[str, Any]], urns: Urns
) -> None:
    contracts = of_type(records, "dataContract", "dataContractProperties")
    assertions = of_type(records, "assertion", "assertionInfo")
    products = of_type(records, "dataProduct", "dataProductProperties")
    promised = {added["value"]["destinationUrn"] for p in products.values() for added in p[2:]}
    assert {contract["entity"] for contract in contracts.values()} == promised
    named = [
        part["assertion"]
        for contract in contracts.values()
        for kind in ("schema", "freshness", "dataQuality")
        for part in contract.get(kind) or ()
    ]
    assert set(named) <= assertions.keys()
    kinds = Counter(assertion["type"] for assertion in assertions.values())
    assert kinds["DATA_SCHEMA"] == kinds["FRESHNESS"] == len(contracts)
    flights = Table("flights", "fct_flights")
    asked = {each["assertion"] for each in contracts[urns.contract(flights)]["dataQuality"]}
    assert asked >= {urns.check(flights.asset_key, name) for name in critical_checks(flights)}
    assert urns.check(flights.asset_key, "not_null_fct_flights_flight_date") in asked
    late = assertions["urn:li:assertion:DEV.flights.fct_flights.contract-freshness"]
    assert late["freshnessAssertion"]["schedule"]["fixedInterval"] == {
        "unit": "SECOND",
        "multiple": 36 * 3600,
    }


def test_every_asset_that_dagster_makes_has_a_job_that_reads_and_writes_its_datasets(
    records: list[dict[str, Any]], graph: Graph, urns: Urns
) -> None:
    jobs = of_type(records, "dataJob", "dataJobInfo")
    edges = of_type(records, "dataJob", "dataJobInputOutput")
    made = {}
    for urn, job in jobs.items():
        (output,) = [edge["destinationUrn"] for edge in edges[urn]["outputDatasetEdges"]]
        made[output] = {edge["destinationUrn"] for edge in edges[urn]["inputDatasetEdges"]}
        assert job["flowUrn"] == urns.flow(graph.nodes[output].domain)
        assert job["externalUrl"] == f"http://127.0.0.1:3000/assets/{job['name']}"
        assert job["description"]
    assert made == graph.upstreams
    assert of_type(records, "dataFlow", "dataFlowInfo").keys() == {
        urns.flow(name) for name in domain_names()
    }


def test_personal_data_is_marked_from_the_source_to_where_it_is_declared(
    datasets: dict[str, dict[str, Any]],
) -> None:
    declared = read_domain("commerce").personal_data
    raw = set(declared["commerce_raw.users"])
    marked = {
        aspects["datasetProperties"]["customProperties"][ASSET]: {
            field["fieldPath"]
            for field in aspects["schemaMetadata"]["fields"]
            if "globalTags" in field
        }
        for aspects in datasets.values()
        if "globalTags" in aspects
    }
    assert marked == {
        "source/commerce/shop/users": raw,
        "lake/commerce/shop/users": raw,
        "commerce_raw/users": raw,
        "commerce_staging/stg_commerce__users": {"age"},
    }


# Ours to tell


def test_what_people_write_in_datahub_is_left_alone(records: list[dict[str, Any]]) -> None:
    for record in records:
        assert record["aspectName"] not in THEIRS
        added_to = record["aspectName"] in SHARED
        assert record["changeType"] == ("PATCH" if added_to else "UPSERT"), record
        if added_to:
            patch = record["aspect"]["json"]
            operations = patch["patch"] if isinstance(patch, dict) else patch
            assert {operation["op"] for operation in operations} == {"add"}


def test_the_same_files_tell_the_same_and_nothing_of_this_machine(
    records: list[dict[str, Any]], said: list[str]
) -> None:
    elsewhere = Settings(
        home=get_settings().home, warehouse_url="postgresql://mesh:5ecret@db/warehouse"
    )
    again = [as_record(proposal) for proposal in static_metadata(elsewhere)]
    assert again == records
    text = json.dumps(records)
    assert str(PROJECT) not in text
    assert str(get_settings().home) not in text
    assert said == []


def test_an_environment_has_datasets_of_its_own(records: list[dict[str, Any]]) -> None:
    settings = Settings(
        env=Environment.PRODUCTION,
        warehouse_url="postgresql://mesh:5ecret@db/sales%2Dmart",
        lake_url="s3://company-lake/mesh",
    )
    assert urns_of(settings) == Urns("PROD", "sales-mart", "s3://company-lake/mesh")
    assert urns_of(Settings(env=Environment.STAGING)).fabric == "STG"


# Taken


def test_datahub_takes_every_record(records: list[dict[str, Any]], tmp_path: Path) -> None:
    file = tmp_path / "metadata.json"
    file.write_text(json.dumps(records))
    assert list(faults(file)) == []
    assert check_mce_file(str(file)) == f"{len(records)} MCEs found - all valid"


def test_nothing_is_told_twice(records: list[dict[str, Any]]) -> None:
    told = [(record["entityUrn"], record["aspectName"]) for record in records]
    assert len(set(told)) == len(told)
