"""Datasets of declarations that the reference domains have not."""

from __future__ import annotations

from typing import Any

from dagster_project.catalog.datasets import (
    Dataset,
    Models,
    feed_datasets,
    model_datasets,
    stream_datasets,
)
from dagster_project.domain import Domain
from dagster_project.identity import Urns
from dagster_project.ingestion.declaration import Connection
from dagster_project.ingestion.feed import FeedDeclaration

URNS = Urns("PROD", "warehouse", "s3://lake")
LONG = "a_column_whose_name_is_longer_than_what_postgresql_keeps_of_any_name"


def domain(**personal: list[str]) -> Domain:
    return Domain(
        owner="team:shop",
        purpose="Sells.",
        data_products=[],
        freshness="1h",
        personal_data={name.replace("__", "."): columns for name, columns in personal.items()},
    )


def stream(properties: dict[str, Any], **declared: Any) -> Connection:
    return Connection.model_validate(
        {
            "name": "crm",
            "source": "the CRM",
            "connector": {"environment": "source-crm", "version": "1.0"},
            "streams": [
                {
                    "name": "Customer Accounts",
                    "description": "An account of a customer.",
                    "sync_mode": "full_refresh",
                    "destination_sync_mode": "overwrite",
                    "json_schema": {"type": "object", "properties": properties},
                    **declared,
                }
            ],
        }
    )


def of_stream(connection: Connection, declared: Domain) -> list[Dataset]:
    return list(stream_datasets(URNS, "shop", declared, connection, connection.streams[0]))


def test_a_column_that_postgresql_cannot_have_is_found_under_its_other_name() -> None:
    text = {"type": "string", "description": "Something."}
    connection = stream({"ctid": text, LONG: text, "id": text}, primary_key=["ctid"])
    _, lake, raw = of_stream(connection, domain())
    assert [c.name for c in lake.columns][4:] == ["ctid", LONG, "id"]
    renamed = [c.name for c in raw.columns][4:]
    assert renamed[0] == "ctid_"
    assert renamed[1].startswith("a_column_whose")
    assert len(renamed[1]) < len(LONG)
    assert [raw.made_of[name] for name in renamed] == [
        [(lake.urn, "ctid")],
        [(lake.urn, LONG)],
        [(lake.urn, "id")],
    ]
    assert raw.primary_key == ("ctid_",)


def test_personal_data_is_declared_by_the_table_and_marked_wherever_it_lies() -> None:
    text = {"type": "string"}
    connection = stream({"ctid": text, "id": text})
    declared = domain(shop_raw__customer_accounts=["ctid_"])
    source, lake, raw = of_stream(connection, declared)
    assert list(source.personal) == list(lake.personal) == ["ctid"]
    assert list(raw.personal) == ["ctid_"]


def test_a_stream_is_called_as_its_source_has_it_and_its_table_as_sql_does() -> None:
    source, lake, raw = of_stream(stream({"id": {"type": "integer"}}), domain())
    assert source.name == "Customer Accounts"
    assert lake.name == "shop/crm/customer_accounts"
    assert raw.asset_key == ("shop_raw", "customer_accounts")
    assert (source.upstreams, lake.upstreams, raw.upstreams) == (
        (),
        (source.urn,),
        (lake.urn,),
    )
    assert source.source == "urn:li:dataPlatformInstance:(urn:li:dataPlatform:airbyte,shop.crm)"
    assert [column.type for column in (*source.columns, lake.columns[-1], raw.columns[-1])] == [
        "integer",
        "int64",
        "bigint",
    ]


def test_the_columns_that_a_feed_s_loader_fills_come_from_no_file() -> None:
    feed = FeedDeclaration.model_validate(
        {
            "name": "sales",
            "source": "the tills",
            "description": "A sale.",
            "pattern": r"(?P<day>\d{4}-\d{2}-\d{2})\.csv",
            "partition_column": "sold_on",
            "first_day": "2024-01-01",
            "last_day": "2024-12-31",
            "columns": {"till": {"type": "bigint", "description": "Which till."}},
        }
    )
    declared = domain(shop_raw__sales=["till", "sold_on"])
    landing, raw = feed_datasets(URNS, "shop", declared, feed)
    assert [column.name for column in landing.columns] == ["till"]
    assert [column.name for column in raw.columns] == ["_object", "_loaded_at", "sold_on", "till"]
    assert raw.made_of == {"till": [(landing.urn, "till")]}
    assert list(landing.personal) == ["till"]


def model(name: str, materialized: str, *reads: str) -> dict[str, Any]:
    return {
        "resource_type": "model",
        "fqn": ["mesh", "shop", name],
        "schema": "shop",
        "name": name,
        "description": "A model.",
        "columns": {"id": {"name": "id", "data_type": "text", "description": "Which."}},
        "config": {"materialized": materialized},
        "contract": {"enforced": False},
        "access": "private",
        "raw_code": "select",
        "original_file_path": f"models/{name}.sql",
        "depends_on": {"nodes": [f"model.mesh.{read}" for read in reads]},
    }


def test_what_reads_an_ephemeral_model_reads_what_that_reads() -> None:
    nodes = [
        model("base", "table"),
        model("between", "ephemeral", "base"),
        model("top", "view", "between"),
    ]
    manifest = {"nodes": {f"model.mesh.{n['name']}": n for n in nodes}, "sources": {}}
    found = list(model_datasets(URNS, "shop", domain(), Models(manifest, {}, {})))
    assert [(d.name, d.kind) for d in found] == [
        ("base", "Model"),
        ("base", "Table"),
        ("top", "Model"),
        ("top", "View"),
    ]
    assert found[2].upstreams == (found[1].urn,)
    assert found[3].upstreams == (found[2].urn,)


def test_of_columns_that_are_unique_each_the_first_is_the_key_whatever_dbt_s_order() -> None:
    node = model("one", "table")
    node["columns"] = {name: {**node["columns"]["id"], "name": name} for name in ("a", "b", "c")}

    def keys(**said: Any) -> list[Any]:
        manifest = {"nodes": {"model.mesh.one": {**node, **said}}, "sources": {}}
        found = model_datasets(URNS, "shop", domain(), Models(manifest, {}, {}))
        return [dataset.primary_key for dataset in found]

    assert keys(primary_key=["c", "b"]) == keys(primary_key=["b", "c"]) == [("b",)] * 2
    constraint = {"type": "primary_key", "columns": ["c", "a"]}
    assert keys(primary_key=["c", "a"], constraints=[constraint]) == [("c", "a")] * 2
    assert keys(primary_key=[]) == keys() == [()] * 2
