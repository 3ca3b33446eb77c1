"""Our names in DataHub are those that its own library makes, and its own connectors use."""

from __future__ import annotations

import pytest
from datahub.emitter import mce_builder
from datahub.utilities.urns.urn import Urn

from dagster_project.identity import Feed, Stream, Table, Urns

PLANES = Table("fleet", "dim_planes")
REGISTER = Stream("fleet", "register", "planes")
DROPPED = Feed("flights", "flights")
LOCAL = Urns("DEV", "warehouse", "file:///home/somebody/.mesh/lake")
SHARED = Urns("PROD", "analytics", "s3://company-lake/mesh/")


def test_tables_and_models_are_those_of_the_postgres_and_dbt_connectors() -> None:
    assert SHARED.table(PLANES) == mce_builder.make_dataset_urn(
        "postgres", "analytics.fleet.dim_planes", "PROD"
    )
    assert SHARED.model(PLANES) == mce_builder.make_dataset_urn(
        "dbt", "analytics.fleet.dim_planes", "PROD"
    )


def test_objects_are_those_of_the_s3_connector_or_of_a_folder_wherever_it_is() -> None:
    assert SHARED.objects(REGISTER) == mce_builder.make_dataset_urn(
        "s3", "company-lake/mesh/fleet/register/planes", "PROD"
    )
    assert SHARED.objects(DROPPED) == mce_builder.make_dataset_urn(
        "s3", "company-lake/mesh/landing/flights/flights", "PROD"
    )
    assert LOCAL.objects(DROPPED) == mce_builder.make_dataset_urn(
        "file", "lake/landing/flights/flights", "DEV"
    )


def test_a_stream_is_of_its_source_system() -> None:
    assert SHARED.stream(REGISTER) == mce_builder.make_dataset_urn_with_platform_instance(
        "airbyte", "planes", "fleet.register", "PROD"
    )
    assert SHARED.source(REGISTER) == mce_builder.make_dataplatform_instance_urn(
        "airbyte", "fleet.register"
    )


@pytest.mark.parametrize("name", ["tailnum", "a b", "price (USD), net", "100%", "größe", "a/b"])
def test_a_column_is_named_as_datahub_does_and_found_again(name: str) -> None:
    urn = SHARED.column(SHARED.table(PLANES), name)
    assert urn == mce_builder.make_schema_field_urn(SHARED.table(PLANES), name)
    assert Urns.column_of(urn) == (SHARED.table(PLANES), name)


def test_owners_are_groups_and_people() -> None:
    assert SHARED.owner("team:fleet-data") == mce_builder.make_group_urn("fleet-data")
    assert SHARED.owner("ann@example.org") == mce_builder.make_user_urn("ann@example.org")


def test_what_is_the_business_s_is_the_same_in_every_environment() -> None:
    for urns in (LOCAL, SHARED):
        assert urns.domain("fleet") == mce_builder.make_domain_urn("fleet")
        assert urns.tag("personal_data") == mce_builder.make_tag_urn("personal_data")
        assert urns.product("fleet", "Airlines and airports") == (
            mce_builder.make_data_product_urn("fleet.airlines_and_airports")
        )


def test_a_check_and_a_contract_are_a_table_s_in_one_environment() -> None:
    check = SHARED.check(PLANES.asset_key, "seat_count_in_range")
    assert check == mce_builder.make_assertion_urn("PROD.fleet.dim_planes.seat_count_in_range")
    assert check != LOCAL.check(PLANES.asset_key, "seat_count_in_range")
    assert SHARED.contract(PLANES) == "urn:li:dataContract:PROD.fleet.dim_planes"
    of_others = [("fleet", "reports", "poster"), ("fleet", "reports"), ("fleet_reports_poster",)]
    assert len({SHARED.check(key, "is_there") for key in of_others}) == len(of_others)


def test_a_code_location_is_a_flow_and_what_makes_an_asset_is_a_job_of_it() -> None:
    assert SHARED.flow("fleet") == mce_builder.make_data_flow_urn("dagster", "fleet", "PROD")
    assert SHARED.job("fleet", PLANES.asset_key) == mce_builder.make_data_job_urn(
        "dagster", "fleet", "fleet/dim_planes", "PROD"
    )


def test_a_run_is_one_of_its_environment_and_what_it_did_of_an_asset_is_another() -> None:
    assert SHARED.run("4be6d5a2") == mce_builder.make_data_process_instance_urn("PROD.4be6d5a2")
    assert SHARED.run("4be6d5a2", PLANES.asset_key) == mce_builder.make_data_process_instance_urn(
        "PROD.4be6d5a2.fleet/dim_planes"
    )
    assert SHARED.run("4be6d5a2") != LOCAL.run("4be6d5a2")
    odd = SHARED.run("4be6d5a2", ("sales (old), kept", "größe"))
    assert Urn.from_string(odd).urn() == odd


def test_every_name_is_a_urn_whatever_a_database_is_called() -> None:
    odd = Urns("PROD", "sales (old), kept", "s3://lake")
    for urn in (odd.table(PLANES), odd.model(PLANES), odd.objects(REGISTER)):
        assert Urn.from_string(urn).urn() == urn
    assert odd.platform_of(odd.table(PLANES)) == "urn:li:dataPlatform:postgres"
    assert Urns.column_of(odd.column(odd.table(PLANES), "a")) == (odd.table(PLANES), "a")
