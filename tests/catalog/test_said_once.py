"""What people change in DataHub in aspects that are told there, too, is not told over again."""

from __future__ import annotations

from typing import Any

from datahub.metadata.schema_classes import DomainPropertiesClass, StatusClass
from datahub.specific.dataproduct import DataProductPatchBuilder

from dagster_project.catalog.aspects import upserts
from dagster_project.catalog.files import as_record
from dagster_project.catalog.said_once import is_said_once, unsaid

DOMAIN, PRODUCT = "urn:li:domain:fleet", "urn:li:dataProduct:fleet.register"
TABLE = "urn:li:dataset:(urn:li:dataPlatform:postgres,warehouse.fleet.one,DEV)"
Records = list[dict[str, Any]]


def domain(purpose: str) -> Records:
    told = DomainPropertiesClass(name="fleet", description=purpose), StatusClass(removed=False)
    return [as_record(proposal) for proposal in upserts(DOMAIN, *told)]


def product(description: str) -> Records:
    patch = DataProductPatchBuilder(PRODUCT).set_name("Register").set_description(description)
    patch.add_asset(TABLE, output_port=True)
    return [as_record(proposal) for proposal in patch.build()]


def test_a_domain_is_told_when_its_purpose_changes() -> None:
    first, second = domain("Aircraft."), domain("Aircraft and airports.")
    assert list(unsaid([], first)) == first
    # That it is there is told each time: so what was hidden by mistake is there again.
    assert [record["aspectName"] for record in unsaid(first, first)] == ["status"]
    assert list(unsaid(first, second)) == second
    assert [is_said_once(record) for record in first] == [True, False]


def test_of_a_product_what_has_changed_and_its_tables() -> None:
    first, second = product("Of all."), product("Of all, and more.")
    assert list(unsaid([], first)) == first

    def changes(before: Records, now: Records) -> list[str]:
        (record,) = unsaid(before, now)
        patch = record["aspect"]["json"]
        return [each["path"] for each in (patch["patch"] if isinstance(patch, dict) else patch)]

    assert changes(first, first) == [f"/assets/{TABLE}"]
    assert changes(first, second) == ["/description", f"/assets/{TABLE}"]
